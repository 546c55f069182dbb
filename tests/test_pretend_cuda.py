"""The pretended device refuses what a card refuses, and faults planted in this project's code are seen on it."""

import copy
import inspect
import os
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
import pytest
import test_gpu
import test_rivals
import torch
from pretend_cuda import HERE, Refused
from pretend_cuda.device import state
from test_gpu import no_waiting
from torch import Tensor

from ask.attacks import advknn, linf, references
from ask.attacks.ask import ASKAttack
from ask.graphs import cuda_graph
from ask.knn import DkNN
from ask.knn.search import ExactSearch
from ask.models import networks
from ask.training import images, snn
from ask.training.ask_def import ASKRegulariser
from ask.training.methods import AdversarialTraining, Replayed
from ask.training.run import Run
from ask.training.trades import TRADES

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("only_pretended")]


@pytest.fixture
def only_pretended(request: pytest.FixtureRequest) -> None:
    if not request.config.getoption("--pretend-cuda"):
        pytest.skip("about the pretended device: --pretend-cuda")


def on_device(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0)).cuda()


# What it refuses


REFUSED: dict[str, Callable[[], object]] = {
    "two devices": lambda: on_device(3) + torch.ones(3),
    "a product on two devices": lambda: on_device(3, 3) @ torch.ones(3, 3),
    "values put on the device from the CPU": lambda: on_device(3).index_put_((torch.tensor([0, 1]),), torch.ones(2)),
    "a CPU tensor indexed on the device": lambda: torch.ones(3)[torch.tensor([0], device="cuda")],
    "a CPU generator": lambda: torch.rand(3, generator=torch.Generator(), device="cuda"),
    "a generator of the device on the CPU": lambda: torch.rand(3, generator=torch.Generator("cuda")),
    "pinned memory": lambda: torch.empty(3, device="cuda", pin_memory=True),
    "an array": lambda: on_device(3).numpy(),
    "an array by numpy": lambda: np.asarray(on_device(3)),
    "a gather over two devices": lambda: on_device(3, 3).gather(1, torch.zeros(3, 1, dtype=torch.int64)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_card_refuses(name: str) -> None:
    with pytest.raises((Refused, TypeError)):
        REFUSED[name]()


def test_values_are_real_and_numbers_of_the_cpu_may_take_part() -> None:
    x = on_device(5, 4)
    assert x.device == HERE
    assert x.is_cuda
    plain = x.cpu()
    assert plain.device.type == "cpu"
    assert torch.equal((x * torch.tensor(2.0)).cpu(), plain * 2)
    assert torch.equal(x.topk(2).indices.cpu(), plain.topk(2).indices)
    assert torch.equal(x[torch.tensor([1, 3])].cpu(), plain[[1, 3]])
    assert x.sum().item() == plain.sum().item()
    assert torch.tensor([1.0], device="cuda").device == HERE


def test_gradients_modules_and_inference() -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten()).to("cuda")
    assert all(tensor.is_cuda for tensor in network.state_dict().values())
    x = on_device(2, 3, 5, 5).requires_grad_()
    network(x).square().sum().backward()
    assert x.grad is not None
    assert x.grad.is_cuda
    twin = copy.deepcopy(network)
    with torch.no_grad():
        next(twin.parameters()).zero_()
    assert next(network.parameters()).abs().sum() > 0
    with torch.inference_mode():
        assert network(x).is_cuda
    with torch.autocast("cuda", dtype=torch.bfloat16):
        assert network(x).dtype == torch.bfloat16


def test_convolutions_read_tf32_and_products_do_not() -> None:
    x, weight = on_device(1, 8, 6, 6), on_device(4, 8, 3, 3)
    exact = torch.nn.functional.conv2d(x.cpu().double(), weight.cpu().double())
    error = (torch.nn.functional.conv2d(x, weight).cpu() - exact).abs().max() / exact.abs().max()
    assert 1e-5 < error < 1e-3
    flat = x.flatten(2)[0]
    exact = flat.cpu().double() @ flat.cpu().double().T
    assert ((flat @ flat.T).cpu() - exact).abs().max() / exact.abs().max() < 1e-6


WAITS: dict[str, Callable[[Tensor], object]] = {
    "a number": lambda x: x.sum().item(),
    "a condition": lambda x: bool((x > 0).all()),
    "a copy to the host": lambda x: x.cpu(),
    "a copy from the host": lambda x: torch.ones(3).to(x.device),
    "a host's list": lambda x: x.new_tensor([1.0, 2.0]),
    "nonzero": lambda x: x.nonzero(),
    "a mask": lambda x: x[x > 0.5],
    "indices of the host": lambda x: x[torch.tensor([0, 1])],
}


@pytest.mark.parametrize("name", WAITS)
def test_what_waits(name: str) -> None:
    x = on_device(4)
    before = state().waits.total()
    WAITS[name](x)
    assert state().waits.total() > before
    with no_waiting(), pytest.raises(Refused, match="synchronizing"):
        WAITS[name](x)


def test_what_does_not_wait() -> None:
    x = on_device(4, 4)
    with no_waiting():
        (x @ x).topk(2).values.clamp(0, 1)[:, :1].add_(1).argsort(0)


# Graphs


def test_a_graph_holds_nothing_until_it_is_replayed_and_reads_its_own_memory() -> None:
    x, found = on_device(3), []
    replay = cuda_graph(lambda: found.append(x * 2))
    assert torch.isnan(found[-1]).all()
    replay()
    assert torch.equal(found[-1], x * 2)
    x.add_(1)
    replay()
    assert torch.equal(found[-1], x * 2)


def test_a_capture_changes_nothing() -> None:
    x = torch.zeros(2, device="cuda")
    replay = cuda_graph(lambda: x.add_(1))
    assert x.tolist() == [3, 3]  # the warm-up
    replay()
    assert x.tolist() == [4, 4]


def test_a_replay_does_not_use_what_has_gone() -> None:
    x = [on_device(3)]
    replay = cuda_graph(lambda: x[0].square())
    replay()
    x.clear()
    with pytest.raises(Refused, match="freed since its capture"):
        replay()


@pytest.mark.parametrize(
    "inside",
    [
        lambda x: x.sum().item(),
        lambda x: torch.rand(3, generator=torch.Generator("cuda"), device="cuda"),
        lambda x: torch.cuda.synchronize(),
        lambda x: x.cpu(),
        lambda x: x + torch.ones(3).cuda(),
    ],
)
def test_what_no_capture_may_do(inside: Callable[[Tensor], object]) -> None:
    x = on_device(3)
    graph = torch.cuda.CUDAGraph()
    with pytest.raises(Refused, match="capturing"), torch.cuda.graph(graph):
        inside(x)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_does_not_use_the_device() -> None:
    x = on_device(3)
    child = os.fork()
    if child == 0:
        try:
            x + 1
        except Refused:
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# Faults planted in this project's code


def plant(monkeypatch: pytest.MonkeyPatch, function: Any, old: str, new: str) -> None:
    """Change a function's source, as long as the test lasts, for all who have imported it."""
    target = inspect.unwrap(function)
    assert isinstance(target, FunctionType)
    source = textwrap.dedent(inspect.getsource(target))
    assert old in source, f"{target.__qualname__} no longer has the line to change"
    made: dict[str, Any] = {}
    exec(source.replace(old, new, 1), target.__globals__ | {}, made)  # noqa: S102  # our own source
    monkeypatch.setattr(target, "__code__", inspect.unwrap(made[target.__name__]).__code__)


def trains(name: str) -> Callable[[Path], None]:
    return lambda folder: test_gpu.test_no_step_of_training_waits(name, folder)


def replays(name: str) -> Callable[[Path], None]:
    return lambda folder: test_gpu.test_a_replayed_step_ends_with_the_weights_of_a_launched_one(name, folder)


def attacks(name: str) -> Callable[[Path], None]:
    return lambda _: test_gpu.test_an_attack_finds_what_it_finds_on_a_cpu(name, "l2")


def blocks(_: Path) -> None:
    test_rivals.test_blocks_on_a_gpu_equal_those_on_a_cpu()


def predicts(_: Path) -> None:
    test_gpu.test_dknn_takes_labels_on_the_gpu()


def ranks_equals(_: Path) -> None:
    """So many equidistant references that all of a class are ranked."""
    labels = torch.arange(60, device="cuda") % 2
    ExactSearch(torch.ones(60, 4, device="cuda"), labels).search(torch.ones(3, 4, device="cuda"), k=3, k_class=3)


COPIES = "for into, x in zip(held, inputs, strict=True):"
FAULTS: dict[str, tuple[Any, str, str, Callable[[Path], None]]] = {
    "a replay on old images": (
        Replayed.__call__,
        COPIES,
        "for into, x in list(zip(held, inputs, strict=True))[1:]:",
        replays("AT"),
    ),
    "a replay on old labels and starts": (
        Replayed.__call__,
        COPIES,
        "for into, x in list(zip(held, inputs, strict=True))[:1]:",
        replays("AT"),
    ),
    "a capture's result without a replay": (Replayed.__call__, "    replay()\n", "    pass\n", replays("AT")),
    "a graph of the first step's references": (
        ASKRegulariser._generate,
        "start: Tensor, *references: Tensor) -> Tensor:",
        "start: Tensor, *_: Tensor) -> Tensor:",
        replays("ASK-Def"),
    ),
    "new memory for folded weights": (
        networks.refold,
        'targets.pop(f"{name}.weight").copy_(convolution.weight * scale.view(-1, 1, 1, 1))',
        'setattr(folded.get_submodule(name), "weight", nn.Parameter(targets.pop(f"{name}.weight").clone()))',
        replays("AT"),
    ),
    "a number read in a capture": (
        linf.linf_ascent,
        "current = step(current.detach(), gradient)",
        "current = step(current.detach(), gradient); float(gradient.sum())",
        replays("AT"),
    ),
    "a random start drawn in a capture": (
        AdversarialTraining.craft,
        "start=start)",
        "generator=batch.generator)",
        replays("AT"),
    ),
    "augmentation drawn on the CPU": (
        images.augment,
        "(2, batch, 1), generator=generator, device=device)",
        "(2, batch, 1), generator=generator)",
        trains("AT"),
    ),
    "an epoch's order on the CPU": (
        Run._step,
        "generator=generator).to(self.device)",
        "generator=generator)",
        trains("AT"),
    ),
    "TRADES' noise on the CPU": (
        TRADES.craft,
        "device=generator.device).to(images.device)",
        "device=torch.device('cpu'))",
        trains("TRADES"),
    ),
    "SNN's divisor on the CPU": (
        snn.SNNRegulariser._learn,
        ".to(distances.device).clone()",
        ".reshape(1).clone()",
        trains("AT+SNN"),
    ),
    "features in bf16 beyond autocast": (
        networks._full,
        "output.float() if output.dtype == torch.bfloat16 else output",
        "output",
        trains("ASK-Def"),
    ),
    "random references on the CPU": (
        ASKAttack._choose,
        "drawn.to(ids.device)",
        "drawn",
        attacks("ASK-Atk, random sampling"),
    ),
    "ranks on the CPU": (
        ASKAttack._choose,
        "torch.arange(k, device=ids.device)",
        "torch.arange(k)",
        attacks("ASK-Atk"),
    ),
    "bounds of classes on the CPU": (
        references.neighbour_classes,
        "search.counts.cumsum(0)",
        "search.counts.cumsum(0).cpu()",
        attacks("AdvKnn"),
    ),
    "all of a class ranked on the CPU": (
        ExactSearch._settle,
        "torch.arange(start, start + count, device=ids.device)",
        "torch.arange(start, start + count)",
        ranks_equals,
    ),
    "an order of batches on the CPU": (advknn.fit_blocks, ".argsort(1).to(pool.device)", ".argsort(1)", blocks),
    "blocks' first weights on the CPU": (advknn.fit_blocks, "drawn.to(pool).requires", "drawn.requires", blocks),
    "momentum of the warm-up": (advknn._captured, "buffer.zero_()", "pass", blocks),
    "parameters of the warm-up": (advknn._captured, "parameter.copy_(old)", "pass", blocks),
    "labels as an array of the device": (
        DkNN.predict,
        "classify(self._votes(X)).cpu().numpy()",
        "classify(self._votes(X)).numpy()",
        predicts,
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_seen(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    function, old, new, check = FAULTS[name]
    plant(monkeypatch, function, old, new)
    with pytest.raises((RuntimeError, AssertionError, TypeError)):
        check(tmp_path)
