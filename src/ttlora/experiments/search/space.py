"""The space of a search: all that it may try, in the order in which it is tried."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice, product
from random import Random
from typing import Any, Literal, Self

from ttlora.errors import UserError
from ttlora.experiments.keys import plain
from ttlora.experiments.search.adapters import SIZING, Candidate, complete, key_of, measure_adapters
from ttlora.experiments.search.config import SearchPlan
from ttlora.experiments.search.domains import Choices, Domain

__all__ = ["Candidate", "Overview", "Space"]

# so many draws in a row that were there before mean that rounding leaves no others
MOST_MISSES = 10_000
SHOWN = 10


@dataclass(frozen=True)
class Space:
    """All that a search may try.

    Attributes:
        domains: What each searched key can be.
        adapters: The adapters within the bound, each with the settings of `SIZING` alone.
        notes: What was left out, and what of the user's wishes the space cannot fulfil.
        by_settings: Each adapter within the bound by its settings; those that are clipped alike are one.
    """

    domains: Mapping[str, Domain]
    adapters: tuple[Candidate, ...]
    notes: tuple[str, ...]
    by_settings: Mapping[str, Candidate] = field(repr=False)

    @classmethod
    def of(cls, plan: SearchPlan) -> Self:
        """The space of a search, from the model's architecture alone.

        Raises:
            UserError: The model is not there, a shape of the user's does not fit it, or no adapter is left.
        """
        try:
            domains, measured, notes = measure_adapters(plan)
        except UserError as error:
            raise UserError(f"{plan.path}: {plain(error)}") from None
        adapters = list(dict.fromkeys(measured.values()))
        if len(adapters) < len(measured):
            notes.append(
                f"{len(measured) - len(adapters)} of {len(measured)} combinations of shape and r count once with "
                "another: with ranks clipped to what their bonds can have, they are the same adapters"
            )
        within = [adapter for adapter in adapters if adapter.bytes_16bit <= (plan.max_adapter_size or math.inf)]
        if not within:
            smallest = min(adapter.bytes_16bit for adapter in adapters)
            raise UserError(
                f"max_adapter_size is {plan.max_adapter_size:,}, and too small: the smallest adapter of the space "
                f"takes {smallest:,} bytes in 16 bit; allow that much, or search smaller ones"
            )
        if len(within) < len(adapters):
            notes.append(
                f"{len(adapters) - len(within)} of {len(adapters)} adapters are left out: they are larger than "
                f"{plan.max_adapter_size:,} bytes"
            )
        first = {adapter: adapter for adapter in within}
        by_settings = {key: first[adapter] for key, adapter in measured.items() if adapter in first}
        space = cls(domains, tuple(within), (*plan.notes, *notes), by_settings)
        return replace(space, notes=(*space.notes, *space._notes_on_trials(plan)))

    def count(self, sampler: str = "random") -> int | None:
        """How many candidates there are; None: without end, since a range is among the domains.

        Args:
            sampler: Of "grid", a range has five points.
        """
        counts = [len(domain.grid()) if sampler == "grid" else domain.count for domain in self._others.values()]
        return None if None in counts else math.prod((len(self.adapters), *filter(None, counts)))

    def candidate(self, settings: Mapping[str, Any]) -> Candidate | None:
        """The candidate with these settings, numbers of ranges rounded; None: it is larger than allowed.

        Args:
            settings: A value for each key of `domains`.
        """
        adapter = self.by_settings.get(key_of(settings))
        if adapter is None:
            return None
        others = {key: domain.settle(settings[key]) for key, domain in self._others.items()}
        return complete(adapter, others)

    def candidates(self, count: int, sampler: Literal["random", "grid"], seed: int) -> list[Candidate]:
        """Different candidates, or all if there are fewer; of one seed, a longer list begins with a shorter one.

        "random" takes each adapter of the space as likely as any other, and every other setting by itself. "grid" goes
        through all combinations, with five points at even distances for a range.

        Args:
            count: How many.
            sampler: Which.
            seed: Seed of the random ones.
        """
        stream = self._in_grid() if sampler == "grid" else self._at_random(seed)
        return list(islice(stream, count))

    def ladder(self, count: int) -> list[Candidate]:
        """Candidates from small to large, for the smallest adapter that reaches a score.

        The sizes are those nearest to even ratios between the smallest and the largest adapter. At each, the same
        settings are tried, spread evenly over their domains by an additive recurrence (Roberts 2018); the first stands
        in the middle of them all.

        Args:
            count: Most candidates; about as many sizes as settings at each.
        """
        settings = list(islice(self._spread(), math.isqrt(count)))
        sizes = _spread_sizes(self.adapters, count // len(settings))
        return [complete(size, others) for size in sizes for others in settings]

    def overview(self, plan: SearchPlan) -> "Overview":
        """What is shown before anything runs.

        Args:
            plan: The plan that this is the space of.
        """
        first: list[Candidate] = []
        if plan.target_score is not None:
            first = self.ladder(plan.trials)[:SHOWN]
        elif plan.sampler != "optuna":
            first = self.candidates(min(SHOWN, plan.trials), plan.sampler, plan.seed)
        sizes = [adapter.parameters for adapter in self.adapters]
        return Overview(self.count(plan.sampler), min(sizes), max(sizes), self.notes, tuple(first))

    @property
    def _others(self) -> dict[str, Domain]:
        """What can be chosen for an adapter of any size."""
        return {key: domain for key, domain in self.domains.items() if key not in SIZING}

    def _in_grid(self) -> Iterator[Candidate]:
        others = self._others
        for adapter, *values in product(self.adapters, *(domain.grid() for domain in others.values())):
            yield complete(adapter, dict(zip(others, values, strict=True)))

    def _at_random(self, seed: int) -> Iterator[Candidate]:
        # of all that Random has, random() alone is promised to be the same in every version of Python
        chance = Random(seed)
        adapters, others, total = Choices(self.adapters), self._others, self.count()
        seen: set[Candidate] = set()
        misses = 0
        while len(seen) != total and (total is not None or misses < MOST_MISSES):
            adapter = adapters.at(chance.random())
            candidate = complete(adapter, {key: domain.at(chance.random()) for key, domain in others.items()})
            misses = misses + 1 if candidate in seen else 0
            if not misses:
                seen.add(candidate)
                yield candidate

    def _spread(self) -> Iterator[dict[str, Any]]:
        """Settings beside shape and rank, each different, spread evenly whatever their number."""
        others = self._others
        # the real root of g^(d+1) = g + 1
        root = 2.0
        for _ in range(64):
            root = (1 + root) ** (1 / (len(others) + 1))
        seen: list[dict[str, Any]] = []
        for number in range(MOST_MISSES if others else 1):
            places = [(0.5 + number / root**power) % 1 for power in range(1, len(others) + 1)]
            settings = {key: domain.at(place) for (key, domain), place in zip(others.items(), places, strict=True)}
            if settings not in seen:
                seen.append(settings)
                yield settings

    def _notes_on_trials(self, plan: SearchPlan) -> list[str]:
        """Where the number of trials and that of candidates differ in a way that the user may not expect."""
        total = self.count(plan.sampler)
        if plan.target_score is not None or total is None:
            return []
        if total < plan.trials:
            candidates = "1 candidate" if total == 1 else f"{total:,} candidates"
            return [f"the space has {candidates}, and {plan.trials:,} trials were asked for"]
        if plan.sampler == "grid" and total > plan.trials:
            return [f"the grid has {total:,} candidates, of which the first {plan.trials:,} are tried"]
        return []


@dataclass(frozen=True)
class Overview:
    """What a search is going to do.

    Attributes:
        candidates: How many the space has; None: without end.
        smallest: Parameters of the smallest adapter, without the head.
        largest: Those of the largest.
        notes: What was left out, and what else the user may not expect.
        first: The first candidates, in the order in which they are tried; none where Optuna proposes them.
    """

    candidates: int | None
    smallest: int
    largest: int
    notes: tuple[str, ...]
    first: tuple[Candidate, ...]


def _spread_sizes(adapters: Sequence[Candidate], most: int) -> list[Candidate]:
    """Adapters of sizes at even ratios, small to large; of those of one size, the one that comes first."""
    by_size: dict[int, Candidate] = {}
    for adapter in adapters:
        by_size.setdefault(adapter.parameters, adapter)
    left = sorted(by_size)
    steps = min(most, len(left))
    # a method may train the head alone
    low, high = max(left[0], 1), max(left[-1], 1)
    chosen = []
    for step in range(steps):
        wanted = low * (high / low) ** (step / max(steps - 1, 1))
        # as many have to be left as there are steps to come
        reachable = left[: len(left) - (steps - 1 - step)]
        nearest = min(reachable, key=lambda size: abs(math.log(max(size, 1) / wanted)))
        left = left[left.index(nearest) + 1 :]
        chosen.append(by_size[nearest])
    return chosen
