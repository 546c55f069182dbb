"""A call of an operator, taken apart."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten


@dataclass(frozen=True)
class Call:
    """An operator and what it was given."""

    func: Any
    name: str
    """Without namespace and overload."""
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    ours: list[Any]
    """Tensors on the device."""
    hosts: list[Tensor]
    """Tensors on the CPU."""
    plain: tuple[tuple[Any, ...], dict[str, Any]]
    """The arguments, with the values of tensors in their place and the CPU in place of the device."""

    @classmethod
    def read(cls, func: Any, args: Any, kwargs: Any, kind: type) -> "Call":
        """Take a call apart; ``kind`` are the tensors of the device."""
        flat, spec = tree_flatten((args, kwargs))
        tensors = [one for one in flat if isinstance(one, Tensor)]
        ours = [one for one in tensors if isinstance(one, kind)]
        hosts = [one for one in tensors if not isinstance(one, kind)]
        plain_args, plain_kwargs = tree_unflatten([o.values if isinstance(o, kind) else o for o in flat], spec)
        if kwargs.get("device") is not None:
            plain_kwargs["device"] = torch.device("cpu")
        name = func._schema.name.partition("::")[2]
        return cls(func, name, args, kwargs, ours, hosts, (plain_args, plain_kwargs))

    @property
    def wanted(self) -> torch.device | None:
        """Device that the result is asked for on."""
        return self.kwargs.get("device")

    @property
    def leaves(self) -> bool:
        """Whether it copies from the device to the host."""
        to = self.wanted
        return self.name == "_to_copy" and bool(self.ours) and to is not None and torch.device(to).type == "cpu"
