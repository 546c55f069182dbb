"""The TRADES loss (Zhang et al., 2019; paper, reference 16).

With p(x) the softmax of the logits of x and x' an adversarial copy,

    loss = mean( CE(x, y) + beta * KL(p(x) || p(x')) ),

where x' maximises the divergence and the gradient flows through both arguments.
"""

import torch.nn.functional as F
from torch import Tensor


def kl_divergence(clean_logits: Tensor, adversarial_logits: Tensor) -> Tensor:
    """KL(p(x) || p(x')) of each image, (batch,), >= 0, from logits (batch, classes); differentiable in both."""
    log_p = F.log_softmax(clean_logits, 1)
    return (log_p.exp() * (log_p - F.log_softmax(adversarial_logits, 1))).sum(1)


def trades_loss(clean_logits: Tensor, adversarial_logits: Tensor, labels: Tensor, beta: float) -> Tensor:
    """TRADES loss of a batch, 0-d.

    Args:
        clean_logits: of the clean images, (batch, classes).
        adversarial_logits: of their adversarial copies, (batch, classes).
        labels: true classes (batch,).
        beta: weight of the divergence, >= 0 (6 in Zhang et al.).
    """
    return F.cross_entropy(clean_logits, labels) + beta * kl_divergence(clean_logits, adversarial_logits).mean()
