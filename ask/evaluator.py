"""What a trial needs: a model, its test images, and the reference set of the current trial."""

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
from .paths import prepared
from .seeds import derive_seed
from .specs.evaluation import AttackSpec, ClassifierSpec, FeatureSpec

ATTACKS = {"ask": "ask.attacks.ask"}
"""Home of each attack; a cell imports, and its code fingerprint counts, only its own."""


class Attack(Protocol):
    """Adversarial images from clean ones; neighbours of the clean images may be handed in."""

    def __call__(self, images: Tensor, labels: Tensor, *, neighbours: Mapping[str, Neighbours] | None = None) -> Tensor:
        """Images like the given ones, from true labels."""


class Evaluator:
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


def draw_references(labels: NDArray[np.int64], per_class: int, seed: int) -> NDArray[np.int64]:
    """Positions of a class-balanced reference set, drawn without replacement (paper, App. D-e)."""
    generator = np.random.default_rng(seed)
    chosen = []
    for label in range(int(labels.max()) + 1):
        pool = np.flatnonzero(labels == label)
        if len(pool) < per_class:
            raise AskError(
                f"class {label} has {len(pool)} training images, fewer than references_per_class = {per_class};"
                " lower references_per_class of this data set"
            )
        chosen.append(np.sort(generator.choice(pool, per_class, replace=False)))
    return np.concatenate(chosen)


def pick_test_images(available: int, wanted: int | None, dataset: str) -> NDArray[np.int64] | slice:
    """All test images in order, or the first so many of one fixed shuffle (some data sets come sorted by class)."""
    if wanted is None or wanted >= available:
        return slice(None)
    shuffle = np.random.default_rng(derive_seed("test images", dataset)).permutation(available)
    return np.asarray(shuffle[:wanted], dtype=np.int64)
