"""Networks of one's own in the place of ours: features, folding, files, training, precision, attacks."""

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from safetensors.torch import save_file, save_model
from torch import Tensor, nn
from training_jobs import CPU, Interrupted, history, interrupt, load_images, make_job, run, same, weights

from ask.attacks import PGD, PGDConfig
from ask.attacks.auto import AutoAttack
from ask.config.attacks import AutoAttackConfig
from ask.config.training import ModelSpec, NetworkSpec, TrainJob
from ask.errors import AskError
from ask.models.networks import build, fold_batchnorm, load_network, refold, save_weights
from ask.models.own import OwnModelError, OwnNetwork, build_own
from ask.plan.cost import Shape, reach
from ask.plan.provenance import closure
from ask.plan.tasks import _where
from ask.precision import network_passes
from ask.seeds import derive_seed
from ask.steps import modules_of
from ask.training.record import Checkpoint
from ask.training.run import Run


class Net(nn.Module):
    """Convolution and batch norm as attributes, not in a Sequential; ``kind`` says what is odd about it."""

    def __init__(self, kind: str = "", classes: int = 10, channels: int = 1) -> None:
        super().__init__()
        self.kind = kind
        self.conv1, self.bn1 = nn.Conv2d(channels, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8, affine=kind != "plain norm")
        self.late = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.2)
        self.fc = nn.Linear(8 * 16, classes)
        if kind == "drawn":
            self.register_buffer("shift", torch.randn(classes), persistent=False)

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.bn1(self.conv1(x)))
        y = self.conv2(x)
        x = self.bn2(y)
        if self.kind == "read twice":
            x = x + y
        if self.kind == "run twice":
            x = x + F.interpolate(self.conv2(x), scale_factor=2)
        if self.kind == "cut":
            x = x.detach()
        if self.kind == "asks":
            x = x / self.bn1.num_features
        x = F.adaptive_avg_pool2d(F.relu(self.late(F.relu(x))), 4)
        x = x.view(len(x), -1) if self.kind == "view" else x.flatten(1)
        x = self.fc(self.drop(x))
        if self.kind == "batch":
            x = x - x.mean(0)
        if self.kind == "value" and float(x.sum()) > 1e9:
            x = x / 2
        if self.kind == "drawn":
            x = x + self.shift
        return {"logits": x} if self.kind == "mapping" else x


def net(**options: Any) -> nn.Module:
    return Net(**options)


class Tied(nn.Module):
    """Layers share a weight and a batch norm; ``scale`` is constant, or moves in training; a ``mask`` holds -inf."""

    def __init__(self, moves: bool = True, persistent: bool = True) -> None:
        super().__init__()
        self.moves, self.first, self.late, self.last = moves, nn.Linear(1024, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.last.weight, self.bn1 = self.late.weight, nn.BatchNorm1d(16)
        self.again, self.fc = self.bn1, nn.Linear(16, 10)
        self.register_buffer("scale", torch.full((), 0.5), persistent=persistent)
        self.register_buffer("mask", torch.tensor(-torch.inf))

    def forward(self, x: Tensor) -> Tensor:
        x = self.late(self.bn1(self.first(x.flatten(1))).relu())
        if self.training and self.moves:
            self.scale = 0.9 * self.scale + 0.1 * x.detach().abs().mean()
        logits: Tensor = self.fc(self.again(self.last(x.relu() / self.scale)).relu())
        return logits


def wrapped(plain: bool = False) -> nn.Module:
    """Its forward pass is replaced on the instance; ``plain``: and nothing in it folds."""
    module = nn.Sequential(OrderedDict(bn1=nn.Flatten(), late=nn.Linear(1024, 10))) if plain else Net()
    forward = module.forward
    module.forward = lambda x: forward(x).softmax(1)  # type: ignore[method-assign]
    return module


def spec(kind: str = "", layers: dict[str, str] | None = None, **more: Any) -> NetworkSpec:
    return NetworkSpec(
        factory="test_own_networks:net",
        options={"kind": kind} if kind else {},
        layers={"first": "bn1", "conv4": "late"} if layers is None else layers,
        **more,
    )


def made(kind: str = "", layers: dict[str, str] | None = None, seed: int = 0, **more: Any) -> OwnNetwork:
    found = build(spec(kind, layers, **more), in_channels=1, image_size=32, num_classes=10, seed=seed)
    assert isinstance(found, OwnNetwork)
    return found


def lived_in(network: OwnNetwork) -> OwnNetwork:
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                if tensor is not None:
                    tensor.data.uniform_(0.5, 2, generator=generator)
    return network


def images(count: int = 4) -> Tensor:
    return torch.rand(count, 1, 32, 32, generator=torch.Generator().manual_seed(2))


def test_features_and_logits_are_the_modules() -> None:
    network, x = lived_in(made()).eval(), images()
    logits, found = network.forward_with_features(x, ("conv4", "input", "first"))
    module = network.module
    first = module.bn1(module.conv1(x))
    torch.testing.assert_close(logits, module(x))
    assert list(found) == ["conv4", "input", "first"]
    torch.testing.assert_close(found["first"], first.flatten(1))
    torch.testing.assert_close(network.features(x, ("first",))["first"], found["first"])
    with pytest.raises(ValueError, match="unknown layer 'conv3'; choose from input, first, conv4"):
        network.features(x, ("conv3",))


def test_no_submodule_beyond_the_deepest_layer_runs() -> None:
    network, ran = made(), list[str]()
    for name, module in network.module.named_children():
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
    network.features(images(), ("first",))
    assert ran == ["conv1", "bn1"]


def test_features_keep_the_mode_that_training_needs() -> None:
    network = made().train()
    before = network.module.bn1.running_mean.clone()
    network.features(images(), ("first",))
    assert network.module.bn1.training
    assert not torch.equal(network.module.bn1.running_mean, before)


def test_images_are_normalised_where_the_configuration_says_so() -> None:
    plain, other = made(), made(mean=[0.5], std=[0.25])
    x = images()
    torch.testing.assert_close(other.eval()(x), plain.eval()((x - 0.5) / 0.25))
    torch.testing.assert_close(other.features(x, ("input",))["input"], x.flatten(1))
    with pytest.raises(OwnModelError, match="mean has 3 values, but images have 1 channels"):
        made(mean=[0.5] * 3, std=[0.5] * 3)
    with pytest.raises(OwnModelError, match=r"mean \(123\.7,\) is in pixels of 0 to 255, .* divide by 255"):
        made(mean=[123.7], std=[1.0])


FOLDED = [("module.conv1", "module.bn1"), ("module.conv2", "module.bn2")]


@pytest.mark.parametrize(
    ("kind", "layers", "pairs"),
    [
        ("", None, FOLDED),
        ("view", None, FOLDED),
        ("read twice", None, FOLDED[:1]),
        ("run twice", None, FOLDED[:1]),
        ("plain norm", None, FOLDED[:1]),
        ("asks", None, []),
        ("", {"first": "conv1"}, FOLDED[1:]),
    ],
)
def test_what_folds_is_folded_and_nothing_else(
    kind: str, layers: dict[str, str] | None, pairs: list[tuple[str, str]]
) -> None:
    network, x = lived_in(made(kind, layers)), images()
    assert network.pairs() == pairs
    names = tuple(network.spec.layers)
    folded = fold_batchnorm(network.train())
    lived_in(network).module.fc.weight.data.mul_(1.1)
    network.module.late.running_mean.mul_(2)  # of a norm that is not folded
    refold(folded, network)
    torch.testing.assert_close(
        folded.forward_with_features(x, names), network.eval().forward_with_features(x, names), rtol=1e-4, atol=1e-4
    )
    assert sum(isinstance(m, nn.BatchNorm2d) for m in folded.modules()) == 3 - len(pairs)
    assert not any(parameter.requires_grad for parameter in folded.parameters())


def test_a_pass_that_flattens_by_view_gets_its_memory_format() -> None:
    assert made("view").memory_format == torch.contiguous_format
    assert made().memory_format == torch.channels_last
    x = images().contiguous(memory_format=torch.channels_last)
    assert made("view")(x).shape == (4, 10)


@pytest.mark.parametrize("which", ["state", "wrapped", "safetensors"])
def test_weights_are_read_from_usual_files(which: str, tmp_path: Path) -> None:
    other = made(seed=3).module.state_dict()
    path = tmp_path / ("weights.safetensors" if which == "safetensors" else "weights.pt")
    if which == "safetensors":
        save_file({name: tensor.contiguous() for name, tensor in other.items()}, path)
    else:
        wrapped = {"epoch": 1, "model": {"state_dict": {f"module.model.{name}": other[name] for name in other}}}
        torch.save(other if which == "state" else wrapped, path)
    found = build_own(spec(), str(path), 1, 32, 10)
    assert all(torch.equal(tensor, other[name]) for name, tensor in found.module.state_dict().items())


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("executed"),)


def test_nothing_of_a_file_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Evil()}, "evil.pt")
    with pytest.raises(OwnModelError, match=r"evil\.pt is no file of tensors alone"):
        build_own(spec(), "evil.pt", 1, 32, 10)
    assert not Path("executed").exists()


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (
            {"fc.weight": torch.zeros(1)},
            r'does not fit test_own_networks:net: .* Missing key.*: "conv1\.weight"',
        ),
        ({"fc.weight": torch.tensor([1.0, float("nan")])}, r"x\.pt: fc\.weight holds NaN or infinite values"),
        ({"epoch": 3}, "holds no tensors by name"),
        ([1], "holds no tensors by name"),
    ],
)
def test_other_files_are_refused(state: Any, message: str, tmp_path: Path) -> None:
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(OwnModelError, match=message):
        build_own(spec(), str(tmp_path / "x.pt"), 1, 32, 10)
    (tmp_path / "x.safetensors").write_bytes(b"half")
    with pytest.raises(OwnModelError, match="no file of tensors alone"):
        build_own(spec(), str(tmp_path / "x.safetensors"), 1, 32, 10)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (spec("mapping"), "returns a dict, not logits"),
        (spec("cut"), "no gradient leads from its logits and conv4 to the image, which attacks climb: compute in"),
        (spec("cut", layers={"a": "conv1", "b": "fc"}), "no gradient leads from its logits and b to the image"),
        (spec("batch"), "differ from pass to pass, or with the images beside it"),
        (spec(layers={"x": "bn3"}), r"layer x: no submodule 'bn3'; it consists of conv1, bn1"),
        (spec().model_copy(update={"options": {"channels": 3}}), "images of 1x32x32 do not pass"),
        (spec().model_copy(update={"options": {"classes": 3}}), r"returns \(2, 3\) for 2 images"),
        (NetworkSpec(factory="test_own_networks:images"), "returns a Tensor, not a torch.nn.Module"),
        (
            spec().model_copy(update={"factory": "test_own_networks:wrapped"}),
            "a copy of its network runs the original; forward belongs to the class",
        ),
        (
            spec().model_copy(update={"factory": "test_own_networks:wrapped", "options": {"plain": True}}),
            "a copy of its network runs the original; forward belongs to the class",
        ),
        (NetworkSpec(factory="nowhere.at:all"), "No module named 'nowhere'; install its package"),
    ],
)
def test_a_network_that_is_not_what_was_said_is_refused(given: NetworkSpec, message: str) -> None:
    with pytest.raises(OwnModelError, match=message):
        build(given, in_channels=1, image_size=32, num_classes=10)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "give either name"),
        ({"name": "vgg16", "factory": "a:b"}, "give either name"),
        ({"factory": "a:b", "width": 0.5}, "what the factory takes goes into options"),
        ({"name": "vgg16", "layers": {"a": "b"}}, "layers is given, but no factory"),
        ({"factory": "a:b", "layers": {"input": "b"}}, "choose another name"),
        ({"factory": "a:b", "layers": {"a b": "b"}}, "should match pattern"),
        ({"factory": "a.b"}, "should match pattern"),
    ],
)
def test_contradictions_in_a_network_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        NetworkSpec(**given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"base": "external"}, "needs factory"),
        ({"base": "external", "factory": "a:b", "regulariser": "ask"}, "needs a network to train"),
        ({"base": "external", "factory": "a:b", "epochs_factor": 2}, "base: external trains nothing"),
        ({"base": "at", "factory": "a:b"}, "give `network: {factory: ...}` to the data set"),
        ({"base": "at", "weights": "x"}, "read with base: external"),
    ],
)
def test_contradictions_in_a_model_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ModelSpec(label="x", **given)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def make(:", "its file fails: SyntaxError: "),
        ("make = undefined", "its file fails: NameError: name 'undefined' is not defined"),
        ("import os\nmake = os.nothing", "its file fails: module 'os' has no attribute 'nothing'"),
        ("other = 1", "has no 'make'; mend its spelling"),
    ],
)
def test_a_mistake_in_the_users_file_is_told_as_one(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    name = f"mine_{abs(hash(text))}"
    (tmp_path / f"{name}.py").write_text(text)
    with pytest.raises(OwnModelError, match=message):
        build(NetworkSpec(factory=f"{name}:make"), in_channels=1, image_size=32, num_classes=10)


def test_initialisation_depends_on_the_seed_alone_and_weights_survive_the_disk(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    network = lived_in(made())
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(made().module.fc.weight, network.module.fc.weight)
    assert not torch.equal(made(seed=1).module.fc.weight, network.module.fc.weight)
    save_weights(tmp_path / "weights.safetensors", network, {})
    again, x = load_network(tmp_path), images()
    torch.testing.assert_close(again(x), network.eval()(x))
    renamed = load_network(tmp_path, layers={"other": "fc"})
    torch.testing.assert_close(renamed.features(x, ("other",))["other"], again(x))
    drawn = lived_in(made("drawn", seed=derive_seed(3, "network")))  # of what lies in no file, too
    save_weights(tmp_path / "weights.safetensors", drawn, {"seed": "3"})
    torch.testing.assert_close(load_network(tmp_path)(x), drawn.eval()(x))


METHODS = {
    "at": {},
    "trades": {"base": "trades"},
    "ask-def": {"regulariser": "ask"},
    "snn": {"regulariser": "snn", "snn": {"layer": "first"}},
}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_it(method: str, tmp_path: Path) -> None:
    pixels, labels = load_images()
    job = make_job(network=spec(), method=METHODS[method], epochs=2, ema=0.5, learning_rate=0.02)
    folder = run(job, (pixels[:400], labels[:400]), tmp_path / "out")
    losses = [float(row["train_loss"]) for row in history(folder)]
    assert losses[1] < losses[0]
    network = load_network(folder)
    assert isinstance(network, OwnNetwork)
    assert json.loads(json.dumps(network.config))["network"] == spec().model_dump()
    record = (folder / "config.yaml").read_text()
    assert "factory: test_own_networks:net" in record
    # Two crafting steps and the update, each forward and backward; ASK-Def adds its own.
    assert f"forward: {3 * 32}\n" in record or method in ("ask-def", "trades")


FEW = (load_images()[0][:150], load_images()[1][:150])


def tied(ema: float | None = None, **options: bool) -> TrainJob:
    return make_job(network=NetworkSpec(factory="test_own_networks:Tied", options=options), ema=ema)


@pytest.mark.parametrize("ema", [None, 0.9])
@pytest.mark.parametrize("options", [{}, {"moves": False, "persistent": False}], ids=["moves", "constant"])
def test_tied_weights_and_buffers_are_saved_loaded_and_resumed(
    ema: float | None, options: dict[str, bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = tied(ema, **options)
    calm = run(job, FEW, tmp_path / "calm")
    with monkeypatch.context() as patch:
        interrupt(patch, 7)
        with pytest.raises(Interrupted):
            run(job, FEW, tmp_path / "resumed", checkpoint_seconds=0)
    resumed = run(job, FEW, tmp_path / "resumed")
    assert all(same(weights(calm, which), weights(resumed, which)) for which in ("last", "weights"))
    network, found = load_network(calm, "last"), weights(calm)
    assert same(found, dict(network.state_dict()))
    assert torch.equal(found["module.last.weight"], found["module.late.weight"])
    assert network.get_parameter("module.last.weight") is network.get_parameter("module.late.weight")
    assert (float(network.get_buffer("module.scale")) == 0.5) == bool(options)


def test_tied_weights_are_averaged_once(tmp_path: Path) -> None:
    """By the plain recurrence over the weights of every step."""
    job = tied(0.6)
    training = Run(job, *FEW, CPU, Checkpoint(tmp_path, job, "", ""))
    expected = {name: tensor.clone() for name, tensor in training.network.state_dict().items()}
    for step in range(5):
        training.advance()
        share = min(0.6, (1 + step) / (10 + step))
        now = training.network.state_dict()
        expected = {name: share * mean + (1 - share) * now[name] for name, mean in expected.items()}
    kept = training.kept.state_dict()
    for name in (name for name in kept if kept[name].is_floating_point()):
        torch.testing.assert_close(kept[name], expected[name], rtol=1e-5, atol=1e-6)


def test_adopted_weights_may_be_tied_and_their_buffers_may_move(tmp_path: Path) -> None:
    spec = tied(persistent=False).network
    theirs = build_own(spec, None, 1, 32, 10, seed=3).module
    torch.save(theirs.state_dict(), tmp_path / "theirs.pt")
    save_model(theirs, str(tmp_path / "theirs.safetensors"))  # each of the tied ones once
    network = build_own(spec, str(tmp_path / "theirs.pt"), 1, 32, 10)
    once = build_own(spec, str(tmp_path / "theirs.safetensors"), 1, 32, 10)
    assert same(dict(once.state_dict()), dict(network.state_dict()))
    save_weights(tmp_path / "weights.safetensors", network, {})
    assert torch.equal(load_network(tmp_path)(images()), network.eval()(images()))


def test_training_refuses_a_moving_buffer_that_no_file_keeps(tmp_path: Path) -> None:
    with pytest.raises(AskError, match=r"digits/at: training changes the buffer scale, .* with persistent=True"):
        run(tied(persistent=False), FEW, tmp_path)


def test_passes_in_bfloat16_leave_outputs_float32() -> None:
    network, x = made().eval(), images()
    full = network.forward_with_features(x, ("conv4",))
    with network_passes("bfloat16"):
        logits, found = network.forward_with_features(x, ("conv4",))
        alone = network.features(x, ("conv4",))
    assert {logits.dtype, found["conv4"].dtype, alone["conv4"].dtype} == {torch.float32}
    assert not torch.equal(logits, full[0])
    torch.testing.assert_close(logits, full[0], rtol=0.05, atol=0.05)


def test_code_of_own_networks_counts_for_their_jobs_alone() -> None:
    features = {"dataset": "d", "model": "m", "network": NetworkSpec(name="vgg16").model_dump()}
    cell = {"attack": None, "features": features}
    own = cell | {"features": features | {"network": spec().model_dump()}}
    assert "ask.models.own" not in closure(modules_of("attack", cell))
    assert "ask.models.own" in closure(modules_of("attack", own))
    assert "ask.models.own" in closure(modules_of("failures", {"cell": own}))
    assert "ask.models.own" in closure(modules_of("train", {"network": spec().model_dump()}))


def test_ids_tell_names_apart() -> None:
    assert [
        _where(layers) for layers in (("conv3", "conv4"), ("conv3", "b"), ("ab", "c"), ("a", "bc"), ("input",))
    ] == [*("34", "conv3+b", "ab+c", "a+bc", "in")]


def test_attacks_on_its_output_work() -> None:
    network, x = fold_batchnorm(made()), images(20)
    labels = network(x).argmax(1)
    moved = PGD(network, PGDConfig(eps=0.2, step_size=0.05), generator=torch.Generator().manual_seed(0))(x, labels)
    assert (network(moved).argmax(1) == labels).float().mean() < 0.5
    pytest.importorskip("pyautoattack")
    config = AutoAttackConfig(eps=0.2, parts=("apgd-ce",), iterations=5, queries=10)
    assert (network(AutoAttack(network, config, seed=0)(x, labels)).argmax(1) == labels).float().mean() < 0.5


def test_its_arithmetic_is_counted_without_computing() -> None:
    shape = Shape(1, 32, 10, 100, 100)
    first, second, head = 9 * 8 * 32**2, 9 * 8 * 8 * 16**2, 8 * 16 * 10
    weights = sum(parameter.numel() for parameter in made().parameters())
    assert reach(spec(), shape, "first") == (first, 8 * 32**2, weights)
    assert reach(spec(), shape) == (first + second + head, 10, weights)
    with pytest.raises(OwnModelError, match="can't be counted"):
        reach(spec("value"), shape)
