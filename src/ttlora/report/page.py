"""The report as one page of HTML that needs no network: answer, tables, figures, and the recipe of every number."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ttlora.report.answer import Answer
from ttlora.report.comparison import OURS, Comparison
from ttlora.report.drawing import Picture
from ttlora.report.formats import counted, format_seconds, format_size
from ttlora.report.rows import Mean
from ttlora.report.runs import Failure, Run
from ttlora.report.tables import cost_table, explanations, factor_text, same_seeds

GENERATOR = "ttlora report"


@dataclass(frozen=True)
class Recipe:
    """A recipe with its versions, and the seeds that ran it."""

    seeds: tuple[int, ...]
    task: str
    yaml: str
    versions: str


def render_page(
    comparisons: Sequence[Comparison],
    answers: Sequence[Answer],
    pictures: Sequence[Sequence[Picture]],
    failures: Sequence[Failure],
    notes: Sequence[str],
) -> str:
    """The whole page; names from records are text in it, whatever they hold.

    Args:
        comparisons: One for each base model.
        answers: What opens each of them.
        pictures: The figures of each.
        failures: Runs that failed.
        notes: What was left out, a line each.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    parts = [
        {
            "comparison": comparison,
            "answer": answer,
            "pictures": drawn,
            "costs": cost_table(comparison),
            "explanations": explanations(comparison),
            "seeds": same_seeds(comparison),
            "average_note": f"of {counted(len(comparison.averaged), 'task')}"
            if comparison.averaged
            else "no common task",
        }
        for comparison, answer, drawn in zip(comparisons, answers, pictures, strict=True)
    ]
    return environment.get_template("page.html.jinja").render(
        title=_title(comparisons),
        subtitle=_subtitle(comparisons, failures),
        generator=GENERATOR,
        parts=parts,
        failures=failures,
        notes=notes,
        ours=OURS,
        **_helpers(),
    )


def _helpers() -> Mapping[str, Any]:
    return {
        "counted": counted,
        "drawn": lambda picture: Markup(picture.svg),
        "factor": factor_text,
        "recipes": _recipes,
        "seconds": format_seconds,
        "size": format_size,
        "spread": _spread,
        "unbroken": _unbroken,
        "value": lambda value, scale: f"{scale * value:,.2f}",
    }


def _title(comparisons: Sequence[Comparison]) -> str:
    methods = len({row.label for comparison in comparisons for row in comparison.rows})
    models = comparisons[0].name if len(comparisons) == 1 else counted(len(comparisons), "model")
    return f"{counted(methods, 'method')} on {models}"


def _subtitle(comparisons: Sequence[Comparison], failures: Sequence[Failure]) -> str:
    runs = [run for comparison in comparisons for row in comparison.rows for run in row.runs]
    tasks = list(dict.fromkeys(column.name for comparison in comparisons for column in comparison.columns))
    seeds = len({run.record.seed for run in runs})
    failed = f"; {counted(len(failures), 'run')} failed" if failures else ""
    counts = f"{counted(len(runs), 'run')}, {counted(seeds, 'seed')}, {counted(len(tasks), 'task')}"
    return f"{counts}: {', '.join(tasks)}{failed}"


def _unbroken(text: str) -> str:
    """Text whose numbers stay on one line with their units and spreads."""
    return re.sub(r"(?<=[\d±]) (?=±|\d|(s|%|B|[KMG]iB|points)\b)|(?<=\d) (?=%)", "\N{NO-BREAK SPACE}", text)


def _spread(mean: Mean, scale: int, same: int | None) -> str:
    """Standard deviation, and the number of seeds where it is not the same everywhere."""
    parts = [] if mean.spread is None else [f"± {scale * mean.spread:.2f}"]
    if same is None:
        parts.append(f"n = {mean.count}")
    return ", ".join(parts)


def _recipes(runs: Sequence[Run]) -> list[Recipe]:
    """The recipes of some runs; those that differ in seed and output alone are told once."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        rest = {key: value for key, value in run.record.recipe.items() if key not in ("seed", "output")}
        groups.setdefault(json.dumps([run.record.task, rest, run.record.versions]), []).append(run)
    return [
        Recipe(
            tuple(run.record.seed for run in group),
            group[0].record.task,
            _as_yaml(group[0].record.recipe),
            _as_yaml(group[0].record.versions),
        )
        for group in groups.values()
    ]


def _as_yaml(content: Any) -> str:
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
