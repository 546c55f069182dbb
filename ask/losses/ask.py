"""The Adversarial Soft k-Nearest Neighbour (ASK) loss (paper, eq. 2).

For a feature f of class y and references of every class c,

    loss = -log S_y / sum_c S_c = logsumexp_c a_c - a_y = softplus(m),    a_c = log S_c,
    m = logsumexp_{c != y} a_c - a_y,

a cross-entropy over class similarities a (batch, classes). With A the similarity over tau:

* attack (IV-a), class-wise: a_c = mean_k A(f, r_ck);
* defence (V), instance-wise: a_c = logsumexp_k A(f, r_ck).

Under cosine similarity the class-wise form collapses exactly, mean_k cos(f, r_k) = f^ . mean_k r^_k,
so K references a class become one vector (:func:`class_wise`). Negative l2 has no such form.

A zero vector's cosine similarity to everything is 0, as in :mod:`ask.knn.search`.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ask.knn.similarity import Similarity, negative_distance, similarity_matrix, unit
from ask.precision import products_read_as


def ask_margin(class_similarity: Tensor, labels: Tensor, targets: Tensor | None = None) -> Tensor:
    """The argument m of the loss, which is softplus(m): logsumexp over the other classes minus the true class.

    Args:
        class_similarity: a, (batch, classes), already divided by tau.
        labels: true classes (batch,).
        targets: classes aimed at (batch,); given, only the true and the target class enter (IV-a).

    Returns:
        (batch,).
    """
    own = class_similarity.gather(1, labels.unsqueeze(1)).squeeze(1)
    if targets is not None:
        return class_similarity.gather(1, targets.unsqueeze(1)).squeeze(1) - own
    return class_similarity.scatter(1, labels.unsqueeze(1), float("-inf")).logsumexp(1) - own


def ask_loss(class_similarity: Tensor, labels: Tensor, targets: Tensor | None = None) -> Tensor:
    """ASK loss of each image (batch,), from its class similarities (eq. 2); arguments as :func:`ask_margin`."""
    return F.softplus(ask_margin(class_similarity, labels, targets))


def class_wise(
    references: Tensor,
    indices: Tensor,
    *,
    weights: Tensor | None = None,
    similarity: Similarity,
    tau: float,
    centre: Tensor | None = None,
) -> Callable[[Tensor], Tensor]:
    """Prepare the class-wise similarity of a batch (the attack's form).

    Args:
        references: all references (references, dimensions).
        indices: rows chosen for each image and class (batch, classes, k).
        weights: (batch, classes, k), each class summing to 1; default: 1 / k each. Zeros make
            classes of different K (K+ and K-).
        similarity: ``cosine`` or ``l2``.
        tau: temperature, > 0.
        centre: what all features carry (dimensions,), taken off before l2 distances; None: nothing
            (:attr:`ask.knn.search.Search.centre`).

    Returns:
        A function of the batch's features (batch, dimensions): their class similarities (batch, classes), over tau.
    """
    batch, classes, k = indices.shape
    if weights is None:
        weights = references.new_full(indices.shape, 1 / k)
    if similarity == "cosine":
        # A bag's weighted sum, without ever holding the k references of all classes at once.
        bags = F.embedding_bag(
            indices.reshape(-1, k), unit(references), mode="sum", per_sample_weights=weights.reshape(-1, k)
        )
        means = bags.reshape(batch, classes, -1)
        product = products_read_as("ieee")(torch.bmm)
        return lambda features: product(means, unit(features).unsqueeze(2)).squeeze(2) / tau
    vectors = references[indices.reshape(batch, -1)]
    if centre is not None:
        vectors = vectors - centre
    square_norms = vectors.square().sum(2)

    def l2(features: Tensor) -> Tensor:
        features = features if centre is None else features - centre
        found = negative_distance(features.unsqueeze(1), vectors, square_norms)
        return (found.reshape(weights.shape) * weights).sum(2) / tau

    return l2


def instance_wise(
    features: Tensor,
    references: Tensor,
    *,
    similarity: Similarity,
    tau: float,
    own: Tensor | None = None,
    labels: Tensor | None = None,
) -> Tensor:
    """Instance-wise class similarities (the defence's form), differentiable in features and references.

    Args:
        features: (batch, dimensions).
        references: (classes, k, dimensions), shared by the batch.
        similarity: ``cosine`` or ``l2``.
        tau: temperature, > 0.
        own: features of the clean images (batch, dimensions) that join their class as one more
            reference ("include self"); needs ``labels`` (batch,).

    Returns:
        (batch, classes).
    """
    classes, k = references.shape[:2]
    similarities = similarity_matrix(features, references.flatten(0, 1), similarity) / tau
    result = similarities.reshape(-1, classes, k).logsumexp(2)
    if own is None:
        return result
    if labels is None:
        raise ValueError("own references need the labels of their images")
    extra = similarity_matrix(features.unsqueeze(1), own.unsqueeze(1), similarity).reshape(-1) / tau
    joined = torch.logaddexp(result.gather(1, labels.unsqueeze(1)).squeeze(1), extra)
    return result.scatter(1, labels.unsqueeze(1), joined.unsqueeze(1))


def scale_free_loss(margins: Sequence[Tensor], omega: Sequence[float] | Tensor) -> Tensor:
    """A stand-in for eq. (4), the sum of omega_l softplus(m_l), whose gradient is a positive multiple, image by image.

    The gradient of softplus(m) is sigmoid(m) times that of m, and sigmoid(m) is zero in float32 long before
    a small tau makes m leave its range: the plain loss then has no gradient at all. Sign steps ignore an
    image's scale, so the layers' factors omega_l sigmoid(m_l) are divided by the image's largest.

    Args:
        margins: m of each layer, (batch,).
        omega: weight of each layer; a tensor like the margins spares each step a copy from the host.

    Returns:
        (batch,).
    """
    stacked = torch.stack(list(margins))
    with torch.no_grad():
        weights = torch.as_tensor(omega, dtype=stacked.dtype, device=stacked.device)
        log_factor = F.logsigmoid(stacked) + weights.log().unsqueeze(1)
        factor = (log_factor - log_factor.amax(0)).exp()
    return (factor * stacked).sum(0)
