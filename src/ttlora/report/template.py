"""What all pages share: rendering of templates, and of recipes in them."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ttlora.errors import printable
from ttlora.report.formats import counted, format_seconds, format_size
from ttlora.report.runs import Run
from ttlora.strict_yaml import dump

GENERATOR = "ttlora report"


@dataclass(frozen=True)
class PrintedRecipe:
    """A recipe with its versions, and the seeds that ran it."""

    seeds: tuple[int, ...]
    task: str
    yaml: str
    versions: str


def render_template(name: str, **content: Any) -> str:
    """A page of HTML; names from records are text in it, whatever they hold.

    Args:
        name: The template's file, under this folder.
        **content: What it tells.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.globals.update(
        counted=counted,
        drawn=lambda picture: Markup(picture.svg),
        generator=GENERATOR,
        printable=printable,
        recipes=_recipes,
        seconds=format_seconds,
        size=format_size,
        unbroken=_unbroken,
    )
    return environment.get_template(name).render(**content)


def _recipes(runs: Sequence[Run]) -> list[PrintedRecipe]:
    """The recipes of runs; recipes that differ in seed and output alone are printed once."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        rest = {key: value for key, value in run.record.recipe.items() if key not in ("seed", "output")}
        groups.setdefault(json.dumps([run.record.task, rest, run.record.versions]), []).append(run)
    return [
        PrintedRecipe(
            tuple(run.record.seed for run in group),
            group[0].record.task,
            dump(group[0].record.recipe),
            dump(group[0].record.versions),
        )
        for group in groups.values()
    ]


def _unbroken(text: str) -> str:
    """Text whose numbers stay on one line with their units and spreads."""
    return re.sub(r"(?<=[\d±]) (?=±|\d|(s|%|B|[KMG]iB|points|h|min)\b)|(?<=\d) (?=%)", "\N{NO-BREAK SPACE}", text)
