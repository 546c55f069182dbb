"""Claims on what withstands the attack, and on raw pixels (paper, VI-A-f and g, App. G)."""

from ask.report.claims.evidence import Evidence, Measure
from ask.report.claims.registry import claim
from ask.report.claims.verdicts import Finding, judged, near, text_of

POINTS = 5.0
"""How near a share or accuracy must come to the paper's, in points."""


def _group(e: Evidence, group: str, metric: str, printed: float) -> Finding:
    """A measure of failures or successes; the direction is that failures lie above successes."""
    own = e.get("failures", metric=f"{group}.{metric}")
    other = e.get("failures", metric=f"{'successes' if group == 'failures' else 'failures'}.{metric}")
    gap = own - other if group == "failures" else other - own
    within = POINTS
    why = f"Failures minus successes: {text_of(gap)}. Judged within {within:g} points of {printed:g}."
    return judged(abs(own.mean - printed) <= within, own, unit="%", direction=gap.surely_positive, why=why)


@claim("C22")
def _(e: Evidence) -> Finding:
    return _group(e, "failures", "confidence_1", 86.89)


@claim("C23")
def _(e: Evidence) -> Finding:
    return _group(e, "successes", "confidence_1", 22.91)


@claim("C24")
def _(e: Evidence) -> Finding:
    return _group(e, "failures", "confidence_95", 93.57)


@claim("C25")
def _(e: Evidence) -> Finding:
    return _group(e, "successes", "confidence_95", 33.88)


def _gap(e: Evidence, group: str, printed: float) -> Finding:
    failures, successes = (e.get("failures", metric=f"{g}.similarity_gap") for g in ("failures", "successes"))
    own = failures if group == "failures" else successes
    direction = (failures - successes).surely_positive
    ratio = failures.mean / successes.mean if successes.mean else float("inf")
    why = f"The failures' gap is {ratio:.1f} times the successes' (paper: 3.0). Judged within 20 % of {printed:g}."
    return judged(abs(own.mean - printed) <= 0.2 * printed, own, unit="(×100)", direction=direction, why=why)


@claim("C26")
def _(e: Evidence) -> Finding:
    return _gap(e, "failures", 15.55)


@claim("C27")
def _(e: Evidence) -> Finding:
    return _gap(e, "successes", 5.19)


def _raw_clean(e: Evidence, dataset: str, k: int, printed: float) -> Finding:
    return near(
        e.get("table05", dataset=dataset, classifier_k=k, metric="dknn_clean_accuracy"), printed, within=1, unit="%"
    )


@claim("C28")
def _(e: Evidence) -> Finding:
    return _raw_clean(e, "mnist", 5, 95.5)


@claim("C29")
def _(e: Evidence) -> Finding:
    return _raw_clean(e, "fashion_mnist", 5, 82.3)


@claim("C30")
def _(e: Evidence) -> Finding:
    return _raw_clean(e, "mnist", 10, 94)


@claim("C31", contradiction="No reference-set size puts K = 10 above K = 5 as the two printed values do.")
def _(e: Evidence) -> Finding:
    return _raw_clean(e, "fashion_mnist", 10, 85)


def _degradation(e: Evidence, dataset: str, printed: float) -> Finding:
    def loss(k: int) -> Measure:
        clean = e.get("table05", dataset=dataset, classifier_k=k, metric="dknn_clean_accuracy")
        return clean - e.get("table05", dataset=dataset, classifier_k=k, eps=60)

    found = {k: loss(k) for k in (5, 10)}
    _, nearest = min(found.items(), key=lambda item: abs(item[1].mean - printed))
    why = " and ".join(f"{text_of(m)} at K = {k}" for k, m in found.items())
    return near(nearest, printed, within=POINTS, why=f"{why}; the nearer is judged.")


@claim("C32")
def _(e: Evidence) -> Finding:
    return _degradation(e, "mnist", 25)


@claim("C33")
def _(e: Evidence) -> Finding:
    return _degradation(e, "fashion_mnist", 40)
