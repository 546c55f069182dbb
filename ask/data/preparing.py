"""The step that turns raw files into arrays."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap

from ask import paths
from ask.specs.data import DataSpec

from .archives import OWN_LIMITS, PUBLISHED_LIMITS
from .arrays import SPLITS
from .cifar import read_cifar
from .digits import read_digits
from .downloading import MANIFEST, ZIP_FORM, damage
from .errors import DataError
from .facts import check, split_facts
from .files import locked, read_json, write_json
from .idx import read_idx
from .images import read_images
from .sources import PUBLISHED
from .splits import Dataset, Split, resize_arrays
from .trees import arrange, fingerprint, open_members, own_images, tree_key

FACTS = "facts.json"
_FILES = {FACTS, *(f"{split}_{kind}.npy" for split in SPLITS for kind in ("images", "labels"))}


def prepare(spec: DataSpec, root: Path, name: str) -> Path:
    """Make the arrays of a data set from its raw files, and check them against what is known about it.

    The files appear together or not at all; earlier ones of the same name are replaced.

    Args:
        spec: The data set.
        root: Data folder of the project (``data``), where `download` put the raw files.
        name: The data set's name in the configuration.

    Returns:
        The folder ``prepared/<name>``, with ``{train,test}_images.npy`` (uint8 (N, C, H, W)),
        ``{train,test}_labels.npy`` (int64 (N,)) and ``facts.json``.

    Raises:
        DataError: raw files are missing or damaged, or counts or channel means are not the known ones.
    """
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        raise DataError(f"data set name {name!r}: use letters, digits, `_`, `-` and `.` only")
    target = paths.prepared(root, name)
    build = target.with_name(f".{name}.tmp")
    with locked(target.with_name(f".{name}.lock")), _open(spec, root) as dataset:
        # Left over from a run that was killed: nobody else can be at work in it, for the lock is ours.
        shutil.rmtree(build, ignore_errors=True)
        build.mkdir()
        try:
            facts = {
                "source": spec.source,
                "note": dataset.note,
                "image_size": spec.image_size,
                **_write(dataset, build),
            }
            check(facts)
            write_json(build / FACTS, facts)
            _move_in_place(build, target)
        finally:
            shutil.rmtree(build, ignore_errors=True)
    return target


@contextmanager
def _open(spec: DataSpec, root: Path) -> Iterator[Dataset]:
    if spec.source == "images":
        with _own(spec, root) as dataset:
            yield dataset
        return
    manifest = paths.raw(root, spec.source) / MANIFEST
    if not manifest.is_file():
        raise DataError(f"{manifest}: missing, so the raw files are not complete; run `python -m ask data`")
    wrong = damage(manifest)
    if wrong:
        raise DataError(f"{wrong}; delete {manifest} and run `python -m ask data` again")
    if spec.source == "digits":
        note = "Training and test images: scikit-learn's digits, every fifth of a class tests."
        yield Dataset(class_names=tuple("0123456789"), splits=_resized(read_digits(), spec.image_size), note=note)
        return
    published = PUBLISHED[spec.source]
    content = read_json(manifest)
    files = {record["name"]: manifest.parent / record["name"] for record in content["files"]}
    as_zips = content["form"] == ZIP_FORM
    note = published.image_zip_note if as_zips else ""
    if as_zips or spec.source == "imagenette":
        with open_members(list(files.values()), PUBLISHED_LIMITS) as members:
            tree = arrange(members, str(manifest.parent), published.class_folders)
            yield Dataset(class_names=published.class_names, splits=read_images(tree, spec.image_size), note=note)
        return
    splits = read_cifar(*files.values()) if spec.source == "cifar10" else _read_idx_files(files)
    yield Dataset(class_names=published.class_names, splits=_resized(splits, spec.image_size), note=note)


@contextmanager
def _own(spec: DataSpec, root: Path) -> Iterator[Dataset]:
    path = own_images(spec)
    manifest = paths.raw(root, spec.source) / MANIFEST
    known = read_json(manifest)["trees"].get(tree_key(path)) if manifest.is_file() else None
    if known is None or known != fingerprint(path):
        state = "not yet recorded" if known is None else f"changed since it was recorded in {manifest}"
        raise DataError(f"{path}: {state}; run `python -m ask data` to record it as it is now")
    with open_members([path], OWN_LIMITS) as members:
        tree = arrange(members, str(path))
        yield Dataset(class_names=tree.classes, splits=read_images(tree, spec.image_size))


def _read_idx_files(files: dict[str, Path]) -> dict[str, Split]:
    plain = {name.removesuffix(".gz"): path for name, path in files.items()}
    splits = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images = read_idx(plain[f"{prefix}-images-idx3-ubyte"], 3)
        labels = read_idx(plain[f"{prefix}-labels-idx1-ubyte"], 1)
        if len(images) != len(labels):
            raise DataError(
                f"{plain[f'{prefix}-images-idx3-ubyte']}: {len(images)} images, but {len(labels)} labels; get both"
            )
        splits[split] = Split(labels.astype(np.int64), [images[:, None]])
    return splits


def _resized(splits: dict[str, Split], side: int | None) -> dict[str, Split]:
    return {name: Split(split.labels, resize_arrays(split.blocks, side)) for name, split in splits.items()}


def _write(dataset: Dataset, folder: Path) -> dict[str, Any]:
    """Write the arrays, block by block, and return their facts."""
    splits = {}
    shape: tuple[int, ...] = ()
    for name in SPLITS:
        split = dataset.splits[name]
        array, start = None, 0
        for block in split.blocks:
            if array is None:
                shape = (len(split.labels), *block.shape[1:])
                array = open_memmap(folder / f"{name}_images.npy", mode="w+", dtype=np.uint8, shape=shape)
            array[start : start + len(block)] = block
            start += len(block)
        if array is None or start != len(split.labels):
            raise DataError(f"{name}: {start} images, but {len(split.labels)} labels; get the raw files anew")
        array.flush()
        np.save(folder / f"{name}_labels.npy", split.labels, allow_pickle=False)
        splits[name] = split_facts(array, split.labels, len(dataset.class_names))
    return {"image_shape": list(shape[1:]), "class_names": list(dataset.class_names), "splits": splits}


def _move_in_place(build: Path, target: Path) -> None:
    if target.exists():
        foreign = sorted(
            path.name for path in target.iterdir() if path.name not in _FILES and not path.name.startswith(".")
        )
        if foreign:
            raise DataError(f"{target / foreign[0]}: not one of this folder's files; move it away, or use another name")
        old = target.with_name(f".{target.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        target.replace(old)
        build.replace(target)
        shutil.rmtree(old)
    else:
        build.replace(target)
