"""Readers of folders and archives, IDX files, CIFAR-10's binary version and scikit-learn's digits."""

import gzip
import math
import os
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ask.data.arrays import DataError

# What is read at most, a guard against decompression bombs: of a file, and of an archive; an ImageNet fits.
FILE_BYTES = 256 << 20
TOTAL_BYTES = 256 << 30
MOST_FILES = 2_000_000

# What damaged files raise; RuntimeError: the member is encrypted or of an unknown compression.
DAMAGE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, OSError, ValueError, RuntimeError)


class Split(NamedTuple):
    """One split of a data set, not yet written."""

    images: Iterable[NDArray[np.uint8]]  # in order, each (C, H, W)
    labels: NDArray[np.int64]  # class numbers, shape (N,)


class Member(NamedTuple):
    """A file in an archive or folder."""

    name: str  # path inside, with forward slashes
    origin: str  # the archive or folder, for messages
    content: Callable[[], bytes]

    def read(self) -> bytes:
        """The content; DataError if it is damaged."""
        try:
            return self.content()
        except DAMAGE as error:
            raise DataError(f"{self}: unreadable ({error}); get it anew, or remove it") from error

    def __str__(self) -> str:
        return f"{self.origin}/{self.name}"


def members(path: Path) -> list[Member]:
    """The files of a folder (links are followed), a zip or a compressed tar archive (then held in memory).

    Raises:
        DataError: not an archive, a damaged one, or one with unsafe or too large members.
    """
    if path.is_dir():
        files = [Path(folder, name) for folder, _, names in os.walk(path, followlinks=True) for name in names]
        return [Member(file.relative_to(path).as_posix(), str(path), file.read_bytes) for file in files]
    found: list[Member] = []
    tar, total = path.name.endswith((".tgz", ".tar.gz")), 0
    try:
        for name, size, regular, content in _entries(path, tar):
            total += size
            wrong = ""
            if name.startswith("/") or "\\" in name or ".." in name.split("/") or name[1:2] == ":":
                wrong = "its path is absolute, climbs with `..` or has backslashes"
            elif not regular:
                wrong = "it is a link or a device"
            elif len(found) == MOST_FILES or size > FILE_BYTES or total > TOTAL_BYTES:
                wrong = f"at most {MOST_FILES} files of {FILE_BYTES} bytes, {TOTAL_BYTES} in all, are read"
            if wrong:
                raise DataError(
                    f"{path}: member {name!r} refused: {wrong}; make the archive anew, with plain files only"
                )
            member = Member(PurePosixPath(name).as_posix(), str(path), content)
            found.append(member._replace(content=partial(bytes, member.read())) if tar else member)
    except DAMAGE as error:
        raise DataError(f"{path}: not a readable archive ({error}); get it anew") from error
    return found


def _entries(path: Path, tar: bool) -> Iterator[tuple[str, int, bool, Callable[[], bytes]]]:
    """Files in an archive, in its order: name, size, whether each is a regular file, and its content."""
    if tar:
        # Read from front to back, which is the only fast way in a compressed tar archive.
        with tarfile.open(path, "r|*") as archive:
            for info in archive:
                stream = archive.extractfile(info) if info.isreg() else None
                if not info.isdir():
                    yield info.name, info.size, info.isreg(), stream.read if stream else bytes
    else:
        zipped = zipfile.ZipFile(path)  # closes itself with the last of its members
        for entry in zipped.infolist():
            regular = stat.S_IFMT(entry.external_attr >> 16) in (0, stat.S_IFREG)
            if not entry.is_dir():
                yield entry.orig_filename, entry.file_size, regular, partial(zipped.read, entry)


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
