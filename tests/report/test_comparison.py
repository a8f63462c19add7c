from statistics import stdev

import pytest

from tests.report.records import write_run
from ttlora.report.comparison import compare
from ttlora.report.runs import find_runs


@pytest.fixture
def comparison(tmp_path):
    """Two seeds of TT-LoRA and LoRA on SST-2 and RTE, and one of BitFit on SST-2."""
    scores = {"tt-lora": (0.80, 0.84, 0.60, 0.66), "lora": (0.81, 0.83, 0.70, 0.70)}
    for method, (a, b, c, d) in scores.items():
        for task, seed, score in (("sst2", 0, a), ("sst2", 1, b), ("rte", 0, c), ("rte", 1, d)):
            write_run(tmp_path, f"{method}-{task}-{seed}", score, method=method, task=f"glue/{task}", seed=seed)
    write_run(tmp_path, "bitfit", 0.9, method="bitfit")
    (only,) = compare(find_runs([tmp_path]).runs)
    return only


def row(comparison, label):
    return next(row for row in comparison.rows if row.label == label)


def test_rows_by_falling_size_and_ours_last(comparison):
    assert [row.label for row in comparison.rows] == ["BitFit", "LoRA", "TT-LoRA"]


def test_columns_in_the_papers_order_under_its_names(comparison):
    assert [column.name for column in comparison.columns] == ["SST-2", "RTE"]


def test_mean_and_spread_over_seeds(comparison):
    mean = row(comparison, "TT-LoRA").score(comparison.columns[1])
    assert mean.value == pytest.approx(0.63)
    assert mean.spread == pytest.approx(stdev([0.60, 0.66]))
    assert mean.count == 2
    assert mean.error == pytest.approx(stdev([0.60, 0.66]) / 2**0.5)


def test_the_average_is_over_tasks_that_all_have(comparison):
    assert [column.name for column in comparison.averaged] == ["SST-2"]
    assert comparison.not_averaged == ["RTE is not in the average: no run of BitFit"]
    assert comparison.average(row(comparison, "LoRA")).value == pytest.approx(0.82)


def test_the_averages_spread_is_that_of_the_seeds_averages(comparison):
    mean = row(comparison, "TT-LoRA").average(comparison.columns)
    assert mean.value == pytest.approx((0.82 + 0.63) / 2)
    assert mean.spread == pytest.approx(stdev([0.70, 0.75]))
    assert mean.count == 2
    assert row(comparison, "BitFit").average(comparison.columns) is None


def test_seeds_that_lack_a_task_leave_the_average_without_spread(tmp_path):
    write_run(tmp_path, "a", 0.8, seed=0)
    write_run(tmp_path, "b", 0.9, seed=1)
    write_run(tmp_path, "c", 0.5, seed=0, task="glue/rte")
    (comparison,) = compare(find_runs([tmp_path]).runs)
    mean = comparison.average(comparison.rows[0])
    assert (mean.value, mean.spread, mean.count) == (pytest.approx((0.85 + 0.5) / 2), None, 1)


def test_best_as_shown(comparison, tmp_path):
    sst2, rte = comparison.columns
    assert [comparison.is_best(row, sst2) for row in comparison.rows] == [True, False, False]
    assert [comparison.is_best(row, rte) for row in comparison.rows] == [False, True, False]
    write_run(tmp_path, "level", 0.900001, method="lora", adapter_parameters=1, r=9)
    (again,) = compare(find_runs([tmp_path]).runs)
    assert sum(again.is_best(row, again.columns[0]) for row in again.rows) == 2


def test_one_method_is_not_the_best(tmp_path):
    write_run(tmp_path, "only")
    (comparison,) = compare(find_runs([tmp_path]).runs)
    assert not comparison.is_best(comparison.rows[0], comparison.columns[0])


def test_the_least_perplexity_is_best_and_no_part_of_the_average(tmp_path):
    for method, value in (("lora", 9.5), ("tt-lora", 11.0)):
        write_run(
            tmp_path, method, value, method=method, task="file", validation="/x/wiki.txt", primary_metric="perplexity"
        )
    (comparison,) = compare(find_runs([tmp_path]).runs)
    (column,) = comparison.columns
    assert (column.name, column.scale) == ("wiki", 1)
    assert [comparison.is_best(row, column) for row in comparison.rows] == [True, False]
    assert comparison.average(comparison.rows[0]) is None
    assert comparison.not_averaged == ["wiki is not in the average: perplexity is no score"]


def test_two_metrics_of_a_task_are_two_columns(tmp_path):
    write_run(tmp_path, "a", task="superglue/cb", primary_metric="f1")
    write_run(tmp_path, "b", task="superglue/cb", method="lora")
    (comparison,) = compare(find_runs([tmp_path]).runs)
    assert [column.name for column in comparison.columns] == ["CB (accuracy)", "CB (f1)"]


def test_files_of_ones_own_are_columns_of_their_own(tmp_path):
    for name in ("mails", "reviews"):
        write_run(tmp_path, name, task="file", validation=f"/data/{name}/validation.jsonl")
    (comparison,) = compare(find_runs([tmp_path]).runs)
    assert [column.name for column in comparison.columns] == ["mails", "reviews"]


def test_models_are_apart(tmp_path):
    write_run(tmp_path, "a", model="org/b")
    write_run(tmp_path, "b", model="/models/a")
    assert [one.name for one in compare(find_runs([tmp_path]).runs)] == ["a", "org/b"]


def test_references(tmp_path):
    write_run(tmp_path, "lora", method="lora")
    write_run(tmp_path, "head", method="head")
    (comparison,) = compare(find_runs([tmp_path]).runs)
    assert [row.label for row in comparison.references] == ["LoRA"]
    for r in (1, 2, 3):
        write_run(tmp_path, f"tt{r}", 0.5 + r / 10, r=r, adapter_parameters=100 * r)
    (comparison,) = compare(find_runs([tmp_path]).runs)
    assert [row.label for row in comparison.references] == ["TT-LoRA r=3", "TT-LoRA r=2", "TT-LoRA r=1"]
    write_run(tmp_path, "tt4", 0.95, r=4, adapter_parameters=400)
    (comparison,) = compare(find_runs([tmp_path]).runs)
    assert [row.label for row in comparison.references] == ["TT-LoRA r=4"]
    assert [row.label for row in comparison.best_settings] == ["LoRA", "Head alone", "TT-LoRA r=4"]
