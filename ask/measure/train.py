"""The step that trains a model."""

import json
from contextlib import ExitStack

import torch
import yaml

from ask.config.training import TrainJob
from ask.data.arrays import load
from ask.files import locked
from ask.hardware import describe, matmul_peak, usage
from ask.measure.place import Place
from ask.paths import prepared
from ask.precision import settled
from ask.training.loop import train


def train_model(job: TrainJob, place: Place) -> None:
    """Train a model on a prepared data set; continues where an earlier call was interrupted.

    One at a time writes a model: a second one, of a run beside it or after it, waits and keeps what the first has made.
    """
    lock = place.run.root / "scratch" / job.dataset / f"{job.model}.lock"
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(lock, wait=False))
        except BlockingIOError:
            place.log(f"{job.model}: waiting for another training of it to end ({lock})")
            stack.enter_context(locked(lock))
            if _made(job, place):
                place.log(f"{job.model}: trained meanwhile")
                return
        except OSError as error:  # as on some network file systems
            place.log(f"{job.model}: cannot be locked against another training of it ({error})")
        _train(job, place)


def _made(job: TrainJob, place: Place) -> bool:
    """Whether this very training has ended: its record is written last."""
    path = place.run.model(job.dataset, job.model) / "config.yaml"
    record = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return record.get("job") == job.model_dump(mode="json") and record["fingerprint"] == place.code


def _train(job: TrainJob, place: Place) -> None:
    folder = prepared(place.data, job)
    images, labels = load(folder, "train")
    by_test = job.training.selection == "test"
    test_images, test_labels = load(folder, "test") if by_test else (None, None)
    facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
    passes = settled(job.precision, place.device, place.run.root)
    read = ("train", "test") if by_test else ("train",)
    train(
        job,
        train_images=images,
        train_labels=labels,
        test_images=test_images,
        test_labels=test_labels,
        out=place.run.model(job.dataset, job.model),
        scratch=place.run.root / "scratch" / job.dataset / job.model,
        device=place.device,
        made_with=describe(place.device),
        peak=matmul_peak(place.device, dtype=getattr(torch, passes)),
        passes=passes,
        cuda_graphs=place.cuda_graphs,
        usage=lambda: usage(place.device),
        fingerprint=place.code,
        data_hash=json.dumps([facts["splits"][split]["sha256"] for split in read], sort_keys=True),
    )
