"""The one exception of this package that users meet."""

from ask.errors import AskError


class DataError(AskError):
    """A data set is missing, damaged or not what it should be.

    The message names the file, what is wrong with it, what was expected and what to do about it.
    """


class NotFoundError(DataError):
    """A place does not hold a file; the next place may."""


class DigestError(DataError):
    """A file's size or digest is not the expected one."""
