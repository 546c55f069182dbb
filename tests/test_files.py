"""Files that are whole or not there: what a crash, a power cut or another process may find."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from ask import files

ROOT = Path(__file__).parent.parent


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def python(code: str, *arguments: object) -> subprocess.Popen[str]:
    """A process of its own; it says a line when it is where the test wants it."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})


HALF_WRITTEN = """
import sys, time
from pathlib import Path
from ask import files

def fill(part):
    part.write_text("half")
    print(part.name, flush=True)
    time.sleep(60)

files.write(Path(sys.argv[1]), fill)
"""


def test_writes_into_folders_that_it_makes_and_returns_the_path(tmp_path: Path) -> None:
    path = tmp_path / "a/b/one.txt"
    assert files.write_text(path, "x\n") == path
    assert path.read_bytes() == b"x\n"
    assert names(path.parent) == ["one.txt"]


def test_the_old_content_survives_what_fails_on_the_way(tmp_path: Path) -> None:
    path = files.write_text(tmp_path / "one.txt", "old")

    def fill(part: Path) -> None:
        part.write_text("half of the n")
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        files.write(path, fill)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["one.txt"]


def test_nothing_is_there_after_a_first_attempt_that_fails(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        files.write_json(tmp_path / "one.json", {"a": object()})
    with pytest.raises(FileNotFoundError):
        files.write(tmp_path / "two.json", lambda part: None)  # fill must make it
    assert names(tmp_path) == []


def test_the_file_appears_at_once(tmp_path: Path) -> None:
    """Until all is written, a reader finds the old file and nothing else under its name."""
    path = files.write_text(tmp_path / "one.txt", "old")
    seen = []

    def fill(part: Path) -> None:
        part.write_text("new")
        seen.append((path.read_text(), part.parent, part.name.startswith("."), part.suffix))

    files.write(path, fill)
    assert seen == [("old", tmp_path, True, ".txt")]
    assert path.read_text() == "new"


def test_numpys_files_keep_their_names(tmp_path: Path) -> None:
    """NumPy adds a suffix to names that lack it."""
    path = files.write(tmp_path / "one.npz", lambda part: np.savez(part, a=np.arange(3)))
    assert names(tmp_path) == ["one.npz"]
    with np.load(path) as stored:
        assert stored["a"].tolist() == [0, 1, 2]


def test_file_and_folder_are_synced_in_that_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The content before the name, the name before the call returns: a power cut leaves the old file or the new."""
    path = files.write_text(tmp_path / "one.txt", "old")
    synced = []

    def fsync(descriptor: int) -> None:
        inode = os.fstat(descriptor).st_ino
        is_folder = inode == tmp_path.stat().st_ino
        part = next((p.read_text() for p in tmp_path.iterdir() if p.stat().st_ino == inode), None)
        synced.append("the folder" if is_folder else part)
        assert path.read_text() == ("new" if is_folder else "old")

    monkeypatch.setattr(os, "fsync", fsync)
    files.write_text(path, "new")
    assert synced == ["new", "the folder"]


def test_what_a_killed_process_left_goes_and_the_old_file_is_whole(tmp_path: Path) -> None:
    path = files.write_text(tmp_path / "one.txt", "old")
    files.write_text(tmp_path / "two.txt", "another")
    process = python(HALF_WRITTEN, path)
    assert process.stdout is not None
    left = process.stdout.readline().strip()
    process.kill()
    process.wait()
    assert path.read_text() == "old"
    files.write_text(tmp_path / "two.txt", "of another file, it stays")
    assert left in names(tmp_path)
    files.write_text(path, "new")
    assert names(tmp_path) == ["one.txt", "two.txt"]
    assert path.read_text() == "new"


def test_what_a_living_process_is_writing_stays(tmp_path: Path) -> None:
    path = tmp_path / "one.txt"
    process = python(HALF_WRITTEN, path)
    try:
        assert process.stdout is not None
        left = process.stdout.readline().strip()
        files.write_text(path, "new")
        assert names(tmp_path) == sorted([left, "one.txt"])
        assert (tmp_path / left).read_text() == "half"
    finally:
        process.kill()
        process.wait()


def test_what_another_machine_is_writing_stays(tmp_path: Path) -> None:
    """Its processes cannot be asked for."""
    left = tmp_path / f".not-{os.uname().nodename}-1.one.txt"
    left.write_text("half")
    files.write_text(tmp_path / "one.txt", "new")
    assert left.read_text() == "half"


def test_json_is_laid_out_the_same_everywhere(tmp_path: Path) -> None:
    path = files.write_json(tmp_path / "one.json", {"b": ["τ", 1.5], "a": None})
    assert path.read_bytes() == '{\n "b": [\n  "τ",\n  1.5\n ],\n "a": null\n}\n'.encode()
    assert json.loads(path.read_text(encoding="utf-8")) == {"b": ["τ", 1.5], "a": None}


def test_text_has_unix_line_ends_and_is_utf8(tmp_path: Path) -> None:
    assert files.write_text(tmp_path / "one.txt", "ω\nx").read_bytes() == "ω\nx".encode()


def test_digests_are_hashlibs(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000
    (tmp_path / "one").write_bytes(content)
    assert files.digest(tmp_path / "one") == hashlib.sha256(content).hexdigest()
    assert files.digest(tmp_path / "one", "md5") == hashlib.md5(content, usedforsecurity=False).hexdigest()


def test_a_lock_is_one_holders_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "deep/lock"
    with files.locked(path), pytest.raises(BlockingIOError), files.locked(path, wait=False):
        pass
    with files.locked(path, wait=False):
        pass


def test_who_waits_for_a_lock_gets_it_when_it_is_free(tmp_path: Path) -> None:
    order = []
    waiting = threading.Event()

    def second() -> None:
        waiting.set()
        with files.locked(tmp_path / "lock"):
            order.append("second")

    with files.locked(tmp_path / "lock"):
        thread = threading.Thread(target=second)
        thread.start()
        waiting.wait(10)
        thread.join(0.2)
        assert thread.is_alive()
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]


def test_a_lock_is_free_after_an_exception(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="x"), files.locked(tmp_path / "lock"):
        raise ValueError("x")
    with files.locked(tmp_path / "lock", wait=False):
        pass


def test_a_lock_dies_with_its_holder(tmp_path: Path) -> None:
    code = "import sys, time; from pathlib import Path; from ask import files\n"
    code += "with files.locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    process = python(code, tmp_path / "lock")
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "held"
    with pytest.raises(BlockingIOError), files.locked(tmp_path / "lock", wait=False):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    with files.locked(tmp_path / "lock", wait=False):
        pass
