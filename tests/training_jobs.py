"""Tiny training jobs, and what tests do with them."""

import csv
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import Tensor

from ask.config.training import ModelSpec, NetworkSpec, ScheduleSpec, TrainingSpec, TrainJob
from ask.models.networks import load_weights
from ask.training import train
from ask.training.run import Run

CPU = torch.device("cpu")
Arrays = tuple[NDArray[np.uint8], NDArray[np.int64]]


def told_generator() -> np.random.Generator:
    """Random numbers by a seed that is told, and set by ASK_SEED."""
    seed = os.environ.get("ASK_SEED") or str(np.random.SeedSequence().entropy)[:6]
    print(f"ASK_SEED={seed}")
    return np.random.default_rng(int(seed))


def make_job(
    seed: int = 0, network: NetworkSpec | None = None, method: dict[str, Any] | None = None, **training: Any
) -> TrainJob:
    """A job of a fraction of a second an epoch; ``method`` adds to or replaces options of AT."""
    settings: dict[str, Any] = {
        "epochs": 2,
        "batch_size": 32,
        "eps": 25.5,
        "step_size": 12.75,
        "steps": 2,
        "holdout": 20,
        "eval_eps": 25.5,
        "min_clean_accuracy": 0.0,
        "augment": "crop-flip",
        "schedule": ScheduleSpec(name="onecycle"),
    }
    return TrainJob(
        dataset="digits",
        model="at",
        network=network or NetworkSpec(name="vgg16", width=1 / 32),
        method=ModelSpec.model_validate({"label": "AT", "base": "at"} | (method or {})),
        training=TrainingSpec(**(settings | training)),
        seed=seed,
    )


@cache
def load_images() -> Arrays:
    """scikit-learn's digits at 32x32, (images, 1, 32, 32)."""
    data = load_digits()
    images = np.kron(data.images, np.ones((4, 4)))[:, None] * (255 / 16)
    return np.round(images).astype(np.uint8), data.target.astype(np.int64)


def run(job: TrainJob, data: Arrays, folder: Path, **options: Any) -> Path:
    options = {"progress": False, **options}
    images, labels = data
    train(job, train_images=images, train_labels=labels, out=folder, scratch=folder / "scratch", **options)
    return folder


def weights(folder: Path, which: str = "last") -> dict[str, Tensor]:
    return load_weights(folder / f"{which}.safetensors")[0]


def history(folder: Path) -> list[dict[str, str]]:
    with (folder / "history.csv").open() as file:
        return list(csv.DictReader(file))


def untimed(row: dict[str, str]) -> dict[str, str]:
    """A line of history without its clock."""
    return {name: value for name, value in row.items() if "seconds" not in name and name not in ("gflops", "mfu")}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


SCRIPT = """
import sys
from pathlib import Path
import numpy as np
import pytest
import torch
from ask.config.training import TrainJob
from ask.training import train
from ask.training.run import Run
torch.set_num_threads(1)
folder = Path(sys.argv[1])
data = np.load(sys.argv[2])
print("ready", flush=True)
train(TrainJob.model_validate_json(sys.argv[3]), train_images=data["images"], train_labels=data["labels"],
      out=folder, scratch=folder / "scratch", progress=False, checkpoint_seconds=float(sys.argv[4]))
"""


def start(folder: Path, data: Path, job: TrainJob, seconds: float, repository: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SCRIPT, str(folder), str(data), job.model_dump_json(), str(seconds)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(repository)}
    return subprocess.Popen(command, env=environment, cwd=repository, text=True, stdout=subprocess.PIPE)


class Interrupted(Exception):  # noqa: N818  # no error: it stands for one
    """Stands for a kill."""


def interrupt(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Let ``after`` steps pass, then raise :class:`Interrupted`."""
    advance, count = Run.advance, 0

    def limited(self: Run) -> None:
        nonlocal count
        count += 1
        if count > after:
            raise Interrupted
        advance(self)

    monkeypatch.setattr(Run, "advance", limited)
