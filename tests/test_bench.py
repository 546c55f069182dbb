"""Benchmarks: every part runs on tiny shapes, the plain peer is the same attack, and the paper run fits in memory."""

import json
import subprocess
import sys

import pytest
import torch
from plans import ROOT, planned

from ask.attacks import ASKAttack, ASKAttackConfig
from ask.attacks.linf import fitting_batch, linf_ascent, random_start
from ask.cli import main
from ask.knn import DkNN
from ask.knn.search import ExactSearch
from ask.losses.ask import ask_loss, class_wise
from ask.plan import provenance
from ask.precision import settle
from ask.steps import STEPS, modules_of
from bench import memory
from bench.knn import clustered
from bench.measure import Contender, Options, take_turns
from bench.networks import FORWARD_GMAC, digits, prepared, vgg16
from bench.plain_ask import PlainASK
from bench.plain_training import PlainTraining
from bench.run import PARTS, page

NEEDS = {"attack": (), "knn": ("faiss",), "train": (), "pgd": ("torchattacks", "foolbox", "art"), "dag": (), "demo": ()}


@pytest.mark.parametrize(
    "part", [pytest.param(part, marks=[pytest.mark.slow] if part in ("dag", "demo") else []) for part in PARTS]
)
def test_a_part_prints_a_table_and_writes_json(part, tmp_path, capsys):
    for name in NEEDS[part]:
        pytest.importorskip(name, reason="a peer of the benchmarks")
    assert main(["bench", part, "--small", "--repeats", "1", "--out", str(tmp_path), "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    record = json.loads((tmp_path / f"{part}.json").read_text())
    assert f"python -m ask bench {part} --repeats 1 --small" in shown
    assert record["hardware"] in shown
    assert record["versions"]["torch"]
    for case in record["cases"]:
        assert f"### {case['title']}" in shown
        assert all(row["median_seconds"] > 0 and row["name"] in shown for row in case["rows"])
    if part == "knn":
        (share,) = {
            text for name, text in record["cases"][0]["facts"].items() if name == "ids equal to scikit-learn brute"
        }
        assert share == "100.0000% global, 100.0000% per class"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("speed",), "no part 'speed'; choose from attack"), (("dag", "--repeats", "0"), "--repeats")],
)
def test_a_mistake_is_one_line(arguments, message, capsys, tmp_path):
    assert main(["bench", *arguments, "--out", str(tmp_path)]) == 1
    assert message in capsys.readouterr().err


def test_no_step_depends_on_the_benchmarks():
    """Neither by import (what a fingerprint counts) nor when it runs."""
    for step in STEPS:
        assert not any(name.startswith("bench") for name in provenance.closure(modules_of(step, {})))
    code = "import sys, ask.cli, ask.measure.cells; sys.exit(any(n.startswith('bench') for n in sys.modules))"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_contenders_take_turns_and_the_ratio_is_that_of_rounds():
    turns = []
    options = Options(device=torch.device("cpu"), repeats=3)
    rows = take_turns([Contender(name=name, run=lambda name=name: turns.append(name)) for name in "ab"], options)
    assert "".join(turns) == "ab" * 4  # the first is the warm-up
    assert rows[0].ratio == 1
    assert len(rows[1].seconds) == 3


@pytest.fixture(scope="module")
def small():
    images, labels = digits()
    network = vgg16(1 / 32, images[-300:])
    return network, images[:24], labels[:24], images[-300:], labels[-300:]


def test_the_plain_peer_has_our_loss_and_our_gradients_signs(small):
    network, x, y, pool, pool_labels = small
    plain = PlainASK(network, pool, pool_labels, layer="conv4", tau=0.3)
    folded = prepared(network)
    search = DkNN(folded.features, layers=("conv4",)).fit(pool, pool_labels).search_["conv4"]
    found = search.search(folded.features(x, ("conv4",))["conv4"], k_class=5)
    theirs = plain.neighbours(x)
    ours = search.features[search.rows(found.class_indices)]
    torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=1e-3)

    similarity = class_wise(search.features, search.rows(found.class_indices), similarity="cosine", tau=0.3)
    moved = (x + random_start(x, 8 / 255, torch.Generator().manual_seed(0))).clamp(0, 1).requires_grad_(True)
    mine = ask_loss(similarity(folded.features(moved, ("conv4",))["conv4"]), y)
    peer = plain.losses(moved, y, theirs)
    torch.testing.assert_close(mine, peer, atol=1e-4, rtol=1e-3)
    gradients = [torch.autograd.grad(loss.sum(), moved)[0] for loss in (mine, peer)]
    largest = gradients[1].abs().amax((1, 2, 3), keepdim=True)
    clear = gradients[1].abs() > 1e-3 * largest
    assert clear.float().mean() > 0.5
    assert torch.equal(gradients[0][clear].sign(), gradients[1][clear].sign())


def test_the_plain_peer_ends_at_our_images(small):
    network, x, y, pool, pool_labels = small
    settings = {"eps": 8 / 255, "step_size": 2 / 255, "steps": 3, "tau": 0.3}
    folded = prepared(network)
    dknn = DkNN(folded.features, layers=("conv4",)).fit(pool, pool_labels)
    start = random_start(x, 8 / 255, torch.Generator().manual_seed(0))
    theirs = PlainASK(network, pool, pool_labels, layer="conv4", **settings)(x, y, start)
    attack = ASKAttack(
        folded.features,
        dknn.search_,
        ASKAttackConfig(layers=("conv4",), **settings),
        generator=torch.Generator().manual_seed(0),
    )
    ours = attack(x, y)
    assert (ours - theirs).abs().le(1e-6).float().mean() > 0.95
    assert abs(dknn.score(ours, y) - dknn.score(theirs, y)) <= 1 / len(x)


def test_plain_training_learns():
    torch.manual_seed(0)
    images, labels = digits()
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 10))
    plain = PlainTraining(network, eps=4 / 255, step_size=2 / 255, steps=2, learning_rate=0.005)
    for _ in range(20):
        plain.step(images[:200], labels[:200])
    assert (network(images[:200]).argmax(1) == labels[:200]).float().mean() > 0.7


def test_the_floors_arithmetic_is_that_of_the_plan():
    from ask.config.base import DataSpec
    from ask.config.training import NetworkSpec
    from ask.plan.cost import network_macs, shape_of

    upto, whole, *_ = network_macs(NetworkSpec(name="vgg16"), shape_of(DataSpec(source="cifar10")))
    for layer, gmac in FORWARD_GMAC.items():
        macs = upto[int(layer[-1]) - 1] if layer else whole
        assert macs / 1e9 == pytest.approx(gmac, abs=1e-4)


def test_the_paper_run_fits_a_common_machine():
    """16 GiB of host memory and 24 GiB of a GPU's, one job at a time."""
    host, gpu = memory.largest(planned("paper"))
    assert host.host <= 16 * memory.GIB, host
    assert gpu.gpu <= 24 * memory.GIB, gpu


def test_stored_activations_are_those_of_the_networks():
    from ask.config.training import NetworkSpec
    from ask.models.networks import build
    from ask.plan.cost import Shape

    for name, side in (("vgg16", 32), ("resnet18", 128)):
        spec = NetworkSpec(name=name, width=1 / 8)
        network, seen = build(spec, in_channels=3, image_size=side, num_classes=10).eval(), []
        kinds = (torch.nn.Conv2d, torch.nn.BatchNorm2d, torch.nn.MaxPool2d)
        for module in network.modules():
            if isinstance(module, kinds):
                module.register_forward_hook(lambda _m, _i, output, seen=seen: seen.append(4 * output.numel()))
        network(torch.zeros(1, 3, side, side))
        assert memory.activations(spec, Shape(3, side, 10, 1, 1)) == pytest.approx(sum(seen), rel=1e-6)


def test_a_gpus_batch_shrinks_with_the_image():
    assert fitting_batch(torch.empty(1, 3, 32, 32, device="meta"), 0) == 2500
    assert fitting_batch(torch.empty(1, 3, 128, 128, device="meta"), 0) == 156
    assert fitting_batch(torch.empty(1, 3, 128, 128), 0) == 250  # a CPU's does not


@pytest.mark.gpu
def test_a_gpu_finds_the_neighbours_that_a_cpu_finds():
    features, labels, queries = clustered(2000, 100, 64)
    on_cpu = ExactSearch(features, labels).search(queries, k=5, k_class=5)
    on_gpu = ExactSearch(features.cuda(), labels.cuda()).search(queries.cuda(), k=5, k_class=5)
    assert torch.equal(on_gpu.indices.cpu(), on_cpu.indices)
    assert torch.equal(on_gpu.class_indices.cpu(), on_cpu.class_indices)


@pytest.fixture
def convolutions(request):
    """Convolutions of a GPU in the precision of the parameter."""
    settle(request.param)
    yield request.param
    settle()


@pytest.mark.gpu
@pytest.mark.parametrize("convolutions", ["ieee", "tf32"], indirect=True)
def test_a_gpu_attacks_as_a_cpu_does(small, convolutions):
    network, x, y, pool, pool_labels = small
    scores, losses, gradients = [], [], []
    for device in ("cpu", "cuda"):
        folded = prepared(network).to(device)
        dknn = DkNN(folded.features, layers=("conv4",)).fit(pool.to(device), pool_labels)
        config = ASKAttackConfig(layers=("conv4",), steps=5, tau=0.3)
        attack = ASKAttack(folded.features, dknn.search_, config, generator=torch.Generator().manual_seed(0))
        images, labels = x.to(device), y.to(device)
        scores.append(dknn.score(attack(images, labels), y))
        loss = attack.losses(attack.search(images), labels)(slice(None))
        images.requires_grad_(True)
        losses.append(loss(folded.features(images, attack.layers)))
        gradients.append(torch.autograd.grad(losses[-1].sum(), images)[0].cpu())
    near = {"ieee": 1e-3, "tf32": 1e-2}[convolutions]
    torch.testing.assert_close(losses[0], losses[1].cpu(), atol=near, rtol=near)
    clear = gradients[0].abs() > 1e-2 * gradients[0].abs().amax((1, 2, 3), keepdim=True)
    assert (gradients[0].sign() == gradients[1].sign())[clear].float().mean() > 1 - 5 * near
    assert abs(scores[0] - scores[1]) <= 2 / len(x)


@pytest.mark.gpu
def test_no_step_of_the_ascent_waits_for_a_gpu():
    images = torch.rand(4, 3, 8, 8, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        linf_ascent(lambda x: x.square().flatten(1).sum(1), images, eps=0.1, step_size=0.02, steps=3)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_page_of_results_is_what_its_json_files_say():
    folder = ROOT / "results/bench"
    assert (folder / "README.md").read_text() == page(folder), "run a part of: python -m ask bench"
