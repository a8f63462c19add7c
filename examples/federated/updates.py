"""How an update is written, and which updates are sound; without Flower, whose arrays tell what they hold."""

import math
from collections.abc import Mapping
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ttlora.errors import printable

# The name of the one array in an update, and how it is written.
NUMBERS, FORM = "numbers", "little-endian float32"
BETA1, BETA2 = 0.9, 0.999  # of torch's Adam
ROUNDING = 1.01


class Array(Protocol):
    """Flower's: what it says that it holds, and its bytes."""

    dtype: str
    shape: tuple[int, ...]
    stype: str
    data: bytes


def read_numbers(array: Array) -> Float[Tensor, " numbers"]:
    """The numbers of an array that is known to be sound, in memory of their own."""
    return torch.from_numpy(np.frombuffer(array.data, "<f4").astype(np.float32))


def sound_numbers(
    arrays: Mapping[str, Array], before: Float[Tensor, " numbers"], limit: float
) -> Float[Tensor, " numbers"]:
    """The numbers of an update that is sound; of one that is not, nothing is read but its names and sizes.

    Args:
        arrays: What a client sent.
        before: The numbers that it was sent.
        limit: How far its optimiser can have moved any of them (`reach`).

    Raises:
        ValueError: It is not sound; the message says why, in one line.
    """
    if list(arrays) != [NUMBERS]:
        raise ValueError(f"its update does not hold one array '{NUMBERS}' and nothing else")
    array = arrays[NUMBERS]
    if (array.dtype, array.stype) != ("float32", FORM):
        raise ValueError(f"its numbers are not in {FORM}")
    if tuple(array.shape) != tuple(before.shape) or len(array.data) != 4 * len(before):
        told = printable(" x ".join(map(str, array.shape)), 50)
        raise ValueError(f"its update is {told} numbers in {len(array.data):,} bytes, and not {len(before):,} numbers")
    numbers = read_numbers(array)
    if not torch.isfinite(numbers).all():
        raise ValueError("its numbers are not all finite")
    if (far := (numbers - before).abs().max().item()) > limit:
        raise ValueError(f"it moved a number by {far:.2g}, and its training can move none by more than {limit:.2g}")
    return numbers


def reach(steps: int, learning_rate: float) -> float:
    """How far Adam can move a number, whatever the gradients: ``η Σ_t c_t`` with ``c_t = max |m̂_t| / √v̂_t``.

    By Cauchy and Schwarz ``c_t = (1-β₁) / √(1-β₂) √(Σ_{j<t} (β₁²/β₂)^j) √(1-β₂^t) / (1-β₁^t)``: 1 in the first step,
    and little more in the next dozens. It asks nothing of the other clients: whether an update counts does not depend
    on what others sent.

    Args:
        steps: How many steps it takes.
        learning_rate: ``η``, the same in all steps.
    """
    ratio = BETA1**2 / BETA2
    total = 0.0
    for t in range(1, steps + 1):
        longest = math.sqrt((1 - ratio**t) / (1 - ratio))
        total += (1 - BETA1) / math.sqrt(1 - BETA2) * longest * math.sqrt(1 - BETA2**t) / (1 - BETA1**t)
    return ROUNDING * learning_rate * total
