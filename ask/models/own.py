"""Networks of one's own: what a function makes, with names for its layers, in the place of the paper's networks."""

import copy
import os
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ask.config.training import NetworkSpec
from ask.errors import AskError
from ask.models.hooks import evaluating, outputs
from ask.models.networks import Network, build, fold_batchnorm
from ask.tensorfile import load_others

PREFIXES = ("module.", "_orig_mod.", "model.", "module.")
"""What wrappers (DataParallel, Lightning, torch.compile) put before every name."""


class OwnModelError(AskError):
    """A network of one's own cannot be made, or is not what the configuration says."""


class OwnNetwork(Network):
    """A network of one's own; it is run once when it is made, which finds mistakes and what can be folded.

    All parameters are trained. Convolutions and batch norms are folded where the one's output goes into the other and
    nowhere else, each runs once, and folding leaves logits and features what they were.

    Raises:
        OwnModelError: with the reason and the fix.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, spec: NetworkSpec, *, in_channels: int, image_size: int, num_classes: int) -> None:
        nn.Module.__init__(self)  # it has no blocks
        self.spec, self.in_channels, self.image_size, self.num_classes = spec, in_channels, image_size, num_classes
        self.module = make(spec).requires_grad_(True)
        self.head = nn.Identity()
        for name, values in (("mean", spec.mean), ("std", spec.std)):
            if len(values) not in (0, 1, in_channels):
                raise OwnModelError(f"{name} has {len(values)} values, but images have {in_channels} channels")
            if max(values, default=0) > 1:
                raise OwnModelError(
                    f"{name} {values} is in pixels of 0 to 255, but images are in [0, 1]; divide by 255"
                )
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)
        self._pairs: list[tuple[str, str]] = []
        images = torch.rand((2, in_channels, image_size, image_size), generator=torch.Generator().manual_seed(0))
        # Many forward passes flatten by view(), which channels_last forbids; of few channels see `Pointwise`.
        convolutions = [part for part in self.modules() if isinstance(part, nn.Conv2d)]
        few = any(part.kernel_size == (1, 1) != part.stride and part.in_channels < 8 for part in convolutions)
        for self.memory_format in (torch.channels_last, torch.contiguous_format)[few:]:
            self.to(memory_format=self.memory_format)  # type: ignore[call-overload]  # torch's stubs lack it
            try:
                self._look(images)
                break
            except OwnModelError:
                if self.memory_format == torch.contiguous_format:
                    raise

    def _walk(self, x: Tensor, layers: Sequence[str], depth: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
        known = self.spec.layers
        for layer in layers:
            if layer not in ("input", *known):
                raise ValueError(f"unknown layer {layer!r}; choose from {', '.join(('input', *known))}")
        found = {"input": x.flatten(1)} if "input" in layers else {}
        wanted = {known[layer]: self.module.get_submodule(known[layer]) for layer in layers if layer != "input"}
        if wanted or depth:
            x = (x - self.mean) / self.std if self.spec.std else x
            x = x.contiguous(memory_format=self.memory_format)
            inner, x = outputs(self.module, wanted, x, whole=bool(depth))
            if depth and not isinstance(x, Tensor):
                raise ValueError(f"the module returns a {type(x).__name__}, not logits; wrap it in one that does")
            found |= {layer: inner[known[layer]].flatten(1) for layer in layers if layer != "input"}
        return x, {layer: found[layer] for layer in layers}

    @property
    def first(self) -> nn.Module:
        """As that of any network."""
        return self.get_submodule(self._first)

    def pairs(self) -> list[tuple[str, str]]:
        """As those of any network."""
        return self._pairs

    def _look(self, images: Tensor) -> None:
        """Run it once: checks what it returns, and finds its first submodule and what can be folded."""
        who, ran = f"{self.spec.factory}: ", list[tuple[str, nn.Module, Any, Any]]()
        for layer, path in self.spec.layers.items():
            try:
                self.module.get_submodule(path)
            except AttributeError:
                there = ", ".join(name for name, _ in self.module.named_children())
                raise OwnModelError(f"{who}layer {layer}: no submodule {path!r}; it consists of {there}") from None
        with evaluating(self), torch.enable_grad(), ExitStack() as hooks:
            try:
                alone = self(images[:1])
                cut = self._cut(images[:1])
                for name, part in self.named_modules():
                    if name.startswith("module.") and not list(part.children()):
                        hooks.enter_context(
                            part.register_forward_hook(lambda m, i, o, n=name: ran.append((n, m, i, o)))
                        )
                logits, features = self.forward_with_features(images, tuple(self.spec.layers))
            except Exception as error:
                shape = "x".join(map(str, images.shape[1:]))
                raise OwnModelError(f"{who}images of {shape} do not pass: {error}") from error
        if logits.ndim != 2 or len(logits) != 2 or logits.shape[1] < self.num_classes:
            raise OwnModelError(
                f"{who}returns {tuple(logits.shape)} for 2 images, not logits (2, {self.num_classes} or more): give the"
                " number of classes in `options`, or wrap the module"
            )
        if cut:
            raise OwnModelError(
                f"{who}no gradient leads from its {' and '.join(cut)} to the image, which attacks climb: compute in"
                " torch, without detach(), no_grad(), argmax() and NumPy"
            )
        if not (alone - logits[:1]).abs().max() <= 1e-3 * logits.abs().max():
            raise OwnModelError(
                f"{who}an image's logits differ from pass to pass, or with the images beside it: attacks need a network"
                " that is a function of each image alone (no batch statistics, nothing random in evaluation mode)"
            )
        readers = _readers([logits, *features.values()])
        runs = Counter(name for name, *_ in ran)
        once = {name for name, count in runs.items() if count == 1}
        self._first = next((name for name, *_ in ran if name in once), "module")
        kept = {f"module.{path}" for path in self.spec.layers.values()}
        made = {
            id(output): name
            for name, part, _, output in ran
            if type(part) is nn.Conv2d and name in once - kept and readers[output.grad_fn] == 1
        }
        self._pairs = [
            (made[id(inputs[0])], name)
            for name, part, inputs, _ in ran
            if type(part) is nn.BatchNorm2d and part.affine and part.running_mean is not None
            if name in once and id(inputs[0]) in made
        ]
        if not self._folds(images):
            self._pairs = []

    def _cut(self, images: Tensor) -> list[str]:
        """Outputs from which no gradient leads to the images, by name."""
        images = images.clone().requires_grad_()
        logits, features = self.forward_with_features(images, tuple(self.spec.layers))
        cut = []
        for name, found in {"logits": logits, **features}.items():
            leads = found.requires_grad
            if not leads or torch.autograd.grad(found.sum(), images, retain_graph=True, allow_unused=True)[0] is None:
                cut.append(name)
        return cut

    def _folds(self, images: Tensor) -> bool:
        """Whether folding changes nothing, with batch norms unlike the identity."""
        trial, generator = copy.deepcopy(self).eval(), torch.Generator().manual_seed(0)
        for norm in (trial.get_submodule(name) for _, name in self._pairs):
            for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
                assert isinstance(tensor, Tensor)
                tensor.data.uniform_(0.5, 1.5, generator=generator)
        with torch.no_grad(), suppress(RuntimeError, KeyError, AttributeError):
            names = tuple(self.spec.layers)
            try:
                plain, layers = trial.forward_with_features(images, names)
            except ValueError:
                fix = "forward belongs to the class, not to the instance"
                raise OwnModelError(
                    f"factory {self.spec.factory}: a copy of its network runs the original; {fix}"
                ) from None
            folded, same = fold_batchnorm(trial).forward_with_features(images, names)
            pairs = [(plain, folded), *((layers[name], same[name]) for name in names)]
            return all(bool((a - b).abs().max() <= 1e-3 * a.abs().max()) for a, b in pairs)
        return False


def _readers(results: Sequence[Tensor]) -> Counter[Any]:
    """How many operations read what each operation behind some results made."""
    found, seen, waiting = Counter[Any](), set[Any](), [result.grad_fn for result in results]
    while waiting:
        operation = waiting.pop()
        if operation is not None and operation not in seen:
            seen.add(operation)
            sources = [source for source, _ in operation.next_functions]
            found.update(sources)
            waiting += sources
    return found


def make(spec: NetworkSpec) -> nn.Module:
    """What the factory of a configuration returns; raises OwnModelError with the reason."""
    module_name, _, name = str(spec.factory).partition(":")
    if not {"", os.getcwd()} & set(sys.path):  # noqa: PTH109  # as sys.path has it
        sys.path.append(os.getcwd())  # noqa: PTH109
    try:
        factory: Any = import_module(module_name)
        for part in name.split("."):
            factory = getattr(factory, part)
    except AttributeError as error:
        if module_name in sys.modules:
            raise OwnModelError(f"factory {spec.factory}: {module_name} has no {name!r}; mend its spelling") from None
        raise OwnModelError(f"factory {spec.factory}: its file fails: {error}") from error
    except (ImportError, RuntimeError) as error:  # the second: a torchvision that was built for another torch
        raise OwnModelError(f"factory {spec.factory}: {error}; install its package, or add its file here") from error
    except Exception as error:
        raise OwnModelError(f"factory {spec.factory}: its file fails: {type(error).__name__}: {error}") from error
    try:
        module = factory(**spec.options)
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        raise OwnModelError(f"factory {spec.factory} fails with options {spec.options}: {what}") from error
    if not isinstance(module, nn.Module):
        raise OwnModelError(f"factory {spec.factory} returns a {type(module).__name__}, not a torch.nn.Module")
    return module


def build_own(
    spec: NetworkSpec, weights: str | None, in_channels: int, image_size: int, num_classes: int, seed: int = 0
) -> OwnNetwork:
    """A network of one's own in training mode, on the CPU, with the weights of a file, if one is named.

    Raises OwnModelError as :class:`OwnNetwork` and :func:`load_own`.
    """
    network = build(spec, in_channels=in_channels, image_size=image_size, num_classes=num_classes, seed=seed)
    assert isinstance(network, OwnNetwork)
    if weights:
        load_own(network, Path(weights).expanduser())
    return network


@cache
def count(spec: str, path: str | None, channels: int, side: int) -> tuple[float, int, int]:
    """Multiply-adds of an image's pass up to a submodule, its dimensions, and the network's parameters.

    Nothing is computed: the network is on torch's ``meta`` device.

    Args:
        spec: the network, JSON.
        path: of the submodule; None: through the whole network.
        channels: of an image.
        side: of an image, in pixels.

    Raises:
        OwnModelError: its factory or its pass needs more than shapes.
    """
    try:
        with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counted:
            module = make(NetworkSpec.model_validate_json(spec)).eval()
            wanted = {path: module.get_submodule(path)} if path else {}
            found, result = outputs(module, wanted, torch.empty(1, channels, side, side), whole=path is None)
    except Exception as error:
        raise OwnModelError(f"a network of one's own can't be counted: {error}") from error
    shown: Tensor = found[path] if path else result
    return counted.get_total_flops() / 2, shown.numel(), sum(parameter.numel() for parameter in module.parameters())


def load_own(network: OwnNetwork, path: Path) -> None:
    """Load a file of weights, whose names may have a common prefix (`PREFIXES`), into a network of one's own.

    Raises:
        OwnModelError: no such file, no tensors by name, or those of another network.
    """
    try:
        state = load_others(path)
    except (FileNotFoundError, ValueError) as error:
        raise OwnModelError(str(error)) from error
    own = network.module.state_dict()
    for prefix in PREFIXES:
        if state.keys() - own.keys() and all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    masks = {name for name, _ in network.module.named_buffers()}  # which may hold -inf
    for name, value in state.items():
        if value.is_floating_point() and not (value.isnan().logical_not() if name in masks else value.isfinite()).all():
            raise OwnModelError(f"{path}: {name} holds NaN or infinite values")
    held = {own[name].data_ptr(): value for name, value in state.items() if name in own}
    tied = {name: held[value.data_ptr()] for name, value in own.items() if value.data_ptr() in held}
    try:
        network.module.load_state_dict(tied | state)  # some files hold tied weights once
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:400]
        raise OwnModelError(f"{path} does not fit {network.spec.factory}: {reason}") from error
