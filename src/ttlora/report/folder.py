"""The folder of a report: an earlier report in it is replaced as a whole, anything else is refused."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ttlora.errors import UserError
from ttlora.report.drawing import Picture
from ttlora.report.template import GENERATOR
from ttlora.whole_files import names_in, whole_folder

PAGE = "report.html"
MARKDOWN = "tables.md"
CSV = "tables.csv"
FIGURES = "figures"


@dataclass(frozen=True)
class ReportFolder:
    """Where a report goes.

    Args:
        path: A folder that is not there yet, is empty, or holds an earlier report and nothing else.
        figure_names: What the figures of such a report can be called, after a prefix that ends in a hyphen.
    """

    path: Path
    figure_names: tuple[str, ...]

    def require_replaceable(self) -> None:
        """Refuse a folder with anything in it that no report of this kind has written.

        Raises:
            UserError: It holds other files, or is a file.
        """
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise UserError(f"output {self.path} is a file: name a folder that is empty or not there yet")
        items = [self.path / name for name in names_in(self.path)]
        figure = rf"{FIGURES}/([^/]+-)?({'|'.join(self.figure_names)})\.(svg|png)"
        page = self.path / PAGE
        ours = page.is_file() and f'content="{GENERATOR}"' in _beginning(page)
        for path in (path for item in items for path in (item, *sorted(item.rglob("*")))):
            name = path.relative_to(self.path).as_posix()
            known = name in (PAGE, MARKDOWN, CSV, FIGURES) or re.fullmatch(figure, name)
            if not ours or not known:
                raise UserError(f"output folder {self.path} holds other files ({name}): name another folder")

    def write(self, page: str, markdown: str, csv: str, pictures: Sequence[Picture]) -> tuple[Path, ...]:
        """Write all files of a report; they appear together or not at all.

        Returns:
            The files.

        Raises:
            UserError: The folder holds other files, or cannot be made.
            RunError: The folder cannot be written.
        """
        with whole_folder(self.path, PAGE, lambda _: self.require_replaceable()) as folder:
            for name, text in ((PAGE, page), (MARKDOWN, markdown), (CSV, csv)):
                # a question mark for half characters, which JSON can hold and file names too
                (folder / name).write_bytes(text.encode("utf-8", "replace"))
            (folder / FIGURES).mkdir()
            for picture in pictures:
                (folder / FIGURES / f"{picture.name}.svg").write_text(picture.svg, "utf-8")
                (folder / FIGURES / f"{picture.name}.png").write_bytes(picture.png)
        return tuple(sorted(path for path in self.path.rglob("*") if path.is_file()))


def _beginning(page: Path) -> str:
    with page.open(encoding="utf-8", errors="replace") as text:
        return text.read(1000)
