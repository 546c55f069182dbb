"""The soft nearest neighbour (SNN) loss (Frosst, Papernot and Hinton, 2019; paper, reference 19).

For features f_i with labels y_i of one batch, a distance d and a temperature T,

    loss = -mean_i log( sum_{j != i, y_j = y_i} exp(-d_ij / T) / sum_{j != i} exp(-d_ij / T) ).

It is low where classes are apart. Frosst et al. maximise it in hidden layers; here the sign is the caller's.
"""

from typing import Literal

import torch
from torch import Tensor

from ask.knn.similarity import unit
from ask.precision import products_read_as

Distance = Literal["cosine", "l2"]
_NEVER = -1e30
"""In place of -inf, whose softmax has no gradient where a whole row is masked."""


@products_read_as("ieee")
def pairwise_distance(features: Tensor, distance: Distance) -> Tensor:
    """Distances (batch, batch) of features (batch, dimensions): 1 - cos in [0, 2], or squared Euclidean (``l2``)."""
    if distance == "cosine":
        unit_features = unit(features)
        return 1 - unit_features @ unit_features.T
    norms = features.square().sum(1)
    return (norms.unsqueeze(1) + norms - 2 * (features @ features.T)).clamp_min(0)


def snn_loss(distances: Tensor, labels: Tensor, temperature: float | Tensor) -> Tensor:
    """SNN loss of a batch, 0-d, >= 0, differentiable in distances and temperature.

    An image without another one of its class has no such neighbour and is left out of the mean; if all are, the loss
    is 0.

    Args:
        distances: (batch, batch), from :func:`pairwise_distance`; the diagonal is not read.
        labels: (batch,).
        temperature: T, > 0.
    """
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    own = (labels.unsqueeze(1) == labels) & ~itself
    distances = distances.to(torch.promote_types(distances.dtype, torch.float32))  # half precision knows no _NEVER
    logits = (-distances / temperature).masked_fill(itself, _NEVER)
    losses = logits.logsumexp(1) - logits.masked_fill(~own, _NEVER).logsumexp(1)
    counted = own.any(1)
    return torch.where(counted, losses, 0).sum() / counted.sum().clamp_min(1)
