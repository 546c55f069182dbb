"""The command ``python -m ask bench``: run parts, print their tables, write one JSON file a part."""

import json
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from ask import files
from ask.errors import AskError
from ask.hardware import describe, pick_device
from ask.precision import settle, tried_kernels

from .measure import Options, table

PARTS = ("attack", "knn", "train", "pgd", "dag", "demo")
PEERS = ("scikit-learn", "faiss-cpu", "faiss-gpu", "torchattacks", "foolbox", "adversarial-robustness-toolbox")


def main(parts: Sequence[str], *, repeats: int, small: bool, share: float, out: Path, device: str) -> None:
    """Run ``parts`` (all if there are none) and write ``<out>/<part>.json``, beginning with what made it.

    Raises AskError for a part that does not exist, and where a peer is not installed.
    """
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        raise AskError(f"no part {unknown[0]!r}; choose from {', '.join(PARTS)}")
    if repeats < 1:
        raise AskError(f"--repeats {repeats} must be at least 1")
    if not 0 < share <= 1:
        raise AskError(f"--share {share} must be above 0 and at most 1")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1))
    torch.set_flush_denormal(True)
    settle()
    options = Options(device=pick_device(device), repeats=repeats, small=small, share=share)
    for part in parts or PARTS:
        found: dict[str, Any] = {**_made_with(part, options), "cases": []}
        sys.stdout.write(_heading(found))
        try:
            with tried_kernels():  # as in training
                for case in import_module(f"bench.{part}").cases(options):
                    found["cases"].append(case.record())
                    sys.stdout.write(table(found["cases"][-1]) + "\n")
                    sys.stdout.flush()
                    files.write_json(out / f"{part}.json", found)
                    files.write_text(out / "README.md", page(out))
        except ModuleNotFoundError as error:
            raise AskError(f"{error}; install the peers as bench/README.md says") from error


def page(folder: Path) -> str:
    """All results of a folder as one Markdown page."""
    parts = [json.loads(path.read_text()) for name in PARTS if (path := folder / f"{name}.json").is_file()]
    tables = [_heading(part) + "\n".join(table(case) for case in part["cases"]) for part in parts]
    return (
        "# Results of `python -m ask bench`\n\nWritten by that command from the JSON files beside it.\n\n"
        + "\n".join(tables)
    )


def _heading(part: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {value}" for name, value in part["versions"].items())
    return f"## {part['part']}\n\n`{part['command']}`: {part['hardware']}; load {part['load']}; {versions}\n\n"


def _made_with(part: str, options: Options) -> dict[str, Any]:
    made = describe(options.device)
    for name in PEERS:
        try:
            made["versions"][name] = version(name)
        except PackageNotFoundError:
            continue
    small = " --small" if options.small else f" --share {options.share:g}" if options.share < 1 else ""
    load = [round(value, 1) for value in os.getloadavg()] if hasattr(os, "getloadavg") else None
    command = f"python -m ask bench {part} --repeats {options.repeats}{small}"
    return {"part": part, "command": command, "load": load, **made}
