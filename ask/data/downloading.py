"""The step that makes ``raw/<source>`` complete, from mirrors or the publisher."""

import json
import os
import re
import shutil
from contextlib import suppress
from functools import cached_property, partial
from hashlib import sha256
from importlib.metadata import version
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import quote

from ask import paths
from ask.config.data import DataSpec
from ask.data.errors import DataError, DigestError, NotFoundError
from ask.data.files import Verify, digest, fetch, locked, write_json
from ask.data.readers import content
from ask.data.sources import PUBLISHED, File

MANIFEST = "manifest.json"
ZIP_FORM = "image zips"
SUMS = "SHA256SUMS"

Record = dict[str, Any]


def download(spec: DataSpec, root: Path, mirror: str | None) -> Path:
    """Make the raw files of a data set complete: from the mirror if it has them, else from the publisher.

    Files that are already there and pass their checks are kept, and an interrupted download goes on where it stopped.
    Runs at the same time wait for each other.

    Args:
        spec: The data set.
        root: Data folder of the project (``data``).
        mirror: Folders or addresses to look in first, separated as in PATH (layout: docs/data.md), or None.

    Returns:
        Path of ``raw/<source>/manifest.json``, written last: names, sizes, sha256 and origins of the files; for
        `digits`, scikit-learn's version. A user's own `images` stay where they are.

    Raises:
        DataError: a file cannot be had, or is not the published one.
    """
    raw = paths.raw(root, spec.source)
    manifest = raw / MANIFEST
    with locked(raw.with_name(f".{spec.source}.lock")):
        raw.mkdir(parents=True, exist_ok=True)
        found: Record = {"source": spec.source}
        if spec.source == "digits":
            found["scikit-learn"] = version("scikit-learn")
        elif spec.source == "images":
            own_images(spec)
        else:
            with suppress(DataError):
                read_manifest(manifest)
                return manifest
            found |= _obtain(spec.source, raw, mirrors(mirror))
        write_json(manifest, found)
    return manifest


def own_images(spec: DataSpec) -> Path:
    """The folder or zip of a user's own images; DataError if there is none."""
    if spec.path is None:
        raise DataError("source `images` needs the path of your folder or zip of images; set `path` of the data set")
    path = Path(spec.path).expanduser()
    if not path.exists():
        raise DataError(f"{path}: no such folder or zip of images; correct `path` of the data set")
    return path


def read_manifest(manifest: Path) -> Record:
    """Content of a published data set's manifest, after a check that its files are there and unchanged.

    Raises:
        DataError: the manifest or a file is missing or damaged.
    """
    try:
        found: Record = json.loads(manifest.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{manifest}: missing or damaged ({error}); run the download again") from error
    for record in found["files"]:
        path = manifest.parent / record["name"]
        if not path.is_file() or digest(path) != record["sha256"]:
            raise DataError(f"{path}: missing or damaged; delete {manifest} and run the download again")
    return found


class Mirror:
    """A folder, or a ``http://`` or ``https://`` address, that holds data files."""

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        self.folder = None if address.startswith(("http://", "https://")) else Path(address).expanduser()
        if self.folder is not None and not self.folder.is_dir():
            raise DataError(f"mirror {address}: no such folder; correct data.mirror or ASK_DATA_MIRROR")

    def get(self, relative: str, target: Path, verify: Verify | None = None) -> bool:
        """Copy or download a file to ``target``, if SHA256SUMS and ``verify`` pass it; False if it is not held here."""

        def check(path: Path, label: str) -> None:
            if relative != SUMS and self.sums.get(relative) not in (None, digest(path)):
                raise DigestError(f"{label}: its sha256 is not the one in the mirror's {SUMS}; copy the file anew")
            if verify is not None:
                verify(path, label)

        if self.folder is None:
            with suppress(NotFoundError):
                fetch(f"{self.address}/{quote(relative)}", target, check)
                return True
            return False
        origin, part = self.folder / relative, target.with_name(f".{target.name}.part")
        if not origin.is_file():
            return False
        try:
            shutil.copyfile(origin, part)
            check(part, str(origin))
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
        return True

    @cached_property
    def sums(self) -> dict[str, str]:
        """Path below the mirror -> sha256, from the lines ``<sha256>  <path>`` of its SHA256SUMS, if it has one."""
        with TemporaryDirectory() as scratch:
            copy = Path(scratch) / SUMS
            lines = copy.read_text(encoding="utf-8").splitlines() if self.get(SUMS, copy) else []
        found = [re.fullmatch(r"([0-9a-fA-F]{64}) [ *](?:\./)?(.+)", line) for line in lines if line.strip()]
        if None in found:
            raise DataError(f"{self.address}/{SUMS}: has other lines than `<sha256>  <path>`; use sha256sum")
        return {match[2]: match[1].lower() for match in found if match}

    def image_zips(self, source: str, names: tuple[str, ...]) -> list[list[str]]:
        """Sets of image zips to try, as paths below the mirror; ``names`` where the mirror cannot be listed."""
        own = [f"{source}/{name}" for name in names]
        if self.folder is not None and names:
            own = [f"{source}/{path.name}" for path in sorted((self.folder / source).glob("*.zip"))]
        return [zips for zips in (own, list(names)) if zips]


def mirrors(value: str | None) -> list[Mirror]:
    """The mirrors named in a ``data.mirror`` value, in order."""
    # An address has colons of its own: after the scheme and before a port.
    end = rf"[^{re.escape(os.pathsep)}]"
    return [Mirror(address) for address in re.findall(rf"https?://[^:/]+(?::\d+)?{end}*|{end}+", value or "")]


def _obtain(source: str, raw: Path, places: list[Mirror]) -> Record:
    records: list[Record] = []
    for file in PUBLISHED[source].files:
        record = _present(file, raw) or _from_mirrors(source, file, raw, places)
        if record is None and (zips := _image_zips(source, raw, places)):
            return {"form": ZIP_FORM, "files": zips}
        records.append(record or _from_publisher(source, file, raw))
    return {"form": "published", "files": sorted(records, key=lambda record: str(record["name"]))}


def _present(file: File, raw: Path) -> Record | None:
    for path in (raw / name for name in _names(file)):
        with suppress(DigestError):
            if path.is_file():
                _verify(file, path, str(path))
                return _record(path, "already present")
    return None


def _from_mirrors(source: str, file: File, raw: Path, places: list[Mirror]) -> Record | None:
    for place, folder, name in product(places, (f"{source}/", ""), _names(file)):
        try:
            if place.get(folder + name, raw / name, partial(_verify, file)):
                return _record(raw / name, "mirror")
        except DigestError:
            # MNIST and Fashion-MNIST use the same names: in a flat folder, a name does not tell whose it is.
            if folder:
                raise
    return None


def _image_zips(source: str, raw: Path, places: list[Mirror]) -> list[Record]:
    for place in places:
        for zips in place.image_zips(source, PUBLISHED[source].image_zips):
            targets = [raw / relative.rpartition("/")[2] for relative in zips]
            if all(place.get(relative, target) for relative, target in zip(zips, targets, strict=True)):
                return [_record(target, "mirror") for target in targets]
            for target in targets:
                target.unlink(missing_ok=True)
    return []


def _from_publisher(source: str, file: File, raw: Path) -> Record:
    url = PUBLISHED[source].url + file.name
    try:
        fetch(url, raw / file.name, partial(_verify, file), size=file.size)
    except DataError as error:
        raise DataError(
            f"{PUBLISHED[source].title}: {file.name} is in no mirror, and cannot be had from its publisher: {error}\n"
            f"Name a mirror that holds {source}/{file.name} in data.mirror or ASK_DATA_MIRROR, or put the file at "
            f"{raw / file.name}."
        ) from error
    return _record(raw / file.name, url)


def _names(file: File) -> tuple[str, ...]:
    """Names under which a file may be found: IDX files also decompressed."""
    return (file.name, file.name.removesuffix(".gz")) if file.content_sha256 else (file.name,)


def _record(path: Path, origin: str) -> Record:
    return {"name": path.name, "size": path.stat().st_size, "sha256": digest(path), "from": origin}


def _verify(file: File, path: Path, label: str) -> None:
    size, md5 = path.stat().st_size, digest(path, "md5")
    if (size, md5) == (file.size, file.md5) and file.sha256 in (None, digest(path)):
        return
    wrong = f"{label}: {size} bytes with md5 {md5}, expected {file.size} with {file.md5}"
    if file.content_sha256 is None:
        raise DigestError(f"{wrong}; get it anew")
    try:
        found = sha256(content(path)).hexdigest()
    except DataError as error:
        raise DigestError(f"{wrong}; nor is it a copy: {error}") from error
    if found != file.content_sha256:
        raise DigestError(f"{wrong}; nor is it a copy: content has sha256 {found}, expected {file.content_sha256}")
