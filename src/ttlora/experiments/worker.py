"""One run in a process of its own: what it prints goes into its log, and its error into its folder."""

import faulthandler
import os
import threading
import traceback
import warnings
from dataclasses import replace
from multiprocessing import connection, parent_process
from pathlib import Path

import torch
from transformers.utils import logging

from ttlora.errors import RunError, UserError, one_line
from ttlora.experiments.folder import failure_file, write_failure
from ttlora.experiments.runs import PlannedRun
from ttlora.finetune.run import train


def carry_out(run: PlannedRun, log: Path, threads: int) -> None:
    """Carry out a run, or go on with it where it stopped.

    Args:
        run: The run.
        log: Takes what the run and its libraries print.
        threads: CPU threads to compute with.
    """
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _print_to(log)
    torch.set_num_threads(threads)
    failure_file(run).unlink(missing_ok=True)
    try:
        train(replace(run.recipe, resume=(run.folder / "recipe.yaml").exists()))
    except (UserError, RunError) as error:
        write_failure(run, one_line(error))
    except Exception as error:
        traceback.print_exc()
        write_failure(run, f"unexpected {type(error).__name__}: {one_line(error)} ({log} shows where)")


def _end_with_parent() -> None:
    """End when the comparison does, even if it was killed, so that nobody else is at work in the run's folder."""
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
