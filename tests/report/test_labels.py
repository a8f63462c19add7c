import random
from itertools import combinations

import pytest
from matplotlib.transforms import Bbox

from ttlora.report.drawing import count_axis, drawing, new_figure, short_count
from ttlora.report.labels import Label, _crosses, place_labels


def place(points, height=4.2, blocked=False):
    """The labels' boxes in pixels, and whether they all found room."""
    with drawing():
        figure = new_figure(7.0, height)
        axes = figure.add_subplot()
        axes.plot(*zip(*points, strict=True), "o", markersize=9)
        count_axis(axes, [x for x, _ in points], short_count)
        axes.margins(y=0.15)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        labels = [Label(f"Some method r={index}", x, y, "black") for index, (x, y) in enumerate(points)]
        free = place_labels(axes, labels, 9.0, [axes.bbox] if blocked else [])
        boxes = [text.get_window_extent() for text in axes.texts]
        markers = [Bbox.from_bounds(x - 6, y - 6, 12, 12) for x, y in axes.transData.transform(points)]
        return boxes, markers, axes.bbox, free


@pytest.mark.parametrize("seed", range(2))
def test_fifteen_neighbours_hide_nothing(seed):
    chance = random.Random(seed)
    points = [(10 ** chance.uniform(4.0, 4.6), chance.gauss(80, 0.5)) for _ in range(15)]
    boxes, markers, inside, free = place(points, height=7.0)
    assert free
    assert len(boxes) == 15
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    assert not any(box.overlaps(marker) for box in boxes for marker in markers)
    assert all(inside.padded(1).contains(*corner) for box in boxes for corner in box.corners())


def test_a_lone_label_stands_close_to_the_right():
    (box,), (marker,), *_ = place([(1e4, 80.0)])
    assert 0 < box.x0 - marker.x1 < 15
    assert box.y0 < marker.y0 + marker.height / 2 < box.y1


def test_no_room_is_told():
    assert not place([(1e4, 80.0)], blocked=True)[-1]


def test_lines_and_boxes():
    box = (0, 0, 2, 1)
    assert _crosses(((-1, 0.5), (3, 0.5)), box)
    assert _crosses(((-1, -1), (2, 2)), box)
    assert not _crosses(((-1, 0.5), (-0.1, 0.5)), box)
    assert not _crosses(((3, -1), (3, 5)), box)
    assert not _crosses(((-1, 1), (1, 3)), box)


def test_short_counts():
    assert [short_count(value) for value in (1, 768, 1000, 16_320, 4_194_304, 8.03e9)] == [
        *("1", "768", "1K", "16.3K", "4.19M", "8.03B"),
    ]
