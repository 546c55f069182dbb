"""Which epoch's weights to keep: accuracy of the network itself, clean and under PGD, on held-out training images."""

from collections.abc import Callable

import torch
from torch import Tensor

from ask.attacks.linf import linf_ascent
from ask.attacks.pgd import pgd_loss
from ask.models import Network
from ask.specs.training import TrainingSpec

from .images import ResidentImages, seeded, to_unit

EVALUATION_BATCH = 512


def heldout_accuracy(
    folded: Network, heldout: ResidentImages, training: TrainingSpec, seed: int
) -> tuple[float, float]:
    """Clean and robust accuracy in [0, 1] of a network without batch norm (see ``fold_batchnorm``).

    PGD runs at ``eval_eps`` with the steps of the training attack; its random starts depend on ``seed`` alone, so that
    epochs differ by their weights only.
    """
    noise = seeded(heldout.labels.device, seed, "heldout")

    def attack(images: Tensor, labels: Tensor) -> Tensor:
        return linf_ascent(
            pgd_loss(folded, labels),
            images,
            eps=training.eval_eps / 255,
            step_size=training.step_size / 255,
            steps=training.steps,
            generator=noise,
        )

    return _accuracy(folded, heldout), _accuracy(folded, heldout, attack)


def _accuracy(
    folded: Network, heldout: ResidentImages, attack: Callable[[Tensor, Tensor], Tensor] | None = None
) -> float:
    correct = torch.zeros((), dtype=torch.int64, device=heldout.labels.device)
    for start in range(0, len(heldout), EVALUATION_BATCH):
        labels = heldout.labels[start : start + EVALUATION_BATCH]
        images = to_unit(heldout.images[start : start + EVALUATION_BATCH])
        images = images.contiguous(memory_format=torch.channels_last)
        if attack is not None:
            images = attack(images, labels)
        with torch.inference_mode():
            correct += (folded(images).argmax(1) == labels).sum()
    return int(correct) / len(heldout)


def describe(best_epoch: int | None, training: TrainingSpec, rows: list[dict[str, float]]) -> str:
    """One sentence on why the kept weights are kept."""
    if not training.holdout:
        return f"epoch {training.epochs}, the last: nothing is held out"
    if best_epoch is None:
        best = max(row["val_clean_accuracy"] for row in rows)
        return (
            f"epoch {training.epochs}, the last: no epoch's held-out clean accuracy exceeded "
            f"min_clean_accuracy={training.min_clean_accuracy} (highest {best:.4f})"
        )
    row = rows[best_epoch - 1]
    return (
        f"epoch {best_epoch} of {training.epochs}: highest held-out robust accuracy "
        f"{row['val_robust_accuracy']:.4f} (clean {row['val_clean_accuracy']:.4f})"
    )
