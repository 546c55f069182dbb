"""What an evaluation needs: a model, its test images, and a reference set for each trial."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ask.attacks.linf import GradientAttack, ascend, fitting_batch, frozen
from ask.attacks.references import Subject
from ask.config.base import Precision, Similarity
from ask.config.jobs import ClassifierSpec, FeatureSpec
from ask.data.arrays import load
from ask.errors import AskError
from ask.knn.dknn import classify, make_search, votes
from ask.knn.faiss import searching
from ask.knn.search import ExactSearch, Neighbours, Search
from ask.knn.similarity import SIMILARITIES
from ask.measure.place import FORWARD_BATCH, Place, load_subject, to_float
from ask.paths import prepared
from ask.precision import Passes, network_passes, settled
from ask.seeds import derive_seed


class Attack(Protocol):
    """Adversarial images from clean ones."""

    k: int
    """Nearest references of all that it wants of clean images, and …"""
    k_class: int
    """… of each class; with neither it takes no ``neighbours``."""

    def __call__(self, images: Tensor, labels: Tensor, *, neighbours: Mapping[str, Neighbours] = ...) -> Tensor:
        """Images like the given ones, from true labels; neighbours of the clean images by attacked layer."""


class Evaluator:
    """A model, its test images and the layers under attack; :meth:`draw` gives a trial's reference set."""

    def __init__(
        self,
        features: FeatureSpec,
        attacked: Sequence[str],
        similarity: Similarity,
        classifiers: Sequence[ClassifierSpec],
        test_images: int | None,
        place: Place,
        precision: Precision = "auto",
    ) -> None:
        self.extract, self.network = load_subject(features, place)
        self.classifiers = classifiers
        self.attacked, self.similarity = attacked, similarity
        self.layers = tuple(sorted({*attacked, *(layer for c in classifiers for layer in c.layers)}))
        self.place, self.precision, self.features = place, precision, features
        folder = prepared(place.data, features)
        images, labels = load(folder, "test")
        chosen = pick_test_images(len(labels), test_images, features.dataset)
        self.images = to_float(images[chosen], place.device)
        self.labels = torch.from_numpy(np.array(labels[chosen])).to(place.device)
        self.pool_labels = np.array(load(folder, "train")[1])
        self.n_classes = int(self.pool_labels.max()) + 1
        self.searching = searching(place.device)
        self.pools = hold(
            {layer: place.run.index(features.dataset, features.model, layer) for layer in self.layers}, place
        )
        self.clean_features, self.clean_classes = self.look(self.images)

    def draw(self, per_class: int, seed: int) -> "Trial":
        """Draw a reference set, and index it under every similarity that is asked for."""
        chosen = draw_references(self.pool_labels, per_class, seed)
        labels = torch.from_numpy(self.pool_labels[chosen]).to(self.place.device)
        searches: dict[tuple[str, str], ExactSearch] = {}
        wanted: set[tuple[str, str]] = {(c.similarity, layer) for c in self.classifiers for layer in c.layers}
        wanted |= {(self.similarity, layer) for layer in self.attacked}
        for layer in self.layers:
            features = self.pools[layer][torch.from_numpy(chosen).to(self.pools[layer].device)].to(self.place.device)
            for similarity in SIMILARITIES:
                if (similarity, layer) in wanted:
                    searches[similarity, layer] = make_search(
                        features, labels, similarity, self.searching, n_classes=self.n_classes
                    )
        return Trial(self, labels, searches)

    @cached_property
    def passes(self) -> Passes:
        """Precision of the network's passes in attacks."""
        return passes_of(self.features, self.precision, self.place)

    @property
    def attacks_at_once(self) -> int:
        """How many attacks on all test images fit into a device's batch; at least one."""
        return max(1, fitting_batch(self.images, 0) // max(1, len(self.images)))

    def run(self, attacks: Sequence[Attack], clean: Sequence[Mapping[tuple[str, str], Neighbours]]) -> list[Tensor]:
        """Adversarial images of all test images by each attack, whose clean images' neighbours are known."""
        known: list[dict[str, Any]] = [{} for _ in attacks]
        for attack, options, found in zip(attacks, known, clean, strict=True):
            if attack.k or attack.k_class:
                options["neighbours"] = {layer: found[self.similarity, layer] for layer in self.attacked}
        climbers = [attack for attack in attacks if isinstance(attack, GradientAttack)]
        if len(climbers) < len(attacks):
            # These stop at an image that they take for fooled: they see it as it is judged.
            return [one(self.images, self.labels, **options) for one, options in zip(attacks, known, strict=True)]
        with nullcontext() if self.network is None else frozen(self.network), network_passes(self.passes):
            return ascend(
                [
                    attack.ascent(self.images, self.labels, **options)
                    for attack, options in zip(climbers, known, strict=True)
                ]
            )

    def look(self, images: Tensor) -> tuple[dict[str, Tensor], Tensor | None]:
        """Features (images, dimensions) by layer, and the network's own classes (images,); None on raw pixels."""
        with torch.no_grad():
            if self.network is None:
                return dict(self.extract(images, self.layers)), None
            parts = [self.network.forward_with_features(batch, self.layers) for batch in images.split(FORWARD_BATCH)]
        features: dict[str, Tensor] = {layer: torch.cat([found[layer] for _, found in parts]) for layer in self.layers}
        return features, torch.cat([logits.argmax(1) for logits, _ in parts])


def passes_of(features: FeatureSpec, precision: Precision, place: Place) -> Passes:
    """Precision of a network's passes in attacks; on raw pixels there are none."""
    return "float32" if features.network is None else settled(precision, place.device, place.run.root)


class Trial:
    """The reference set of one trial.

    Attributes:
        labels: classes of the references (references,).
        searches: by similarity and layer.
    """

    def __init__(self, evaluator: Evaluator, labels: Tensor, searches: dict[tuple[str, str], ExactSearch]) -> None:
        self.evaluator, self.labels, self.searches = evaluator, labels, searches

    def neighbours(
        self, features: Mapping[str, Tensor], attack: Attack | None = None
    ) -> dict[tuple[str, str], Neighbours]:
        """Neighbours by similarity and layer: as many as the classifiers need, and as ``attack`` wants."""
        found = {}
        for (similarity, layer), search in self.searches.items():
            aimed = attack is not None and similarity == self.evaluator.similarity and layer in self.evaluator.attacked
            wanted = [c.k for c in self.evaluator.classifiers if c.similarity == similarity and layer in c.layers]
            wanted += [attack.k] if attack and aimed else []
            k_class = attack.k_class if attack and aimed else 0
            if any(wanted) or k_class:
                found[similarity, layer] = search.search(features[layer], k=max(wanted, default=0), k_class=k_class)
        return found

    def classify(self, neighbours: Mapping[tuple[str, str], Neighbours], classifier: ClassifierSpec) -> Tensor:
        """Classes (images,) by one DkNN classifier."""
        return classify(
            [
                votes(
                    self.labels[neighbours[classifier.similarity, layer].indices[:, : classifier.k]],
                    self.evaluator.n_classes,
                )
                for layer in classifier.layers
            ]
        )

    def attack(
        self,
        config: Any,
        seed: int,
        blocks: Mapping[str, tuple[Tensor, ...]] | None = None,
        on_gradient: Callable[[Tensor], None] | None = None,
    ) -> Attack:
        """The attack of an :data:`ask.config.attacks.Attack` on these references; ``blocks``: AdvKnn's, by layer."""
        evaluator = self.evaluator
        references: dict[str, Search] = {
            layer: self.searches[evaluator.similarity, layer] for layer in evaluator.attacked
        }
        made: Attack = import_module(config.home).build(
            config,
            Subject(evaluator.extract, references, evaluator.network),
            blocks=blocks,
            generator=torch.Generator().manual_seed(seed),
            on_gradient=on_gradient,
        )
        return made


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


def hold(indexes: Mapping[str, Path], place: Place) -> dict[str, Tensor]:
    """Features of all training images, by layer, that trials draw their references from.

    Mapped from disk; on a GPU that has eight times as much to spare they are kept there, instead of gathered and copied
    for each trial.
    """
    pools = {layer: torch.from_numpy(np.load(path, mmap_mode="c")) for layer, path in indexes.items()}
    if place.device.type != "cuda" or 8 * sum(pool.nbytes for pool in pools.values()) > torch.cuda.mem_get_info()[0]:
        return pools
    return {layer: pool.to(place.device) for layer, pool in pools.items()}


def pick_test_images(available: int, wanted: int | None, dataset: str) -> NDArray[np.int64] | slice:
    """All test images in order, or the first so many of one fixed shuffle (some data sets come sorted by class)."""
    if wanted is None or wanted >= available:
        return slice(None)
    shuffle = np.random.default_rng(derive_seed("test images", dataset)).permutation(available)
    return np.asarray(shuffle[:wanted], dtype=np.int64)
