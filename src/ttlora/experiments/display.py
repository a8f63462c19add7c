"""What many runs print on stderr: a line for each run that ends, and in a terminal what is at work right now."""

import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ttlora.experiments.estimate import Estimate, durations, estimate
from ttlora.experiments.folder import RunsFolder
from ttlora.experiments.run import Likeness, Run
from ttlora.finetune.progress import format_duration
from ttlora.record import Record

TAIL_BYTES = 4096


class Display:
    """Tells how many runs go.

    Args:
        folder: Their folder.
        done: Runs that were done before. Nothing is printed when they are handed out once more, so that schedulers and
            Optuna learn of them.
        left: Runs that are to be done.
        parallel: How many are done at a time.
    """

    def __init__(self, folder: RunsFolder, done: Sequence[Run], left: Sequence[Likeness], parallel: int) -> None:
        self.folder, self.parallel = folder, parallel
        self.done, self.left = durations(done), list(left)
        self.done_before = {run.name for run in done}
        self.failed, self.total = 0, len(done) + len(left)
        self.began_at: dict[str, float] = {}
        self.progress: dict[str, str] = {}
        self.best: tuple[float, str] | None = None
        for run in done:
            self._compare_with_best(run)
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._live = Live(console=self._console, auto_refresh=False, transient=True)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def say(self, line: str) -> None:
        """Print a line."""
        self._console.print(line, markup=False)

    def began(self, run: Run) -> None:
        """Start a run's clock; print what has begun where there is no terminal that shows it."""
        if run.name not in self.began_at and run.name not in self.done_before:
            self.began_at[run.name] = time.monotonic()
            if not self._console.is_terminal:
                self.say(f"begun: {run.title}")

    def epoch(self, run: Run, epoch: int, loss: float, score: float) -> None:
        """An epoch of a run has ended, or was remembered."""
        self.progress[run.name] = f"epoch {epoch}/{run.recipe.epochs}  loss {loss:.4f}  score {score:.4f}"

    def ended(self, run: Run) -> None:
        """Print how a run ended."""
        if run.name in self.done_before:
            return
        seconds = time.monotonic() - self.began_at.get(run.name, time.monotonic())
        if self.left:
            self.left.remove(run.likeness if run.likeness in self.left else self.left[0])
        if (record := run.record) is not None:
            self.done.append((run.likeness, max(seconds, record.train_seconds)))
            outcome = _score(record)
            if record.stopped_early:
                outcome += f", stopped after epoch {record.epochs}"
            self._compare_with_best(run)
        else:
            self.failed += 1
            outcome = f"failed: {run.error}"
        number = f"{len(self.done) + self.failed}/{self.total}"
        rest = f", {self._rest(())}" if self.left else ""
        self.say(f"{number} {run.title}: {outcome} ({format_duration(seconds)}{rest})")

    def at_work(self, running: Sequence[Run]) -> None:
        """Show what is at work, with its last epoch or the last line that it has printed."""
        if not self._console.is_terminal:
            return
        now = time.monotonic()
        lines = [Text(f"{len(self.done)} of {self.total} runs done, {self.failed} failed; {self._rest(running)}")]
        if self.folder.kind == "search" and self.best is not None:
            lines.append(Text(f"best so far: {self.best[1]}", no_wrap=True, overflow="ellipsis"))
        table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
        for _ in range(3):
            table.add_column(no_wrap=True, overflow="ellipsis")
        for run in running:
            progress = self.progress.get(run.name) or _last_line(self.folder.log(run.name))
            duration = format_duration(now - self.began_at.get(run.name, now))
            table.add_row(Text(f"  {duration}"), Text(progress), Text(run.title))
        self._live.update(Group(*lines, table), refresh=True)

    def _compare_with_best(self, run: Run) -> None:
        record = run.record
        if record is not None and (self.best is None or record.validation_loss < self.best[0]):
            self.best = record.validation_loss, f"loss {record.validation_loss:.4f}, {_score(record)}, {run.title}"

    def _rest(self, running: Sequence[Run]) -> Estimate:
        rest = estimate(self.done, self.left, self.parallel)
        now = time.monotonic()
        begun = sum(now - self.began_at.get(run.name, now) for run in running) / self.parallel
        return Estimate(max(0.0, rest.seconds - begun), rest.known, rest.unknown)


def _score(record: Record) -> str:
    return f"{record.primary_metric} {record.metrics[record.primary_metric]:.4f}"


def _last_line(log: Path) -> str:
    """The last whole line of a log; nothing where there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - TAIL_BYTES))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
