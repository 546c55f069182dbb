"""Trees of image files, ``<split>/<class>/<file>``, in a folder or archive."""

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ask.specs.data import DataSpec

from .archives import OWN_LIMITS, Limits, Member, folder_members, open_zip, read_tar
from .errors import DataError

TREE_SPLITS = ("train", "test", "val")
_LAYOUT = "expected <split>/<class>/<file>, with splits `train` and `test` (or `val`)"


@dataclass(frozen=True)
class Tree:
    """Image files in order: by split, class number and file name."""

    classes: tuple[str, ...]
    """Names of the class folders, by class number."""
    members: dict[str, list[Member]]
    """Files by ``train`` and ``test``."""
    labels: dict[str, list[int]]
    """Class number of each file."""


def own_images(spec: DataSpec) -> Path:
    """The folder or zip of a user's own images.

    Raises:
        DataError: none is given, or it does not exist.
    """
    if spec.path is None:
        raise DataError("source `images` needs the path of your folder or zip of images; set `path` of the data set")
    path = Path(spec.path).expanduser()
    if not (path.is_dir() or path.is_file()):
        raise DataError(f"{path}: no such folder or zip of images; correct `path` of the data set")
    return path


def tree_key(path: Path) -> str:
    """Name of a user's folder or zip in a manifest: tells two apart without giving the machine's paths away."""
    return f"{path.name}-{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"


def fingerprint(path: Path) -> dict[str, Any]:
    """Number, bytes and a digest of the files of a tree; the same for a folder and its zip."""
    listing, size = [], 0
    with open_members([path], OWN_LIMITS) as members:
        for member in members:
            data = member.read()
            size += len(data)
            listing.append(f"{hashlib.sha256(data).hexdigest()}  {member.name}\n")
    digest = hashlib.sha256("".join(sorted(listing)).encode()).hexdigest()
    return {"files": len(listing), "bytes": size, "sha256": digest}


@contextmanager
def open_members(sources: list[Path], limits: Limits) -> Iterator[list[Member]]:
    """Image files of folders, zips or tar archives together, readable until the context ends.

    Hidden files, and files that do not lie in a class folder of a known split, are left out. The splits may lie in one
    folder of their own.

    Raises:
        DataError: a folder lies in a class folder, or an archive is damaged or unsafe.
    """
    with ExitStack() as stack:
        found: list[Member] = []
        for path in sources:
            if path.is_dir():
                found += _images(folder_members(_inner(path)))
            elif path.name.endswith((".tgz", ".tar.gz")):
                found += _images(_strip(_tar_members(path, limits)))
            else:
                found += _images(_strip(stack.enter_context(open_zip(path, limits))))
        yield found


def _tar_members(path: Path, limits: Limits) -> list[Member]:
    """Members of a tar archive; held in memory, for such an archive can only be read from front to back."""

    def member(name: str, data: bytes) -> Member:
        return Member(name, str(path), lambda: data)

    return [member(name, data) for name, data in read_tar(path, limits)]


def _inner(folder: Path) -> Path:
    shown = [path for path in folder.iterdir() if not _hidden(path.name)]
    return shown[0] if len(shown) == 1 and shown[0].is_dir() and shown[0].name not in TREE_SPLITS else folder


def _strip(members: list[Member]) -> list[Member]:
    tops = {member.name.partition("/")[0] for member in members if not _hidden(member.name)}
    if len(tops) != 1 or tops & set(TREE_SPLITS):
        return members
    around = f"{tops.pop()}/"
    return [replace(member, name=member.name.removeprefix(around)) for member in members]


def _images(members: list[Member]) -> Iterator[Member]:
    for member in members:
        split, *inner = member.name.split("/")
        if _hidden(member.name) or split not in TREE_SPLITS or len(inner) < 2:
            continue
        if len(inner) > 2:
            raise DataError(f"{member}: lies too deep, {_LAYOUT}; move its images up")
        yield member


def _hidden(name: str) -> bool:
    parts = name.split("/")
    return (
        any(part.startswith(".") for part in parts) or "__MACOSX" in parts or parts[-1] in ("Thumbs.db", "desktop.ini")
    )


def arrange(members: list[Member], where: str, classes: tuple[str, ...] = ()) -> Tree:
    """Sort image files by split, class and file name.

    Args:
        members: Files as from `open_members`.
        where: Their folder or archive, for messages.
        classes: Class folders in order of class number; empty: those of the training images, sorted by name.

    Raises:
        DataError: a split is missing or a class is unknown.
    """
    by_split: dict[str, dict[str, list[Member]]] = {split: {} for split in TREE_SPLITS}
    for member in members:
        split, folder, _ = member.name.split("/")
        by_split[split].setdefault(folder, []).append(member)
    test = "test" if by_split["test"] else "val"
    if not by_split["train"] or not by_split[test]:
        missing = "test (or val)" if by_split["train"] else "train"
        raise DataError(f"{where}: no images of split {missing}; {_LAYOUT}")
    classes = classes or tuple(sorted(by_split["train"]))
    tree = Tree(classes, {"train": [], "test": []}, {"train": [], "test": []})
    for split, name in (("train", "train"), (test, "test")):
        unknown = sorted(set(by_split[split]) - set(classes))
        if unknown:
            raise DataError(
                f"{where}: {split}/{unknown[0]} is none of the classes {', '.join(classes)}; remove or rename it"
            )
        for number, folder in enumerate(classes):
            files = sorted(by_split[split].get(folder, []), key=lambda member: member.name)
            tree.members[name] += files
            tree.labels[name] += [number] * len(files)
    return tree
