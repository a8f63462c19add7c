"""Rows in a file that is mapped into memory, so that a data set may be larger than that."""

import mmap
import os
import secrets
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload

import numpy as np

from ttlora.errors import RunError, one_line

if TYPE_CHECKING:
    from datasets import Dataset

Item = TypeVar("Item")

# how many rows are held as Python objects, which take ten times what they take in a file, until they are written
ROWS_AT_ONCE = 100


class Stored(Sequence[Item]):
    """Items that are made of stored rows when they are looked at.

    Args:
        rows: What `store` returned, or rows chosen of it.
        make: Makes an item of a row.
    """

    def __init__(self, rows: "Dataset", make: Callable[[dict[str, Any]], Item]) -> None:
        self._rows, self._make = rows, make

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> "Stored[Item]": ...
    def __getitem__(self, index: int | slice) -> "Item | Stored[Item]":
        if isinstance(index, slice):
            return Stored(self._rows.select(range(*index.indices(len(self)))), self._make)
        return self._make(self._rows[index])

    def __iter__(self) -> Iterator[Item]:
        return map(self._make, self._rows)


def store(rows: Iterable[Mapping[str, Any]]) -> "Dataset":
    """Write rows to a temporary file, as they come, and map it into memory.

    The file has no name, and is gone when nobody looks at it any more, or when the process dies. A copy of the data set
    that is sent to another process holds the rows themselves.

    Args:
        rows: At least one; all have the columns of the first, of the same types.

    Raises:
        RunError: The disk has no room for them.
    """
    import pyarrow
    from datasets import Dataset

    remaining = iter(rows)
    first = next(remaining)
    schema = pyarrow.schema([(name, _type_of(value)) for name, value in first.items()])
    remaining = chain([first], remaining)
    folder = _folder()
    with _telling_of_room(folder), tempfile.TemporaryFile(dir=folder) as file:
        stream = pyarrow.ipc.new_stream(file, schema)
        while some := list(islice(remaining, ROWS_AT_ONCE)):
            stream.write_batch(pyarrow.RecordBatch.from_pylist(some, schema))
        stream.close()
        file.flush()
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    table = pyarrow.ipc.open_stream(pyarrow.py_buffer(mapped)).read_all()
    # of a fingerprint of its content, all of it would be read
    return Dataset(table, fingerprint=secrets.token_hex(8))


def lengths_of(rows: "Dataset") -> np.ndarray:
    """How many token ids each row has that `store` returned; of a row with several sequences, its longest."""
    import pyarrow.compute

    ids = rows.data.column("input_ids")
    counts: np.ndarray = pyarrow.compute.list_value_length(ids).to_numpy()
    if not pyarrow.types.is_list(ids.type.value_type):
        return counts
    of_sequences = pyarrow.compute.list_value_length(pyarrow.compute.list_flatten(ids)).to_numpy()
    longest: np.ndarray = np.maximum.reduceat(of_sequences, np.cumsum(counts) - counts)
    return longest


def order_of_lengths(rows: "Dataset") -> np.ndarray:
    """The indices of the rows, sorted by length, so that batches need little padding."""
    return np.argsort(lengths_of(rows), kind="stable")


def by_length(rows: "Dataset") -> "Dataset":
    """The rows sorted by length."""
    return rows.select(order_of_lengths(rows))


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder where stored rows are, for files with a name; it is removed in the end."""
    with tempfile.TemporaryDirectory(prefix="ttlora-", dir=_folder(), ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def _folder() -> str:
    """Where `datasets` keeps what it reads, or else where temporary files are."""
    from datasets import config

    folder = str(config.HF_DATASETS_CACHE)
    with suppress(OSError):
        os.makedirs(folder, exist_ok=True)
    return folder if os.access(folder, os.W_OK | os.X_OK) else tempfile.gettempdir()


@contextmanager
def _telling_of_room(folder: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(
            f"{folder} does not take the rows ({error.strerror or one_line(error)}): make room there, or name another "
            "folder with the variable HF_DATASETS_CACHE"
        ) from error


def _type_of(value: Any) -> Any:
    """The type of a column, of which a row holds this value; whole numbers in lists are token ids and the like."""
    import pyarrow

    if isinstance(value, list | tuple):
        inner = value[0] if value else 0
        return pyarrow.list_(pyarrow.int32() if isinstance(inner, int) else _type_of(inner))
    if isinstance(value, dict):
        return pyarrow.struct([(name, _type_of(of)) for name, of in value.items()])
    return {int: pyarrow.int64(), float: pyarrow.float64(), str: pyarrow.large_string()}[type(value)]
