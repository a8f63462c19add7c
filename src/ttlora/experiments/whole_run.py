"""A run of a comparison as Ray Tune sees it: one step, in a process of its own."""

from typing import Any

from ray import tune


def make_whole_run(logs: str, threads: int) -> type[tune.Trainable]:
    """The class whose objects carry out one run after the other.

    Ray hands a class that is made in a function over by value. So its process does not import ttlora before `setup` has
    begun, and can let the process from which runs are forked import at the same time.

    Args:
        logs: Folder of the logs.
        threads: CPU threads to compute with.
    """

    class WholeRun(tune.Trainable):
        def setup(self, config: dict[Any, Any]) -> None:
            import sys
            from multiprocessing import forkserver

            if sys.platform == "linux":
                forkserver.set_forkserver_preload(["ttlora.experiments.own_process"])
                forkserver.ensure_running()
            self.run_of_step = config

        def reset_config(self, new_config: Any) -> bool:
            self.run_of_step = new_config
            return True

        def step(self) -> dict[str, Any]:
            from ttlora.experiments.own_process import carry_out_and_report

            return carry_out_and_report(self.run_of_step, logs, threads)

        def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
            # a run goes on from its folder
            return {}

        def load_checkpoint(self, checkpoint: Any) -> None:
            pass

    return WholeRun
