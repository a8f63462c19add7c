"""Real runs in processes of their own."""

import json
import shutil

import pytest
import torch

from ttlora.errors import RunError, UserError
from ttlora.experiments import own_process
from ttlora.experiments.comparison import Comparison
from ttlora.experiments.counts import count_all
from ttlora.experiments.folder import RunsFolder
from ttlora.experiments.own_process import in_own_process
from ttlora.experiments.runs import plan_runs
from ttlora.finetune import run as run_module
from ttlora.finetune.trainer import TaskTrainer


@pytest.fixture
def prepare(bert, data, tmp_path):
    """A folder, and the runs of methods on a tiny model."""

    def make(methods: str):
        path = tmp_path / "c.yaml"
        shared = f"data: {data}\nepochs: 2\nbatch_size: 8\nlearning_rate: 5e-3"
        path.write_text(f"models: [{bert}]\ntasks: [glue/sst2]\nmethods: {methods}\n{shared}\n")
        folder = RunsFolder(tmp_path / "out", "comparison")
        with folder.claim():
            folder.write_plan({})
        return folder, plan_runs(Comparison.read(path), folder.runs)

    return make


def test_runs_end_with_a_record_or_with_their_error(prepare):
    folder, runs = prepare("[lora, {method: lora, learning_rate: 1e30, label: wild}]")
    with folder.claim():
        for run in runs:
            in_own_process(run, folder.log(run.name), 1)
    assert [run.state for run in runs] == ["done", "failed"]
    record = runs[0].record
    assert (record.method, record.epochs, record.recipe["threads"]) == ("lora", 2, None)
    (count,) = count_all(runs[:1])
    assert (count.adapter, count.head) == (record.adapter_parameters, record.head_parameters)
    assert "start again with a lower `learning_rate`" in runs[1].error
    log = folder.log(runs[0].name).read_text()
    assert "epoch 2/2  training loss" in log
    assert "go on" not in log


def test_run_that_was_stopped_goes_on(prepare):
    folder, (run,) = prepare("[lora]")
    steps = 0
    original = TaskTrainer.training_step

    def stop(*arguments, **keywords):
        nonlocal steps
        steps += 1
        if steps == 8:
            raise KeyboardInterrupt
        return original(*arguments, **keywords)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TaskTrainer, "training_step", stop)
        with folder.claim(), pytest.raises(KeyboardInterrupt):
            run_module.train(run.recipe, quiet=True)
    assert run.state == "unfinished"
    with folder.claim():
        in_own_process(run, folder.log(run.name), 1)
    assert run.state == "done"
    assert "going on after epoch 1" in folder.log(run.name).read_text()


@pytest.fixture
def here(monkeypatch):
    """Work in this process, whose output stays its own."""
    monkeypatch.setattr(own_process, "_print_to", lambda log: None)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)


def test_failed_run_is_done_again_from_nothing(prepare, here, tmp_path):
    _, (run,) = prepare("[lora]")
    shutil.move(run.recipe.data, tmp_path / "elsewhere")
    try:
        own_process.carry_out(run, tmp_path / "log", 1)
        assert run.state == "failed"
        assert "train.jsonl" in run.error
    finally:
        shutil.move(tmp_path / "elsewhere", run.recipe.data)
    own_process.carry_out(run, tmp_path / "log", 1)
    assert run.state == "done"
    assert not run.failure.exists()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (UserError("the data\nare wrong"), "the data are wrong"),
        (RunError("out of memory"), "out of memory"),
        (KeyError("x"), "unexpected KeyError: 'x' ({log} shows where)"),
    ],
)
def test_errors_are_one_line(error, message, prepare, here, tmp_path, monkeypatch, capsys):
    def fail(recipe):
        raise error

    monkeypatch.setattr(own_process, "train", fail)
    _, (run,) = prepare("[lora]")
    own_process.carry_out(run, tmp_path / "log", 1)
    written = json.loads(run.failure.read_text())["error"]
    assert written == message.format(log=tmp_path / "log")
    assert ("Traceback" in capsys.readouterr().err) == isinstance(error, KeyError)
