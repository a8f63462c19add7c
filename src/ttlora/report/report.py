"""The whole report, from result records to a folder."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ttlora.report.answer import ModelAnswer, answer
from ttlora.report.comparison import ModelTable, compare
from ttlora.report.figures import FIGURE_NAMES, draw_figures
from ttlora.report.folder import ReportFolder
from ttlora.report.page import render_page
from ttlora.report.runs import Failure, find_runs
from ttlora.report.settings import without_repeats
from ttlora.report.tables import to_csv, to_markdown
from ttlora.whole_files import require_writable


@dataclass(frozen=True)
class Report:
    """What was written.

    Attributes:
        output: The folder.
        files: Its files.
        comparisons: One table for each base model.
        answers: What opens each of them.
        failures: Runs that failed.
        notes: What was left out, a line each: files that could not be read, and runs that were repeated.
    """

    output: Path
    files: tuple[Path, ...]
    comparisons: tuple[ModelTable, ...]
    answers: tuple[ModelAnswer, ...]
    failures: tuple[Failure, ...]
    notes: tuple[str, ...]


def write_report(results: Sequence[str | Path], output: str | Path) -> Report:
    """Write ``report.html``, ``tables.md``, ``tables.csv`` and ``figures/`` from result records alone.

    Args:
        results: Result records, or folders that are searched for them.
        output: A folder that is not there yet, is empty, or holds an earlier report and nothing else, which is then
            replaced as a whole.

    Raises:
        UserError: There is no record that can be read, or the output folder holds something else.
    """
    folder = ReportFolder(require_writable(output).absolute(), FIGURE_NAMES)
    folder.require_replaceable()
    found = find_runs(results)
    runs, repeated = without_repeats(found.runs)
    comparisons = compare(runs)
    answers = [answer(comparison) for comparison in comparisons]
    prefixes = [""] if len(comparisons) == 1 else _prefixes(comparisons)
    pictures = [draw_figures(one, prefix) for one, prefix in zip(comparisons, prefixes, strict=True)]
    notes = (*found.damaged, *repeated)
    sentences = [(one.good, one.small, one.fast) for one in answers]
    files = folder.write(
        render_page(comparisons, answers, pictures, found.failures, notes),
        to_markdown(comparisons, sentences, found.failures),
        to_csv(comparisons),
        [picture for drawn in pictures for picture in drawn],
    )
    return Report(folder.path, files, tuple(comparisons), tuple(answers), found.failures, notes)


def _prefixes(comparisons: Sequence[ModelTable]) -> list[str]:
    """Each model's name as the beginning of file names; no two are alike."""
    prefixes: list[str] = []
    for comparison in comparisons:
        name = re.sub(r"[^A-Za-z0-9.]+", "-", comparison.name).strip("-.")[:60] or "model"
        prefixes.append(f"{name}-" if f"{name}-" not in prefixes else f"{name}-{len(prefixes) + 1}-")
    return prefixes
