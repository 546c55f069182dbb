"""The step that turns raw files into arrays, and checks them."""

import json
import re
import shutil
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import write_array_header_1_0
from numpy.typing import NDArray

from ask import paths
from ask.config.base import DataSpec
from ask.data.arrays import SPLITS, load
from ask.data.downloading import MANIFEST, ZIP_FORM, lock, read_manifest
from ask.data.images import read_images, resize
from ask.data.readers import Split, read_cifar, read_digits, read_mnist
from ask.data.sources import PUBLISHED
from ask.data.trees import own_images
from ask.errors import DataError
from ask.files import write_text

TOLERANCE = 1e-4  # largest difference from known means and deviations, which are published to four digits


def prepare(spec: DataSpec, root: Path, name: str) -> Path:
    """Make the arrays of a data set from its raw files, and check them against what is known about it.

    The files appear together or not at all; earlier ones of the same name are replaced. ``root`` is the project's data
    folder (``data``), where `download` put the raw files; ``name`` is the data set's name in the configuration.

    Returns the folder ``prepared/<name>``: ``{train,test}_images.npy`` (uint8 (N, C, H, W)),
    ``{train,test}_labels.npy`` (int64 (N,)) and ``facts.json``. Raises DataError where raw files are missing or
    damaged, or counts or channel means are not the known ones.
    """
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        raise DataError(f"data set name {name!r}: use letters, digits, `_`, `-` and `.` only")
    target = root / "prepared" / name
    build, old = target.with_name(f".{name}.tmp"), target.with_name(f".{name}.old")
    with lock(target):
        # Left over from a run that was killed: nobody else can be at work in it, for the lock is ours.
        shutil.rmtree(build, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
        build.mkdir()
        try:
            note, classes, splits = _read(spec, root)
            facts: dict[str, Any] = {"source": spec.source, "note": note, "image_size": spec.image_size}
            written = {split: _write(split, splits[split], spec.image_size, build) for split in SPLITS}
            facts |= {"image_shape": list(written["train"].shape[1:]), "class_names": list(classes)}
            facts["splits"] = {split: _facts(written[split], splits[split].labels, len(classes)) for split in SPLITS}
            check(facts)
            # Not write_json's layout: facts made anew are to be the same bytes.
            write_text(build / "facts.json", json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
            if target.exists():
                target.replace(old)
            build.replace(target)
            shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(build, ignore_errors=True)
    return target


def _read(spec: DataSpec, root: Path) -> tuple[str, tuple[str, ...], dict[str, Split]]:
    """Note, class names and splits of a data set."""
    if spec.source == "images":
        return "", *read_images([own_images(spec)], spec.image_size)
    published = PUBLISHED[spec.source]
    if spec.source == "digits":
        note = "Training and test images: scikit-learn's digits, every fifth of a class tests."
        return note, published.class_names, read_digits()
    manifest = paths.raw(root, spec.source) / MANIFEST
    found = read_manifest(manifest)
    files = [manifest.parent / record["name"] for record in found["files"]]
    zips = found["form"] == ZIP_FORM
    if zips or spec.source == "imagenette":
        _, splits = read_images(files, spec.image_size, published.class_folders or published.class_names)
    else:
        splits = read_cifar(*files) if spec.source == "cifar10" else read_mnist(files)
    return published.image_zip_note if zips else "", published.class_names, splits


def _write(name: str, split: Split, side: int | None, folder: Path) -> NDArray[np.uint8]:
    """Write the arrays of one split, image by image, and return its images, memory-mapped."""
    images = (resize(pixels, side) for pixels in split.images)
    first = next(images)
    about = {"descr": "|u1", "fortran_order": False, "shape": (len(split.labels), *first.shape)}
    with (folder / f"{name}_images.npy").open("wb") as stream:  # through a map, a full disk would be a SIGBUS
        write_array_header_1_0(stream, about)
        for pixels in chain([first], images):
            stream.write(np.broadcast_to(pixels, first.shape).tobytes())
    np.save(folder / f"{name}_labels.npy", split.labels, allow_pickle=False)
    return load(folder, name)[0]


def _facts(images: NDArray[np.uint8], labels: NDArray[np.int64], classes: int) -> dict[str, Any]:
    """Number and class counts of images, channel means and deviations in [0, 1], and sha256 of both."""
    histogram = np.zeros((images.shape[1], 256), dtype=np.int64)
    for start in range(0, len(images), 4096):
        for channel, counts in enumerate(histogram):
            counts += np.bincount(images[start : start + 4096, channel].ravel(), minlength=256)
    levels = np.arange(256) / 255
    shares = histogram / histogram.sum(axis=1, keepdims=True)
    mean = shares @ levels
    std = np.sqrt(np.maximum(shares @ levels**2 - mean**2, 0))
    return {
        "images": len(images),
        "per_class": np.bincount(labels, minlength=classes).tolist(),
        "mean": [round(value, 8) for value in mean.tolist()],
        "std": [round(value, 8) for value in std.tolist()],
        "sha256": {"images": sha256(images.data).hexdigest(), "labels": sha256(labels.data).hexdigest()},
    }


def check(facts: dict[str, Any]) -> None:
    """Compare the content of a ``facts.json`` with what is known about its source.

    Raises:
        DataError: counts a class differ, or channel means or deviations by more than `TOLERANCE`.
    """
    known = PUBLISHED.get(facts["source"])
    if known is None:  # a user's own images
        return
    train, test = facts["splits"]["train"], facts["splits"]["test"]
    # Resizing moves the means a little, so that the published ones no longer apply.
    mean, std = (known.mean, known.std) if tuple(facts["image_shape"]) == known.shape else ((), ())
    for what, found, expected, tolerance in (
        ("training images a class", train["per_class"], known.train_counts, 0),
        ("test images a class", test["per_class"], known.test_counts, 0),
        ("channel means of the training images", train["mean"], mean, TOLERANCE),
        ("channel deviations of the training images", train["std"], std, TOLERANCE),
    ):
        if expected and (len(found) != len(expected) or np.abs(np.subtract(found, expected)).max() > tolerance):
            right = f"{list(expected)}, within {tolerance}" if tolerance else list(expected)
            fix = "delete its raw files and run the download again"
            raise DataError(f"{known.title}: {what} are {found}, expected {right}; {fix}")
