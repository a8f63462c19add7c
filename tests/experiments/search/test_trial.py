"""A trial as Ray Tune drives it, without Ray."""

import json
import math
from dataclasses import replace

import pytest

from ttlora.experiments.run import EPOCH, FAILED, LOSS
from ttlora.experiments.search.trial import EpochByEpoch, Trial
from ttlora.finetune import run as run_module
from ttlora.finetune.data import load_data
from ttlora.finetune.methods import find_method
from ttlora.finetune.prepared import with_tokens
from ttlora.finetune.recipe import Recipe
from ttlora.finetune.run import train
from ttlora.record import Record


@pytest.fixture
def make(bert, data, tmp_path):
    def trial(name: str, **keys) -> Trial:
        keys = {"task": "glue/sst2", "epochs": 3, "batch_size": 8, "learning_rate": 1e-2, **keys}
        recipe = Recipe(model=str(bert), data=str(data), output=str(tmp_path / "trials" / name), **keys)
        (tmp_path / "trials").mkdir(exist_ok=True)
        return Trial(name, find_method(recipe.method).complete(recipe), name, {}, 0)

    return trial


def worker(trial: Trial) -> EpochByEpoch:
    """A process's trainable, made without a process."""
    made = object.__new__(EpochByEpoch)
    recipe = trial.recipe
    data = with_tokens(load_data(recipe), recipe, find_method(recipe.method))
    made.setup(trial.as_config(), data, threads=1)
    return made


def without_speed(record: Record) -> dict:
    return {key: value for key, value in vars(record).items() if "seconds" not in key and key != "peak_memory_bytes"}


def test_steps_are_epochs_and_come_to_what_train_comes_to(make, tmp_path):
    trial = make("0001")
    at_work = worker(trial)
    results = [at_work.step() for _ in range(3)]
    assert [result[EPOCH] for result in results] == [1, 2, 3]
    assert [result["done"] for result in results] == [False, False, True]
    assert [result[LOSS] for result in results] == sorted((result[LOSS] for result in results), reverse=True)
    assert trial.state == "done"
    other = train(replace(trial.recipe, output=str(tmp_path / "other"), threads=1), quiet=True)
    mine, theirs = without_speed(trial.record), without_speed(other)
    for key in ("output", "threads"):
        del mine["recipe"][key], theirs["recipe"][key]
    assert mine == theirs


def test_what_was_trained_is_remembered_and_not_trained_again(make, monkeypatch):
    trial = make("0001")
    first = worker(trial)
    expected = [first.step(), first.step()]
    monkeypatch.setattr(run_module, "fit", pytest.fail)
    again = worker(trial)
    assert [again.step(), again.step()] == expected


def test_a_stopped_trial_has_a_result_and_may_go_on(make):
    trial = make("0001")
    at_work = worker(trial)
    at_work.step()
    assert (trial.state, trial.record) == ("unfinished", None)
    trial.stop()
    assert trial.state == "stopped"
    assert trial.record.epochs == 1
    result = worker(trial)
    assert [result.step()[EPOCH] for _ in range(3)] == [1, 2, 3]
    assert trial.state == "done"
    assert trial.record.epochs == 3


def test_one_process_serves_one_trial_after_the_other(make):
    one, two = make("0001", r=1), make("0002", r=2)
    at_work = worker(one)
    first = at_work.step()
    assert at_work.reset_config(two.as_config())
    assert at_work.step()[EPOCH] == 1
    base = at_work.prepared
    assert at_work.reset_config(one.as_config())
    at_work.load_checkpoint({EPOCH: 1})
    assert at_work.step()[EPOCH] == 2
    assert at_work.prepared is base
    alone = worker(make("0003", r=1))
    assert alone.step()[LOSS] == first[LOSS]


def test_patience_ends_a_trial(make):
    trial = make("0001", epochs=9, patience=1, learning_rate=1.0)
    at_work = worker(trial)
    results = []
    while not results or not results[-1]["done"]:
        results.append(at_work.step())
    assert trial.state == "done"
    assert trial.record.epochs == len(results) < 9
    again = worker(trial)
    assert [again.step() for _ in results] == results


@pytest.mark.parametrize(
    ("keys", "reason"),
    [({"learning_rate": 1e30}, "lower `learning_rate`"), ({"shape": [3, 3]}, "[3, 3]")],
)
def test_a_failed_trial_tells_why(make, keys, reason):
    trial = make("0001")
    at_work = worker(trial)
    at_work.reset_config(make("0002", **keys).as_config())
    result = at_work.step()
    while not result["done"]:
        result = at_work.step()
    assert reason in result[FAILED]
    assert "\n" not in result[FAILED]
    assert result[LOSS] == math.inf


def test_a_folder_that_is_not_there_is_named(make, tmp_path):
    trial = make("0001")
    at_work = worker(trial)
    (tmp_path / "trials").rmdir()
    assert "does not see" in at_work.step()[FAILED]


def test_a_failure_is_told_as_other_failures_are(make):
    trial = make("0001")
    trial.fail("the loss is nan")
    assert (trial.state, trial.error) == ("failed", "the loss is nan")
    assert json.loads(trial.failure.read_text())["model"] == trial.recipe.model
