"""The DkNN classifier at the path where earlier versions had it."""

from ask.knn.classifier import DkNN

__all__ = ["DkNN"]
