"""What a run prints on stderr: a bar with loss and speed in a terminal, or else a line now and then."""

import time
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback

# where there is no bar, a line tells of a training that has said nothing for so long
SILENCE = 60.0


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
        self.said = time.perf_counter()
        # when this training began or went on, after which step, and how many tokens it had seen then
        self.begun, self.begun_at, self.tokens_before = 0.0, 0, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def say(self, line: str) -> None:
        """Print a line."""
        self.console.print(line, markup=False)
        self.said = time.perf_counter()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Show the bar."""
        self.measured_at = self.begun_at = state.global_step
        self.begun, self.tokens_before = time.perf_counter(), state.num_input_tokens_seen
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
        """Show loss and speed; where there is no bar, as a line now and then."""
        if "loss" not in logs:
            return
        now = time.perf_counter()
        steps, seconds = state.global_step - self.begun_at, now - self.begun
        tokens = state.num_input_tokens_seen - self.tokens_before
        told = f"loss {logs['loss']:.4f}  {tokens / seconds:,.0f} tokens/s"
        self.bar.update(self.task, now=f"  {told}")
        if not self.console.is_terminal and now - self.said >= SILENCE:
            left = (state.max_steps - state.global_step) * seconds / steps
            self.say(f"step {state.global_step}/{state.max_steps}  {told}  about {format_duration(left)} left")

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


def format_duration(seconds: float) -> str:
    """A duration as people say it, without more digits than an estimate has."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours / 24:.0f} days"
