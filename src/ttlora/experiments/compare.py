"""Carry a comparison out: each run in a process of its own, one after the other or, with Ray, several at a time."""

import importlib.util
import os
import tempfile
from collections.abc import Sequence

import torch

from ttlora.errors import UserError
from ttlora.experiments.display import Display
from ttlora.experiments.folder import RunsFolder
from ttlora.experiments.own_process import in_own_process
from ttlora.experiments.run import Run


def require_ray(parallel: int, address: str | None) -> None:
    """Refuse to do what needs Ray where Ray is not installed, or cannot write its temporary files.

    Raises:
        UserError: It is not, or cannot.
    """
    if not _has_ray() and (parallel > 1 or address is not None):
        name = "`parallel` above 1" if parallel > 1 else "`address`"
        raise UserError(f"{name} needs ray, which is not installed: python -m pip install 'ttlora[search]'")
    name = "RAY_TMPDIR" if "RAY_TMPDIR" in os.environ else "TMPDIR"
    if address is None and name in os.environ:
        try:
            tempfile.TemporaryDirectory(dir=os.environ[name]).cleanup()
        except OSError as error:
            why = f"no temporary file can be made there: {error.strerror}"
            raise UserError(
                f"{name} is {os.environ[name]}, and {why}; set it to a folder that can be written to"
            ) from None


def compare_runs(
    folder: RunsFolder, runs: Sequence[Run], parallel: int, threads: int | None, address: str | None, display: Display
) -> None:
    """Do runs that are not done.

    Args:
        folder: The comparison's folder.
        runs: What is to be done, in this order.
        parallel: How many at a time.
        threads: CPU threads of all of them together; None: as many as PyTorch takes, or as a cluster has.
        address: A Ray cluster; None: this machine.
        display: Is told how it goes.

    Raises:
        UserError: The cluster cannot be reached.
    """
    if not runs:
        return
    if _has_ray():
        _with_ray(folder, runs, parallel, threads, address, display)
        return
    for run in runs:
        display.began(run)
        display.at_work([run])
        in_own_process(run, folder.log(run.name), threads or torch.get_num_threads())
        display.ended(run)


def _has_ray() -> bool:
    return importlib.util.find_spec("ray") is not None


def _with_ray(
    folder: RunsFolder, runs: Sequence[Run], parallel: int, threads: int | None, address: str | None, display: Display
) -> None:
    from ttlora.experiments.engine import Listed, Share, connected, do_runs
    from ttlora.experiments.whole_run import make_whole_run

    with connected(address, folder):
        share = Share.divided(parallel, threads or (torch.get_num_threads() if address is None else None))
        trainable = make_whole_run(str(folder.logs), share.threads)
        do_runs(folder, Listed(runs), trainable, len(runs), share, display, parallel)
