"""The matrices of a plan: those of one name and one shape make one line of it."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import takewhile

from ttlora.tensor_train import TTShape
from ttlora.tuners.tt_lora.config import asked_dims

BYTES_16BIT = 2


@dataclass(frozen=True)
class MatrixPlan:
    """What the adapter holds for the matrices of one kind.

    Attributes:
        name: How the modules are called, such as `q_proj`.
        shape: The shape of the train of each.
        count: How many there are.
        experts: How many experts' matrices each stacks.
    """

    name: str
    shape: TTShape
    count: int
    experts: int = 1

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of each; the rows of a stack are those of all its experts."""
        return self.shape.out_features, self.shape.in_features

    def lora_parameters(self, r: int) -> int:
        """Parameters of a LoRA on all of them.

        Args:
            r: Its rank.
        """
        return self.count * r * (self.shape.out_features + self.experts * self.shape.in_features)

    @property
    def total_parameters(self) -> int:
        """Parameters of all of them together."""
        return self.count * self.shape.parameters

    @property
    def dims(self) -> list[int]:
        """The dims as a config names them."""
        return asked_dims(self.shape, self.experts > 1)


def group_matrices(shapes: Iterable[tuple[str, TTShape, int]]) -> tuple[MatrixPlan, ...]:
    """Gather modules whose names end alike and whose trains have one shape.

    Args:
        shapes: Each module's full name, the shape of its train, and how many experts it stacks.

    Returns:
        One plan for each kind, in order of first appearance. Kinds that would share a name are told apart by as much
        of the path as their modules have in common: `attention.output.dense` and `output.dense`.
    """
    groups: dict[tuple[str, TTShape, int], list[str]] = {}
    for module, shape, experts in shapes:
        groups.setdefault((module.rpartition(".")[2], shape, experts), []).append(module)
    short = [name for name, *_ in groups]
    return tuple(
        MatrixPlan(name if short.count(name) == 1 else _common_ending(modules), shape, len(modules), experts)
        for (name, shape, experts), modules in groups.items()
    )


def _common_ending(modules: list[str]) -> str:
    paths = [module.split(".")[::-1] for module in modules]
    common = takewhile(lambda parts: len(set(parts)) == 1 and not parts[0].isdigit(), zip(*paths, strict=False))
    return ".".join([parts[0] for parts in common][::-1])
