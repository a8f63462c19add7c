import re
from xml.etree import ElementTree

import pytest

from tests.report.search.made_up import make_search, make_trial, write_search
from ttlora.report.drawing import drawing, new_figure
from ttlora.report.search.answer import answer
from ttlora.report.search.figures import FIGURE_NAMES, _corners, draw_figures
from ttlora.report.search.importance import Importance, Importances
from ttlora.report.search.pareto import front

HOSTILE = "$\\frac{$ </svg><script>alert(1)</script> --> & \"'"
SHARES = Importances((Importance("learning_rate", 0.6), Importance("r", 0.2)), 0.5, "From 24 trials.")
NOTHING = Importances((), None, "Nothing is said.")


def draw(search, found=NOTHING, target=None):
    return draw_figures(search, front(search.trials), answer(search, target), found)


def test_all_figures_of_a_rich_search(tmp_path):
    pictures = draw(write_search(tmp_path, 24), SHARES, 0.8)
    assert tuple(picture.name for picture in pictures) == FIGURE_NAMES
    ids = []
    for picture in pictures:
        assert picture.png.startswith(b"\x89PNG")
        root = ElementTree.fromstring(picture.svg)
        assert root.get("aria-label") == picture.title
        mine = {element.get("id") for element in root.iter() if element.get("id")}
        assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', picture.svg)) <= mine
        ids += mine
    assert len(ids) == len(set(ids)), "one id stands in two figures, which go into one page"


def test_a_single_trial_and_trials_without_an_adapter():
    assert [picture.name for picture in draw(make_search(make_trial()))] == ["pareto-front"]
    assert draw(make_search(make_trial(0))) == []
    better_without = make_search(make_trial(0, 0.9), make_trial(100, 0.8))
    assert [picture.name for picture in draw(better_without)] == ["pareto-front"]


def test_names_are_text_and_no_formulas():
    trials = [
        make_trial(loss=loss, name=HOSTILE, task=HOSTILE, primary_metric=HOSTILE, shape=f"{HOSTILE} {loss}")
        for loss in (0.0, -0.4, 3.0)
    ]
    pictures = draw(make_search(*trials))
    assert [picture.name for picture in pictures] == ["pareto-front", "loss-by-category"]
    for picture in pictures:
        assert "<script" not in picture.svg
        ElementTree.fromstring(picture.svg)


@pytest.mark.parametrize("alphas", [[0.0] * 9, [float(alpha) for alpha in range(9)], [None] * 9])
def test_any_alphas(alphas):
    trials = [make_trial(1000 + place, alpha=alpha, r=place) for place, alpha in enumerate(alphas)]
    assert [picture.name for picture in draw(make_search(*trials))] == ["pareto-front", "loss-by-setting"]


def test_the_front_is_drawn_as_steps():
    with drawing():
        axes = new_figure(4, 3).add_subplot()
        axes.set_xlim(1, 100)
        assert _corners(axes, [(10, 80), (20, 82)]) == [(10, 80), (20, 80), (20, 82), (100, 82)]


def test_the_same_records_give_the_same_files():
    search = make_search(make_trial())
    first, second = draw(search), draw(search)
    assert [(one.svg, one.png) for one in first] == [(one.svg, one.png) for one in second]
