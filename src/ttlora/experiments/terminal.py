"""Lines on stderr, and below them, where it is a terminal, what is at work right now."""

from types import TracebackType
from typing import Self

from rich.console import Console, RenderableType
from rich.live import Live


class Terminal:
    """Prints lines above a part that changes; without a terminal there is no such part."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._live = Live(console=self._console, auto_refresh=False, transient=True)

    @property
    def is_terminal(self) -> bool:
        """Whether someone can see the part that changes."""
        return self._console.is_terminal

    def __enter__(self) -> Self:
        if self.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def say(self, line: str) -> None:
        """Print a line."""
        self._console.print(line, markup=False)

    def show(self, now: RenderableType) -> None:
        """Put this in the place of the part that changes."""
        self._live.update(now, refresh=True)
