"""Numbers as a card's kernels make them: bf16 computed in float32 and rounded once, float32 factors read as tf32."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

CONVOLUTIONS = {"convolution", "convolution_backward"}
PRODUCTS = {"addmm", "baddbmm", "bmm", "mm"}
BF16, FP32 = torch.bfloat16, torch.float32


def compute(func: Any, args: Any, kwargs: Any) -> Any:
    """The result of an operator on the values of tensors."""
    name = func._schema.name.partition("::")[2]
    flat, spec = tree_flatten((args, kwargs))
    kinds = [one.dtype for one in flat if isinstance(one, Tensor)]
    if FP32 in kinds and _reads_tf32(name):
        read = [tf32(one) if isinstance(one, Tensor) and one.dim() > 1 and one.dtype == FP32 else one for one in flat]
        args, kwargs = tree_unflatten(read, spec)
        return func(*args, **kwargs)
    in_place = any(argument.alias_info is not None for argument in func._schema.arguments)
    if BF16 not in kinds or in_place or name == "_to_copy" or "dtype" in kwargs:
        return func(*args, **kwargs)
    wide = tree_map(lambda one: one.float() if isinstance(one, Tensor) and one.dtype == BF16 else one, (args, kwargs))
    exact, exact_spec = tree_flatten(func(*wide[0], **wide[1]))
    key = func, tuple(kinds)
    if key not in _types:
        _types[key] = [getattr(one, "dtype", None) for one in tree_flatten(func(*args, **kwargs))[0]]
    rounded = [one.to(kind) if isinstance(one, Tensor) else one for one, kind in zip(exact, _types[key], strict=True)]
    return tree_unflatten(rounded, exact_spec)


_types: dict[object, list[Any]] = {}
"""Types of an operator's results, by the operator and the types of its tensors."""


def tf32(values: Tensor) -> Tensor:
    """float32 values as tensor cores read them: rounded to ten bits of mantissa."""
    bits = values.clone().view(torch.int32)
    bits += 0x0FFF + ((bits >> 13) & 1)
    return (bits & ~0x1FFF).view(FP32)


def _reads_tf32(name: str) -> bool:
    """Whether torch's settings let a card read the factors of this operator as tf32."""
    if name in CONVOLUTIONS:
        return torch._C._get_fp32_precision_getter("cuda", "conv") == "tf32"
    return name in PRODUCTS and torch._C._get_fp32_precision_getter("cuda", "matmul") == "tf32"
