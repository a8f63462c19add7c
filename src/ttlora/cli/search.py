"""`ttlora search`: shapes, ranks, scales and learning rates with Ray Tune, as one YAML file says."""

from __future__ import annotations

import json as json_format
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttlora.errors import UserError
from ttlora.whole_files import require_writable

if TYPE_CHECKING:
    from ttlora.experiments.search.config import SearchPlan
    from ttlora.experiments.search.search import Search
    from ttlora.experiments.search.space import Space


def search(
    *,
    config: str,
    output: str | None = None,
    trials: int | None = None,
    max_adapter_size: str | None = None,
    target_score: float | None = None,
    address: str | None = None,
    retry_failed: bool = False,
    dry_run: bool = False,
    json: bool = False,
) -> int:
    """Search for tensor shapes, TT-ranks, scales and learning rates with Ray Tune, as a YAML file says.

    OUTPUT gets runs/, with a folder for each trial as ttlora train makes it, best.yaml for ttlora train --config, and
    report/. The same command goes on where a search was stopped: what was trained is not trained again.

    Args:
        config: YAML file with model, task, space and keys of ttlora train.
        output: Folder of the search (default: named as the YAML file, in the current folder).
        trials: Most trials, in the place of the file's.
        max_adapter_size: Try no adapter that is larger in 16 bit, such as 40KB.
        target_score: Find the smallest adapter with this score, from 0 to 1, trying small ones first.
        address: A Ray cluster, as HOST:6379, or auto for the one that this machine is part of (default: one of its
            own).
        retry_failed: Do failed trials again.
        dry_run: Show the space and the first trials, and do nothing; no weights are read.
        json: Print one JSON object.

    Returns:
        The exit status.
    """
    path = Path(os.path.expanduser(config))
    if not os.path.lexists(path):
        raise UserError(f"`config` {config} is not there: name a YAML file with model, task and space")
    from ttlora.experiments.folder import RunsFolder
    from ttlora.experiments.search.config import SearchPlan
    from ttlora.experiments.search.space import Space

    plan = SearchPlan.read(path).override(trials, max_adapter_size, target_score)
    folder = RunsFolder(require_writable(path.stem if output is None else output).absolute(), "search")
    folder.require_usable()
    space = Space.of(plan)
    if dry_run:
        _show_space(plan, space, json)
        return 0
    from ttlora.experiments.compare import require_ray
    from ttlora.experiments.search.carry_out import carry_out
    from ttlora.experiments.search.search import Search
    from ttlora.finetune.machine import require_one_process

    require_one_process()
    require_ray(1, address)
    with folder.claim():
        search = Search(plan, space, folder)
        done = sum(trial.record is not None for trial in search.trials)
        _say(f"a search of {plan.trials:,} trials at most, {done:,} done: {folder.path}")
        for note in space.notes:
            _say(note)
        try:
            carry_out(search, address, retry_failed)
        except KeyboardInterrupt:
            _tell_outcome(search, json)
            _say("ttlora: stopped; the same command goes on where it was")
            return 130
        return _tell_outcome(search, json)


def _tell_outcome(search: Search, json: bool) -> int:
    from ttlora.cli.search_report import print_search_report, search_report_as_json
    from ttlora.report.search.report import write_search_report

    folder, plan = search.folder, search.plan
    errors = [trial.error for trial in search.trials if trial.error is not None]
    ended = [trial for trial in search.trials if trial.record is not None]
    best = search.best()
    report = None
    if ended:
        about = [f"{plan.sampler} sampler, {plan.scheduler} scheduler, seed {plan.seed}"]
        report = write_search_report([folder.runs], folder.report, plan.target_score, about)
    if best is not None:
        folder.write_best(best.recipe)
    if json:
        content = {
            "output": str(folder.path),
            "best": best and {"trial": best.name, "recipe": str(folder.best)},
            "report": report and search_report_as_json(report),
            "trials": [
                {
                    "trial": trial.name,
                    "state": trial.state,
                    "settings": trial.settings,
                    "adapter_parameters": trial.parameters,
                    "error": trial.error,
                }
                for trial in search.trials
            ],
        }
        print(json_format.dumps(content, indent=2))
    elif report is not None:
        print_search_report(report)
    if best is not None:
        _say(f"best: trial {best.name}: ttlora train --config {folder.best} --output FOLDER")
    elif plan.target_score is not None and ended:
        _say(f"no trial reaches a score of {plan.target_score:g}: allow more --trials, or larger adapters")
    _say(f"{len(ended)} of {len(search.trials)} trials have a result: {folder.path}")
    if errors:
        _say(f"{len(errors)} failed, the first with: {errors[0]} (--retry-failed does them again)")
    return 1 if errors else 0


def _show_space(plan: SearchPlan, space: Space, json: bool) -> None:
    overview = space.overview(plan)
    if json:
        content: dict[str, Any] = {
            "candidates": overview.candidates,
            "smallest_adapter_parameters": overview.smallest,
            "largest_adapter_parameters": overview.largest,
            "notes": list(overview.notes),
            "first": [
                {"settings": candidate.settings, "adapter_parameters": candidate.parameters}
                for candidate in overview.first
            ],
        }
        print(json_format.dumps(content, indent=2))
        return
    from rich.table import Table
    from rich.text import Text

    from ttlora.cli.console import StdoutConsole
    from ttlora.values import short

    console = StdoutConsole()
    count = "candidates without end" if overview.candidates is None else f"{overview.candidates:,} candidates"
    console.print(
        f"{count}, adapters of {overview.smallest:,} to {overview.largest:,} parameters; {plan.trials} trials"
    )
    for note in overview.notes:
        console.print(note, markup=False)
    if not overview.first:
        console.print("Optuna proposes trials from what the earlier ones come to: none is known before", markup=False)
        return
    table = Table(box=None, title="the first trials", title_justify="left")
    for name in overview.first[0].settings:
        table.add_column(name)
    table.add_column("parameters", justify="right")
    for candidate in overview.first:
        cells = [Text(short(value)) for value in candidate.settings.values()]
        table.add_row(*cells, Text(f"{candidate.parameters:,}"))
    console.print(table)


def _say(line: str) -> None:
    print(line, file=sys.stderr)
