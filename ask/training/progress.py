"""What a person sees of a run: a bar on a terminal, one line an epoch in a log; and ``history.csv``."""

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ask.files import write_text

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


def write_history(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write ``history.csv``, a line for each epoch so far; unknown values (no held-out images) stay empty."""
    cells = [COLUMNS, *([str(row.get(column, "")) for column in COLUMNS] for row in rows)]
    write_text(path, "".join(",".join(line) + "\n" for line in cells))
