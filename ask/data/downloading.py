"""The step that makes ``raw/<source>`` complete."""

from collections.abc import Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ask import paths
from ask.specs.data import DataSpec

from .errors import DataError, DigestError, NotFoundError
from .fetch import fetch
from .files import content_sha256, digests, locked, read_json, write_json
from .mirror import Place, places
from .sources import PUBLISHED, File, Published
from .trees import fingerprint, own_images, tree_key

MANIFEST = "manifest.json"
PUBLISHED_FORM = "published"
ZIP_FORM = "image zips"
_LARGEST_CONTENT = 1 << 30

Record = dict[str, Any]


def download(spec: DataSpec, root: Path, mirror: str | None) -> Path:
    """Make the raw files of a data set complete: from the mirror if it has them, else from the publisher.

    Files that are already there and pass their checks are kept, and an interrupted download goes on where it stopped.
    Runs at the same time wait for each other.

    Args:
        spec: The data set.
        root: Data folder of the project (``data``).
        mirror: Places to look first (layout: see the package), or None.

    Returns:
        Path of ``raw/<source>/manifest.json``, written last: names, sizes, sha256 and origins of the files. For
        `digits`, scikit-learn's version; for `images`, count, bytes and digest of the user's own images.

    Raises:
        DataError: a file cannot be had, or is not the published one.
    """
    raw = paths.raw(root, spec.source)
    manifest = raw / MANIFEST
    with locked(raw.with_name(f".{spec.source}.lock")):
        raw.mkdir(parents=True, exist_ok=True)
        if spec.source == "digits":
            content: Record = {"source": "digits", "scikit-learn": version("scikit-learn")}
        elif spec.source == "images":
            content = _own(spec, manifest)
        elif manifest.is_file() and damage(manifest) is None:
            return manifest
        else:
            content = {"source": spec.source, **_obtain(spec.source, PUBLISHED[spec.source], raw, places(mirror))}
        if not manifest.is_file() or read_json(manifest) != content:
            write_json(manifest, content)
    return manifest


def damage(manifest: Path) -> str | None:
    """What is wrong with the files of a manifest (None: nothing), each checked by size and sha256."""
    for record in read_json(manifest).get("files", []):
        path = manifest.parent / record["name"]
        if not path.is_file():
            return f"{path}: missing"
        size, _, sha256 = digests(path)
        if (size, sha256) != (record["size"], record["sha256"]):
            return f"{path}: {size} bytes with sha256 {sha256}, expected {record['size']} with {record['sha256']}"
    return None


def _own(spec: DataSpec, manifest: Path) -> Record:
    """Manifest of users' images; several data sets share it, and their folders' paths stay out of it."""
    path = own_images(spec)
    trees = read_json(manifest)["trees"] if manifest.is_file() else {}
    return {"source": "images", "trees": {**trees, tree_key(path): fingerprint(path)}}


def _obtain(source: str, published: Published, raw: Path, mirrors: list[Place]) -> Record:
    said: list[str] = []
    records: list[Record] = []
    missing: list[File] = []
    for file in published.files:
        record = _present(file, raw) or _from_mirrors(source, file, raw, mirrors, said)
        if record is None:
            missing.append(file)
        else:
            records.append(record)
    if missing and published.image_zips:
        zips = _image_zips(source, published, raw, mirrors, said)
        if zips:
            return {"form": ZIP_FORM, "files": zips}
    for file in missing:
        url = published.url + file.name
        try:
            fetch(url, raw / file.name, partial(_verify_published, file), size=file.size)
        except DataError as error:
            looked = "".join(f"\n  {line}" for line in (*said, str(error)))
            raise DataError(
                f"{published.title}: {file.name} cannot be had:{looked}\n"
                f"Name a mirror that holds {source}/{file.name} in data.mirror or ASK_DATA_MIRROR, or put the file at "
                f"{raw / file.name}."
            ) from error
        records.append(_record(raw / file.name, url))
    return {"form": PUBLISHED_FORM, "files": sorted(records, key=lambda record: str(record["name"]))}


def _present(file: File, raw: Path) -> Record | None:
    for name in _names(file):
        path = raw / name
        if path.is_file():
            try:
                _verify_copy(file, path, str(path))
            except DigestError:
                continue
            return _record(path, "already present")
    return None


def _from_mirrors(source: str, file: File, raw: Path, mirrors: list[Place], said: list[str]) -> Record | None:
    for place in mirrors:
        for relative in _relatives(source, file):
            target = raw / relative.rpartition("/")[2]
            try:
                place.get(relative, target, partial(_verify_copy, file))
                return _record(target, "mirror")
            except NotFoundError as error:
                said.append(str(error))
            except DigestError as error:
                # MNIST and Fashion-MNIST use the same names: in a flat folder, a name does not tell whose file it is.
                if "/" in relative:
                    raise
                said.append(str(error))
    return None


def _relatives(source: str, file: File) -> Iterator[str]:
    for prefix in (f"{source}/", ""):
        for name in _names(file):
            yield prefix + name


def _names(file: File) -> tuple[str, ...]:
    """Names under which a file may be found: IDX files also decompressed."""
    return (file.name, file.name.removesuffix(".gz")) if file.content_sha256 else (file.name,)


def _image_zips(source: str, published: Published, raw: Path, mirrors: list[Place], said: list[str]) -> list[Record]:
    for place in mirrors:
        for zips in place.image_zips(source, published.image_zips):
            targets = [raw / relative.rpartition("/")[2] for relative in zips]
            try:
                for relative, target in zip(zips, targets, strict=True):
                    place.get(relative, target)
                return [_record(target, "mirror") for target in targets]
            except NotFoundError as error:
                said.append(str(error))
                for target in targets:
                    target.unlink(missing_ok=True)
    return []


def _record(path: Path, origin: str) -> Record:
    size, _, sha256 = digests(path)
    return {"name": path.name, "size": size, "sha256": sha256, "from": origin}


def _verify_published(file: File, path: Path, label: str) -> None:
    size, md5, sha256 = digests(path)
    if (size, md5) != (file.size, file.md5) or file.sha256 not in (None, sha256):
        raise DigestError(f"{label}: {size} bytes with md5 {md5}, expected {file.size} with {file.md5}; get it anew")


def _verify_copy(file: File, path: Path, label: str) -> None:
    if file.content_sha256 is None:
        _verify_published(file, path, label)
        return
    try:
        found = content_sha256(path, _LARGEST_CONTENT, label)
    except DataError as error:
        raise DigestError(str(error)) from error
    if found != file.content_sha256:
        raise DigestError(
            f"{label}: its decompressed content has sha256 {found}, expected {file.content_sha256}; "
            f"get the publisher's file"
        )
