"""The one training loop: any base and regulariser, resumable at any moment, bit for bit on a CPU.

The weights of a run depend on the job, the data and the code alone (and on a CPU's thread count), wherever it was
interrupted, for all draws are seeded by position. CUDA's own kernels need not repeat to the last bit.
"""

import sys
import time
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from tqdm import tqdm

from ask.config.training import TrainJob
from ask.files import write_text
from ask.models.networks import save_weights
from ask.precision import Passes, tried_kernels
from ask.training.methods import Crafting, Replayed, as_it_comes
from ask.training.record import Checkpoint, write_history
from ask.training.run import Run
from ask.training.selection import describe


def train(
    job: TrainJob,
    *,
    train_images: NDArray[np.uint8],
    train_labels: NDArray[np.int64],
    test_images: NDArray[np.uint8] | None = None,
    test_labels: NDArray[np.int64] | None = None,
    out: Path,
    scratch: Path,
    device: str | torch.device = "cpu",
    made_with: Mapping[str, Any] | None = None,
    fingerprint: str = "",
    data_hash: str = "",
    progress: bool = True,
    checkpoint_seconds: float = 30.0,
    peak: float | None = None,
    usage: Callable[[], Mapping[str, float]] = dict,
    cuda_graphs: bool = False,
    passes: Passes | None = None,
) -> None:
    """Train one model; the same call after a kill continues where the last checkpoint was.

    Args:
        job: network, method, settings and seed.
        train_images: (images, channels, side, side) uint8.
        train_labels: (images,) int64, every class from 0 on present.
        test_images: as ``train_images``, with ``test_labels``; read only if ``training.selection`` is ``test``.
        test_labels: as ``train_labels``.
        out: folder for ``weights.safetensors`` (the chosen epoch), ``last.safetensors``, ``history.csv`` and
            ``config.yaml`` (the job as used, the chosen epoch and why, hardware, versions, seconds, and the network
            passes of a step: images trained on, of forward and of backward passes, 10^9 multiply-adds of both).
        scratch: folder for the checkpoint, outside ``out``'s declared files; nothing is left there at success.
        device: where to train.
        made_with: hardware and versions for the record (:func:`ask.hardware.describe`).
        fingerprint: hash of the code; a checkpoint of other code is not continued.
        data_hash: hash of the data, likewise; that of the training arrays if it is not given.
        progress: bar on a terminal, a line an epoch otherwise.
        checkpoint_seconds: least time between two checkpoints; 0 saves after every step.
        peak: floating-point operations a second that the device reaches in a matrix product, for the utilisation in
            ``history.csv`` and the log (:func:`ask.hardware.matmul_peak`).
        cuda_graphs: replay the crafting of adversarial examples as CUDA graphs
            (:class:`ask.training.methods.Replayed`); of no effect without a GPU.
        passes: precision of the network's passes (default: the job's, float32 where that is ``auto``); a training that
            continues keeps that in which it began.
        usage: CPU time and memory so far, for the record (:func:`ask.hardware.usage`); of the last start alone.

    Raises:
        ValueError: images, labels, network and method do not fit together.
        TrainingDivergedError: a loss or weight is not finite.
        AskError: the first step changes a buffer of the network that is not persistent, so that no file keeps it.
    """
    out, scratch = Path(out), Path(scratch)
    train_images, train_labels = np.asarray(train_images), np.asarray(train_labels)
    _check(train_images, train_labels)
    where = torch.device(device)
    passes = passes or ("float32" if job.precision == "auto" else job.precision)
    data_hash = data_hash or sha256(train_images.tobytes() + train_labels.tobytes()).hexdigest()
    checkpoint = Checkpoint(scratch, job, fingerprint, data_hash)
    test = None if test_images is None or test_labels is None else (test_images, test_labels)
    crafting: Crafting = Replayed() if cuda_graphs and where.type == "cuda" else as_it_comes
    run = Run(job, train_images, train_labels, where, checkpoint, test, peak, crafting, passes)
    run.restore()
    total, hidden = job.training.epochs * run.steps, not (progress and sys.stderr.isatty())

    def say(line: str) -> None:
        if progress:
            tqdm.write(line, file=sys.stderr)  # above the bar, if there is one
            sys.stderr.flush()

    with (
        # Dropout draws from torch's global generator, seeded each step; the caller's is put back.
        torch.random.fork_rng([torch.cuda.current_device()] if where.type == "cuda" else []),
        tried_kernels(),
        tqdm(total=total, initial=run.position, desc=f"{job.dataset}/{job.model}", unit="step", disable=hidden) as bar,
    ):
        if run.position:
            say(f"{job.model}: continuing at epoch {run.state.epoch + 1}, step {run.state.step + 1}")
        saved = time.monotonic()
        while run.position < total:
            run.advance()
            bar.update()
            if run.state.step == run.steps:
                run.end_epoch()
                write_history(out / "history.csv", run.state.rows)
                say(run.line())
            if time.monotonic() - saved >= checkpoint_seconds and run.position < total:
                run.save()
                saved = time.monotonic()
        made_with = {**(made_with or {}), "usage": dict(usage())}
        say(f"{job.model}: kept {_write(out, run, made_with, fingerprint, data_hash)}")
    checkpoint.remove()


def _write(out: Path, run: Run, made_with: Mapping[str, Any], fingerprint: str, data_hash: str) -> str:
    """Write the outputs; returns which epoch was kept, and why."""
    job, state = run.job, run.state
    why = describe(state.best_epoch, job.training, state.rows)
    chosen = state.best_epoch or state.epoch
    common = {
        "fingerprint": fingerprint,
        "data_hash": data_hash,
        "seed": str(job.seed),
        **{f"version.{name}": text for name, text in made_with.get("versions", {}).items()},
    }
    dtype: torch.dtype = getattr(torch, job.training.stored)
    save_weights(out / "last.safetensors", run.kept, {**common, "epoch": str(state.epoch)}, dtype)
    if run.best:
        run.kept.load_state_dict(run.best)
    save_weights(out / "weights.safetensors", run.kept, {**common, "epoch": str(chosen)}, dtype)
    record = {
        "job": job.model_dump(mode="json"),
        "chosen_epoch": chosen,
        "selection": why,
        "training_images": len(run.data),
        "heldout_images": 0 if job.training.selection == "test" else job.training.holdout,
        **{name: round(sum(row[name] for row in state.rows), 3) for name in ("seconds", "train_seconds")},
        "passes": state.passes,
        "passes_per_step": state.passes_per_step,
        "learned": {name: tensor.tolist() for name, tensor in run.learned.items()},
        **made_with,
        "fingerprint": fingerprint,
        "data_hash": data_hash,
    }
    write_text(out / "config.yaml", yaml.safe_dump(record, sort_keys=False))
    return why


def _check(images: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[2] != images.shape[3]:
        raise ValueError(
            f"training images must be uint8 (images, channels, side, side), got {images.dtype} {images.shape}"
        )
    found = np.unique(labels)
    if labels.dtype != np.int64 or labels.shape != (len(images),) or found.tolist() != [*range(max(1, len(found)))]:
        raise ValueError(
            f"training labels must be int64 ({len(images)},) with every class from 0 on present, "
            f"got {labels.dtype} {labels.shape}"
        )
