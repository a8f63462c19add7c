"""Comparisons of nothing but names, which are planned and not run, and a terminal to show them in."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from ttlora.experiments import display
from ttlora.experiments.comparison import Comparison
from ttlora.experiments.folder import RunsFolder
from ttlora.experiments.run import Run
from ttlora.experiments.runs import ComparedRun, plan_runs
from ttlora.experiments.search.config import SearchPlan
from ttlora.experiments.search.search import Search
from ttlora.experiments.search.space import Space
from ttlora.record import Record

PLAIN = {"models": "[bert]", "tasks": "[glue/sst2]", "methods": "[tt-lora]"}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """A YAML file with the given keys in the place of, or beside, those of the smallest comparison."""

    def write_file(**keys: str) -> Path:
        path = tmp_path / "c.yaml"
        path.write_text("".join(f"{key}: {value}\n" for key, value in {**PLAIN, **keys}.items()))
        return path

    return write_file


@pytest.fixture
def plan(write: Callable[..., Path], tmp_path: Path) -> Callable[..., list[ComparedRun]]:
    """The runs of such a comparison, in the folder `out`."""
    return lambda **keys: plan_runs(Comparison.read(write(**keys)), tmp_path / "out" / "runs")


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What is shown in a terminal."""
    shown = io.StringIO()
    options = {"file": shown, "force_terminal": True, "width": 100}
    monkeypatch.setattr(display, "Console", lambda **others: Console(**others | options))
    return shown


@pytest.fixture
def begun(bert, data, tmp_path):
    """A search of a tiny model, with its folder."""
    path = tmp_path / "s.yaml"
    path.write_text(
        f"""
model: {bert}
task: glue/sst2
data: {data}
targets: [query, value]
epochs: 2
space:
  shape: [[4, 8, 8, 4], [32, 32]]
  r: [1, 2, 12, 16]
  alpha: [1, 2, 4, 8]
  learning_rate: {{from: 1e-4, to: 1e-2, scale: log}}
sampler: optuna
max_adapter_size: 1200
trials: 12
"""
    )
    plan = SearchPlan.read(path)
    folder = RunsFolder(tmp_path / "search", "search")
    with folder.claim():
        return Search(plan, Space.of(plan), folder)


@pytest.fixture
def end():
    """Make a trial's result."""
    return end_trial


def end_trial(trial: Run, loss: float, score: float = 0.5, epochs: int = 2, seconds: float = 1.0) -> None:
    """Make a trial's result."""
    trial.folder.path.mkdir(parents=True, exist_ok=True)
    parameters = getattr(trial, "parameters", 100)
    Record(
        method="tt-lora", model="m", task="glue/sst2", seed=0, adapter_parameters=parameters, head_parameters=66,
        trainable_parameters=parameters + 66, adapter_bytes=1000, metrics={"accuracy": score},
        primary_metric="accuracy", validation_loss=loss, best_epoch=1, epochs=epochs, train_seconds=seconds,
        seconds_per_step=0.1, peak_memory_bytes=10**8, recipe=trial.recipe.as_dict(), versions={},
    ).write(trial.folder.result)  # fmt: skip
