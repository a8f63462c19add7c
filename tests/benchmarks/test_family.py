"""The table and the figure of the family."""

import json

import family
import pytest

LORA = next(method for method in family.METHODS if method.name == "LoRA")
SMALL, MIDDLE, LARGE = LORA.settings


def record(setting, task, score, rate=1e-3, seed=0, loss=1.0, parameters=9_216):
    fields = {"setting": setting, "data": task, "learning_rate": rate, "seed": seed}
    return {**fields, "score": score, "validation_loss": loss, "parameters": parameters}


def records_of_all():
    """Of each method at each size, the first of its rates the best."""
    for method in family.METHODS:
        for setting in method.settings:
            for number, rate in enumerate(method.rates):
                for task in family.TASKS:
                    yield record(setting, task, 0.8, rate, loss=0.5 + number)


def test_the_rate_is_that_of_the_lowest_losses():
    records = [
        record(MIDDLE, "sst2", 0.8, rate=1e-3, loss=0.4),
        record(MIDDLE, "stsb", 0.8, rate=1e-3, loss=0.9),
        record(MIDDLE, "sst2", 0.8, rate=2e-3, loss=0.5),
        record(MIDDLE, "stsb", 0.8, rate=2e-3, loss=0.7),
        # STS-B was not run, and other seeds and sizes say nothing
        record(MIDDLE, "sst2", 0.9, rate=5e-3, loss=0.0),
        record(MIDDLE, "sst2", 0.9, rate=1e-3, seed=1, loss=-9.0),
        record(SMALL, "sst2", 0.9, rate=1e-3, loss=0.0),
    ]
    assert family.best_rate(MIDDLE, records) == 2e-3
    assert family.best_rate(SMALL, records) is None


def test_a_point_is_the_mean_of_seeds_that_all_tasks_have():
    records = [
        *(record(SMALL, "sst2", score, seed=seed, parameters=4_608) for seed, score in ((1, 0.8), (0, 0.6))),
        record(SMALL, "stsb", 0.7, parameters=4_608),
        # STS-B was not run
        record(LARGE, "sst2", 0.9, parameters=18_432),
    ]
    [small] = family.points_of(records)
    assert (small.method, small.parameters, small.rate) == (LORA, 4_608, 1e-3)
    assert small.scores == {"stsb": [0.7], "sst2": [0.6, 0.8]}
    assert small.means == pytest.approx([0.65])


def test_the_table_and_the_figure(capsys):
    best = [record(MIDDLE, task, 0.9, seed=1) for task in family.TASKS]
    points = family.points_of([*records_of_all(), *best])
    family.print_table(points)
    head, _, first, *others = capsys.readouterr().out.splitlines()
    assert head.count("|") == first.count("|")
    assert first.startswith("| LoRA |")
    assert "**85.0**" in first
    assert len(others) == 3 * len(family.METHODS) - 1
    [axes] = family.draw(points).axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [method.name for method in family.METHODS]


def test_every_run_is_made_once(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in records_of_all()))
    told, rest = [*family.runs_that_tell_rates()], [*family.the_rest(path)]
    assert len({*told, *rest}) == len(told) + len(rest)
    assert len(rest) == len(family.METHODS) * 3 * 2 * 2
    assert {rate for _, setting, rate, _ in rest if setting in LORA.settings} == {1e-3}
