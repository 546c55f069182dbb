"""The step that makes ``raw/<source>`` complete, from mirrors or the publisher."""

import json
import os
import re
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import cached_property, partial
from hashlib import sha256
from http.client import HTTPException
from importlib.metadata import version
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import Request, urlopen

from ask import paths
from ask.config.base import DataSpec
from ask.data.readers import content
from ask.data.sources import PUBLISHED, File
from ask.data.trees import own_images
from ask.errors import DataError
from ask.files import digest, locked, write, write_json

MANIFEST = "manifest.json"
ZIP_FORM = "image zips"
SUMS = "SHA256SUMS"

PAUSES = (1.0, 5.0)  # seconds to wait before the second and the third try of a download

Record = dict[str, Any]
Verify = Callable[[Path, str], None]
"""Checks a file, named to users by the second argument; raises DataError if it is not the expected one."""


class NotFoundError(DataError):
    """A place does not hold a file; the next place may."""


class DigestError(DataError):
    """A file's digest is not the expected one."""


def download(spec: DataSpec, root: Path, mirror: str | None) -> Path:
    """Make the raw files of a data set complete: from the mirror if it has them, else from the publisher.

    Files that are already there and pass their checks are kept, and an interrupted download goes on where it stopped.
    Runs at the same time wait for each other. ``root`` is the project's data folder (``data``); ``mirror`` names
    folders or addresses to look in first, separated as in PATH (layout: docs/data.md).

    Returns the path of ``raw/<source>/manifest.json``, written last: names, sizes, sha256 and origins of the files; for
    `digits`, scikit-learn's version. A user's own `images` stay where they are. Raises DataError where a file cannot be
    had, or is not the published one.
    """
    raw = paths.raw(root, spec.source)
    manifest = raw / MANIFEST
    with lock(raw):
        found: Record = {"source": spec.source}
        if spec.source == "digits":
            found["scikit-learn"] = version("scikit-learn")
        elif spec.source == "images":
            own_images(spec)
        else:
            with suppress(DataError):
                read_manifest(manifest)
                return manifest
            raw.mkdir(exist_ok=True)
            found |= _obtain(spec.source, raw, mirrors(mirror))
        return write_json(manifest, found)


def lock(path: Path) -> ExitStack:
    """Hold the lock of a folder, which need not exist, to the end of the context; DataError if it cannot be locked."""
    stack, file = ExitStack(), path.with_name(f".{path.name}.lock")
    try:
        stack.enter_context(locked(file))
    except OSError as error:  # some network file systems have no locks
        raise DataError(f"{file}: cannot be locked ({error}); put the data on another file system") from error
    return stack


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
        origin = self.folder / relative
        if origin.is_file():
            write(target, lambda part: check(shutil.copyfile(origin, part), str(origin)))
        return origin.is_file()

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


def mirrors(value: str | None) -> list[Mirror]:
    """The mirrors named in a ``data.mirror`` value, in order."""
    # An address has colons of its own: after the scheme and before a port.
    end = rf"[^{re.escape(os.pathsep)}]"
    return [Mirror(address) for address in re.findall(rf"https?://[^:/]+(?::\d+)?{end}*|{end}+", value or "")]


def _obtain(source: str, raw: Path, places: list[Mirror]) -> Record:
    """Form and records of a published data set's files, or of the image zips that a mirror has in their place."""
    published, records = PUBLISHED[source], []
    for file in published.files:
        record = _at_hand(source, file, raw, places)
        if record is None and (zips := _image_zips(source, raw, places)):
            return {"form": ZIP_FORM, "files": zips}
        if record is None:
            url, target = published.url + file.name, raw / file.name
            try:
                fetch(url, target, partial(_verify, file), size=file.size)
            except DataError as error:
                raise DataError(
                    f"{published.title}: {file.name} is in no mirror, and cannot be had from its publisher: {error}\n"
                    f"Name a mirror that holds {source}/{file.name} in data.mirror or ASK_DATA_MIRROR, or put the file "
                    f"at {target}."
                ) from error
            record = _record(target, url)
        records.append(record)
    return {"form": "published", "files": sorted(records, key=lambda record: str(record["name"]))}


def _at_hand(source: str, file: File, raw: Path, places: list[Mirror]) -> Record | None:
    """A file that lies in its place already, or in a mirror."""
    names = dict.fromkeys([file.name, file.name.removesuffix(".gz") if file.repacked else file.name])
    for path in (raw / name for name in names):
        with suppress(DigestError):
            if path.is_file():
                _verify(file, path, str(path))
                return _record(path, "already present")
    for place, folder, name in product(places, (f"{source}/", ""), names):
        try:
            if place.get(folder + name, raw / name, partial(_verify, file)):
                return _record(raw / name, "mirror")
        except DigestError:
            # MNIST and Fashion-MNIST use the same names: in a flat folder, a name does not tell whose it is.
            if folder:
                raise
    return None


def _image_zips(source: str, raw: Path, places: list[Mirror]) -> list[Record]:
    """The image zips that the first mirror to have them all holds; in a folder of the source, all zips are taken."""
    known = PUBLISHED[source].image_zips
    for place, below in product(places if known else [], (f"{source}/", "")):
        listed = sorted(place.folder.glob(f"{source}/*.zip")) if place.folder and below else map(Path, known)
        names = [path.name for path in listed]
        if names and all(place.get(below + name, raw / name) for name in names):
            return [_record(raw / name, "mirror") for name in names]
        for name in names:
            (raw / name).unlink(missing_ok=True)
    return []


def _record(path: Path, origin: str) -> Record:
    return {"name": path.name, "size": path.stat().st_size, "sha256": digest(path), "from": origin}


def _verify(file: File, path: Path, label: str) -> None:
    try:
        found = sha256(content(path)).hexdigest() if file.repacked else digest(path)
    except DataError as error:
        raise DigestError(f"{label}: {error}") from error
    if found != file.sha256:
        size, what = path.stat().st_size, "content has sha256" if file.repacked else "with sha256"
        raise DigestError(
            f"{label}: {size} bytes, {what} {found}, expected {file.size} with {file.sha256}; get it anew"
        )


def fetch(url: str, target: Path, verify: Verify, size: int = 4 << 30) -> None:
    """Download a file of at most ``size`` bytes to ``target``, whose folder exists, once ``verify`` has passed it.

    Goes on from where an earlier, broken download of the same ``http://`` or ``https://`` address stopped. Raises
    NotFoundError where the server refuses the file (HTTP 4xx), DataError where no try gave one that passes ``verify``.
    """
    # Named by the address, so that the beginning of one copy is never continued with the end of another.
    part = target.with_name(f".{target.name}.{sha256(url.encode()).hexdigest()[:8]}.part")
    for pause in (0.0, *PAUSES):
        time.sleep(pause)
        try:
            _receive(url, part, size)
            verify(part, url)
            write(target, part.replace)
            return
        except HTTPError as error:
            error.close()
            failure: Exception = error
            if error.code == 416:  # nothing is left to send: begin anew
                part.unlink(missing_ok=True)
            elif 400 <= error.code < 500 and error.code not in (408, 429):
                raise NotFoundError(f"{url}: HTTP {error.code} {error.reason}") from error
        except DataError as error:
            part.unlink(missing_ok=True)
            failure = error
        except (OSError, HTTPException) as error:
            failure = error
    kind = DigestError if isinstance(failure, DigestError) else DataError
    raise kind(f"{url}: gave up after {len(PAUSES) + 1} tries; the last one: {failure}") from failure


def _receive(url: str, part: Path, limit: int) -> None:
    """Append to a part of a file what a server sends of the rest; a server that cannot resume sends it all again."""
    have = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "ask-data"} | ({"Range": f"bytes={have}-"} if have else {})
    with urlopen(Request(url, headers=headers), timeout=60) as response:
        have = have if response.status == 206 else 0
        total = have + int(response.headers.get("Content-Length", 0))
        with part.open("ab" if have else "wb") as stream:
            while chunk := response.read(1 << 20):
                have += len(chunk)
                if have > limit:
                    raise DataError(f"{url}: more than the {limit} bytes expected")
                stream.write(chunk)
    if have < total:
        raise ConnectionError(f"the connection closed after {have} of {total} bytes")
