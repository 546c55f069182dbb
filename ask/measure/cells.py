"""The evaluation protocol (paper, VI and App. D): one attack on one model, over all trials."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from itertools import groupby, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ask.attacks.linf import GradientAttack
from ask.config.attacks import AutoAttackOptions
from ask.config.jobs import CellJob
from ask.data.arrays import load
from ask.hardware import hardware, weights_read
from ask.knn.search import Neighbours
from ask.measure.climb import Validity, WatchedClimb, Waypoints
from ask.measure.evaluator import Attack, Evaluator, passes_of, pick_test_images
from ask.measure.evaluator import Trial as ReferenceTrial
from ask.measure.journal import Journal, Trial, data_read, key_of, passed, together
from ask.measure.place import Place
from ask.measure.setting import Setting, layers_of, reference_seed, start_seed
from ask.paths import prepared
from ask.statistics import summarise

Neighbourhood = Mapping[tuple[str, str], Neighbours]
"""By similarity and layer."""
Attacked = tuple[int, ReferenceTrial, Neighbourhood, WatchedClimb]
"""A trial as it is attacked: its number, its references, the clean images' neighbours, and what was seen of it."""


def run_cell(job: CellJob, place: Place) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Evaluate one attack over all trials; those that are known (:mod:`ask.measure.journal`) are not measured again.

    Returns:
        The measurements (JSON-able), and the predictions (:func:`compact`): ``robust`` and ``clean`` of shape
        (classifiers, trials, images), ``network_robust`` (trials, images) and ``network_clean`` (images,) where there
        is a network, and ``labels`` (images,).
    """
    setting, document = Setting(job, place), job.model_dump(mode="json")
    exact = job.attack is None or isinstance(job.attack, AutoAttackOptions)
    passes = "float32" if exact else passes_of(job.features, job.precision, place)
    read = (setting.known, data_read(place.data, job.features), passes, place.device.type, place.code)
    cell = Cell(document, setting, read)
    found, output = cell.known(), cell.output
    before = len(found)
    if before:
        place.log(f"{before} of {job.trials} trials are known")
    others = [Cell(one, setting, read) for one in passed(place.run.root, output, document)]
    measured = Measured(cell, [one for one in others if len(one.known()) < one.job.trials], place)
    missing = [number for number in range(job.trials) if number not in found]
    while missing:
        trials = measured.measure(missing)
        found |= {trial.about["trial"]: trial for trial in trials}
        missing = [number for number in missing if number not in found]
        if missing:  # the last ones go straight into the record
            cell.keep(trials)
    trials = [found[number] for number in range(job.trials)]
    predictions, rows = together(trials), [trial.about for trial in trials]
    record: dict[str, Any] = {
        "results": _results(job, predictions, predictions["labels"], _outside(job, place)),
        "validity": Validity.over(rows),
        "seconds": {name: sum(row["seconds"][name] for row in rows) for name in ("attack", "search", "total")},
        "setting": setting.known,
        "key": cell.journal.key,
        "by_trial": rows,
    }
    if before:
        record["known"] = before
    if len(made_on := dict.fromkeys(row["hardware"] for row in rows)) > 1:
        record["hardware"] = "; ".join(made_on)
    if job.attack is not None:
        record["passes"] = passes
    if "network_clean" in predictions:
        right = {name: predictions[f"network_{name}"] == predictions["labels"] for name in ("clean", "robust")}
        record["network"] = {name: summarise(np.atleast_2d(where).mean(1)) for name, where in right.items()}
    return record, {name: compact(classes) for name, classes in predictions.items()}


def _trials_of(record: Path) -> int | None:
    """How many trials a finished record holds; one of the same number is measured again if it is asked for."""
    with suppress(OSError, ValueError, KeyError):
        return int(json.loads(record.read_text(encoding="utf-8"))["job"]["trials"])
    return None


class Cell:
    """A cell as its trials are measured: its record, and the journal of what that lacks.

    Args:
        document: its job.
        setting: of it and of all that share its ascent.
        read: what decides its trials besides (:func:`ask.measure.journal.key_of`).
    """

    def __init__(self, document: Mapping[str, Any], setting: Setting, read: tuple[object, ...]) -> None:
        self.document, self.setting, self.job = document, setting, CellJob.model_validate_json(json.dumps(document))
        features, run = self.job.features, setting.place.run
        self.output = run.cell(features.dataset, features.model, self.job.id)
        self.journal = Journal(self.output, key_of(document, weights_read(document, run), *read))

    @property
    def steps(self) -> int:
        """Of its attack; 0 where it has none."""
        return int(getattr(self.job.attack, "steps", 0))

    def known(self) -> dict[int, Trial]:
        """Its trials that need not be measured."""
        entries = self.journal.read(None if _trials_of(self.output) == self.job.trials else self.output)
        return {
            number: trial
            for number, trial in entries.items()
            if number < self.job.trials and trial.about["blocks"] == self.setting.digest(number)
        }

    def keep(self, trials: Sequence[Trial]) -> None:
        """Write trials into the journal, as far as they are wanted."""
        if wanted := [trial for trial in trials if trial.about["trial"] < self.job.trials]:
            self.journal.add(wanted, self.document, self.setting.place.code)


class Measured:
    """A cell's trials, as many at a time as :attr:`Evaluator.attacks_at_once` says.

    Args:
        cell: to be measured.
        passed: cells of fewer steps, whose images its ascent passes through.
        place: where it reads and computes.
    """

    def __init__(self, cell: Cell, passed: Sequence[Cell], place: Place) -> None:
        self.cell, self.passed, self.place, self.since = cell, passed, place, time.perf_counter()
        self.job, self.setting = cell.job, cell.setting

    @cached_property
    def evaluator(self) -> Evaluator:
        """Made when the first trial is measured."""
        job, attacked = self.job, layers_of(self.job.attack)
        looking = dict.fromkeys(one for cell in (self.cell, *self.passed) for one in cell.job.classifiers)
        return Evaluator(
            job.features, attacked, job.similarity, tuple(looking), job.test_images, self.place, job.precision
        )

    def measure(self, missing: Sequence[int]) -> list[Trial]:
        """Measure the first of some trials, and those that are attacked together with it.

        Which these are is a matter of their numbers alone: a network's kernels may round otherwise in a batch of
        another size, and so a cell that was killed goes on as it would have gone.
        """
        job, evaluator, setting = self.job, self.evaluator, self.setting
        seconds = {"attack": 0.0, "search": 0.0}
        numbers = list(next(groupby(missing, lambda number: number // evaluator.attacks_at_once))[1])
        trials = [evaluator.draw(job.references_per_class, reference_seed(job, number)) for number in numbers]
        climbs = [WatchedClimb([one.steps for one in (*self.passed, self.cell)]) for _ in numbers]
        attacks: list[Attack] = []
        if job.attack is not None:
            attacks = [
                trial.attack(setting.config, start_seed(job, number), setting.blocks(number), climb.see_gradient)
                for number, trial, climb in zip(numbers, trials, climbs, strict=True)
            ]
        climbing = [attack for attack in attacks if isinstance(attack, GradientAttack)]
        passed = self.passed if climbing else []
        waypoints = Waypoints(one.steps for one in passed)
        if passed:
            waypoints.follow(climbing)
        with _clock(seconds, "search", self.place.device):
            clean = [
                trial.neighbours(evaluator.clean_features, attack) for trial, attack in zip_longest(trials, attacks)
            ]
        group, found = list(zip(numbers, trials, clean, climbs, strict=True)), list[Tensor]()
        if attacks:
            with _clock(seconds, "attack", self.place.device):
                found = evaluator.run(attacks, clean)
        measured = self._look(self.cell, group, found, seconds)
        for other in passed:
            images = waypoints.images(other.steps, len(evaluator.images))
            share = {"attack": seconds["attack"] * other.steps / self.cell.steps, "search": 0.0}
            other.keep(self._look(other, group, images, share))
        self.since = time.perf_counter()
        return measured

    def _look(
        self, cell: Cell, group: Sequence[Attacked], adversarial: Sequence[Tensor], seconds: dict[str, float]
    ) -> list[Trial]:
        """Trials of a cell from its adversarial images, or without any; adds the seconds that this takes."""
        evaluator, place, began = self.evaluator, self.place, time.perf_counter()
        seen = [climb.seen[cell.steps] for *_, climb in group]
        for one, images in zip(seen, adversarial, strict=False):
            one.see_images(evaluator.images, images, self.setting.config.eps)
        robust, classes = [clean for _, _, clean, _ in group], [evaluator.clean_classes] * len(group)
        if adversarial:
            with _clock(seconds, "search", place.device):
                looks = [evaluator.look(images) for images in adversarial]
                robust = [trial.neighbours(look[0]) for (_, trial, *_), look in zip(group, looks, strict=True)]
                classes = [found for _, found in looks]
        predictions = [
            self._predict(cell, number, trial, clean, attacked, found)
            for (number, trial, clean, _), attacked, found in zip(group, robust, classes, strict=True)
        ]
        if cell is self.cell:
            seconds["total"] = time.perf_counter() - self.since
        else:
            seconds["total"] = seconds["attack"] + time.perf_counter() - began
        shares = {name: value / len(group) for name, value in seconds.items()}
        about = {"seconds": shares, "hardware": hardware(place.device), "search": evaluator.searching}
        about |= {} if cell is self.cell else {"passed_by": self.cell.job.id}
        return [
            Trial({"trial": number, **about, "blocks": self.setting.digest(number), **one.counts()}, predicted)
            for (number, *_), one, predicted in zip(group, seen, predictions, strict=True)
        ]

    def _predict(
        self,
        cell: Cell,
        number: int,
        trial: ReferenceTrial,
        clean: Neighbourhood,
        robust: Neighbourhood,
        classes: Tensor | None,
    ) -> dict[str, NDArray[np.int64]]:
        """A trial's predictions from the neighbours of clean and attacked images, and the network's classes."""
        evaluator, found = self.evaluator, dict[str, NDArray[np.int64]]()
        shape = (len(cell.job.classifiers), len(evaluator.labels))
        for kind, neighbours in (("clean", clean), ("robust", robust)):
            votes = [trial.classify(neighbours, classifier).cpu().numpy() for classifier in cell.job.classifiers]
            found[kind] = np.array(votes, np.int64).reshape(shape)
        if evaluator.clean_classes is not None and classes is not None:
            found["network_clean"] = evaluator.clean_classes.cpu().numpy()
            found["network_robust"] = classes.cpu().numpy()
        found["labels"] = evaluator.labels.cpu().numpy()
        shown = found["robust"] if len(found["robust"]) else found["network_robust"][None]
        accuracies = ", ".join(f"{100 * (one == found['labels']).mean():.2f} %" for one in shown)
        after = "" if cell is self.cell else f", after {cell.steps} steps"
        self.place.log(f"trial {number + 1}/{cell.job.trials}{after}: accuracy {accuracies}")
        return found


def compact(classes: NDArray[np.int64]) -> NDArray[Any]:
    """Classes in the smallest unsigned type that holds them: uint8 up to class 255."""
    return classes.astype(np.min_scalar_type(classes.max(initial=0)))


def _results(
    job: CellJob, predictions: Mapping[str, NDArray[Any]], labels: NDArray[Any], outside: NDArray[np.int64]
) -> list[dict[str, Any]]:
    """Shares of images that each classifier has right: ``robust``, ``clean``, ``kept`` (both), robust ``outside``."""
    results = []
    for i, classifier in enumerate(job.classifiers):
        robust, clean = (predictions[kind][i] == labels for kind in ("robust", "clean"))
        right = {"robust": robust, "clean": clean, "kept": robust & clean}
        if len(outside):
            right["outside"] = robust[:, outside]
        shares = {kind: summarise(where.mean(1)) for kind, where in right.items()}
        results.append(classifier.model_dump(mode="json") | shares)
    return results


def _outside(job: CellJob, place: Place) -> NDArray[np.int64]:
    """Places among a cell's test images of those that its parameters were not picked on; none if none were."""
    if job.calibration_images is None:
        return np.zeros(0, np.int64)
    dataset = job.features.dataset
    available = len(load(prepared(place.data, job.features), "test")[1])
    everyone = np.arange(available)
    counted, batch = (
        everyone[pick_test_images(available, wanted, dataset)] for wanted in (job.test_images, job.calibration_images)
    )
    return np.flatnonzero(~np.isin(counted, batch))


@contextmanager
def _clock(seconds: dict[str, float], name: str, device: torch.device) -> Iterator[None]:
    """Adds the seconds of a block to a dictionary, the device's work included."""
    began = time.perf_counter()
    yield
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds[name] += time.perf_counter() - began
