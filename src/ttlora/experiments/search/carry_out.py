"""Carry a search out: read the data once, hand the trials to Ray Tune, and clear up."""

from ray import tune

from ttlora.experiments.display import Display
from ttlora.experiments.engine import Listed, Share, Source, connected, do_runs
from ttlora.experiments.run import OPEN
from ttlora.experiments.search.search import Search
from ttlora.experiments.search.sources import Ladder, Proposed
from ttlora.experiments.search.trial import EpochByEpoch
from ttlora.finetune.data import load_data
from ttlora.finetune.folder import require_same_rows
from ttlora.finetune.methods import find_method
from ttlora.finetune.prepared import with_tokens


def carry_out(search: Search, address: str | None, retry_failed: bool) -> None:
    """Do the trials of a search that are not done.

    Args:
        search: The search.
        address: A Ray cluster; None: a Ray of this machine's own.
        retry_failed: Do failed trials again.

    Raises:
        UserError: Data or model are not there, or the search was begun with other rows, or the cluster cannot be
            reached.
    """
    plan = search.plan
    if retry_failed:
        for trial in search.trials:
            trial.failure.unlink(missing_ok=True)
    source = _source(search)
    if source is None:
        return
    recipe = plan.recipe({})
    method = find_method(recipe.method)
    data = with_tokens(load_data(recipe), recipe, method)
    if not search.folder.has_begun:
        # an earlier attempt that ended before its first trial binds nobody
        search.folder.rows.unlink(missing_ok=True)
    require_same_rows(search.folder.rows, data)
    known, total = (source.waiting, len(source.waiting)) if isinstance(source, Listed) else (search.trials, plan.trials)
    done = [trial for trial in known if trial.state == "done"]
    left = [(recipe.model, recipe.task, recipe.method)] * (total - len(done))
    with connected(address, search.folder):
        share = Share.asked(plan.cpus_per_trial, plan.gpus_per_trial)
        with Display(search.folder, done, left, share.at_a_time) as display:
            do_runs(
                search.folder,
                source,
                tune.with_parameters(EpochByEpoch, data=data, threads=share.threads),
                plan.trials,
                share,
                display,
                epochs=recipe.epochs,
                # a trial of a ladder is to tell what its size can do
                scheduler="none" if plan.target_score is not None else plan.scheduler,
                ahead=isinstance(source, Listed),
            )
    search.folder.drop_checkpoints(search.trials)


def _source(search: Search) -> Source | None:
    """Where the trials come from; None: there is nothing left to be done.

    Trials that are done are among them: schedulers and Optuna learn from what is remembered of them.
    """
    plan = search.plan
    is_open = any(trial.state in OPEN for trial in search.trials)
    if plan.target_score is not None:
        ladder = Ladder(search.space.ladder(plan.trials), search.trial, plan.target_score)
        return ladder if is_open or search.best() is None else None
    listed = search.listed()
    if plan.sampler == "optuna":
        return Proposed(search.space, listed, search.trial, plan.seed) if is_open or len(listed) < plan.trials else None
    return Listed(listed) if any(trial.state in OPEN for trial in listed) else None
