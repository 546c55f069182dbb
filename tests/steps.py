"""Three training steps of each method on fixed tensors: does this code train as another commit's did?

    PYTHONPATH=. python tests/steps.py > here.json      # in each of two checkouts, on one machine

Weights that one commit has trained stand for another one's if both files are equal: of each method and precision they
hold a digest of all weights and statistics after three steps, bit for bit.
"""

import hashlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from ask.config.training import NetworkSpec, TrainJob
from ask.precision import settle
from ask.training.record import Checkpoint
from ask.training.run import Run

ROOT = Path(__file__).resolve().parent.parent
BOTH = ("float32", "bfloat16")


def digests(
    names: tuple[str, ...] = (), precisions: tuple[str, ...] = BOTH, *, wide: bool = False
) -> Iterator[tuple[str, str]]:
    """Name and digest of each method of the paper's configuration (or of some) in each precision.

    Narrow networks, and with ``wide`` VGG16 at full width too, which convolves small images side by side.
    """
    import yaml

    methods = yaml.safe_load((ROOT / "config/config.yaml").read_text())["models"]
    generator = np.random.default_rng(0)
    images, labels = generator.integers(0, 256, (120, 3, 32, 32), np.uint8), np.arange(120) % 10
    for name, method in methods.items():
        if method["base"] == "none" or (names and name not in names):
            continue
        own = method.pop("training", {}) | {"epochs": 4, "batch_size": 40, "steps": 2, "holdout": 0}
        method.pop("epochs_factor", None)
        networks = [NetworkSpec(name="vgg16", width=1 / 16, dropout=0), NetworkSpec(name="resnet18", width=1 / 16)]
        for network in networks + [NetworkSpec(name="vgg16", dropout=0)] * wide:
            job = TrainJob.model_validate(
                {"dataset": "fixed", "model": name, "network": network, "method": method, "seed": 0, "training": own}
            )
            for passes in precisions:
                about = f"{name}, {network.name} of width {network.width:g}, {passes}"
                yield about, _digest(job, images, labels, passes)


def _digest(job: TrainJob, images: np.ndarray, labels: np.ndarray, passes: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        run = Run(job, images, labels, torch.device("cpu"), Checkpoint(Path(folder), job, "", ""), passes=passes)
        for _ in range(3):
            run.advance()
        found = hashlib.sha256()
        for key, tensor in sorted(run.kept.state_dict().items()):
            found.update(key.encode() + tensor.contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    settle()
    print(json.dumps(dict(digests(wide=True)), indent=1))
