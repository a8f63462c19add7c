"""Find finished runs, failed runs and unreadable records under files and folders."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from ttlora.errors import UserError, printable
from ttlora.record import Record
from ttlora.values import is_number

RESULT = "result.json"
FAILED = "failed.json"
LOG = "log.jsonl"
MOST_BYTES = 50 * 2**20
MOST_OF_A_LINE = 300
# means, spreads and the axes of figures can be computed of numbers up to here
LARGEST_NUMBER = 1e100


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        record: Its result record.
        path: The record's file.
        modified: When the file was last written, in seconds.
        log: Entries of the log beside it, oldest first; empty where there is none.
    """

    record: Record
    path: Path
    modified: float
    log: tuple[Mapping[str, float], ...] = ()


@dataclass(frozen=True)
class Failure:
    """A run that did not come to its end, with its names, its error and its folder as one line each."""

    method: str
    model: str
    task: str
    seed: str
    error: str
    folder: str


@dataclass(frozen=True)
class Found:
    """All that was found.

    Attributes:
        runs: Finished runs.
        failures: Failed runs.
        damaged: One line for each file that could not be read.
    """

    runs: tuple[Run, ...]
    failures: tuple[Failure, ...]
    damaged: tuple[str, ...]


def find_runs(results: Sequence[str | Path]) -> Found:
    """Read every result record that the user names.

    Args:
        results: Result records, or folders that are searched for them.

    Raises:
        UserError: One of `results` is not there, or no record can be read.
    """
    runs: list[Run] = []
    failures: list[Failure] = []
    damaged: list[str] = []
    for path in _find_files(results):
        try:
            if path.name == FAILED:
                failures.append(_read_failure(path))
                continue
            _require_small(path)
            record, modified = Record.read(path), path.stat().st_mtime
            _require_drawable(path, record)
        except (OSError, ValueError, RecursionError) as error:
            damaged.append(
                printable(str(error) if isinstance(error, ValueError) else f"{path}: {error}", MOST_OF_A_LINE)
            )
            continue
        try:
            log = _read_log(path.with_name(LOG))
        except (OSError, ValueError, RecursionError) as error:
            damaged.append(
                printable(f"{path.with_name(LOG)} is no log of a run, so there is no curve: {error}", MOST_OF_A_LINE)
            )
            log = ()
        runs.append(Run(record, path, modified, log))
    if not runs:
        raise UserError(_nothing(results, failures, damaged))
    return Found(tuple(runs), tuple(failures), tuple(damaged))


def is_drawable(value: object) -> TypeGuard[int | float]:
    """Whether a value is a number that can be drawn."""
    return is_number(value) and abs(value) <= LARGEST_NUMBER


def _require_drawable(path: Path, record: Record) -> None:
    numbers = {"validation_loss": record.validation_loss, "train_seconds": record.train_seconds}
    for name, value in {**record.metrics, **numbers, "seconds_per_step": record.seconds_per_step}.items():
        if not is_drawable(value):
            raise ValueError(f"{path} is no result record: {name}={value!r} is more than any run measures")


def _find_files(results: Sequence[str | Path]) -> Iterator[Path]:
    """Records and failures, each once, without failures that have a record beside them: a later run succeeded."""
    seen = set()
    for name in results:
        path = Path(os.path.expanduser(name))
        if not path.exists():
            raise UserError(f"{name} is not there: name result.json files, or folders that hold them")
        for file in [path] if path.is_file() else _search(path):
            if file.resolve() not in seen:
                seen.add(file.resolve())
                yield file


def _search(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        folders.sort()
        if RESULT in files:
            yield Path(parent, RESULT)
        elif FAILED in files:
            yield Path(parent, FAILED)


def _require_small(path: Path) -> None:
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise ValueError(f"{path} has {size:,} bytes, and a run of ttlora writes {MOST_BYTES:,} at most")


def _read_failure(path: Path) -> Failure:
    _require_small(path)
    try:
        content = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} tells of no failed run: {error}") from None
    if not isinstance(content, dict) or not {"method", "model", "task", "seed", "error"} <= content.keys():
        raise ValueError(f"{path} tells of no failed run: it needs method, model, task, seed and error")
    method = content.get("label") or content["method"]
    values = (method, *(content[key] for key in ("model", "task", "seed", "error")), path.parent)
    return Failure(*(printable(str(value), MOST_OF_A_LINE) for value in values))


def _read_log(path: Path) -> tuple[Mapping[str, float], ...]:
    if not path.is_file():
        return ()
    _require_small(path)
    entries = [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]
    for entry in entries:
        if not isinstance(entry, dict) or not is_drawable(entry.get("epoch")):
            raise ValueError(f"{printable(str(entry), 60)} names no epoch")
    return tuple(_numbers(entry) for entry in entries)


def _numbers(entry: Mapping[str, Any]) -> Mapping[str, float]:
    return {name: value for name, value in entry.items() if is_drawable(value)}


def _nothing(results: Iterable[str | Path], failures: Sequence[Failure], damaged: Sequence[str]) -> str:
    where = ", ".join(map(str, results))
    if damaged:
        return (
            damaged[0]
            if damaged[0].startswith(f"{where} ")
            else f"no result record in {where} can be read: {damaged[0]}"
        )
    if failures:
        first = failures[0]
        return (
            f"all {len(failures)} runs in {where} failed, the first ({first.method}, {first.task}) with: {first.error}"
        )
    return f"there is no {RESULT} in {where}: name the output folders of ttlora train, compare or search"
