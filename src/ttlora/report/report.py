"""The whole report, from result records to a folder."""

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ttlora.errors import UserError
from ttlora.report.answer import Answer, answer
from ttlora.report.comparison import Comparison, compare
from ttlora.report.figures import FIGURE_NAMES, draw_figures
from ttlora.report.page import GENERATOR, render_page
from ttlora.report.runs import Failure, find_runs
from ttlora.report.settings import without_repeats
from ttlora.report.tables import to_csv, to_markdown

PAGE = "report.html"
MARKDOWN = "tables.md"
CSV = "tables.csv"
FIGURES = "figures"
FIGURE = rf"{FIGURES}/([^/]+-)?({'|'.join(FIGURE_NAMES)})\.(svg|png)"


@dataclass(frozen=True)
class Report:
    """What was written.

    Attributes:
        output: The folder.
        files: Its files.
        comparisons: One table for each base model.
        answers: What opens each of them.
        failures: Runs that failed.
        notes: What was left out, a line each: files that could not be read, and runs that were repeated.
    """

    output: Path
    files: tuple[Path, ...]
    comparisons: tuple[Comparison, ...]
    answers: tuple[Answer, ...]
    failures: tuple[Failure, ...]
    notes: tuple[str, ...]


def write_report(results: Sequence[str | Path], output: str | Path) -> Report:
    """Write ``report.html``, ``tables.md``, ``tables.csv`` and ``figures/`` from result records alone.

    Args:
        results: Result records, or folders that are searched for them.
        output: A folder that is not there yet, is empty, or holds an earlier report and nothing else, which is then
            replaced as a whole.

    Raises:
        UserError: There is no record that can be read, or the output folder holds something else.
    """
    folder = Path(output).expanduser().absolute()
    _require_replaceable(folder)
    found = find_runs(results)
    runs, repeated = without_repeats(found.runs)
    comparisons = compare(runs)
    answers = [answer(comparison) for comparison in comparisons]
    prefixes = [""] if len(comparisons) == 1 else _prefixes(comparisons)
    pictures = [draw_figures(one, prefix) for one, prefix in zip(comparisons, prefixes, strict=True)]
    notes = (*found.damaged, *repeated)
    sentences = [(one.good, one.small, one.fast) for one in answers]
    with _replaced(folder) as temporary:
        (temporary / MARKDOWN).write_bytes(_encoded(to_markdown(comparisons, sentences, found.failures)))
        (temporary / CSV).write_bytes(_encoded(to_csv(comparisons)))
        (temporary / FIGURES).mkdir()
        for picture in (picture for drawn in pictures for picture in drawn):
            (temporary / FIGURES / f"{picture.name}.svg").write_text(picture.svg, "utf-8")
            (temporary / FIGURES / f"{picture.name}.png").write_bytes(picture.png)
        page = render_page(comparisons, answers, pictures, found.failures, notes)
        (temporary / PAGE).write_bytes(_encoded(page))
    files = tuple(sorted(path for path in folder.rglob("*") if path.is_file()))
    return Report(folder, files, tuple(comparisons), tuple(answers), found.failures, notes)


def _prefixes(comparisons: Sequence[Comparison]) -> list[str]:
    """The models' names as beginnings of file names, no two alike."""
    prefixes: list[str] = []
    for comparison in comparisons:
        name = re.sub(r"[^A-Za-z0-9.]+", "-", comparison.name).strip("-.")[:60] or "model"
        prefixes.append(f"{name}-" if f"{name}-" not in prefixes else f"{name}-{len(prefixes) + 1}-")
    return prefixes


def _encoded(text: str) -> bytes:
    """UTF-8, with a question mark for half characters, which JSON can hold and file names too."""
    return text.encode("utf-8", "replace")


def _require_replaceable(folder: Path) -> None:
    """Refuse a folder with anything in it that this module did not write.

    Raises:
        UserError: It holds other files, or is a file.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"output {folder} is a file: name a folder that is empty or not there yet")
    page = folder / PAGE
    ours = page.is_file() and f'content="{GENERATOR}"' in _beginning(page)
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        known = name in (PAGE, MARKDOWN, CSV, FIGURES) or re.fullmatch(FIGURE, name)
        if not ours or not known:
            raise UserError(f"output folder {folder} holds other files ({name}): name another folder")


def _beginning(page: Path) -> str:
    with page.open(encoding="utf-8", errors="replace") as text:
        return text.read(1000)


@contextmanager
def _replaced(folder: Path) -> Iterator[Path]:
    """A temporary folder that takes the folder's place when the block has ended well, and goes if it has not.

    Raises:
        UserError: It cannot be made.
    """
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    former = folder.with_name(f".{folder.name}.{os.getpid()}.former.tmp")
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"output folder {folder} cannot be made: {error.strerror}") from None
    try:
        yield temporary
        _require_replaceable(folder)
        if folder.exists():
            folder.rename(former)
        try:
            temporary.rename(folder)
        except OSError:
            if former.exists():
                former.rename(folder)
            raise
        shutil.rmtree(former, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
