"""What is known of a run in progress: its position and history, what its steps cost, and the file that keeps it all."""

import csv
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ask.config.training import TrainJob
from ask.files import write_text
from ask.models.networks import Network
from ask.precision import Passes
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
    epoch_seconds: float = 0.0
    """Time spent in the epoch under way."""
    passes: Passes = "float32"
    """Precision of the network's passes; that in which the training began."""
    passes_per_step: dict[str, float] = field(default_factory=dict)
    """Of a full step: images trained on, images of forward and of backward passes, 10^9 multiply-adds of these."""
    rows: list[dict[str, Any]] = field(default_factory=list)
    """History, one row an epoch, by the columns of ``history.csv``. ``gflops``: 10^9 floating-point operations of
    convolutions and linear layers a second of ``train_seconds``; ``mfu``: their share of what a matrix product reaches
    on the device (model FLOP utilisation)."""


class Checkpoint:
    """Everything a killed run needs to end with the same weights, in one atomic file.

    Its name is a hash of all that decides the outcome, so that a stale one is never found. It lies outside the step's
    declared outputs, for Snakemake deletes those when a job fails.
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


def write_history(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write ``history.csv`` anew, one line an epoch so far; unknown values (no held-out images) stay empty."""
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")  # None is written as nothing
    writer.writerows([rows[0], *(row.values() for row in rows)])
    write_text(path, text.getvalue())


@contextmanager
def count_passes(*networks: Network) -> Iterator[Counter[str]]:
    """Count the passes through ``networks`` within the block; changes no result and never waits for the device.

    Yields ``forward`` and ``backward``, the images of such passes (as far as a network's first block at least), and
    ``macs``, the multiply-adds of convolutions and linear layers in both.
    """
    passes = Counter(forward=0, backward=0, macs=0)

    def weigh(layer: nn.Conv2d | nn.Linear, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        macs = output.numel() * layer.weight[0].numel()
        passes.update(macs=macs)
        if output.requires_grad:
            # Back through a layer costs as much as forward for each of input and weight whose gradient is wanted.
            back = macs * (inputs[0].requires_grad + layer.weight.requires_grad)
            output.register_hook(lambda _: passes.update(macs=back))

    def count(_block: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        images = len(output)
        passes.update(forward=images)
        if output.requires_grad:
            output.register_hook(lambda _: passes.update(backward=images))

    with ExitStack() as hooks:
        for network in networks:
            hooks.enter_context(network.first.register_forward_hook(count))
            for layer in network.modules():
                if isinstance(layer, (nn.Conv2d, nn.Linear)):
                    hooks.enter_context(layer.register_forward_hook(weigh))
        yield passes
