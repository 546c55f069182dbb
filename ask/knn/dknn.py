"""The deep k-nearest-neighbour classifier (DkNN; paper, eq. 1 and Appendix D)."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ask.knn.search import ExactSearch, Neighbours
from ask.knn.similarity import SIMILARITIES, Similarity
from ask.models.hooks import evaluating


def votes(neighbour_labels: Tensor, n_classes: int) -> Tensor:
    """Votes (queries, classes), int64, of neighbours' labels (queries, k)."""
    counts = neighbour_labels.new_zeros((len(neighbour_labels), n_classes))
    return counts.scatter_add_(1, neighbour_labels, torch.ones_like(neighbour_labels))


def classify(layer_votes: Sequence[Tensor]) -> Tensor:
    """Classes (queries,) with the most votes over all layers (eq. 1); a tie goes to the lowest class."""
    return torch.stack(list(layer_votes)).sum(0).argmax(1)


class DkNN:
    """Majority vote of k-nearest-neighbour classifiers on selected layers; scikit-learn's estimator contract.

    Without ``features`` it is a plain kNN classifier on arrays (the layer is called ``input``).

    Args:
        features: maps images (batch, ...) and layer names to features (batch, dimensions) by layer; a bound method of a
            module runs with the module in evaluation mode, and puts its mode back.
        layers: layers that vote, a sequence of names.
        n_neighbors: K, of each layer.
        metric: ``cosine`` or ``l2``.
        backend: ``exact`` (torch), ``faiss`` (exact, Flat) or ``faiss-ivf`` (approximate, an explicit choice).
        batch_size: images whose features are computed at a time.

    Attributes:
        classes_: labels seen in ``fit``, ascending.
        n_features_in_: values of one sample.
        search_: the reference set of each layer, which knows ``classes_`` where they are not 0, 1, ...

    Samples are tensors or arrays. Without ``features`` they keep float64, and whole numbers of more than 16 bits become
    float64; all else is compared in float32. A feature function gets tensors as they are, and arrays as float32.
    Queries are compared in the type of the references.

    A tie between classes goes to the lowest; equidistant references to the one given first.
    """

    _estimator_type = "classifier"

    def __init__(
        self,
        features: Callable[[Tensor, Sequence[str]], Mapping[str, Tensor]] | None = None,
        *,
        layers: Sequence[str] = ("input",),
        n_neighbors: int = 5,
        metric: Similarity = "cosine",
        backend: str = "exact",
        batch_size: int = 500,
    ) -> None:
        self.features = features
        self.layers = layers
        self.n_neighbors = n_neighbors
        self.metric: Similarity = metric
        self.backend = backend
        self.batch_size = batch_size

    def get_params(self, deep: bool = True) -> dict[str, Any]:  # noqa: ARG002  # part of the contract
        """Constructor arguments, as scikit-learn's ``clone`` and searches expect."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def set_params(self, **params: Any) -> Self:
        """Set constructor arguments; raises ValueError for an unknown one."""
        known = self.get_params()
        for name, value in params.items():
            if name not in known:
                raise ValueError(f"unknown parameter {name!r} of DkNN; known: {', '.join(known)}")
            setattr(self, name, value)
        return self

    def __sklearn_tags__(self) -> Any:
        """scikit-learn's description of a classifier, so that its tools accept this one."""
        from sklearn.utils import ClassifierTags, InputTags, Tags, TargetTags

        return Tags(
            estimator_type="classifier",
            target_tags=TargetTags(required=True),
            classifier_tags=ClassifierTags(),
            input_tags=InputTags(two_d_array=True, three_d_array=True),
        )

    def fit(self, X: ArrayLike | Tensor, y: ArrayLike | Tensor) -> Self:
        """Index the references X (references, ...) with labels y (references,), whole numbers or strings."""
        if self.metric not in SIMILARITIES:
            raise ValueError(f"metric={self.metric!r} is not one of {', '.join(SIMILARITIES)}")
        if isinstance(self.layers, str) or not self.layers:
            fix = f"; write ({self.layers!r},)" if self.layers else ""
            raise ValueError(f"layers={self.layers!r} must be a non-empty sequence of layer names{fix}")
        _check_k("n_neighbors", self.n_neighbors)
        _check_k("batch_size", self.batch_size)
        images = self._tensor(X)
        if not len(images):
            raise ValueError("X is empty; give at least one reference of each class")
        labels = _labels(y, len(images))
        self.classes_, encoded = np.unique(labels, return_inverse=True)
        self.n_features_in_ = int(images[0].numel())
        codes = torch.from_numpy(encoded.astype(np.int64)).to(images.device)
        self.search_ = {
            layer: make_search(features, codes.to(features.device), self.metric, self.backend)
            for layer, features in self._features(images, self.layers).items()
        }
        for search in self.search_.values():
            search.classes = numbers(self.classes_, search.features.device)
        self._codes = codes
        return self

    def kneighbors(
        self, X: ArrayLike | Tensor, n_neighbors: int | None = None, *, layer: str | None = None
    ) -> tuple[NDArray[np.floating[Any]], NDArray[np.int64]]:
        """Distances and reference positions (queries, k) at one layer (default: the first), nearest first."""
        layer = layer or self.layers[0]
        found = self._neighbours(X, self.n_neighbors if n_neighbors is None else n_neighbors, (layer,))[layer]
        return found.distances.cpu().numpy(), found.indices.cpu().numpy()

    def predict_proba(self, X: ArrayLike | Tensor) -> NDArray[np.float64]:
        """Mean over layers of each class's share of the K votes, (queries, classes)."""
        total = torch.stack(self._votes(X)).sum(0).double().cpu().numpy()
        return np.asarray(total / (self.n_neighbors * len(self.layers)))

    def predict(self, X: ArrayLike | Tensor) -> NDArray[Any]:
        """Labels (queries,)."""
        predicted = classify(self._votes(X)).cpu().numpy()
        return np.asarray(self.classes_[predicted])

    def score(self, X: ArrayLike | Tensor, y: ArrayLike | Tensor) -> float:
        """Share of X whose predicted label is y (samples,)."""
        predicted = self.predict(X)
        return float(np.mean(predicted == _labels(y, len(predicted))))

    def _votes(self, X: ArrayLike | Tensor) -> list[Tensor]:
        found = self._neighbours(X, self.n_neighbors, self.layers)
        return [votes(self._codes[n.indices], len(self.classes_)) for n in found.values()]

    def _neighbours(self, X: ArrayLike | Tensor, k: int, layers: Sequence[str]) -> dict[str, Neighbours]:
        if not hasattr(self, "search_"):
            raise ValueError("this DkNN is not fitted yet; call fit(X, y) first")
        _check_k("n_neighbors", k)
        unknown = [layer for layer in layers if layer not in self.search_]
        if unknown:
            raise ValueError(f"layer {unknown[0]!r} was not fitted; choose from {', '.join(self.search_)}")
        features = self._features(self._tensor(X), layers)
        return {layer: self.search_[layer].search(f, k=k) for layer, f in features.items()}

    def _tensor(self, X: ArrayLike | Tensor) -> Tensor:
        """Samples as a tensor of the type that they are compared in, or that a feature function gets."""
        array = X if isinstance(X, Tensor) else np.asarray(X)
        if array.ndim < 2:
            raise ValueError(f"X must be (samples, ...), got shape {tuple(array.shape)}; a single sample is x[None]")
        if isinstance(array, Tensor) and self.features is not None:
            return array
        kept = str(array.dtype).rpartition(".")[2] in _WIDE and self.features is None
        kind = torch.float64 if kept else torch.float32
        return array.to(kind) if isinstance(array, Tensor) else torch.as_tensor(array, dtype=kind)

    def _features(self, images: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        if self.features is None:
            return {layer: images.flatten(1) for layer in layers}
        with torch.inference_mode(), evaluating(self.features):
            parts = [self.features(batch, tuple(layers)) for batch in images.split(self.batch_size)]
        return {layer: torch.cat([part[layer] for part in parts]) for layer in layers}


def make_search(
    features: Tensor, labels: Tensor, similarity: Similarity, backend: str = "exact", *, n_classes: int | None = None
) -> ExactSearch:
    """A reference set by backend name: ``exact``, ``faiss`` or ``faiss-ivf``."""
    if backend == "exact":
        return ExactSearch(features, labels, n_classes=n_classes, similarity=similarity)
    from ask.knn.faiss import FaissSearch

    if backend not in ("faiss", "faiss-ivf"):
        raise ValueError(f"backend={backend!r} is not one of exact, faiss, faiss-ivf")
    approximate = backend == "faiss-ivf"
    return FaissSearch(features, labels, n_classes=n_classes, similarity=similarity, approximate=approximate)


_WIDE = ("float64", "int32", "int64", "uint32", "uint64")
"""Types of samples that float32 would cut."""


def numbers(classes: NDArray[Any], device: torch.device | None = None) -> Tensor | None:
    """Labels seen in ``fit`` (classes,), int64, by which attacks know the classes.

    None where classes are positions for them: labels 0, 1, ..., or no numbers. Raises ValueError for fractions.
    """
    if classes.dtype.kind not in "biuf":
        return None
    whole = classes.astype(np.int64)
    if (whole != classes).any():
        raise ValueError("labels are fractions; classes must be whole numbers or strings")
    return None if np.array_equal(whole, np.arange(len(whole))) else torch.from_numpy(whole).to(device)


def _labels(y: ArrayLike | Tensor, samples: int) -> NDArray[Any]:
    """Labels (samples,); raises ValueError, with the fix, for another shape."""
    labels = y.detach().cpu().numpy() if isinstance(y, Tensor) else np.asarray(y)
    if labels.shape != (samples,):
        fix = "; ravel() it" if labels.size == samples else ""
        raise ValueError(f"y must have one label for each of the {samples} samples, got shape {labels.shape}{fix}")
    return labels


def _check_k(name: str, k: object) -> None:
    """Raises ValueError unless k is a whole number of at least 1."""
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise ValueError(f"{name}={k!r} must be a whole number of at least 1")
