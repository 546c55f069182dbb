"""The evaluation protocol (paper, VI and App. D): reference sets, calibration, attack cells, validity.

A trial redraws the reference set and the random start; the model stays. Both depend on the data set and the
trial only, so that all attacks and models of a trial share them and can be compared in pairs.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ask.attacks.linf import Unsound
from ask.config.jobs import BlockJob, CalibrationJob, CellJob
from ask.data.arrays import load
from ask.errors import AskError
from ask.grids import beyond, ends
from ask.measure.evaluator import Attack, Evaluator, pick_test_images
from ask.measure.place import Place
from ask.paths import Run, prepared
from ask.seeds import derive_seed
from ask.statistics import summarise

ROUNDING = 1e-6
"""How far float32 may carry an image beyond the eps-ball."""


class InvalidAttackError(AskError):
    """An attack left the eps-ball or the range of images; its result must not be used."""


def run_calibration(job: CalibrationJob, place: Place) -> dict[str, Any]:
    """Attack the first batch of test images at every point of the grid; the lowest accuracy wins, ties the first.

    While the winner lies at an end of the grid, the grid grows there by one point, at most ``extend`` times; a winner
    that is still at an end is noted as ``edge``.
    """
    layers = layers_of(job.attack)
    evaluator = Evaluator(job.features, layers, job.similarity, [job.classifier], job.images, place, job.precision)
    seed = derive_seed(job.seed, job.features.dataset, "calibration")
    trial = evaluator.draw(job.references_per_class, derive_seed(seed, "references"))
    taus = {layer: read_picked(place.run, job, name)["tau"] for layer, name in zip(layers, job.tau_from, strict=False)}

    def at(point: Mapping[str, float]) -> Any:
        """The attack at a point of the grid."""
        changes = parameters(point)
        if "omega" in point:
            changes = {"tau": taus, "omega": dict(zip(layers, _shares(point["omega"]), strict=True))}
        return job.attack.model_copy(update=changes)

    clean: dict[int, Any] = {}

    def measure(points: Sequence[Mapping[str, float]]) -> Iterator[float]:
        """Accuracy at each of some points."""
        for first in range(0, len(points), evaluator.attacks_at_once):
            attacks = [trial.attack(at(point), seed) for point in points[first : first + evaluator.attacks_at_once]]
            greediest = max(attacks, key=lambda attack: attack.k_class)  # its neighbours serve all
            most = greediest.k_class
            clean[most] = clean.get(most) or trial.neighbours(evaluator.clean_features, greediest)
            for adversarial in evaluator.run(attacks, [clean[most]] * len(attacks)):
                predicted = trial.classify(trial.neighbours(evaluator.look(adversarial)[0]), job.classifier)
                yield float((predicted == evaluator.labels).float().mean())

    grid, accuracies = list(job.grid), list(measure(job.grid))
    picked = _lowest(grid, accuracies)
    while len(grid) < len(job.grid) + job.extend and (further := beyond(picked, grid)):
        grid.append(further)
        accuracies += measure([further])
        picked = _lowest(grid, accuracies)
    found = {"picked": picked, "grid": grid, "accuracies": accuracies, "passes": evaluator.passes}
    return found | ({"edge": True} if ends(picked, grid) else {})


def _lowest(grid: Sequence[dict[str, float]], accuracies: Sequence[float]) -> dict[str, float]:
    return grid[int(np.argmin(accuracies))]


def parameters(point: Mapping[str, float]) -> dict[str, Any]:
    """Settings of an attack at a point of a grid, whose numbers are all floats."""
    return {name: int(value) if name == "guides" else value for name, value in point.items()}


def run_cell(job: CellJob, place: Place) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Evaluate one attack over all trials.

    Returns:
        The measurements (JSON-able), and the predictions (:func:`compact`): ``robust`` and ``clean`` of shape
        (classifiers, trials, images), ``network_robust`` (trials, images) and ``network_clean`` (images,) where there
        is a network, and ``labels`` (images,).
    """
    began = time.perf_counter()
    seconds = {"attack": 0.0, "search": 0.0}
    setting = Setting(job, place)
    evaluator = Evaluator(
        job.features, layers_of(job.attack), job.similarity, job.classifiers, job.test_images, place, job.precision
    )
    labels = evaluator.labels.cpu().numpy()
    shape = (len(job.classifiers), job.trials, len(labels))
    predictions = {"clean": np.zeros(shape, np.int64), "robust": np.zeros(shape, np.int64)}
    if evaluator.clean_classes is not None:
        predictions["network_clean"] = evaluator.clean_classes.cpu().numpy()
        predictions["network_robust"] = np.tile(predictions["network_clean"], (job.trials, 1))
    validity = Validity()
    for first in range(0, job.trials, evaluator.attacks_at_once):
        numbers = range(first, min(first + evaluator.attacks_at_once, job.trials))
        trials = [evaluator.draw(job.references_per_class, reference_seed(job, number)) for number in numbers]
        attacks: list[Attack] = []
        if job.attack is not None:
            attacks = [
                trial.attack(setting.config, start_seed(job, number), setting.blocks(number), validity.see_gradient)
                for number, trial in zip(numbers, trials, strict=True)
            ]
        with _Clock(seconds, "search", place.device):
            clean = [
                trial.neighbours(evaluator.clean_features, attack) for trial, attack in zip_longest(trials, attacks)
            ]
        robust = clean
        if attacks:
            with _Clock(seconds, "attack", place.device):
                adversarial = evaluator.run(attacks, clean)
            robust = []
            for number, trial, images in zip(numbers, trials, adversarial, strict=True):
                validity.see_images(evaluator.images, images, setting.config.eps)
                with _Clock(seconds, "search", place.device):
                    features, classes = evaluator.look(images)
                    robust.append(trial.neighbours(features))
                if classes is not None:
                    predictions["network_robust"][number] = classes.cpu().numpy()
        for number, trial, *found in zip(numbers, trials, clean, robust, strict=True):
            for i, classifier in enumerate(job.classifiers):
                for kind, neighbours in zip(("clean", "robust"), found, strict=True):
                    predictions[kind][i, number] = trial.classify(neighbours, classifier).cpu().numpy()
            shown = predictions["robust"][:, number] if job.classifiers else predictions["network_robust"][[number]]
            accuracies = ", ".join(f"{100 * (classes == labels).mean():.2f} %" for classes in shown)
            place.log(f"trial {number + 1}/{job.trials}: accuracy {accuracies}")
    seconds["total"] = time.perf_counter() - began
    results = _results(job, predictions, labels, _outside(job, place))
    measured = {"results": results, "validity": validity.summary(), "seconds": seconds, "setting": setting.known}
    if job.attack is not None:
        measured["passes"] = evaluator.passes
    if evaluator.clean_classes is not None:
        measured["network"] = {
            "clean": summarise((predictions["network_clean"][None] == labels).mean(1)),
            "robust": summarise((predictions["network_robust"] == labels).mean(1)),
        }
    return measured, {name: compact(classes) for name, classes in {**predictions, "labels": labels}.items()}


def compact(classes: NDArray[np.int64]) -> NDArray[Any]:
    """Classes in the smallest unsigned type that holds them: uint8 up to class 255."""
    return classes.astype(np.min_scalar_type(classes.max(initial=0)))


def _results(
    job: CellJob, predictions: Mapping[str, NDArray[Any]], labels: NDArray[Any], outside: NDArray[np.int64]
) -> list[dict[str, Any]]:
    """Share of images over trials that each classifier has right.

    That is under attack (``robust``), ``clean``, both times (``kept``), and under attack on some images alone
    (``outside``, if there are any).
    """
    results = []
    for i, classifier in enumerate(job.classifiers):
        robust, clean = (predictions[kind][i] == labels for kind in ("robust", "clean"))
        right = {"robust": robust, "clean": clean, "kept": robust & clean}
        if len(outside):
            right["outside"] = robust[:, outside]
        shares = {kind: summarise(where.mean(1)) for kind, where in right.items()}
        results.append(classifier.model_dump(mode="json") | shares)
    return results


def _outside(job: CellJob, place: Place) -> NDArray[np.int64]:
    """Places among a cell's test images of those that its parameters were not picked on; none if they were not picked.

    The batch that they were picked on holds the first of one fixed shuffle of all test images.
    """
    if job.calibration_images is None:
        return np.zeros(0, np.int64)
    dataset = job.features.dataset
    available = len(load(prepared(place.data, dataset), "test")[1])
    everyone = np.arange(available)
    counted, batch = (
        everyone[pick_test_images(available, wanted, dataset)] for wanted in (job.test_images, job.calibration_images)
    )
    return np.flatnonzero(~np.isin(counted, batch))


def reference_seed(job: CellJob | BlockJob, trial: int) -> int:
    """Seed of a trial's reference set, the same for all models and attacks of a data set."""
    return derive_seed(job.seed, job.features.dataset, "references", trial)


def start_seed(job: CellJob, trial: int) -> int:
    """Seed of a trial's random starts, likewise."""
    return derive_seed(job.seed, job.features.dataset, "start", trial)


class Validity:
    """Largest perturbation, range, and shares of image gradients that vanish or are not finite, over a cell's steps."""

    def __init__(self) -> None:
        self.max_linf, self.low, self.high = 0.0, 1.0, 0.0
        self.zeros: Tensor | float = 0.0
        self.gradients = 0
        self.unsound = Unsound()

    def see_gradient(self, gradient: Tensor) -> None:
        """Count the images whose gradient is zero everywhere, or holds NaN or infinity; stays on the device."""
        self.unsound.see(gradient)
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
            return dict.fromkeys(("max_linf", "min", "max", "zero_gradient_share", "non_finite_gradient_share"))
        return {
            "max_linf": self.max_linf,
            "min": self.low,
            "max": self.high,
            "zero_gradient_share": float(self.zeros) / self.gradients,
            "non_finite_gradient_share": self.unsound.share,
        }


class Setting:
    """A cell's attack with what other jobs found for it: tau and omega, alpha and learning rate, or blocks."""

    def __init__(self, job: CellJob, place: Place) -> None:
        self.job, self.place = job, place
        self.known: dict[str, Any] = {}
        layers, attack = layers_of(job.attack), job.attack
        if attack is not None and attack.name == "ask":
            tau = dict.fromkeys(layers, attack.tau)
            if attack.tau is None:
                picked = [read_picked(place.run, job, name)["tau"] for name in job.tau_from]
                tau = dict(zip(layers, picked, strict=True))
            shares = [attack.omega.get(layer, 0.0) if attack.omega else 1 / len(layers) for layer in layers]
            if job.omega_from:
                shares = _shares(read_picked(place.run, job, job.omega_from)["omega"])
            self.known = {"tau": tau, "omega": dict(zip(layers, shares, strict=True))}
        if job.alpha_from:
            self.known = parameters(read_picked(place.run, job, job.alpha_from))
        self.config: Any = attack and attack.model_copy(update=self.known)

    @cached_property
    def _stacked(self) -> dict[str, list[Tensor]]:
        """Parameters of AdvKnn's blocks of all trials, by layer."""
        from ask.tensorfile import load_tensors

        found, features, run = {}, self.job.features, self.place.run
        for layer, name in zip(layers_of(self.job.attack), self.job.blocks_from, strict=False):
            tensors, _ = load_tensors(run.blocks(features.dataset, features.model, name))
            found[layer] = [tensors[key].to(self.place.device) for key in sorted(tensors)]
        return found

    def blocks(self, trial: int) -> dict[str, tuple[Tensor, ...]]:
        """A trial's parameters of AdvKnn's blocks by layer; empty for other attacks."""
        return {layer: tuple(tensor[trial] for tensor in stacked) for layer, stacked in self._stacked.items()}


def layers_of(attack: Any) -> tuple[str, ...]:
    """Attacked layers; none for clean images and attacks on a network's output."""
    return tuple(getattr(attack, "layers", ()))


def _shares(first: float) -> list[float]:
    return [first, 1 - first]


def read_picked(run: Run, job: CellJob | CalibrationJob, name: str) -> dict[str, float]:
    """The point that a calibration picked."""
    path = run.calibration(job.features.dataset, job.features.model, name)
    return dict(json.loads(path.read_text())["picked"])


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
