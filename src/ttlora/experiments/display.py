"""What a person sees of a comparison, on stderr: a line for each run, and in a terminal what is at work right now."""

import time
from collections.abc import Sequence
from pathlib import Path

from rich.text import Text

from ttlora.experiments.estimate import Estimate, estimate, format_duration
from ttlora.experiments.folder import ComparisonFolder, read_record
from ttlora.experiments.processes import Running
from ttlora.experiments.runs import PlannedRun
from ttlora.experiments.terminal import Terminal

TAIL_BYTES = 4096


class Display(Terminal):
    """Tells how a comparison goes.

    Args:
        folder: The comparison's folder.
        done: Finished runs, with the seconds that each took.
        left: Runs that are to be done.
        parallel: How many are done at a time.
    """

    def __init__(
        self,
        folder: ComparisonFolder,
        done: Sequence[tuple[PlannedRun, float]],
        left: Sequence[PlannedRun],
        parallel: int,
    ) -> None:
        super().__init__()
        self.folder, self.parallel = folder, parallel
        self.done, self.left = list(done), list(left)
        self.failed, self.total = 0, len(done) + len(left)

    def began(self, run: PlannedRun) -> None:
        """Print what has begun, where there is no terminal that shows it."""
        if not self.is_terminal:
            self.say(f"begun: {run.title}")

    def ended(self, run: PlannedRun, seconds: float) -> None:
        """Print how a run ended."""
        self.left.remove(run)
        if self.folder.state(run) == "done":
            record = read_record(run)
            self.done.append((run, max(seconds, record.train_seconds)))
            outcome = f"{record.primary_metric} {record.metrics[record.primary_metric]:.4f}"
        else:
            self.failed += 1
            outcome = f"failed: {self.folder.error(run)}"
        number = f"{len(self.done) + self.failed}/{self.total}"
        rest = f", {self._rest(())}" if self.left else ""
        self.say(f"{number} {run.title}: {outcome} ({format_duration(seconds)}{rest})")

    def at_work(self, running: Sequence[Running]) -> None:
        """Show what is at work, with the last line that each has printed."""
        if not self.is_terminal:
            return
        lines = [f"{len(self.done)} of {self.total} runs done, {self.failed} failed; {self._rest(running)}"]
        for one in running:
            seconds = format_duration(time.monotonic() - one.began)
            lines.append(f"  {one.run.title}  {seconds}  {_last_line(self.folder.log(one.run))}")
        self.show(Text("\n".join(lines), no_wrap=True, overflow="ellipsis"))

    def _rest(self, running: Sequence[Running]) -> Estimate:
        rest = estimate(self.done, self.left, self.parallel)
        begun = sum(time.monotonic() - one.began for one in running) / self.parallel
        return Estimate(max(0.0, rest.seconds - begun), rest.known, rest.unknown)


def _last_line(log: Path) -> str:
    """The last whole line of a log; nothing where there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - TAIL_BYTES))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
