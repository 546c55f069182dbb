"""Calibration: an attack's parameters, picked on the first batch of test images (paper, App. D-e)."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ask.config.jobs import CalibrationJob
from ask.grids import beyond, ends, weighed
from ask.measure.evaluator import Evaluator
from ask.measure.place import Place
from ask.measure.setting import layers_of, parameters, read_picked, shares
from ask.seeds import derive_seed


def run_calibration(job: CalibrationJob, place: Place) -> dict[str, Any]:
    """Attack the first batch of test images at every point of the grid; the lowest accuracy wins, ties the first.

    While the winner lies at an end of the grid, the grid grows there by one point, at most ``extend`` times; a winner
    that is still at an end is noted as ``edge``. Weights of more than two layers are searched one after the other.
    """
    layers = layers_of(job.attack)
    evaluator = Evaluator(job.features, layers, job.similarity, [job.classifier], job.images, place, job.precision)
    seed = derive_seed(job.seed, job.features.dataset, "calibration")
    trial = evaluator.draw(job.references_per_class, derive_seed(seed, "references"))
    taus = {layer: read_picked(place.run, job, name)["tau"] for layer, name in zip(layers, job.tau_from, strict=False)}

    def at(point: Mapping[str, float]) -> Any:
        """The attack at a point of the grid."""
        changes = parameters(point, job.attack)
        if job.tau_from:
            changes = {"tau": taus, "omega": shares(point, layers)}
        return job.attack.model_copy(update=changes)

    clean: dict[int, Any] = {}

    def measure(points: Sequence[Mapping[str, float]]) -> Iterator[float]:
        """Accuracy at each of some points."""
        for first in range(0, len(points), evaluator.attacks_at_once):
            attacks = [trial.attack(at(point), seed) for point in points[first : first + evaluator.attacks_at_once]]
            greediest = max(attacks, key=lambda attack: attack.k_class)  # its neighbours serve all
            most = greediest.k_class
            clean[most] = clean.get(most) or trial.neighbours(evaluator.clean_features, greediest)
            for adversarial in evaluator.run(attacks, [clean[most]] * len(attacks)):
                predicted = trial.classify(trial.neighbours(evaluator.look(adversarial)[0]), job.classifier)
                yield float((predicted == evaluator.labels).float().mean())

    grid, accuracies = list(job.grid), list(measure(job.grid))
    picked = _lowest(grid, accuracies)
    for layer in layers if job.of_layers else ():
        grid += (tried := weighed(picked, layer))
        accuracies += measure(tried)
        picked = _lowest(grid, accuracies)
    while len(grid) < len(job.grid) + job.extend and (further := beyond(picked, grid)):
        grid.append(further)
        accuracies += measure([further])
        picked = _lowest(grid, accuracies)
    found = {"picked": picked, "grid": grid, "accuracies": accuracies, "passes": evaluator.passes}
    return found | ({"edge": True} if not job.of_layers and ends(picked, grid) else {})


def _lowest(grid: Sequence[dict[str, float]], accuracies: Sequence[float]) -> dict[str, float]:
    return grid[int(np.argmin(accuracies))]
