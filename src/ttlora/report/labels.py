"""Labels beside the points of a scatter plot, where they hide neither each other nor a point.

adjustText does not serve here: with 15 points a figure it left labels on points in each of eight figures, and it draws
from numpy's global random numbers.
"""

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

RADII = (5.0, 12.0, 20.0, 30.0, 42.0, 56.0, 72.0, 90.0, 110.0, 132.0)  # in points
DIRECTIONS = 16
MOST_ORDERS = 8
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


@dataclass(frozen=True)
class _Place:
    """A place for a label: what it costs, and where the line from the point would end."""

    cost: float
    box: Box
    end: Point


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
    points = [_pixels(axes, label) for label in labels]
    texts = [_write(axes, label) for label in labels]
    boxes = [text.get_window_extent() for text in texts]
    sizes = [(box.width, box.height) for box in boxes]
    room = _Room(points, sizes, marker_size * pixels / 2, pixels, _box(axes.bbox), [_box(one) for one in obstacles])
    places = room.find()
    for label, text, point, place in zip(labels, texts, points, places, strict=True):
        text.set_position(((place.box[0] - point[0]) / pixels, (place.box[1] - point[1]) / pixels))
        if room.needs_line(point, place):
            start = _toward(point, place.end, room.half)
            xs, ys = zip(*axes.transData.inverted().transform([start, place.end]), strict=True)
            axes.plot(xs, ys, color=label.colour, linewidth=0.6, alpha=0.7, zorder=2, scalex=False, scaley=False)
    return all(place.cost < HIDDEN for place in places)


@dataclass(frozen=True)
class _Room:
    """Where labels may stand, in pixels: points with the sizes of their labels, half a marker's width, the length of a
    point of type, the inside of the axes, and what must not be hidden.
    """

    points: Sequence[Point]
    sizes: Sequence[Point]
    half: float
    pixels: float
    inside: Box
    obstacles: Sequence[Box]

    def find(self) -> list[_Place]:
        """A place for each label: several orders of placing them are tried, and the one that hides least is taken."""
        crowded = sorted(range(len(self.points)), key=self._distance_to_others)
        by_height = sorted(range(len(self.points)), key=lambda index: self.points[index][1])
        chance = random.Random(0)
        orders = [crowded, by_height, by_height[::-1]]
        orders += [chance.sample(crowded, len(crowded)) for _ in range(MOST_ORDERS - len(orders))]
        best: list[_Place] = []
        for order in orders:
            places = self._find_in_order(order)
            if not best or sum(place.cost for place in places) < sum(place.cost for place in best):
                best = places
            if all(place.cost < HIDDEN for place in best):
                break
        return best

    def needs_line(self, point: Point, place: _Place) -> bool:
        """Whether a label is too far from its point to be taken for its own."""
        return math.dist(point, place.end) > self.half + 6 * self.pixels

    def _distance_to_others(self, index: int) -> float:
        others = (other for i, other in enumerate(self.points) if i != index)
        return min((math.dist(self.points[index], other) for other in others), default=math.inf)

    def _find_in_order(self, order: Sequence[int]) -> list[_Place]:
        half = self.half
        taken = [*self.obstacles, *((x - half, y - half, x + half, y + half) for x, y in self.points)]
        lines: list[tuple[Point, Point]] = []
        found: dict[int, _Place] = {}
        for index in order:
            point = self.points[index]
            place = None
            for box, distance in _candidates(point, *self.sizes[index], half, self.pixels):
                if place is None or distance < place.cost:
                    other = self._judge(box, distance, point, taken, lines)
                    place = other if place is None or other.cost < place.cost else place
            assert place is not None, "there are candidates around every point"
            found[index] = place
            left, bottom, right, top = place.box
            taken.append((left - 1, bottom - 1, right + 1, top + 1))
            if self.needs_line(point, place):
                lines.append((point, place.end))
        return [found[index] for index in range(len(self.points))]

    def _judge(
        self, box: Box, distance: float, point: Point, taken: Sequence[Box], lines: Sequence[tuple[Point, Point]]
    ) -> _Place:
        end = _nearest(box, point)
        unclear = any(math.dist(other, _nearest(box, other)) < math.dist(point, end) for other in self.points)
        hidden = sum(_overlap(box, other) for other in taken) + sum(_crosses(line, box) for line in lines)
        if math.dist(point, end) > self.half:
            line = (_toward(point, end, self.half + 1), end)
            hidden += sum(_crosses(line, other) for other in taken if not _overlap((*point, *point), other))
        inside = self.inside
        outside = box[0] < inside[0] or box[1] < inside[1] or box[2] > inside[2] or box[3] > inside[3]
        return _Place(HIDDEN * (hidden + 5 * outside) + UNCLEAR * unclear + distance, box, end)


def _write(axes: Axes, label: Label) -> Annotation:
    return axes.annotate(
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


def _candidates(point: Point, width: float, height: float, half: float, pixels: float) -> Iterable[tuple[Box, float]]:
    """Boxes around a point with their distance; one beside it counts as nearer than one above, and right as nearest."""
    for radius in RADII:
        for step in range(DIRECTIONS):
            angle = 2 * math.pi * step / DIRECTIONS
            reach = half + radius * pixels
            x = point[0] + math.cos(angle) * (reach + width / 2)
            y = point[1] + math.sin(angle) * (reach + height / 2)
            distance = radius + 4 * abs(math.sin(angle)) + (math.cos(angle) < -0.1)
            yield (x - width / 2, y - height / 2, x + width / 2, y + height / 2), distance * pixels


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
    """The point at distance `length` on the way from `start` to `end`."""
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
