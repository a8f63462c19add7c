"""The one error that is the user's to mend, and how errors of others go into its one line."""


class UserError(Exception):
    """Something that the user asked for cannot be done as asked.

    The message is one line that names the wrong value and the way out. The command line prints it without a traceback
    and exits with status 2.
    """


def one_line(error: BaseException) -> str:
    """What an error says, in one line; its class where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__
