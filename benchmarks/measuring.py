"""What all benchmarks share: contestants timed in turn, their ratios, and one table with the bars it has to meet."""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

WARM_UP = 2
# the contestant that ratios are to
LORA = "LoRA r=8"


@dataclass(frozen=True)
class Bar:
    """An upper limit that a figure has to keep.

    Attributes:
        of: What the figure is, such as "of LoRA's overhead".
        limit: The largest figure that meets the bar.
        figure: What was measured.
    """

    of: str
    limit: float
    figure: float

    @property
    def met(self) -> bool:
        """Whether the figure keeps to the limit."""
        return self.figure <= self.limit

    def __str__(self) -> str:
        return f"bar {self.limit:g} {self.of}: {self.figure:.3g}, {'met' if self.met else 'NOT MET'}"


@dataclass(frozen=True)
class Row:
    """What one contestant did in one case; `figures` by the name of their column, and why there are none in `note`."""

    case: str
    contestant: str
    figures: dict[str, float]
    bars: tuple[Bar, ...] = ()
    note: str = ""


def in_turn(
    contestants: Mapping[str, Callable[..., object]],
    rounds: int,
    prepare: Callable[[], object] | None = None,
    warm_up: int = WARM_UP,
    case: str = "",
) -> dict[str, list[float]]:
    """Run every contestant once a round, so that whatever else the machine does hits all of them alike.

    Args:
        contestants: What to time, by name.
        rounds: How often each is timed.
        prepare: Called before every run, outside its time; the contestant gets what it returns.
        warm_up: Rounds before the first that counts.
        case: What the progress bar says.

    Returns:
        The seconds of each contestant's runs, round by round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    console = Console(stderr=True)
    for number in track(
        range(warm_up + rounds), case, console=console, transient=True, disable=not console.is_terminal
    ):
        for name, run in contestants.items():
            arguments = () if prepare is None else (prepare(),)
            _wait_for_device()
            started = time.perf_counter()
            result = run(*arguments)
            _wait_for_device()
            took = time.perf_counter() - started
            # freed before the next contestant starts, whose memory would come on top
            del result, arguments
            if number >= warm_up:
                seconds[name].append(took)
    return seconds


def _wait_for_device() -> None:
    """Wait until an accelerator, if there is one, has done what it was told to do."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def compare(seconds: Mapping[str, list[float]], frozen: str | None = "frozen") -> dict[str, dict[str, float]]:
    """The median of each contestant, its spread, and its ratios to the frozen model and to LoRA.

    Args:
        seconds: The seconds of each contestant's runs.
        frozen: The contestant that is the model without adapter; None: there is none.

    Returns:
        Figures by contestant: "seconds"; "spread", the range of the middle half of the runs over the median;
        "to_frozen"; "to_lora", if LoRA took part.
    """
    medians = {name: statistics.median(runs) for name, runs in seconds.items()}
    figures = {}
    for name, runs in seconds.items():
        lower, _, upper = statistics.quantiles(runs, n=4, method="inclusive")
        figures[name] = {"seconds": medians[name], "spread": (upper - lower) / medians[name]}
        if frozen is not None:
            figures[name]["to_frozen"] = ratio(runs, seconds[frozen])
        if LORA in medians:
            figures[name]["to_lora"] = ratio(runs, seconds[LORA])
    return figures


def ratio(runs: Sequence[float], reference: Sequence[float]) -> float:
    """The median over the rounds of a run over the reference's run of the same round.

    What slows the machine down for a while slows both, which the ratio of two medians would not know.
    """
    return statistics.median(run / other for run, other in zip(runs, reference, strict=True))


TEXT = ("case", "contestant", "note")
# key of a figure -> header and how it is written
COLUMNS: dict[str, tuple[str, Callable[[float], str]]] = {
    "seconds": ("ms", lambda seconds: f"{1000 * seconds:,.2f}" if seconds < 1 else f"{1000 * seconds:,.0f}"),
    "seconds_a_layer": ("ms a layer", lambda seconds: f"{1000 * seconds:.2f}"),
    "seconds_a_matrix": ("ms a matrix", lambda seconds: f"{1000 * seconds:,.2f}"),
    "operators_a_matrix": ("operators a matrix", lambda count: f"{count:.2f}"),
    "peak": ("peak GiB", lambda count: f"{count / 2**30:.2f}"),
    "bytes": ("bytes", lambda count: f"{count:,.0f}"),
    "spread": ("spread", lambda spread: f"{100 * spread:.0f} %"),
    "to_frozen": ("x frozen", lambda ratio: f"{ratio:.3f}"),
    "to_one_adapter": ("x one adapter", lambda ratio: f"{ratio:.3f}"),
    "to_lora": ("x LoRA r=8", lambda ratio: f"{ratio:.3f}"),
    "over_frozen": ("ms over frozen", lambda seconds: f"{1000 * seconds:.2f}"),
    "logits_apart": ("logits apart", lambda apart: f"{apart:.1e}"),
    "overhead": ("overhead", lambda overhead: f"{100 * overhead:.1f} %"),
    "overhead_to_lora": ("x LoRA's overhead", lambda ratio: f"{ratio:.2f}"),
    "bytes_to_lora": ("bytes x LoRA r=8", lambda ratio: f"{ratio:.3f}"),
}


def parse(
    docstring: str | None, rounds: int | None = 15, options: Mapping[str, Any] | None = None, **defaults: Any
) -> argparse.Namespace:
    """The flags that all benchmarks have; sets torch's threads.

    Args:
        docstring: What `--help` shows.
        rounds: How often each contestant is timed unless `--rounds` says otherwise; None: nothing is timed.
        options: Further flags, each with what `add_argument` takes.
        **defaults: What flags are unless they are given.
    """
    parser = argparse.ArgumentParser(description=docstring, formatter_class=argparse.RawDescriptionHelpFormatter)
    if rounds is not None:
        told = "runs of each contestant, in turn (default: %(default)s)"
        parser.add_argument("--rounds", type=int, default=rounds, help=told)
    parser.add_argument("--device", default="cpu", help="where to compute, such as cuda (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="torch's threads (default: %(default)s)")
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16", "float16"], default="float32", help="(default: %(default)s)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table to FILE too, as JSON")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    for flag, option in (options or {}).items():
        parser.add_argument(flag, **option)
    parser.set_defaults(**defaults)
    arguments = parser.parse_args()
    if rounds is not None and arguments.rounds < 2:
        parser.error(f"--rounds {arguments.rounds}: a median and a spread take at least two")
    if arguments.threads < 1:
        parser.error(f"--threads {arguments.threads}: at least one thread has to run")
    if arguments.json is not None and arguments.json.exists():
        # said now, and not after minutes of measuring
        parser.error(f"--json {arguments.json} is there already and is not overwritten: name another file")
    arguments.dtype = getattr(torch, arguments.dtype)
    torch.set_num_threads(arguments.threads)
    if arguments.device != "cpu":
        try:
            torch.empty(1, device=arguments.device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            parser.exit(2, f"{parser.prog}: --device {arguments.device} cannot be used: {reason}\n")
        # where all that a benchmark makes is made from now on
        torch.set_default_device(arguments.device)
    return arguments


def publish(arguments: argparse.Namespace, benchmark: str, rows: list[Row]) -> None:
    """Print the rows as one table, and write them as JSON if that was asked for."""
    caption = caption_of(arguments)
    if arguments.markdown:
        print(as_markdown(rows, caption))
    else:
        console = Console(highlight=False)
        if not console.is_terminal:
            console.width = 140
        console.print(as_table(rows, benchmark))
        for line in bars_of(rows):
            console.print(line, style="red" if "NOT MET" in line else "green", markup=False)
        console.print(caption, markup=False)
    if arguments.json is not None:
        content = {"benchmark": benchmark, **conditions_of(arguments), "rows": [as_record(row) for row in rows]}
        write_json(arguments.json, content)


def conditions_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """With what something was measured, as it stands in the JSON file."""
    return {
        "rounds": getattr(arguments, "rounds", None),
        "threads": arguments.threads,
        "dtype": str(arguments.dtype).removeprefix("torch."),
        "device": arguments.device,
        "machine": platform.machine(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "peft": peft.__version__,
        },
    }


def caption_of(arguments: argparse.Namespace) -> str:
    """With what something was measured, as it stands below the table."""
    conditions = conditions_of(arguments)
    versions = ", ".join(f"{name} {version}" for name, version in conditions["versions"].items())
    timed = "" if conditions["rounds"] is None else f"medians of {conditions['rounds']} rounds in turn; "
    return f"{conditions['dtype']}, {where(arguments)}; {timed}{versions}"


def where(arguments: argparse.Namespace) -> str:
    """The name of the GPU, or the number of threads on a CPU."""
    if arguments.device == "cpu":
        return f"{arguments.threads} threads"
    return torch.cuda.get_device_name(arguments.device)


def as_record(row: Row) -> dict[str, Any]:
    return {**asdict(row), "bars": [{**asdict(bar), "met": bar.met} for bar in row.bars]}


def write_json(path: Path, content: dict[str, Any]) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=1)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def as_table(rows: list[Row], title: str) -> Table:
    table = Table(title=title, box=box.SIMPLE)
    header, *lines = cells(rows)
    for name in header:
        table.add_column(name, justify="left" if name in TEXT else "right", no_wrap=name not in ("case", "note"))
    for number, line in enumerate(lines):
        if number and line[0]:
            table.add_section()
        table.add_row(*map(escape, line))
    return table


def as_markdown(rows: list[Row], caption: str) -> str:
    header, *lines = cells(rows)
    rule = ["---" if name in TEXT else "---:" for name in header]
    table = [f"| {' | '.join(line)} |" for line in (header, rule, *lines)]
    bars = [f"- {line}" for line in bars_of(rows)]
    return "\n".join([*table, "", *bars, *([""] if bars else []), f"({caption})"])


def bars_of(rows: list[Row]) -> list[str]:
    return [f"{row.case}, {row.contestant}: {bar}" for row in rows for bar in row.bars]


def cells(rows: list[Row]) -> list[list[str]]:
    """The table as text: the header, and one line a row, with the columns that any row has something for."""
    columns = {key: column for key, column in COLUMNS.items() if any(key in row.figures for row in rows)}
    noted = any(row.note for row in rows)
    lines = [[*TEXT[:2], *(header for header, _ in columns.values()), *(["note"] if noted else [])]]
    case = None
    for row in rows:
        figures = [write(row.figures[key]) if key in row.figures else "" for key, (_, write) in columns.items()]
        # named once, where it begins
        named = row.case if row.case != case else ""
        lines.append([named, row.contestant, *figures, *([row.note] if noted else [])])
        case = row.case
    return lines
