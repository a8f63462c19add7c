"""The errors whose message is one line for the user, and how errors of others go into one line."""

import errno
import os
import re

LONGEST_LINE = 1000


class UserError(Exception):
    """Something that the user asked for cannot be done as asked.

    The message is one line that names the wrong value and the way out. Arguments stand in it in backticks, as in
    "`batch_size` is 0"; the command line shows them as flags, without a traceback, and exits with status 2.
    """


class RunError(Exception):
    """Something that began as asked could not be brought to its end.

    The message is one line. The command line prints it without a traceback and exits with status 1.
    """


def one_line(error: BaseException) -> str:
    """What an error says, in one line; its class where it says nothing."""
    return printable(str(error)) or type(error).__name__


def printable(text: str, longest: int = LONGEST_LINE) -> str:
    """Text as one line without what a terminal would obey, cut where it is very long.

    Args:
        text: Text, which may come from a file.
        longest: Where it is cut.
    """
    shown = "".join(sign if sign.isprintable() else " " for sign in text[: 4 * longest])
    line = " ".join(shown.split())
    return line if len(line) <= longest else line[: longest - 1] + "…"


def system_error(error: BaseException) -> OSError | None:
    """The error of the operating system that an error stands for; None if it stands for no such error.

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
    """Whether an error tells of too little memory: on a GPU it has a class of its own, elsewhere only a text."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and ("can't allocate memory" in str(error) or type(error).__name__ == "OutOfMemoryError")
    )
