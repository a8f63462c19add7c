"""Errors whose message is one line for the user, and how the errors of libraries are put into one line."""

import errno
import os
import re

LONGEST_LINE = 1000


class UserError(Exception):
    """The request cannot be carried out: a value is wrong, or something that it names is missing or in use.

    The message is one line that names the wrong value and the way out. Arguments stand in it in backticks, as in
    "`batch_size` is 0"; the command line shows them as flags, without a traceback, and exits with status 2.
    """


class RunError(Exception):
    """The work has begun and failed: the training diverged, memory or disk space ran out.

    The message is one line. The command line prints it without a traceback and exits with status 1.
    """


def one_line(error: BaseException) -> str:
    """An error's message in one line; the name of its class if it has no message."""
    return printable(str(error)) or type(error).__name__


def printable(text: str, longest: int = LONGEST_LINE) -> str:
    """Text as one line, without control characters, cut if it is very long.

    Args:
        text: Text, which may come from a file.
        longest: Where it is cut.
    """
    shown = "".join(sign if sign.isprintable() else " " for sign in text[: 4 * longest])
    line = " ".join(shown.split())
    return line if len(line) <= longest else line[: longest - 1] + "…"


def system_error(error: BaseException) -> OSError | None:
    """The error of the operating system behind an error; None if there is none.

    Libraries in Rust and C++ tell of a full disk in errors of their own.
    """
    if isinstance(error, OSError):
        return error
    if isinstance(error, UserError | RunError):
        return None
    text = str(error)
    if found := re.search(r"\(os error (\d+)\)", text):
        return OSError(int(found[1]), os.strerror(int(found[1])))
    if re.search(r"unexpected pos \d+ vs \d+|PytorchStreamWriter failed|iostream error", text):
        # torch does not say more of a file that could not be written whole
        return OSError(errno.EIO, "it could not be written whole; is the disk full?")
    return None


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means too little memory, of a GPU or of the machine."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and ("can't allocate memory" in str(error) or type(error).__name__ == "OutOfMemoryError")
    )
