"""What happens to runs, with work that takes no time."""

import os
import signal
import time
from pathlib import Path

import pytest

from ttlora.experiments.folder import ComparisonFolder, write_failure
from ttlora.experiments.processes import do_runs
from ttlora.experiments.runs import PlannedRun


class Watcher:
    """Remembers what it was told; may press Ctrl-C once so many runs are at work."""

    def __init__(self, interrupt_at: int | None = None):
        self.lines, self.most, self.interrupt_at = [], 0, interrupt_at

    def began(self, run):
        self.lines.append(f"+{run.method}")

    def ended(self, run, seconds):
        self.lines.append(f"-{run.method}")

    def at_work(self, running):
        self.most = max(self.most, len(running))
        if len(running) == self.interrupt_at:
            raise KeyboardInterrupt


def finish(run: PlannedRun) -> None:
    run.folder.mkdir(parents=True, exist_ok=True)
    (run.folder / "result.json").write_text(str(os.getpid()))


def work(run: PlannedRun, log: Path, threads: int) -> None:
    """Do what the method's label says."""
    log.write_text(str(threads))
    {
        "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
        "exit": lambda: os._exit(3),
        "fail": lambda: write_failure(run, "no room"),
        "wait": lambda: time.sleep(60),
        "slow": lambda: (time.sleep(0.5), finish(run)),
    }.get(run.method.rstrip("0123456789"), lambda: finish(run))()


@pytest.fixture
def folder(tmp_path):
    return ComparisonFolder(tmp_path / "out")


@pytest.fixture
def runs_of(plan):
    """Runs with the given labels."""

    def make(*labels: str) -> list[PlannedRun]:
        entries = [f"{{method: lora, r: {rank}, label: {label}}}" for rank, label in enumerate(labels, start=1)]
        return plan(methods=f"[{', '.join(entries)}]")

    return make


def test_one_run_costs_no_other(folder, runs_of):
    runs, watcher = runs_of("one", "kill", "exit", "fail", "two"), Watcher()
    with folder.claim(runs):
        do_runs(folder, runs, 1, 4, watcher, work)
    assert watcher.lines == ["+one", "-one", "+kill", "-kill", "+exit", "-exit", "+fail", "-fail", "+two", "-two"]
    assert [folder.state(run) for run in runs] == ["done", "failed", "failed", "failed", "done"]
    log = folder.log(runs[1])
    assert [folder.error(run) for run in runs[1:4]] == [
        f"the run's process was killed by SIGKILL; memory may have run out ({log} shows what it printed)",
        f"the run's process ended with status 3 ({folder.log(runs[2])} shows what it printed)",
        "no room",
    ]
    processes = {(run.folder / "result.json").read_text() for run in (runs[0], runs[4])}
    assert len(processes | {str(os.getpid())}) == 3, "each run has a process of its own"


def test_several_at_a_time_divide_the_threads(folder, runs_of):
    runs, watcher = runs_of("slow1", "slow2", "slow3"), Watcher()
    with folder.claim(runs):
        do_runs(folder, runs, 2, 5, watcher, work)
    assert watcher.most == 2
    assert watcher.lines[:2] == ["+slow1", "+slow2"]
    assert [folder.state(run) for run in runs] == ["done"] * 3
    assert [folder.log(run).read_text() for run in runs] == ["2"] * 3


def test_ctrl_c_ends_what_is_at_work_and_leaves_it_unfinished(folder, runs_of):
    runs, watcher = runs_of("wait1", "wait2", "two"), Watcher(interrupt_at=2)
    began = time.monotonic()
    with folder.claim(runs), pytest.raises(KeyboardInterrupt):
        do_runs(folder, runs, 2, 2, watcher, work)
    assert time.monotonic() - began < 30
    assert [folder.state(run) for run in runs] == ["waiting"] * 3


def test_nothing_to_do(folder):
    do_runs(folder, [], 1, 1, Watcher(), work)
