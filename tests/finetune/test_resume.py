import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import command
from ttlora.errors import UserError
from ttlora.finetune import callbacks, folder, run
from ttlora.finetune.recipe import Recipe
from ttlora.finetune.trainer import TaskTrainer
from ttlora.record import Record


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it, and nothing is tidied up."""


def make_recipe(bert: Path, data: Path, output: Path, **keys) -> Recipe:
    keys = {"method": "tt-lora", "epochs": 4, "batch_size": 8, "learning_rate": 5e-3, "threads": 1, **keys}
    return Recipe(model=str(bert), task="glue/sst2", data=str(data), output=str(output), **keys)


def outcome(output: Path) -> tuple:
    """All that has to be the same bit for bit."""
    record = Record.read(output / "result.json")
    weights = {file.name: file.read_bytes() for file in (output / "adapter").iterdir()}
    return record.metrics, record.validation_loss, record.best_epoch, record.epochs, weights, log(output)


def log(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def uninterrupted(bert, data, tmp_path_factory):
    output = tmp_path_factory.mktemp("uninterrupted") / "out"
    run.train(make_recipe(bert, data, output), quiet=True)
    return outcome(output)


@contextmanager
def killed(target, name: str, call: int, before: bool = True) -> Iterator[None]:
    """Kill what runs inside at the given call of a function, before or after the call does its work."""
    original = getattr(target, name)
    calls = 0

    def killing(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == call and before:
            raise Killed
        result = original(*args, **kwargs)
        if calls == call:
            raise Killed
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(target, name, killing)
        with pytest.raises(Killed):
            yield


MOMENTS = {
    "before the first step": (TaskTrainer, "training_step", 1, True),
    "in the first epoch": (TaskTrainer, "training_step", 3, True),
    "in the third epoch": (TaskTrainer, "training_step", 15, True),
    "in a validation": (TaskTrainer, "prediction_step", 5, True),
    "in a checkpoint, weights written": (TaskTrainer, "_save_optimizer_and_scheduler", 2, True),
    "in a checkpoint, all written but the mark": (callbacks.Progress, "on_save", 2, True),
    "while old checkpoints are dropped": (shutil, "rmtree", 1, True),
    "after the last epoch": (folder.RunFolder, "write_adapter", 1, True),
    "while the adapter is written": (folder, "cast_weights", 1, False),
    "while the saved adapter is measured": (run, "measure", 1, True),
    "before the result is written": (Record, "write", 1, True),
    "before the checkpoints are removed": (Record, "write", 1, False),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_run_resumes_to_the_same_end(moment, bert, data, tmp_path, uninterrupted):
    recipe = make_recipe(bert, data, tmp_path / "out")
    with killed(*MOMENTS[moment]):
        run.train(recipe, quiet=True)
    run.train(make_recipe(bert, data, tmp_path / "out", resume=True), quiet=True)
    assert outcome(tmp_path / "out") == uninterrupted
    assert sorted(item.name for item in (tmp_path / "out").iterdir()) == [
        "adapter",
        "log.jsonl",
        "recipe.yaml",
        "result.json",
    ]


@pytest.mark.parametrize("method", ["lora", "head", "full"])
def test_every_method_resumes_to_the_same_end(method, bert, data, tmp_path):
    keys = {"method": method, "epochs": 2, "head_learning_rate": 1e-2}
    run.train(make_recipe(bert, data, tmp_path / "whole", **keys), quiet=True)
    with killed(TaskTrainer, "training_step", 9):
        run.train(make_recipe(bert, data, tmp_path / "killed", **keys), quiet=True)
    assert log(tmp_path / "killed")[-1]["epoch"] >= 1
    run.train(make_recipe(bert, data, tmp_path / "killed", resume=True, **keys), quiet=True)
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")


EARLY = {"epochs": 12, "patience": 2, "learning_rate": 0.1}


@pytest.fixture(scope="module")
def stopped_early(bert, data, tmp_path_factory):
    output = tmp_path_factory.mktemp("stopped-early") / "out"
    run.train(make_recipe(bert, data, output, **EARLY), quiet=True)
    assert Record.read(output / "result.json").epochs < 12, "the learning rate should make it stop early"
    return outcome(output)


def test_run_that_stopped_early_does_not_train_on(bert, data, tmp_path, stopped_early):
    with killed(folder.RunFolder, "write_adapter", 1):
        run.train(make_recipe(bert, data, tmp_path / "out", **EARLY), quiet=True)
    run.train(make_recipe(bert, data, tmp_path / "out", resume=True, **EARLY), quiet=True)
    assert outcome(tmp_path / "out") == stopped_early


def test_epochs_without_improvement_are_counted_over_all_parts(bert, data, tmp_path, stopped_early):
    last_epoch = stopped_early[3]
    with killed(TaskTrainer, "training_step", 6 * (last_epoch - 1) + 3):
        run.train(make_recipe(bert, data, tmp_path / "out", **EARLY), quiet=True)
    run.train(make_recipe(bert, data, tmp_path / "out", resume=True, **EARLY), quiet=True)
    assert outcome(tmp_path / "out") == stopped_early


@pytest.mark.slow
def test_sigkill_of_the_command(bert, data, tmp_path):
    keys = {"epochs": 12, "patience": 12}
    run.train(make_recipe(bert, data, tmp_path / "whole", **keys), quiet=True)
    flags = ["--model", bert, "--task", "glue/sst2", "--data", data, "--output", tmp_path / "killed"]
    flags += ["--epochs", 12, "--patience", 12, "--batch-size", 8, "--learning-rate", 5e-3, "--threads", 1]
    train = command("train", *flags)
    process = subprocess.Popen(train, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "killed").glob("checkpoints/progress.json")):
        assert time.monotonic() < deadline, "no checkpoint within a minute"
        assert process.poll() is None, process.communicate()[1].decode()
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "killed" / "result.json").exists()
    run.train(make_recipe(bert, data, tmp_path / "killed", **keys, resume=True), quiet=True)
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")


def test_train_seconds_count_all_parts(bert, data, tmp_path):
    with killed(TaskTrainer, "training_step", 15):
        run.train(make_recipe(bert, data, tmp_path / "out"), quiet=True)
    progress = tmp_path / "out" / "checkpoints" / "progress.json"
    # 240 s for the 12 steps of two epochs
    progress.write_text(json.dumps({**json.loads(progress.read_text()), "seconds": 1000.0, "step_seconds": 20.0}))
    record = run.train(make_recipe(bert, data, tmp_path / "out", resume=True), quiet=True)
    assert 1000 < record.train_seconds < 1100
    assert 10 < record.seconds_per_step < 12


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (
            lambda text: text[:40],
            "progress.json is damaged: .*remove .*checkpoints to begin again with the first epoch",
        ),
        (lambda text: text.replace('"epochs"', '"epoch"'), "progress.json is damaged: it has no epochs"),
        (lambda text: text.replace("checkpoint-", "checkpoint-7"), "damaged: .*checkpoint-7.* is not there"),
        (None, "an earlier version of ttlora has begun the training in .*: end it with that version, or remove"),
    ],
)
def test_a_training_that_cannot_go_on_says_how_to(damage, complaint, bert, data, tmp_path):
    with killed(TaskTrainer, "training_step", 15):
        run.train(make_recipe(bert, data, tmp_path / "out"), quiet=True)
    checkpoints = tmp_path / "out" / "checkpoints"
    progress = checkpoints / "progress.json"
    if damage is None:
        progress.unlink()
        # the mark of versions up to 0.1
        (checkpoints / "checkpoint-12" / "complete").touch()
    else:
        progress.write_text(damage(progress.read_text()))
    again = make_recipe(bert, data, tmp_path / "out", resume=True)
    with pytest.raises(UserError, match=complaint):
        run.train(again, quiet=True)
    shutil.rmtree(checkpoints)
    assert run.train(again, quiet=True).epochs == 4


def test_resume_of_a_finished_run_changes_nothing(bert, data, tmp_path):
    record = run.train(make_recipe(bert, data, tmp_path / "out", epochs=1), quiet=True)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    assert run.train(make_recipe(bert, data, tmp_path / "out", epochs=1, resume=True), quiet=True) == record
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before


def test_resume_without_a_run_starts_one(bert, data, tmp_path, capsys):
    record = run.train(make_recipe(bert, data, tmp_path / "out", epochs=1, resume=True))
    assert record.epochs == 1
    assert "nothing to go on from: starting with the first epoch" in capsys.readouterr().err


def test_says_after_which_epoch_it_goes_on(bert, data, tmp_path, capsys):
    with killed(TaskTrainer, "training_step", 15):
        run.train(make_recipe(bert, data, tmp_path / "out"))
    assert [line[:9] for line in capsys.readouterr().err.splitlines()[2:]] == ["epoch 1/4", "epoch 2/4"]
    run.train(make_recipe(bert, data, tmp_path / "out", resume=True))
    lines = capsys.readouterr().err.splitlines()[2:]
    assert [line[:9] for line in lines[1:]] == ["epoch 3/4", "epoch 4/4"]
    assert lines[0] == "going on after epoch 2"


def test_recipe_that_was_being_written_is_no_run(bert, data, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "recipe.yaml.tmp").write_text("model: /mod")
    run.train(make_recipe(bert, data, tmp_path / "out", epochs=1), quiet=True)


@pytest.mark.parametrize(("key", "value"), [("learning_rate", 1e-4), ("seed", 3), ("r", 3), ("targets", ["query"])])
def test_changed_recipe_is_refused_by_the_name_of_its_key(key, value, bert, data, tmp_path):
    run.train(make_recipe(bert, data, tmp_path / "out", epochs=1), quiet=True)
    with pytest.raises(UserError, match=rf"was started with {key} .* not "):
        run.train(make_recipe(bert, data, tmp_path / "out", **{"epochs": 1, key: value}, resume=True), quiet=True)


def test_folder_can_be_moved_between_parts(bert, data, tmp_path, uninterrupted):
    with killed(TaskTrainer, "training_step", 20):
        run.train(make_recipe(bert, data, tmp_path / "out"), quiet=True)
    shutil.move(tmp_path / "out", tmp_path / "moved")
    run.train(make_recipe(bert, data, tmp_path / "moved", resume=True), quiet=True)
    assert outcome(tmp_path / "moved") == uninterrupted
