"""The report as one page of HTML that needs no network: answer, tables, figures, and the recipe of every number."""

from collections.abc import Sequence

from ttlora.report.answer import ModelAnswer
from ttlora.report.comparison import OURS, ModelTable
from ttlora.report.drawing import Picture
from ttlora.report.formats import counted
from ttlora.report.rows import Mean
from ttlora.report.runs import Failure
from ttlora.report.tables import cost_table, explanations, factor_text, same_seeds
from ttlora.report.template import render_template


def render_page(
    comparisons: Sequence[ModelTable],
    answers: Sequence[ModelAnswer],
    pictures: Sequence[Sequence[Picture]],
    failures: Sequence[Failure],
    notes: Sequence[str],
) -> str:
    """The whole page.

    Args:
        comparisons: One for each base model.
        answers: What opens each of them.
        pictures: The figures of each.
        failures: Runs that failed.
        notes: What was left out, a line each.
    """
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
    return render_template(
        "page.html.jinja",
        title=_title(comparisons),
        subtitle=_subtitle(comparisons, failures),
        parts=parts,
        noun="run",
        failures=failures,
        notes=notes,
        ours=OURS,
        factor=factor_text,
        spread=_spread,
        value=lambda value, scale: f"{scale * value:,.2f}",
    )


def _title(comparisons: Sequence[ModelTable]) -> str:
    methods = len({row.label for comparison in comparisons for row in comparison.rows})
    models = comparisons[0].name if len(comparisons) == 1 else counted(len(comparisons), "model")
    return f"{counted(methods, 'method')} on {models}"


def _subtitle(comparisons: Sequence[ModelTable], failures: Sequence[Failure]) -> str:
    runs = [run for comparison in comparisons for row in comparison.rows for run in row.runs]
    tasks = list(dict.fromkeys(column.name for comparison in comparisons for column in comparison.columns))
    seeds = len({run.record.seed for run in runs})
    failed = f"; {counted(len(failures), 'run')} failed" if failures else ""
    counts = f"{counted(len(runs), 'run')}, {counted(seeds, 'seed')}, {counted(len(tasks), 'task')}"
    return f"{counts}: {', '.join(tasks)}{failed}"


def _spread(mean: Mean, scale: int, same: int | None) -> str:
    """Standard deviation, and the number of seeds where it is not the same everywhere."""
    parts = [] if mean.spread is None else [f"± {scale * mean.spread:.2f}"]
    if same is None:
        parts.append(f"n = {mean.count}")
    return ", ".join(parts)
