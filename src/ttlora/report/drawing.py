"""What all figures share: style, markers, axes of large numbers, and writing to files."""

import html
import io
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

from ttlora.errors import printable
from ttlora.report.comparison import OURS, ModelTable
from ttlora.report.rows import Row

MOST_LABELS = 16
LONGEST_LABEL = 36
# Okabe and Ito's colours without yellow, which is too light for lines; vermilion is kept for TT-LoRA
COLOURS = ("#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "v", "D", "P", "X")
OUR_COLOUR = "#D55E00"
OUR_MARKERS = ("*", "p", "h", "d", "8")
LINES = ("-", "--", ":", "-.")
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "savefig.dpi": 200,
    "svg.fonttype": "path",
    "svg.hashsalt": "ttlora",
    "text.usetex": False,
    "text.parse_math": False,  # names in records are no formulas
}


@dataclass(frozen=True)
class Mark:
    """How a row is drawn in every figure: no two rows alike, in colour or in print."""

    colour: str
    marker: str
    line: str

    @property
    def size(self) -> float:
        """Width of the marker in points; stars are drawn larger because they look small."""
        return 12.0 if self.marker == "*" else 7.5


@dataclass(frozen=True)
class Picture:
    """A figure as it goes into files and onto the page.

    Attributes:
        name: Stem of its files.
        title: What it shows.
        description: The same for those who cannot see it.
        svg: SVG without a prologue, its ids starting with the name, so that many go into one page.
        png: PNG at 200 dots an inch.
    """

    name: str
    title: str
    description: str
    svg: str
    png: bytes


@contextmanager
def drawing() -> Iterator[None]:
    """Draw in our style, whatever the user's own settings of matplotlib."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches."""
    figure = Figure((width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def render(figure: Figure, name: str, title: str, description: str) -> Picture:
    """Turn a figure into SVG and PNG; the same figure gives the same bytes."""
    svg, png = io.BytesIO(), io.BytesIO()
    figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": "ttlora"})
    figure.savefig(png, format="png", metadata={"Software": "ttlora"})
    text = svg.getvalue().decode("utf-8")
    text = re.sub(r'( id="| xlink:href="#|url\(#)', rf"\g<1>{name}-", text[text.index("<svg") :])
    text = text.replace("<svg ", f'<svg role="img" aria-label="{html.escape(title)}" ', 1)
    return Picture(name, title, description, text, png.getvalue())


def marks(comparison: ModelTable) -> Mapping[Row, Mark]:
    """A mark for each row."""
    found: dict[Row, Mark] = {}
    for index, row in enumerate(comparison.ours):
        found[row] = Mark(OUR_COLOUR, OUR_MARKERS[index % len(OUR_MARKERS)], LINES[index % len(LINES)])
    for index, row in enumerate(row for row in comparison.rows if row.method != OURS):
        # six colours and seven markers: forty-two pairs before one comes again
        line = LINES[index // len(COLOURS) % len(LINES)]
        found[row] = Mark(COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)], line)
    return found


def label_of(row: Row) -> str:
    """A row's label, shortened in its middle to fit a figure: labels mostly differ at their ends."""
    label = row.label
    return label if len(label) <= LONGEST_LABEL else f"{label[: LONGEST_LABEL - 17]}…{label[-16:]}"


def shown_rows(comparison: ModelTable) -> tuple[Row, ...]:
    """The rows that a figure has room to name: all, or the best settings of each method."""
    return comparison.rows if len(comparison.rows) <= MOST_LABELS else comparison.best_settings


def chosen(comparison: ModelTable) -> str:
    """A sentence for the figure's description if it does not show all rows."""
    return "" if len(shown_rows(comparison)) == len(comparison.rows) else " Of each method, the best of its settings."


def average_label(comparison: ModelTable) -> str:
    """The axis label for the average score."""
    if len(comparison.averaged) == 1:
        column = comparison.averaged[0]
        return printable(f"{column.name}: {column.measure} × 100", 44)
    return f"average score (× 100) over {len(comparison.averaged)} tasks"


def count_axis(axes: Axes, values: Sequence[float], text: Callable[[float], str]) -> None:
    """A logarithmic x axis from a power of ten below the values to one above, its ticks written by `text`."""
    low = math.floor(math.log10(min(values) * 0.8))
    high = math.ceil(math.log10(max(values) * 1.25))
    axes.set_xscale("log")
    axes.set_xlim(10.0**low, 10.0**high)
    steps = (1, 2, 5) if high - low == 1 else (1,)
    ticks = [step * 10.0**power for power in range(low, high + 1) for step in steps]
    axes.xaxis.set_major_locator(FixedLocator([tick for tick in ticks if tick <= 10.0**high]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(True, axis="both")


def short_count(value: float) -> str:
    """A count in thousands or millions: 16.3K, 4.19M."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"
