"""GPU leases: racing processes never take more than a card has, each in turn, and the dead give theirs back.

And the lock on a training.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
import yaml

from ask.config.training import NetworkSpec
from ask.files import locked
from ask.leases import card, lease, needed
from ask.paths import Run

CARDS = {"one": 24, "two": 24}
HOLDER = """
import fcntl, os, sys, time
from pathlib import Path
from ask.files import locked
from ask.leases import lease
folder, need, seconds = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
with lease({"one": 24, "two": 24}, need or None, folder / "leases", str) as card, (folder / "seen").open("a") as seen:
    for what in ("takes", "gives"):
        fcntl.flock(seen, fcntl.LOCK_EX)
        print(what, card, need or 24, os.getpid(), file=seen, flush=True)
        fcntl.flock(seen, fcntl.LOCK_UN)
        time.sleep(seconds if what == "takes" else 0)
"""


@contextmanager
def holders(folder, *wanted):
    """Processes that ask for leases at the same time: MiB (0: a card alone) and seconds of each."""
    (folder / "leases").mkdir(exist_ok=True)
    command = [sys.executable, "-c", HOLDER, str(folder)]
    started = [subprocess.Popen([*command, str(need), str(seconds)]) for need, seconds in wanted]
    try:
        yield started
    finally:
        for one in started:
            one.kill()
            one.wait()


def seen(folder):
    path = folder / "seen"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def wait_until(done, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_racing_processes_share_cards_within_their_memory(tmp_path):
    with holders(tmp_path, *[(8, 0.3)] * 12, (0, 0.3), (100, 0.3)) as started:
        assert [one.wait(60) for one in started] == [0] * 14
    held, most = dict.fromkeys(CARDS, 0), dict.fromkeys(CARDS, 0)
    for what, name, need, _ in seen(tmp_path):
        held[name] += min(int(need), CARDS[name]) * (1 if what == "takes" else -1)
        most[name] = max(most[name], held[name])
    assert held == dict.fromkeys(CARDS, 0)
    assert most == CARDS, "both cards were full at times, and never more than full"
    assert not [path for name in CARDS for path in (tmp_path / "leases" / name).iterdir()]


def test_a_killed_holder_gives_its_card_back(tmp_path):
    with holders(tmp_path, (0, 60), (0, 60)) as started:
        wait_until(lambda: len(seen(tmp_path)) == 2)
        with holders(tmp_path, (20, 0)) as waiting:
            time.sleep(1)
            assert len(seen(tmp_path)) == 2, "no card was free"
            card_of = {int(pid): name for _, name, _, pid in seen(tmp_path)}
            started[1].send_signal(signal.SIGKILL)
            assert waiting[0].wait(20) == 0
    assert seen(tmp_path)[2][:2] == ["takes", card_of[started[1].pid]]


def test_one_that_wants_a_card_alone_is_not_overtaken(tmp_path):
    def waits() -> bool:
        try:
            with locked(tmp_path / "leases/turn", wait=False):
                return False
        except BlockingIOError:
            return True

    with holders(tmp_path, (16, 60), (16, 60)) as first:
        wait_until(lambda: len(seen(tmp_path)) == 2)
        with holders(tmp_path, (0, 0)) as alone:
            wait_until(waits)
            with holders(tmp_path, (8, 0)) as small:  # would fit beside the first two at once
                time.sleep(2)
                for one in first:
                    one.kill()
                assert (alone[0].wait(20), small[0].wait(20)) == (0, 0)
    takes = [int(need) for what, _, need, _ in seen(tmp_path) if what == "takes"]
    assert takes == [16, 16, 24, 8]


def test_who_waits_says_what_for(tmp_path):
    lines = []
    with holders(tmp_path, (20, 1), (20, 1)):
        wait_until(lambda: len(seen(tmp_path)) == 2)
        with lease(CARDS, 8, tmp_path / "leases", lines.append):
            pass
    assert lines == ["waiting for a GPU: MiB to spare are [4, 4], wanted [8, 8]"]


@pytest.fixture
def two_cards(monkeypatch, tmp_path):
    """Two pretended GPUs of 24 GiB, of which CUDA_VISIBLE_DEVICES leaves the named ones."""
    chosen = []

    def visible():
        return [f"GPU-{name}" for name in os.environ.get("CUDA_VISIBLE_DEVICES", "a,b").split(",")]

    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(visible()))
    monkeypatch.setattr(
        torch.cuda,
        "get_device_properties",
        lambda index: SimpleNamespace(uuid=visible()[index], total_memory=24 * 2**30),
    )
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return chosen


def test_jobs_are_spread_over_the_cards_that_they_may_see(two_cards, monkeypatch):
    with card(4096) as first, card(4096) as second, card(8192) as third:
        assert (first, second, third) == (0, 1, 0)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "b")
        with card(1024) as only:
            assert only == 0
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "b,a")  # the same cards by other numbers: b has more to spare
        with card(1024) as fourth:
            assert fourth == 0
    assert two_cards == [0, 1, 0, 0, 0]


def test_slurm_has_leased_the_only_card_already(two_cards, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with card(None), card(None):
        pass  # two cards: an allocation's own jobs share them as anywhere
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "a")
    with card(None) as first, card(None) as second:
        assert (first, second) == (0, 0)


def job(width):
    network = NetworkSpec(name="vgg16", width=width) if width else None
    return SimpleNamespace(features=SimpleNamespace(network=network))


def test_needs_grow_with_the_network_and_timing_is_alone():
    several, one = SimpleNamespace(cells=[job(1)]), SimpleNamespace(cell=job(1))
    assert needed("timing", several) is None
    assert needed("transfer", several) == needed("failures", one) == needed("attack", job(1)) == 20 * 1024
    assert needed("train", job(1).features) == 20 * 1024
    assert needed("attack", job(0)) == 2048 < needed("attack", job(0.25)) < needed("attack", job(1))


def test_a_step_computes_on_the_card_that_it_holds(two_cards, monkeypatch, tmp_path):
    """A whole command asks for a lease of its need, and has given it back when it ends."""
    from ask.cli import main

    held = []

    def attack(job, place):
        folder = tmp_path / f"ask-cards-{os.getuid()}"
        held.extend(int(path.read_text()) for path in folder.glob("GPU-*/*"))

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("ask.cli.find", lambda does: attack)
    monkeypatch.setattr("ask.hardware.usage", lambda device: {})
    text = '{"features": {"dataset": "digits", "model": "none", "network": null}, "layer": "input"}'
    assert main(["index", "--job", text, "--run", str(Run(tmp_path).root), "--device", "cuda"]) == 0
    assert held == [2048]
    assert not list((tmp_path / f"ask-cards-{os.getuid()}").glob("GPU-*/*"))


@pytest.mark.parametrize(("code", "trained"), [("same", 0), ("other", 1)])
def test_a_training_that_waited_keeps_what_was_made_meanwhile(tmp_path, monkeypatch, code, trained):
    """The very training of another process, but not one of other code."""
    from ask.measure import train as step

    document = {"name": "of the first"}
    job = SimpleNamespace(dataset="d", model="m", model_dump=lambda mode: document)
    said, begun = [], []
    place = SimpleNamespace(run=Run(tmp_path), code="same", log=said.append)
    monkeypatch.setattr(step, "_train", lambda *_: begun.append(1))
    with locked(tmp_path / "scratch/d/m.lock"):
        second = threading.Thread(target=step.train_model, args=(job, place))
        second.start()
        wait_until(lambda: said)
        (tmp_path / "models/d/m").mkdir(parents=True)
        (tmp_path / "models/d/m/config.yaml").write_text(yaml.safe_dump({"job": document, "fingerprint": code}))
        assert not begun
    second.join(20)
    assert len(begun) == trained
    assert ("m: trained meanwhile" in said) == (not trained)
