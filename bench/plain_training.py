"""Adversarial training as it is usually written: the peer of :mod:`ask.training`.

Eager fp32, the network as it is (no folded batch norm, contiguous images), parameters left as they are while PGD runs.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PlainTraining:
    """Steps of SGD on PGD examples; ``eps`` and ``step_size`` in [0, 1]."""

    def __init__(self, network: nn.Module, *, eps: float, step_size: float, steps: int, learning_rate: float) -> None:
        self.network, self.eps, self.step_size, self.steps = network, eps, step_size, steps
        self.optimiser = torch.optim.SGD(
            network.parameters(), lr=learning_rate, momentum=0.9, nesterov=True, weight_decay=2e-4
        )

    def craft(self, images: Tensor, labels: Tensor) -> Tensor:
        """PGD examples of images (batch, channels, side, side) in [0, 1], crafted in evaluation mode."""
        self.network.eval()
        current = (images + torch.empty_like(images).uniform_(-self.eps, self.eps)).clamp(0, 1)
        for _ in range(self.steps):
            current.requires_grad_(True)
            loss = F.cross_entropy(self.network(current), labels)
            (gradient,) = torch.autograd.grad(loss, current)
            moved = current.detach() + self.step_size * gradient.sign()
            current = torch.min(torch.max(moved, images - self.eps), images + self.eps).clamp(0, 1)
        return current

    def step(self, images: Tensor, labels: Tensor) -> None:
        """One step of the optimiser."""
        adversarial = self.craft(images, labels)
        self.network.train()
        loss = F.cross_entropy(self.network(adversarial), labels)
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
