"""The trials of a search, run by Ray Tune on one machine or on a cluster."""

import logging
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import ray
from ray import tune
from ray.tune import schedulers
from ray.tune.search import Searcher

from ttlora.errors import UserError, one_line
from ttlora.experiments.search.config import SearchPlan
from ttlora.experiments.search.folder import SearchFolder, Trial
from ttlora.experiments.search.trial import EPOCH, FAILED, LOSS, SCORE, EpochByEpoch, as_config
from ttlora.finetune.data import TaskData

# how Ray is told what to leave alone: the user's own values go before the first two
OPEN_TO_USERS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # a trial has the priority that ttlora train has: by default it would wait for everything else on the machine
    "RAY_worker_niceness": "0",
}
SET = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
}
REDUCTION = 3
GPUS = 0.25
CONNECT_SECONDS = 10
OBJECT_STORE_BYTES = 200 * 2**20


class Source(Protocol):
    """Where trials come from."""

    def next(self) -> Trial | None:
        """The next trial; None: there is none any more."""

    def ended(self, trial: Trial) -> None:
        """A trial has ended: its folder says how."""


class Watcher(Protocol):
    """Who is told how the trials go."""

    def epoch(self, trial: Trial, epoch: int, loss: float, score: float) -> None:
        """An epoch of a trial has ended."""

    def ended(self, trial: Trial) -> None:
        """A trial has ended: its folder says how."""

    def at_work(self, running: Sequence[Trial]) -> None:
        """Called again and again with what runs."""


@dataclass(frozen=True)
class Share:
    """What of a machine a trial gets.

    Attributes:
        cpus: CPU cores.
        gpus: GPUs; part of one is possible.
    """

    cpus: int
    gpus: float

    @classmethod
    def of(cls, plan: SearchPlan) -> "Share":
        """What a plan says; a quarter of a GPU where it says nothing of them and there are any.

        Raises:
            UserError: There is not so much.
        """
        has = ray.cluster_resources()  # type: ignore[no-untyped-call]
        gpus = plan.gpus_per_trial
        share = cls(plan.cpus_per_trial, GPUS if gpus is None and has.get("GPU") else gpus or 0.0)
        for name, wanted, there in (("cpus", share.cpus, has.get("CPU", 0)), ("gpus", share.gpus, has.get("GPU", 0))):
            if wanted > there:
                raise UserError(f"{name}_per_trial is {wanted:g}, and there are {there:g}: ask for as many at most")
        return share


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """A Ray of this machine's own, or a cluster that runs already.

    Raises:
        UserError: The cluster cannot be reached.
    """
    _require_listening(address)
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    os.environ.update({**OPEN_TO_USERS, **os.environ, **SET})
    local: dict[str, Any] = {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    try:
        ray.init(
            address=address or "local",
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=False,
            **({} if address else local),
        )
    except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
        where = f"the Ray cluster at {address}" if address else "Ray"
        raise UserError(f"{where} cannot be reached: {one_line(error)}") from None
    try:
        yield
    finally:
        ray.shutdown()


def _require_listening(address: str | None) -> None:
    """Ask whether anybody is there, since Ray would wait for minutes.

    Raises:
        UserError: Nobody is.
    """
    host, colon, port = (address or "").rpartition(":")
    if not colon or "/" in host:
        return
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, ValueError, OverflowError) as error:
        raise UserError(f"the Ray cluster at {address} cannot be reached: {one_line(error)}") from None


def run_trials(
    folder: SearchFolder,
    source: Source,
    data: TaskData,
    most: int,
    epochs: int,
    scheduler: Literal["hyperband", "asha", "none"],
    share: Share,
    watcher: Watcher,
    ahead: bool,
) -> None:
    """Run trials until the source has no more.

    Args:
        folder: The search's folder.
        source: Gives the trials.
        data: The task's rows, as token ids too.
        most: Most trials.
        epochs: Most epochs of a trial.
        scheduler: Decides after each epoch which trials go on.
        share: What each trial gets of the machine.
        watcher: Is told how it goes.
        ahead: Whether all trials are known before any is done, so that HyperBand can fill its brackets with them.
    """
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(most if ahead else 1)
    searcher = _Suggestions(source)
    trainable = tune.with_parameters(EpochByEpoch, data=data, threads=share.cpus)
    tuner = tune.Tuner(
        tune.with_resources(trainable, {"cpu": share.cpus, "gpu": share.gpus}),
        tune_config=tune.TuneConfig(
            metric=LOSS,
            mode="min",
            search_alg=searcher,
            scheduler=_scheduler(scheduler, epochs),
            num_samples=most,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="trials",
            storage_path=str(folder.ray),
            callbacks=[_Callbacks(searcher, watcher)],
            # a process that dies is given a second chance; what it has finished stands in its folder
            failure_config=tune.FailureConfig(max_failures=1),
            verbose=0,
        ),
    )
    tuner.fit()


def _scheduler(name: str, epochs: int) -> Any:
    # without a metric of their own: Tune gives them that of the search
    if name == "none" or epochs == 1:
        return schedulers.FIFOScheduler()  # type: ignore[no-untyped-call]
    if name == "asha":
        return schedulers.ASHAScheduler(time_attr=EPOCH, max_t=epochs, grace_period=1, reduction_factor=REDUCTION)
    return schedulers.HyperBandScheduler(time_attr=EPOCH, max_t=epochs, reduction_factor=REDUCTION)


class _Unsaved:
    """What Ray Tune would save with a search, and need not: a search goes on from its own folder."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Suggestions(_Unsaved, Searcher):
    """Hands the trials of a source to Ray Tune."""

    def __init__(self, source: Source) -> None:
        super().__init__(metric=LOSS, mode="min")
        self.source = source
        self.given: dict[str, Trial] = {}

    def suggest(self, trial_id: str) -> Any:
        trial = self.source.next()
        if trial is None:
            return Searcher.FINISHED
        self.given[trial_id] = trial
        return as_config(trial)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        trial = self.given[trial_id]
        if error:
            trial.fail("the trial's process died twice; memory may have run out: run fewer trials at a time")
        elif result is not None and result[FAILED]:
            trial.fail(result[FAILED])
        trial.stop()
        self.source.ended(trial)

    def save(self, checkpoint_path: str) -> None:
        """Save nothing."""

    def restore(self, checkpoint_path: str) -> None:
        """There is nothing to restore."""


class _Callbacks(_Unsaved, tune.Callback):
    """Writes down how trials end, and tells the watcher."""

    def __init__(self, searcher: _Suggestions, watcher: Watcher) -> None:
        self.given, self.watcher = searcher.given, watcher

    def on_step_end(self, iteration: int, trials: Sequence[Any], **info: Any) -> None:
        self.watcher.at_work([self.given[trial.trial_id] for trial in trials if trial.status == "RUNNING"])

    def on_trial_result(
        self, iteration: int, trials: Sequence[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if not result[FAILED]:
            self.watcher.epoch(self.given[trial.trial_id], result[EPOCH], result[LOSS], result[SCORE])

    def on_trial_complete(self, iteration: int, trials: Sequence[Any], trial: Any, **info: Any) -> None:
        self.watcher.ended(self.given[trial.trial_id])

    def on_trial_error(self, iteration: int, trials: Sequence[Any], trial: Any, **info: Any) -> None:
        self.watcher.ended(self.given[trial.trial_id])
