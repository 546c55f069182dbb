"""CIFAR-10's binary version: records of one label byte and 3072 pixel bytes, read from the publisher's archive."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .archives import PUBLISHED_LIMITS, read_tar
from .errors import DataError
from .splits import Split

_SHAPE = (3, 32, 32)
_RECORD = 1 + 3 * 32 * 32
_BATCHES = {
    "train": tuple(f"cifar-10-batches-bin/data_batch_{number}.bin" for number in range(1, 6)),
    "test": ("cifar-10-batches-bin/test_batch.bin",),
}


def read_cifar(path: Path) -> dict[str, Split]:
    """Read ``cifar-10-binary.tar.gz``, in the publisher's order.

    Raises:
        DataError: the archive is damaged, lacks a batch, or a batch is not a whole number of records.
    """
    contents = {name: data for name, data in read_tar(path, PUBLISHED_LIMITS) if name.endswith(".bin")}
    splits = {}
    for split, names in _BATCHES.items():
        batches = [_records(contents.get(name), f"{path}: {name}") for name in names]
        labels = np.concatenate([batch[:, 0] for batch in batches]).astype(np.int64)
        splits[split] = Split(labels, [batch[:, 1:].reshape(-1, *_SHAPE) for batch in batches])
    return splits


def _records(data: bytes | None, label: str) -> NDArray[np.uint8]:
    if data is None:
        raise DataError(f"{label}: not in the archive; get the publisher's cifar-10-binary.tar.gz")
    if not data or len(data) % _RECORD:
        raise DataError(f"{label}: {len(data)} bytes, expected a multiple of {_RECORD}; get the archive anew")
    records = np.frombuffer(data, dtype=np.uint8).reshape(-1, _RECORD)
    if records[:, 0].max() > 9:
        raise DataError(f"{label}: label {records[:, 0].max()}, expected 0 to 9; get the publisher's archive")
    return records
