"""The evaluation protocol (paper, VI and App. D): reference sets, calibration, attack cells, validity.

A trial redraws the reference set and the random start; the model stays. Both depend on the data set and the
trial only, so that all attacks and models of a trial share them and can be compared in pairs.
"""

import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .errors import AskError
from .evaluator import Evaluator
from .features import Place
from .paths import Run
from .seeds import derive_seed
from .specs.evaluation import CalibrationJob, CellJob

ROUNDING = 1e-6
"""How far float32 may carry an image beyond the eps-ball."""


class InvalidAttackError(AskError):
    """An attack left the eps-ball or the range of images; its result must not be used."""


def run_calibration(job: CalibrationJob, place: Place) -> dict[str, Any]:
    """Attack the first batch of test images with every value of the grid; the lowest accuracy wins, ties the first."""
    evaluator = Evaluator(job.features, job.attack.layers, [job.classifier], job.images, place)
    seed = derive_seed(job.seed, job.features.dataset, "calibration")
    evaluator.draw(job.references_per_class, derive_seed(seed, "references"))
    taus = {
        layer: read_picked(place.run, job, name) for layer, name in zip(job.attack.layers, job.tau_from, strict=False)
    }
    accuracies = []
    for value in job.grid:
        if taus:
            first, second = job.attack.layers
            setting = {"tau": taus, "omega": {first: value, second: 1 - value}}
        else:
            setting = {"tau": dict.fromkeys(job.attack.layers, value), "omega": {}}
        adversarial = evaluator.attack(job.attack, setting, seed)
        predicted = evaluator.classify(evaluator.neighbours(evaluator.features_of(adversarial)), job.classifier)
        accuracies.append(float((predicted == evaluator.labels).float().mean()))
    picked = job.grid[int(np.argmin(accuracies))]
    return {"picked": picked, "grid": list(job.grid), "accuracies": accuracies}


def run_cell(
    job: CellJob, place: Place, log: Callable[[str], object] = str
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Evaluate one attack over all trials.

    Returns:
        The measurements (JSON-able), and the predictions: ``robust`` and ``clean``, uint8 of shape
        (classifiers, trials, images), and ``labels`` (images,).
    """
    began = time.perf_counter()
    seconds = {"attack": 0.0, "search": 0.0}
    setting = read_setting(job, place.run)
    evaluator = Evaluator(job.features, job.attack.layers, job.classifiers, job.test_images, place)
    shape = (len(job.classifiers), job.trials, len(evaluator.labels))
    predictions = {"clean": np.zeros(shape, np.uint8), "robust": np.zeros(shape, np.uint8)}
    validity = Validity()
    for trial in range(job.trials):
        evaluator.draw(job.references_per_class, derive_seed(job.seed, job.features.dataset, "references", trial))
        with _Clock(seconds, "search", place.device):
            clean = evaluator.neighbours(evaluator.clean_features, k_class=max(job.attack.k_in, job.attack.k_out))
        found = {"clean": clean}
        if job.attack.name != "none":
            seed = derive_seed(job.seed, job.features.dataset, "start", trial)
            with _Clock(seconds, "attack", place.device):
                adversarial = evaluator.attack(job.attack, setting, seed, clean, validity.see_gradient)
            validity.see_images(evaluator.images, adversarial, job.attack.eps / 255)
            with _Clock(seconds, "search", place.device):
                found["robust"] = evaluator.neighbours(evaluator.features_of(adversarial))
        for i, classifier in enumerate(job.classifiers):
            for kind, neighbours in found.items():
                predictions[kind][i, trial] = evaluator.classify(neighbours, classifier).cpu().numpy()
        if job.attack.name == "none":
            predictions["robust"][:, trial] = predictions["clean"][:, trial]
        robust = (predictions["robust"][:, trial] == evaluator.labels.cpu().numpy()).mean(1)
        log(f"trial {trial + 1}/{job.trials}: accuracy {', '.join(f'{100 * a:.2f} %' for a in robust)}")
    labels = evaluator.labels.cpu().numpy()
    seconds["total"] = time.perf_counter() - began
    results = [
        classifier.model_dump(mode="json")
        | {kind: summarise((predictions[kind][i] == labels).mean(1)) for kind in ("robust", "clean")}
        for i, classifier in enumerate(job.classifiers)
    ]
    measured = {"results": results, "validity": validity.summary(), "seconds": seconds, **setting}
    return measured, {**predictions, "labels": labels.astype(np.uint8)}


class Validity:
    """Largest perturbation, range, and share of image gradients that vanish, over all trials and steps of a cell."""

    def __init__(self) -> None:
        self.max_linf, self.low, self.high = 0.0, 1.0, 0.0
        self.zeros: Tensor | float = 0.0
        self.gradients = 0

    def see_gradient(self, gradient: Tensor) -> None:
        """Count the images whose gradient is zero everywhere in one step; stays on the device."""
        self.zeros = self.zeros + (gradient.flatten(1).abs().amax(1) == 0).sum()
        self.gradients += len(gradient)

    def see_images(self, clean: Tensor, adversarial: Tensor, eps: float) -> None:
        """Raises InvalidAttackError with the worst image if the perturbation or the range is violated."""
        distance = (adversarial - clean).abs().flatten(1).amax(1)
        worst = int(distance.argmax())
        low, high = (float(v) for v in torch.aminmax(adversarial))
        self.max_linf = max(self.max_linf, float(distance[worst]))
        self.low, self.high = min(self.low, low), max(self.high, high)
        if not float(distance[worst]) <= eps + ROUNDING:
            raise InvalidAttackError(
                f"image {worst} was moved by {float(distance[worst]):.6f}, more than eps = {eps:.6f}"
            )
        if not (low >= 0 and high <= 1):
            outside = ((adversarial < 0) | (adversarial > 1) | adversarial.isnan()).flatten(1).any(1)
            raise InvalidAttackError(f"image {int(outside.int().argmax())} leaves [0, 1]: {low:.6f} to {high:.6f}")

    def summary(self) -> dict[str, float | None]:
        """JSON-able figures; eps and range in [0, 1]."""
        if not self.gradients:
            return {"max_linf": None, "min": None, "max": None, "zero_gradient_share": None}
        share = float(self.zeros) / self.gradients
        return {"max_linf": self.max_linf, "min": self.low, "max": self.high, "zero_gradient_share": share}


def read_setting(job: CellJob, run: Run) -> dict[str, dict[str, float]]:
    """tau and omega of every attacked layer, fixed or as calibrated."""
    layers: tuple[str, ...] = job.attack.layers
    if job.tau is not None:
        tau = dict.fromkeys(layers, job.tau)
    else:
        tau = {layer: read_picked(run, job, name) for layer, name in zip(layers, job.tau_from, strict=True)}
    omega = dict.fromkeys(layers, 1 / len(layers) if layers else 0.0)
    if job.omega_from:
        first, second = layers
        omega[first] = read_picked(run, job, job.omega_from)
        omega[second] = 1 - omega[first]
    return {"tau": tau, "omega": omega}


def read_picked(run: Run, job: CellJob | CalibrationJob, name: str) -> float:
    """The value that a calibration picked."""
    path = run.calibration(job.features.dataset, job.features.model, name)
    return float(json.loads(path.read_text())["picked"])


def summarise(accuracies: NDArray[np.float64]) -> dict[str, Any]:
    """Mean and half width of the 95 % t-interval over trials (none for a single trial)."""
    trials = [float(a) for a in accuracies]
    ci95 = None
    if len(trials) > 1:
        from scipy.special import stdtrit

        ci95 = float(stdtrit(len(trials) - 1, 0.975) * np.std(trials, ddof=1) / len(trials) ** 0.5)
    return {"mean": float(np.mean(trials)), "ci95": ci95, "trials": trials}


class _Clock:
    """Adds the seconds of a block to a dictionary, the device's work included."""

    def __init__(self, seconds: dict[str, float], name: str, device: torch.device) -> None:
        self.seconds, self.name, self.device = seconds, name, device

    def __enter__(self) -> None:
        self.began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        self.seconds[self.name] += time.perf_counter() - self.began
