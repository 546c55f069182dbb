"""The warm worker: commands behave as in a process of their own, and nothing outlives its starter."""

import json
import os
import platform
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest

from ask import worker

ROOT = Path(__file__).parent.parent
STARTER = "from ask import worker; import os, sys; worker.start(); print(os.environ['ASK_WORKER'], flush=True); input()"


def environment(**more):
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "ASK_"))}
    return kept | {"PYTHONPATH": str(ROOT)} | more


def wait_until(done, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@contextmanager
def server(**variables):
    """A server of a starter that ends with the block, and that ignores SIGINT as a script's `snakemake … &` does."""
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(**variables),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    path = starter.stdout.readline().strip()
    yield path
    starter.communicate("\n", timeout=20)
    wait_until(lambda: not Path(path).parent.exists())


@pytest.fixture
def address():
    with server() as path:
        yield path


def ask(address, *arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "ask", *arguments],
        env=environment(ASK_WORKER=address),
        capture_output=True,
        text=True,
        timeout=60,
        **options,
    )


def prepare_job(**spec):
    return json.dumps({"dataset": "digits", "spec": spec})


def test_prepares_data_as_a_cold_command_does(address, tmp_path):
    job = prepare_job(source="digits")
    for how, folder in ((address, "warm"), ("", "cold")):
        (tmp_path / folder).mkdir()
        done = ask(how, "prepare", "--job", job, cwd=tmp_path / folder)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == "data/prepared/digits"
    for cold in (tmp_path / "cold/data").rglob("*.npy"):
        assert cold.read_bytes() == (tmp_path / "warm" / cold.relative_to(tmp_path / "cold")).read_bytes()


def test_failures_keep_their_status_and_message(address, tmp_path):
    bad = ask(address, "attack", "--job", "{}", "--run", "results/x", cwd=tmp_path)
    assert bad.returncode == 1
    assert "--job: features: missing; add it" in bad.stderr
    usage = ask(address, "attack", cwd=tmp_path)
    assert usage.returncode == 2
    assert "--job" in usage.stderr
    job = prepare_job(source="images", path=str(tmp_path / "nothing"))
    expected = ask(address, "prepare", "--job", job, cwd=tmp_path)
    assert expected.returncode == 1
    assert expected.stderr.startswith("ask prepare: ")
    assert expected.stderr == ask("", "prepare", "--job", job, cwd=tmp_path).stderr


def test_without_a_server_the_command_runs_by_itself(tmp_path):
    assert ask(str(tmp_path / "gone"), "check", "config/config.yaml", cwd=ROOT).returncode == 0


def test_a_cluster_job_never_leaves_its_own_process(address, monkeypatch):
    from ask import worker

    monkeypatch.setenv("ASK_WORKER", address)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert worker.run(["check"]) is None
    monkeypatch.delenv("SLURM_JOB_ID")
    monkeypatch.setattr(sys, "prefix", "/another/environment")
    assert worker.run(["check"]) is None  # refused by the server


def test_a_cluster_job_runs_in_the_server_that_it_started(monkeypatch, capfd):
    from ask import worker

    with server(SLURM_JOB_ID="7") as own:
        monkeypatch.setenv("ASK_WORKER", own)
        for job, status in (("7", 0), ("8", None)):
            monkeypatch.setenv("SLURM_JOB_ID", job)
            assert worker.run(["check", "config/config.yaml"]) == status


@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_command_takes_its_process_along(address, tmp_path, kill):
    os.mkfifo(tmp_path / "config.yaml")  # opening it blocks
    command = subprocess.Popen(
        [sys.executable, "-m", "ask", "check", "config.yaml"],
        cwd=tmp_path,
        env=environment(ASK_WORKER=address),
        stderr=subprocess.PIPE,
        # As from a terminal, even where the tests themselves run in the background and ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    wait_until(lambda: working_in(tmp_path) - {command.pid})
    time.sleep(0.5)
    assert working_in(tmp_path) - {command.pid}
    command.send_signal(kill)
    command.communicate(timeout=60)
    wait_until(lambda: not working_in(tmp_path))


def working_in(folder):
    """Processes whose working folder this is."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").readlink() == folder.resolve():
                found.add(int(process.name))
        except OSError:
            continue
    return found


def test_what_is_loaded_ahead_exists():
    """A name that is out of date would be passed over in silence, and every job would import by itself."""
    from ask import worker

    names = [*worker.PRELOADED, *worker.LARGE, *worker._when_idle()]
    assert {"ask.measure.cells", "ask.measure.train", "ask.attacks.ask", "ask.report.tables"} <= set(names)
    missing = [name for name in names if name.startswith("ask.") and find_spec(name) is None]
    assert not missing


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another malloc")
def test_freed_memory_is_kept():
    """Page faults of 50 arrays of 40 MB, one after the other: fresh pages each time, or the first ones again."""
    code = """
import resource, sys
import numpy as np
from ask import worker
if sys.argv[1] == "keep":
    worker.keep_memory()
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
np.ones(5_000_000)
before = faults()
for _ in range(50):
    np.ones(5_000_000)
print(faults() - before)
"""
    counts = [
        int(subprocess.run([sys.executable, "-c", code, how], check=True, capture_output=True, text=True).stdout)
        for how in ("keep", "default")
    ]
    assert counts[0] < counts[1] / 10


def test_a_starter_is_known_by_machine_number_and_start():
    from ask.worker import _runs, named

    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    name = named(child.pid)
    assert _runs(name)
    assert not _runs(name + "0"), "another process of that number"
    assert not _runs(f"elsewhere{name}"), "another machine's"
    assert not _runs("")
    child.stdin.close()
    wait_until(lambda: named(child.pid) != name)
    os.kill(child.pid, 0)
    assert not _runs(name), "it has ended, though nobody has asked for its status yet"
    child.wait()
    assert not _runs(name)


def test_jobs_find_the_python_that_plans_under_its_name(monkeypatch, tmp_path):
    """Also where it has another name, and another bears its own, as `python` beside `python3.12`."""
    own = str(Path(sys.executable).parent)
    assert worker._folder_of_python() == own
    (tmp_path / "python").write_text("#!/bin/sh\necho another\n")
    (tmp_path / "python").chmod(0o755)
    (tmp_path / "python3.12").symlink_to(sys.executable)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python3.12"))
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        program = f"{worker._folder_of_python()}/python"
        assert subprocess.check_output([program, "-c", "print(6 * 7)"], text=True) == "42\n"
