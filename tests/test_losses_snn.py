"""The soft nearest neighbour loss, against loops written from the formula of Frosst et al. (2019)."""

import math

import pytest
import torch

from ask.losses.snn import pairwise_distance, snn_loss

LABELS = torch.tensor([0, 1, 0, 2, 1, 0])


def naive_distance(u, v, distance):
    if distance == "cosine":
        return 1 - (u @ v) / (u.norm() * v.norm())
    return ((u - v) ** 2).sum()


def naive_loss(features, labels, temperature, distance):
    """The mean over images that have another one of their class."""
    losses = []
    for i, feature in enumerate(features):
        own = total = 0.0
        for j, other in enumerate(features):
            if j != i:
                mass = torch.exp(-naive_distance(feature, other, distance) / temperature)
                total = total + mass
                own = own + mass * bool(labels[j] == labels[i])
        if any(labels[j] == labels[i] for j in range(len(labels)) if j != i):
            losses.append(-torch.log(own / total))
    return sum(losses) / len(losses)


@pytest.fixture
def features():
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize("distance", ["cosine", "l2"])
@pytest.mark.parametrize("temperature", [0.2, 3.0])
def test_values_and_gradients(features, distance, temperature):
    t = torch.tensor(temperature, dtype=torch.float64, requires_grad=True)
    fast = snn_loss(pairwise_distance(features, distance), LABELS, t)
    slow = naive_loss(features, LABELS, t, distance)
    torch.testing.assert_close(fast, slow)
    for ours, theirs in zip(
        torch.autograd.grad(fast, (features, t)), torch.autograd.grad(slow, (features, t)), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_a_lonely_image_does_not_count(features):
    """Image 3 is the only one of class 2: another feature moves the loss as a wrong neighbour only."""
    distances = pairwise_distance(features, "l2")
    with_lonely = snn_loss(distances, LABELS, 1.0)
    kept = [0, 1, 2, 4, 5]
    assert with_lonely > snn_loss(distances[kept][:, kept], LABELS[kept], 1.0)
    (gradient,) = torch.autograd.grad(snn_loss(distances, torch.arange(6), 1.0), features)
    assert snn_loss(distances, torch.arange(6), 1.0) == 0
    assert torch.equal(gradient, torch.zeros_like(gradient))


def test_it_is_low_where_classes_are_apart_and_log_of_the_odds_where_they_are_not():
    apart = torch.eye(3, dtype=torch.float64).repeat(2, 1)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    assert snn_loss(pairwise_distance(apart, "cosine"), labels, 0.01) < 1e-6
    together = torch.ones(6, 3, dtype=torch.float64)
    assert snn_loss(pairwise_distance(together, "l2"), labels, 1.0).item() == pytest.approx(math.log(5))


def test_float32_survives_a_tiny_temperature():
    features = torch.randn(32, 8, generator=torch.Generator().manual_seed(1)).mul_(100).requires_grad_()
    loss = snn_loss(pairwise_distance(features, "l2"), torch.arange(32) % 4, 1e-3)
    (gradient,) = torch.autograd.grad(loss, features)
    assert loss.isfinite()
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0
