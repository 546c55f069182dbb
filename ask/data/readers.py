"""Readers of IDX files, CIFAR-10's binary version and scikit-learn's digits."""

import gzip
import math
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ask.data.trees import FILE_BYTES, members
from ask.errors import DataError


class Split(NamedTuple):
    """One split of a data set, not yet written."""

    images: Iterable[NDArray[np.uint8]]  # in order, each (C, H, W)
    labels: NDArray[np.int64]  # class numbers, shape (N,)


def content(path: Path) -> bytes:
    """A file's content, decompressed if it is gzip, whatever its name; DataError if that is damaged."""
    with path.open("rb") as stream:
        zipped = stream.read(2) == b"\x1f\x8b"
        stream.seek(0)
        try:
            return (gzip.GzipFile(fileobj=stream) if zipped else stream).read(FILE_BYTES)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DataError(f"{path}: damaged or truncated gzip file ({error}); delete it and get it anew") from error


def read_idx(path: Path, dims: int) -> NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes, gzip-compressed or not, with ``dims`` dimensions.

    Raises:
        DataError: the magic number, the dimensions or the length are not those of such a file.
    """
    data, start = content(path), 4 + 4 * dims
    if data[:4] != bytes((0, 0, 8, dims)) or len(data) < start:
        raise DataError(f"{path}: not an IDX file of unsigned bytes with {dims} dimension(s); get the publisher's file")
    shape = struct.unpack_from(f">{dims}I", data, 4)
    if len(data) - start != math.prod(shape):
        raise DataError(f"{path}: {len(data) - start} bytes of data, expected shape {shape}; delete it and get it anew")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def read_mnist(paths: Iterable[Path]) -> dict[str, Split]:
    """Read the four files of MNIST or Fashion-MNIST, named as published, with or without ``.gz``, by `read_idx`."""
    named = {path.name.removesuffix(".gz"): path for path in paths}
    splits = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        labels = read_idx(named[f"{prefix}-labels-idx1-ubyte"], 1).astype(np.int64)
        splits[split] = Split(read_idx(named[f"{prefix}-images-idx3-ubyte"], 3)[:, None], labels)
    return splits


def read_cifar(path: Path) -> dict[str, Split]:
    """Read ``cifar-10-binary.tar.gz``, in the publisher's order: records of one label byte and 3072 pixel bytes.

    Raises:
        DataError: the archive is damaged, lacks a batch, or a batch is not a whole number of records.
    """
    batches = {member.name: member.read() for member in members(path)}
    splits = {}
    for split, names in (("train", [f"data_batch_{number}" for number in range(1, 6)]), ("test", ["test_batch"])):
        data = [batches.get(f"cifar-10-batches-bin/{name}.bin", b"") for name in names]
        if any(not batch or len(batch) % 3073 for batch in data):
            raise DataError(f"{path}: a {split} batch is missing or no whole number of records; get it anew")
        records = np.frombuffer(b"".join(data), np.uint8).reshape(-1, 3073)
        splits[split] = Split(records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].astype(np.int64))
    return splits


def read_digits() -> dict[str, Split]:
    """scikit-learn's embedded digits: 1442 training and 355 test images, grey, 8x8, by a fixed rule.

    Within each class, in scikit-learn's order, every fifth image (5th, 10th, ...) is a test image. Grey levels 0 to 16
    become 0 to 255, rounded to the nearest.
    """
    # Imported here, for it takes a second and the other sources do without it.
    from sklearn.datasets import load_digits

    bunch = load_digits()
    labels = np.asarray(bunch.target, dtype=np.int64)
    images = np.rint(np.asarray(bunch.images) * (255 / 16)).astype(np.uint8)[:, None]
    test = np.zeros(len(labels), dtype=bool)
    for number in range(10):
        test[np.flatnonzero(labels == number)[4::5]] = True
    return {"train": Split(images[~test], labels[~test]), "test": Split(images[test], labels[test])}
