"""What only a GPU's rules can show: operands' and generators' devices, waits, CUDA graphs, and all steps of a run.

All of it runs on a pretended device too (``--pretend-cuda``).
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from plans import planned
from torch import Tensor
from training_jobs import load_images, make_job

import ask.knn.faiss
from ask.attacks import AdvKnn, AdvKnnConfig, ASKAttack, ASKAttackConfig, BlockConfig, DkNNAttack, DkNNAttackConfig
from ask.attacks.advknn import fit_blocks
from ask.attacks.linf import Ascent, ascend
from ask.attacks.pgd import PGD, PGDConfig
from ask.attacks.references import identity_features
from ask.cli import main, perform
from ask.knn import DkNN
from ask.knn.faiss import FaissSearch
from ask.knn.search import ExactSearch
from ask.measure.evaluator import hold
from ask.measure.place import Place
from ask.paths import Run as Folder
from ask.precision import in_force, settle
from ask.training.methods import Crafting, Replayed, as_it_comes
from ask.training.record import Checkpoint
from ask.training.run import Run

pytestmark = pytest.mark.gpu

CLASSES, SIDE = 3, 4
ATTACKS: dict[str, tuple[type, dict[str, Any]]] = {
    "ASK-Atk": (ASKAttack, {}),
    "ASK-Atk, targeted": (ASKAttack, {"variant": "targeted"}),
    "ASK-Atk, random sampling": (ASKAttack, {"variant": "random-sampling"}),
    "DkNN-Atk, Adam": (DkNNAttack, {"guides": 4, "k": 3}),
    "DkNN-Atk, signs": (DkNNAttack, {"guides": 4, "k": 3, "optimizer": "sign"}),
    "DkNN-Atk, relu": (DkNNAttack, {"guides": 4, "k": 3, "loss": "relu"}),
    "AdvKnn": (AdvKnn, {"k": 3, "block": BlockConfig(epochs=2, batch_size=32)}),
}
CONFIGS = {ASKAttack: ASKAttackConfig, DkNNAttack: DkNNAttackConfig, AdvKnn: AdvKnnConfig}
METHODS: dict[str, dict[str, Any]] = {
    "AT": {},
    "TRADES": {"base": "trades"},
    "AT+SNN": {"regulariser": "snn", "snn": {"learn_temperature": True}},
    "ASK-Def": {"regulariser": "ask"},
    "ASK-Def, layers": {"regulariser": "ask", "ask": {"layers": ["conv3", "conv4"]}},
    "ASK-Def, own image and references by G2": {
        "regulariser": "ask",
        "ask": {"include_self": True, "reference_attack": "ask"},
    },
    "ASK-Def(TRADES)": {"base": "trades", "regulariser": "ask"},
}


def seeded(device: str = "cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(0)


def scene(device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images, their labels, reference features of which two are equal, and theirs."""
    images = torch.rand(24, 3, SIDE, SIDE, generator=seeded()).to(device)
    references = torch.rand(90, 3 * SIDE * SIDE, generator=torch.Generator().manual_seed(1))
    references[5] = references[8]
    labels = torch.arange(90, device=device) % CLASSES
    return images, labels[:24], references.to(device), labels


def make(name: str, similarity: str, device: str, generator: torch.Generator) -> Any:
    kind, options = ATTACKS[name]
    *_, references, labels = scene(device)
    searches = {"input": ExactSearch(references, labels, similarity=similarity)}
    config = CONFIGS[kind](layers=("input",), eps=0.1, step_size=0.03, steps=3, **options)
    return kind(identity_features, searches, config, generator=generator)


@contextmanager
def no_waiting() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("similarity", ["cosine", "l2"])
@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_finds_what_it_finds_on_a_cpu(name: str, similarity: str) -> None:
    found = []
    for device in ("cpu", "cuda"):
        images, labels, *_ = scene(device)
        found.append(make(name, similarity, device, seeded())(images, labels).cpu())
    assert (found[0] - found[1]).abs().lt(1e-3).float().mean() > 0.97


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_takes_a_generator_of_the_gpu(name: str) -> None:
    images, labels, *_ = scene("cuda")
    moved = make(name, "l2", "cuda", seeded("cuda"))(images, labels)
    assert 0 < (moved - images).abs().max().item() <= 0.1 + 1e-6


@pytest.mark.parametrize("name", [*ATTACKS, "PGD"])
def test_no_step_of_an_attack_waits(name: str) -> None:
    images, labels, *_ = scene("cuda")
    if name == "PGD":
        network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * SIDE * SIDE, CLASSES)).cuda()
        attack: Any = PGD(network, PGDConfig(steps=3), generator=seeded())
    else:
        attack = make(name, "l2", "cuda", seeded())
    ready: Ascent = attack.ascent(images, labels)
    with no_waiting():
        ascend([ready])


def test_dknn_takes_labels_on_the_gpu() -> None:
    _, _, references, labels = scene("cuda")
    dknn = DkNN(n_neighbors=1).fit(references, labels)
    assert np.array_equal(dknn.predict(references)[20:], labels.cpu().numpy()[20:])
    assert dknn.score(references[20:], labels[20:]) == 1


def test_features_may_be_made_on_the_gpu_of_arrays() -> None:
    images, labels, _, _ = (tensor.cpu() for tensor in scene("cpu"))
    features = lambda x, layers: {name: x.flatten(1) for name in layers}  # noqa: E731
    on_cpu = DkNN(features, layers=("input",), n_neighbors=3).fit(images.numpy(), labels.numpy())
    moved = DkNN(lambda x, layers: features(x.cuda(), layers), layers=("input",), n_neighbors=3)
    moved.fit(images.numpy(), labels.numpy())
    assert np.array_equal(moved.predict(images.numpy()), on_cpu.predict(images.numpy()))


def test_blocks_without_momentum() -> None:
    *_, pool, _ = scene("cuda")
    rows = torch.arange(90, device="cuda").unsqueeze(0)
    targets = torch.softmax(torch.rand(1, 90, CLASSES, generator=seeded()), 2).cuda()
    config = BlockConfig(epochs=2, batch_size=32, momentum=0.0)
    (block,) = fit_blocks(pool, rows, targets, similarity="l2", config=config, generator=seeded())
    assert torch.isfinite(block(pool)).all()


def test_search_is_exact_where_products_are_set_to_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    settle()
    torch.set_float32_matmul_precision("high")  # what TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1 does before
    try:
        references = torch.rand(600, 256, generator=seeded()) + 3
        labels, queries = torch.arange(600) % CLASSES, torch.rand(60, 256, generator=seeded()) + 3
        searches = [ExactSearch(references.to(d), labels.to(d), similarity="l2") for d in ("cpu", "cuda")]
        on_cpu, on_gpu = (search.search(queries.to(search.features.device), k=5, k_class=5) for search in searches)
        assert torch.equal(on_gpu.indices.cpu(), on_cpu.indices)
        assert torch.equal(on_gpu.class_indices.cpu(), on_cpu.class_indices)
        assert in_force(torch.device("cuda"))["products"] == "tf32"  # as before the search
    finally:
        settle()
    assert in_force(torch.device("cuda")) == {"products": "ieee", "convolutions": "tf32"}


def test_indexes_of_faiss_share_a_gpus_resources(monkeypatch: pytest.MonkeyPatch) -> None:
    library = pytest.importorskip("faiss", reason="faiss is an extra")
    resources = Mock()
    monkeypatch.setattr(library, "StandardGpuResources", resources, raising=False)
    monkeypatch.setattr(library, "index_cpu_to_gpu", lambda resources, device, index: index, raising=False)
    ask.knn.faiss.resources.cache_clear()
    images, _, references, labels = scene("cuda")
    found = FaissSearch(references[10:], labels[10:], similarity="l2").search(images.flatten(1), k=4, k_class=3)
    ask.knn.faiss.resources.cache_clear()
    exact = ExactSearch(references[10:], labels[10:], similarity="l2").search(images.flatten(1), k=4, k_class=3)
    assert resources.call_count == 1
    assert torch.equal(found.indices, exact.indices)
    assert torch.equal(found.class_indices, exact.class_indices)


# Training


def begin(folder: Path, name: str, crafting: Crafting = as_it_comes, **training: Any) -> Run:
    """A run of four steps an epoch."""
    images, labels = load_images()
    job = make_job(method=METHODS[name], batch_size=32, **training)
    checkpoint = Checkpoint(folder, job, "", "")
    gpu = torch.device("cuda")
    return Run(job, images[:148], labels[:148], gpu, checkpoint, crafting=crafting, passes="bfloat16")


def flat(run: Run) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in run.network.parameters()]).cpu()


def fixed_dropout(run: Run) -> Run:
    """Without dropout, whose draws the global generator makes: a recording may move it."""
    for module in run.network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return run


@pytest.mark.parametrize("name", METHODS)
def test_no_step_of_training_waits(name: str, tmp_path: Path) -> None:
    run = begin(tmp_path, name)
    run.advance()  # an epoch's first step brings its order
    with no_waiting():
        run.advance()
    assert torch.isfinite(run.losses[:2]).all()


def test_an_epoch_is_judged_by_a_dknn(tmp_path: Path) -> None:
    run = begin(tmp_path, "AT", selection="holdout-dknn", steps=1)
    for _ in range(run.steps):
        run.advance()
    run.end_epoch()
    assert 0 <= run.state.rows[-1]["val_robust_accuracy"] <= 1


@pytest.mark.parametrize("name", ["AT", "TRADES", "ASK-Def"])
def test_a_replayed_step_ends_with_the_weights_of_a_launched_one(name: str, tmp_path: Path) -> None:
    """The third step replays what the second recorded, on other images, labels, starts, references and weights."""
    first = fixed_dropout(begin(tmp_path, name))
    for _ in range(3):
        first.advance()  # a process' first passes of some shapes may round otherwise than later ones, replayed or not
    replayed, launched = (fixed_dropout(begin(tmp_path, name, make())) for make in (Replayed, lambda: as_it_comes))
    for step in range(3):
        before = flat(launched)
        replayed.advance()
        launched.advance()
        moved = (flat(launched) - before).norm()
        assert (flat(replayed) - flat(launched)).norm() < 0.05 * moved, f"step {step + 1}"


# A run


@pytest.mark.parametrize("part", ["attack", "knn", "train"])
def test_a_part_of_the_benchmarks(part: str, tmp_path: Path) -> None:
    if part == "knn":
        pytest.importorskip("faiss", reason="a peer of the benchmarks")
    assert main(["bench", part, "--small", "--repeats", "1", "--out", str(tmp_path), "--device", "cuda"]) == 0
    record = json.loads((tmp_path / f"{part}.json").read_text())
    assert record["device"] == "cuda"
    assert record["precision"] == {"products": "ieee", "convolutions": "tf32"}
    assert all(row["median_seconds"] > 0 for case in record["cases"] for row in case["rows"])


def closure(plan: Any, wanted: list[Any]) -> list[Any]:
    """Tasks and all that they need, in the order in which they can run."""
    found: dict[Path, Any] = {}

    def add(task: Any) -> None:
        for need in task.needs:
            if need not in found:
                add(plan.tasks[need])
        found.setdefault(task.output, task)

    for task in wanted:
        add(task)
    return list(found.values())


SMALLER = {"trials": 1, "test_images": 12, "references_per_class": 20, "images": 8, "grid": lambda grid: grid[:1]}


def smaller(job: Any) -> Any:
    """A job on fewer images."""
    fields = type(job).model_fields
    changed = {n: v(getattr(job, n)) if callable(v) else v for n, v in SMALLER.items() if n in fields}
    if "training" in fields:
        less = {"epochs": 1, "batch_size": 256, "holdout": 20, "min_clean_accuracy": 0.0}
        changed["training"] = job.training.model_copy(update=less)
    if "attack" in fields:
        changed["attack"] = job.attack.model_copy(update={"steps": 2})
    if "block" in fields:
        changed["block"] = job.block.model_copy(update={"epochs": 2})
    return job.model_copy(update=changed)


def test_a_cut_of_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its steps for one network, from the training to a cell of each attack."""
    monkeypatch.setattr(
        "ask.measure.train.matmul_peak", lambda device, dtype: 1e12
    )  # a product for a card, not for a CPU
    plan = planned("demo")
    first: dict[str, Any] = {}
    for task in plan.of("attack"):
        if task.output.parts[-3:-1] == ("digits-vgg", "at") and task.job.attack is not None:
            first.setdefault(task.job.attack.name, task)
    place = Place(Folder(tmp_path / "run"), tmp_path / "data", torch.device("cuda"), cuda_graphs=True)
    cells = [task for name, task in first.items() if name not in ("autoattack", "square")]  # of a package of their own
    for task in closure(plan, cells):
        job = smaller(task.job)
        perform(task.name, job.model_dump_json(), place)
    made = {path.stem.partition("-")[0] for path in (tmp_path / "run/cells").rglob("*.json")}
    assert made == {"ask", "dknn", "advknn", "pgd"}


@pytest.mark.parametrize("free", [2**36, 0])
def test_features_of_all_training_images_stay_on_a_gpu_where_they_fit(
    free: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (free, free))
    index = np.arange(24, dtype=np.float32).reshape(6, 4)
    np.save(tmp_path / "index.npy", index)
    place = Place(Folder(tmp_path), tmp_path, torch.device("cuda"))
    pool = hold({"conv4": tmp_path / "index.npy"}, place)["conv4"]
    assert pool.device.type == ("cuda" if free else "cpu")
    assert np.array_equal(pool.cpu().numpy(), index)
