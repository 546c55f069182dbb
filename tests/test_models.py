"""The networks: sizes, names of layers, what is computed, folding, files."""

import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ask.config.training import NetworkSpec
from ask.models.networks import (
    BLOCKS,
    STRIP,
    WIDE,
    BasicBlock,
    Convolution,
    Network,
    build,
    fold_batchnorm,
    load_network,
    load_weights,
    refold,
    save_weights,
)

NARROW = {"vgg16": 1 / 16, "resnet18": 1 / 8}


def narrow(name: str, *, in_channels: int = 3, image_size: int = 32, seed: int = 0) -> Network:
    spec = NetworkSpec(name=name, width=NARROW[name])
    return build(spec, in_channels=in_channels, image_size=image_size, num_classes=10, seed=seed)


def lived_in(network: Network) -> Network:
    """A network whose batch norm is no longer the identity, nor its biases zero."""
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                tensor.data.uniform_(0.5, 2, generator=generator)
            for tensor in (module.bias, module.running_mean):
                tensor.data.uniform_(-0.5, 0.5, generator=generator)
        elif isinstance(module, nn.Conv2d) and module.bias is not None:
            module.bias.data.uniform_(-0.5, 0.5, generator=generator)
    return network.eval()


def images(count: int = 4, channels: int = 3, side: int = 32) -> Tensor:
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(
    ("name", "side", "parameters", "dimensions"),
    [
        ("vgg16", 32, 15_253_578, [16384, 8192, 4096, 2048, 512]),
        ("resnet18", 128, 11_181_642, [65536, 65536, 32768, 16384, 8192]),
    ],
)
def test_full_width_networks_have_the_papers_sizes(
    name: str, side: int, parameters: int, dimensions: list[int]
) -> None:
    network = build(NetworkSpec(name=name), in_channels=3, image_size=side, num_classes=10).eval()
    assert sum(p.numel() for p in network.parameters()) == parameters
    with torch.inference_mode():
        features = network.features(images(1, side=side), BLOCKS)
    assert [features[layer].shape for layer in BLOCKS] == [(1, d) for d in dimensions]


def test_vgg16_has_the_published_plan() -> None:
    network = build(NetworkSpec(name="vgg16"), in_channels=3, image_size=32, num_classes=10)
    convolutions = [[m.out_channels for m in block if isinstance(m, nn.Conv2d)] for block in network.blocks.values()]
    assert convolutions == [[64] * 2, [128] * 2, [256] * 3, [512] * 3, [512] * 3]
    assert [m.p for m in network.head if isinstance(m, nn.Dropout)] == [0.5, 0.5]
    assert [m.out_features for m in network.head if isinstance(m, nn.Linear)] == [512, 512, 10]


@pytest.mark.parametrize("name", NARROW)
@pytest.mark.parametrize("deepest", BLOCKS)
def test_features_compute_no_block_beyond_the_deepest(name: str, deepest: str) -> None:
    network = narrow(name).eval()
    ran: list[str] = []
    for block, module in network.blocks.items():
        module.register_forward_hook(lambda *_, block=block: ran.append(block))
    network.head.register_forward_hook(lambda *_: ran.append("head"))
    features = network.features(images(), ["conv1", deepest])
    assert ran == list(BLOCKS[: BLOCKS.index(deepest) + 1])
    assert list(features) == list(dict.fromkeys(["conv1", deepest]))


@pytest.mark.parametrize("name", NARROW)
def test_features_are_the_flattened_blocks_and_the_head_reads_the_last(name: str) -> None:
    network = lived_in(narrow(name))
    x = images()
    logits, features = network.forward_with_features(x, ("conv2", "conv5"))
    torch.testing.assert_close(logits, network(x), rtol=0, atol=0)
    torch.testing.assert_close(features, network.features(x, ("conv2", "conv5")), rtol=0, atol=0)
    torch.testing.assert_close(features["conv2"], network.blocks["conv2"](network.blocks["conv1"](x)).flatten(1))
    # At 32x32 both networks end in one pixel.
    torch.testing.assert_close(network.head(features["conv5"][:, :, None, None]), logits)


def test_flattening_does_not_depend_on_the_memory_format() -> None:
    network = lived_in(narrow("vgg16"))
    expected = network.features(images(), BLOCKS)
    actual = network.to(memory_format=torch.channels_last).features(
        images().contiguous(memory_format=torch.channels_last), BLOCKS
    )
    torch.testing.assert_close(actual, expected)


def test_input_is_the_identity_feature_and_an_unknown_layer_is_refused() -> None:
    network = narrow("vgg16")
    x = images()
    assert torch.equal(network.features(x, ("input",))["input"], x.flatten(1))
    with pytest.raises(ValueError, match=r"unknown layer 'conv6'; choose from input, conv1"):
        network.features(x, ("conv6",))


def test_resnet18_equals_torchvisions() -> None:
    from torchvision.models import resnet18

    ours = lived_in(build(NetworkSpec(name="resnet18"), in_channels=3, image_size=64, num_classes=10))
    theirs = resnet18(num_classes=10).eval()
    parts = {"conv1.0": "conv1", "conv1.1": "bn1"}
    for stage in range(1, 5):
        for block in range(2):
            ours_at, theirs_at = f"conv{stage + 1}.{block}", f"layer{stage}.{block}"
            names = ("conv1", "bn1", "", "conv2", "bn2")
            parts |= {f"{ours_at}.residual.{i}": f"{theirs_at}.{name}" for i, name in enumerate(names) if name}
            parts |= {f"{ours_at}.shortcut.{i}": f"{theirs_at}.downsample.{i}" for i in range(2)}
    state = {}
    for key, tensor in ours.state_dict().items():
        module, _, leaf = key.removeprefix("blocks.").rpartition(".")
        state[f"{'fc' if module == 'head.2' else parts[module]}.{leaf}"] = tensor
    theirs.load_state_dict(state)  # strict: every name of theirs is met, and none is left over
    x = images(2, side=64)
    with torch.inference_mode():
        torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=0)
        stem = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x))))
        torch.testing.assert_close(
            ours.features(x, ("conv4",))["conv4"],
            theirs.layer3(theirs.layer2(theirs.layer1(stem))).flatten(1),
            rtol=0,
            atol=0,
        )


@pytest.mark.parametrize(("name", "sides"), [("vgg16", (32, 64)), ("resnet18", (16, 28, 32))])
@pytest.mark.parametrize("channels", [1, 3])
def test_other_sizes_widths_and_channels(name: str, sides: tuple[int, ...], channels: int) -> None:
    for side in sides:
        spec = NetworkSpec(name=name, width=0.125)
        network = build(spec, in_channels=channels, image_size=side, num_classes=7)
        assert network(images(4, channels, side)).shape == (4, 7)


@pytest.mark.parametrize(("name", "side"), [("vgg16", 28), ("vgg16", 0), ("resnet18", 8)])
def test_impossible_sizes_are_refused(name: str, side: int) -> None:
    with pytest.raises(ValueError, match=rf"{name} needs images .* not {side}: enlarge or pad"):
        build(NetworkSpec(name=name), in_channels=3, image_size=side, num_classes=10)


def test_dropout_rate_is_a_setting() -> None:
    network = build(NetworkSpec(name="vgg16", width=0.1, dropout=0), in_channels=1, image_size=32, num_classes=3)
    assert {m.p for m in network.modules() if isinstance(m, nn.Dropout)} == {0.0}


@pytest.mark.parametrize("name", NARROW)
def test_initialisation_depends_on_the_seed_alone_and_leaves_the_callers_random_state(name: str) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = narrow(name).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    second = narrow(name).state_dict()
    other = narrow(name, seed=1).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["blocks.conv1.0.weight"], other["blocks.conv1.0.weight"])


def test_convolutions_start_he_normal_by_fan_out() -> None:
    network = build(NetworkSpec(name="vgg16"), in_channels=3, image_size=32, num_classes=10)
    convolution = network.blocks["conv3"][0]
    assert convolution.weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 256)), rel=0.02)
    assert not convolution.bias.any()


@pytest.mark.parametrize("batch", [2 * STRIP - 1, 2 * STRIP, 2 * STRIP + 1])
@pytest.mark.parametrize("side", [1, 2, 4, 5])
@pytest.mark.parametrize("bias", [True, False])
def test_small_images_side_by_side_are_convolved_one_by_one(batch: int, side: int, bias: bool) -> None:
    convolution = Convolution(256, 512, bias=bias).double()
    assert convolution.weight.numel() >= WIDE
    x = images(batch, 256, side).double().contiguous(memory_format=torch.channels_last).requires_grad_()
    found = convolution(x)
    wanted = torch.nn.functional.conv2d(x, convolution.weight, convolution.bias, padding=1)
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, wanted)
    inputs = [x, *convolution.parameters()]
    ascent = torch.linspace(-1, 1, found.numel(), dtype=torch.float64).view_as(found)
    torch.testing.assert_close(torch.autograd.grad(found, inputs, ascent), torch.autograd.grad(wanted, inputs, ascent))


@pytest.mark.parametrize("name", NARROW)
def test_folded_network_equals_the_evaluation_mode(name: str) -> None:
    network = lived_in(narrow(name))
    folded = fold_batchnorm(network.train())
    assert network.training
    assert not folded.training
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    assert not any(p.requires_grad for p in folded.parameters())
    assert all(p.requires_grad for p in network.parameters())
    network.eval()
    x = images()
    torch.testing.assert_close(folded(x), network(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(folded.features(x, BLOCKS), network.features(x, BLOCKS), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NARROW)
def test_refolding_follows_the_network(name: str) -> None:
    network = narrow(name)
    folded = fold_batchnorm(network)
    lived_in(network)
    for parameter in network.parameters():
        parameter.data.mul_(1.01)
    refold(folded, network)
    again = fold_batchnorm(network)
    for key, tensor in again.state_dict().items():
        assert torch.equal(folded.state_dict()[key], tensor), key


@pytest.mark.parametrize("name", NARROW)
def test_weights_survive_the_disk(name: str, tmp_path: Path) -> None:
    network = lived_in(narrow(name, in_channels=1)).to(memory_format=torch.channels_last)
    save_weights(tmp_path / "last.safetensors", network, {"data_hash": "abc"})
    state, metadata = load_weights(tmp_path / "last.safetensors")
    assert metadata["data_hash"] == "abc"
    assert json.loads(metadata["config"])["network"]["name"] == name
    again = load_network(tmp_path, "last")
    assert not again.training
    assert all(torch.equal(tensor, state[key]) for key, tensor in again.state_dict().items())
    x = images(channels=1)
    torch.testing.assert_close(again(x), network(x), rtol=1e-5, atol=1e-6)
    assert [p.name for p in tmp_path.iterdir()] == ["last.safetensors"]


def test_equal_weights_make_equal_files(tmp_path: Path) -> None:
    metadata = {str(i): "x" for i in range(20)}
    for name in ("a", "b"):
        save_weights(tmp_path / name, narrow("vgg16"), metadata)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_wrong_files_are_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file .*weights.safetensors: run the step"):
        load_network(tmp_path)
    path = tmp_path / "weights.safetensors"
    path.write_bytes(np.random.default_rng(0).bytes(100))
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        load_network(tmp_path)
    save_weights(path, narrow("vgg16"), {})
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        load_network(tmp_path)
    save_weights(path, narrow("vgg16"), {})
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match="other content than was written"):
        load_network(tmp_path)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="does not say what network it holds"):
        load_network(tmp_path)
    network = narrow("vgg16")
    network.num_classes = 11
    save_weights(path, network, {})
    with pytest.raises(ValueError, match="does not fit the network that it names"):
        load_network(tmp_path)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights.safetensors"
    save_weights(path, narrow("vgg16"), {"run": "old"})

    def fail(tensors: object, file: Path, metadata: object) -> None:
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("ask.tensorfile.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        save_weights(path, narrow("vgg16"), {"run": "new"})
    assert load_weights(path)[1]["run"] == "old"


@pytest.mark.parametrize("channels", [3, 4, 7, 8])
def test_gradients_of_shortcuts_with_few_channels(channels: int) -> None:
    """Where a processor has AVX2 and nothing wider, oneDNN's are garbage for fewer than 8."""
    shortcut = BasicBlock(channels, 64, 2).shortcut[0].to(memory_format=torch.channels_last)
    exact = copy.deepcopy(shortcut).double()
    x = torch.randn((64, channels, 8, 8), generator=torch.Generator().manual_seed(0))
    exact(x.double()).square().sum().backward()
    for _ in range(8):
        for size in range(8, 17):
            torch.full((2**size,), 1e3)  # what freed memory holds is not to be seen
        shortcut.weight.grad = None
        shortcut(x.contiguous(memory_format=torch.channels_last)).square().sum().backward()
        error = (shortcut.weight.grad.double() - exact.weight.grad).abs().max() / exact.weight.grad.abs().max()
        assert error < 1e-5
