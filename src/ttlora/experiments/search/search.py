"""A search from beginning to end: which trials there are, which of them are done, and what they come to."""

import json
from collections.abc import Mapping
from typing import Any

from ttlora.errors import UserError, one_line
from ttlora.experiments.folder import RunsFolder
from ttlora.experiments.run import Run
from ttlora.experiments.search.config import SearchPlan
from ttlora.experiments.search.space import Candidate, Space
from ttlora.experiments.search.trial import Trial
from ttlora.finetune.recipe import Recipe

# what may change when a search goes on: the trials that are there stay the same
CHANGEABLE = ("trials", "scheduler", "cpus_per_trial", "gpus_per_trial", "target_score")


class Search:
    """The trials of a search, in its folder.

    Args:
        plan: What is searched.
        space: What trials may try.
        folder: The search's folder.

    Raises:
        UserError: The folder holds a search that was asked something else; the message names the key.
    """

    def __init__(self, plan: SearchPlan, space: Space, folder: RunsFolder) -> None:
        self.plan, self.space, self.folder = plan, space, folder
        self.trials: list[Trial] = []
        self.by_settings: dict[str, Trial] = {}
        before = folder.read_plan()
        if before is not None:
            _require_same(before["asked"], plan.asked, folder)
            for trial in before["trials"]:
                try:
                    self._add(trial["name"], trial["settings"], trial["parameters"])
                except (TypeError, ValueError) as error:
                    raise UserError(
                        f"{folder.plan} is damaged: {one_line(error)}; name another folder as `output`"
                    ) from None

    def trial(self, candidate: Candidate) -> Trial:
        """The trial of a candidate, which is a new one unless the search has it already."""
        if known := self.by_settings.get(_written(candidate.settings)):
            return known
        trial = self._add(f"{len(self.trials) + 1:04}", candidate.settings, candidate.parameters)
        self._write()
        return trial

    def listed(self) -> list[Trial]:
        """The trials that are known before any is done, but for those that have failed; Optuna proposes its own."""
        plan = self.plan
        known = self.trials
        if plan.sampler != "optuna":
            candidates = self.space.candidates(plan.trials, plan.sampler, plan.seed)
            known = [self.trial(candidate) for candidate in candidates]
        return [trial for trial in known if trial.state != "failed"]

    def best(self) -> Trial | None:
        """The trial whose recipe is worth keeping.

        That is the one of the lowest validation loss; where a score was asked for, the smallest that has it.
        """
        ended = [(trial, record) for trial in self.trials if (record := trial.record) is not None]
        if self.plan.target_score is not None:
            reaching = [trial for trial, _ in ended if reaches(trial, self.plan.target_score)]
            return min(reaching, key=lambda trial: trial.parameters, default=None)
        return min(ended, key=lambda pair: pair[1].validation_loss, default=(None, None))[0]

    def _add(self, name: str, settings: Mapping[str, Any], parameters: int) -> Trial:
        recipe: Recipe = self.plan.recipe(settings, str(self.folder.runs / name))
        trial = Trial(name, recipe, name, dict(settings), parameters)
        self.trials.append(trial)
        self.by_settings[_written(settings)] = trial
        return trial

    def _write(self) -> None:
        trials = [
            {"name": trial.name, "settings": trial.settings, "parameters": trial.parameters} for trial in self.trials
        ]
        self.folder.write_plan({"asked": self.plan.asked, "trials": trials})


def reaches(trial: Run, target: float) -> bool:
    """Whether a trial has ended with a score."""
    record = trial.record
    return record is not None and record.metrics[record.primary_metric] >= target


def _require_same(before: Mapping[str, Any], now: Mapping[str, Any], folder: RunsFolder) -> None:
    for key in dict.fromkeys((*before, *now)):
        if key not in CHANGEABLE and _written(before.get(key)) != _written(now.get(key)):
            raise UserError(
                f"{folder.path} was begun with {key} {before.get(key)!r}, not {now.get(key)!r}: go on with the same "
                "file, or name another folder as `output`"
            )


def _written(value: Any) -> str:
    """A value as text that is the same before it is written down and after it has been read again."""
    return json.dumps(value, sort_keys=True)
