"""The deep k-nearest-neighbour classifier (DkNN; paper, eq. 1 and Appendix D) as an estimator of scikit-learn."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Self, overload

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_array, check_is_fitted, validate_data
from torch import Tensor

from ask.knn.dknn import classify, make_search, numbers, votes
from ask.knn.search import Neighbours
from ask.knn.similarity import SIMILARITIES, Similarity
from ask.models.hooks import check_features, evaluating
from ask.precision import undisturbed

Array = NDArray[Any]


class DkNN(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn ships no types
    """Majority vote of k-nearest-neighbour classifiers on selected layers; scikit-learn's estimator contract.

    Without ``features`` it is a plain kNN classifier on arrays (the layer is called ``input``).

    Args:
        features: maps images (batch, ...) and layer names to features (batch, dimensions) by layer, e.g.
            :func:`ask.models.hooks.hook_features`. What it hooks, or the module whose bound method it is, is in
            evaluation mode as long as a call runs. scikit-learn's ``clone`` shares it.
        layers: layers that vote, a sequence of names; None: all that are hooked, else ``input``.
        n_neighbors: K, of each layer.
        metric: ``cosine`` or ``l2``.
        backend: ``exact`` (torch), ``faiss`` (exact, Flat) or ``faiss-ivf`` (approximate, an explicit choice).
        batch_size: images whose features are computed at a time.

    Attributes:
        classes_: labels seen in ``fit``, ascending.
        layers_: layers that vote.
        n_features_in_: values of one sample.
        feature_names_in_: names of the columns, where ``fit`` got a data frame.
        search_: the reference set of each layer, which knows ``classes_`` where they are not 0, 1, ...

    Samples are tensors or arrays. Without ``features`` they keep float64, and whole numbers of more than 16 bits become
    float64; all else is compared in float32. A feature function gets tensors as they are, and arrays as float32.
    Queries are compared in the type of the references.

    A tie between classes goes to the lowest; equidistant references to the one given first.

    >>> DkNN(hook_features(network, ["layer3", "layer4"]), n_neighbors=5).fit(images, labels).predict(others)
    """

    def __init__(
        self,
        features: Callable[[Tensor, Sequence[str]], Mapping[str, Tensor]] | None = None,
        *,
        layers: Sequence[str] | None = None,
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

    def __sklearn_clone__(self) -> Self:
        # A copy of the network in each clone would be a waste.
        return type(self)(**self.get_params(deep=False))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags

    def fit(self, X: ArrayLike | Tensor, y: ArrayLike | Tensor) -> Self:
        """Index the references X (references, ...) with labels y (references,), whole numbers or strings."""
        if self.metric not in SIMILARITIES:
            raise ValueError(f"metric={self.metric!r} is not one of {', '.join(SIMILARITIES)}")
        if self.features is not None:
            check_features(self.features)
        layers = getattr(self.features, "paths", ("input",)) if self.layers is None else self.layers
        if isinstance(layers, str) or not layers or len(set(layers)) < len(layers):
            fix = f"; write ({layers!r},)" if layers and isinstance(layers, str) else ""
            raise ValueError(f"layers={layers!r} must be a non-empty sequence of layer names, each once{fix}")
        _check_k("n_neighbors", self.n_neighbors)
        _check_k("batch_size", self.batch_size)
        images = self._tensor(X, fitting=True)
        if not len(images):
            raise ValueError("X is empty; give at least one reference of each class")
        labels = _labels(y, len(images))
        self.classes_, encoded = np.unique(labels, return_inverse=True)
        names = numbers(self.classes_)
        self.layers_ = tuple(layers)
        self.n_features_in_ = int(images[0].numel())
        self._codes = torch.from_numpy(encoded.astype(np.int64)).to(images.device)
        with undisturbed(images.device):
            self.search_ = {
                layer: make_search(features, self._codes.to(features.device), self.metric, self.backend)
                for layer, features in self._features(images, self.layers_).items()
            }
        for search in self.search_.values():
            search.classes = None if names is None else names.to(search.features.device)
        return self

    @overload
    def kneighbors(
        self,
        X: ArrayLike | Tensor,
        n_neighbors: int | None = ...,
        return_distance: Literal[True] = ...,
        *,
        layer: str | None = ...,
    ) -> tuple[Array, Array]: ...
    @overload
    def kneighbors(
        self, X: ArrayLike | Tensor, n_neighbors: int | None = ..., *, return_distance: bool, layer: str | None = ...
    ) -> Any: ...

    def kneighbors(
        self,
        X: ArrayLike | Tensor,
        n_neighbors: int | None = None,
        return_distance: bool = True,
        *,
        layer: str | None = None,
    ) -> tuple[Array, Array] | Array:
        """Distances and reference positions (queries, k) at one layer (default: the first), nearest first.

        Without ``return_distance``, the positions alone.
        """
        check_is_fitted(self, "search_", msg=_UNFITTED)
        layer = layer or self.layers_[0]
        found = self._neighbours(X, self.n_neighbors if n_neighbors is None else n_neighbors, (layer,))[layer]
        positions = found.indices.cpu().numpy()
        return (found.distances.cpu().numpy(), positions) if return_distance else positions

    def predict_proba(self, X: ArrayLike | Tensor) -> NDArray[np.float64]:
        """Mean over layers of each class's share of the K votes, (queries, classes)."""
        total = torch.stack(self._votes(X)).sum(0).double().cpu().numpy()
        return np.asarray(total / (self.n_neighbors * len(self.layers_)))

    def predict(self, X: ArrayLike | Tensor) -> NDArray[Any]:
        """Labels (queries,)."""
        predicted = classify(self._votes(X)).cpu().numpy()
        return np.asarray(self.classes_[predicted])

    def score(self, X: ArrayLike | Tensor, y: ArrayLike | Tensor) -> float:
        """Share of X whose predicted label is y (samples,)."""
        predicted = self.predict(X)
        labels = _labels(y, len(predicted))
        if (labels.dtype.kind in "biuf") != (predicted.dtype.kind in "biuf"):
            raise ValueError(
                f"y holds {labels.dtype}, labels given to fit are {predicted.dtype}; give labels as to fit"
            )
        return float(np.mean(predicted == labels))

    def _votes(self, X: ArrayLike | Tensor) -> list[Tensor]:
        check_is_fitted(self, "search_", msg=_UNFITTED)
        found = self._neighbours(X, self.n_neighbors, self.layers_)
        return [votes(self._codes.to(n.indices.device)[n.indices], len(self.classes_)) for n in found.values()]

    def _neighbours(self, X: ArrayLike | Tensor, k: int, layers: Sequence[str]) -> dict[str, Neighbours]:
        _check_k("n_neighbors", k)
        unknown = [layer for layer in layers if layer not in self.search_]
        if unknown:
            raise ValueError(f"layer {unknown[0]!r} was not fitted; choose from {', '.join(self.search_)}")
        images = self._tensor(X)
        with undisturbed(images.device):
            features = self._features(images, layers)
            return {layer: self.search_[layer].search(f, k=k) for layer, f in features.items()}

    def _tensor(self, X: ArrayLike | Tensor, *, fitting: bool = False) -> Tensor:
        """Samples as a tensor of the type that they are compared in, or that a feature function gets."""
        if not isinstance(X, Tensor):
            # More axes than two are an image's, of which scikit-learn would count the second.
            axes = getattr(X, "ndim", None) or np.asarray(X).ndim
            array = check_array(X, allow_nd=True) if axes > 2 else validate_data(self, X, reset=fitting)
            table = axes == 2 and array.dtype not in (np.uint8, np.bool_)
            self._check_floating(array.dtype, table or array.dtype.kind == "f")
            kind = np.float64 if self._kind(array) == torch.float64 else np.float32
            return torch.from_numpy(np.require(array, kind, ["C", "W"]))
        if X.ndim < 2:
            raise ValueError(f"X must be (samples, ...), got shape {tuple(X.shape)}; a single sample is x[None]")
        self._check_floating(X.dtype, X.is_floating_point())
        return X.detach() if self.features is not None else X.detach().to(self._kind(X))

    def _check_floating(self, kind: object, floating: bool) -> None:
        if self.features is not None and not floating:
            raise ValueError(f"features are of floating-point images in [0, 1], got {kind}; divide by 255?")

    def _kind(self, array: Array | Tensor) -> torch.dtype:
        """float64 where float32 would cut samples, in whatever order their bytes are."""
        kind = array.dtype
        floating = kind.is_floating_point if isinstance(kind, torch.dtype) else kind.kind == "f"
        wide = kind.itemsize >= (8 if floating else 4)
        return torch.float64 if wide and self.features is None else torch.float32

    def _features(self, images: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        if self.features is None:
            return {layer: images.flatten(1) for layer in layers}
        with torch.no_grad(), evaluating(self.features):  # in inference mode, what a network keeps has no gradients
            parts = [self.features(batch, tuple(layers)) for batch in images.split(self.batch_size)]
        if missing := [layer for layer in layers if layer not in parts[0]]:
            raise ValueError(f"features returned layers {', '.join(parts[0])}, not {missing[0]!r}; name layers")
        return {layer: torch.cat([part[layer] for part in parts]) for layer in layers}


_UNFITTED = "this DkNN is not fitted yet; call fit(X, y) first"


def _labels(y: ArrayLike | Tensor | None, samples: int) -> NDArray[Any]:
    """Labels (samples,); raises ValueError, with the fix, for another shape."""
    if y is None:
        raise ValueError("DkNN requires y to be passed, but the target y is None")
    labels = y.detach().cpu().numpy() if isinstance(y, Tensor) else np.asarray(y)
    if labels.shape != (samples,):
        fix = "; ravel() it" if labels.size == samples else ""
        raise ValueError(f"y must have one label for each of the {samples} samples, got shape {labels.shape}{fix}")
    return labels


def _check_k(name: str, k: object) -> None:
    """Raises ValueError unless k is a whole number of at least 1."""
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise ValueError(f"{name}={k!r} must be a whole number of at least 1")
