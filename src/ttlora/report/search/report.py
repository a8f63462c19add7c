"""The report of a search, from the records of its trials to a folder."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ttlora.report.folder import ReportFolder
from ttlora.report.search.answer import SearchAnswer, answer
from ttlora.report.search.figures import FIGURE_NAMES, draw_figures
from ttlora.report.search.importance import Importances, importances
from ttlora.report.search.page import render_page
from ttlora.report.search.pareto import front
from ttlora.report.search.tables import to_csv, to_markdown
from ttlora.report.search.trials import SearchResult, TrialResult, read_search
from ttlora.whole_files import require_writable


@dataclass(frozen=True)
class SearchReport:
    """What was written, and what it says.

    Attributes:
        output: The folder.
        files: Its files.
        search: The trials, by rising validation loss; failed ones; and what was left out.
        front: The trials on the Pareto front of score against parameters, by rising size.
        answer: The best trials, the smallest that are good enough, and the same in words.
        importances: What each setting accounts for.
    """

    output: Path
    files: tuple[Path, ...]
    search: SearchResult
    front: tuple[TrialResult, ...]
    answer: SearchAnswer
    importances: Importances


def write_search_report(
    results: Sequence[str | Path], output: str | Path, target: float | None = None, about: Sequence[str] = ()
) -> SearchReport:
    """Write ``report.html``, ``tables.md``, ``tables.csv`` and ``figures/`` from the records of the trials alone.

    Args:
        results: Folders that are searched for result records, or records; on one model and one task.
        output: A folder that is not there yet, is empty, or holds an earlier report of a search and nothing else, which
            is then replaced as a whole.
        target: The score that the smallest adapter is to reach, from 0 to 1; None: none was named.
        about: What else is known of the search, such as its scheduler: a line each, for the head of the page.

    Raises:
        UserError: There is no record that can be read, the records are of several models or tasks, or the output folder
            holds something else.
    """
    folder = ReportFolder(require_writable(output).absolute(), FIGURE_NAMES)
    folder.require_replaceable()
    search = read_search(results)
    best = front(search.trials)
    summary, weights = answer(search, target), importances(search)
    pictures = draw_figures(search, best, summary, weights)
    files = folder.write(
        render_page(search, best, summary, weights, pictures, about),
        to_markdown(search, best, summary, weights),
        to_csv(search, best),
        pictures,
    )
    return SearchReport(folder.path, files, search, best, summary, weights)
