"""Claims on ASK-Def against AT, AT+SNN and TRADES (paper, VI-B and App. D-f and F)."""

from typing import Any

from ask.report.claims.attacks import BOTH
from ask.report.claims.evidence import Evidence, Measure, Numbers, across, highest, lowest, worded
from ask.report.claims.registry import claim
from ask.report.claims.verdicts import Finding, Verdict, at_least, judged, near, positive, text_of, wins

SINGLE = ("conv3", "conv4")


def gains(e: Evidence, artifact: str, *by: str, over: str = "at", own: str = "ask-def", **wanted: Any) -> Numbers:
    """Accuracy of ASK-Def minus that of another training, in every setting."""
    ours, theirs = (e.by(artifact, *by, model=model, **wanted) for model in (own, over))
    return Numbers({setting: m - theirs[setting] for setting, m in ours.items()})


def _single(e: Evidence, dataset: str, over: str, threshold: float) -> Finding:
    layer, least = lowest(_of(gains(e, "table06", "dknn_layers", over=over, dataset=dataset), SINGLE))
    return at_least(least, threshold, why=f"Smaller of two, {worded(layer)}.")


def _combined(e: Evidence, dataset: str, over: str, printed: float) -> Finding:
    return near(gains(e, "table06", "dknn_layers", over=over, dataset=dataset)["conv3+conv4"], printed, within=1.5)


def _of(measures: dict[Any, Measure], keys: Any) -> dict[Any, Measure]:
    return {key: measures[key] for key in keys}


@claim("C03")
def _(e: Evidence) -> Finding:
    return _single(e, "cifar10", "at", 6.9)


@claim("C04")
def _(e: Evidence) -> Finding:
    return _single(e, "imagenette", "at", 3.5)


@claim("C05", contradiction="Table 6 prints 4.9.")
def _(e: Evidence) -> Finding:
    return _combined(e, "cifar10", "at", 4.8)


@claim("C06")
def _(e: Evidence) -> Finding:
    return _combined(e, "imagenette", "at", 1.3)


@claim("C07", contradiction="Table 6 gives 6.5 on CIFAR-10, 2.9 on Imagenette; 7 fits CIFAR-10's single layers.")
def _(e: Evidence) -> Finding:
    found = e.over(BOTH, lambda dataset: gains(e, "table06", "dknn_layers", dataset=dataset))
    return near(across(found.values()), 7, within=1.5, why=f"Mean of {len(found)} settings of Table 6.")


@claim("C08")
def _(e: Evidence) -> Finding:
    metrics = ("times_work", "times_seconds", "times_passes")
    work, seconds, passes = (e.get("training-cost", model="ask-def", metric=metric) for metric in metrics)
    why = (
        f"Multiply-adds a training image relative to AT; {text_of(passes, 'times')} the passes, "
        f"{text_of(seconds, 'times')} the seconds. Comparable is taken as at most twice."
    )
    return judged(work.mean <= 2, work, unit="times", why=why)


@claim("C34")
def _(e: Evidence) -> Finding:
    def best(dataset: str) -> dict[Any, Measure]:
        others = [gains(e, "table06", "dknn_layers", over=over, dataset=dataset) for over in ("at", "at-snn")]
        return {layers: lowest({i: o[layers] for i, o in enumerate(others)})[1] for layers in others[0]}

    return wins(e.over(BOTH, best))


@claim("C35")
def _(e: Evidence) -> Finding:
    return _single(e, "cifar10", "at-snn", 1.9)


@claim("C36")
def _(e: Evidence) -> Finding:
    return _single(e, "imagenette", "at-snn", 0.3)


@claim("C37")
def _(e: Evidence) -> Finding:
    return _combined(e, "cifar10", "at-snn", 4)


@claim("C38")
def _(e: Evidence) -> Finding:
    return _combined(e, "imagenette", "at-snn", 1.7)


@claim("C39")
def _(e: Evidence) -> Finding:
    return wins(gains(e, "figure1-right", "dknn_layers", "eps", attack="ask"))


@claim("C40")
def _(e: Evidence) -> Finding:
    return wins(gains(e, "figure5", "dknn_layers", "classifier_k"))


@claim("C41")
def _(e: Evidence) -> Finding:
    return wins(e.over(BOTH, lambda dataset: _of(gains(e, "table06", "dknn_layers", dataset=dataset), SINGLE)))


@claim("C42")
def _(e: Evidence) -> Finding:
    found = gains(e, "ask-def-conv3", "dknn_layers", own="ask-def-conv3")
    why = f"Gain on Conv 4 from the ASK loss on Conv 3 alone; on Conv 3 itself {text_of(found['conv3'])}."
    own = found["conv4"]
    return judged(own.mean <= 0 or not own.surely_positive, own, why=f"{why} Judged as no certain gain.")


@claim("C43")
def _(e: Evidence) -> Finding:
    found = gains(e, "table07", "dknn_layers", over="at-snn", attack="advknn", variant="")
    return near(found["conv4"], 12, within=3)


@claim("C44")
def _(e: Evidence) -> Finding:
    found = gains(e, "table07", "dknn_layers", attack="dknn", variant="adam")
    return near(found["conv4"], 17, within=3)


@claim("C45")
def _(e: Evidence) -> Finding:
    paper = {"advknn": "", "dknn": "adam"}
    found = {
        (over, attack, layers): m
        for over in ("at", "at-snn")
        for attack, variant in paper.items()
        for layers, m in gains(e, "table07", "dknn_layers", over=over, attack=attack, variant=variant).items()
    }
    return wins(found)


def _above_network(e: Evidence, dataset: str, model: str, printed: float) -> Finding:
    dknn = e.get("table06", dataset=dataset, model=model, dknn_layers="conv4")
    network = e.get("table08", dataset=dataset, model=model, eps=8)
    why = f"The DkNN under ASK-Atk keeps {text_of(dknn, '%')}, the network under PGD {text_of(network, '%')}."
    return near(dknn - network, printed, within=3, why=why)


@claim("C46")
def _(e: Evidence) -> Finding:
    return _above_network(e, "cifar10", "ask-def", 3.24)


@claim("C47")
def _(e: Evidence) -> Finding:
    return _above_network(e, "imagenette", "ask-def", 0.7)


@claim("C48")
def _(e: Evidence) -> Finding:
    return _above_network(e, "cifar10", "at", 5.05)


@claim("C49")
def _(e: Evidence) -> Finding:
    return _above_network(e, "imagenette", "at", 7.1)


@claim("C50")
def _(e: Evidence) -> Finding:
    def better(dataset: str) -> dict[Any, Measure]:
        found = {over: gains(e, "table08", "eps", over=over, dataset=dataset) for over in ("at", "at-snn")}
        return {(over, eps): m for over, by_eps in found.items() for eps, m in by_eps.items()}

    return wins(e.over(BOTH, better))


@claim("C51")
def _(e: Evidence) -> Finding:
    at, own = (e.get("clean-accuracy", model=m, metric="dnn_clean_accuracy") for m in ("at", "ask-def"))
    knn = highest({k: -m for k, m in gains(e, "clean-accuracy", "dknn_layers", metric="dknn_clean_accuracy").items()})
    why = f"Loss of the network on clean images; of the DkNN {text_of(knn[1])} ({worded(knn[0])}, the largest)."
    return judged((at - own).mean <= 2, at - own, why=f"{why} Appreciable is taken as more than 2 points.")


@claim("C57")
def _(e: Evidence) -> Finding:
    return wins(gains(e, "table13", "dknn_layers", "eps", own="ask-def-trades", over="trades"))


@claim("C58")
def _(e: Evidence) -> Finding:
    grid = e.by("table14", "model", "steps")
    model, most = highest({m: grid[m, 20] - grid[m, 100] for m in ("ask-def", "at", "at-snn")})
    return judged(
        most.mean <= 1.5, most, why=f"20 minus 100 steps, largest: {worded(model)}. Small is at most 1.5 points."
    )


@claim("C59")
def _(e: Evidence) -> Finding:
    found = {over: gains(e, "table14", "steps", over=over) for over in ("at", "at-snn")}
    return wins({(over, f"{steps} steps"): m for over, by_steps in found.items() for steps, m in by_steps.items()})


@claim("C62")
def _(e: Evidence) -> Finding:
    blocks = e.by("blocks", "dknn_layers")
    ranked = sorted(blocks, key=lambda layer: -blocks[layer].mean)
    worst = lowest(_of(blocks, SINGLE))[1]
    others = highest({layer: m for layer, m in blocks.items() if layer not in SINGLE})[1]
    why = f"From the highest: {', '.join(f'{layer} {blocks[layer].mean:.1f}%' for layer in ranked)}."
    return positive(worst - others, why=f"Lower of Conv 3 and 4 minus the highest of the others. {why}")


@claim("C63")
def _(e: Evidence) -> Finding:
    rows = [row for row in e.rows("figure2") if row["attack"] == "ask"]
    wrong = {model: sum(row["model"] == model and row["right"] == "0" for row in rows) for model in ("at", "ask-def")}
    holds = wrong["at"] >= 4 and wrong["ask-def"] <= 1
    why = f"Of {len(rows) // 2} neighbours of one image ({rows[0]['class']}); another image than the paper's."
    direction = wrong["at"] > wrong["ask-def"]
    verdict: Verdict = "reproduced" if holds else "direction only" if direction else "not reproduced"
    return Finding(verdict, f"{wrong['at']} (AT); {wrong['ask-def']} (ASK-Def)", None, None, why)
