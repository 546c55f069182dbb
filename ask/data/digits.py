"""scikit-learn's embedded digits: 1797 grey images of 8x8 pixels, 17 grey levels."""

import numpy as np

from .splits import Split

COUNTS = (178, 182, 177, 183, 181, 182, 181, 179, 174, 180)
"""Images of each class, both splits together."""
TEST_EVERY = 5
"""Within each class, in scikit-learn's order, every fifth image (5th, 10th, ...) is a test image; the rest trains."""


def read_digits() -> dict[str, Split]:
    """Read the digits, split 80/20 within each class by the fixed rule `TEST_EVERY`: 1442 training and 355 test images.

    Grey levels 0 to 16 become 0 to 255, rounded to the nearest.
    """
    # Imported here, for it takes a second and the other sources do without it.
    from sklearn.datasets import load_digits

    bunch = load_digits()
    labels = np.asarray(bunch.target, dtype=np.int64)
    images = np.rint(np.asarray(bunch.images) * (255 / 16)).astype(np.uint8)[:, None]
    test = np.zeros(len(labels), dtype=bool)
    for number in range(len(COUNTS)):
        test[np.flatnonzero(labels == number)[TEST_EVERY - 1 :: TEST_EVERY]] = True
    return {"train": Split(labels[~test], [images[~test]]), "test": Split(labels[test], [images[test]])}
