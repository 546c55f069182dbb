"""The ASK loss, against loops written from the formulas of the paper (section III, eq. 2)."""

import math

import pytest
import torch
import torch.nn.functional as F

from ask.losses.ask import (
    ask_loss,
    ask_margin,
    class_wise,
    instance_wise,
    scale_free_loss,
)

BATCH, CLASSES, K, DIMENSIONS = 4, 5, 3, 6


def naive_similarity(u, v, similarity, tau):
    """A(u, v): cosine (with the sign that the code has, not the paper's typo) or negative l2 distance, over tau."""
    if similarity == "cosine":
        return (u @ v) / (u.norm() * v.norm()) / tau
    return -(u - v).norm() / tau


def naive_loss(feature, references, label, similarity, tau, form, target=None, counts=None):
    """Equation (2) as printed: -log S+ / (S+ + sum S-), for one image."""
    masses = []
    for c in range(len(references)):
        used = references[c][: counts[c]] if counts else references[c]
        values = [naive_similarity(feature, r, similarity, tau) for r in used]
        if form == "class-wise":
            masses.append(torch.exp(sum(values) / len(values)))
        else:
            masses.append(sum(torch.exp(v) for v in values))
    others = [m for c, m in enumerate(masses) if c != label and target in (None, c)]
    return -torch.log(masses[label] / (masses[label] + sum(others)))


@pytest.fixture
def case():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(BATCH, DIMENSIONS, generator=generator, dtype=torch.float64)
    pool = torch.randn(40, DIMENSIONS, generator=generator, dtype=torch.float64)
    indices = torch.stack(
        [torch.randperm(40, generator=generator)[: CLASSES * K].reshape(CLASSES, K) for _ in range(BATCH)]
    )
    return features, pool, indices, torch.tensor([0, 3, 4, 2])


@pytest.mark.parametrize("similarity", ["cosine", "l2"])
@pytest.mark.parametrize("targets", [None, [1, 0, 2, 4]])
@pytest.mark.parametrize("tau", [0.3, 2.0])
def test_class_wise_values_and_gradients(case, similarity, targets, tau):
    features, pool, indices, labels = case
    features.requires_grad_(True)
    fast = ask_loss(
        class_wise(pool, indices, similarity=similarity, tau=tau)(features),
        labels,
        None if targets is None else torch.tensor(targets),
    )
    slow = torch.stack(
        [
            naive_loss(features[i], pool[indices[i]], labels[i], similarity, tau, "class-wise", targets and targets[i])
            for i in range(BATCH)
        ]
    )
    torch.testing.assert_close(fast, slow)
    torch.testing.assert_close(
        torch.autograd.grad(fast.sum(), features)[0], torch.autograd.grad(slow.sum(), features)[0]
    )


@pytest.mark.parametrize("similarity", ["cosine", "l2"])
def test_different_k_in_and_out_of_class(case, similarity):
    features, pool, indices, labels = case
    k_in, k_out = 3, 2
    own = F.one_hot(labels, CLASSES).bool().unsqueeze(2)
    place = torch.arange(K)
    weights = torch.where(own, (place < k_in) / k_in, (place < k_out) / k_out).double()
    fast = ask_loss(class_wise(pool, indices, weights=weights, similarity=similarity, tau=0.5)(features), labels)
    for i in range(BATCH):
        counts = [k_in if c == labels[i] else k_out for c in range(CLASSES)]
        slow = naive_loss(features[i], pool[indices[i]], labels[i], similarity, 0.5, "class-wise", counts=counts)
        torch.testing.assert_close(fast[i], slow)


@pytest.mark.parametrize("similarity", ["cosine", "l2"])
def test_instance_wise_values_and_gradients_of_features_and_references(case, similarity):
    features, pool, _, labels = case
    references = pool[: CLASSES * K].reshape(CLASSES, K, DIMENSIONS).clone().requires_grad_(True)
    features.requires_grad_(True)
    fast = ask_loss(instance_wise(features, references, similarity=similarity, tau=0.4), labels).mean()
    slow = (
        sum(naive_loss(features[i], references, labels[i], similarity, 0.4, "instance-wise") for i in range(BATCH))
        / BATCH
    )
    torch.testing.assert_close(fast, slow)
    for a, b in zip(
        torch.autograd.grad(fast, [features, references]),
        torch.autograd.grad(slow, [features, references]),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_include_self_adds_one_reference_to_the_own_class(case):
    features, pool, _, labels = case
    references, own = pool[: CLASSES * K].reshape(CLASSES, K, DIMENSIONS), pool[-BATCH:]
    fast = ask_loss(instance_wise(features, references, similarity="cosine", tau=0.4, own=own, labels=labels), labels)
    for i in range(BATCH):
        sets = [torch.cat([references[c], own[i : i + 1]]) if c == labels[i] else references[c] for c in range(CLASSES)]
        torch.testing.assert_close(fast[i], naive_loss(features[i], sets, labels[i], "cosine", 0.4, "instance-wise"))


def test_cosine_collapse_is_exact(case):
    """mean_k cos(f, r_k) = f^ . mean_k r^_k, in float64 to the last digits."""
    features, pool, indices, _ = case
    collapsed = class_wise(pool, indices, similarity="cosine", tau=0.03)(features)
    plain = F.cosine_similarity(features[:, None, None], pool[indices], dim=3).mean(2) / 0.03
    torch.testing.assert_close(collapsed, plain, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("similarity", ["cosine", "l2"])
def test_gradient_equals_finite_differences(case, similarity):
    features, pool, indices, labels = case

    def loss(f):
        return ask_loss(class_wise(pool, indices, similarity=similarity, tau=0.5)(f), labels)

    assert torch.autograd.gradcheck(loss, features.requires_grad_(True))


def layer_weighted_loss(margins, omega):
    """Equation (4), of the layers' margins."""
    return sum(weight * F.softplus(margin) for margin, weight in zip(margins, omega, strict=True))


@pytest.mark.parametrize("omega", [(1.0,), (0.3, 0.7), (0.1, 0.2, 0.7)])
def test_scale_free_loss_has_the_direction_of_the_loss(case, omega):
    """Image by image its gradient is a positive multiple of that of eq. (4)."""
    features, pool, indices, labels = case
    features.requires_grad_(True)
    taus = (0.5, 0.2, 1.0)

    def margins():
        return [
            ask_margin(class_wise(pool, indices, similarity="l2", tau=tau)(features), labels)
            for tau, _ in zip(taus, omega, strict=False)
        ]

    (plain,) = torch.autograd.grad(layer_weighted_loss(margins(), omega).sum(), features)
    (free,) = torch.autograd.grad(scale_free_loss(margins(), omega).sum(), features)
    torch.testing.assert_close(F.cosine_similarity(plain, free), torch.ones(BATCH, dtype=torch.float64))


def test_scale_free_loss_survives_temperatures_at_which_float32_loses_the_gradient(case):
    features, pool, indices, _ = case
    features = features.float().requires_grad_(True)
    similarity = class_wise(pool.float(), indices, similarity="l2", tau=1e-3)
    easy = similarity(features).argmax(1)  # images deep in their own class
    margin = ask_margin(similarity(features), easy)
    plain = torch.autograd.grad(layer_weighted_loss([margin], [1.0]).sum(), features, retain_graph=True)[0]
    free = torch.autograd.grad(scale_free_loss([margin], [1.0]).sum(), features)[0]
    assert plain.abs().amax(1).eq(0).any(), "the case should be one that float32 can't handle"
    assert free.abs().amax(1).gt(0).all()


def test_uninformative_references_give_log_of_the_number_of_classes():
    similar = torch.zeros(2, 10)
    assert ask_loss(similar, torch.tensor([1, 2])).tolist() == pytest.approx([math.log(10)] * 2)
    assert ask_loss(similar, torch.tensor([1, 2]), torch.tensor([0, 0])).tolist() == pytest.approx([math.log(2)] * 2)
