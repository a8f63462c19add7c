"""Rows from JSONL, CSV and Parquet files, each with its place for messages."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from ttlora.errors import UserError, one_line

Row = dict[str, Any]


def read_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """The rows of a file, each with its place for messages ("line 7"); the format follows from the name's ending.

    Raises:
        UserError: The file is not there, is empty or malformed, or has another ending.
    """
    readers = {".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}
    if path.suffix not in readers:
        raise UserError(f"{path}: cannot tell the format; the name has to end in {', '.join(readers)}")
    if not path.is_file():
        raise UserError(f"{path} is not there" if not path.exists() else f"{path} is no file")
    empty = True
    try:
        for place, row in readers[path.suffix](path):
            empty = False
            yield place, row
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from None
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
                row = json.loads(line)
            except ValueError as error:
                raise UserError(f"{path}, line {number} is no JSON: {error}") from None
            if not isinstance(row, dict):
                raise UserError(f"{path}, line {number} is no JSON object but {shown(row)}")
            yield f"line {number}", row


def _read_csv(path: Path) -> Iterator[tuple[str, Row]]:
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines, strict=True)
        try:
            for row in reader:
                place = f"line {reader.line_num}"
                if None in row or None in row.values():
                    fields = len(reader.fieldnames or ())
                    raise UserError(f"{path}, {place} has not the {fields} fields that the first line names")
                yield place, row
        except csv.Error as error:
            raise UserError(f"{path}, line {reader.line_num} is no CSV: {error}") from None


def _read_parquet(path: Path) -> Iterator[tuple[str, Row]]:
    try:
        frame = pd.read_parquet(path, dtype_backend="pyarrow")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is no Parquet file: {one_line(error)}") from None
    rows = frame.astype(object).where(frame.notna(), None).to_dict("records")
    for number, row in enumerate(rows, 1):
        yield f"row {number}", {str(column): value for column, value in row.items()}


def shown(value: object) -> str:
    """A value for a message, cut if it is long."""
    return "nothing" if value is None else f"{value!r:.40}"
