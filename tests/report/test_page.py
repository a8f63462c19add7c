import re

import pytest

from tests.report.reading import HOSTILE, Page
from tests.report.records import write_run
from ttlora.report.answer import ModelAnswer
from ttlora.report.comparison import compare
from ttlora.report.drawing import Picture
from ttlora.report.page import render_page
from ttlora.report.runs import Failure, find_runs

ANSWER = ModelAnswer("It is good.", "It is small.", "It is fast.")


@pytest.fixture
def render(tmp_path):
    def call(failures=(), notes=()):
        comparisons = compare(find_runs([tmp_path]).runs)
        pictures = [[Picture("a", "Title", "Description", '<svg role="img"></svg>', b"")]] * len(comparisons)
        return render_page(comparisons, [ANSWER] * len(comparisons), pictures, failures, notes)

    return call


def test_the_page_opens_with_the_answer(tmp_path, render):
    write_run(tmp_path, "tt")
    text = render()
    places = [
        text.index(part) for part in ("It is good.", "It is small.", "It is fast.", '<table class="sortable">', "<svg")
    ]
    assert places == sorted(places)


def test_every_number_shows_its_seeds_recipe_and_versions(tmp_path, render):
    for seed, score in enumerate((0.81, 0.83)):
        write_run(tmp_path, f"tt{seed}", score, seed=seed, versions={"torch": "2.13.0"}, r=5)
    write_run(tmp_path, "other", 0.7, seed=2, epochs=9, r=5)
    page = Page(render())
    popovers = {attrs["id"]: attrs for _, attrs in page.tags if "popover" in attrs}
    targets = [attrs["popovertarget"] for attrs in page.all("button") if "popovertarget" in attrs]
    assert set(targets) == set(popovers) == {"m1-1", "m1-1-1"}
    text = "".join(page.text)
    assert "Recipe of seed 0; seeds 1 differ from it in seed and output" in text
    assert "Recipe of seed 2" in text
    assert "learning_rate: 0.001\n" in text
    assert "torch: 2.13.0\n" in text
    assert str(tmp_path / "tt1" / "result.json") in text
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))


def test_names_are_text(tmp_path, render):
    names = {"method": HOSTILE, "model": HOSTILE, "task": HOSTILE, "primary_metric": HOSTILE}
    write_run(tmp_path, "a", **names, versions={HOSTILE: HOSTILE}, note=HOSTILE)
    failure = Failure(*[HOSTILE] * 6)
    text = render([failure], [HOSTILE])
    page = Page(text)
    assert len(page.all("script")) == 1
    assert not page.all("img")
    assert not [attrs for _, attrs in page.tags if any(name.startswith("on") for name in attrs)]
    assert "".join(page.text).count(HOSTILE) >= 8


def test_the_page_needs_no_network(tmp_path, render):
    write_run(tmp_path, "tt")
    text = render()
    page = Page(text)
    assert not [attrs for _, attrs in page.tags if {"src", "href", "srcset"} & attrs.keys()]
    assert not re.search(r"@import|url\(", text)
    policy = next(
        attrs["content"] for attrs in page.all("meta") if attrs.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none'")


def test_headings_and_cells_can_be_used_without_sight_and_mouse(tmp_path, render):
    write_run(tmp_path, "tt")
    write_run(tmp_path, "lora", 0.7, method="lora", task="glue/rte")
    page = Page(render([Failure("m", "m", "t", "0", "e", "f")]))
    assert all(attrs.get("scope") in ("col", "row") for attrs in page.all("th"))
    assert page.all("html")[0]["lang"] == "en"
    assert all(attrs.get("type") == "button" for attrs in page.all("button"))


def test_cells_carry_the_value_they_are_sorted_by(tmp_path, render):
    write_run(tmp_path, "tt", 0.8125)
    write_run(tmp_path, "lora", 0.7, method="lora")
    values = [attrs["data-value"] for attrs in Page(render()).all("td") if "data-value" in attrs]
    assert values[:4] == ["73728", "0.7", "0.7", "73728"]
    assert values[4:8] == ["16320", "0.8125", "0.8125", "16320"]


def test_failures_and_what_was_left_out_are_told(tmp_path, render):
    write_run(tmp_path, "tt")
    assert "failed" not in "".join(Page(render()).text)
    text = "".join(
        Page(render([Failure("boft", "bert", "rte", "1", "out of memory", "runs/boft")], ["x is damaged"])).text
    )
    assert "1 run failed" in text
    assert "out of memory" in text
    assert "x is damaged" in text
