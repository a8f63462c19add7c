"""The console that tables and prose are printed with."""

import os
import re
import sys
from typing import Any

from rich.console import Console
from rich.text import Text


class StdoutConsole(Console):
    """A console on stdout: no line ends in spaces, and where there is no terminal, prose is not broken into lines."""

    def __init__(self) -> None:
        super().__init__(highlight=False)

    def print(self, *objects: Any, **options: Any) -> None:
        """Print as `Console` does."""
        is_prose = all(isinstance(one, str | Text) for one in objects)
        has_width = self.is_terminal or "COLUMNS" in os.environ
        with self.capture() as captured:
            super().print(*objects, soft_wrap=is_prose and not has_width, **options)
        sys.stdout.write(re.sub(" +$", "", captured.get(), flags=re.MULTILINE))
