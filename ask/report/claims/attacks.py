"""Claims on ASK-Atk against its rivals, its variants and its settings (paper, VI-A and App. D and E)."""

import statistics
from typing import Any

from ask.report.claims.evidence import Evidence, Measure, across, highest, lowest, worded
from ask.report.claims.registry import claim
from ask.report.claims.verdicts import Finding, at_least, at_most, judged, near, negative, positive, text_of, wins

BOTH = ("cifar10", "imagenette")
ASK = {"attack": "ask", "variant": "non-targeted"}
RIVALS = ({"attack": "advknn", "variant": ""}, {"attack": "dknn", "variant": "adam"})
"""The paper's rivals."""
WITH_SIGN = (*RIVALS, {"attack": "dknn", "variant": "sign"})
"""And DkNN-Atk by sign-PGD, which is ours."""
TAUS = {"τ = 0.03": 0.03, "τ = 0.3": 0.3, "τ = 3": 3.0, "τ = 30": 30.0}
"""Lines of Figure 4, left."""


def margins(e: Evidence, artifact: str, *by: str, rivals: Any = RIVALS, **wanted: Any) -> dict[Any, Measure]:
    """The best rival's accuracy minus ASK-Atk's, in every setting."""
    ask = e.by(artifact, *by, **ASK, **wanted)
    others = [e.by(artifact, *by, **rival, **wanted) for rival in rivals]
    return {setting: lowest({i: o[setting] for i, o in enumerate(others)})[1] - own for setting, own in ask.items()}


def _smallest_margin(e: Evidence, artifact: str, *by: str, why: str = "") -> Finding:
    setting, least = lowest(margins(e, artifact, *by))
    stricter, still = lowest(margins(e, artifact, *by, rivals=WITH_SIGN))
    sign = f"With DkNN-Atk by sign-PGD among the rivals: {text_of(still)} ({worded(stricter)})."
    return at_least(least, 13, why=f"Smallest at {worded(setting)}. {why}{sign}")


@claim("C01")
def _(e: Evidence) -> Finding:
    return _smallest_margin(e, "table01", "similarity", "dknn_layers")


@claim("C02", contradiction="Table 2 prints a smallest margin of 3.2 points at eps = 4/255; 13 holds at 8/255 alone.")
def _(e: Evidence) -> Finding:
    at_8 = lowest(margins(e, "table02", "dknn_layers", dataset="imagenette", eps=8))[1]
    return _smallest_margin(e, "table02", "eps", "dknn_layers", why=f"At eps = 8/255 alone: {text_of(at_8)}. ")


@claim("C09")
def _(e: Evidence) -> Finding:
    return wins(margins(e, "table01", "similarity", "dknn_layers"))


@claim("C10")
def _(e: Evidence) -> Finding:
    return wins(margins(e, "table02", "eps", "dknn_layers"))


@claim("C11", contradiction="Table 2 prints Conv 3 at 7.7 points above Conv 4 for Imagenette at eps = 8/255.")
def _(e: Evidence) -> Finding:
    def rise(artifact: str, by: str) -> dict[Any, Measure]:
        three, four = (e.by(artifact, by, dknn_layers=layer, **ASK) for layer in ("conv3", "conv4"))
        return {(artifact, setting): three[setting] - four[setting] for setting in three}

    setting, most = highest(e.together(lambda: rise("table01", "similarity"), lambda: rise("table02", "eps")))
    return judged(most.mean <= 0, most, why=f"Largest of Conv 3 minus Conv 4, at {worded(setting)}.")


@claim("C12")
def _(e: Evidence) -> Finding:
    linear = []
    for layer in ("conv4", "conv3"):
        line = e.by("figure1-left", "eps", dknn_layers=layer, **ASK)
        r2 = statistics.correlation(list(line), [each.mean for each in line.values()]) ** 2
        linear.append(f"{r2:.2f} on {worded(layer)}")
    why = f"Accuracy falls linearly in eps with R² = {' and '.join(linear)}. Points where ASK-Atk is lowest:"
    return wins(margins(e, "figure1-left", "dknn_layers", "eps"), why=why)


@claim("C13")
def _(e: Evidence) -> Finding:
    layers = ("conv3+conv4", "conv1+conv2+conv3+conv4+conv5")
    two, five = (e.get("table03", dknn_layers=each, k_in=5) for each in layers)
    why = f"{text_of(five - two)} from Conv 3, 4. Judged on that difference: at most 3 points."
    return judged((five - two).mean <= 3, five, unit="%", why=why)


@claim("C14")
def _(e: Evidence) -> Finding:
    tau, best = lowest({tau: e.get("figure4", line=line, classifier_k=5) for line, tau in TAUS.items()})
    others = {other: e.get("figure4", line=line, classifier_k=5) - best for line, other in TAUS.items() if other != tau}
    runner_up, gap = lowest(others)
    why = f"Among those of Figure 4 at K = 5; τ = {runner_up:g} is next, {text_of(gap)} above."
    return Finding("reproduced" if tau == 0.03 else "not reproduced", f"τ = {tau:g}", tau, None, why)


@claim("C15")
def _(e: Evidence) -> Finding:
    lines = {tau: list(e.by("figure4", "classifier_k", line=line).values()) for line, tau in TAUS.items()}
    spread = across([m for line in lines.values() for m in line], lambda values: max(values) - min(values))
    over_k = across(lines[0.03], lambda values: max(values) - min(values))
    why = f"Range over all K and τ; over K at τ = 0.03: {text_of(over_k)}. Small: at most 15 (the paper's axis) and 5."
    return judged(spread.mean <= 15 and over_k.mean <= 5, spread, why=why)


@claim("C16")
def _(e: Evidence) -> Finding:
    wanted = {"similarity": "cosine", "dknn_layers": "conv4"}
    rival = lowest({i: e.get("table01", **wanted, **each) for i, each in enumerate(RIVALS)})[1]
    others = {tau: rival - e.get("figure4", line=line, classifier_k=5) for line, tau in TAUS.items() if tau != 0.03}
    tau, least = lowest(others)
    return positive(least, why=f"Best rival minus ASK-Atk at the worst of τ = 0.3, 3 and 30, which is {tau:g}.")


@claim("C17")
def _(e: Evidence) -> Finding:
    def slope(line: str) -> Measure:
        by_k = e.by("figure4", "classifier_k", line=line)
        return across(by_k.values(), lambda values: statistics.linear_regression(list(by_k), values).slope)

    line, flattest = highest({line: slope(line) for line, tau in TAUS.items() if tau >= 3})
    return negative(flattest, unit="points a neighbour", why=f"Slope of accuracy over K at {line}, the larger of two.")


@claim("C18")
def _(e: Evidence) -> Finding:
    grid = {
        key: m for key, m in e.by("figure4", "k_in", "classifier_k", "line").items() if key[2].startswith("attack K")
    }
    best = {k: lowest({key: m for key, m in grid.items() if key[1] == k})[1] for _, k, _ in grid}
    excess = {key[:2]: m - best[key[1]] for key, m in grid.items()}
    good = highest({key: m for key, m in excess.items() if key[1] <= key[0]})[1]
    fair = highest({key: m for key, m in excess.items() if key[1] > key[0] > 2})[1]
    why = (
        f"Largest distance from the best attack on the same classifier: {text_of(good)} with classifier K up to the "
        f"attack's, {text_of(fair)} with larger ones at attack K > 2. Good is at most 3 points, fair at most 6."
    )
    return judged(good.mean <= 3 and fair.mean <= 6, good, direction=fair.mean <= 6, why=why)


@claim("C19")
def _(e: Evidence) -> Finding:
    (attack, classifier), most = highest(e.by("table11", "k_in", "classifier_k"))
    return at_most(most, 46.8, unit="%", why=f"Highest at attack K = {attack}, classifier K = {classifier}.")


@claim("C20")
def _(e: Evidence) -> Finding:
    grid = e.by("table04", "dknn_layers", "attack_layers")
    excess = {}
    for layer in ("conv3", "conv4"):
        others = {attacked: m for (own, attacked), m in grid.items() if own == layer != attacked}
        excess[layer] = grid[layer, layer] - lowest(others)[1]
    layer, most = highest(excess)
    why = f"The attack on the DkNN's own layer minus the best other one, larger of two: {worded(layer)}."
    return negative(most, why=why)


@claim("C21")
def _(e: Evidence) -> Finding:
    grid = e.by("table04", "attack_layers", "dknn_layers")
    worst = {attacked: highest({k: m for k, m in grid.items() if k[0] == attacked})[1] for attacked, _ in grid}
    combined = worst.pop("conv3+conv4")
    layer, single = lowest(worst)
    why = f"Worst DkNN layers: {text_of(combined, '%')} attacking both, {text_of(single, '%')} {worded(layer)}."
    return positive(single - combined, why=why)


@claim("C52", contradiction="Table 9 prints targeted ASK-Atk 6.5 points lower on Imagenette's Conv 3.")
def _(e: Evidence) -> Finding:
    def difference(dataset: str) -> dict[Any, Measure]:
        targeted, plain = (
            e.by("table09", "dknn_layers", dataset=dataset, variant=v) for v in ("targeted", "non-targeted")
        )
        return {layer: targeted[layer] - plain[layer] for layer in plain}

    found = e.over(BOTH, difference)
    setting, most = max(found.items(), key=lambda item: abs(item[1].mean))
    return near(most, 0, within=3, why=f"Targeted minus non-targeted, the largest of {len(found)}: {worded(setting)}.")


@claim("C53")
def _(e: Evidence) -> Finding:
    def margin(dataset: str) -> dict[Any, Measure]:
        table = {"cifar10": "table01", "imagenette": "table02"}[dataset]
        own = e.by("table10", "dknn_layers", dataset=dataset, variant="random-sampling")
        wanted = {"dataset": dataset, "similarity": "cosine", "eps": 8}
        others = [e.by(table, "dknn_layers", **wanted, **rival) for rival in RIVALS]
        return {layer: lowest({i: o[layer] for i, o in enumerate(others)})[1] - m for layer, m in own.items()}

    return wins(e.over(BOTH, margin))


@claim("C54")
def _(e: Evidence) -> Finding:
    def loss(dataset: str) -> dict[Any, Measure]:
        exact, random = (
            e.by("table10", "dknn_layers", dataset=dataset, variant=v) for v in ("non-targeted", "random-sampling")
        )
        return {layer: random[layer] - exact[layer] for layer in exact}

    setting, least = lowest(e.over(BOTH, loss))
    return positive(least, why=f"Random minus exact selection, smallest: {worded(setting)}.")


@claim("C55")
def _(e: Evidence) -> Finding:
    grid = e.by("table12", "k_in", "k_out")
    gains = {
        k: grid[k, 1] - highest({key: m for key, m in grid.items() if key[0] == k and key[1] >= 3})[1]
        for k in dict.fromkeys(k_in for k_in, _ in grid)
    }
    k, least = lowest(gains)
    return positive(least, why=f"Accuracy at K- = 1 minus the highest at K- >= 3, smallest at K+ = {k}.")


@claim("C56")
def _(e: Evidence) -> Finding:
    def slowest(metric: str) -> tuple[Any, Measure]:
        return lowest({rival["attack"]: e.get("timing", metric=metric, **rival) for rival in RIVALS})

    plain, set_up = slowest("slower")[1], slowest("slower_with_setup")[1]
    why = (
        f"Time of the faster rival over ASK-Atk's on the same extraction, search and loop; with set-up "
        f"{text_of(set_up, 'times')}. Judged at 10 times and more."
    )
    return judged(plain.mean >= 10, plain, unit="times", direction=plain.mean > 1.2, why=why)
