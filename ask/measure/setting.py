"""What an attack is measured with beside its job: seeds of a trial, and what calibrations and AdvKnn's blocks found.

A trial redraws the reference set and the random start; the model stays. Both depend on the data set and the trial only,
so that all attacks and models of a trial share them and can be compared in pairs. (Random sampling draws its references
first, from the same generator: its starts are its own.)
"""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from ask.config.jobs import BlockJob, CalibrationJob, CellJob
from ask.paths import Run
from ask.seeds import derive_seed

if TYPE_CHECKING:
    from torch import Tensor

    from ask.measure.place import Place


def reference_seed(job: CellJob | BlockJob, trial: int) -> int:
    """Seed of a trial's reference set, the same for all models and attacks of a data set."""
    return derive_seed(job.seed, job.features.dataset, "references", trial)


def start_seed(job: CellJob, trial: int) -> int:
    """Seed of a trial's random starts, likewise."""
    return derive_seed(job.seed, job.features.dataset, "start", trial)


class Setting:
    """A cell's attack with what other jobs found for it: tau and omega, alpha and learning rate, or blocks."""

    def __init__(self, job: CellJob, place: "Place") -> None:
        self.job, self.place, self.known = job, place, parameters_of(job, place.run)
        self.config: Any = job.attack and job.attack.model_copy(update=self.known)

    @cached_property
    def _stacked(self) -> "dict[str, list[Tensor]]":
        """Parameters of AdvKnn's blocks of all trials, by layer."""
        from ask.tensorfile import load_tensors

        found, features, run = {}, self.job.features, self.place.run
        for layer, name in zip(layers_of(self.job.attack), self.job.blocks_from, strict=False):
            tensors, _ = load_tensors(run.blocks(features.dataset, features.model, name))
            found[layer] = [tensors[key].to(self.place.device) for key in sorted(tensors)]
        return found

    def blocks(self, trial: int) -> "dict[str, tuple[Tensor, ...]]":
        """A trial's parameters of AdvKnn's blocks by layer; empty for other attacks."""
        return {layer: tuple(tensor[trial] for tensor in stacked) for layer, stacked in self._stacked.items()}

    def digest(self, trial: int) -> str | None:
        """Of a trial's parameters of AdvKnn's blocks; None for other attacks."""
        if not self.job.blocks_from:
            return None
        found = sha256()
        for layer, tensors in sorted(self.blocks(trial).items()):
            found.update(layer.encode())
            for tensor in tensors:
                found.update(tensor.cpu().numpy().tobytes())
        return found.hexdigest()[:16]


def parameters_of(job: CellJob, run: Run) -> dict[str, Any]:
    """A cell's parameters that calibrations picked, or that stand for these."""
    layers, attack = layers_of(job.attack), job.attack
    if job.alpha_from:
        return parameters(read_picked(run, job, job.alpha_from), attack)
    if attack is None or attack.name != "ask":
        return {}
    tau = attack.tau if isinstance(attack.tau, Mapping) else dict.fromkeys(layers, attack.tau)
    if attack.tau is None:
        tau = dict(zip(layers, [read_picked(run, job, name)["tau"] for name in job.tau_from], strict=True))
    omega = {layer: attack.omega.get(layer, 0.0) if attack.omega else 1 / len(layers) for layer in layers}
    if job.omega_from:
        omega = shares(read_picked(run, job, job.omega_from), layers)
    return {"tau": tau, "omega": omega}


def layers_of(attack: Any) -> tuple[str, ...]:
    """Attacked layers; none for clean images and attacks on a network's output."""
    return tuple(getattr(attack, "layers", ()))


def read_picked(run: Run, job: CellJob | CalibrationJob, name: str) -> dict[str, float]:
    """The point that a calibration picked."""
    path = run.calibration(job.features.dataset, job.features.model, name)
    return dict(json.loads(path.read_text(encoding="utf-8"))["picked"])


def shares(point: Mapping[str, float], layers: Sequence[str]) -> dict[str, float]:
    """Weights of layers at a point of a calibration's grid."""
    first = point.get("omega")
    return (
        {layer: point[layer] for layer in layers}
        if first is None
        else dict(zip(layers, (first, 1 - first), strict=True))
    )


def parameters(point: Mapping[str, float], attack: Any) -> dict[str, Any]:
    """Settings of an attack at a point of a grid, whose numbers are all floats."""
    whole = {name for name, field in type(attack).model_fields.items() if field.annotation is int}
    return {name: int(value) if name in whole else value for name, value in point.items()}
