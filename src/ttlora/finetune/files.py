"""Rows from JSONL, CSV and Parquet files, each with its place for messages."""

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ttlora.errors import UserError, one_line
from ttlora.strict_json import RepeatedKeyError, each_key_once, repeated
from ttlora.utf8 import read_utf8
from ttlora.values import shown

Row = dict[str, Any]

# what a C long holds everywhere
LONGEST_FIELD = 2**31 - 1


def read_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """The rows of a file, each with its place for messages ("line 7"); the format follows from the name's ending.

    Cells of JSONL and Parquet have types, and those of CSV are text. What is missing is None, NaN among it.

    Raises:
        UserError: The file is not there, is empty or malformed, has two columns of one name, or has another ending.
    """
    readers = {".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}
    if path.suffix not in readers:
        raise UserError(f"{path}: cannot tell the format; the name has to end in {', '.join(readers)}")
    # unlike Path's, these take a name that is too long for a path as none
    if not os.path.isfile(path):
        raise UserError(f"{path} is no file" if os.path.lexists(path) else f"{path} is not there")
    empty = True
    try:
        for place, row in readers[path.suffix](path):
            empty = False
            yield place, row
    except UnicodeDecodeError:
        try:
            read_utf8(path)
        except ValueError as error:
            raise UserError(f"{path} is not UTF-8 text: {error}") from None
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    if empty:
        raise UserError(f"{path} has no rows")


def _read_jsonl(path: Path) -> Iterator[tuple[str, Row]]:
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line, object_pairs_hook=each_key_once, parse_constant=_constant)
            except RecursionError:
                raise UserError(f"{path}, line {number} is nested too deeply") from None
            except RepeatedKeyError as error:
                raise UserError(f"{path}, line {number} has the key {shown(error.key)} twice") from None
            except ValueError as error:
                raise UserError(f"{path}, line {number} is no JSON: {error}") from None
            if not isinstance(row, dict):
                raise UserError(f"{path}, line {number} is no JSON object but {shown(row)}")
            yield f"line {number}", row


def _constant(name: str) -> float | None:
    return None if name == "NaN" else float(name)


def _read_csv(path: Path) -> Iterator[tuple[str, Row]]:
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.reader(lines, strict=True)
        header: list[str] = []
        try:
            while (fields := _next_record(reader)) is not None:
                place = f"line {reader.line_num}"
                if not header:
                    header = _columns(path, fields)
                elif len(fields) != len(header):
                    raise UserError(f"{path}, {place} has not the {len(header)} fields that the first line names")
                else:
                    yield place, dict(zip(header, fields, strict=True))
        except csv.Error as error:
            raise UserError(f"{path}, line {reader.line_num} is no CSV: {error}") from None


def _next_record(reader: Any) -> list[str] | None:
    """The next record that is not an empty line, with fields of any length; None at the end."""
    # the limit is the whole process's, and others may count on it
    limit = csv.field_size_limit(LONGEST_FIELD)
    try:
        return next((record for record in reader if record), None)
    finally:
        csv.field_size_limit(limit)


def _read_parquet(path: Path) -> Iterator[tuple[str, Row]]:
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            # pandas writes the index of its rows as such a column
            names = [name for name in file.schema_arrow.names if not name.startswith("__index_level_")]
            names = _columns(path, names)
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield f"row {number}", {name: None if row[name] != row[name] else row[name] for name in names}
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{path} is no Parquet file: {one_line(error)}") from None


def _columns(path: Path, names: list[str]) -> list[str]:
    """The names of a file's columns, after checking that they differ."""
    if (name := repeated(names)) is not None:
        raise UserError(f"{path} has two columns called {name!r}: rename one, or take it out")
    if "\0" in "".join(names):
        raise UserError(f"{path} is not UTF-8 text: the names of its columns hold zero bytes, as in UTF-16")
    return names
