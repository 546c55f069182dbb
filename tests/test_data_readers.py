"""Readers of IDX files, CIFAR-10's binary version and the embedded digits, and resizing."""

import gzip
import io
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from ask.data import DataError
from ask.data.images import resize
from ask.data.readers import read_cifar, read_digits, read_idx
from ask.data.sources import PUBLISHED


def idx_bytes(array: NDArray[np.uint8]) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@given(
    shape=st.lists(st.integers(0, 5), min_size=1, max_size=4),
    compressed=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_idx_round_trip(
    tmp_path_factory: pytest.TempPathFactory, shape: list[int], compressed: bool, seed: int
) -> None:
    array = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    path = tmp_path_factory.getbasetemp() / "round-trip-idx"
    path.write_bytes(gzip.compress(idx_bytes(array), mtime=0) if compressed else idx_bytes(array))
    read = read_idx(path, len(shape))
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, array)


GOOD = idx_bytes(np.arange(12, dtype=np.uint8).reshape(3, 2, 2))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an IDX file"),
        (b"\x00\x00\x0d\x03" + GOOD[4:], "not an IDX file"),
        (idx_bytes(np.zeros(4, np.uint8)), r"not an IDX file of unsigned bytes with 3 dimension\(s\)"),
        (GOOD[:9], "not an IDX file"),
        (GOOD[:-1], r"11 bytes of data, expected shape \(3, 2, 2\)"),
        (GOOD + b"\0", "13 bytes of data"),
        (b"\x00\x00\x08\x03" + struct.pack(">3I", 2**31, 2**31, 2**31), "0 bytes of data"),
        (gzip.compress(GOOD, mtime=0)[:-9], "damaged or truncated gzip"),
        (gzip.compress(GOOD, mtime=0)[:-8] + b"\0" * 8, "damaged or truncated gzip"),
        (b"\x1f\x8b no gzip", "damaged or truncated gzip"),
    ],
)
def test_idx_errors(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "images-idx3-ubyte"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_idx(path, 3)
    assert str(path) in str(caught.value)


def cifar_batches(records: int = 4) -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    names = [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]
    batches = {}
    for name in names:
        batch = rng.integers(0, 256, (records, 3073), dtype=np.uint8)
        batch[:, 0] %= 10
        batches[f"cifar-10-batches-bin/{name}"] = batch.tobytes()
    return batches


def write_tar(path: Path, contents: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, data in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def test_cifar_reads_the_publishers_order(tmp_path: Path) -> None:
    batches = cifar_batches()
    # The order in the archive is not that of the batches.
    splits = read_cifar(write_tar(tmp_path / "cifar.tar.gz", dict(reversed(batches.items()))))
    train = np.asarray(splits["train"].images)
    assert train.shape == (20, 3, 32, 32)
    assert np.asarray(splits["test"].images).shape == (4, 3, 32, 32)
    third = np.frombuffer(batches["cifar-10-batches-bin/data_batch_3.bin"], np.uint8).reshape(4, 3073)
    np.testing.assert_array_equal(train[8:12].reshape(4, -1), third[:, 1:])
    np.testing.assert_array_equal(splits["train"].labels[8:12], third[:, 0])
    assert splits["train"].labels.dtype == np.int64


def test_cifar_errors(tmp_path: Path) -> None:
    name = "cifar-10-batches-bin/data_batch_2.bin"
    path = tmp_path / "cifar.tar.gz"
    missing = cifar_batches()
    del missing[name]
    for contents in (
        missing,
        cifar_batches() | {name: b"\0" * 3074},
        cifar_batches() | {name: b""},
    ):
        with pytest.raises(DataError, match="a train batch is missing or no whole number of records"):
            read_cifar(write_tar(path, contents))
    whole = write_tar(path, cifar_batches()).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"data_batch_\d.bin: unreadable"):
        read_cifar(path)


def test_digits_facts() -> None:
    splits = read_digits()
    images = {name: np.asarray(split.images) for name, split in splits.items()}
    counts = {name: np.bincount(split.labels) for name, split in splits.items()}
    assert images["train"].shape == (1442, 1, 8, 8)
    assert images["test"].shape == (355, 1, 8, 8)
    assert counts["train"].tolist() == list(PUBLISHED["digits"].train_counts)
    assert counts["test"].tolist() == list(PUBLISHED["digits"].test_counts)
    assert (images["train"].min(), images["train"].max()) == (0, 255)
    # Seventeen grey levels, evenly spread.
    levels = np.unique(images["train"])
    assert levels.tolist() == [round(level * 255 / 16) for level in range(17)]


def test_digits_test_images_are_every_fifth_of_a_class() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    bunch = datasets.load_digits()
    fifth = np.flatnonzero(bunch.target == 7)[4]
    splits = read_digits()
    first_seven = np.flatnonzero(splits["test"].labels == 7)[0]
    image = np.asarray(splits["test"].images)[first_seven, 0]
    np.testing.assert_array_equal(np.rint(image / 255 * 16), bunch.images[fifth])


@pytest.mark.parametrize("channels", [1, 3])
def test_resizing(channels: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (channels, 8, 8), dtype=np.uint8)
    assert resize(image, None) is image
    np.testing.assert_array_equal(resize(image, 32), image.repeat(4, axis=1).repeat(4, axis=2))
    assert resize(image, 12).shape == (channels, 12, 12)
    # Antialiased shrinking to a half is a weighted mean: it keeps the mean of the whole image nearly unchanged.
    assert abs(float(resize(image, 4).mean()) - float(image.mean())) < 5
