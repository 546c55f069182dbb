"""The TRADES loss, against a loop written from the formula of Zhang et al. (2019)."""

import pytest
import torch

from ask.losses.trades import kl_divergence, trades_loss

LABELS = torch.tensor([0, 4, 2])


def naive(clean, adversarial, labels, beta):
    total = 0.0
    for z, w, label in zip(clean, adversarial, labels, strict=True):
        p, q = z.exp() / z.exp().sum(), w.exp() / w.exp().sum()
        divergence = sum(p[c] * torch.log(p[c] / q[c]) for c in range(len(p)))
        total = total - torch.log(p[label]) + beta * divergence
    return total / len(labels)


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(3, 5, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2)]


@pytest.mark.parametrize("beta", [0.0, 1.0, 6.0])
def test_values_and_gradients_of_both_arguments(logits, beta):
    fast, slow = trades_loss(*logits, LABELS, beta), naive(*logits, LABELS, beta)
    torch.testing.assert_close(fast, slow)
    for ours, theirs in zip(torch.autograd.grad(fast, logits), torch.autograd.grad(slow, logits), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_divergence_is_torchs_and_zero_for_equal_outputs(logits):
    clean, adversarial = logits
    theirs = torch.nn.functional.kl_div(
        adversarial.log_softmax(1), clean.softmax(1), reduction="batchmean"
    )  # the official code's call
    torch.testing.assert_close(kl_divergence(clean, adversarial).mean(), theirs)
    assert (kl_divergence(clean, adversarial) > 0).all()
    assert torch.equal(kl_divergence(clean, clean), torch.zeros(3, dtype=torch.float64))
