"""The failures that a user can mend: each is one message with the place, the value and the fix."""


class AskError(Exception):
    """Base of this package's own errors; the command line prints them without a traceback."""
