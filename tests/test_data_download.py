"""Downloads and mirrors, against a server on this machine."""

import gzip
import hashlib
import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_data_images import CONTENTS, write_folder, write_zip
from test_data_readers import idx_bytes

import ask.data.downloading
from ask.config.base import DataSpec
from ask.data import DataError, download
from ask.data.downloading import Mirror, NotFoundError, fetch, mirrors
from ask.data.sources import PUBLISHED, File, Published

MNIST = DataSpec(source="mnist")
CIFAR10 = DataSpec(source="cifar10")


class Server:
    """Files over HTTP, with the misbehaviour that a test asks for."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str | None]] = []
        self.sent = 0
        self.ranges = True
        self.cuts: list[int] = []
        """Bytes after which the next responses break off."""
        self.statuses: list[int] = []
        """Statuses of the next responses, in place of the file."""
        self.corrupt = 0
        """Number of responses whose first byte is wrong."""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.respond(self)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  (the base class's name)
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        self.thread = threading.Thread(target=lambda: self.http.serve_forever(poll_interval=0.01))

    def respond(self, handler: BaseHTTPRequestHandler) -> None:
        wanted = handler.headers.get("Range")
        self.requests.append((handler.path, wanted))
        if self.statuses or handler.path not in self.files:
            handler.send_error(self.statuses.pop(0) if self.statuses else 404)
            return
        data = self.files[handler.path]
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.ranges else 0
        body = data[start:]
        if self.corrupt:
            self.corrupt -= 1
            body = bytes([body[0] ^ 1]) + body[1:]
        handler.send_response(206 if wanted and self.ranges else 200)
        if wanted and self.ranges:
            handler.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        body = body[: self.cuts.pop(0)] if self.cuts else body
        # Counted first: the client may be done before this thread goes on.
        self.sent += len(body)
        handler.wfile.write(body)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(ask.data.downloading, "PAUSES", (0.0, 0.0))
    made = Server()
    made.thread.start()
    yield made
    made.http.shutdown()
    made.http.server_close()
    made.thread.join()


DATA = np.random.default_rng(0).integers(0, 256, 300_000, dtype=np.uint8).tobytes()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def expect_data(path: Path, label: str) -> None:
    if path.read_bytes() != DATA:
        raise DataError(f"{label}: wrong bytes")


def test_fetch_resumes_within_one_call(tmp_path: Path, server: Server) -> None:
    server.files["/file"], server.cuts = DATA, [100_000, 50_000]
    fetch(f"{server.url}/file", tmp_path / "file", expect_data)
    assert (tmp_path / "file").read_bytes() == DATA
    assert [wanted for _, wanted in server.requests] == [None, "bytes=100000-", "bytes=150000-"]
    assert server.sent == len(DATA)
    assert names(tmp_path) == ["file"]


def test_fetch_resumes_in_a_later_call(tmp_path: Path, server: Server) -> None:
    server.files["/file"], server.cuts = DATA, [100_000, 0, 0]
    with pytest.raises(DataError, match=r"gave up after 3 tries.*closed after 100000 of 300000 bytes"):
        fetch(f"{server.url}/file", tmp_path / "file", expect_data)
    assert not (tmp_path / "file").exists()
    fetch(f"{server.url}/file", tmp_path / "file", expect_data, size=len(DATA))
    assert server.sent == len(DATA)


def test_fetch_starts_over_where_the_server_cannot_resume(tmp_path: Path, server: Server) -> None:
    server.files["/file"], server.cuts, server.ranges = DATA, [100_000], False
    fetch(f"{server.url}/file", tmp_path / "file", expect_data)
    assert server.sent == len(DATA) + 100_000


def test_fetch_retries_errors_of_the_server_and_damage_on_the_way(tmp_path: Path, server: Server) -> None:
    server.files["/file"], server.statuses, server.corrupt = DATA, [503], 1
    fetch(f"{server.url}/file", tmp_path / "file", expect_data)
    assert (tmp_path / "file").read_bytes() == DATA
    assert len(server.requests) == 3


def test_fetch_gets_over_a_beginning_that_is_longer_than_the_file(tmp_path: Path, server: Server) -> None:
    server.files["/file"], server.cuts = DATA, [10, 0, 0]
    with pytest.raises(DataError):
        fetch(f"{server.url}/file", tmp_path / "file", expect_data)
    (part,) = tmp_path.iterdir()
    part.write_bytes(DATA + b"more")
    server.statuses = [416]
    fetch(f"{server.url}/file", tmp_path / "file", expect_data)
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize(
    ("status", "requests", "kind"), [(500, 3, DataError), (429, 3, DataError), (404, 1, NotFoundError)]
)
def test_fetch_gives_up(tmp_path: Path, server: Server, status: int, requests: int, kind: type[DataError]) -> None:
    server.statuses = [status] * 3
    with pytest.raises(kind, match=str(status)):
        fetch(f"{server.url}/file", tmp_path / "file", expect_data)
    assert len(server.requests) == requests
    assert not list(tmp_path.iterdir())


def test_fetch_leaves_nothing_of_a_wrong_file(tmp_path: Path, server: Server) -> None:
    server.files["/file"] = b"wrong"
    for size, message in ((5, "wrong bytes"), (4, "more than the 4 bytes expected")):
        with pytest.raises(DataError, match=message):
            fetch(f"{server.url}/file", tmp_path / "file", expect_data, size=size)
        assert not list(tmp_path.iterdir())


def test_fetch_without_a_server(tmp_path: Path, server: Server) -> None:
    with pytest.raises(DataError, match="gave up after 3 tries"):
        fetch("http://127.0.0.1:1/file", tmp_path / "file", expect_data)


def idx_files(seed: int = 0) -> dict[str, bytes]:
    """Content of the four IDX files of a small data set of two classes."""
    rng = np.random.default_rng(seed)
    files = {}
    for prefix, count in (("train", 6), ("t10k", 4)):
        files[f"{prefix}-images-idx3-ubyte"] = idx_bytes(rng.integers(0, 256, (count, 8, 8), dtype=np.uint8))
        files[f"{prefix}-labels-idx1-ubyte"] = idx_bytes(np.arange(count, dtype=np.uint8) % 2)
    return files


def compressed(files: dict[str, bytes], level: int = 9) -> dict[str, bytes]:
    return {f"{name}.gz": gzip.compress(data, level, mtime=0) for name, data in files.items()}


def publish(server: Server, monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes], source: str = "mnist") -> None:
    """Put files on the server as a small published data set in place of a real one."""
    for name, data in files.items():
        server.files[f"/{source}/{name}"] = data
    known = tuple(
        File(
            name=name,
            size=len(data),
            sha256=hashlib.sha256(gzip.decompress(data) if name.endswith("ubyte.gz") else data).hexdigest(),
            repacked=name.endswith("ubyte.gz"),
        )
        for name, data in files.items()
    )
    small = Published(
        title="Small",
        url=f"{server.url}/{source}/",
        files=known,
        class_names=("cat", "dog"),
        class_folders=("cat", "dog"),
        image_zips=("train-0.zip", "test.zip") if source == "cifar10" else (),
        image_zip_note="From zips.",
        train_counts=(3, 3) if source == "mnist" else (1, 2),
        test_counts=(2, 2) if source == "mnist" else (1, 1),
    )
    monkeypatch.setitem(PUBLISHED, source, small)


def manifest_of(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_download_from_the_publisher(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    files = compressed(idx_files())
    publish(server, monkeypatch, files)
    path = download(MNIST, tmp_path, None)
    assert path == tmp_path / "raw" / "mnist" / "manifest.json"
    manifest = manifest_of(path)
    assert {record["name"]: record["from"] for record in manifest["files"]} == {
        name: f"{server.url}/mnist/{name}" for name in files
    }
    for record in manifest["files"]:
        assert record["size"] == len(files[record["name"]])
        assert record["sha256"] == hashlib.sha256(files[record["name"]]).hexdigest()
    assert names(path.parent) == sorted([*files, "manifest.json"])
    before, requests = path.stat().st_mtime_ns, len(server.requests)
    download(MNIST, tmp_path, None)
    assert (path.stat().st_mtime_ns, len(server.requests)) == (before, requests)


def test_download_repairs_what_is_damaged(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(server, monkeypatch, compressed(idx_files()))
    path = download(MNIST, tmp_path, None)
    (path.parent / "t10k-labels-idx1-ubyte.gz").write_bytes(b"damaged")
    server.requests.clear()
    download(MNIST, tmp_path, None)
    assert [name for name, _ in server.requests] == ["/mnist/t10k-labels-idx1-ubyte.gz"]
    origins = [record["from"] for record in manifest_of(path)["files"]]
    assert origins.count("already present") == 3


def test_failed_download_says_what_to_do(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    files = compressed(idx_files())
    publish(server, monkeypatch, files)
    name = "t10k-labels-idx1-ubyte.gz"
    server.files[f"/mnist/{name}"] = bytes([files[name][0] ^ 1]) + files[name][1:]
    with pytest.raises(DataError, match="cannot be had") as caught:
        download(MNIST, tmp_path, None)
    for part in (f"{server.url}/mnist/{name}", "sha256", "expected", "ASK_DATA_MIRROR", f"mnist/{name}"):
        assert part in str(caught.value)
    assert not (tmp_path / "raw" / "mnist" / name).exists()
    assert not (tmp_path / "raw" / "mnist" / "manifest.json").exists()


def test_downloads_at_the_same_time_wait_for_each_other(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(server, monkeypatch, compressed(idx_files()))
    threads = [threading.Thread(target=download, args=(MNIST, tmp_path, None)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.requests) == 4


@pytest.mark.parametrize("layout", ["own folder", "flat", "decompressed", "address"])
def test_mirror_layouts(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch, layout: str) -> None:
    content = idx_files()
    publish(server, monkeypatch, compressed(content))
    # Other bytes than the publisher's, the same content.
    files = content if layout == "decompressed" else compressed(content, level=1)
    below = "" if layout == "flat" else "mnist/"
    folder = write_folder(tmp_path / "mirror", {below + name: data for name, data in files.items()})
    mirror = str(folder)
    if layout == "address":
        server.files = {f"/some where/mnist/{name}".replace(" ", "%20"): data for name, data in files.items()}
        mirror = f"{server.url}/some%20where/"
    server.requests.clear()
    manifest = download(MNIST, tmp_path / "data", mirror)
    assert {record["from"] for record in manifest_of(manifest)["files"]} == {"mirror"}
    assert str(tmp_path) not in manifest.read_text()
    assert {record["name"] for record in manifest_of(manifest)["files"]} == set(files)
    assert bool(server.requests) == (layout == "address")


def test_first_place_that_has_the_file_wins(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    content = idx_files()
    publish(server, monkeypatch, compressed(content))
    # The same names, another data set: MNIST and Fashion-MNIST, side by side.
    other = write_folder(tmp_path / "other", compressed(idx_files(seed=1)))
    right = write_folder(tmp_path / "right", compressed(content, level=1))
    server.requests.clear()
    manifest = download(MNIST, tmp_path / "data", os.pathsep.join([str(other), str(right)]))
    assert {record["from"] for record in manifest_of(manifest)["files"]} == {"mirror"}
    manifest = download(MNIST, tmp_path / "more", str(other))
    assert {record["from"] for record in manifest_of(manifest)["files"]} == {
        server.url + "/mnist/" + name for name in ("train-images-idx3-ubyte.gz", "t10k-images-idx3-ubyte.gz")
    } | {"mirror"}


def test_a_flat_address_of_another_data_set_is_passed_over(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(server, monkeypatch, compressed(idx_files()))
    server.files |= {f"/flat/{name}": data for name, data in compressed(idx_files(seed=1)).items()}
    manifest = download(MNIST, tmp_path / "data", f"{server.url}/flat")
    assert {record["from"] for record in manifest_of(manifest)["files"]} == {
        server.url + "/mnist/" + name for name in ("train-images-idx3-ubyte.gz", "t10k-images-idx3-ubyte.gz")
    } | {"mirror"}


def test_wrong_file_in_a_mirrors_own_folder(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(server, monkeypatch, compressed(idx_files()))
    wrong = write_folder(tmp_path / "mirror" / "mnist", compressed(idx_files(seed=1))).parent
    with pytest.raises(
        DataError, match=r"mirror/mnist/train-images-idx3-ubyte.gz: .*content has sha256 .*, expected .*; get it anew"
    ):
        download(MNIST, tmp_path / "data", str(wrong))
    assert names(tmp_path / "data" / "raw" / "mnist") == []


def test_missing_mirror_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such folder; correct data.mirror or ASK_DATA_MIRROR"):
        download(MNIST, tmp_path, str(tmp_path / "nowhere"))


@pytest.mark.skipif(os.pathsep != ":", reason="written for `:` as separator")
def test_mirror_value_is_split_into_places(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    value = f"{tmp_path}/a:http://host/x:https://host:8080/y:http://host:8080:{tmp_path}/b/"
    addresses = ["http://host/x", "https://host:8080/y", "http://host:8080", f"{tmp_path}/b"]
    assert [mirror.address for mirror in mirrors(value)] == [f"{tmp_path}/a", *addresses]
    assert mirrors(None) == mirrors("") == []


def write_zips(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for split, name in (("train", "train-0.zip"), ("test", "test.zip")):
        write_zip(folder / name, {path: data for path, data in CONTENTS.items() if path.startswith(split)})
    return folder


@pytest.mark.parametrize("layout", ["own folder", "flat", "address"])
def test_image_zips(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch, layout: str) -> None:
    publish(server, monkeypatch, {"archive.tar.gz": b"never asked for"}, "cifar10")
    folder = write_zips(tmp_path / "mirror" / ("" if layout == "flat" else "cifar10"))
    if layout != "flat":
        sums = "".join(
            f"{hashlib.sha256(path.read_bytes()).hexdigest()}  ./cifar10/{path.name}\n" for path in folder.iterdir()
        )
        (tmp_path / "mirror" / "SHA256SUMS").write_text(sums)
    mirror = str(tmp_path / "mirror")
    if layout == "address":
        mirror = server.url
        server.files = {
            f"/{path.relative_to(tmp_path / 'mirror').as_posix()}": path.read_bytes()
            for path in (tmp_path / "mirror").rglob("*")
            if path.is_file()
        }
    manifest = manifest_of(download(CIFAR10, tmp_path / "data", mirror))
    assert manifest["form"] == "image zips"
    assert {record["name"] for record in manifest["files"]} == {"train-0.zip", "test.zip"}
    if layout != "flat":
        victim = "/cifar10/test.zip"
        server.files[victim] = b"changed"
        (folder / "test.zip").write_bytes(b"changed")
        with pytest.raises(DataError, match=r"cifar10/test.zip: its sha256 is not the one in the mirror's SHA256SUMS"):
            download(CIFAR10, tmp_path / "again", mirror)
        assert not (tmp_path / "again" / "raw" / "cifar10" / "test.zip").exists()


def test_incomplete_image_zips_are_not_kept(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(server, monkeypatch, {"archive.tar.gz": b"published"}, "cifar10")
    server.files["/cifar10/train-0.zip"] = write_zips(tmp_path / "zips").joinpath("train-0.zip").read_bytes()
    manifest = manifest_of(download(CIFAR10, tmp_path / "data", server.url))
    # The mirror, being the publisher's server, holds the archive too: it wins.
    assert manifest["files"][0]["name"] == "archive.tar.gz"
    del server.files["/cifar10/archive.tar.gz"]
    with pytest.raises(DataError, match=r"archive.tar.gz is in no mirror, and cannot be had"):
        download(CIFAR10, tmp_path / "again", server.url)
    assert names(tmp_path / "again" / "raw" / "cifar10") == []


def test_sums_files(tmp_path: Path) -> None:
    digest, path = "0" * 64, tmp_path / "SHA256SUMS"
    path.write_text(f"{digest}  ./a/b\n\n{digest} *c d\n")
    assert Mirror(str(tmp_path)).sums == {"a/b": digest, "c d": digest}
    path.write_text(f"{digest}  a\nnonsense\n")
    with pytest.raises(DataError, match=r"SHA256SUMS: has other lines than"):
        _ = Mirror(str(tmp_path)).sums


def test_table_of_sources_is_well_formed() -> None:
    for published in PUBLISHED.values():
        assert published.url.endswith("/") or not published.files
        assert len(published.train_counts) == len(published.test_counts) == len(published.class_names)
        assert len(published.class_folders) in (0, len(published.class_names))
        for file in published.files:
            assert len(file.sha256) == 64


def test_digits_manifest(tmp_path: Path) -> None:
    manifest = manifest_of(download(DataSpec(source="digits"), tmp_path, None))
    assert manifest["source"] == "digits"
    assert manifest["scikit-learn"][0].isdigit()


def test_own_images_need_a_path(tmp_path: Path) -> None:
    for wrong, message in ((None, "set `path`"), (str(tmp_path / "none"), "no such folder or zip")):
        with pytest.raises(DataError, match=message):
            download(DataSpec(source="images", path=wrong), tmp_path / "data", None)
