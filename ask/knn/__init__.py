"""Exact nearest-neighbour search on features, and the DkNN classifier."""

from typing import TYPE_CHECKING

from ask.lazy import exports

if TYPE_CHECKING:
    from ask.knn.classifier import DkNN
    from ask.knn.search import ExactSearch, Neighbours, Search

__all__ = ["DkNN", "ExactSearch", "Neighbours", "Search"]
__getattr__ = exports(
    __name__, {"DkNN": "classifier", "ExactSearch": "search", "Neighbours": "search", "Search": "search"}
)
