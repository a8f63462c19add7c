"""JSON from outside: a key that an object has twice is a mistake, and no choice of the last one."""

from collections.abc import Iterable
from typing import Any

from ttlora.values import shown


class RepeatedKeyError(ValueError):
    """An object has a key more than once."""

    def __init__(self, key: str) -> None:
        self.key = key
        super().__init__(f"it has the key {shown(key)} twice")


def each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object from its pairs, for ``object_pairs_hook`` of ``json``.

    Args:
        pairs: Keys with values, as they stand in the file.

    Raises:
        RepeatedKeyError: A key stands there more than once.
    """
    values = dict(pairs)
    if len(values) < len(pairs):
        raise RepeatedKeyError(str(repeated(key for key, _ in pairs)))
    return values


def repeated(names: Iterable[str]) -> str | None:
    """The first name that occurs a second time; None: all names differ."""
    seen: set[str] = set()
    return next((name for name in names if name in seen or seen.add(name)), None)  # type: ignore[func-returns-value]
