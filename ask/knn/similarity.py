"""Similarity measures between features (paper, II-a): cosine and negative l2 distance.

The paper prints cosine similarity as -cos / tau; attack and defence only make sense with +cos / tau
(as in the released code), and that is what stands here. Temperatures are applied by the losses.
"""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from ask.precision import products_read_as

Similarity = Literal["cosine", "l2"]
SIMILARITIES: tuple[Similarity, ...] = ("cosine", "l2")
MIN_SQUARED_DISTANCE = 1e-12
"""Squared distances are clamped here before the root, whose gradient at zero is infinite."""


def unit(features: Tensor) -> Tensor:
    """Features (..., dimensions) scaled to length 1.

    Zero vectors stay zero, so that their similarity to everything is 0; those below length 1e-12 do not reach length 1.
    """
    return F.normalize(features, dim=-1, eps=1e-12)


@products_read_as("ieee")
def similarity_matrix(features: Tensor, references: Tensor, similarity: Similarity) -> Tensor:
    """Similarity of every feature with every reference, differentiable in both.

    Args:
        features: (..., queries, dimensions).
        references: (..., references, dimensions); leading axes broadcast.
        similarity: ``cosine`` in [-1, 1], or ``l2``, the negative Euclidean distance (not squared).

    Returns:
        (..., queries, references).
    """
    if similarity == "cosine":
        return unit(features) @ unit(references).transpose(-1, -2)
    return negative_distance(features, references, references.square().sum(-1))


@products_read_as("ieee")
def negative_distance(features: Tensor, references: Tensor, square_norms: Tensor) -> Tensor:
    """Negative l2 distances (..., queries, references), given the references' squared norms (..., references)."""
    squared = features.square().sum(-1, keepdim=True) - 2 * (features @ references.transpose(-1, -2))
    return -(squared + square_norms.unsqueeze(-2)).clamp_min(MIN_SQUARED_DISTANCE).sqrt()
