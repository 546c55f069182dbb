"""What lies behind the numbers of an artifact: its cells, their settings, whether they can be trusted, and the run."""

import csv
import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from ask.config.stored import current
from ask.grids import ends
from ask.paths import Run
from ask.report.numbers import Json, find_result, format_value, read_reference

MOST_ZERO_GRADIENTS = 0.01
"""Share of images without any gradient beyond which an attack may only seem to fail."""

LEAST_CLEAN_ACCURACY = 0.5
"""Clean accuracy of a classifier below which its robust accuracy says little."""

PARAMETERS = {"tau": "τ", "omega": "ω", "alpha": "α", "learning_rate": "learning rate", "guides": "guides"}
"""Calibrated parameters in words."""

STAGES = {
    "models": "training",
    "index": "indexes",
    "calibration": "calibration",
    "blocks": "AdvKnn's blocks",
    "cells": "attacks and analyses",
    "examples": "pictures",
    "tables": "tables",
    "figures": "figures",
}
"""Folders of benchmark files, in the order of the workflow, and in words."""


def describe(name: str, cell: Json, run: Run, configfile: str = "") -> dict[str, Any]:
    """A cell in the page's words.

    Its ``anchor`` is where the page describes it, ``facts`` say what was run, with what and where, as far as the cell
    knows, ``files`` are those on disk (name, link from the page), and ``workflow`` and ``command`` measure it again
    within the workflow and without.
    """
    validity, seconds, job = cell.get("validity") or {}, cell.get("seconds") or {}, current(cell.get("job") or {})
    measured = [value for result in (*cell["results"], cell.get("network") or {}) for value in result.values()]
    trials = max((len(m["trials"]) for m in measured if isinstance(m, Mapping) and "trials" in m), default=0)
    parameters = _parameters(
        cell.get("setting") or {key: cell[key] for key in PARAMETERS if key in cell}, _at_ends(job, run)
    )
    path = run.cell(*name.split("/"))
    files = {"record": path, "predictions": path.with_suffix(".npz")}
    files |= {"log": run.log(path), "benchmark": run.benchmark(path)}
    largest, without, unsound = (
        validity.get(name) for name in ("max_linf", "zero_gradient_share", "non_finite_gradient_share")
    )
    facts = {
        "attack": _attack(job),
        "parameters": parameters,
        "accuracy on images outside the calibration": _outside(cell),
        "references a class": job.get("references_per_class"),
        "test images": job.get("test_images"),
        "trials": trials,
        "seed": job.get("seed"),
        "largest change": None if largest is None else f"{255 * largest:.4g}/255",
        "images without gradient": None if without is None else f"{without:.2%}",
        "images with a gradient that is not finite": None if unsound is None else f"{unsound:.2%}",
        "device": cell.get("device"),
        "hardware": cell.get("hardware"),
        "network's passes in the attack": cell.get("passes"),
        "versions": ", ".join(f"{name} {version}" for name, version in (cell.get("versions") or {}).items()),
        "code": cell.get("code"),
    }
    return {
        "name": name,
        "anchor": anchor(name),
        "trials": trials,
        "parameters": parameters,
        "attack_seconds": seconds.get("attack") or 0.0,
        "total_seconds": seconds.get("total") or 0.0,
        "facts": [(words, str(fact)) for words, fact in facts.items() if fact not in (None, "")],
        "files": [(kind, f"../{file.relative_to(run.root)}") for kind, file in files.items() if file.is_file()],
        "command": cell.get("command", ""),
        "workflow": f"snakemake --cores all --force {path}" + (f" --configfile {configfile}" if configfile else ""),
    }


def anchor(name: str) -> str:
    """Where a page describes a cell."""
    return "cell-" + re.sub(r"[^A-Za-z0-9.-]", "-", name)


def _attack(job: Json) -> str:
    """The settings of a job's attack in a few words; nothing for clean images."""
    attack = job.get("attack") or {}
    if attack.get("name", "none") == "none":
        return ""
    words = [attack["name"], attack.get("variant") or attack.get("optimizer")]
    words += ["away from the true label"] * ("target" in attack) + ["successor's loss"] * (attack.get("loss") == "relu")
    if attack.get("layers"):
        words += [attack.get("similarity") or job.get("similarity"), "+".join(attack["layers"])]
        if "k_in" in attack:
            words.append(f"K {attack['k_in']} in and {attack['k_out']} out of class")
        elif "k" in attack:
            words.append(f"K {attack['k']}")
    if "eps" in attack:
        words.append(f"ε {attack['eps']:g}/255")
    if attack.get("steps"):
        words.append(f"{attack['steps']} steps of {attack['step_size']:g}/255")
    return ", ".join(filter(None, words))


def _parameters(setting: Json, edges: Collection[tuple[str, str]] = ()) -> str:
    """Calibrated parameters (``omega`` of several layers), those among ``edges`` (name, and layer if any) marked."""
    found = []
    for name, words in (
        PARAMETERS | {name: name.replace("_", " ") for name in setting if name not in PARAMETERS}
    ).items():
        value = setting.get(name)
        edge = {layer: " (edge of its grid)" for other, layer in edges if other == name}
        if isinstance(value, Mapping) and (name == "tau" or len(value) > 1):
            found.append(f"{words} " + ", ".join(f"{each} {v:g}{edge.get(each, '')}" for each, v in value.items()))
        elif isinstance(value, int | float):
            found.append(f"{words} {value:g}{edge.get('', '')}")
    return "; ".join(found)


def _at_ends(job: Json, run: Run) -> list[tuple[str, str]]:
    """A cell's parameters at an end of their grid, as calibrations on disk have it, by name and layer (if of one)."""
    found = []
    layers = (job.get("attack") or {}).get("layers", ())
    own, shares = (job.get("alpha_from"), ""), (job.get("omega_from"), next(iter(layers), ""))
    for name, layer in [*zip(job.get("tau_from", ()), layers, strict=False), own, shares]:
        path = run.calibration(job["features"]["dataset"], job["features"]["model"], name) if name else None
        if path and path.is_file():
            record = json.loads(path.read_text(encoding="utf-8"))
            old = {"tau_from": (record.get("job") or {}).get("tau_from", ())}
            *grid, picked = current(old | {"grid": [*record["grid"], record["picked"]]})["grid"]
            found += [(parameter, layer) for parameter in ends(picked, grid)]
    return found


def _outside(cell: Json) -> str:
    """Accuracy of each classifier on the images that nothing was calibrated on, in percent, where a cell noted it."""
    found = []
    for result in cell["results"]:
        if "outside" in result:
            mean, ci95 = (value and 100 * value for value in (result["outside"]["mean"], result["outside"]["ci95"]))
            classifier = f"{result['similarity']}, {'+'.join(result['layers'])}, K={result['k']}"
            found.append(f"{format_value(mean, ci95)} % ({classifier})")
    return "; ".join(found)


def warn(references: Iterable[str], cells: Mapping[str, Json]) -> list[str]:
    """Reasons to doubt the numbers that references name, in words; low clean accuracy once a network and classifier."""
    warnings: list[str] = []
    low: dict[tuple[str, str], str] = {}
    for name, classifier in map(read_reference, references):
        cell = cells[name]
        warnings += [f"{dataset}: {note.rstrip('.')}" for dataset, note in (cell.get("data") or {}).items()]
        validity = cell.get("validity") or {}
        share, unsound = validity.get("zero_gradient_share"), validity.get("non_finite_gradient_share")
        if share is not None and share > MOST_ZERO_GRADIENTS:
            warnings.append(
                f"{name}: {share:.1%} of the images had no gradient, so the attack may only seem to fail "
                f"(at most {MOST_ZERO_GRADIENTS:.0%} expected)"
            )
        if unsound:
            warnings.append(
                f"{name}: {unsound:.2%} of the images had a gradient that is not finite, which no attack can follow "
                "(none expected)"
            )
        doubts = [
            ("the network", "its features may not separate the classes", (cell.get("network") or {}).get("clean"))
        ]
        if classifier:
            who = f"the DkNN ({classifier['similarity']}, {'+'.join(classifier['layers'])}, K={classifier['k']})"
            doubts.append((who, "its robust accuracy says little", find_result(cell, classifier).get("clean")))
        for who, so, clean in doubts:
            if clean and clean["mean"] < LEAST_CLEAN_ACCURACY:
                below = f"{clean['mean']:.1%}, below {LEAST_CLEAN_ACCURACY:.0%}"
                model = name.rpartition("/")[0]
                low.setdefault((model, who), f"{model}: clean accuracy of {who} is {below}, so {so}")
    return list(dict.fromkeys([*warnings, *low.values()]))


def summarise(configuration: Mapping[str, Any], cells: Iterable[Json]) -> list[tuple[str, str]]:
    """Facts of the run: its configuration as given, and where, with what and for how long the cells ran."""
    facts = [(key.replace("_", " "), in_text(value)) for key, value in configuration.items()]
    seen = list(cells)
    hardware = dict.fromkeys(cell["hardware"] for cell in seen if cell.get("hardware"))
    versions = dict.fromkeys(item for cell in seen for item in cell.get("versions", {}).items())
    found = {name: " and ".join(v for other, v in versions if other == name) for name, _ in versions}
    seconds = sum((cell.get("seconds") or {}).get("total") or 0.0 for cell in seen)
    passes = Counter(cell["passes"] for cell in seen if cell.get("passes"))
    facts += [
        ("hardware", "; ".join(hardware)),
        ("network's passes in attacks", ", ".join(f"{one} in {count} cells" for one, count in passes.most_common())),
        ("versions", ", ".join(map(" ".join, found.items()))),
        ("compute", f"{duration(seconds)} ({seconds:,.0f} s) in {len(seen)} cell{'s' * (len(seen) != 1)}"),
    ]
    return [(key, value) for key, value in facts if value]


def stages(run: Run) -> list[tuple[str, int, float]]:
    """Stages of the run with their jobs and wall-clock seconds, from the benchmark files that Snakemake wrote."""
    found = []
    for folder, words in STAGES.items():
        texts = (path.read_text(encoding="utf-8") for path in (run.root / "benchmarks" / folder).rglob("*.tsv"))
        seconds = [float(next(csv.DictReader(text.splitlines(), delimiter="\t"))["s"]) for text in texts]
        if seconds:
            found.append((words, len(seconds), sum(seconds)))
    return found


def in_text(value: object) -> str:
    """A configuration value in a few words: ``{"label": ..., "note": ...}`` reads "label (note)"."""
    if value is None or value == "":
        return ""
    if isinstance(value, Mapping):
        if "label" not in value:
            return ", ".join(f"{key}: {in_text(item)}" for key, item in value.items())
        others = "; ".join(filter(None, (in_text(item) for key, item in value.items() if key != "label")))
        return in_text(value["label"]) + (f" ({others})" if others else "")
    if isinstance(value, list | tuple):
        return ", ".join(map(in_text, value))
    return str(value)


def duration(seconds: float) -> str:
    """``42 s``, ``3 min 20 s``, ``5 h 12 min``."""
    minutes, rest = divmod(round(seconds), 60)
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 9.5 else f"{seconds:.0f} s"
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
