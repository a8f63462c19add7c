"""`ttlora compare`: methods over models, tasks and seeds, from one YAML file to result records and their report."""

from __future__ import annotations

import json as json_format
import os
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from ttlora.cli.console import StdoutConsole
from ttlora.errors import UserError
from ttlora.whole_files import require_writable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ttlora.experiments.counts import Count
    from ttlora.experiments.folder import RunsFolder
    from ttlora.experiments.runs import ComparedRun


def compare(
    *,
    config: str,
    output: str | None = None,
    parallel: int = 1,
    address: str | None = None,
    dry_run: bool = False,
    retry_failed: bool = False,
    json: bool = False,
) -> int:
    """Run methods on models, tasks and seeds as a YAML file says, and report on them.

    OUTPUT gets runs/, with a folder for each run as ttlora train makes it, and report/. The same command goes on where
    a comparison was stopped: finished runs are kept, unfinished ones go on after their last epoch.

    Args:
        config: YAML file with models, tasks, methods, seeds and keys of ttlora train; or a recipe that comes with
            ttlora: deberta-glue, roberta-glue, llama2-superglue, llama3-superglue, metamathqa.
        output: Folder of the comparison (default: named as the YAML file, in the current folder).
        parallel: Runs at a time, with CPU threads and GPUs divided among them; more than one needs ttlora[search].
        address: A Ray cluster to run on, as HOST:6379, or auto for the one that this machine is part of (default: this
            machine); needs ttlora[search].
        dry_run: Show the runs and what each method trains, and do nothing; no weights are read.
        retry_failed: Do failed runs again.
        json: Print one JSON object.

    Returns:
        The exit status.
    """
    if parallel < 1:
        raise UserError(f"`parallel` is {parallel}, and has to be at least 1")
    from ttlora.experiments.comparison import Comparison, find_config
    from ttlora.experiments.folder import RunsFolder
    from ttlora.experiments.runs import plan_runs
    from ttlora.finetune.columns import told_columns

    path = find_config(config)
    if path != Path(os.path.expanduser(config)):
        _say(f"{config}: the recipe that comes with ttlora, {path}")
    comparison = Comparison.read(path)
    folder = RunsFolder(require_writable(path.stem if output is None else output).absolute(), "comparison")
    folder.require_usable()
    runs = plan_runs(comparison, folder.runs)
    for line in dict.fromkeys(told_columns(run.recipe) for run in runs if run.columns_by_name):
        _say(line)
    if dry_run:
        _show_plan(folder, runs, parallel, json)
        return 0
    from ttlora.experiments.compare import require_ray

    require_ray(parallel, address)
    try:
        _carry_out(path, folder, runs, comparison.threads, parallel, address, retry_failed)
        return _tell_outcome(folder, runs, json)
    except KeyboardInterrupt:
        _say("ttlora: stopped; the same command goes on where it was")
        return 130


def _carry_out(
    path: Path,
    folder: RunsFolder,
    runs: Sequence[ComparedRun],
    threads: int | None,
    parallel: int,
    address: str | None,
    retry_failed: bool,
) -> None:
    from ttlora.experiments.compare import compare_runs
    from ttlora.experiments.display import Display
    from ttlora.experiments.run import OPEN
    from ttlora.experiments.runs import require_inputs
    from ttlora.finetune.machine import require_one_process

    require_one_process()
    states = (*OPEN, "failed") if retry_failed else OPEN
    require_inputs(path, [run for run in runs if run.state in states])
    new, gone = folder.changes(runs)
    with folder.claim():
        folder.write_plan({"runs": [{"run": run.name, **run.as_dict()} for run in runs]})
        # another comparison may have ended since
        left = [run for run in runs if run.state in states]
        if new:
            _say(f"the configuration has changed: {_counted(new)} new, the first is {new[0].title}")
        if gone:
            _say(
                f"no longer in the configuration: {_counted(gone)} in {folder.runs}, which stay there, but not in the "
                f"report: {', '.join(gone)}"
            )
        _say(_progress(runs, left, parallel))
        done = [run for run in runs if run.record is not None]
        with Display(folder, done, [run.likeness for run in left], parallel) as display:
            compare_runs(folder, left, parallel, threads, address, display)


def _tell_outcome(folder: RunsFolder, runs: Sequence[ComparedRun], json: bool) -> int:
    errors = [error for run in runs if (error := run.error) is not None]
    report = None
    if len(errors) < len(runs):
        from ttlora.cli.report import print_report
        from ttlora.report.report import write_report

        # what an earlier configuration left is no part of it
        report = write_report([run.folder.path for run in runs], folder.report)
        for note in report.notes:
            _say(f"left out of the report: {note}")
        if not json:
            print_report(report)
    if json:
        content = {
            "output": str(folder.path),
            "report": report and str(folder.report),
            "runs": [_as_json(run) for run in runs],
        }
        print(json_format.dumps(content, indent=2))
    _say(f"{len(runs) - len(errors)} of {_counted(runs)} done: {folder.path}")
    if errors:
        _say(f"{len(errors)} failed, the first with: {errors[0]} (--retry-failed does them again)")
    return 1 if errors else 0


def _show_plan(folder: RunsFolder, runs: Sequence[ComparedRun], parallel: int, json: bool) -> None:
    from ttlora.experiments.counts import count_all
    from ttlora.experiments.estimate import durations, estimate
    from ttlora.experiments.run import OPEN

    counts = count_all(runs)
    left = [run for run in runs if run.state in OPEN]
    if json:
        rest = estimate(durations(runs), [run.likeness for run in left], parallel)
        content = {
            "output": str(folder.path),
            "runs": [_as_json(run) for run in runs],
            "seconds_left": rest.seconds if rest.known else None,
            "runs_of_unknown_duration": rest.unknown,
            "parameters": [asdict(count) for count in counts],
        }
        print(json_format.dumps(content, indent=2))
        return
    console = StdoutConsole()
    for line in _plan_lines(runs):
        console.print(line, markup=False)
    console.print(_progress(runs, left, parallel), markup=False)
    for model in dict.fromkeys(count.model for count in counts):
        _print_counts(console, [count for count in counts if count.model == model])


def _print_counts(console: StdoutConsole, counts: Sequence[Count]) -> None:
    """A table of a model's parameter counts, with the paper's beside them where it has any."""
    model, full, lora = counts[0].model, counts[0].full, counts[0].lora
    table = Table(title=f"{model}: {full:,} parameters; LoRA r=8 trains {lora:,}", title_justify="left", box=None)
    table.add_column("method", overflow="fold")
    for name in ("adapter", "head", "model / adapter", "LoRA r=8 / adapter"):
        table.add_column(name, justify="right")
    in_paper = any(count.printed for count in counts)
    if in_paper:
        table.add_column("printed")
    notes = []
    for count in counts:
        method = count.method if count.r is None or " r=" in count.method else f"{count.method} r={count.r}"
        cells = [method, f"{count.adapter:,}", f"{count.head:,}", _ratio(full, count), _ratio(lora, count)]
        if count.printed:
            printed = count.printed.text
            if count.as_printed == count.printed.ours:
                notes.append(f"{count.method}: {count.printed.why}")
                printed += f" [{len(notes)}]"
            cells.append(printed)
        table.add_row(*map(Text, cells))
    console.print()
    console.print(table)
    console.print(Text(f"head: that of {counts[0].task}, the first task", style="dim"))
    if in_paper:
        console.print(Text("printed: as the paper prints it (arXiv 2408.01008, Tables I and II)", style="dim"))
    for number, note in enumerate(notes, start=1):
        console.print(Text(f"[{number}] {note}", style="dim"))


def _ratio(whole: int, count: Count) -> str:
    if not count.adapter:
        return ""
    ratio = whole / count.adapter
    return f"{ratio:,.{0 if ratio >= 10 else 1}f}"


def _plan_lines(runs: Sequence[ComparedRun]) -> list[str]:
    """The tasks, and what is planned for each method on each model."""
    groups: dict[str, list[ComparedRun]] = {}
    for run in runs:
        groups.setdefault(f"{run.model} {run.method}", []).append(run)
    lines = ["tasks: " + ", ".join(dict.fromkeys(run.task for run in runs))]
    for name, group in groups.items():
        seeds = list(dict.fromkeys(str(run.recipe.seed) for run in group))
        lines.append(f"{name}: {_states(group)} (seed{'s' if len(seeds) > 1 else ''} {', '.join(seeds)})")
    return lines


def _progress(runs: Sequence[ComparedRun], left: Sequence[ComparedRun], parallel: int) -> str:
    """How many runs there are, how far they are, and how long what is left will take."""
    from ttlora.experiments.estimate import durations, estimate

    rest = f"; {estimate(durations(runs), [run.likeness for run in left], parallel)}" if left else ""
    return f"{_counted(runs)}: {_states(runs)}{rest}"


def _states(runs: Sequence[ComparedRun]) -> str:
    states = Counter(run.state for run in runs)
    return ", ".join(f"{count} {state}" for state, count in states.items())


def _as_json(run: ComparedRun) -> dict[str, Any]:
    recipe = run.recipe
    return {
        "run": run.name,
        "label": run.method,
        **{key: getattr(recipe, key) for key in ("method", "model", "task", "seed")},
        "state": run.state,
        "error": run.error,
    }


def _counted(runs: Sequence[object]) -> str:
    return "1 run" if len(runs) == 1 else f"{len(runs):,} runs"


def _say(line: str) -> None:
    print(line, file=sys.stderr)
