"""Which card a job computes on: a lease in a file's lock, which the kernel frees however its holder ends."""

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from fcntl import LOCK_EX, LOCK_NB, flock
from itertools import count
from pathlib import Path
from typing import Any

from ask.files import locked

WAIT = 0.2
"""Seconds between two looks for a free card, by the one whose turn it is."""
NEEDED = 20.0
"""GiB for a job on a full-width network: an attack's largest batch takes some 10, references and features most of the
rest. A narrower one takes its share, and every process 2 GiB of its own."""


def needed(name: str, job: Any) -> int | None:
    """Upper bound of a step's GPU memory (MiB); None for one whose seconds count, which wants a card to itself."""
    if name == "timing":
        return None
    whole = getattr(job, "cell", None) or next(iter(getattr(job, "cells", ())), job)
    network = getattr(getattr(whole, "features", whole), "network", None)
    return round(1024 * (2 + (NEEDED - 2) * (min(network.width, 1) if network else 0)))


@contextmanager
def card(need: int | None, say: Callable[[str], object] = str) -> Iterator[int]:
    """Hold ``need`` MiB (None: all) of one of the cards that this process may see, and make it torch's current one.

    Yields its index among them. Cards are known by their own numbers (UUID), whatever ``CUDA_VISIBLE_DEVICES`` makes
    of them. A job of SLURM that was given one card has it: SLURM keeps others off.
    """
    import torch

    visible = range(torch.cuda.device_count())
    if len(visible) == 1 and "SLURM_JOB_ID" in os.environ:
        yield 0
        return
    cards = {str(one.uuid): int(one.total_memory) // 2**20 for one in map(torch.cuda.get_device_properties, visible)}
    folder = Path(tempfile.gettempdir(), f"ask-cards-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    with lease(cards, need, folder, say) as name:
        index = list(cards).index(name)
        torch.cuda.set_device(index)
        yield index


@contextmanager
def lease(cards: Mapping[str, int], need: int | None, folder: Path, say: Callable[[str], object]) -> Iterator[str]:
    """Hold memory of the card (MiB by name) that has most to spare; waits in turn until one has enough.

    ``need`` is in MiB; None, or more than a card has: that card alone. All who share the cards have one ``folder``.
    """
    wanted = {name: size if need is None else min(need, size) for name, size in cards.items()}
    with locked(folder / "turn"):  # held while waiting: the first to come is the first to go
        for looks in count():
            spare = {name: size - sum(_held(folder / name)) for name, size in cards.items()}
            if enough := [name for name in cards if spare[name] >= wanted[name]]:
                break
            if not looks:
                say(f"waiting for a GPU: MiB to spare are {list(spare.values())}, wanted {list(wanted.values())}")
            time.sleep(WAIT)
        best = max(enough, key=lambda name: spare[name])
        held = tempfile.NamedTemporaryFile("w", 1, prefix=f"{os.getpid()}-", dir=folder / best)  # noqa: SIM115  # the lease is held
        flock(held, LOCK_EX)
        held.write(f"{wanted[best]}\n")  # the buffer is a line
    with held:
        yield best


def _held(folder: Path) -> Iterator[int]:
    """MiB of every lease of a card; what a dead process left is removed."""
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        try:
            with path.open() as stream:
                flock(stream, LOCK_EX | LOCK_NB)
            path.unlink(missing_ok=True)
        except BlockingIOError:
            yield int(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue  # given back meanwhile
