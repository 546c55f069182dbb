"""Trees of files, ``<split>/<class>/<file>``, in folders and archives: names, and what tells whether they changed.

Loads nothing heavy, for a run's plan looks at a user's own images.
"""

import hashlib
import os
import re
import stat
import tarfile
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

from ask.config.base import DataSpec
from ask.errors import DataError
from ask.files import digest

# What is read at most, a guard against decompression bombs: of a file, and of an archive; an ImageNet fits.
FILE_BYTES = 256 << 20
TOTAL_BYTES = 256 << 30
MOST_FILES = 2_000_000

# What damaged files raise; RuntimeError: the member is encrypted or of an unknown compression.
DAMAGE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, OSError, ValueError, RuntimeError)

_LAYOUT = "expected <split>/<class>/<file>, with splits `train` and `test` (or `val`)"
_PLACE = re.compile(r"(?P<split>train|test|val)/(?P<class>[^/]+)/[^/]+(?P<deeper>/.*)?")
_HIDDEN = re.compile(r"(^|/)(\.|(__MACOSX|Thumbs\.db|desktop\.ini)(/|$))")


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
        return [Member(name, str(path), Path(entry.path).read_bytes) for name, entry in _walk(path)]
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


def _walk(folder: str | Path, below: str = "") -> Iterator[tuple[str, "os.DirEntry[str]"]]:
    """Files of a folder and those below it, by their path inside."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from _walk(entry.path, f"{below}{entry.name}/")
            else:
                yield below + entry.name, entry


def own_images(spec: DataSpec) -> Path:
    """The folder or zip of a user's own images; DataError if there is none."""
    if spec.path is None:
        raise DataError("source `images` needs the path of your folder or zip of images; set `path` of the data set")
    path = Path(spec.path).expanduser()
    if not path.exists():
        raise DataError(f"{path}: no such folder or zip of images; correct `path` of the data set")
    return path


def splits(
    paths: list[Path], classes: tuple[str, ...] = ()
) -> tuple[tuple[str, ...], dict[Literal["train", "test"], list[list[Member]]]]:
    """Files of trees together, by split and class; hidden ones, and those that lie elsewhere, are left out.

    ``paths`` are folders, zips or tar archives, ``classes`` class folders in order of class number (none: those of the
    training images, sorted by name). Returns the class folders, and the files of each class, in order of name. Raises
    DataError where a split is missing, a class is unknown, or an archive is damaged.
    """
    where, found = ", ".join(map(str, paths)), _tree(paths)
    files: dict[Literal["train", "test"], list[list[Member]]] = {}
    for split, top in (("train", "train"), ("test", "test" if "test" in found else "val")):
        if top not in found:
            raise DataError(f"{where}: no images of split {split}; {_LAYOUT}")
        classes = classes or tuple(sorted(found[top]))
        if unknown := sorted(found[top].keys() - set(classes)):
            raise DataError(f"{where}: {top}/{unknown[0]} is none of the classes {', '.join(classes)}; remove it")
        files[split] = [sorted(found[top][name], key=lambda member: member.name) for name in classes]  # type: ignore[index]  # set above
    return classes, files


def _tree(paths: list[Path]) -> dict[str, dict[str, list[Member]]]:
    """Files by split and class; hidden ones and those that lie elsewhere are left out."""
    found: dict[str, dict[str, list[Member]]] = defaultdict(lambda: defaultdict(list))
    for path in paths:
        shown = [member for member in members(path) if not _HIDDEN.search(member.name)]
        around = _around([member.name for member in shown])
        for member in shown:
            name = member.name.removeprefix(around)
            place = _PLACE.fullmatch(name)
            if place and place["deeper"]:
                raise DataError(f"{member}: lies too deep, {_LAYOUT}; move its images up")
            if place:
                found[place["split"]][place["class"]].append(member._replace(name=name))
    return found


def _around(names: Iterable[str]) -> str:
    """The one folder around all splits, if there is one, with a slash."""
    tops = {name.partition("/")[0] for name in names}
    return f"{tops.pop()}/" if len(tops) == 1 and not tops & {"train", "test", "val"} else ""


def fingerprint(path: Path, by: Literal["times", "content"] = "times") -> str:
    """What changes (16 hex digits) when a folder's files or an archive do; empty if there is neither.

    Args:
        path: Folder or archive; of a folder's files those count that lie where images do.
        by: Names, sizes and times, or names and content, of which the second reads everything.
    """
    files = [("", path)] if path.is_file() else []
    if path.is_dir():
        shown = sorted((name, Path(entry.path)) for name, entry in _walk(path) if not _HIDDEN.search(name))
        around = _around([name for name, _ in shown])
        files = [(name, file) for name, file in shown if _PLACE.fullmatch(name.removeprefix(around))]
    whole = hashlib.sha256()
    for name, file in files:
        facts = file.stat() if file.exists() else None
        told = digest(file) if by == "content" else facts and (facts.st_size, facts.st_mtime_ns)
        whole.update(f"{name}={told}\n".encode(errors="surrogateescape"))
    return whole.hexdigest()[:16] if files or path.exists() else ""
