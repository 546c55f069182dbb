"""What a person sees of a run: a bar on a terminal, one line an epoch in a log; and ``history.csv``."""

import csv
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tqdm import tqdm

COLUMNS = (
    "epoch",
    "train_loss",
    "train_robust_accuracy",
    "learning_rate",
    "val_clean_accuracy",
    "val_robust_accuracy",
    "train_seconds",
    "seconds",
    "gflops",
    "mfu",
)
"""``gflops``: 10^9 floating-point operations of convolutions and linear layers a second of ``train_seconds``; ``mfu``:
their share of what a matrix product reaches on the device (model FLOP utilisation)."""


class Progress:
    """Steps and lines of a run, on standard error; silent if not ``shown``."""

    def __init__(self, total: int, done: int, label: str, *, shown: bool) -> None:
        self.shown = shown
        self.bar = tqdm(total=total, initial=done, desc=label, unit="step", disable=not (shown and sys.stderr.isatty()))

    def step(self) -> None:
        """One more step; never waits for the device."""
        self.bar.update()

    def say(self, line: str) -> None:
        """A line of its own, above the bar if there is one."""
        if self.shown:
            tqdm.write(line, file=sys.stderr)
            sys.stderr.flush()

    def close(self) -> None:
        """Leave the bar as it stands."""
        self.bar.close()


class History:
    """``history.csv``, one row an epoch; starts anew from the rows of a checkpoint, so that no epoch appears twice."""

    def __init__(self, path: Path, rows: Iterable[dict[str, Any]]) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as file:
            csv.DictWriter(file, COLUMNS).writeheader()
        for row in rows:
            self.append(row)

    def append(self, row: dict[str, Any]) -> None:
        """Write one epoch; unknown values (no held-out images) stay empty."""
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, COLUMNS).writerow(row)
