"""``python -m ask repeat``: measure cells again from their records and the weights beside them."""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from ask.config.jobs import BlockJob, CellJob, IndexJob
from ask.config.stored import current
from ask.errors import AskError
from ask.hardware import hardware, machines, pick_device, weights_read
from ask.measure.blocks import fit
from ask.measure.cells import run_cell
from ask.measure.place import Place, build_index
from ask.measure.setting import layers_of
from ask.paths import Run, prepared
from ask.precision import expected, settle, undisturbed


def again(path: Path, trials: int | None, data: Path) -> tuple[float, str]:
    """Measure a cell again, or its first trials: the share of equal predictions, and what the record was measured on.

    Raises:
        AskError: it is no cell's record or of fewer trials, the weights are not those that it names, the data are not
            prepared.
    """
    settle()
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        job, run = CellJob.model_validate_json(json.dumps(current(record["job"]))), Run(path.parents[3])
    except (ValueError, TypeError, LookupError):
        raise AskError(f"{path}: no record of a cell, results/<run>/cells/<dataset>/<model>/<cell>.json") from None
    if trials is not None and not 1 <= trials <= job.trials:
        raise AskError(f"{path} holds {job.trials} trials; {trials} can't be compared")
    if record.get("weights") != (found := weights_read(job.model_dump(mode="json"), run)):
        raise AskError(f"{path} was measured on weights {record.get('weights')}; here are {found or 'none'}")
    if not (facts := prepared(data, job.features) / "facts.json").is_file():
        raise AskError(f"{facts} is not there; make it by: snakemake {facts}, with the run's --configfile")
    device, passes, made = pick_device(record["device"]), record.get("passes", "float32"), record["hardware"]
    slow = passes == "bfloat16" and expected("auto", device)["precision"] != passes
    job = job.model_copy(update={"trials": trials or job.trials, "precision": "float32" if slow else passes})
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Run(Path(folder)), data, device)
        for part in ("models", "calibration"):
            (place.run.root / part).symlink_to((run.root / part).resolve())
        with undisturbed(place.device):
            for layer in sorted({*layers_of(job.attack), *(layer for one in job.classifiers for layer in one.layers)}):
                build_index(IndexJob(features=job.features, layer=layer), place)
            for layer, name in zip(layers_of(job.attack), job.blocks_from, strict=False):
                fit(_block(job, layer, name, len(record["by_trial"])), place)
            _, measured = run_cell(job, place)
    with np.load(path.with_suffix(".npz")) as stored:
        equal = [measured[kind] == stored[kind][:, : job.trials] for kind in ("clean", "robust")]
        if "network_robust" in stored:
            equal.append(measured["network_robust"] == stored["network_robust"][: job.trials])
    gpu = hardware(device) if device.type == "cuda" else ""
    alike = made.startswith(machines(gpu)) and made.split(", ")[-1] == hardware(device).split(", ")[-1]
    where = f"{made}, in bfloat16; here in float32" if slow else "this machine's kind" if alike else made
    return float(np.concatenate([part.ravel() for part in equal]).mean()), where


def _block(job: CellJob, layer: str, name: str, trials: int) -> BlockJob:
    """The job of AdvKnn's blocks that a cell reads, as they were fitted: those of all its trials at once."""
    attack: Any = job.attack
    given = job.model_dump(include={"features", "similarity", "references_per_class", "seed"})
    own = {"id": name, "layer": layer, "trials": trials, "k": attack.k, "block": attack.block}
    return BlockJob.model_validate(given | own)
