"""What a step costs in passes of the network, counted by hooks rather than derived: the tables of training cost."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from ask.models.networks import Network


@dataclass
class Passes:
    """Images that went through a network (as far as its first block at least), and the arithmetic of it."""

    forward: int = 0
    """Images of forward passes."""
    backward: int = 0
    """Images of backward passes."""
    macs: int = 0
    """Multiply-adds of convolutions and linear layers, forward and backward."""


@contextmanager
def count_passes(*networks: Network) -> Iterator[Passes]:
    """Count the passes through ``networks`` within the block; changes no result and never waits for the device."""
    passes = Passes()

    def weigh(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        weight = layer.weight
        assert isinstance(weight, Tensor)
        macs = output.numel() * weight[0].numel()
        passes.macs += macs
        if output.requires_grad:
            # Back through a layer costs as much as forward for each of input and weight whose gradient is wanted.
            back = macs * (inputs[0].requires_grad + weight.requires_grad)
            output.register_hook(lambda _: setattr(passes, "macs", passes.macs + back))

    def count(_block: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        images = len(output)
        passes.forward += images
        if output.requires_grad:
            output.register_hook(lambda _: setattr(passes, "backward", passes.backward + images))

    handles = []
    for network in networks:
        handles.append(network.blocks["conv1"].register_forward_hook(count))
        layers = [module for module in network.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
        handles.extend(layer.register_forward_hook(weigh) for layer in layers)
    try:
        yield passes
    finally:
        for handle in handles:
            handle.remove()
