"""What is written down about prepared arrays, and what must be true of them."""

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .digits import COUNTS
from .errors import DataError
from .sources import PUBLISHED

TOLERANCE = 1e-4
"""Largest difference from known means and deviations, which are published to four digits."""
_CHUNK = 4096


def split_facts(images: NDArray[np.uint8], labels: NDArray[np.int64], classes: int) -> dict[str, Any]:
    """Facts of one split.

    Args:
        images: uint8 (N, C, H, W).
        labels: int64 (N,), in [0, classes).
        classes: Number of classes.

    Returns:
        ``images`` (N), ``per_class`` counts, channel ``mean`` and ``std`` in [0, 1], and ``sha256`` of the two arrays'
        elements (row-major bytes, without the .npy header).
    """
    channels = images.shape[1]
    digest = hashlib.sha256()
    histogram = np.zeros((channels, 256), dtype=np.int64)
    for start in range(0, len(images), _CHUNK):
        chunk = images[start : start + _CHUNK]
        digest.update(np.ascontiguousarray(chunk).data)
        for channel in range(channels):
            histogram[channel] += np.bincount(chunk[:, channel].ravel(), minlength=256)
    levels = np.arange(256) / 255
    shares = histogram / histogram.sum(axis=1, keepdims=True)
    mean = shares @ levels
    std = np.sqrt(np.maximum(shares @ levels**2 - mean**2, 0))
    return {
        "images": len(images),
        "per_class": np.bincount(labels, minlength=classes).tolist(),
        "mean": [round(float(value), 8) for value in mean],
        "std": [round(float(value), 8) for value in std],
        "sha256": {
            "images": digest.hexdigest(),
            "labels": hashlib.sha256(np.ascontiguousarray(labels).data).hexdigest(),
        },
    }


def check(facts: dict[str, Any]) -> None:
    """Compare facts with what is known about their source.

    Args:
        facts: Content of a ``facts.json``.

    Raises:
        DataError: counts a class differ, or channel means or deviations by more than `TOLERANCE`.
    """
    source = facts["source"]
    train, test = facts["splits"]["train"], facts["splits"]["test"]
    if source == "digits":
        both = np.add(train["per_class"], test["per_class"]).tolist()
        _same(source, "images a class", both, list(COUNTS))
        return
    if source not in PUBLISHED:
        return
    known = PUBLISHED[source]
    _same(known.title, "training images a class", train["per_class"], list(known.train_counts))
    _same(known.title, "test images a class", test["per_class"], list(known.test_counts))
    # Resizing moves the means a little, so that the published ones no longer apply.
    if known.mean and tuple(facts["image_shape"]) == known.shape:
        _close(known.title, "channel means", train["mean"], known.mean)
        _close(known.title, "channel deviations", train["std"], known.std)


def _same(title: str, what: str, found: list[int], expected: list[int]) -> None:
    if found != expected:
        raise DataError(
            f"{title}: {what} are {found}, expected {expected}; delete its raw files and run `python -m ask data`"
        )


def _close(title: str, what: str, found: list[float], expected: tuple[float, ...]) -> None:
    if len(found) != len(expected) or np.abs(np.subtract(found, expected)).max() > TOLERANCE:
        raise DataError(
            f"{title}: {what} of the training images are {found}, expected {list(expected)} within {TOLERANCE}; "
            f"delete its raw files and run `python -m ask data`"
        )
