"""The runs of a comparison, each in a process of its own, one after the other or several at a time."""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Protocol

from ttlora.experiments.folder import ComparisonFolder, write_failure
from ttlora.experiments.runs import PlannedRun
from ttlora.experiments.worker import carry_out

REFRESH_SECONDS = 0.5
GRACE_SECONDS = 5.0


@dataclass(frozen=True)
class Running:
    """A run at work.

    Attributes:
        run: The run.
        process: Its process.
        began: When it was started, by the monotonic clock.
    """

    run: PlannedRun
    process: BaseProcess
    began: float


class Watcher(Protocol):
    """Who is told how the runs go."""

    def began(self, run: PlannedRun) -> None:
        """A run has begun."""

    def ended(self, run: PlannedRun, seconds: float) -> None:
        """A run has ended: its folder says how."""

    def at_work(self, running: Sequence[Running]) -> None:
        """Called again and again with what runs."""


def do_runs(
    folder: ComparisonFolder,
    runs: Sequence[PlannedRun],
    parallel: int,
    threads: int,
    watcher: Watcher,
    work: Callable[[PlannedRun, Path, int], None] = carry_out,
) -> None:
    """Do runs; one that fails, or whose process dies, leaves its error in its folder and the others go on.

    Args:
        folder: The comparison's folder.
        runs: What is to be done, in this order.
        parallel: How many at a time.
        threads: CPU threads of all of them together.
        watcher: Is told how it goes.
        work: What a process does with a run, its log and its number of threads.
    """
    context = _context()
    waiting = list(runs)
    running: list[Running] = []
    try:
        while waiting or running:
            while waiting and len(running) < parallel:
                run = waiting.pop(0)
                process = context.Process(  # type: ignore[attr-defined]
                    target=work, args=(run, folder.log(run), max(1, threads // parallel)), daemon=True
                )
                with _apart(folder.logs / "start.log"):
                    process.start()
                    running.append(Running(run, process, time.monotonic()))
                watcher.began(run)
            watcher.at_work(running)
            connection.wait([one.process.sentinel for one in running], REFRESH_SECONDS)
            for one in [one for one in running if not one.process.is_alive()]:
                running.remove(one)
                _require_outcome(folder, one)
                watcher.ended(one.run, time.monotonic() - one.began)
    finally:
        _end(running)


def _context() -> BaseContext:
    """How processes are made: forked from one that has imported all, which starts a run without seconds of imports.

    Runs do not share a process, so that the memory of each can be measured.
    """
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([carry_out.__module__])
    return context


@contextmanager
def _apart(log: Path) -> Iterator[None]:
    """Keep processes that are started now apart from the terminal.

    What their imports print goes into a log. Ctrl-C, which a terminal sends to all, they do not hear: who started them
    ends them.
    """
    # Windows has no masks
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if sys.platform != "win32" else None
    stderr = os.dup(2)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.dup2(handle, 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(handle)
        if mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _require_outcome(folder: ComparisonFolder, one: Running) -> None:
    """See to it that a run whose process died without a word is a failed one."""
    if folder.state(one.run) in ("done", "failed"):
        return
    code = one.process.exitcode or 0
    if code < 0:
        name = signal.Signals(-code).name
        cause = "; memory may have run out" if name == "SIGKILL" else ""
        how = f"was killed by {name}{cause}"
    else:
        how = f"ended with status {code}"
    write_failure(one.run, f"the run's process {how} ({folder.log(one.run)} shows what it printed)")


def _end(running: Sequence[Running]) -> None:
    for one in running:
        one.process.terminate()
    for one in running:
        one.process.join(GRACE_SECONDS)
        if one.process.is_alive():
            one.process.kill()
            one.process.join()
