"""Carry a search out: read the data once, hand the trials to Ray Tune, and clear up."""

from collections.abc import Callable

from ttlora.experiments.search.display import Display
from ttlora.experiments.search.folder import OPEN, Trial
from ttlora.experiments.search.search import Search
from ttlora.experiments.search.sources import Ladder, Listed, Proposed
from ttlora.experiments.search.trial import finished_epochs
from ttlora.experiments.search.tuning import Share, Source, connected, run_trials
from ttlora.finetune.methods import find_method
from ttlora.finetune.prepared import TaskData


def carry_out(search: Search, address: str | None, retry_failed: bool, say: Callable[[str], None]) -> None:
    """Do the trials of a search that are not done.

    Args:
        search: The search.
        address: A Ray cluster; None: a Ray of this machine's own.
        retry_failed: Do failed trials again.
        say: Tells the user a line.

    Raises:
        UserError: Data or model are not there, or the cluster cannot be reached.
    """
    plan = search.plan
    listed = search.listed()
    if retry_failed:
        for trial in search.trials:
            trial.failure.unlink(missing_ok=True)
    # those that are done are handed over too: schedulers and Optuna learn from what is remembered of them
    listed = [trial for trial in listed if trial.state != "failed"]
    everything_known = plan.sampler != "optuna" or plan.target_score is not None
    if everything_known and not any(trial.state in OPEN for trial in listed):
        return
    recipe = plan.recipe({})
    method = find_method(recipe.method)
    data = TaskData.read(recipe).with_tokens(recipe, method)
    with connected(address):
        display = Display(plan.trials, {trial.name: finished_epochs(trial) for trial in search.trials})
        with display:
            run_trials(
                search.folder,
                _source(search, listed),
                data,
                plan.trials,
                recipe.epochs,
                "none" if plan.target_score is not None else plan.scheduler,
                Share.of(plan),
                display,
                ahead=everything_known and plan.target_score is None,
            )
    if search.is_complete():
        search.folder.drop_checkpoints(search.trials)


def _source(search: Search, listed: list[Trial]) -> Source:
    plan = search.plan
    if plan.target_score is not None:
        return Ladder(listed, plan.target_score)
    if plan.sampler == "optuna":
        return Proposed(search.space, listed, search.trial, plan.seed)
    return Listed(listed)
