"""The soft nearest neighbour regulariser (AT+SNN of the paper's Tables 6, 7, 8 and 14)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ask.config.training import SNNSpec, TrainingSpec
from ask.losses.snn import pairwise_distance, snn_loss
from ask.models.networks import Network
from ask.training.methods import BaseOutput, Batch

STEP, LEAST = 0.1, 1e-3
"""Step of the temperature's divisor, and the least that it may become: Frosst et al.'s code has the former alone."""


class SNNRegulariser:
    """SNN loss of the base's adversarial images, from the features of its own pass: no pass of the network more."""

    def __init__(self, spec: SNNSpec, _training: TrainingSpec) -> None:
        self.spec = spec
        self.layers: Sequence[str] = (spec.layer,)
        # T = temperature / divisor: learning the divisor is the steadier way (Frosst et al., code in cleverhans).
        self.state = {"temperature_divisor": torch.ones(())} if spec.learn_temperature else {}

    def __call__(self, network: Network, batch: Batch, output: BaseOutput) -> Tensor:  # noqa: ARG002  # a protocol
        """See :class:`ask.training.methods.Regulariser`."""
        spec = self.spec
        distances = pairwise_distance(output.features[spec.layer], spec.similarity)
        temperature: float | Tensor = spec.temperature
        if spec.learn_temperature:
            temperature = spec.temperature / self._learn(distances.detach(), batch.labels)
        return spec.weight * snn_loss(distances, batch.labels, temperature)

    def _learn(self, distances: Tensor, labels: Tensor) -> Tensor:
        """The divisor after a step down the loss, whatever the sign of ``weight``."""
        divisor = self.state["temperature_divisor"].to(distances.device).clone().requires_grad_()
        (gradient,) = torch.autograd.grad(snn_loss(distances, labels, self.spec.temperature / divisor), divisor)
        self.state["temperature_divisor"] = (divisor.detach() - STEP * gradient).clamp_min(LEAST)
        return self.state["temperature_divisor"]


build = SNNRegulariser
