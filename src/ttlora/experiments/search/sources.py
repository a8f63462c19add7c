"""Where the trials of a search come from, if not from a list: a ladder from small adapters to large ones, or Optuna."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ray import tune
from ray.tune.search.optuna import OptunaSearch

from ttlora.experiments.run import LOSS, Run
from ttlora.experiments.search.domains import Choices, Domain
from ttlora.experiments.search.search import reaches
from ttlora.experiments.search.space import Candidate, Space
from ttlora.experiments.search.trial import Trial

MOST_ATTEMPTS = 200


class Ladder:
    """Trials from small adapters to large ones, until one has the score that is wanted.

    Trials that are at work by then are left to their end: one of them may be smaller.

    Args:
        candidates: What is tried, by rising size.
        make: Makes a trial of a candidate.
        target: The score.
    """

    def __init__(self, candidates: Iterable[Candidate], make: Callable[[Candidate], Trial], target: float) -> None:
        self.waiting, self.make, self.target = list(candidates), make, target

    def next(self) -> Trial | None:
        """The trial of the next candidate, unless it has failed before."""
        while self.waiting:
            trial = self.make(self.waiting.pop(0))
            if trial.state != "failed":
                return trial
        return None

    def ended(self, run: Run) -> None:
        """Climb no further once the score is there."""
        if reaches(run, self.target):
            self.waiting.clear()


class Proposed:
    """Trials that Optuna's TPE proposes from what the earlier ones came to.

    Args:
        space: What may be proposed.
        earlier: Trials of a search that goes on; they are proposed first, in their order.
        make: Makes a trial of a candidate.
        seed: Seed of the proposals.
    """

    def __init__(self, space: Space, earlier: Sequence[Trial], make: Callable[[Candidate], Trial], seed: int) -> None:
        self.space, self.make = space, make
        points = [
            {key: _index(domain, trial.settings[key]) for key, domain in space.domains.items()} for trial in earlier
        ]
        domains = {key: _as_ray(domain) for key, domain in space.domains.items()}
        self.optuna = OptunaSearch(domains, LOSS, "min", points_to_evaluate=points or None, seed=seed)
        self.proposals: dict[str, str] = {}
        self.ended_trials: dict[str, Run] = {}
        self.count = 0

    def next(self) -> Trial | None:
        """What Optuna proposes, unless it is too large or was there before: then it is told so and asked again."""
        for _ in range(MOST_ATTEMPTS):
            self.count += 1
            proposal = str(self.count)
            point = self.optuna.suggest(proposal)
            if point is None:
                return None
            settings = {key: _value(domain, point[key]) for key, domain in self.space.domains.items()}
            candidate = self.space.candidate(settings)
            if candidate is None:
                self.optuna.on_trial_complete(proposal, error=True)
                continue
            trial = self.make(candidate)
            if trial.name not in self.proposals and trial.state != "failed":
                self.proposals[trial.name] = proposal
                return trial
            self._tell(proposal, self.ended_trials.get(trial.name))
        return None

    def ended(self, run: Run) -> None:
        """Tell Optuna what a trial has come to."""
        self.ended_trials[run.name] = run
        self._tell(self.proposals[run.name], run)

    def _tell(self, proposal: str, trial: Run | None) -> None:
        record = None if trial is None else trial.record
        if record is None:
            self.optuna.on_trial_complete(proposal, error=True)
        else:
            self.optuna.on_trial_complete(proposal, result={LOSS: record.validation_loss})


def _as_ray(domain: Domain) -> Any:
    """A domain as Ray writes it; of choices the places, since a shape is no value that Optuna takes."""
    if isinstance(domain, Choices):
        return tune.choice(list(range(domain.count)))
    if domain.whole:
        # the upper end of Ray's whole numbers is not among them
        low, high = int(domain.low), int(domain.high) + 1
        return tune.lograndint(low, high) if domain.scale == "log" else tune.randint(low, high)
    return tune.loguniform(domain.low, domain.high) if domain.scale == "log" else tune.uniform(domain.low, domain.high)


def _value(domain: Domain, point: Any) -> Any:
    return domain.values[point] if isinstance(domain, Choices) else point


def _index(domain: Domain, value: Any) -> Any:
    return domain.values.index(value) if isinstance(domain, Choices) else value
