"""Proposition 1 (paper, III-b and App. A) by simulation: MI(X+, x) >= log(C - 1) - L, where both sides are known.

Two worlds, each with an exact density ratio to score references by:

``gaussian``: the premise of the proposition holds. x ~ N(0, I_d); the K references of its own bag are
rho x + sqrt(1 - rho^2) e_k, those of the C - 1 other bags come from independent x.

``one-per-class``: as in the paper's loss, the references hold exactly one set for each class (K = 1), so that the
others are no independent draws. Class means are one-hot vectors, x and r deviate from them by sigma and 0.5.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ask.config.jobs import StudyJob
from ask.seeds import derive_seed
from ask.statistics import summarise

Array = NDArray[np.float64]

BATCHES, DRAWS = 10, 1000
"""Independent batches, which take the part of trials, and draws of x in each."""
DIMENSIONS = 4
BAGS = (3, 5, 10, 20, 50)
GAUSSIAN = [(k, rho) for k in (1, 5) for rho in (0.0, 0.5, 0.9)]
ONE_PER_CLASS = [(5, 0.1), (10, 0.1), (20, 0.2)]
MANY_DRAWS = 4000
"""Draws in the second world, where the gap is small."""
SIGMA_R = 0.5


def simulate(job: StudyJob, _place: object = None) -> dict[str, Any]:
    """Mutual information, loss and bounds of every case, in nats, each over independent batches of draws."""
    results = []
    for k, rho in GAUSSIAN:
        batches = [gaussian(k, rho, _generator(job, "gaussian", k, rho, i)) for i in range(BATCHES)]
        for bags in BAGS:
            for form in batches[0]:
                losses = [float(loss_of(batch[form][:, :bags]).mean()) for batch in batches]
                case = {"case": "gaussian", "form": form, "classes": bags, "k": k, "spread": rho}
                results.append(case | compare([information(k, rho)] * BATCHES, losses, bags, k))
    for classes, sigma in ONE_PER_CLASS:
        drawn = [one_per_class(classes, sigma, _generator(job, "one", classes, sigma, i)) for i in range(BATCHES)]
        case = {"case": "one-per-class", "form": "exact", "classes": classes, "k": 1, "spread": sigma}
        results.append(case | compare([m for m, _ in drawn], [loss for _, loss in drawn], classes, 1))
    return {"results": results}


def compare(information: list[float], losses: list[float], classes: int, k: int) -> dict[str, Any]:
    """All quantities of a case, by batch: ``gap`` is what the proposition says to be at least zero."""
    others, scaled, whole = (math.log(count) for count in (classes - 1, k * (classes - 1), classes))
    pairs = list(zip(information, losses, strict=True))
    found = {
        "information": information,
        "ask_loss": losses,
        "excess_loss": [loss - others for loss in losses],
        "bound": [others - loss for loss in losses],
        "tighter_bound": [whole - loss for loss in losses],
        "scaled_bound": [scaled - loss for loss in losses],
        "gap": [mi - others + loss for mi, loss in pairs],
        "scaled_gap": [mi - scaled + loss for mi, loss in pairs],
    }
    return {name: summarise(values) for name, values in found.items()}


def information(k: int, rho: float) -> float:
    """Mutual information of x and its bag of ``k`` references in the Gaussian world."""
    return DIMENSIONS / 2 * math.log1p(k * rho**2 / (1 - rho**2))


def gaussian(k: int, rho: float, random: np.random.Generator) -> dict[str, Array]:
    """Scores of the own bag (first) and the others, shape (draws, bags), by three critics.

    ``exact`` is the bag's log density ratio. The other two score a bag by its references' own ratios as the ASK loss
    does: ``class-wise`` by K times their mean, ``instance-wise`` by their log-sum-exp.
    """
    bags = max(BAGS)
    centres = random.standard_normal((DRAWS, bags, 1, DIMENSIONS))
    noise = random.standard_normal((DRAWS, bags, k, DIMENSIONS))
    references = rho * centres + math.sqrt(1 - rho**2) * noise
    x = centres[:, :1]
    single = _log_normal(references, rho * x, 1 - rho**2) - _log_normal(references, 0, 1)
    mean = references.mean(2)
    spread = (1 - rho**2) / k
    exact = _log_normal(mean, rho * x[:, :, 0], spread) - _log_normal(mean, 0, rho**2 + spread)
    return {"exact": exact, "class-wise": single.sum(2), "instance-wise": np.logaddexp.reduce(single, axis=2)}


def one_per_class(classes: int, sigma: float, random: np.random.Generator) -> tuple[float, float]:
    """Mutual information of x and its own class's reference, and the loss, by the exact density ratio."""
    means = np.eye(classes)
    labels = random.integers(classes, size=MANY_DRAWS)
    x = means[labels] + sigma * random.standard_normal((MANY_DRAWS, classes))
    references = means + SIGMA_R * random.standard_normal((MANY_DRAWS, classes, classes))
    # One-hot means: the squared distance to mean c is |r|^2 - 2 r_c + 1, of which softmaxes need r_c alone.
    likelihood = references / SIGMA_R**2  # (draws, reference, class), up to a constant of the reference
    scores = x / sigma**2
    posterior = scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)
    given_x = np.logaddexp.reduce(likelihood + posterior[:, None], axis=2)
    ratio = given_x - np.logaddexp.reduce(likelihood - math.log(classes), axis=2)
    own = ratio[np.arange(MANY_DRAWS), labels]
    return float(own.mean()), float((np.logaddexp.reduce(ratio, axis=1) - own).mean())


def loss_of(scores: Array) -> Array:
    """ASK loss of each row: minus the log-softmax of its first score (paper, eq. 4)."""
    losses: Array = np.logaddexp.reduce(scores, axis=1) - scores[:, 0]
    return losses


def _log_normal(x: Array, mean: Array | float, variance: float) -> Array:
    """Log density of N(mean, variance I) over the last axis."""
    density: Array = -0.5 * (((x - mean) ** 2).sum(-1) / variance + x.shape[-1] * math.log(2 * math.pi * variance))
    return density


def _generator(job: StudyJob, *case: object) -> np.random.Generator:
    return np.random.default_rng(derive_seed(job.seed, job.id, *case))
