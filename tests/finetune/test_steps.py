"""Measurements and checkpoints by steps, and runs that go on from within an epoch."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from tests.finetune.test_resume import killed, log, make_recipe, outcome
from ttlora.errors import UserError
from ttlora.experiments.search.config import SearchPlan
from ttlora.finetune import progress, run
from ttlora.finetune.trainer import TaskTrainer
from ttlora.record import Record

# 48 rows in batches of 8: six steps an epoch
STEPS = {"epochs": 3, "evaluate_every": 4, "save_every": 3, "max_steps": 15}


def measured(output: Path) -> list[int]:
    return [entry["step"] for entry in log(output) if "validation_loss" in entry]


@pytest.fixture(scope="module")
def uninterrupted(bert, data, tmp_path_factory):
    output = tmp_path_factory.mktemp("steps") / "out"
    run.train(make_recipe(bert, data, output, **STEPS), quiet=True)
    assert measured(output) == [4, 8, 12, 15]
    return outcome(output)


@pytest.mark.parametrize("step", [2, 7, 8, 13])
def test_a_run_goes_on_from_its_last_checkpoint_to_the_same_end(step, bert, data, tmp_path, uninterrupted, capsys):
    recipe = make_recipe(bert, data, tmp_path / "out", **STEPS)
    with killed(TaskTrainer, "training_step", step):
        run.train(recipe, quiet=True)
    run.train(make_recipe(bert, data, tmp_path / "out", resume=True, **STEPS))
    saved = max((at for at in (0, 3, 4, 6, 8, 9, 12) if at < step), default=0)
    place = f"epoch {saved // 6}" if saved and not saved % 6 else f"step {saved}"
    told = "nothing to go on from" if not saved else f"going on after {place}\n"
    assert told in capsys.readouterr().err
    assert outcome(tmp_path / "out") == uninterrupted


def test_a_checkpoint_before_any_measurement(bert, data, tmp_path):
    keys = {"epochs": 1, "save_every": 1}
    run.train(make_recipe(bert, data, tmp_path / "whole", **keys), quiet=True)
    with killed(TaskTrainer, "training_step", 3):
        run.train(make_recipe(bert, data, tmp_path / "out", **keys), quiet=True)
    progress = json.loads((tmp_path / "out" / "checkpoints" / "progress.json").read_text())
    assert (progress["step"], progress["loss"]) == (2, None)
    run.train(make_recipe(bert, data, tmp_path / "out", resume=True, **keys), quiet=True)
    assert outcome(tmp_path / "out") == outcome(tmp_path / "whole")


def test_the_end_of_an_epoch_is_saved_with_what_is_measured_there(bert, data, tmp_path):
    """A checkpoint before the measurement would let a run go on without it."""
    keys = {"epochs": 2, "save_every": 1}
    run.train(make_recipe(bert, data, tmp_path / "whole", **keys), quiet=True)
    with killed(TaskTrainer, "prediction_step", 1):
        run.train(make_recipe(bert, data, tmp_path / "out", **keys), quiet=True)
    progress = json.loads((tmp_path / "out" / "checkpoints" / "progress.json").read_text())
    assert progress["step"] == 5
    run.train(make_recipe(bert, data, tmp_path / "out", resume=True, **keys), quiet=True)
    assert outcome(tmp_path / "out") == outcome(tmp_path / "whole")


def test_most_steps(bert, data, tmp_path, capsys):
    record = run.train(make_recipe(bert, data, tmp_path / "out", epochs=4, max_steps=8))
    assert (record.epochs, record.planned_epochs, record.stopped_early) == (2, 2, False)
    assert measured(tmp_path / "out") == [6, 8]
    told = capsys.readouterr().err
    assert "epoch 1/2" in told
    assert "step 8/8" in told
    assert "stopped:" not in told


def test_patience_counts_measurements(bert, data, tmp_path, capsys):
    keys = {"epochs": 12, "patience": 2, "learning_rate": 0.1, "evaluate_every": 2}
    record = run.train(make_recipe(bert, data, tmp_path / "out", **keys))
    steps = measured(tmp_path / "out")
    losses = [entry["validation_loss"] for entry in log(tmp_path / "out") if "validation_loss" in entry]
    best = losses.index(min(losses))
    assert len(losses) == best + 3
    assert steps[-1] < 72
    assert record.validation_loss == pytest.approx(losses[best], rel=1e-2)
    assert f"stopped: no lower validation loss for 2 measurements; kept step {steps[best]}\n" in capsys.readouterr().err


@pytest.mark.parametrize("key", ["max_steps", "evaluate_every", "save_every"])
def test_a_search_counts_in_epochs(key, bert, data, tmp_path):
    file = tmp_path / "search.yaml"
    file.write_text(f"model: {bert}\ntask: glue/sst2\ndata: {data}\nspace: {{r: [1, 2]}}\n{key}: 3\n")
    with pytest.raises(UserError, match=f"{key}.*a search counts in epochs"):
        SearchPlan.read(file)


def test_an_older_runs_progress_counts_epochs_alone(bert, data, tmp_path):
    run.train(make_recipe(bert, data, tmp_path / "whole", epochs=2), quiet=True)
    with killed(TaskTrainer, "training_step", 9):
        run.train(make_recipe(bert, data, tmp_path / "out", epochs=2), quiet=True)
    path = tmp_path / "out" / "checkpoints" / "progress.json"
    progress = json.loads(path.read_text())
    del progress["step"], progress["best_step"]
    path.write_text(json.dumps(progress))
    run.train(make_recipe(bert, data, tmp_path / "out", epochs=2, resume=True), quiet=True)
    assert outcome(tmp_path / "out") == outcome(tmp_path / "whole")
    assert Record.read(tmp_path / "out" / "result.json").epochs == 2


def test_a_log_file_gets_a_line_now_and_then(bert, data, tmp_path, capsys, monkeypatch):
    recipe = make_recipe(bert, data, tmp_path / "out", epochs=1)
    run.train(recipe)
    assert "tokens/s" not in capsys.readouterr().err
    monkeypatch.setattr(progress, "SILENCE", 0.0)
    run.train(replace(recipe, output=str(tmp_path / "again")))
    lines = [line for line in capsys.readouterr().err.splitlines() if "tokens/s" in line]
    assert re.fullmatch(r"step 1/6  loss \d\.\d{4}  [\d,]+ tokens/s  about \d+ s left", lines[0])
    assert len(lines) == 6
