"""Several processes that train one model: each computes a part of every batch, and the first one writes."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from ttlora.compat import forget_processes
from ttlora.errors import RunError, UserError

T = TypeVar("T")
# by which torchrun and accelerate launch tell processes of one another
NEEDED = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
TOLD_BY = (*NEEDED, "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK")
POLL_SECONDS = 0.2
# what accelerate launch sets where processes are to hold parts of a model
DIVIDING = {"ACCELERATE_USE_FSDP": "FSDP", "ACCELERATE_USE_DEEPSPEED": "DeepSpeed"}


def started_processes() -> int:
    """How many processes torchrun or accelerate launch has started for one task."""
    text = os.environ.get("WORLD_SIZE") or "1"
    return int(text) if text.isdecimal() else 1


def is_first() -> bool:
    """Whether this process is the one that tells people what goes on."""
    return started_processes() == 1 or os.environ.get("RANK", "0") == "0"


class Processes:
    """The processes of one training.

    Attributes:
        count: How many there are.
        index: Which of them this one is, from 0.
    """

    def __init__(self) -> None:
        """Join the others, where there are any.

        Raises:
            UserError: The environment speaks of others, and does not say how to reach them; or the model is to be
                divided among them.
        """
        self.count, self.index = started_processes(), 0
        if dividing := [name for variable, name in DIVIDING.items() if os.environ.get(variable, "false") == "true"]:
            raise UserError(
                f"accelerate was told to divide the model by {dividing[0]}, and each process of ttlora train holds all "
                "of it: start without, and set `quantize` or `gradient_checkpointing` where memory is short"
            )
        if self.count > 1:
            if missing := [name for name in NEEDED if name not in os.environ]:
                raise UserError(
                    f"WORLD_SIZE is {self.count}, and {', '.join(missing)} are not set: start the processes with "
                    "torchrun or accelerate launch, or take WORLD_SIZE out of the environment"
                )
            state = PartialState(cpu=not torch.accelerator.is_available())
            self.index = state.process_index

    @property
    def is_first(self) -> bool:
        """Whether this process writes."""
        return self.index == 0

    def wait(self) -> None:
        """Wait until all have come here."""
        if self.count > 1:
            PartialState().wait_for_everyone()

    def told(self, value: T) -> T:
        """The first process's value, in all of them."""
        if self.count == 1:
            return value
        values: list[Any] = [value]
        broadcast_object_list(values)
        told: T = values[0]
        return told

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """Within it, what one process cannot do ends all of them; the first one says why.

        Raises:
            UserError: One has met it.
            RunError: One has met it.
            SystemExit: In the other processes, so that it is said once.
        """
        if self.count == 1:
            yield
            return
        met: UserError | RunError | None = None
        try:
            yield
        except (UserError, RunError) as error:
            met = error
        found = gather_object([None if met is None else (isinstance(met, UserError), str(met))])
        if first := next(filter(None, found), None):
            self._part()
            of_user, message = first
            if self.is_first:
                raise (UserError if of_user else RunError)(message) from None
            sys.exit(2 if of_user else 1)

    def _part(self) -> None:
        """Take leave of the others: who still listens to one that is gone may be aborted."""
        self.wait()
        torch.distributed.destroy_process_group()

    @contextmanager
    def first_alone(self, result: Path) -> Iterator[None]:
        """What follows is work for one process: the others leave, and the first is alone from here on.

        Args:
            result: The file that the first process writes last, for which the others wait.
        """
        if self.count == 1:
            yield
            return
        self._part()
        if not self.is_first:
            while not result.exists():
                time.sleep(POLL_SECONDS)
            yield
            return
        told = {name: os.environ.pop(name) for name in TOLD_BY if name in os.environ}
        forget_processes()
        try:
            yield
        finally:
            os.environ.update(told)


def sum_over_processes(count: int, device: torch.device) -> int:
    """The sum of a number over all processes.

    Args:
        count: This process's.
        device: Where the processes exchange tensors.
    """
    total = torch.tensor(count, device=device)
    torch.distributed.all_reduce(total)
    return int(total)
