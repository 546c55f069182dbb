"""The two networks of the paper as five named convolutional blocks and a head, and their files.

``conv1`` ... ``conv5`` are the layers that attacks and DkNN read (paper, App. D-b): the output of VGG16's i-th block
after its max-pool, and of ResNet18's stem and four stages. Inputs are images in [0,1]; nothing is normalised, as in
the released code.
"""

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ask.config.base import LAYERS
from ask.config.training import OWN_HOME, NetworkSpec
from ask.precision import autocast
from ask.seeds import derive_seed
from ask.tensorfile import load_tensors, save_tensors

BLOCKS = LAYERS[1:]
"""The convolutional blocks in the order of computation."""

VGG16_PLAN = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
RESNET18_STAGES = (64, 128, 256, 512)
STRIP, WIDE = 16, 2**20
"""Images that a convolution of small ones sees side by side, and its weights from which on that is faster."""


class Network(nn.Module):
    """Five blocks and a head; :func:`build` makes one, or one of one's own (:class:`ask.models.own.OwnNetwork`).

    Outputs are float32, whatever its passes compute in (:func:`ask.precision.network_passes`).
    """

    memory_format = torch.channels_last
    """In which it computes fastest."""

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        head: nn.Module,
        *,
        spec: NetworkSpec,
        in_channels: int,
        image_size: int,
        num_classes: int,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleDict(dict(zip(BLOCKS, blocks, strict=True)))
        self.head, self.spec = head, spec
        self.in_channels, self.image_size, self.num_classes = in_channels, image_size, num_classes

    def forward(self, x: Tensor) -> Tensor:
        """Logits, shape (batch, classes), of images (batch, channels, side, side) in [0,1]."""
        return self.forward_with_features(x, ())[0]

    def features(self, x: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        """Features at ``layers``, each (batch, dimensions), flattened in (channel, row, column) order.

        No block beyond the deepest layer asked for is computed. ``input`` is the images themselves.
        Raises ValueError for a name that is not in ``LAYERS``.
        """
        with autocast(x.device):
            found = self._walk(x, layers)[1]
        return {layer: _full(features) for layer, features in found.items()}

    def forward_with_features(self, x: Tensor, layers: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits and the features at ``layers`` from one pass; shapes as in :meth:`forward` and :meth:`features`."""
        with autocast(x.device):
            x, found = self._walk(x, layers, len(BLOCKS))
            logits: Tensor = self.head(x)
        return _full(logits), {layer: _full(features) for layer, features in found.items()}

    def _walk(self, x: Tensor, layers: Sequence[str], depth: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
        """The output of the deepest block asked for, or beyond it of the first ``depth`` blocks; and the features."""
        unknown = [layer for layer in layers if layer not in LAYERS]
        if unknown:
            raise ValueError(f"unknown layer {unknown[0]!r}; choose from {', '.join(LAYERS)}")
        found = {"input": x.flatten(1)} if "input" in layers else {}
        for name in BLOCKS[: max([depth, *(LAYERS.index(layer) for layer in layers)])]:
            x = self.blocks[name](x)
            if name in layers:
                found[name] = x.flatten(1)
        return x, {layer: found[layer] for layer in layers}

    @property
    def first(self) -> nn.Module:
        """What every pass runs once, whatever is asked of it."""
        return self.blocks["conv1"]

    def pairs(self) -> list[tuple[str, str]]:
        """Names of each convolution that batch norm follows directly, and that batch norm, which can be folded."""
        return [
            (f"{path}.{name}", f"{path}.{following}")
            for path, sequence in self.named_modules()
            if isinstance(sequence, nn.Sequential)
            for (name, module), (following, norm) in pairwise(sequence.named_children())
            if isinstance(module, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
        ]

    @property
    def config(self) -> dict[str, Any]:
        """All that :func:`build` needs to make this network again, ready for JSON."""
        return {
            "network": self.spec.model_dump(),
            "in_channels": self.in_channels,
            "image_size": self.image_size,
            "num_classes": self.num_classes,
        }


def _full(output: Tensor) -> Tensor:
    return output.float() if output.dtype == torch.bfloat16 else output


class Convolution(nn.Conv2d):
    """A 3 x 3 convolution that keeps the side; on a CPU, where it is wide, of small images laid side by side.

    Kernels of torch's convolutions go row by row, and reach a fraction of a product's speed with rows of 2 or 4 pixels.
    Strips of 16 images with a column of zeros between them take a quarter to nine tenths of that time.
    """

    def __init__(self, c_in: int, c_out: int, *, bias: bool = True) -> None:
        super().__init__(c_in, c_out, 3, padding=1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Activations (batch, c_out, side, side) of (batch, c_in, side, side)."""
        batch, side = len(x), x.shape[-1]
        if x.device.type != "cpu" or not 1 < side <= 4 or batch < 2 * STRIP or self.weight.numel() < WIDE:
            return super().forward(x)
        images = F.pad(x.permute(0, 2, 3, 1), (0, 0, 0, 1, 0, 0, 0, -batch % STRIP))
        strips = images.unflatten(0, (-1, STRIP)).transpose(1, 2).flatten(2, 3)
        found = super().forward(strips.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        apart: Tensor = found.unflatten(2, (STRIP, side + 1))[:, :, :, :side].transpose(1, 2).flatten(0, 1)
        return apart[:batch].permute(0, 3, 1, 2)


class Pointwise(nn.Conv2d):
    """A 1 x 1 convolution of every ``stride``-th pixel; of few channels, of these pixels as an image of their own.

    On processors with AVX2 and nothing wider, torch 2.13 (oneDNN 3.12) garbles weight gradients, and memory beside
    them, of such strides over 2 to 7 channels.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Activations (batch, c_out, side / stride, side / stride) of (batch, c_in, side, side)."""
        if self.in_channels >= 8:
            return super().forward(x)
        return F.conv2d(x[..., :: self.stride[0], :: self.stride[1]], self.weight, self.bias)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut (He et al., 2016); Sequentials, so that folding sees conv-BN pairs."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(c_in, c_out, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(c_out),
            nn.ReLU(inplace=True),
            Convolution(c_out, c_out, bias=False),
            nn.BatchNorm2d(c_out),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or c_in != c_out:
            self.shortcut = nn.Sequential(Pointwise(c_in, c_out, 1, stride=stride, bias=False), nn.BatchNorm2d(c_out))

    def forward(self, x: Tensor) -> Tensor:
        """Activations (batch, c_out, side / stride, side / stride)."""
        return torch.relu_(self.residual(x) + self.shortcut(x))


def build(network: NetworkSpec, *, in_channels: int, image_size: int, num_classes: int, seed: int = 0) -> Network:
    """A freshly initialised network in training mode, on the CPU.

    Convolutions are drawn He-normal by fan-out (variance 2 / (k^2 c_out)) with zero bias: it keeps the size of
    gradients through ReLU layers, and is what torchvision's ResNet and the VGG16-BN in common use on CIFAR-10 do.
    Linear layers keep torch's default (uniform in +-1/sqrt(fan_in)), batch norm starts as the identity. All draws come
    from ``seed``; the caller's random state is neither read nor changed.

    ``width`` scales every hidden channel count, the head's included (VGG16: 64, ..., 512 and 512-512 in the head).

    Raises:
        ValueError: VGG16 halves the image five times, so its side must be a multiple of 32; ResNet18 needs 16 or more.
        ask.models.own.OwnModelError: a network of one's own can't be made, or is not what the configuration says.
    """
    shape: dict[str, Any] = {"in_channels": in_channels, "image_size": image_size, "num_classes": num_classes}
    if network.factory:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            own: Network = import_module(OWN_HOME).OwnNetwork(network, **shape)
            return own
    if network.name == "vgg16" and (image_size < 32 or image_size % 32):
        raise ValueError(
            f"vgg16 needs images with a side that is a multiple of 32, not {image_size}: enlarge or pad them"
        )
    if network.name == "resnet18" and image_size < 16:
        raise ValueError(f"resnet18 needs images with a side of at least 16, not {image_size}: enlarge or pad them")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if network.name == "vgg16":
            blocks, head = _vgg16(network, in_channels, image_size, num_classes)
        else:
            blocks, head = _resnet18(network, in_channels, num_classes)
        for module in (m for block in blocks for m in block.modules()):
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
    return Network(blocks, head, spec=network, **shape)


def _scaled(channels: int, width: float) -> int:
    return max(1, round(channels * width))


def _vgg16(spec: NetworkSpec, in_channels: int, image_size: int, num_classes: int) -> tuple[list[nn.Module], nn.Module]:
    blocks: list[nn.Module] = []
    c_in = in_channels
    for plan in VGG16_PLAN:
        layers: list[nn.Module] = []
        for channels in plan:
            c_out = _scaled(channels, spec.width)
            layers += [Convolution(c_in, c_out), nn.BatchNorm2d(c_out), nn.ReLU(inplace=True)]
            c_in = c_out
        blocks.append(nn.Sequential(*layers, nn.MaxPool2d(2)))
    hidden = _scaled(512, spec.width)
    head = nn.Sequential(
        nn.Flatten(),
        nn.Dropout(spec.dropout),
        nn.Linear(c_in * (image_size // 32) ** 2, hidden),
        nn.ReLU(inplace=True),
        nn.Dropout(spec.dropout),
        nn.Linear(hidden, hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, num_classes),
    )
    return blocks, head


def _resnet18(spec: NetworkSpec, in_channels: int, num_classes: int) -> tuple[list[nn.Module], nn.Module]:
    stages = [_scaled(channels, spec.width) for channels in RESNET18_STAGES]
    stem = nn.Sequential(
        nn.Conv2d(in_channels, stages[0], 7, stride=2, padding=3, bias=False),
        nn.BatchNorm2d(stages[0]),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=2, padding=1),
    )
    blocks: list[nn.Module] = [stem]
    c_in = stages[0]
    for index, c_out in enumerate(stages):
        blocks.append(nn.Sequential(BasicBlock(c_in, c_out, 1 if index == 0 else 2), BasicBlock(c_out, c_out, 1)))
        c_in = c_out
    return blocks, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c_in, num_classes))


def fold_batchnorm(network: Network) -> Network:
    """An evaluation-mode copy with batch norm folded into the convolutions, for attacks and features.

    Equal to ``network.eval()`` up to rounding, and about 1.7 times as fast on a narrow network. Its parameters take no
    gradient, so that an input gradient costs two forward passes, not three. The copy keeps its own weights until
    :func:`refold` renews them; it must not be trained or saved.
    """
    folded = copy.deepcopy(network).eval()
    for name, convolution, following, norm in _folding(network):
        if convolution.bias is None:
            folded.get_submodule(name).bias = nn.Parameter(torch.zeros_like(norm.bias))
        folded.set_submodule(following, nn.Identity())
    refold(folded, network)
    return folded.requires_grad_(False)


@torch.no_grad()
def refold(folded: Network, network: Network) -> None:
    """Renew a copy that :func:`fold_batchnorm` made of ``network``, at a small part of the cost of another copy."""
    targets, sources = ({**dict(n.named_parameters()), **dict(n.named_buffers())} for n in (folded, network))
    for name, convolution, _, norm in _folding(network):
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        mean = norm.running_mean if convolution.bias is None else norm.running_mean - convolution.bias
        targets.pop(f"{name}.weight").copy_(convolution.weight * scale.view(-1, 1, 1, 1))
        targets.pop(f"{name}.bias").copy_(norm.bias - mean * scale)
    for name, target in targets.items():
        target.copy_(sources[name])


def _folding(network: Network) -> Iterator[tuple[str, nn.Conv2d, str, nn.BatchNorm2d]]:
    for name, following in network.pairs():
        convolution, norm = network.get_submodule(name), network.get_submodule(following)
        assert isinstance(convolution, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        yield name, convolution, following, norm


def save_weights(path: Path, network: Network, metadata: dict[str, str], dtype: torch.dtype = torch.float32) -> None:
    """Write a network's weights with ``metadata`` and its own configuration (key ``config``), atomically.

    Weights and statistics are rounded to ``dtype``; whole numbers stay as they are.
    """
    state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in network.state_dict().items()}
    save_tensors(path, state, {**metadata, "config": json.dumps(network.config, sort_keys=True)})


def load_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Weights by name, on the CPU, and the metadata of a file that :func:`save_weights` wrote.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a safetensors file, or one that names no network.
    """
    state, metadata = load_tensors(path)
    if "config" not in metadata:
        raise ValueError(f"{path} does not say what network it holds: it was not written by ask's training step")
    return state, metadata


def load_network(folder: Path, which: str = "weights", layers: Mapping[str, str] | None = None) -> Network:
    """The network of ``<folder>/<which>.safetensors``, rebuilt from the file alone, in evaluation mode on the CPU.

    ``layers`` are names for those of a network of one's own, in place of what it was saved with.

    Raises FileNotFoundError, or ValueError for a file that :func:`save_weights` did not write.
    """
    path = folder / f"{which}.safetensors"
    state, metadata = load_weights(path)
    config = json.loads(metadata["config"])
    spec = config.pop("network") | ({"layers": layers} if layers else {})
    seed = derive_seed(int(metadata.get("seed", 0)), "network")  # of what is no parameter of a network of one's own
    network = build(NetworkSpec(**spec), **config, seed=seed)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit the network that it names: {error}") from error
    return network.eval()
