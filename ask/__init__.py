"""ASK: adversarial soft k-nearest-neighbour attack and defence on deep features."""

__version__ = "0.1.0"
