"""What happens to runs in processes of their own, with work that takes no time."""

import os
import signal
import time
from pathlib import Path

import pytest

from ttlora.experiments.compare import compare_runs
from ttlora.experiments.folder import RunsFolder
from ttlora.experiments.own_process import in_own_process
from ttlora.experiments.run import Run
from ttlora.experiments.runs import ComparedRun


def finish(run: Run) -> None:
    run.folder.path.mkdir(parents=True, exist_ok=True)
    (run.folder.path / "mine").write_text(str(os.getpid()))
    run.fail("finished")


def work(run: Run, log: Path, threads: int) -> None:
    """Do what the method's label says."""
    log.write_text(str(threads))
    {
        "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
        "exit": lambda: os._exit(3),
        "fail": lambda: run.fail("no room"),
        "wait": lambda: time.sleep(60),
    }.get(run.label.rstrip("0123456789"), lambda: finish(run))()


@pytest.fixture
def folder(tmp_path):
    folder = RunsFolder(tmp_path / "out", "comparison")
    with folder.claim():
        folder.write_plan({"runs": []})
    return folder


@pytest.fixture
def runs_of(plan):
    """Runs with the given labels."""

    def make(*labels: str) -> list[ComparedRun]:
        members = [f"{{method: lora, r: {rank}, label: {label}}}" for rank, label in enumerate(labels, start=1)]
        return plan(methods=f"[{', '.join(members)}]")

    return make


def test_one_run_costs_no_other(folder, runs_of):
    runs = runs_of("one", "kill", "exit", "fail", "two")
    for run in runs:
        in_own_process(run, folder.log(run.name), 4, work)
    log = folder.log(runs[1].name)
    assert [run.error for run in runs[1:4]] == [
        f"the run's process was killed by SIGKILL; memory may have run out ({log} shows what it printed)",
        f"the run's process ended with status 3 ({folder.log(runs[2].name)} shows what it printed)",
        "no room",
    ]
    processes = {(run.folder.path / "mine").read_text() for run in (runs[0], runs[4])}
    assert len(processes | {str(os.getpid())}) == 3, "each run has a process of its own"
    assert log.read_text() == "4"


def test_ctrl_c_ends_what_is_at_work_and_leaves_it_unfinished(folder, runs_of):
    (run,) = runs_of("wait")

    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    began = time.monotonic()
    signal.alarm(4)
    try:
        with pytest.raises(KeyboardInterrupt):
            in_own_process(run, folder.log(run.name), 2, work)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert time.monotonic() - began < 30
    assert run.state == "waiting"


def test_nothing_to_do(folder):
    compare_runs(folder, [], 1, 1, None, None)
