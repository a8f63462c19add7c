"""What `ttlora search` prints of its report: the answer, the Pareto front, and the importance of each setting."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from ttlora.cli.console import StdoutConsole
from ttlora.cli.report import parts

if TYPE_CHECKING:
    from ttlora.report.search.report import SearchReport
    from ttlora.report.search.trials import TrialResult


def print_search_report(written: SearchReport) -> None:
    """Print the answer and the tables of a search's report, and where it is."""
    from ttlora.report.formats import counted
    from ttlora.report.search.tables import best_table, front_table, importance_table

    console = StdoutConsole()
    search, answer, importances = written.search, written.answer, written.importances
    for sentence in (answer.good, answer.small, answer.effort):
        console.print(Text(sentence))
    tables = [("Best settings", best_table(search)), ("Pareto front", front_table(search, written.front))]
    if importances.settings:
        tables.append(("Importance", importance_table(search, importances)))
    console.print()
    for title, table in tables:
        console.print(Text(title, style="bold"))
        for part in parts(table, console.width):
            console.print(part)
            console.print()
    console.print(Text(importances.explanation, style="dim"))
    console.print()
    if search.failures:
        console.print(Text(f"{counted(len(search.failures), 'trial')} failed:", style="bold"))
        for failure in search.failures:
            console.print(Text(f"  {Path(failure.folder).name}: {failure.error}"))
        console.print()
    console.print(Text(str(written.output / "report.html")))


def search_report_as_json(written: SearchReport) -> dict[str, Any]:
    """A search's report as plain values, for one JSON object."""
    from dataclasses import asdict

    search, answer, importances = written.search, written.answer, written.importances
    reaching = None if answer.reaching is None else _trial_as_json(written, answer.reaching)
    return {
        "output": str(written.output),
        "files": [str(path) for path in written.files],
        "model": search.trials[0].record.model,
        "task": search.trials[0].record.task,
        "metric": search.column.metric,
        "answer": {"good": answer.good, "small": answer.small, "effort": answer.effort},
        "best": _trial_as_json(written, answer.best),
        "highest_score": _trial_as_json(written, answer.highest),
        "smallest_within_a_point": _trial_as_json(written, answer.smallest),
        "target_score": answer.target,
        "smallest_reaching_target": reaching,
        "pareto_front": [_trial_as_json(written, trial) for trial in written.front],
        "importances": {one.setting: one.share for one in importances.settings},
        "importances_r2": importances.fit,
        "trials": [_trial_as_json(written, trial) for trial in search.trials],
        "failures": [asdict(failure) for failure in search.failures],
        "left_out": list(search.notes),
    }


def _trial_as_json(written: SearchReport, trial: TrialResult) -> dict[str, Any]:
    return {
        "trial": trial.name,
        "settings": {name: trial.settings.get(name) for name in written.search.shown},
        "adapter_parameters": trial.parameters,
        "adapter_bytes_16bit": trial.storage,
        "score": trial.score,
        "validation_loss": trial.loss,
        "epochs": trial.record.epochs,
        "stopped_early": trial.record.stopped_early,
        "seed": trial.record.seed,
        "record": str(trial.run.path),
    }
