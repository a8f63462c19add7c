"""Comparisons of nothing but names, which are planned and not run, and a terminal to show them in."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from ttlora.experiments import terminal as terminals
from ttlora.experiments.comparison import Comparison
from ttlora.experiments.runs import PlannedRun, plan_runs

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
def plan(write: Callable[..., Path], tmp_path: Path) -> Callable[..., list[PlannedRun]]:
    """The runs of such a comparison, in the folder `out`."""
    return lambda **keys: plan_runs(Comparison.read(write(**keys)), tmp_path / "out" / "runs")


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What is shown in a terminal."""
    shown = io.StringIO()
    options = {"file": shown, "force_terminal": True, "width": 100}
    monkeypatch.setattr(terminals, "Console", lambda **others: Console(**others | options))
    return shown
