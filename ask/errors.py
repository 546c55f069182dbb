"""The failures that a user can mend: each is one message with the place, the value and the fix."""


class AskError(Exception):
    """Base of this package's own errors; the command line prints them without a traceback."""


class DataError(AskError):
    """A data set is missing, damaged or not what it should be.

    The message names the file, what is wrong with it, what was expected and what to do about it.
    """
