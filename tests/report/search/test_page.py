import re

import pytest

from tests.report.reading import HOSTILE, Page
from tests.report.records import write_failure
from tests.report.search.made_up import make_search, make_trial, write_trial
from ttlora.report.drawing import Picture
from ttlora.report.search.answer import answer
from ttlora.report.search.importance import Importances
from ttlora.report.search.page import render_page
from ttlora.report.search.pareto import front
from ttlora.report.search.trials import read_search

PICTURES = [
    Picture(name, f"Title of {name}", "Description", "<svg></svg>", b"") for name in ("pareto-front", "importance")
]


def render(search, pictures=PICTURES, about=()):
    found = Importances((), None, "Nothing is said about importance.")
    return render_page(search, front(search.trials), answer(search, None), found, pictures, about)


def two(**changes):
    return make_search(make_trial(900, 0.80, 0.3, "a", r=1, **changes), make_trial(600, 0.82, 0.4, "b", r=2, **changes))


def test_the_page_opens_with_the_answer():
    text = render(two(), about=["HyperBand over 2 trials"])
    parts = ("HyperBand over", "How good", "How small", "What it took", "Best settings", "Title of pareto-front",
             "Nothing is said about importance.", "Title of importance", "All trials")  # fmt: skip
    places = [text.index(part) for part in parts]
    assert places == sorted(places)
    assert "1 trial failed" not in text


def test_every_trial_shows_its_recipe_and_versions():
    page = Page(render(two(versions={"torch": "2.13.0"}, learning_rate=5e-4)))
    popovers = {attrs["id"] for _, attrs in page.tags if "popover" in attrs}
    targets = [attrs["popovertarget"] for attrs in page.all("button") if "popovertarget" in attrs]
    assert popovers == set(targets) == {"trial-1", "trial-2"}
    text = "".join(page.text)
    assert text.count("learning_rate: 0.0005\n") == 2
    assert text.count("torch: 2.13.0\n") == 2
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))


def test_cells_carry_the_value_they_are_sorted_by():
    page = Page(render(two()))
    values = [attrs["data-value"] for attrs in page.all("td") if "data-value" in attrs]
    assert values
    assert all(re.fullmatch(r"-?[\d.]+(e-?\d+)?", value) for value in values)
    assert len(page.all("table")) == 5
    assert sum("sortable" in attrs.get("class", "") for attrs in page.all("table")) == 2


def test_names_are_text():
    names = dict.fromkeys(("name", "method", "model", "task", "primary_metric", "shape"), HOSTILE)
    search = make_search(make_trial(**names, settings={HOSTILE: HOSTILE}, versions={HOSTILE: HOSTILE}))
    page = Page(render(search, about=[HOSTILE]))
    assert len(page.all("script")) == 1
    assert not page.all("img")
    assert "".join(page.text).count(HOSTILE) >= 5


def test_the_page_needs_no_network():
    text = render(two())
    assert not [attrs for _, attrs in Page(text).tags if {"src", "href", "srcset"} & attrs.keys()]
    assert not re.search(r"@import|url\(", text)
    assert "default-src 'none'" in text


@pytest.mark.parametrize("count", [1, 2])
def test_failures_are_told_with_their_reasons(count, tmp_path):
    write_trial(tmp_path, "good")
    for number in range(count):
        write_failure(tmp_path, f"bad-{number}", error=f"out of memory {number}")
    text = "".join(Page(render(read_search([tmp_path]))).text)
    assert f"{count} trial{'s' if count > 1 else ''} failed" in text
    assert f"bad-{count - 1}" in text
    assert f"out of memory {count - 1}" in text
