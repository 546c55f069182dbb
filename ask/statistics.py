"""Statistics over trials."""

import statistics
from collections.abc import Iterable
from typing import Any


def summarise(values: Iterable[float]) -> dict[str, Any]:
    """Mean and half width of the 95 % t-interval over trials (none for a single trial)."""
    trials = [float(a) for a in values]
    ci95 = None
    if len(trials) > 1:
        from scipy.special import stdtrit

        ci95 = float(stdtrit(len(trials) - 1, 0.975) * statistics.stdev(trials) / len(trials) ** 0.5)
    return {"mean": statistics.fmean(trials), "ci95": ci95, "trials": trials}
