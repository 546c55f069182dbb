"""Settings that stored evidence was measured with, in today's form.

Records outlive the code that wrote them: a format that has changed is translated here, and a field that is missing
means the behaviour of its time.
"""

from collections.abc import Mapping
from typing import Any


def current(job: Mapping[str, Any]) -> dict[str, Any]:
    """The job of a stored record as a plan of today would hold it."""
    return dict(job)
