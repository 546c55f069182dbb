"""``python -m ask repeat``: measure cells again from their records and the weights beside them."""

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch

from ask.config.jobs import CellJob, IndexJob
from ask.config.stored import current
from ask.errors import AskError
from ask.hardware import hardware, pick_device, weights_read
from ask.measure.cells import layers_of, run_cell
from ask.measure.place import Place, build_index
from ask.paths import Run, prepared
from ask.precision import settle

ALIKE = 0.99
"""Least share of predictions that are equal on another kind of machine, where arithmetic rounds otherwise."""


def repeat(
    cells: Annotated[Sequence[Path], "records of cells, results/<run>/cells/<dataset>/<model>/<cell>.json"],
    *,
    trials: Annotated[int | None, "measure the first so many trials only"] = None,
    data: Annotated[Path, "folder of the data (default: data)"] = Path("data"),
) -> int:
    """Measure cells again and print the share of equal predictions; 1 if it is below 99 % for any of them.

    Raises:
        AskError: the weights are not those that the record names, the data are not prepared, or a cell's attack needs
            blocks of AdvKnn, which are not kept.
    """
    settle()
    torch.set_flush_denormal(True)  # as a step does
    shares = []
    for record in cells:
        share, machine = _again(record, trials, data)
        shares.append(share)
        sys.stdout.write(f"{record}: {share:.2%} of predictions equal (measured on {machine})\n")
    return int(min(shares) < ALIKE)


def _again(path: Path, trials: int | None, data: Path) -> tuple[float, str]:
    """Share of equal predictions, and what the record was measured on."""
    record = json.loads(path.read_text(encoding="utf-8"))
    job, run = CellJob.model_validate_json(json.dumps(current(record["job"]))), Run(path.parents[3])
    if job.blocks_from:
        raise AskError(f"{path}: blocks of AdvKnn are not kept; `snakemake --force {path}` fits them again")
    if record.get("weights") != (found := weights_read(job.model_dump(mode="json"), run)):
        raise AskError(f"{path} was measured on weights {record.get('weights')}; here are {found or 'none'}")
    if not (facts := prepared(data, job.features) / "facts.json").is_file():
        raise AskError(f"{facts} is not there; make it by: snakemake {facts}, with the run's --configfile")
    job = job.model_copy(update={"trials": trials or job.trials, "precision": record.get("passes", "float32")})
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Run(Path(folder)), data, pick_device(record["device"]))
        for part in ("models", "calibration"):
            (place.run.root / part).symlink_to((run.root / part).resolve())
        for layer in sorted({*layers_of(job.attack), *(layer for one in job.classifiers for layer in one.layers)}):
            build_index(IndexJob(features=job.features, layer=layer), place)
        _, measured = run_cell(job, place)
    with np.load(path.with_suffix(".npz")) as stored:
        equal = [measured[kind] == stored[kind][:, : job.trials] for kind in ("clean", "robust")]
        if "network_robust" in stored:
            equal.append(measured["network_robust"] == stored["network_robust"][: job.trials])
    same = "this machine's kind" if record["hardware"] == hardware(place.device) else record["hardware"]
    return float(np.concatenate([where.ravel() for where in equal]).mean()), same
