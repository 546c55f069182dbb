"""The deep k-nearest-neighbour classifier (DkNN; paper, eq. 1 and Appendix D)."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ask.knn.search import ExactSearch, Neighbours, Search
from ask.knn.similarity import SIMILARITIES, Similarity


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
        features: maps images (batch, ...) and layer names to features (batch, dimensions) by layer.
        layers: layers that vote.
        n_neighbors: K, of each layer.
        metric: ``cosine`` or ``l2``.
        backend: ``exact`` (torch), ``faiss`` (exact, Flat) or ``faiss-ivf`` (approximate, an explicit choice).
        batch_size: images whose features are computed at a time.

    Attributes:
        classes_: labels seen in ``fit``, ascending.
        n_features_in_: values of one sample.
        search_: the reference set of each layer.

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
        """Index the references X (references, ...) with labels y (references,)."""
        if self.metric not in SIMILARITIES:
            raise ValueError(f"metric={self.metric!r} is not one of {', '.join(SIMILARITIES)}")
        images, labels = _tensor(X), _array(y)
        if labels.shape != (len(images),):
            raise ValueError(f"y must have one label for each of the {len(images)} samples, got shape {labels.shape}")
        self.classes_, encoded = np.unique(labels, return_inverse=True)
        self.n_features_in_ = int(images[0].numel())
        codes = torch.from_numpy(encoded.astype(np.int64)).to(images.device)
        self.search_ = {
            layer: make_search(features, codes.to(features.device), self.metric, self.backend)
            for layer, features in self._features(images, self.layers).items()
        }
        self._codes = codes
        return self

    def kneighbors(
        self, X: ArrayLike | Tensor, n_neighbors: int | None = None, *, layer: str | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Distances and reference positions (queries, k) at one layer (default: the first), nearest first."""
        layer = layer or self.layers[0]
        found = self._neighbours(X, n_neighbors or self.n_neighbors, (layer,))[layer]
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
        """Share of X whose predicted label is y."""
        return float(np.mean(self.predict(X) == _array(y)))

    def _votes(self, X: ArrayLike | Tensor) -> list[Tensor]:
        found = self._neighbours(X, self.n_neighbors, self.layers)
        return [votes(self._codes[n.indices], len(self.classes_)) for n in found.values()]

    def _neighbours(self, X: ArrayLike | Tensor, k: int, layers: Sequence[str]) -> dict[str, Neighbours]:
        if not hasattr(self, "search_"):
            raise ValueError("this DkNN is not fitted yet; call fit(X, y) first")
        features = self._features(_tensor(X), layers)
        return {layer: self.search_[layer].search(f, k=k) for layer, f in features.items()}

    def _features(self, images: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        if self.features is None:
            return {layer: images.flatten(1) for layer in layers}
        with torch.inference_mode():
            parts = [self.features(batch, tuple(layers)) for batch in images.split(self.batch_size)]
        return {layer: torch.cat([part[layer] for part in parts]) for layer in layers}


def make_search(features: Tensor, labels: Tensor, similarity: Similarity, backend: str = "exact") -> Search:
    """A reference set by backend name: ``exact``, ``faiss`` or ``faiss-ivf``."""
    if backend == "exact":
        return ExactSearch(features, labels, similarity=similarity)
    from ask.knn.faiss import FaissSearch

    if backend not in ("faiss", "faiss-ivf"):
        raise ValueError(f"backend={backend!r} is not one of exact, faiss, faiss-ivf")
    return FaissSearch(features, labels, similarity=similarity, approximate=backend == "faiss-ivf")


def _tensor(X: ArrayLike | Tensor) -> Tensor:
    return X if isinstance(X, Tensor) else torch.as_tensor(np.asarray(X), dtype=torch.float32)


def _array(y: ArrayLike | Tensor) -> NDArray[Any]:
    return np.asarray(y.cpu() if isinstance(y, Tensor) else y)
