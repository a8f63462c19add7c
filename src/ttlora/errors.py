"""The one error that is the user's to mend."""


class UserError(Exception):
    """Something that the user asked for cannot be done as asked.

    The message is one line that names the wrong value and the way out. The command line prints it without a traceback
    and exits with status 2.
    """
