"""Several processes that train one model: each computes a part of every batch, and the first one writes."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from torch import nn

from ttlora.errors import RunError, UserError

T = TypeVar("T")
# by which torchrun and accelerate launch tell processes of one another
NEEDED = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


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
            UserError: The environment speaks of others, and does not say how to reach them.
        """
        self.count, self.index = started_processes(), 0
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
            self.part()
            of_user, message = first
            if self.is_first:
                raise (UserError if of_user else RunError)(message) from None
            sys.exit(2 if of_user else 1)

    def part(self) -> None:
        """Take leave of the others: who still listens to one that is gone may be aborted."""
        if self.count > 1:
            self.wait()
            torch.distributed.destroy_process_group()


def sum_over_processes(count: int, device: torch.device) -> int:
    """The sum of a number over all processes.

    Args:
        count: This process's.
        device: Where the processes exchange tensors.
    """
    total = torch.tensor(count, device=device)
    torch.distributed.all_reduce(total)
    return int(total)


def share_weights(weights: Sequence[nn.Parameter]) -> None:
    """Give all processes the first one's values of what they train."""
    for weight in weights:
        torch.distributed.broadcast(weight.data, src=0)


def average_gradients(weights: Sequence[nn.Parameter], lacks_memory: bool) -> bool:
    """Average what the processes have computed, in one message; a weight without a gradient in any of them gets none.

    Args:
        weights: What trains, on one device.
        lacks_memory: Whether this process could not compute its part.

    Returns:
        Whether any could not.
    """
    gradients = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in weights]
    told = [weight.grad is not None for weight in weights] + [lacks_memory]
    flat = [gradient.flatten().float() for gradient in gradients]
    message = torch.cat([*flat, torch.tensor(told, dtype=torch.float32, device=flat[0].device)])
    torch.distributed.all_reduce(message)
    *sums, counts = torch.split(message, [*map(len, flat), len(told)])
    *are_there, anyone_lacks = (counts > 0).tolist()
    for weight, of_all, is_there in zip(weights, sums, are_there, strict=True):
        if is_there:
            weight.grad = (of_all / torch.distributed.get_world_size()).view_as(weight).to(weight.dtype)
    return bool(anyone_lacks)
