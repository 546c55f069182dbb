"""Feature functions by forward hooks: the right activations, no more work than needed, and nothing left behind."""

from functools import partial

import pytest
import torch
from torch import nn

from ask.models.hooks import evaluating, hook_features, module_of


@pytest.fixture
def network():
    """A convolution followed in place by a ReLU, twice, and a head that is never needed."""
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Conv2d(c, 4, 3), nn.ReLU(inplace=True)) for c in (3, 4)]
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(4 * 16, 5)).eval()


def images(count=6):
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def hooks_of(module):
    return [hook for m in module.modules() for hook in m._forward_hooks.values()]


def test_features_are_the_flattened_outputs_before_anything_works_on_them_in_place(network):
    features = hook_features(network, {"raw": "0.0", "first": "0", "second": "1"})
    found = features(images(), ("second", "raw", "first"))
    raw = network[0][0](images())
    assert list(found) == ["second", "raw", "first"]
    assert torch.equal(found["raw"], raw.flatten(1))
    assert found["raw"].min() < 0
    assert torch.equal(found["first"], raw.relu().flatten(1))
    assert torch.equal(found["second"], network[1](raw.relu()).flatten(1))


def test_layers_without_names_go_by_their_paths(network):
    for layers in (["0.0"], "0.0"):
        found = hook_features(network, layers)(images(), ["0.0"])
        assert torch.equal(found["0.0"], network[0][0](images()).flatten(1))


def test_two_names_may_share_a_submodule(network):
    found = hook_features(network, {"a": "0", "b": "0"})(images(), ("a", "b"))
    assert torch.equal(found["a"], found["b"])


def test_the_forward_pass_ends_at_the_deepest_layer_asked_for(network):
    ran = []
    for name, module in network.named_modules():
        module.register_forward_pre_hook(lambda *_, name=name: ran.append(name))
    features = hook_features(network, ["0", "1.0"])
    features(images(), ["0"])
    assert ran == ["", "0", "0.0", "0.1"]
    ran.clear()
    features(images(), ["1.0", "0"])
    assert ran == ["", "0", "0.0", "0.1", "1", "1.0"]


def test_gradients_reach_the_images(network):
    features = hook_features(network, ["0.0", "1"])
    x = images().requires_grad_()
    found = features(x, ["0.0", "1"])
    (gradient,) = torch.autograd.grad(found["0.0"].square().sum() + found["1"].sum(), x)
    y = images().requires_grad_()
    raw = network[0][0](y)
    (expected,) = torch.autograd.grad(raw.square().sum() + network[1](raw.relu()).sum(), y)
    assert expected.abs().max() > 0
    torch.testing.assert_close(gradient, expected)


def test_no_hook_stays_behind_even_after_an_error(network):
    features = hook_features(network, ["0", "1"])
    assert not hooks_of(network)
    features(images(), ["0"])
    assert not hooks_of(network)
    with pytest.raises(RuntimeError):
        features(torch.rand(2, 7, 8, 8), ["1"])
    assert not hooks_of(network)
    assert network(images()).shape == (6, 5)


def test_equals_torchvisions_resnet():
    from torchvision.models import resnet18

    torch.manual_seed(0)
    network = resnet18(weights=None).eval()
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        found = hook_features(network, {"stem": "maxpool", "deep": "layer2"})(x, ("stem", "deep"))
        stem = network.maxpool(network.relu(network.bn1(network.conv1(x))))
        torch.testing.assert_close(found["stem"], stem.flatten(1))
        torch.testing.assert_close(found["deep"], network.layer2(network.layer1(stem)).flatten(1))


def test_of_several_runs_of_a_submodule_the_first_counts():
    twice = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    twice.forward = lambda x: twice[1](twice[0](twice[0](x)))
    x = torch.rand(5, 4)
    found = hook_features(twice, ["0", "1"])(x, ["0", "1"])
    assert torch.equal(found["0"], twice[0](x))
    assert torch.equal(found["1"], twice(x))


class Odd(nn.Module):
    """Has a submodule that it never runs, one that returns a tuple, and one that returns a number."""

    def __init__(self):
        super().__init__()
        self.idle, self.pair, self.total, self.tokens = nn.Identity(), nn.LSTM(8, 2), nn.L1Loss(), nn.Identity()

    def forward(self, x):
        self.tokens(x.flatten(2).transpose(0, 2))
        self.pair(x[:, 0])
        return self.total(x, x)


@pytest.mark.parametrize(
    ("layers", "asked", "message"),
    [
        ([], [], "layers is empty"),
        (["layer3"], [], "Odd has no submodule 'layer3'; it consists of: idle, pair, total, tokens"),
        (["idle"], ["pair"], "unknown layer 'pair'; choose from idle"),
        (["idle"], ["idle"], "does not run submodule 'idle'"),
        (["pair"], ["pair"], "'pair' returns a tuple, not a tensor"),
        (["total"], ["total"], r"'total' returns one of shape \(\), not a tensor"),
        (["tokens"], ["tokens"], r"'tokens' returns one of shape \(64, 3, 6\), not a tensor \(batch, ...\)"),
    ],
)
def test_mistakes_are_clear_errors(layers, asked, message):
    module = Odd()
    with pytest.raises(ValueError, match=message):
        hook_features(module, layers)(images(), asked)
    assert not hooks_of(module)


def test_batch_norm_without_statistics_is_told_of_once(recwarn):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.InstanceNorm2d(4))
    features = hook_features(network, ["1"])
    with pytest.warns(RuntimeWarning, match="features depend on the images beside it") as told:
        features(images(), ["1"])
    assert told[0].filename == __file__
    features(images(), ["1"])
    network[1] = nn.BatchNorm2d(4)
    hook_features(nn.Sequential(*network), ["1"])(images(), ["1"])
    assert not recwarn


def test_a_partial_function_of_a_network_is_evaluated_as_the_network_is():
    class Net(nn.Sequential):
        def features(self, images, layers, scale=1.0):
            return {layer: scale * self(images).flatten(1) for layer in layers}

    network = Net(nn.Conv2d(3, 4, 3), nn.Dropout(0.5)).train()
    features = partial(network.features, scale=2.0)
    assert module_of(features) is network
    with evaluating(features):
        assert torch.equal(features(images(), ["a"])["a"], features(images(), ["a"])["a"])
    assert network.training
