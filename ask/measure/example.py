"""One test image, clean and attacked, with the references nearest to each (paper, Figure 2)."""

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ask.config.jobs import CellJob, ExampleJob
from ask.data.arrays import load
from ask.measure.evaluator import Evaluator, Trial, draw_references, pick_test_images
from ask.measure.place import Place
from ask.measure.setting import Setting, layers_of, reference_seed, start_seed
from ask.paths import prepared

RULES = (
    "the first test image{of_class} that every clean DkNN classifies right and the first attack fools",
    "the first test image{of_class} that every clean DkNN classifies right (none of them yields to the first attack)",
    "the first test image{of_class} (no image is classified right by every clean DkNN)",
)
"""How the image is chosen; a later rule serves where no image fits an earlier one."""


def show(job: ExampleJob, place: Place) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Make the pictures, in the first trial.

    Returns what is shown (JSON-able): the image's number, class and choice, and for each cell the class that the DkNN
    gives and the neighbours' numbers and classes; and ``images`` (cells, channels, side, side) and ``neighbours``
    (cells, k, channels, side, side), uint8.
    """
    first = job.cells[0]
    folder = prepared(place.data, first.features)
    labels = load(folder, "test")[1]
    rows = np.arange(len(labels))[pick_test_images(len(labels), first.test_images, first.features.dataset)]
    names = json.loads((folder / "facts.json").read_text(encoding="utf-8"))["class_names"]
    chosen, rule = _choose(job, labels[rows], place)
    train_images, train_labels = load(folder, "train")
    shown, images, neighbours = [], [], []
    for cell in job.cells:
        layers = layers_of(cell.attack)
        evaluator = Evaluator(
            cell.features, layers, cell.similarity, [job.classifier], cell.test_images, place, cell.precision
        )
        trial = evaluator.draw(cell.references_per_class, reference_seed(cell, 0))
        references = draw_references(evaluator.pool_labels, cell.references_per_class, reference_seed(cell, 0))
        image = _attacked(evaluator, trial, cell, place)[chosen : chosen + 1]
        found = trial.neighbours(evaluator.look(image)[0])
        predicted = int(trial.classify(found, job.classifier))
        layer = job.classifier.layers[-1]
        nearest = found[job.classifier.similarity, layer].indices[0, : job.classifier.k].cpu().numpy()
        ids = references[nearest]
        images.append(image[0].mul(255).round().byte().cpu().numpy())
        neighbours.append(train_images[ids])
        shown.append(
            {
                "cell": cell.id,
                "predicted": names[predicted],
                "right": predicted == int(evaluator.labels[chosen]),
                "neighbours": [int(i) for i in ids],
                "neighbour_classes": [names[int(train_labels[i])] for i in ids],
                "neighbour_right": [bool(train_labels[i] == int(evaluator.labels[chosen])) for i in ids],
            }
        )
        label = names[int(evaluator.labels[chosen])]
    record = {"image": int(rows[chosen]), "class": label, "rule": rule, "layer": layer, "cells": shown}
    return record, {"images": np.stack(images), "neighbours": np.stack(neighbours)}


def _attacked(evaluator: Evaluator, trial: Trial, cell: CellJob, place: Place) -> Tensor:
    """All test images under the cell's attack: only so is the random start the one that the cell measured."""
    if cell.attack is None:
        return evaluator.images
    setting = Setting(cell, place)
    attack = trial.attack(setting.config, start_seed(cell, 0), setting.blocks(0))
    return evaluator.run([attack], [trial.neighbours(evaluator.clean_features, attack)])[0]


def _choose(job: ExampleJob, labels: NDArray[np.int64], place: Place) -> tuple[int, str]:
    of_class = np.ones(len(labels), dtype=bool) if job.class_index is None else labels == job.class_index
    clean_right = of_class.copy()
    fooled = np.zeros(len(labels), dtype=bool)
    for cell in job.cells:
        path = place.run.cell(cell.features.dataset, cell.features.model, cell.id)
        wanted = job.classifier.model_dump(mode="json")
        results = json.loads(path.read_text(encoding="utf-8"))["results"]
        position = [{key: result[key] for key in wanted} for result in results].index(wanted)
        with np.load(path.with_suffix(".npz")) as stored:
            clean_right &= stored["clean"][position, 0] == labels
            if cell.attack is not None and not fooled.any():
                fooled = stored["robust"][position, 0] != labels
    words = "" if job.class_index is None else f" of class {job.class_index}"
    for candidates, rule in zip((clean_right & fooled, clean_right, of_class), RULES, strict=True):
        if candidates.any():
            return int(np.flatnonzero(candidates)[0]), rule.format(of_class=words)
    raise ValueError(f"no test image is of class {job.class_index}")
