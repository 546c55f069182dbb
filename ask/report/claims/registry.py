"""The functions that evaluate claims, by the claims' ids."""

from collections.abc import Callable
from dataclasses import dataclass

from ask.report.claims.evidence import Evidence
from ask.report.claims.verdicts import Finding

Evaluate = Callable[[Evidence], Finding]


@dataclass(frozen=True)
class Claim:
    """How one claim is evaluated."""

    evaluate: Evaluate
    contradiction: str = ""
    """Where the paper's own tables contradict it: what they say, a full sentence."""


CLAIMS: dict[str, Claim] = {}


def claim(name: str, *, contradiction: str = "") -> Callable[[Evaluate], Evaluate]:
    """Register a function as the evaluation of claim ``name``."""

    def register(evaluate: Evaluate) -> Evaluate:
        assert name not in CLAIMS, name
        CLAIMS[name] = Claim(evaluate, contradiction)
        return evaluate

    return register
