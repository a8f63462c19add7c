import re
from xml.etree import ElementTree

import pytest

from tests.report.records import write_run
from ttlora.report.comparison import compare
from ttlora.report.curves import _mean_curve, _thinned
from ttlora.report.drawing import drawing, marks
from ttlora.report.figures import _storage, draw_figures
from ttlora.report.runs import find_runs

HOSTILE = "$\\frac{$ </svg><script>alert(1)</script> --> & \"'"


def log(*scores):
    return [{"epoch": float(epoch), "validation_accuracy": score} for epoch, score in enumerate(scores, 1)]


def losses(count):
    return [{"epoch": step / 10, "loss": 1 / step} for step in range(1, count)]


@pytest.fixture
def only(tmp_path):
    def call():
        (comparison,) = compare(find_runs([tmp_path]).runs)
        return comparison

    return call


def test_all_figures_of_a_rich_comparison(tmp_path, only):
    for index, alpha in enumerate((1.0, 4.0)):
        write_run(tmp_path, f"tt{index}", 0.8 + index / 50, alpha=alpha, log=[*losses(30), *log(0.5, 0.6)])
    write_run(tmp_path, "lora", 0.85, method="lora")
    write_run(tmp_path, "head", 0.6, method="head")
    pictures = draw_figures(only(), "bert-")
    names = "score-by-parameters storage score-by-alpha speed-and-memory learning-curves training-loss"
    assert [picture.name for picture in pictures] == [f"bert-{name}" for name in names.split()]
    ids = []
    for picture in pictures:
        assert picture.png.startswith(b"\x89PNG")
        root = ElementTree.fromstring(picture.svg)
        assert root.get("role") == "img"
        assert root.get("aria-label") == picture.title
        mine = [element.get("id") for element in root.iter() if element.get("id")]
        used = re.findall(r'(?:href="#|url\(#)([^")]+)', picture.svg)
        assert set(used) <= set(mine)
        ids += set(mine)
    assert len(ids) == len(set(ids)), "one id stands in two figures, which go into one page"


def test_a_single_run(tmp_path, only):
    write_run(tmp_path, "tt")
    assert [picture.name for picture in draw_figures(only())] == ["score-by-parameters", "storage", "speed-and-memory"]


def test_no_adapter_no_average(tmp_path, only):
    write_run(tmp_path, "head", method="head", seconds_per_step=0.0, peak_memory_bytes=0)
    assert [picture.name for picture in draw_figures(only())] == ["speed-and-memory"]
    write_run(tmp_path, "tt", task="glue/rte")
    assert [picture.name for picture in draw_figures(only())] == ["storage", "speed-and-memory"]


def test_names_are_text_and_no_formulas(tmp_path, only):
    logs = log(0.5, 0.6)
    for index, alpha in enumerate((1.0, 2.0)):
        write_run(tmp_path, str(index), method=HOSTILE, task=HOSTILE, primary_metric=HOSTILE, alpha=alpha, log=logs)
    pictures = draw_figures(only())
    assert len(pictures) == 4
    for picture in pictures:
        assert "<script" not in picture.svg
        ElementTree.fromstring(picture.svg)


def test_the_same_records_give_the_same_files(tmp_path, only):
    write_run(tmp_path, "tt")
    write_run(tmp_path, "lora", 0.7, method="lora")
    with drawing():
        first, second = _storage(only(), ""), _storage(only(), "")
    assert (first.svg, first.png) == (second.svg, second.png)


def test_no_two_rows_look_alike(tmp_path, only):
    for index in range(15):
        write_run(tmp_path, str(index), method=f"method {index}", adapter_parameters=1000 + index)
    for r in range(4):
        write_run(tmp_path, f"tt{r}", r=r + 1)
    found = marks(only()).values()
    assert len({(mark.colour, mark.marker) for mark in found}) == 19
    assert len({mark.marker for mark in found if mark.colour == "#D55E00"}) == 4


def test_curves_are_means_over_seeds_as_far_as_all_came(tmp_path):
    write_run(tmp_path, "a", seed=0, log=log(0.5, 0.6, 0.8))
    write_run(tmp_path, "b", seed=1, log=log(0.7, 0.8))
    write_run(tmp_path, "c", seed=2)
    runs = find_runs([tmp_path]).runs
    assert _mean_curve(runs, "validation_accuracy", 100) == [(1.0, pytest.approx(60)), (2.0, pytest.approx(70))]
    assert _mean_curve(runs, "loss", 1) == []


def test_long_curves_are_thinned_to_means():
    thin = _thinned([(float(x), float(x % 2)) for x in range(100)])
    assert len(thin) == 20
    assert thin[0] == (2.0, pytest.approx(0.4))
