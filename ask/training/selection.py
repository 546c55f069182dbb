"""Which epoch's weights to keep, judged by images that are not trained on."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ask.attacks.linf import linf_ascent
from ask.attacks.pgd import pgd_loss
from ask.config.training import TrainingSpec
from ask.models.networks import Network
from ask.precision import Passes, network_passes
from ask.seeds import derive_seed
from ask.training.images import ResidentImages, seeded, to_unit

EVALUATION_BATCH = 512
TEST_BATCHES = 4
STEPS = 10
"""Of the attack that judges, where the configuration names none; fewer than these are called weaker."""
LAYER, NEIGHBOURS, REFERENCES_PER_CLASS = "conv4", 5, 2000
"""The released code's rule: batches of test images, and the DkNN that classifies them."""


class Judge:
    """Clean accuracy of the network, and robust accuracy of the network or of a DkNN, under PGD on the network.

    PGD runs at ``eval_eps`` in steps of its own (:func:`judging_attack`). Its random starts, and the DkNN's references,
    depend on the seed alone, so that epochs differ by their weights only.
    """

    def __init__(self, judged: ResidentImages, source: ResidentImages, training: TrainingSpec, seed: int) -> None:
        self.judged, self.source, self.training, self.seed = judged, source, training, seed
        self.references: Tensor | None = None
        if training.selection != "holdout":
            generator = np.random.default_rng(derive_seed(seed, "selection references"))
            labels = source.labels.cpu().numpy()
            members = [np.flatnonzero(labels == label) for label in range(int(labels.max()) + 1)]
            chosen = [generator.permutation(pool)[:REFERENCES_PER_CLASS] for pool in members]
            self.references = torch.from_numpy(np.concatenate(chosen)).to(source.labels.device)

    def __call__(self, folded: Network, passes: Passes = "float32") -> tuple[float, float]:
        """Clean and robust accuracy in [0, 1] of a network without batch norm (see ``fold_batchnorm``).

        ``passes``: precision of those that the attack makes.
        """
        training, device = self.training, self.judged.labels.device
        step_size, steps = judging_attack(training)
        noise = seeded(device, self.seed, "heldout")
        clean, robust = torch.zeros((2,), dtype=torch.int64, device=device).unbind()
        classify = self._classifier(folded)
        for images, labels in _batches(self.judged, torch.arange(len(self.judged), device=device)):
            loss = pgd_loss(folded, labels)
            eps = training.eval_eps / 255
            with network_passes(passes):
                moved = linf_ascent(loss, images, eps=eps, step_size=step_size, steps=steps, generator=noise)
            with torch.no_grad():
                clean += (folded(images).argmax(1) == labels).sum()
                robust += (classify(moved) == labels).sum()
        return int(clean) / len(self.judged), int(robust) / len(self.judged)

    def _classifier(self, folded: Network) -> Callable[[Tensor], Tensor]:
        """Classes by the network or by a DkNN; there a tie goes to the lowest class, as in the evaluation."""
        if self.references is None:
            return lambda images: folded(images).argmax(1)

        def features(images: Tensor) -> Tensor:
            return F.normalize(folded.features(images, (LAYER,))[LAYER])

        def classify(images: Tensor) -> Tensor:
            nearest = (features(images) @ found.T).topk(min(NEIGHBOURS, len(found)), dim=1).indices
            return F.one_hot(labels[nearest], folded.num_classes).sum(1).argmax(1)

        labels = self.source.labels[self.references]
        with torch.no_grad():
            found = torch.cat([features(images) for images, _ in _batches(self.source, self.references)])
        return classify


def judging_attack(training: TrainingSpec) -> tuple[float, int]:
    """Step size, in [0, 1], and steps of the attack that judges: they reach from one side of the ball to the other."""
    steps = training.eval_steps or STEPS
    return max(training.eval_eps / 4, 2 * training.eval_eps / steps) / 255, steps


def judged_by(training: TrainingSpec) -> str:
    """That attack in words; a weak one is called so."""
    steps = judging_attack(training)[1]
    return f"PGD-{steps}, eps {training.eval_eps:g}" + (f", weaker than PGD-{STEPS}" if steps < STEPS else "")


def pick_test_images(available: int, batch_size: int) -> NDArray[np.int64]:
    """Four batches of test images, the first of one fixed shuffle, for some data sets come sorted by class."""
    return np.random.default_rng(0).permutation(available)[: TEST_BATCHES * batch_size]


def _batches(source: ResidentImages, indices: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    for chosen in indices.split(EVALUATION_BATCH):
        images = to_unit(source.images[chosen]).contiguous(memory_format=torch.channels_last)
        yield images, source.labels[chosen]


def describe(best_epoch: int | None, training: TrainingSpec, rows: list[dict[str, float]]) -> str:
    """One sentence on why the kept weights are kept."""
    where = "test" if training.selection == "test" else "held-out"
    if training.selection != "test" and not training.holdout:
        return f"epoch {training.epochs}, the last: nothing is held out"
    if best_epoch is None:
        highest = max(row["val_clean_accuracy"] for row in rows)
        return (
            f"epoch {training.epochs}, the last: no epoch's {where} clean accuracy exceeded "
            f"min_clean_accuracy={training.min_clean_accuracy} (highest {highest:.4f})"
        )
    what = "robust" if training.selection == "holdout" else "DkNN robust"
    best, last = (
        f"{row['val_robust_accuracy']:.4f} (clean {row['val_clean_accuracy']:.4f})"
        for row in (rows[best_epoch - 1], rows[-1])
    )
    return (
        f"epoch {best_epoch} of {training.epochs}: highest {where} {what} accuracy under {judged_by(training)}: "
        f"{best}; the last epoch's: {last}"
    )
