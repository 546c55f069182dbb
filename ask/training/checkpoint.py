"""Resumable training: everything a killed run needs to end with the same weights, in one atomic file."""

import hashlib
import json
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ask.config.training import TrainJob
from ask.tensorfile import load_tensors, save_tensors


@dataclass
class State:
    """Position of a run; tensors travel beside it."""

    epoch: int = 0
    """Epochs done."""
    step: int = 0
    """Steps done of the next epoch."""
    best_epoch: int | None = None
    """Epoch (from 1) of the best weights so far."""
    best_accuracy: float = -1.0
    """Robust accuracy of that epoch by the run's rule of selection."""
    seconds: float = 0.0
    """Time spent in earlier epochs, over all starts of this run."""
    epoch_seconds: float = 0.0
    """Time spent in the epoch under way."""
    passes_per_step: dict[str, float] = field(default_factory=dict)
    """Of a full step: images trained on, images of forward and of backward passes, 10^9 multiply-adds of these."""
    rows: list[dict[str, Any]] = field(default_factory=list)
    """History, one row an epoch."""


class Checkpoint:
    """The file of one job: its name is a hash of all that decides the outcome, so that a stale one is never found.

    It lies outside the step's declared outputs, for Snakemake deletes those when a job fails.
    """

    def __init__(self, folder: Path, job: TrainJob, fingerprint: str, data_hash: str) -> None:
        key = json.dumps([job.model_dump(mode="json"), fingerprint, data_hash], sort_keys=True)
        self.path = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:20]}.safetensors"

    def save(self, state: State, **groups: dict[str, Tensor]) -> None:
        """Replace the checkpoint by ``state`` and named groups of tensors."""
        tensors = {f"{group}/{name}": tensor for group, items in groups.items() for name, tensor in items.items()}
        save_tensors(self.path, tensors, {"state": json.dumps(asdict(state))})

    def load(self) -> tuple[State, dict[str, dict[str, Tensor]]] | None:
        """What :meth:`save` wrote last, or None if there is nothing to continue from."""
        if not self.path.is_file():
            return None
        tensors, metadata = load_tensors(self.path)
        groups: dict[str, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            group, name = key.split("/", 1)
            groups.setdefault(group, {})[name] = tensor
        return State(**json.loads(metadata["state"])), groups

    def remove(self) -> None:
        """Delete the checkpoint of a finished run, and its folder if that is then empty."""
        self.path.unlink(missing_ok=True)
        for part in self.path.parent.glob(f".*.{self.path.name}"):  # a killed run left it half-written
            part.unlink(missing_ok=True)
        with suppress(OSError):
            self.path.parent.rmdir()
