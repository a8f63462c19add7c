import csv
import io

import pytest

from tests.report.search.made_up import make_search, make_trial
from ttlora.report.search.answer import answer
from ttlora.report.search.importance import Importance, Importances
from ttlora.report.search.pareto import front
from ttlora.report.search.tables import best_table, front_table, to_csv, to_markdown, trial_table

NOTHING = Importances((), None, "Nothing is said.")


@pytest.fixture
def search():
    shared = {"learning_rate": 1e-3, "seed": 3, "planned": 4}
    return make_search(
        make_trial(900, 0.80, 0.4, "a", shape=[384, 384], r=1, alpha=2.0, **shared),
        make_trial(600, 0.82, 0.3, "b", shape=[16, 24, 24, 16], r=2, alpha=4.0, epochs=2, best_epoch=2, **shared),
        make_trial(950, 0.83, 0.5, "c", shape=[16, 24, 24, 16], r=4, alpha=4.0, **shared),
    )


def texts(table):
    return [[entry.text for entry in row] for row in table.rows]


def test_the_best_in_the_papers_layout(search):
    table = best_table(search)
    assert table.headings == (
        *("model", "task", "tensor shape", "TT-rank", "α", "learning rate", "parameters", "accuracy × 100"),
    )
    assert texts(table) == [["bert", "SST-2", "[16, 24, 24, 16]", "2", "4", "1e-3", "600", "82.00"]]


def test_the_front(search):
    table = front_table(search, front(search.trials))
    assert [row[:5] for row in texts(table)] == [
        ["b", "600", "1.2 KiB", "82.00", "0.3000"],
        ["c", "950", "1.9 KiB", "83.00", "0.5000"],
    ]
    assert [row[-2:] for row in texts(table)] == [["2 of 4, stopped", "3"], ["4 of 4", "3"]]
    assert [row[3].best for row in table.rows] == [False, True]
    assert [row[4].best for row in table.rows] == [True, False]


def test_all_trials_can_be_sorted_by_every_column(search):
    table = trial_table(search)
    assert [row[0] for row in texts(table)] == ["b", "a", "c"]
    assert [row[-2] for row in texts(table)] == ["2 of 4, stopped", "4 of 4", "4 of 4"]
    shapes = {row[1].text: row[1].value for row in table.rows}
    assert shapes["[384, 384]"] < shapes["[16, 24, 24, 16]"]
    assert all(entry.value is not None for row in table.rows for entry in row[1:])


def test_markdown(search):
    found = Importances((Importance("r", 0.61),), 0.7, "From 3 trials.")
    text = to_markdown(search, front(search.trials), answer(search, 0.9), found)
    assert text.startswith("# Search for TT-LoRA on SST-2\n\nTrial b has the lowest validation loss, 0.3000: ")
    assert "No trial reaches the target of 90.00." in text
    assert r"| bert | SST-2 | \[16, 24, 24, 16\] | 2 | 4 | 1e-3 | 600 | 82.00 |" in text
    assert "| TT-rank | 61.0 % |" in text
    assert text.count("\n| b | ") == 2
    assert "failed" not in text.partition("## ")[2]


def test_names_mean_nothing_to_markdown():
    search = make_search(make_trial(name="*a*|<b>", shape="|x|", r=1))
    text = to_markdown(search, search.trials, answer(search, None), NOTHING)
    assert r"| \*a\*\|&lt;b&gt; | \|x\| |" in text


def test_csv_gives_back_the_numbers(search):
    rows = list(csv.DictReader(io.StringIO(to_csv(search, front(search.trials)))))
    assert [row["trial"] for row in rows] == ["b", "a", "c"]
    first = rows[0]
    assert (first["shape"], first["r"], first["learning_rate"]) == ("16,24,24,16", "2", "0.001")
    assert (float(first["accuracy"]), float(first["validation loss"])) == (0.82, 0.3)
    assert (first["stopped early"], first["epochs"], first["planned epochs"]) == ("yes", "2", "4")
    assert [row["on the front"] for row in rows] == ["yes", "no", "yes"]
