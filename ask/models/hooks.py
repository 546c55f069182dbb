"""Feature functions of any PyTorch module, by forward hooks: nothing of the module has to change."""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import Any
from weakref import WeakSet

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

_warned: WeakSet[nn.Module] = WeakSet()
"""Networks whose batch norm a warning has told of."""


def module_of(features: object) -> nn.Module | None:
    """The network behind a feature function: itself, the owner of a bound method, or what was hooked; else None.

    Of a :func:`functools.partial` that of its function.
    """
    while isinstance(features, partial):
        features = features.func
    for found in (features, getattr(features, "__self__", None), getattr(features, "module", None)):
        if isinstance(found, nn.Module):
            return found
    return None


def check_features(features: object) -> None:
    """Raises ValueError, with the fix, for what is no function of images and layers, such as a network as it is."""
    plain = isinstance(features, nn.Module) and len(signature(features.forward).parameters) < 2
    if plain or not callable(features):
        raise ValueError(
            f"features must be a function of images and layers, got a {type(features).__name__};"
            " of a network they are hook_features(network, layers)"
        )


@contextmanager
def evaluating(features: object) -> Iterator[None]:
    """Evaluation mode of a feature function's network (:func:`module_of`), and each submodule's mode as it was after.

    In training mode, features would depend on the batch and on dropout's draws, and would move batch norm's statistics;
    of batch norm without statistics, by which they always depend on the batch, a warning tells once. Anything else is
    left alone. Parameters keep whether they learn.
    """
    module = module_of(features)
    parts = list(module.modules()) if module is not None else []
    training = [m for m in parts if m.training]
    if (
        module is not None
        and module not in _warned
        and any(isinstance(m, _BatchNorm) and m.running_mean is None for m in parts)
    ):
        _warned.add(module)
        says = "a batch norm of this network keeps no running statistics, so an image's features depend on the images"
        fix = "give it some (track_running_stats=True, then batches in training mode)"
        warnings.warn(f"{says} beside it, and so do attacks and accuracies; {fix}", RuntimeWarning, stacklevel=4)
    try:
        for submodule in training:
            # Not train(False), which a network may override, as some do to keep parts in one mode.
            submodule.training = False
        yield
    finally:
        for submodule in training:
            submodule.training = True


class _AllFound(Exception):  # noqa: N818  # good news, no error
    """Ends a forward pass once every layer asked for has been computed."""


@dataclass(frozen=True, eq=False, repr=False)
class HookedFeatures:
    """A feature function that reads a module's inner activations; :func:`hook_features` makes one.

    It is pickled and copied together with its module.
    """

    module: nn.Module
    paths: Mapping[str, str]
    """Submodule of each layer."""

    def __call__(self, images: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        """Features (batch, dimensions) by layer."""
        for layer in layers:
            if layer not in self.paths:
                raise ValueError(f"unknown layer {layer!r}; choose from {', '.join(self.paths)}")
        wanted = {self.paths[layer]: self.module.get_submodule(self.paths[layer]) for layer in layers}
        with evaluating(self.module):
            found, _ = outputs(self.module, wanted, images)
        return {layer: found[self.paths[layer]].flatten(1) for layer in layers}

    def __repr__(self) -> str:
        layers = (name if name == path else f"{name}={path}" for name, path in self.paths.items())
        return f"<{type(self.module).__name__}: {', '.join(layers)}>"


def hook_features(module: nn.Module, layers: Mapping[str, str] | Iterable[str]) -> HookedFeatures:
    """A feature function for attacks and :class:`ask.knn.classifier.DkNN` that reads a module's inner activations.

    Args:
        module: any network that takes images (batch, ...). It is in evaluation mode as long as a call runs, and
            afterwards in the mode that it was in.
        layers: layer name -> path of the submodule whose output it is, as in ``module.named_modules()``; or just
            the paths, or a single one.

    Returns:
        A function of images (batch, ...) and layer names that returns each layer's output, flattened to
        (batch, dimensions), differentiable in the images. The forward pass ends at the deepest layer asked for; hooks
        live as long as one call. Of a submodule that runs several times, the first output counts.

        It raises ValueError for a layer that is not in ``layers``, that the forward pass never reaches, or whose output
        is no tensor (batch, ...).

    Raises:
        ValueError: no layer is given, or ``module`` has no such submodule.

    >>> features = hook_features(resnet18(weights=None).eval(), ["layer3", "layer4"])
    >>> features(images, ["layer3"])["layer3"].shape
    torch.Size([16, 50176])
    """
    if isinstance(layers, str):
        layers = [layers]
    paths = dict(layers) if isinstance(layers, Mapping) else {path: path for path in layers}
    if not paths:
        raise ValueError("layers is empty; name at least one submodule of named_modules()")
    known = dict(module.named_modules())
    for path in paths.values():
        if path not in known:
            top = ", ".join(name for name, _ in module.named_children())
            raise ValueError(f"{type(module).__name__} has no submodule {path!r}; it consists of: {top}")
    return HookedFeatures(module, paths)


def outputs(
    module: nn.Module, wanted: Mapping[str, nn.Module], images: Tensor, *, whole: bool = False
) -> tuple[dict[str, Tensor], Any]:
    """What submodules, given by path, return in a forward pass that ends at the last of them, or is ``whole``.

    Then what the module returns comes with it. Raises ValueError as :func:`hook_features` says.
    """
    found: dict[str, Tensor] = {}

    def keep(path: str, _module: nn.Module, _inputs: Any, output: Any) -> None:
        if path in found:
            return
        if not isinstance(output, Tensor) or output.ndim < 2 or len(output) != len(images):
            what = f"one of shape {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
            raise ValueError(
                f"submodule {path!r} returns {what}, not a tensor (batch, ...); take one inside or after it"
            )
        complete = len(found) + 1 == len(wanted) and not whole
        # What follows may work in place, as ReLU(inplace=True) does.
        found[path] = output if complete else output.clone()
        if complete:
            raise _AllFound

    with ExitStack() as hooks:
        for path, submodule in wanted.items():
            hooks.enter_context(submodule.register_forward_hook(partial(keep, path)))
        result = None
        with suppress(_AllFound):
            result = module(images)
    missing = sorted(set(wanted) - set(found))
    if missing:
        raise ValueError(f"the forward pass does not run submodule {missing[0]!r}; take another one")
    return found, result
