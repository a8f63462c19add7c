"""What a run prints on stderr: in a terminal a bar with loss and speed, and one line for each epoch."""

import time
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback


class ProgressReport(TrainerCallback):
    """Reports a run to the person who waits for it.

    Args:
        metric: Name of the metric that an epoch's line shows.
        quiet: Report nothing.
    """

    def __init__(self, metric: str, quiet: bool = False) -> None:
        self.metric = metric
        self.console = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("step {task.completed}/{task.total}{task.fields[now]}"),
            TimeRemainingColumn(compact=True),
            console=self.console,
            transient=True,
            disable=quiet or not self.console.is_terminal,
        )
        self.task = TaskID(0)
        self.started = time.perf_counter()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def say(self, line: str) -> None:
        """Print a line."""
        self.console.print(line, markup=False)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Show the bar."""
        self.task = self.bar.add_task("", total=state.max_steps, completed=state.global_step, now="")
        self.bar.start()

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the epoch's clock."""
        self.started = time.perf_counter()
        self.bar.update(self.task, description=_epoch(state, state.global_step + 1))

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Move the bar."""
        self.bar.update(self.task, completed=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        """Show loss and speed."""
        if "loss" in logs:
            steps = (state.global_step - 1) % _steps_per_epoch(state) + 1
            speed = steps / (time.perf_counter() - self.started)
            self.bar.update(self.task, now=f"  loss {logs['loss']:.4f}  {speed:.1f} steps/s")

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **_: Any) -> None:
        """Print the epoch's line."""
        seconds = time.perf_counter() - self.started
        self.say(
            f"{_epoch(state, state.global_step)}  training loss {_epoch_loss(state):.4f}  "
            f"validation loss {metrics['eval_loss']:.4f}  {self.metric} {metrics[f'eval_{self.metric}']:.4f}  "
            f"{seconds:.1f} s"
        )

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Take the bar away."""
        self.bar.stop()


def _steps_per_epoch(state: Any) -> int:
    return int(state.max_steps // state.num_train_epochs)


def _epoch(state: Any, step: int) -> str:
    epochs = int(state.num_train_epochs)
    return f"epoch {-(-step // _steps_per_epoch(state)):>{len(str(epochs))}}/{epochs}"


def _epoch_loss(state: Any) -> float:
    """The mean training loss of the epoch that has just ended."""
    total, last = 0.0, state.global_step - _steps_per_epoch(state)
    for entry in state.log_history:
        if "loss" in entry and entry["step"] > last:
            total += entry["loss"] * (entry["step"] - last)
            last = entry["step"]
    return total / _steps_per_epoch(state)
