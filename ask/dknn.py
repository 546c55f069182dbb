"""The DkNN classifier at the path where earlier versions had it."""

from ask.knn.dknn import DkNN

__all__ = ["DkNN"]
