"""The factors that one forward builds before it runs, and hands to the layers that it comes to."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from torch import Tensor, nn

# A (r x in) and B (out x r), or those of several adapters, stacked
Factors = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class RowsOfStack:
    """Which rows of a mixed batch go through the adapters of a stack.

    Attributes:
        rows: Their numbers.
        adapters: For each of them, the place of its adapter in the stack.
        in_runs: Whether each adapter of the stack has one run of rows, all of one length, in the stack's order.
    """

    rows: list[int]
    adapters: list[int]
    in_runs: bool


@dataclass(frozen=True)
class Stack:
    """The factors that some adapters of one shape have for a layer.

    Attributes:
        names: The adapters.
        factors: ``A`` (n x r x in) and ``B`` (n x out x r), in their order.
        rows: What `rows_of` has found, which is the same for all layers with a stack of these adapters.
    """

    names: tuple[str, ...]
    factors: Factors
    rows: dict[tuple[str, ...], RowsOfStack]

    def rows_of(self, adapter_names: Sequence[str]) -> RowsOfStack:
        """The rows of a mixed batch that are these adapters'.

        Args:
            adapter_names: One name a row.
        """
        key = tuple(adapter_names)
        if key not in self.rows:
            place = {name: index for index, name in enumerate(self.names)}
            rows = [row for row, name in enumerate(key) if name in place]
            adapters = [place[key[row]] for row in rows]
            run = len(rows) // len(place)
            self.rows[key] = RowsOfStack(rows, adapters, adapters == [n for n in range(len(place)) for _ in range(run)])
        return self.rows[key]


@dataclass(frozen=True)
class BuiltFactors:
    """``A`` and ``B`` of adapted layers, for as long as one forward runs.

    Attributes:
        single: For each layer, the factors of its adapters, one by one.
        stacked: For each layer, the adapters of a mixed batch, those of one shape in one stack.
    """

    single: Mapping[nn.Module, Mapping[str, Factors]] = field(default_factory=dict)
    stacked: Mapping[nn.Module, Sequence[Stack]] = field(default_factory=dict)

    def of(self, layer: nn.Module, adapter: str) -> Factors | None:
        """The factors of one adapter, if they are built."""
        return self.single.get(layer, {}).get(adapter)

    def stacks(self, layer: nn.Module) -> Sequence[Stack]:
        """The factors of the adapters of a mixed batch, as far as they are built."""
        return self.stacked.get(layer, ())

    @contextmanager
    def handed_on(self) -> Iterator[None]:
        """Within it, layers find what is built here, beside what a forward around this one has built."""
        outer = built_factors()
        token = _HANDED_ON.set(BuiltFactors({**outer.single, **self.single}, {**outer.stacked, **self.stacked}))
        try:
            yield
        finally:
            _HANDED_ON.reset(token)


# each thread has its own: others that run the same layers build for themselves
_HANDED_ON: ContextVar[BuiltFactors | None] = ContextVar("_HANDED_ON", default=None)


def built_factors() -> BuiltFactors:
    """What the forward that runs in this thread has built; outside of a forward, nothing."""
    return _HANDED_ON.get() or BuiltFactors()
