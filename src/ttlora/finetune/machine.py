"""What a run takes of its machine: processes, CPU threads and memory."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from ttlora.errors import RunError, UserError, out_of_memory

STATUS = Path("/proc/self/status")


def require_one_process() -> None:
    """Refuse to run as one of several processes, which torchrun and accelerate launch start.

    Raises:
        UserError: There are others.
    """
    processes = os.environ.get("WORLD_SIZE") or "1"
    if processes != "1":
        raise UserError(
            f"{processes} processes were started for one task (WORLD_SIZE={processes}), which train alone can do: "
            "start one, without torchrun or accelerate launch"
        )


@contextmanager
def cpu_threads(count: int | None) -> Iterator[None]:
    """Compute with this number of CPU threads in the block; None: do not change it."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def reset_peak_memory() -> None:
    """Start the count of `peak_memory_bytes` anew, which CUDA and Linux can do."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    elif STATUS.exists():
        with suppress(OSError):
            # 5 sets the peak of the process's resident memory to what it has now (man 5 proc)
            Path("/proc/self/clear_refs").write_text("5")


def peak_memory_bytes() -> int:
    """The peak memory since `reset_peak_memory`: on the GPU if there is one, else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    if STATUS.exists():
        for line in STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@contextmanager
def telling_of_memory() -> Iterator[None]:
    """Turn each of the errors that mean too little memory into one line.

    Raises:
        RunError: There is too little memory.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if out_of_memory(error):
            raise RunError(
                "out of memory: set `rows_at_once` to auto or to fewer rows, set `gradient_checkpointing`, or lower "
                "`max_length`"
            ) from None
        raise
