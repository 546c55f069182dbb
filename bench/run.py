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

from ask.errors import AskError
from ask.hardware import describe, pick_device

from .measure import Options, table

PARTS = ("attack", "knn", "train", "pgd", "dag", "demo")
PEERS = ("scikit-learn", "faiss-cpu", "torchattacks", "foolbox", "adversarial-robustness-toolbox")


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
    options = Options(device=pick_device(device), repeats=repeats, small=small, share=share)
    for part in parts or PARTS:
        made = _made_with(part, options)
        sys.stdout.write(f"## {part}\n\n{made['hardware']}; load {made['load']}; {made['command']}\n\n")
        cases = []
        try:
            for case in import_module(f"bench.{part}").cases(options):
                cases.append(case.record())
                sys.stdout.write(table(case) + "\n")
                sys.stdout.flush()
                out.mkdir(parents=True, exist_ok=True)
                (out / f"{part}.json").write_text(json.dumps({**made, "cases": cases}, indent=1) + "\n")
        except ModuleNotFoundError as error:
            raise AskError(f"{error}; install the peers: pip install -c constraints.txt -e '.[bench]'") from error


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
