"""Many runs, carried out by Ray Tune on one machine or on a cluster."""

import logging
import os
import shutil
import signal
import socket
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import ray
from ray import tune
from ray.tune import schedulers
from ray.tune.search import Searcher

from ttlora.errors import UserError, one_line
from ttlora.experiments.display import Display
from ttlora.experiments.folder import RunsFolder
from ttlora.experiments.run import EPOCH, FAILED, LOSS, SCORE, Run

# how Ray is told what to leave alone: the user's own values go before the first two
OPEN_TO_USERS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # a run has the priority that ttlora train has: by default it would wait for everything else on the machine
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
    """Where runs come from."""

    def next(self) -> Run | None:
        """The next run; None: there are no more."""

    def ended(self, run: Run) -> None:
        """A run has ended: its folder says how."""


class Listed:
    """Runs in the order of a list.

    Args:
        runs: The list.
    """

    def __init__(self, runs: Iterable[Run]) -> None:
        self.waiting = list(runs)

    def next(self) -> Run | None:
        """The next of the list."""
        return self.waiting.pop(0) if self.waiting else None

    def ended(self, run: Run) -> None:
        """A list learns nothing from runs."""


@dataclass(frozen=True)
class Share:
    """The part of the machines that a run gets.

    Attributes:
        cpus: CPU cores; below 1 a part of one.
        gpus: GPUs; a part of one is possible.
        threads: CPU threads to compute with.
    """

    cpus: float
    gpus: float
    threads: int

    @property
    def at_a_time(self) -> int:
        """How many such shares the machines have room for."""
        return max(1, int(ray.cluster_resources().get("CPU", 1) / self.cpus))  # type: ignore[no-untyped-call]

    @classmethod
    def asked(cls, cpus: int, gpus: float | None) -> "Share":
        """What a search asks for; a quarter of a GPU where it asks for none and there are any.

        Raises:
            UserError: There is not so much.
        """
        has = ray.cluster_resources()  # type: ignore[no-untyped-call]
        share = cls(cpus, GPUS if gpus is None and has.get("GPU") else gpus or 0.0, cpus)
        for name, wanted, there in (("cpus", share.cpus, has.get("CPU", 0)), ("gpus", share.gpus, has.get("GPU", 0))):
            if wanted > there:
                raise UserError(f"{name}_per_trial is {wanted:g}, and there are {there:g}: ask for as many at most")
        return share

    @classmethod
    def divided(cls, parallel: int, threads: int | None) -> "Share":
        """What each of several runs gets that share all there is.

        Args:
            parallel: How many run at a time.
            threads: CPU threads of all of them together; None: as many as there are cores.
        """
        has = ray.cluster_resources()  # type: ignore[no-untyped-call]
        cores = has.get("CPU", 1)
        # a run is on one machine
        largest = max(node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"])  # type: ignore[no-untyped-call]
        each = max(1, int(min((threads or cores) // parallel, largest)))
        cpus = min(each, cores / parallel)
        return cls(int(cpus) if cpus >= 1 else cpus, min(1.0, has.get("GPU", 0) / parallel), each)


@contextmanager
def connected(address: str | None, folder: RunsFolder) -> Iterator[None]:
    """A Ray of this machine's own, or a cluster that runs already.

    Args:
        address: The cluster; None: this machine.
        folder: The folder of all runs, in which nothing of Ray's own is left.

    Raises:
        UserError: The cluster cannot be reached.
    """
    _require_listening(address)
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    os.environ.update({**OPEN_TO_USERS, **os.environ, **SET})
    # Ray would take the place of whoever listens to it
    on_sigterm = signal.getsignal(signal.SIGTERM)
    local: dict[str, Any] = {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    try:
        ray.init(
            address=address or "local",
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=False,
            **({} if address else local),
        )
    except (OSError, ValueError, RuntimeError) as error:
        where = f"the Ray cluster at {address}" if address else "Ray"
        raise UserError(f"{where} cannot be reached: {one_line(error)}") from None
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)
    try:
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(folder.ray, ignore_errors=True)


def _require_listening(address: str | None) -> None:
    """Check that the cluster listens, since Ray would wait for minutes.

    Raises:
        UserError: It does not.
    """
    host, colon, port = (address or "").rpartition(":")
    if not colon or "/" in host:
        return
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, ValueError, OverflowError) as error:
        raise UserError(f"the Ray cluster at {address} cannot be reached: {one_line(error)}") from None


def do_runs(
    folder: RunsFolder,
    source: Source,
    trainable: Any,
    most: int,
    share: Share,
    display: Display,
    parallel: int | None = None,
    epochs: int = 1,
    scheduler: Literal["hyperband", "asha", "none"] = "none",
    ahead: bool = True,
) -> None:
    """Do runs until the source has no more; one that fails leaves its error in its folder, and the others go on.

    Args:
        folder: The folder of all runs.
        source: Gives the runs.
        trainable: A class of Ray Tune that carries runs out, each given by `Run.as_config`.
        most: Most runs.
        share: What each run gets of the machines.
        display: Is told how it goes.
        parallel: How many at a time at most; None: as many as there is room for.
        epochs: Most epochs of a run, each of which is a step.
        scheduler: Decides after each epoch which runs go on.
        ahead: Whether all runs are known before any is done, so that HyperBand can fill its brackets with them.
    """
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(most if ahead else 1)
    searcher = _Suggestions(source)
    tuner = tune.Tuner(
        tune.with_resources(trainable, {"cpu": share.cpus, "gpu": share.gpus}),
        tune_config=tune.TuneConfig(
            metric=LOSS,
            mode="min",
            search_alg=searcher,
            scheduler=_scheduler(scheduler, epochs),
            num_samples=most,
            max_concurrent_trials=parallel,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="runs",
            storage_path=str(folder.ray),
            callbacks=[_Callbacks(searcher, display)],
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
    """What Ray Tune would save, and need not: runs go on from their own folders."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Suggestions(_Unsaved, Searcher):
    """Hands the runs of a source to Ray Tune."""

    def __init__(self, source: Source) -> None:
        super().__init__(metric=LOSS, mode="min")
        self.source = source
        self.given: dict[str, Run] = {}

    def suggest(self, trial_id: str) -> Any:
        run = self.source.next()
        if run is None:
            return Searcher.FINISHED
        self.given[trial_id] = run
        return run.as_config()

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        run = self.given[trial_id]
        if error:
            run.fail("the run's process died twice; memory may have run out: do fewer runs at a time")
        elif result is not None and result[FAILED]:
            run.fail(result[FAILED])
        run.stop()
        self.source.ended(run)

    def save(self, checkpoint_path: str) -> None:
        """Save nothing."""

    def restore(self, checkpoint_path: str) -> None:
        """There is nothing to restore."""


class _Callbacks(_Unsaved, tune.Callback):
    """Tells the display how the runs go."""

    def __init__(self, searcher: _Suggestions, display: Display) -> None:
        self.given, self.display = searcher.given, display

    def on_step_end(self, iteration: int, trials: Sequence[Any], **info: Any) -> None:
        self.display.at_work([self.given[trial.trial_id] for trial in trials if trial.status == "RUNNING"])

    def on_trial_start(self, iteration: int, trials: Sequence[Any], trial: Any, **info: Any) -> None:
        self.display.began(self.given[trial.trial_id])

    def on_trial_result(
        self, iteration: int, trials: Sequence[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if not result[FAILED]:
            self.display.epoch(self.given[trial.trial_id], result[EPOCH], result[LOSS], result[SCORE])

    def on_trial_complete(self, iteration: int, trials: Sequence[Any], trial: Any, **info: Any) -> None:
        self.display.ended(self.given[trial.trial_id])

    def on_trial_error(self, iteration: int, trials: Sequence[Any], trial: Any, **info: Any) -> None:
        self.display.ended(self.given[trial.trial_id])
