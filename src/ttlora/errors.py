"""The errors whose message is one line for the user, and how errors of others go into one line."""


class UserError(Exception):
    """Something that the user asked for cannot be done as asked.

    The message is one line that names the wrong value and the way out. The command line prints it without a traceback
    and exits with status 2.
    """


class RunError(Exception):
    """Something that began as asked could not be brought to its end.

    The message is one line. The command line prints it without a traceback and exits with status 1.
    """


def one_line(error: BaseException) -> str:
    """What an error says, in one line; its class where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__
