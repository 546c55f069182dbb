"""What a card, its driver or torch's kernels for it refuse, and what makes the host wait."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from pretend_cuda.call import Call
from pretend_cuda.device import Device, Refused, state

WAITS = {
    "_local_scalar_dense",  # .item(), float(), if
    "_unique2",
    "bincount",
    "equal",
    "histc",
    "is_nonzero",
    "linalg_eigh",
    "masked_select",
    "nonzero",
    "unique_consecutive",
    "unique_dim",
}
"""Operators whose result's shape or value the host must know."""
COPIES = {"_to_copy", "copy_", "set_"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
TAKES_A_NUMBER = {"addmm", "fill", "fill_", "masked_fill", "masked_fill_", "where"}
"""Beside the pointwise operators, those that take a 0-d tensor of the CPU."""


def check(call: Call, device: Device) -> None:
    """Raises Refused for a call that the device would not have done; counts its waits."""
    if call.kwargs.get("pin_memory"):
        raise Refused(f"{call.name}: only dense CPU tensors can be pinned")
    if call.leaves:
        device.wait("copy to the host")
        return
    if call.name in COPIES:
        _check_copy(call, device)
    elif call.name in INDEXING:
        _check_indices(call, device)
    elif call.hosts:
        pointwise = torch.Tag.pointwise in call.func.tags or call.name in TAKES_A_NUMBER
        if not pointwise or any(tensor.dim() for tensor in call.hosts):
            raise _two_devices(call)
    if call.name in WAITS:
        device.wait(call.name)
    if call.name == "_fused_sgd_":
        _check_fused(call)
    check_generators(call, here=True)


def check_generators(call: Call, *, here: bool) -> None:
    """A generator draws on its own device, and in a graph only if it was registered, which nothing here does."""
    device = state()
    for one in (*call.args, *call.kwargs.values()):
        if not isinstance(one, torch._C.Generator):
            continue
        if (one._cdata in device.generators) != here:
            kinds = ("cuda", "cpu") if here else ("cpu", "cuda")
            raise Refused(f"Expected a '{kinds[0]}' device type for generator but found '{kinds[1]}' ({call.name})")
        device.not_in_capture(f"{call.name} draws from a generator that is not registered")


def _check_copy(call: Call, device: Device) -> None:
    """Copies between host and device wait: nothing here pins memory."""
    if any(tensor.numel() for tensor in call.hosts):
        to_host = call.name == "copy_" and call.args[0] is call.hosts[0]
        device.wait("copy to the host" if to_host else "copy from the host")


def _check_indices(call: Call, device: Device) -> None:
    """Indices may lie on the CPU, which are copied; what is indexed, and the values put there, may not."""
    indices = [one for one in tree_flatten(call.args[1])[0] if isinstance(one, Tensor)]
    apart = {id(one) for one in call.hosts} - {id(one) for one in indices}
    if any(id(one) in apart and (one.dim() or one is call.args[0]) for one in call.hosts):
        raise _two_devices(call)
    for index in indices:
        if any(index is host for host in call.hosts) and index.dim():
            device.wait("indices copied from the host")
        elif index.dtype in (torch.bool, torch.uint8):
            device.wait("a mask as index")


def _check_fused(call: Call) -> None:
    """The fused step reads a parameter, its gradient and its momentum in one order and type."""
    parameters, gradients, momenta = (list[Tensor](part) for part in call.args[:3])
    for parameter, *others in zip(parameters, gradients, momenta or gradients, strict=True):
        for other in others:
            if other.dtype != parameter.dtype or _order(other) != _order(parameter):
                raise Refused("_fused_sgd_: parameters, gradients and momentum differ in strides or type")


def _order(tensor: Tensor) -> Any:
    """Strides of the axes that have a length."""
    return [stride for length, stride in zip(tensor.shape, tensor.stride(), strict=True) if length != 1]


def _two_devices(call: Call) -> Refused:
    return Refused(
        f"Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! ({call.name})"
    )
