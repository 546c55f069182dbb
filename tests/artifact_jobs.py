"""Synthetic runs: cells with made-up measurements, and the jobs of tables, figures and a report on them."""

import json
from pathlib import Path
from typing import Any

from ask.paths import Run

LAYERS = (("conv3",), ("conv4",), ("conv3", "conv4"))
NAMES = {("conv3",): "Conv 3", ("conv4",): "Conv 4", ("conv3", "conv4"): "Conv 3,4"}
TRIALS = 10


def cell_id(similarity: str, layers: tuple[str, ...], k: int, eps: float = 8.0, method: str = "ask") -> str:
    return f"{method}-{similarity[:3]}-L{''.join(layer[-1] for layer in layers)}-K{k}-e{eps:g}-s20"


def write_cell(
    run: Run,
    name: str,
    results: list[dict[str, Any]],
    *,
    dataset: str = "digits",
    model: str = "at",
    zero_gradient_share: float = 0.0,
) -> None:
    path = run.cell(dataset, model, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "id": name,
        "job": {},
        "results": results,
        "validity": {"max_linf": 8 / 255, "min": 0.0, "max": 1.0, "zero_gradient_share": zero_gradient_share},
        "tau": dict.fromkeys(results[0]["layers"], 0.03),
        "omega": {layer: 1 / len(results[0]["layers"]) for layer in results[0]["layers"]},
        "seconds": {"total": 41.25, "attack": 37.5, "search": 3.1},
        "device": "cpu",
        "versions": {"python": "3.11.2", "torch": "2.11.0", "ask": "0.1.0"},
        "hardware": "2 cores of a laptop CPU, 8 GiB",
        "passes": "bfloat16",
        "command": f"python -m ask attack --run {run.root.name} --dataset {dataset} --model {model} --cell {name}",
    }
    path.write_text(json.dumps(content))


def measure(
    layers: tuple[str, ...],
    robust: float,
    *,
    similarity: str = "cosine",
    k: int = 5,
    ci95: float | None = 0.0018,
    clean: float = 0.86,
) -> dict[str, Any]:
    """One classifier's results in a cell, as fractions."""

    def statistic(mean: float) -> dict[str, Any]:
        return {"mean": mean, "ci95": ci95, "trials": [mean] * (1 if ci95 is None else TRIALS)}

    return {
        "similarity": similarity,
        "layers": list(layers),
        "k": k,
        "robust": statistic(robust),
        "clean": statistic(clean),
    }


def make_entry(
    name: str,
    layers: tuple[str, ...],
    *,
    similarity: str = "cosine",
    k: int = 5,
    attack: str = "ask",
    eps: float = 8.0,
    metric: str = "dknn_robust_accuracy",
    paper: tuple[float, float] | None = None,
) -> dict[str, Any]:
    joined = "+".join(layers)
    return {
        "columns": {
            "dataset": "digits",
            "model": "at",
            "attack": attack,
            "variant": "non-targeted",
            "similarity": similarity,
            "attack_layers": joined,
            "dknn_layers": joined,
            "k_in": k,
            "k_out": k,
            "classifier_k": k,
            "eps": eps,
            "steps": 20,
            "metric": metric,
        },
        "cell": {"dataset": "digits", "model": "at", "id": name},
        "classifier": {"similarity": similarity, "layers": list(layers), "k": k},
        "metric": metric,
        "paper_mean": paper[0] if paper else None,
        "paper_ci95": paper[1] if paper else None,
    }


PAPER = {
    "cosine": {
        "ASK-Atk": [(35.1, 0.2), (36.7, 0.18), (41, 0.19)],
        "AdvKnn": [(58.9, 0.3), (50.5, 0.34), (54.1, 0.25)],
        "DkNN-Atk": [(60.7, 0.44), (50.8, 0.39), (54.85, 0.41)],
    },
    "l2": {
        "ASK-Atk": [(32.21, 0.16), (34.46, 0.16), (39.26, 0.17)],
        "AdvKnn": [(56.55, 0.24), (53.9, 0.26), (57.15, 0.28)],
        "DkNN-Atk": [(54.45, 0.52), (49.15, 0.49), (54.65, 0.5)],
    },
}
OFF = [0.4, -1.7, 2.6, -4.2, 12.3, -0.9, 0.04, 5.1, -11.0]
"""Measured minus paper, in points, in turn."""


def table_job(run: Run, *, paper: bool = True) -> dict[str, Any]:
    """The paper's Table 1: three rows, two header levels of three columns each."""
    entries, headers, turn = [], [], 0
    for similarity, methods in PAPER.items():
        for method, published in methods.items():
            headers.append([f"{'ℓ₂' if similarity == 'l2' else similarity} similarity", method])
            for row, layers in enumerate(LAYERS):
                short = method.split("-")[0].lower()
                name = cell_id(similarity, layers, 5, method=short)
                mean = (published[row][0] + OFF[turn % len(OFF)]) / 100
                turn += 1
                write_cell(run, name, [measure(layers, mean, similarity=similarity, ci95=0.0018 + 0.0011 * row)])
                entry = make_entry(
                    name, layers, similarity=similarity, attack=short, paper=published[row] if paper else None
                )
                entries.append({"row": row, "column": len(headers) - 1, **entry})
    return {
        "id": "table01",
        "kind": "table",
        "title": "ASK-Atk outperforms AdvKnn and DkNN-Atk on CIFAR-10",
        "caption": "All methods attack the same network; attack and DkNN use the same layers, and either the cosine or "
        "the ℓ₂ similarity in the ASK loss.",
        "category": "attack",
        "paper": "Table 1",
        "row_headers": [[NAMES[layers]] for layers in LAYERS],
        "row_names": ["Layers"],
        "column_headers": headers,
        "entries": entries,
        "notes": ["Temperatures were picked on the first 500 test images."],
    }


def grouped_table_job(run: Run) -> dict[str, Any]:
    """The paper's Table 8: two row levels, one column level, an empty position, one doubtful cell."""
    rows = [[data, method] for data in ("CIFAR-10", "Imagenette") for method in ("ASK-Def", "AT", "AT+SNN")]
    entries = []
    for row, (data, method) in enumerate(rows):
        for column, eps in enumerate((4.0, 6.0, 8.0)):
            if (row, column) == (5, 2):
                continue
            name = f"{data}-{method}-e{eps:g}".lower().replace("+", "-")
            doubtful = (row, column) == (1, 2)
            result = measure(("conv4",), 0.66 - 0.06 * column - 0.03 * row, clean=0.43 if doubtful else 0.9)
            write_cell(run, name, [result], zero_gradient_share=0.034 if doubtful else 0.0)
            paper = (65.94 - 6 * column - 3 * row, 0.2) if row < 3 else None
            entries.append({"row": row, "column": column, **make_entry(name, ("conv4",), eps=eps, paper=paper)})
    return {
        "id": "table08",
        "kind": "table",
        "title": "ASK-Def improves robustness over AT and AT+SNN under growing attack power",
        "caption": "Both data sets; 100% of test images & all <trials>.",
        "category": "defense",
        "paper": None,
        "row_headers": rows,
        "row_names": ["", "Training"],
        "column_headers": [["ε = 4"], ["ε = 6"], ["ε = 8"]],
        "entries": entries,
        "notes": [],
    }


def figure_job(run: Run) -> dict[str, Any]:
    """The paper's Figure 4: two panels, one with the paper's values."""
    left, right = [], []
    for turn, factor in enumerate((1, 10, 100, 1000)):
        points = []
        for k in (1, 3, 5, 7, 9):
            name = f"ask-cos-L4-K{k}-t{factor}"
            mean = 0.367 + 0.006 * turn + 0.02 * abs(k - 5) / (turn + 1)
            write_cell(run, name, [measure(("conv4",), mean, k=k, ci95=0.006)])
            points.append({"x": float(k), "entry": make_entry(name, ("conv4",), k=k)})
        left.append({"label": f"τ = {0.03 * factor:g}", "points": points})
    for turn, attack_k in enumerate((1, 5, 9)):
        points = []
        for k in (1, 3, 5, 7, 9):
            name = f"ask-cos-L4-A{attack_k}-K{k}"
            mean = 0.36 + 0.012 * max(k - attack_k, 0) + 0.008 * turn
            write_cell(run, name, [measure(("conv4",), mean, k=k, ci95=0.004)])
            paper = (100 * mean - 2.5 + 0.3 * k, 0.2) if attack_k == 1 else None
            points.append({"x": float(k), "entry": make_entry(name, ("conv4",), k=k, paper=paper)})
        right.append({"label": f"attack K = {attack_k}", "points": points})
    label = "DkNN robust accuracy (%)"
    return {
        "id": "figure4",
        "kind": "figure",
        "title": "ASK-Atk is robust to its temperature and to K",
        "caption": "Left: varying K has small impact. Right: ASK-Atk performs well when the classifier’s K is at most "
        "the attacker’s.",
        "category": "attack",
        "paper": "Figure 4",
        "panels": [
            {"title": "Temperature and K", "x_label": "K of attack and classifier", "y_label": label, "lines": left},
            {"title": "Gray box", "x_label": "classifier’s K", "y_label": label, "lines": right},
        ],
        "notes": [],
    }


def report_job(artifacts: list[dict[str, Any]], *, stand_ins: list[str] | None = None) -> dict[str, Any]:
    keys = ("id", "kind", "title", "caption", "category", "paper", "notes")
    return {
        "run": "demo",
        "title": "ASK: Adversarial Soft k-Nearest Neighbor Attack and Defense",
        "note": "Every table and figure of the paper, measured again by this pipeline.",
        "artifacts": [{key: artifact[key] for key in keys} | {"comparable": not stand_ins} for artifact in artifacts],
        "configuration": {
            "seed": 0,
            "datasets": [{"label": "CIFAR-10", "note": "50,000 training images"}, {"label": "Imagenette"}],
            "models": ["AT", "AT+SNN", "ASK-Def"],
            "trials": TRIALS,
            "stand_ins": stand_ins or [],
        },
    }


def render_everything(root: Path, *, stand_ins: list[str] | None = None) -> Path:
    """A whole synthetic run with a ledger of two claims; returns its report's index."""
    from ask.report.figures import render_figure
    from ask.report.numbers import write_csv
    from ask.report.site import render_report
    from ask.report.tables import render_table

    run = Run(root)
    tables = [table_job(run), grouped_table_job(run)]
    figure = figure_job(run)
    for one in (*tables, figure):
        one["comparable"] = not stand_ins
    for table in tables:
        render_table(table, run)
    render_figure(figure, run)
    (run.root / "benchmarks/cells").mkdir(parents=True)
    (run.root / "benchmarks/cells/one.tsv").write_text("s\th:m:s\n75.5\t0:01:15\n")
    columns = ["id", "statement", "source", "quantity", "paper", "measured", "value", "ci95", "verdict", "why"]
    judged = ["direction only", "not evaluated", "reproduced"]
    claims = [
        ["C01", "ASK-Atk beats its rivals", "Abstract", "margin", "≥ 13", "9.1±0.4 points", "9.1", "0.4", judged[0]],
        ["C02", "It is <fast>", "VI", "seconds", "≈ 20", "–", "", "", judged[1]],
        ["C10", "K matters little", "VI", "range", "≤ 3", "2.0 points", "2", "", judged[2]],
    ]
    rest = ["Smallest at Conv 3.", "table01", "digits/at/ask-cos-L3-K5-e8-s20#cosine/conv3/5", "snakemake all"]
    rest += ["images, trials", "About 900 images."]
    rows = [
        dict(zip([*columns, "artifacts", "cells", "command", "interval", "decides"], [*claim, *rest], strict=True))
        for claim in claims
    ]
    write_csv(run.claims, list(rows[0]), rows)
    return render_report(report_job([tables[0], figure, tables[1]], stand_ins=stand_ins), run)[0]
