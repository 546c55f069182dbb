"""Claims on mutual information (paper, III-b and App. A)."""

from ask.claims.evidence import Evidence, lowest, worded
from ask.claims.registry import claim
from ask.claims.verdicts import Finding, judged


@claim("C60")
def _(e: Evidence) -> Finding:
    setting, least = lowest(e.by("proposition1", "select", metric="gap"))
    return judged(least.mean + 3 * (least.ci95 or 0) >= 0, least, unit="nats", why=worded(setting))


@claim("C61")
def _(e: Evidence) -> Finding:
    setting, least = lowest(e.by("proposition1", "select", metric="gap"))
    return judged(least.mean >= 0, least, unit="nats", why=worded(setting))
