"""The evaluation protocol (paper, VI and App. D): reference sets, calibration, attack cells, validity.

A trial redraws the reference set and the random start; the model stays. Both depend on the data set and the
trial only, so that all attacks and models of a trial share them and can be compared in pairs.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .data.arrays import load
from .dknn import classify, votes
from .errors import AskError
from .features import FORWARD_BATCH, Place, load_features, to_float
from .knn import ExactSearch, Neighbours
from .paths import Run, prepared
from .seeds import derive_seed
from .specs.evaluation import AttackSpec, CalibrationJob, CellJob, ClassifierSpec, FeatureSpec

ATTACKS = {"ask": "ask.attacks.ask"}
"""Home of each attack; a cell imports, and its code fingerprint counts, only its own."""

ROUNDING = 1e-6
"""How far float32 may carry an image beyond the eps-ball."""


class InvalidAttackError(AskError):
    """An attack left the eps-ball or the range of images; its result must not be used."""


class Attack(Protocol):
    """Adversarial images from clean ones; neighbours of the clean images may be handed in."""

    def __call__(self, images: Tensor, labels: Tensor, *, neighbours: Mapping[str, Neighbours] | None = None) -> Tensor:
        """Images like the given ones, from true labels."""


def run_calibration(job: CalibrationJob, place: Place) -> dict[str, Any]:
    """Attack the first batch of test images with every value of the grid; the lowest accuracy wins, ties the first."""
    bench = Bench(job.features, job.attack.layers, [job.classifier], job.images, place)
    seed = derive_seed(job.seed, job.features.dataset, "calibration")
    bench.draw(job.references_per_class, derive_seed(seed, "references"))
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
        adversarial = bench.attack(job.attack, setting, seed)
        predicted = bench.classify(bench.neighbours(bench.features_of(adversarial)), job.classifier)
        accuracies.append(float((predicted == bench.labels).float().mean()))
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
    bench = Bench(job.features, job.attack.layers, job.classifiers, job.test_images, place)
    shape = (len(job.classifiers), job.trials, len(bench.labels))
    predictions = {"clean": np.zeros(shape, np.uint8), "robust": np.zeros(shape, np.uint8)}
    validity = Validity()
    for trial in range(job.trials):
        bench.draw(job.references_per_class, derive_seed(job.seed, job.features.dataset, "references", trial))
        with _Clock(seconds, "search", place.device):
            clean = bench.neighbours(bench.clean_features, k_class=max(job.attack.k_in, job.attack.k_out))
        found = {"clean": clean}
        if job.attack.name != "none":
            seed = derive_seed(job.seed, job.features.dataset, "start", trial)
            with _Clock(seconds, "attack", place.device):
                adversarial = bench.attack(job.attack, setting, seed, clean, validity.see_gradient)
            validity.see_images(bench.images, adversarial, job.attack.eps / 255)
            with _Clock(seconds, "search", place.device):
                found["robust"] = bench.neighbours(bench.features_of(adversarial))
        for i, classifier in enumerate(job.classifiers):
            for kind, neighbours in found.items():
                predictions[kind][i, trial] = bench.classify(neighbours, classifier).cpu().numpy()
        if job.attack.name == "none":
            predictions["robust"][:, trial] = predictions["clean"][:, trial]
        robust = (predictions["robust"][:, trial] == bench.labels.cpu().numpy()).mean(1)
        log(f"trial {trial + 1}/{job.trials}: accuracy {', '.join(f'{100 * a:.2f} %' for a in robust)}")
    labels = bench.labels.cpu().numpy()
    seconds["total"] = time.perf_counter() - began
    results = [
        classifier.model_dump(mode="json")
        | {kind: summarise((predictions[kind][i] == labels).mean(1)) for kind in ("robust", "clean")}
        for i, classifier in enumerate(job.classifiers)
    ]
    measured = {"results": results, "validity": validity.summary(), "seconds": seconds, **setting}
    return measured, {**predictions, "labels": labels.astype(np.uint8)}


class Bench:
    """A model, its test images, and the reference set of the current trial."""

    def __init__(
        self,
        features: FeatureSpec,
        attack_layers: Sequence[str],
        classifiers: Sequence[ClassifierSpec],
        test_images: int | None,
        place: Place,
    ) -> None:
        self.extract = load_features(features, place)
        self.classifiers = classifiers
        self.attack_layers = tuple(attack_layers)
        self.layers = tuple(sorted({*attack_layers, *(layer for c in classifiers for layer in c.layers)}))
        self.place = place
        folder = prepared(place.data, features.dataset)
        images, labels = load(folder, "test")
        chosen = pick_test_images(len(labels), test_images, features.dataset)
        self.images = to_float(images[chosen], place.device)
        self.labels = torch.from_numpy(np.array(labels[chosen])).to(place.device)
        self.pool_labels = np.array(load(folder, "train")[1])
        self.n_classes = int(self.pool_labels.max()) + 1
        self.pools = {
            layer: np.load(place.run.index(features.dataset, features.model, layer), mmap_mode="r")
            for layer in self.layers
        }
        self.clean_features = self.features_of(self.images)

    def draw(self, per_class: int, seed: int) -> None:
        """Draw a reference set, and index it under every similarity that is asked for."""
        chosen = draw_references(self.pool_labels, per_class, seed)
        labels = torch.from_numpy(self.pool_labels[chosen]).to(self.place.device)
        self.reference_labels = labels
        self.searches: dict[tuple[str, str], ExactSearch] = {}
        for layer in self.layers:
            features = torch.from_numpy(self.pools[layer][chosen]).to(self.place.device)
            for similarity in sorted({c.similarity for c in self.classifiers}):
                self.searches[similarity, layer] = ExactSearch(
                    features, labels, n_classes=self.n_classes, similarity=similarity
                )

    def neighbours(self, features: Mapping[str, Tensor], k_class: int = 0) -> dict[tuple[str, str], Neighbours]:
        """Neighbours by similarity and layer: as many as the classifiers need, and ``k_class`` of each class
        at attacked layers.
        """
        found = {}
        for (similarity, layer), search in self.searches.items():
            wanted = [c.k for c in self.classifiers if c.similarity == similarity and layer in c.layers]
            found[similarity, layer] = search.search(
                features[layer],
                k=max(wanted, default=0),
                k_class=k_class if layer in self.attack_layers else 0,
            )
        return found

    def classify(self, neighbours: Mapping[tuple[str, str], Neighbours], classifier: ClassifierSpec) -> Tensor:
        """Classes (images,) by one DkNN classifier."""
        return classify(
            [
                votes(
                    self.reference_labels[neighbours[classifier.similarity, layer].indices[:, : classifier.k]],
                    self.n_classes,
                )
                for layer in classifier.layers
            ]
        )

    def attack(
        self,
        spec: AttackSpec,
        setting: Mapping[str, Any],
        seed: int,
        clean: Mapping[tuple[str, str], Neighbours] | None = None,
        on_gradient: Callable[[Tensor], None] | None = None,
    ) -> Tensor:
        """Adversarial images of all test images."""
        attack: Attack = import_module(ATTACKS[spec.name]).build(
            spec,
            self.extract,
            {layer: self.searches[spec.similarity, layer] for layer in spec.layers},
            **setting,
            generator=torch.Generator().manual_seed(seed),
            on_gradient=on_gradient,
        )
        known: dict[str, Neighbours] | None = None
        if clean is not None:
            known = {layer: clean[spec.similarity, layer] for layer in spec.layers}
        return attack(self.images, self.labels, neighbours=known)

    def features_of(self, images: Tensor) -> dict[str, Tensor]:
        """Features (images, dimensions) by layer."""
        with torch.no_grad():
            parts = [self.extract(batch, self.layers) for batch in images.split(FORWARD_BATCH)]
        return {layer: torch.cat([part[layer] for part in parts]) for layer in self.layers}


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


def draw_references(labels: NDArray[np.int64], per_class: int, seed: int) -> NDArray[np.int64]:
    """Positions of a class-balanced reference set, drawn without replacement (paper, App. D-e)."""
    generator = np.random.default_rng(seed)
    chosen = []
    for label in range(int(labels.max()) + 1):
        pool = np.flatnonzero(labels == label)
        if len(pool) < per_class:
            raise ValueError(
                f"class {label} has {len(pool)} training images, fewer than references_per_class = {per_class}"
            )
        chosen.append(np.sort(generator.choice(pool, per_class, replace=False)))
    return np.concatenate(chosen)


def pick_test_images(available: int, wanted: int | None, dataset: str) -> NDArray[np.int64] | slice:
    """All test images in order, or the first so many of one fixed shuffle (some data sets come sorted by class)."""
    if wanted is None or wanted >= available:
        return slice(None)
    shuffle = np.random.default_rng(derive_seed("test images", dataset)).permutation(available)
    return np.asarray(shuffle[:wanted], dtype=np.int64)


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
