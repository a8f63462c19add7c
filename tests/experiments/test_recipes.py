"""The recipes that are shipped: each can be planned, and every shape fits."""

import pytest

from ttlora.experiments.comparison import Comparison, shipped_recipes
from ttlora.experiments.counts import count_all
from ttlora.experiments.printed import PRINTED, PUBLISHED, agrees
from ttlora.experiments.runs import plan_runs

RUNS = {
    "deberta-glue": 8 * 11 * 3,
    "roberta-glue": 8 * 5 * 3,
    "llama2-superglue": 4 * 7 * 3,
    "llama3-superglue": 4 * 2 * 3,
}


def test_these_are_shipped():
    assert shipped_recipes().keys() == RUNS.keys()


@pytest.mark.parametrize("name", RUNS)
def test_every_shape_fits_and_every_difference_from_the_paper_is_explained(name, tmp_path):
    comparison = Comparison.read(shipped_recipes()[name])
    runs = plan_runs(comparison, tmp_path)
    assert len(runs) == RUNS[name]
    counts = count_all(runs)
    (model,) = {PUBLISHED[entry.name] for entry in comparison.models}
    rows = sum(len(rows) for (its_model, _), rows in PRINTED.items() if its_model == model)
    assert len(counts) == rows, "the recipe has a method for each row of the paper's table"
    for count in counts:
        assert count.printed is not None
        if agrees(count.as_printed, count.printed.text):
            assert count.printed.ours is None, count.method
        else:
            assert count.as_printed == count.printed.ours, count.method
            assert count.printed.why
