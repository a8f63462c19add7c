"""Labels beside the points of a scatter plot, where they hide neither each other nor a point."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

RADII = (5.0, 12.0, 20.0, 30.0, 42.0, 56.0, 72.0, 90.0, 110.0, 132.0)  # in points
DIRECTIONS = 16
UNCLEAR = 30.0  # what standing nearer to another point costs, in pixels of distance
HIDDEN = 1000.0  # what hiding something costs, in pixels of distance

Point = tuple[float, float]
Box = tuple[float, float, float, float]  # left, bottom, right, top in pixels; a Bbox is slow to ask


@dataclass(frozen=True)
class Label:
    """A text for a point, both axes in data units."""

    text: str
    x: float
    y: float
    colour: str
    bold: bool = False


def place_labels(axes: Axes, labels: Sequence[Label], marker_size: float, obstacles: Iterable[Bbox] = ()) -> bool:
    """Write each label at the nearest free place around its point, with a thin line to it where that is not close.

    Args:
        axes: Drawn once, so that its limits and its place in the figure stay.
        labels: The labels.
        marker_size: Width of a marker, in points.
        obstacles: What else must not be hidden, in pixels.

    Returns:
        Whether there was a free place for all.
    """
    figure = axes.get_figure()
    assert isinstance(figure, Figure), "the axes are in a figure of their own"
    pixels = figure.dpi / 72
    points: list[Point] = [_pixels(axes, label) for label in labels]
    half = marker_size * pixels / 2
    taken = [_box(obstacle) for obstacle in obstacles]
    taken += [(x - half, y - half, x + half, y + half) for x, y in points]
    lines: list[tuple[Point, Point]] = []
    inside, free = _box(axes.bbox), True
    for index in _crowded_first(points):
        label, point = labels[index], points[index]
        text = axes.annotate(
            label.text,
            (label.x, label.y),
            (0, 0),
            textcoords="offset points",
            color=label.colour,
            weight="bold" if label.bold else "normal",
            va="bottom",
            ha="left",
            zorder=5,
        )
        box = text.get_window_extent()
        cost, place, end = min(
            (
                _cost(candidate, distance, point, points, inside, taken, lines, half)
                for candidate, distance in _candidates(point, box.width, box.height, half, pixels)
            ),
            key=lambda found: found[0],
        )
        free = free and cost < HIDDEN
        text.set_position(((place[0] - point[0]) / pixels, (place[1] - point[1]) / pixels))
        taken.append((place[0] - 1, place[1] - 1, place[2] + 1, place[3] + 1))
        if math.dist(point, end) > half + 6 * pixels:
            lines.append((point, end))
            start = _toward(point, end, half)
            xs, ys = zip(*axes.transData.inverted().transform([start, end]), strict=True)
            axes.plot(xs, ys, color=label.colour, linewidth=0.6, alpha=0.7, zorder=2, scalex=False, scaley=False)
    return free


def _crowded_first(points: Sequence[Point]) -> list[int]:
    """Indices of points, those with the nearest neighbours first: they have the least room."""

    def room(index: int) -> float:
        return min((math.dist(points[index], other) for i, other in enumerate(points) if i != index), default=math.inf)

    return sorted(range(len(points)), key=room)


def _candidates(point: Point, width: float, height: float, half: float, pixels: float) -> Iterable[tuple[Box, float]]:
    """Boxes around a point with their distance; beside it counts as nearer than above or below, right than left."""
    for radius in RADII:
        for step in range(DIRECTIONS):
            angle = 2 * math.pi * step / DIRECTIONS
            reach = half + radius * pixels
            x = point[0] + math.cos(angle) * (reach + width / 2)
            y = point[1] + math.sin(angle) * (reach + height / 2)
            distance = radius + 4 * abs(math.sin(angle)) + (math.cos(angle) < -0.1)
            yield (x - width / 2, y - height / 2, x + width / 2, y + height / 2), distance * pixels


def _cost(
    box: Box,
    distance: float,
    point: Point,
    points: Sequence[Point],
    inside: Box,
    taken: Sequence[Box],
    lines: Sequence[tuple[Point, Point]],
    half: float,
) -> tuple[float, Box, Point]:
    """What a place costs, the place, and the end of the line to it."""
    end = _nearest(box, point)
    unclear = any(math.dist(other, _nearest(box, other)) < math.dist(point, end) for other in points)
    hidden = sum(_overlap(box, other) for other in taken) + sum(_crosses(line, box) for line in lines)
    if math.dist(point, end) > half:
        line = (_toward(point, end, half + 1), end)
        hidden += sum(_crosses(line, other) for other in taken if not _overlap((*point, *point), other))
    outside = box[0] < inside[0] or box[1] < inside[1] or box[2] > inside[2] or box[3] > inside[3]
    return HIDDEN * (hidden + 5 * outside) + UNCLEAR * unclear + distance, box, end


def _pixels(axes: Axes, label: Label) -> Point:
    x, y = axes.transData.transform((label.x, label.y))
    return float(x), float(y)


def _box(bbox: Bbox) -> Box:
    return float(bbox.x0), float(bbox.y0), float(bbox.x1), float(bbox.y1)


def _overlap(one: Box, other: Box) -> bool:
    return one[0] <= other[2] and other[0] <= one[2] and one[1] <= other[3] and other[1] <= one[3]


def _nearest(box: Box, point: Point) -> Point:
    return min(max(point[0], box[0]), box[2]), min(max(point[1], box[1]), box[3])


def _toward(start: Point, end: Point, length: float) -> Point:
    """The point at some length on the way."""
    share = length / max(math.dist(start, end), length)
    return (start[0] + share * (end[0] - start[0]), start[1] + share * (end[1] - start[1]))


def _crosses(line: tuple[Point, Point], box: Box) -> bool:
    """Whether a stretch of line runs through a box: clip it to the box on both axes."""
    (x0, y0), (x1, y1) = line
    low, high = 0.0, 1.0
    for start, way, least, most in ((x0, x1 - x0, box[0], box[2]), (y0, y1 - y0, box[1], box[3])):
        if abs(way) < 1e-9:
            if not least <= start <= most:
                return False
            continue
        first, last = sorted(((least - start) / way, (most - start) / way))
        low, high = max(low, first), min(high, last)
    return low < high
