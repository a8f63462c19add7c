"""The recipes that are shipped: each can be planned, and every shape fits."""

import pytest

from ttlora.experiments.comparison import Comparison, shipped_recipes
from ttlora.experiments.counts import count_all
from ttlora.experiments.printed import PRINTED, PUBLISHED, agrees
from ttlora.experiments.runs import plan_runs

# the comparisons of the paper
RUNS = {
    "deberta-glue": 8 * 11 * 3,
    "roberta-glue": 8 * 5 * 3,
    "llama2-superglue": 4 * 7 * 3,
    "llama3-superglue": 4 * 2 * 3,
}


def test_these_are_shipped():
    assert shipped_recipes().keys() == {*RUNS, "metamathqa"}


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


def test_pefts_own_comparison_has_its_protocol_and_its_counts(tmp_path):
    runs = plan_runs(Comparison.read(shipped_recipes()["metamathqa"]), tmp_path)
    for run in runs:
        recipe = run.recipe
        assert (recipe.max_train_examples, recipe.batch_size, recipe.epochs) == (5_000 * 4, 4, 1)
        assert (recipe.scheduler, recipe.warmup, recipe.max_length, recipe.max_new_tokens) == ("cosine", 0.1, 768, 300)
    # PEFT draws WaveFT's places among all entries of every matrix, which takes ten seconds
    counted = count_all([run for run in runs if run.method != "waveft"])
    # those of PEFT's methods stand in its results
    assert {count.method: count.adapter for count in counted} == {
        "tt-lora r=3": 87_360,
        "tt-lora r=5": 232_960,
        "tt-lora r=8": 582_400,
        "lora": 9_175_040,
        "pvera": 121_856,
        "peanut": 229_376,
        "ia3": 630_784,
        "lily": 9_485_280,
    }
