"""The data steps from end to end, and what `load` gives and refuses."""

import errno
import io
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_data_download import Server, compressed, idx_files, publish, server, write_zips
from test_data_images import CONTENTS, png, write_folder, write_zip
from test_data_readers import cifar_batches, write_tar

from ask.config.base import DataSpec, Source
from ask.data import DataError, download, load, prepare, preparing
from ask.data.preparing import check
from ask.data.sources import PUBLISHED

__all__ = ["server"]

MIRROR = os.environ.get("ASK_DATA_MIRROR")
needs_mirror = pytest.mark.skipif(not MIRROR, reason="needs the real data: set ASK_DATA_MIRROR (layout: docs/data.md)")
PREPARED = ["facts.json", "test_images.npy", "test_labels.npy", "train_images.npy", "train_labels.npy"]


SMALL_DISK = ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size=1m none "$0" && exec "$@"']
needs_mounts = pytest.mark.skipif(
    not shutil.which("unshare") or bool(subprocess.run([*SMALL_DISK, "/mnt", "true"], capture_output=True).returncode),
    reason="mounts nothing",
)


def on_a_small_disk(code: str, folder: Path) -> int:
    """Exit status of Python code that is given a folder, there a disk of 1 MiB."""
    return subprocess.run([*SMALL_DISK, folder, sys.executable, "-c", code, folder]).returncode


def make(spec: DataSpec, root: Path, name: str, mirror: str | None = None) -> Path:
    download(spec, root, mirror)
    return prepare(spec, root, name)


def facts_of(folder: Path) -> Any:
    return json.loads((folder / "facts.json").read_text(encoding="utf-8"))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def test_import_is_light() -> None:
    heavy = {"torch", "torchvision", "numpy", "PIL", "sklearn"}
    code = f"import sys, ask.data; print(sorted(sys.modules.keys() & {heavy!r}))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
    code = f"import sys; from ask.data import download, prepare, load; print(sorted(sys.modules.keys() & {heavy!r}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert loaded == "['PIL', 'numpy']\n"


def test_digits(tmp_path: Path) -> None:
    folder = make(DataSpec(source="digits"), tmp_path, "digits")
    assert folder == tmp_path / "prepared" / "digits"
    assert names(folder) == PREPARED
    images, labels = load(folder, "train")
    assert isinstance(images, np.memmap)
    assert (images.shape, images.dtype) == ((1442, 1, 8, 8), np.dtype(np.uint8))
    assert (labels.shape, labels.dtype) == ((1442,), np.dtype(np.int64))
    assert images.flags.c_contiguous
    assert not images.flags.writeable
    facts = facts_of(folder)
    assert facts["image_shape"] == [1, 8, 8]
    assert facts["splits"]["test"]["images"] == len(load(folder, "test")[0]) == 355
    scaled = np.asarray(images) / 255
    assert facts["splits"]["train"]["mean"] == pytest.approx([scaled.mean()], abs=1e-7)
    assert facts["splits"]["train"]["std"] == pytest.approx([scaled.std()], abs=1e-7)
    large, _ = load(make(DataSpec(source="digits", image_size=32), tmp_path, "digits32"), "train")
    np.testing.assert_array_equal(large, images.repeat(4, axis=2).repeat(4, axis=3))
    first = facts["splits"]
    assert facts_of(make(DataSpec(source="digits"), tmp_path, "digits"))["splits"] == first
    assert names(tmp_path / "prepared") == ["digits", "digits32"]


def test_idx_source(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    content = idx_files()
    publish(server, monkeypatch, compressed(content))
    folder = make(DataSpec(source="mnist"), tmp_path, "small")
    images, labels = load(folder, "train")
    assert images.tobytes() == content["train-images-idx3-ubyte"][16:]
    assert labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert facts_of(folder)["class_names"] == ["cat", "dog"]


def test_cifar_source(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = write_tar(tmp_path / "cifar.tar.gz", cifar_batches(records=50)).read_bytes()
    publish(server, monkeypatch, {"cifar-10-binary.tar.gz": archive}, "cifar10")
    monkeypatch.setattr(preparing, "check", lambda facts: None)
    monkeypatch.setitem(PUBLISHED, "cifar10", replace(PUBLISHED["cifar10"], class_names=tuple("abcdefghij")))
    folder = make(DataSpec(source="cifar10"), tmp_path, "small")
    assert load(folder, "train")[0].shape == (250, 3, 32, 32)
    assert facts_of(folder)["note"] == ""
    resized = make(DataSpec(source="cifar10", image_size=16), tmp_path, "smaller")
    assert load(resized, "test")[0].shape == (50, 3, 16, 16)


def test_image_zip_source(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(server, monkeypatch, {"archive.tar.gz": b""}, "cifar10")
    write_zips(tmp_path / "mirror" / "cifar10")
    folder = make(DataSpec(source="cifar10"), tmp_path, "small", str(tmp_path / "mirror"))
    assert load(folder, "train")[1].tolist() == [0, 1, 1]
    assert facts_of(folder)["note"] == "From zips."


def test_imagenette_source(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = {f"imagenette2-160/{name.replace('test/', 'val/')}": data for name, data in CONTENTS.items()}
    contents |= {"imagenette2-160/noisy_imagenette.csv": b"x", "imagenette2-160/train/dog/wide.png": png(7, (8, 6))}
    archive = write_tar(tmp_path / "a.tgz", contents).read_bytes()
    publish(server, monkeypatch, {"imagenette2-160.tgz": archive}, "imagenette")
    known: dict[str, Any] = {"class_names": ("Dog", "Cat"), "class_folders": ("dog", "cat"), "train_counts": (3, 1)}
    monkeypatch.setitem(PUBLISHED, "imagenette", replace(PUBLISHED["imagenette"], **known))
    with pytest.raises(DataError, match="images differ in size"):
        make(DataSpec(source="imagenette"), tmp_path, "small")
    folder = make(DataSpec(source="imagenette", image_size=8), tmp_path, "small")
    images, labels = load(folder, "train")
    assert images.shape == (4, 3, 8, 8)
    assert labels.tolist() == [0, 0, 0, 1]
    assert (facts_of(folder)["class_names"], facts_of(folder)["note"]) == (["Dog", "Cat"], "")


@pytest.mark.parametrize("as_zip", [False, True])
def test_own_images(tmp_path: Path, as_zip: bool) -> None:
    path = write_zip(tmp_path / "own.zip", CONTENTS) if as_zip else write_folder(tmp_path / "own", CONTENTS)
    spec = DataSpec(source="images", path=str(path))
    folder = make(spec, tmp_path, "own")
    assert facts_of(folder)["class_names"] == ["cat", "dog"]
    assert facts_of(folder)["splits"]["train"]["per_class"] == [1, 2]
    assert json.loads((tmp_path / "raw/images/manifest.json").read_text()) == {"source": "images"}


def test_prepare_needs_complete_raw_files(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(server, monkeypatch, compressed(idx_files()))
    spec = DataSpec(source="mnist")
    with pytest.raises(DataError, match=r"mnist/manifest.json: missing.*run the download again"):
        prepare(spec, tmp_path, "small")
    raw = download(spec, tmp_path, None).parent
    (raw / "train-labels-idx1-ubyte.gz").write_bytes(b"damaged")
    with pytest.raises(
        DataError, match=r"train-labels-idx1-ubyte.gz: missing or damaged; delete .*manifest.json and run"
    ):
        prepare(spec, tmp_path, "small")
    (raw / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match=r"train-labels-idx1-ubyte.gz: missing"):
        prepare(spec, tmp_path, "small")
    assert names(tmp_path / "prepared") == []


def test_a_failure_leaves_earlier_arrays_alone(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(server, monkeypatch, compressed(idx_files()))
    folder = make(DataSpec(source="mnist"), tmp_path, "small")
    before = facts_of(folder)
    monkeypatch.setitem(PUBLISHED, "mnist", replace(PUBLISHED["mnist"], train_counts=(4, 2)))
    with pytest.raises(DataError, match=r"Small: training images a class are \[3, 3\], expected \[4, 2\]"):
        prepare(DataSpec(source="mnist"), tmp_path, "small")
    assert facts_of(folder) == before
    assert names(tmp_path / "prepared") == ["small"]


def test_prepare_clears_up_after_a_killed_run(tmp_path: Path) -> None:
    spec = DataSpec(source="digits")
    killed = write_folder(tmp_path / "prepared" / ".digits.tmp", {"train_images.npy": b"half"})
    old = write_folder(tmp_path / "prepared" / ".digits.old", {"train_images.npy": b"old"})
    folder = make(spec, tmp_path, "digits")
    assert not killed.exists()
    assert not old.exists()
    assert names(folder) == PREPARED


@needs_mounts
def test_a_full_disk_is_an_error(tmp_path: Path) -> None:
    """Through a memory map, it would be a signal that kills the process."""
    write = (
        "import errno, sys; from pathlib import Path; import numpy as np; from ask.data import preparing\n"
        "split = preparing.Split([np.ones((3, 64, 64), np.uint8)] * 500, np.zeros(500, np.int64))\n"
        "try: preparing._write('train', split, None, Path(sys.argv[1]))\n"
        "except OSError as error: sys.exit(error.errno)\n"
    )
    assert on_a_small_disk(write, tmp_path) == errno.ENOSPC


@pytest.mark.parametrize("name", ["", "..", "../up", "a/b", ".hidden", "a b"])
def test_prepare_refuses_names_that_are_no_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="data set name"):
        prepare(DataSpec(source="digits"), tmp_path, name)


def known_facts(source: str) -> dict[str, Any]:
    known = PUBLISHED[source]
    train = {"per_class": list(known.train_counts), "mean": list(known.mean), "std": list(known.std)}
    test = {"per_class": list(known.test_counts), "mean": [], "std": []}
    return {"source": source, "image_shape": list(known.shape or ()), "splits": {"train": train, "test": test}}


@pytest.mark.parametrize("source", list(PUBLISHED))
def test_known_facts(source: str) -> None:
    check(known_facts(source))
    wrong = known_facts(source)
    wrong["splits"]["test"]["per_class"][3] += 1
    with pytest.raises(DataError, match="test images a class"):
        check(wrong)
    if not PUBLISHED[source].mean:
        return
    for kind, message in (("mean", "channel means"), ("std", "channel deviations")):
        wrong = known_facts(source)
        wrong["splits"]["train"][kind][0] += 0.001
        with pytest.raises(DataError, match=message):
            check(wrong)
        # Resized images have means of their own.
        check(wrong | {"image_shape": [3, 8, 8]})


def test_totals_of_published_counts() -> None:
    totals = {name: (sum(known.train_counts), sum(known.test_counts)) for name, known in PUBLISHED.items()}
    assert totals == {
        "cifar10": (50000, 10000),
        "imagenette": (9469, 3925),
        "mnist": (60000, 10000),
        "fashion_mnist": (60000, 10000),
        "digits": (1442, 355),
    }


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def npz() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, a=np.zeros(1))
    return stream.getvalue()


IMAGES = np.zeros((4, 1, 2, 2), np.uint8)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train_images.npy", None, "missing; make it with `python -m ask prepare`"),
        ("train_labels.npy", None, "missing; make it with `python -m ask prepare`"),
        ("train_images.npy", b"", "not a readable .npy file"),
        ("train_images.npy", npy(IMAGES)[:-3], "not a readable .npy file"),
        ("train_images.npy", npy(np.array([{}])), "not a readable .npy file"),
        ("train_images.npy", npz(), "an archive of arrays"),
        ("train_images.npy", npy(IMAGES.astype(np.float32)), "holds float32 .* expected C-contiguous uint8"),
        ("train_images.npy", npy(IMAGES[:, 0]), r"shape \(4, 2, 2\), expected .* 4 dimension"),
        ("train_images.npy", npy(np.asfortranarray(np.zeros((4, 3, 2, 2), np.uint8))), "expected C-contiguous"),
        ("train_labels.npy", npy(np.zeros(4, np.int32)), "holds int32 .* expected C-contiguous int64"),
        ("train_labels.npy", npy(np.zeros(3, np.int64)), "4 train images but 3 labels"),
    ],
)
def test_load_errors(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    (tmp_path / "train_images.npy").write_bytes(npy(IMAGES))
    (tmp_path / "train_labels.npy").write_bytes(npy(np.zeros(4, np.int64)))
    assert len(load(tmp_path, "train")[0]) == 4
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        load(tmp_path, "train")
    assert str(tmp_path) in str(caught.value)


def test_load_refuses_other_splits(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="split 'val' is not one of train, test"):
        load(tmp_path, "val")


@needs_mirror
@pytest.mark.parametrize("source", ["mnist", pytest.param("cifar10", marks=pytest.mark.slow)])
def test_real_data(tmp_path: Path, source: Source) -> None:
    # `prepare` itself compares counts, means and deviations with the known ones.
    folder = make(DataSpec(source=source), tmp_path, source, MIRROR)
    known = PUBLISHED[source]
    for split, counts in (("train", known.train_counts), ("test", known.test_counts)):
        images, labels = load(folder, split)
        assert images.shape == (sum(counts), *(known.shape or ()))
        assert np.bincount(labels).tolist() == list(counts)
    if source == "mnist":
        assert load(folder, "train")[1][:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
