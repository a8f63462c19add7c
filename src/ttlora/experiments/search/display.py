"""What a person sees of a search, on stderr: a line for each trial, and in a terminal what is at work right now."""

import time
from collections.abc import Sequence

from rich.console import Group
from rich.table import Table
from rich.text import Text

from ttlora.experiments.estimate import format_duration
from ttlora.experiments.search.folder import State, Trial
from ttlora.experiments.terminal import Terminal
from ttlora.values import short

WORDS = {"done": "done", "stopped": "stopped early", "failed": "failed"}


class Display(Terminal):
    """Tells how a search goes.

    Args:
        total: How many trials there are to be at most.
        finished: Epochs that trials of a search that goes on have behind them, by the trials' names.
    """

    def __init__(self, total: int, finished: dict[str, int]) -> None:
        super().__init__()
        self.total, self.finished = total, finished
        self.progress: dict[str, str] = {}
        self.ended_states: list[State] = []
        self.best: tuple[float, str] | None = None
        self.began_at = time.monotonic()
        self.worked = self.epochs = 0

    def epoch(self, trial: Trial, epoch: int, loss: float, score: float) -> None:
        """An epoch of a trial has ended, or was remembered."""
        if epoch > self.finished.get(trial.name, 0):
            self.worked += 1
        self.epochs = trial.recipe.epochs
        self.progress[trial.name] = f"epoch {epoch}/{self.epochs}  loss {loss:.4f}  score {score:.4f}"

    def ended(self, trial: Trial) -> None:
        """Print how a trial ended."""
        self.ended_states.append(trial.state)
        record, outcome = trial.record, _outcome(trial)
        if record is not None and (self.best is None or record.validation_loss < self.best[0]):
            self.best = record.validation_loss, f"trial {trial.name}, {outcome}"
        number = f"{len(self.ended_states)}/{self.total}"
        self.say(f"{number} trial {trial.name} {_settings(trial)}: {outcome}")

    def at_work(self, running: Sequence[Trial]) -> None:
        """Show the table, in a terminal."""
        if not self.is_terminal:
            return
        lines = [Text(self._summary())]
        if self.best is not None:
            lines.append(Text(f"best so far: {self.best[1]}"))
        table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
        for trial in running:
            table.add_row(Text(f"  {trial.name}"), Text(self.progress.get(trial.name, "")), Text(_settings(trial)))
        self.show(Group(*lines, table))

    def _summary(self) -> str:
        states = self.ended_states
        counts = [f"{states.count(state)} {word}" for state, word in WORDS.items() if state in states]
        rest = self._rest()
        return (
            f"{len(states)} of {self.total} trials ended"
            + (f" ({', '.join(counts)})" if counts else "")
            + (f"; at most {format_duration(rest)} left" if rest is not None else "")
        )

    def _rest(self) -> float | None:
        """Seconds until all trials have all their epochs, which schedulers make fewer; None: it cannot be told yet."""
        if not self.worked:
            return None
        epochs = self.epochs * (self.total - len(self.ended_states))
        return (time.monotonic() - self.began_at) / self.worked * epochs


def _outcome(trial: Trial) -> str:
    record = trial.record
    if record is None:
        return f"failed: {trial.error}"
    score = f"{record.primary_metric} {record.metrics[record.primary_metric]:.4f}, loss {record.validation_loss:.4f}"
    early = f", stopped after epoch {record.epochs}" if trial.state == "stopped" else ""
    return f"{score}, {trial.parameters:,} parameters{early}"


def _settings(trial: Trial) -> str:
    return " ".join(f"{key}={short(value)}" for key, value in trial.settings.items())
