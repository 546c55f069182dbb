"""Networks and images that need no download: scikit-learn's digits, enlarged and in colour."""

import copy

import numpy as np
import torch
from torch import Tensor

from ask.config.training import NetworkSpec
from ask.models.networks import Network, build, fold_batchnorm

FORWARD_GMAC = {"conv3": 0.1905, "conv4": 0.2849, "": 0.3137}
"""10^9 multiply-adds of one forward pass of the full-width VGG16 on a 32x32 image, up to a layer or the end."""


def digits() -> tuple[Tensor, Tensor]:
    """Images (1797, 3, 32, 32) in [0, 1] and labels (1797,), shuffled once."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    images = torch.from_numpy(data.images[order] / 16).float().unsqueeze(1)
    enlarged = torch.nn.functional.interpolate(images, size=(32, 32), mode="bilinear")
    return enlarged.expand(-1, 3, -1, -1).contiguous(), torch.from_numpy(data.target[order].astype(np.int64))


def vgg16(width: float, images: Tensor) -> Network:
    """A VGG16 in evaluation mode with initial weights and batch-norm statistics of ``images``.

    Untrained on purpose: its features tell the digits apart, the arithmetic is that of a trained network, and it is
    ready in seconds at full width.
    """
    network = build(NetworkSpec(name="vgg16", width=width), in_channels=3, image_size=32, num_classes=10)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the mean over batches
    with torch.no_grad():
        network.train()(images.to(next(network.parameters()).device))
    return network.eval()


def prepared(network: Network) -> Network:
    """The network as every step of the workflow attacks it: folded, channels_last, without parameter gradients."""
    folded = fold_batchnorm(network)
    folded.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
    return folded


def untouched(network: Network) -> Network:
    """A copy for a peer, which may change flags and modes."""
    return copy.deepcopy(network)
