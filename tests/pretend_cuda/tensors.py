"""Tensors of the pretended device, and the way that every operator takes."""

from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from pretend_cuda import arithmetic, rules
from pretend_cuda.call import Call
from pretend_cuda.device import HERE, address, is_here, state


class DeviceTensor(Tensor):
    """A tensor on the device: what torch sees, around the CPU tensor ``values``."""

    values: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> "DeviceTensor":
        """Around a CPU tensor, whose memory it uses."""
        made = Tensor._make_wrapper_subclass(
            cls,
            values.size(),
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device=HERE,
        )
        made.values = values
        state().users.setdefault(address(values), WeakSet()).add(made)
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl
    __hash__ = object.__hash__

    @classmethod
    def __torch_dispatch__(cls, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Every operator on such a tensor."""
        return perform(func, args, kwargs or {})

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A copy of its own memory; a parameter stays one."""
        with torch.no_grad():
            copied: Tensor = self.detach().clone()
        if getattr(self, "_is_param", False):
            copied = torch.nn.Parameter(copied, self.requires_grad)
        memo[id(self)] = copied.requires_grad_(self.requires_grad)
        return copied

    def numpy(self, *_: Any, **__: Any) -> Any:
        """No host array shares a card's memory."""
        raise TypeError(f"can't convert {HERE} device type tensor to numpy. Use Tensor.cpu() first")

    def __array__(self, *_: Any, **__: Any) -> Any:
        """As :meth:`numpy`."""
        self.numpy()

    def tolist(self) -> Any:
        """Waits."""
        return self.cpu().tolist()

    def __format__(self, style: str) -> str:
        """Of a number; waits."""
        return format(self.item(), style) if self.dim() == 0 else repr(self)

    def __repr__(self, **_: Any) -> str:
        """For debuggers: it does not wait."""
        return f"{self.values!r} on {HERE}"


DeviceTensor.__module__ = "torch"  # some packages tell by it whose tensor they were given


class Operators(TorchDispatchMode):
    """Sees operators on no tensor of the device, such as those that make one."""

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """As of :class:`DeviceTensor`."""
        return perform(func, args, kwargs or {})


class Names(TorchFunctionMode):
    """Reads ``cuda`` as ``cuda:0``, for a CPU build has no current device of that type."""

    def __torch_function__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Every function of torch."""
        if func is torch.device:
            return func(*args, **(kwargs or {}))
        return func(*map(_indexed, args), **{name: _indexed(value) for name, value in (kwargs or {}).items()})


def _indexed(value: Any) -> Any:
    names_it = isinstance(value, torch.device) or (isinstance(value, str) and value.startswith("cuda"))
    return HERE if names_it and is_here(value) else value


def perform(func: Any, args: Any, kwargs: Any) -> Any:
    """An operator, on whatever device its tensors are."""
    if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
        # Inference mode leaves these whole (.to, linear, conv2d, ...): their parts are what has a device.
        with Operators():
            parts = func.decompose(*args, **kwargs)
        if parts is not NotImplemented:
            return parts
    call = Call.read(func, args, kwargs, DeviceTensor)
    if not call.ours and not is_here(call.wanted):
        rules.check_generators(call, here=False)
        return func(*args, **kwargs)
    device = state()
    device.initialise()
    rules.check(call, device)
    plain, named = call.plain
    if call.leaves:
        return func(*plain, **named)
    device.launches += 1
    if device.capture is not None:
        device.capture.save(call)
    found = arithmetic.compute(func, plain, named)
    if device.capture is not None:
        device.capture.note(call, found)
    if torch.is_inference_mode_enabled() and any(not tensor.is_inference() for tensor in call.ours):
        with torch.inference_mode(False):  # a view or the target of ordinary tensors is one itself
            return _wrapped(found, call)
    return _wrapped(found, call)


def _wrapped(found: Any, call: Call) -> Any:
    """Results as tensors of the device; what an operator changed in place is the tensor that it was given."""
    given = {id(tensor.values): tensor for tensor in call.ours}

    def wrap(one: Any) -> Any:
        return (given[id(one)] if id(one) in given else DeviceTensor(one)) if isinstance(one, Tensor) else one

    return tree_map(wrap, found)
