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
        # set before the training begins
        self.steps_per_epoch = 1
        self.measured_at = 0

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
        self.measured_at = state.global_step
        self.task = self.bar.add_task("", total=state.max_steps, completed=state.global_step, now="")
        self.bar.start()

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the epoch's clock."""
        self.started = time.perf_counter()
        self.bar.update(self.task, description=self._epoch(state, state.global_step + 1))

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Move the bar."""
        self.bar.update(self.task, completed=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        """Show loss and speed."""
        if "loss" in logs:
            steps = (state.global_step - 1) % self.steps_per_epoch + 1
            speed = steps / (time.perf_counter() - self.started)
            self.bar.update(self.task, now=f"  loss {logs['loss']:.4f}  {speed:.1f} steps/s")

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **_: Any) -> None:
        """Print what was measured, with the mean training loss since the last time."""
        seconds = time.perf_counter() - self.started
        step, width = state.global_step, len(str(state.max_steps))
        whole = not step % self.steps_per_epoch and step - self.measured_at == self.steps_per_epoch
        place = self._epoch(state, step) if whole else f"step {step:>{width}}/{state.max_steps}"
        self.say(
            f"{place}  training loss {_mean_loss(state, self.measured_at):.4f}  "
            f"validation loss {metrics['eval_loss']:.4f}  {self.metric} {metrics[f'eval_{self.metric}']:.4f}  "
            f"{seconds:.1f} s"
        )
        self.measured_at = step

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Take the bar away."""
        self.bar.stop()

    def _epoch(self, state: Any, step: int) -> str:
        epochs = int(state.num_train_epochs)
        return f"epoch {-(-step // self.steps_per_epoch):>{len(str(epochs))}}/{epochs}"


def _mean_loss(state: Any, since: int) -> float:
    """The mean training loss of the steps since one that was measured, as far as they are logged."""
    total, last = 0.0, since
    for entry in state.log_history:
        if "loss" in entry and entry["step"] > last:
            total += entry["loss"] * (entry["step"] - last)
            last = entry["step"]
    return total / max(last - since, 1)
