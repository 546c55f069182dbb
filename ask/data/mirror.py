"""Mirrors: folders and addresses that hold data files (layout: see the package)."""

import os
import re
import shutil
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import quote, unquote, urlsplit

from .errors import DataError, DigestError, NotFoundError
from .fetch import Verify, fetch
from .files import digests

SUMS = "SHA256SUMS"
_SEPARATOR = re.escape(os.pathsep)
# An address has colons of its own: after the scheme and before a port.
_PLACE = re.compile(rf"https?://[^{_SEPARATOR}/]*(?::\d+)?[^{_SEPARATOR}]*|file://[^{_SEPARATOR}]*|[^{_SEPARATOR}]+")


class Place:
    """One mirror.

    Args:
        address: A folder, or a ``http://``, ``https://`` or ``file://`` address.

    Raises:
        DataError: a folder that does not exist.
    """

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/") or "/"
        self.folder: Path | None = None
        if address.startswith("file://"):
            self.folder = Path(unquote(urlsplit(address).path))
        elif not address.startswith(("http://", "https://")):
            self.folder = Path(address).expanduser()
        if self.folder is not None and not self.folder.is_dir():
            raise DataError(f"mirror {address}: no such folder; correct data.mirror or ASK_DATA_MIRROR")

    def get(self, relative: str, target: Path, verify: Verify | None = None) -> None:
        """Copy or download a file of this mirror to ``target``, atomically.

        Raises:
            NotFoundError: the mirror does not hold it.
            DataError: it is not what ``SHA256SUMS`` or ``verify`` expect.
        """

        def check(path: Path, label: str) -> None:
            expected = self._sums.get(relative)
            if expected is not None and digests(path)[2] != expected:
                raise DigestError(f"{label}: its sha256 is not the one in the mirror's {SUMS}; copy the file anew")
            if verify is not None:
                verify(path, label)

        if self.folder is None:
            fetch(f"{self.address}/{quote(relative)}", target, check)
            return
        origin = self.folder / relative
        if not origin.is_file():
            raise NotFoundError(f"{origin}: no such file")
        part = target.with_name(f".{target.name}.copy.part")
        part.parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copyfile(origin, part)
            check(part, str(origin))
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)

    def image_zips(self, source: str, names: tuple[str, ...]) -> list[list[str]]:
        """Sets of image zips to try, as paths below the mirror; ``names`` where the mirror cannot be listed."""
        own = [f"{source}/{name}" for name in names]
        if self.folder is not None:
            own = [f"{source}/{path.name}" for path in sorted((self.folder / source).glob("*.zip"))]
        return [files for files in (own, list(names)) if files]

    @cached_property
    def _sums(self) -> dict[str, str]:
        if self.folder is not None:
            path = self.folder / SUMS
            return read_sums(path.read_text(encoding="utf-8"), str(path)) if path.is_file() else {}
        with TemporaryDirectory() as folder:
            path = Path(folder) / SUMS
            try:
                fetch(f"{self.address}/{SUMS}", path)
            except NotFoundError:
                return {}
            return read_sums(path.read_text(encoding="utf-8"), f"{self.address}/{SUMS}")


def read_sums(text: str, label: str) -> dict[str, str]:
    """Parse lines of ``<sha256>  <path>``, as ``sha256sum`` writes them, into path -> sha256.

    Raises:
        DataError: a line is not of that form.
    """
    sums = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        match = re.fullmatch(r"([0-9a-fA-F]{64}) [ *](.+)", line)
        if match is None:
            raise DataError(f"{label}, line {number}: expected `<sha256>  <path>`; make the file with sha256sum")
        sums[match[2].removeprefix("./")] = match[1].lower()
    return sums


def places(mirror: str | None) -> list[Place]:
    """The places named in a ``data.mirror`` value, in order.

    Raises:
        DataError: a folder that does not exist.
    """
    return [Place(address) for address in _PLACE.findall(mirror or "")]
