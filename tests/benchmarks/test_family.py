"""The table and the figure of the family."""

import json

import family
import pytest

LORA = next(method for method in family.METHODS if method.name == "LoRA")
SMALL, MIDDLE, LARGE = LORA.settings


def record(setting, task, score, rate=1e-3, seed=0, loss=1.0, parameters=9_216):
    fields = {"setting": setting, "data": task, "learning_rate": rate, "seed": seed}
    return {**fields, "score": score, "validation_loss": loss, "parameters": parameters}


def records_of_every_middle(rate_of_lora=1e-3):
    for method in family.METHODS:
        for rate in method.rates:
            for task in family.TASKS:
                best = rate == (rate_of_lora if method == LORA else method.rates[0])
                yield record(method.settings[1], task, 0.8, rate, loss=0.5 if best else 0.9)


def test_the_rate_is_that_of_the_lower_loss_at_the_middle_size():
    records = [
        *records_of_every_middle(rate_of_lora=2e-3),
        # other sizes and seeds say nothing
        record(SMALL, "sst2", 0.9, rate=1e-3, loss=0.0),
        record(MIDDLE, "sst2", 0.9, rate=1e-3, seed=1, loss=-9.0),
    ]
    assert family.best_rate(LORA, records) == 2e-3


def test_a_point_is_the_mean_of_seeds_that_all_tasks_have():
    records = [
        *records_of_every_middle(),
        *(record(SMALL, "sst2", score, seed=seed, parameters=4_608) for seed, score in ((1, 0.8), (0, 0.6))),
        record(SMALL, "stsb", 0.7, parameters=4_608),
        # STS-B was not run
        record(LARGE, "sst2", 0.9, parameters=18_432),
    ]
    small, middle = (point for point in family.points_of(records) if point.method == LORA)
    assert (small.parameters, small.rate) == (4_608, 1e-3)
    assert small.scores == {"stsb": [0.7], "sst2": [0.6, 0.8]}
    assert small.means == pytest.approx([0.65])
    assert middle.means == pytest.approx([0.8])


def test_the_table_and_the_figure(capsys):
    points = family.points_of([*records_of_every_middle(), record(SMALL, "sst2", 0.9), record(SMALL, "stsb", 0.9)])
    family.print_table(points)
    head, _, first, *others = capsys.readouterr().out.splitlines()
    assert head.count("|") == first.count("|")
    # the best first, and of LoRA two sizes
    assert first.startswith("| LoRA |")
    assert "**90.0**" in first
    assert len(others) == len(family.METHODS)
    [axes] = family.draw(points).axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [method.name for method in family.METHODS]


def test_every_run_is_made_once(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in records_of_every_middle()))
    jobs = [*family.the_rest(path)]
    assert len(jobs) == len(set(jobs)) == len(family.METHODS) * 3 * 3 * 2
    assert {rate for _, setting, rate, _ in jobs if setting in LORA.settings} == {1e-3}
