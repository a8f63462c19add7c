"""Files and folders that appear whole or not at all, whatever happens while they are written."""

import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ttlora.errors import RunError, UserError, one_line, system_error

# what a killed process may leave in a folder; nobody is troubled by it
HALF_WRITTEN = (".ttlora-", ".tmp")


def write_text(path: Path, text: str) -> None:
    """Replace a file's content by UTF-8 text; lone surrogates are written as JSON escapes.

    Raises:
        RunError: The file cannot be written.
    """
    temporary = path.with_name(path.name + ".tmp")
    with writing(path, temporary):
        try:
            temporary.write_text(text, "utf-8", errors="backslashreplace")
            os.replace(temporary, path)
        except BaseException:
            if temporary.is_file():
                temporary.unlink()
            raise


def write_json(path: Path, content: Any) -> None:
    """Write JSON.

    Raises:
        RunError: The file cannot be written.
        ValueError: A number is not finite, for which JSON has no form.
    """
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@contextmanager
def writing(output: Path, temporary: Path | None = None) -> Iterator[None]:
    """Turn errors of the system and of libraries about an output that cannot be written into one line.

    Args:
        output: The file or folder that the user named.
        temporary: What is written in its place; an error of the system that names anything else stays as it is.

    Raises:
        RunError: It could not be written.
    """
    try:
        yield
    except Exception as error:
        cause = system_error(error)
        if cause is None or not _is_about(cause, temporary or output):
            raise
        raise RunError(f"{output} cannot be written to: {cause.strerror or one_line(cause)}") from error


def _is_about(error: OSError, temporary: Path) -> bool:
    if not isinstance(error.filename, str):
        return True
    return Path(error.filename).is_relative_to(temporary)


def require_writable(output: str | Path) -> Path:
    """The path of an output, if it can be made, or is there and can be written.

    Raises:
        UserError: It cannot.
    """
    if not str(output):
        raise UserError("`output` is empty: name a folder that is empty or not there yet")
    path = Path(os.path.expanduser(output))
    try:
        if ".." in path.parts:
            path = path.resolve()  # "new/../out" would need a folder that nobody wants
        with suppress(FileNotFoundError, NotADirectoryError):
            path.lstat()
        if path.is_symlink() and not path.exists():
            raise UserError(f"output {path} is a link to nothing: name a folder that is empty or not there yet")
        there = _nearest(path)
        if there.is_dir():
            # permissions do not tell of a folder that takes nothing
            probe = there / _hidden_name()
            probe.mkdir()
            probe.rmdir()
        elif there != path.absolute():
            raise UserError(f"output {path} cannot be made: {there} is no folder")
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"output {path} cannot be made: {getattr(error, 'strerror', None) or error}") from None
    return path


def require_free(output: str | Path) -> Path:
    """The path of an output folder that is not there yet, or is empty, and can be made.

    Raises:
        UserError: It holds something, or is a file, or cannot be made.
    """
    path = require_writable(output)
    if path.is_dir():
        if content := names_in(path):
            raise UserError(f"output folder {path} holds other files ({content[0]}): name another folder")
    elif path.exists():
        raise UserError(f"output {path} is a file: name a folder that is empty or not there yet")
    return path


def names_in(folder: Path) -> list[str]:
    """The names in a folder, without what a killed process has left half written.

    Raises:
        UserError: The folder cannot be read.
    """
    begin, end = HALF_WRITTEN
    try:
        return sorted(name for name in os.listdir(folder) if not (name.startswith(begin) and name.endswith(end)))
    except OSError as error:
        raise UserError(f"folder {folder} cannot be read: {error.strerror}") from None


@contextmanager
def whole_folder(
    output: str | Path, last: str, require_usable: Callable[[str | Path], object] = require_free
) -> Iterator[Path]:
    """A hidden folder to write to, whose content stands in ``output`` when the block has ended well.

    It takes the place of a folder that is not there. A folder that is there is kept, since it may be the current one, a
    link or a mount point, and what it holds is replaced. If the block fails, nothing has changed.

    Args:
        output: The folder.
        last: The file that makes the folder a whole one; it is the last to appear in it.
        require_usable: Refuses a folder whose content must not be replaced; called before and after the block.

    Raises:
        UserError: `require_usable` refuses the folder.
        RunError: It cannot be written.
    """
    require_usable(output)
    path = Path(os.path.expanduser(output))
    target = path.resolve()
    home = _nearest(target)
    temporary = home / _hidden_name()
    try:
        with writing(path, temporary):
            temporary.mkdir()
            yield temporary
            require_usable(output)
            if home == target:
                _replace_content(target, temporary, last)
            else:
                _move(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _hidden_name() -> str:
    return secrets.token_hex(4).join(HALF_WRITTEN)


def _nearest(path: Path) -> Path:
    """The path itself, or the first above it that is there."""
    path = path.absolute()
    return next(place for place in (path, *path.parents) if place.exists() or place.is_symlink())


def _move(folder: Path, target: Path) -> None:
    missing = [parent for parent in target.parents if not parent.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder.rename(target)
    except BaseException:
        for parent in missing:
            with suppress(OSError):
                parent.rmdir()
        raise


def _replace_content(folder: Path, temporary: Path, last: str) -> None:
    former = temporary / _hidden_name()
    former.mkdir()
    fresh = sorted(names_in(temporary), key=lambda name: name == last)
    # the file that makes the former content whole is the first to go
    stale = sorted(names_in(folder), key=lambda name: name != last)
    done: list[tuple[Path, Path]] = []
    try:
        for names, source, place in ((stale, folder, former), (fresh, temporary, folder)):
            for name in names:
                done.append((source / name, place / name))
                (source / name).rename(place / name)
    except BaseException:
        for before, after in reversed(done):
            with suppress(FileNotFoundError):  # the last may not have moved
                after.rename(before)
        raise
