"""Claims on mutual information (paper, III-b and App. A)."""

from ask.report.claims.evidence import Evidence, Measure, lowest
from ask.report.claims.registry import claim
from ask.report.claims.verdicts import Finding, judged, text_of

KEY = ("spread", "k", "classes", "form")


def _words(setting: tuple[float, int, int, str]) -> str:
    rho, k, classes, form = setting
    return f"rho = {rho:g}, K = {k}, C = {classes}, {form}"


@claim("C60")
def _(e: Evidence) -> Finding:
    information = e.by("proposition1", "spread", "k", "classes", metric="information")
    bounds = e.by("proposition1", *KEY, metric="bound")
    setting, gap = lowest({key: information[key[:3]] - bound for key, bound in bounds.items()})
    scaled = e.by("proposition1", "spread", "k", "classes", metric="scaled_bound")
    most = -lowest({key: information[key] - bound for key, bound in scaled.items()})[1]
    one_each = lowest(e.by("proposition1-classes", "classes", metric="gap"))
    why = (
        f"Smallest of {len(bounds)} Gaussian cases ({_words(setting)}), where negatives are independent draws, the "
        f"proposition's premise. With one reference set for each class, as in the ASK loss, it fails: "
        f"{text_of(one_each[1], 'nats')} at C = {one_each[0]}. With K(C-1) in place of C-1 it fails by "
        f"{text_of(most, 'nats')}."
    )
    return judged(_not_negative(gap), gap, unit="nats", why=why)


@claim("C61")
def _(e: Evidence) -> Finding:
    bounds = e.by("proposition1", *KEY, metric="bound")
    setting, excess = lowest({key: -bound for key, bound in bounds.items() if key[0] == 0})
    why = f"Smallest of L - log(C-1) where x and its references are independent ({_words(setting)})."
    return judged(_not_negative(excess), excess, unit="nats", why=why)


def _not_negative(measure: Measure) -> bool:
    """Above zero, or below it by less than the interval."""
    return measure.mean + (measure.ci95 or 0) >= 0
