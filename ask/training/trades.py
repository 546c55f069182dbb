"""TRADES as a training base (Zhang et al., 2019; paper, App. F-b)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ask.attacks.linf import linf_ascent
from ask.config.training import TRADESSpec, TrainingSpec
from ask.losses.trades import kl_divergence, trades_loss
from ask.models.networks import Network
from ask.training.methods import BaseOutput, Batch


class TRADES:
    """Clean cross-entropy plus beta times the divergence of adversarial outputs from clean ones.

    The images start at a little normal noise and climb the divergence in evaluation mode. The training-mode passes of
    clean and adversarial images are separate; the clean one serves both terms.
    """

    def __init__(self, spec: TRADESSpec, training: TrainingSpec) -> None:
        self.spec = spec
        self.eps = (training.eps if spec.eps is None else spec.eps) / 255
        self.step_size, self.steps = training.step_size / 255, training.steps

    def craft(self, batch: Batch) -> Tensor:
        """Copies of the images (batch, channels, side, side) whose outputs are far from those of the images."""
        images, target, generator = batch.images, batch.target, batch.generator
        noise = torch.randn(images.shape, generator=generator, device=generator.device).to(images.device)

        def climb(images: Tensor, start: Tensor) -> Tensor:
            with torch.no_grad():
                clean = target(images)

            def loss(moved: Tensor) -> Tensor:
                return kl_divergence(clean, target(moved))

            return linf_ascent(loss, images, eps=self.eps, step_size=self.step_size, steps=self.steps, start=start)

        return batch.crafting("trades", climb, images, noise * self.spec.start_noise)

    def __call__(self, network: Network, batch: Batch, layers: Sequence[str]) -> BaseOutput:
        """See :data:`ask.training.methods.Base`."""
        adversarial = self.craft(batch)
        clean = network(batch.images)
        logits, features = network.forward_with_features(adversarial, layers)
        loss = trades_loss(clean, logits, batch.labels, self.spec.beta)
        correct = (logits.detach().argmax(1) == batch.labels).sum()
        return BaseOutput(loss=loss, correct=correct, adversarial=adversarial, features=features)


build = TRADES
