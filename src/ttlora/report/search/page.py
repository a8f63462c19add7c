"""The report of a search as one page of HTML that needs no network."""

from collections.abc import Sequence

from ttlora.report.drawing import Picture
from ttlora.report.formats import counted
from ttlora.report.search.answer import SearchAnswer
from ttlora.report.search.importance import Importances
from ttlora.report.search.tables import best_table, front_table, trial_table
from ttlora.report.search.trials import SearchResult, TrialResult
from ttlora.report.template import render_template


def render_page(
    search: SearchResult,
    front: Sequence[TrialResult],
    answer: SearchAnswer,
    importances: Importances,
    pictures: Sequence[Picture],
    about: Sequence[str],
) -> str:
    """The whole page.

    Args:
        search: The trials.
        front: Those on the Pareto front.
        answer: What opens the page.
        importances: What each setting accounts for.
        pictures: The figures.
        about: What else is known of the search, a line each.
    """
    return render_template(
        "search/page.html.jinja",
        title=f"Search for {search.method} on {search.column.name}",
        subtitle=_subtitle(search),
        about=about,
        search=search,
        answer=answer,
        best=best_table(search),
        front=front_table(search, front),
        trials=trial_table(search),
        numbers=_numbers(search, search.trials),
        front_numbers=_numbers(search, front),
        importances=importances,
        pictures={picture.name: picture for picture in pictures},
        noun="trial",
        failures=search.failures,
        notes=search.notes,
    )


def _subtitle(search: SearchResult) -> str:
    seeds = sorted({trial.record.seed for trial in search.trials})
    failed = f", {len(search.failures):,} failed" if search.failures else ""
    seed = f"seed {seeds[0]}" if len(seeds) == 1 else counted(len(seeds), "seed")
    return f"{search.model}; {counted(len(search.trials), 'trial')} with a result{failed}; {seed}"


def _numbers(search: SearchResult, trials: Sequence[TrialResult]) -> list[int]:
    """The numbers of trials in the list of all trials; the page names recipes by them."""
    return [1 + search.trials.index(trial) for trial in trials]
