"""A run in a process of its own, so that its memory can be measured and its death costs no other run."""

import faulthandler
import multiprocessing
import os
import platform
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import connection, parent_process
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from ttlora.errors import RunError, UserError, one_line
from ttlora.experiments.run import EPOCH, FAILED, LOSS, SCORE, Run, failure
from ttlora.finetune.run import train

GRACE_SECONDS = 5.0


def in_own_process(run: Run, log: Path, threads: int, work: Callable[[Run, Path, int], None] | None = None) -> None:
    """Carry a run out in a process of its own; if it fails or dies, its folder says how.

    Args:
        run: The run.
        log: Takes what it prints.
        threads: CPU threads to compute with.
        work: What the process does with these three; None: `carry_out`.
    """
    process = _context().Process(target=work or carry_out, args=(run, log, threads), daemon=True)  # type: ignore[attr-defined]
    with _apart(log.parent / "start.log"):
        process.start()
    try:
        process.join()
    finally:
        _end(process)
    if run.state not in ("done", "stopped", "failed"):
        run.fail(f"the run's process {_how_it_ended(process)} ({log} shows what it printed)")


def carry_out_and_report(config: Mapping[str, Any], logs: str, threads: int) -> dict[str, Any]:
    """Carry a run out in a process of its own, and report to Ray Tune what it has come to.

    Args:
        config: The run, as `Run.as_config` describes it.
        logs: Folder of the logs.
        threads: CPU threads to compute with.
    """
    run, folder = Run.from_config(config), Path(logs)
    if folder.is_dir():
        in_own_process(run, folder / f"{run.name}.log", threads)
        if (record := run.record) is not None:
            score = record.metrics[record.primary_metric]
            return {EPOCH: record.epochs, LOSS: record.validation_loss, SCORE: score, FAILED: "", "done": True}
    error = run.error or f"{platform.node()} does not see {folder}: name a folder that all machines share"
    return failure(0, error)


def carry_out(run: Run, log: Path, threads: int) -> None:
    """Carry a run out in this process, or go on with it where it stopped.

    Args:
        run: The run.
        log: Takes what the run and its libraries print.
        threads: CPU threads to compute with.
    """
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _print_to(log)
    torch.set_num_threads(threads)
    run.failure.unlink(missing_ok=True)
    try:
        train(replace(run.recipe, resume=run.folder.recipe.exists()))
    except (UserError, RunError) as error:
        run.fail(one_line(error))
    except Exception as error:
        traceback.print_exc()
        run.fail(f"unexpected {type(error).__name__}: {one_line(error)} ({log} shows where)")


def _context() -> BaseContext:
    """How processes are made: by a fork of one that has imported all, which saves seconds for each run."""
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


@contextmanager
def _apart(log: Path) -> Iterator[None]:
    """Keep processes that are started now apart from the terminal and from the program that starts them.

    What their imports print goes into a log. Ctrl-C, which a terminal sends to all, they do not hear: who started them
    ends them. The program's main module, which a new process would import, is hidden from them.
    """
    # Windows has no masks
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if sys.platform != "win32" else None
    stderr = os.dup(2)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    main = sys.modules["__main__"]
    file, spec = main.__dict__.pop("__file__", None), main.__spec__
    main.__spec__ = None
    try:
        os.dup2(handle, 2)
        yield
    finally:
        main.__spec__ = spec
        if file is not None:
            main.__file__ = file
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(handle)
        if mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _end(process: BaseProcess) -> None:
    if process.is_alive():
        process.terminate()
        process.join(GRACE_SECONDS)
    if process.is_alive():
        process.kill()
        process.join()


def _how_it_ended(process: BaseProcess) -> str:
    code = process.exitcode or 0
    if code >= 0:
        return f"ended with status {code}"
    name = signal.Signals(-code).name
    return f"was killed by {name}" + ("; memory may have run out" if name == "SIGKILL" else "")


def _end_with_parent() -> None:
    """End when the process that started this one does, even if it was killed, and leave the run's folder to others."""
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _print_to(log: Path) -> None:
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)
    faulthandler.enable()
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
