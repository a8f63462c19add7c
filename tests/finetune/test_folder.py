"""Two runs that meet in one output folder, and rows that change between the parts of a run."""

import subprocess

import pytest

from tests.conftest import command, sentiment_rows, write_jsonl
from ttlora.errors import UserError
from ttlora.finetune import run
from ttlora.finetune.finished import FinishedRun
from ttlora.finetune.folder import RunFolder, locked
from ttlora.finetune.objectives import HeadObjective
from ttlora.finetune.recipe import Recipe
from ttlora.finetune.trainer import TaskTrainer


def make_recipe(bert, data, output, **keys) -> Recipe:
    keys = {"task": "glue/sst2", "epochs": 2, "batch_size": 16, "threads": 1, **keys}
    return Recipe(model=str(bert), data=str(data), output=str(output), **keys)


def content(folder) -> dict:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class MetError(Exception):
    """Ends a run where it has met the other."""


BEFORE_ANYTHING_IS_WRITTEN = {
    "while it reads its rows": (run, "load_data"),
    "while it loads its model": (run, "load_base"),
    "while it tokenises its rows": (HeadObjective, "encode_data"),
    "just before it takes the folder": (RunFolder, "claim"),
}


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("moment", BEFORE_ANYTHING_IS_WRITTEN)
def test_another_run_that_came_and_went_is_not_touched(moment, resume, bert, data, tmp_path, monkeypatch):
    owner, name = BEFORE_ANYTHING_IS_WRITTEN[moment]
    original = getattr(owner, name)
    first = make_recipe(bert, data, tmp_path / "out", seed=1)
    second = make_recipe(bert, data, tmp_path / "out", seed=1 if resume else 2, resume=resume)
    written = {}

    def meeting(*args, **keywords):
        monkeypatch.setattr(owner, name, original)
        run.train(first, quiet=True)
        written.update(content(tmp_path / "out"))
        return original(*args, **keywords)

    monkeypatch.setattr(owner, name, meeting)
    if resume:
        assert run.train(second, quiet=True) == RunFolder(tmp_path / "out").read_result()
    else:
        with pytest.raises(UserError, match="out holds a finished run: name another folder"):
            run.train(second, quiet=True)
    assert content(tmp_path / "out") == written


AT_WORK = {
    "in its first step": (TaskTrainer, "training_step"),
    "in a checkpoint": (TaskTrainer, "_save"),
    "when it measures what was saved": (run, "measure"),
}


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("moment", AT_WORK)
def test_a_run_at_work_keeps_others_out(moment, resume, bert, data, tmp_path, monkeypatch):
    owner, name = AT_WORK[moment]
    original = getattr(owner, name)
    met = []

    def meeting(*args, **keywords):
        monkeypatch.setattr(owner, name, original)
        before = content(tmp_path / "out")
        with pytest.raises(UserError, match="another run is writing to"):
            run.train(make_recipe(bert, data, tmp_path / "out", resume=resume), quiet=True)
        assert content(tmp_path / "out") == before
        met.append(moment)
        return original(*args, **keywords)

    monkeypatch.setattr(owner, name, meeting)
    record = run.train(make_recipe(bert, data, tmp_path / "out"), quiet=True)
    assert met == [moment]
    assert RunFolder(tmp_path / "out").read_result() == record
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "adapter",
        "log.jsonl",
        "recipe.yaml",
        "result.json",
    ]


@pytest.mark.slow
def test_two_commands_at_once(bert, data, tmp_path):
    flags = ("--model", bert, "--task", "glue/sst2", "--data", data, "--epochs", 2, "--threads", 1)
    commands = [command("train", *flags, "--seed", seed, "--output", tmp_path / "out") for seed in (1, 2)]
    runs = [subprocess.Popen(one, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for one in commands]
    complaints = {one.wait(): error for one, (_, error) in zip(runs, [one.communicate() for one in runs], strict=True)}
    assert set(complaints) == {0, 2}
    assert "another run is writing" in complaints[2] or "holds a finished run" in complaints[2]
    winner = 1 + [one.returncode for one in runs].index(0)
    assert RunFolder(tmp_path / "out").read_result().seed == winner
    assert Recipe.read(tmp_path / "out" / "recipe.yaml").seed == winner


def test_a_lock_that_a_killed_process_left_is_none(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".lock").touch()
    with (
        locked(tmp_path / "out", "in use"),
        pytest.raises(UserError, match="in use"),
        locked(tmp_path / "out", "in use"),
    ):
        pass
    assert not list((tmp_path / "out").iterdir())


def rows_recipe(bert, tmp_path, **keys) -> Recipe:
    files = {split: str(tmp_path / f"{split}.jsonl") for split in ("train", "validation")}
    keys = {"epochs": 3, "batch_size": 8, "threads": 1, "text_column": "sentence", **keys}
    return Recipe(model=str(bert), task="file", output=str(tmp_path / "out"), **files, **keys)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"train": 25}, r"other training rows than .*train\.jsonl holds now: there were 24, and are 25"),
        ({"validation": 7}, r"other validation rows than .*validation\.jsonl holds now: there were 8, and are 7"),
        ({"train": "text"}, r"other training rows .*: their content differs"),
        ({"train": "label"}, r"other training rows .*: their content differs"),
        ({"train": "order"}, r"other training rows .*: their content differs"),
        ({"train": "names", "validation": "names"}, r"was started with the labels \[.*\], not \['good', 'poor'\]"),
        ({}, None),
    ],
)
def test_rows_that_have_changed_since_the_run_was_stopped(change, complaint, bert, tmp_path, monkeypatch):
    rows = {"train": sentiment_rows(24, seed=1), "validation": sentiment_rows(8, seed=2)}
    for split in rows:
        write_jsonl(tmp_path / f"{split}.jsonl", rows[split])
    original = TaskTrainer.training_step

    def stopping(trainer, *args, **keywords):
        if trainer.state.global_step == 4:
            raise MetError
        return original(trainer, *args, **keywords)

    monkeypatch.setattr(TaskTrainer, "training_step", stopping)
    with pytest.raises(MetError):
        run.train(rows_recipe(bert, tmp_path), quiet=True)
    monkeypatch.setattr(TaskTrainer, "training_step", original)
    before = content(tmp_path / "out")
    for split, how in change.items():
        changed = [dict(row) for row in rows[split]]
        if isinstance(how, int):
            changed = sentiment_rows(how, seed=1)
        elif how == "text":
            changed[3]["sentence"] += " film"
        elif how == "label":
            changed[3]["label"] = 1 - changed[3]["label"]
        elif how == "order":
            changed.reverse()
        else:
            changed = [{**row, "label": ("good", "poor")[row["label"]]} for row in changed]
        write_jsonl(tmp_path / f"{split}.jsonl", changed)
    if complaint is None:
        assert run.train(rows_recipe(bert, tmp_path, resume=True), quiet=True).epochs == 3
        return
    with pytest.raises(UserError, match=complaint):
        run.train(rows_recipe(bert, tmp_path, resume=True), quiet=True)
    assert content(tmp_path / "out") == before


def test_a_run_from_before_rows_were_written_down_goes_on(bert, data, tmp_path, monkeypatch):
    monkeypatch.setattr(TaskTrainer, "_save", lambda *_, **__: (_ for _ in ()).throw(MetError))
    with pytest.raises(MetError):
        run.train(make_recipe(bert, data, tmp_path / "out"), quiet=True)
    monkeypatch.undo()
    (tmp_path / "out" / "checkpoints" / "rows.json").unlink()
    assert run.train(make_recipe(bert, data, tmp_path / "out", resume=True), quiet=True).epochs == 2


def test_damaged_fingerprints(bert, data, tmp_path, monkeypatch):
    monkeypatch.setattr(TaskTrainer, "_save", lambda *_, **__: (_ for _ in ()).throw(MetError))
    with pytest.raises(MetError):
        run.train(make_recipe(bert, data, tmp_path / "out"), quiet=True)
    monkeypatch.undo()
    for damage in ("{", "[]", '{"labels": 1, "training": 5}'):
        (tmp_path / "out" / "checkpoints" / "rows.json").write_text(damage)
        with pytest.raises(UserError, match=r"rows\.json is damaged"):
            run.train(make_recipe(bert, data, tmp_path / "out", resume=True), quiet=True)


def test_processes_that_cannot_train_together_are_refused_in_one_line(bert, data, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="WORLD_SIZE is 2, and RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT are not set"):
        run.train(make_recipe(bert, data, tmp_path / "out"), quiet=True)
    with pytest.raises(UserError, match=r"2 processes were started for one task .* train alone can do: start one"):
        FinishedRun.load(str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
