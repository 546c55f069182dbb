"""What tells images that withstand an attack from those that do not (paper, VI-A-f and App. G-a).

Of images that the clean DkNN classifies right, a *failure* of the attack is one that is still classified right under
attack, a *success* one that is not. Both are described by their clean features alone, so one query of the index and
the predictions that the cell kept suffice.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ask.config.jobs import ClassifierSpec, FailureJob
from ask.knn.dknn import votes
from ask.measure.evaluator import Evaluator
from ask.measure.place import Place
from ask.measure.setting import reference_seed
from ask.statistics import summarise

ABOVE = 0.95
"""Confidence whose excess is counted, beside full confidence."""


def analyse(job: FailureJob, place: Place) -> tuple[dict[str, Any], dict[str, NDArray[np.float32]]]:
    """Shares of images with full and with high confidence, and similarity gaps, by group over trials.

    Confidence is the largest vote of the ``confidence_k`` nearest references over ``confidence_k``. The similarity gap
    is the largest class mean of the cosine (no tau; or minus the distance) to a class's ``gap_k`` nearest references,
    minus the runner-up's. The arrays hold the same by trial and image (`_linearised`), for intervals over images.
    """
    cell = job.cell
    (classifier,) = cell.classifiers
    path = place.run.cell(cell.features.dataset, cell.features.model, cell.id).with_suffix(".npz")
    clean_right, robust_right = _right(path, classifier)
    looked_at = ClassifierSpec(similarity=job.similarity, layers=(job.layer,), k=job.confidence_k)
    evaluator = Evaluator(cell.features, (), job.similarity, [looked_at], cell.test_images, place)
    found: dict[str, list[NDArray[np.float32]]] = {}
    for number in range(cell.trials):
        trial = evaluator.draw(cell.references_per_class, reference_seed(cell, number))
        search = trial.searches[job.similarity, job.layer]
        neighbours = search.search(evaluator.clean_features[job.layer], k=job.confidence_k, k_class=job.gap_k)
        votes_of = votes(trial.labels[neighbours.indices], evaluator.n_classes)
        confidence = (votes_of.amax(1) / job.confidence_k).cpu().numpy()
        distance = neighbours.class_distances.mean(2)
        similarity = 1 - distance if job.similarity == "cosine" else -distance
        best = similarity.topk(2, dim=1).values
        gap = (best[:, 0] - best[:, 1]).cpu().numpy()
        described = {"confidence_1": confidence == 1, "confidence_95": confidence > ABOVE, "similarity_gap": gap}
        for group, robust in (("failures", robust_right[number]), ("successes", ~robust_right[number])):
            members = clean_right[number] & robust
            for measure, values in described.items():
                trials = found.setdefault(f"{group}.{measure}", [])
                trials += [_linearised(values, members)] if members.any() else []
    whole = {name: np.stack(trials) for name, trials in found.items() if len(trials) == cell.trials}
    shares = {name: summarise(whole[name].mean(1, dtype=float)) if name in whole else None for name in found}
    return {"results": [classifier.model_dump(mode="json") | shares]}, whole


def _linearised(values: NDArray[Any], members: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Numbers of all images whose mean is the members', and whose variance is that of this ratio of two means."""
    mean = values[members].mean(dtype=float)
    return np.asarray(mean + members * (values - mean) / members.mean(), np.float32)


def _right(path: Path, classifier: ClassifierSpec) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which images (trials, images) a cell's classifier got right, clean and under attack."""
    measured = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    wanted = classifier.model_dump(mode="json")
    place_of = [{key: r[key] for key in wanted} for r in measured["results"]].index(wanted)
    with np.load(path) as stored:
        labels = stored["labels"]
        return stored["clean"][place_of] == labels, stored["robust"][place_of] == labels
