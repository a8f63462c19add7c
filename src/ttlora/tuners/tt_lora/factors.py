"""The factors that one forward builds before it runs, and hands to the layers that it comes to."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from torch import Tensor, nn

# A (r x in) and B (out x r), or those of several adapters, stacked
Factors = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class BuiltFactors:
    """``A`` and ``B`` of adapted layers, for as long as one forward runs.

    Attributes:
        single: For each layer, the factors of its adapters, one by one.
        stacked: For each layer, the adapters of a mixed batch, and their factors stacked in this order.
    """

    single: Mapping[nn.Module, Mapping[str, Factors]] = field(default_factory=dict)
    stacked: Mapping[nn.Module, tuple[tuple[str, ...], Factors]] = field(default_factory=dict)

    def of(self, layer: nn.Module, adapter: str) -> Factors | None:
        """The factors of one adapter, if they are built."""
        return self.single.get(layer, {}).get(adapter)

    def of_all(self, layer: nn.Module, adapters: tuple[str, ...]) -> Factors | None:
        """The factors of these adapters, stacked, if they are built."""
        names, factors = self.stacked.get(layer, ((), None))
        return factors if names == adapters else None

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
