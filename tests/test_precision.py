"""Passes of a network in bfloat16: what they change, what they don't, and who decides."""

import json
import os
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from plans import PAPER, ROOT
from training_jobs import Interrupted, interrupt, load_images, make_job, run, same, weights

from ask.attacks import PGD, ASKAttack, ASKAttackConfig, PGDConfig
from ask.config.attacks import SquareConfig
from ask.config.base import DataSpec
from ask.config.jobs import CellJob, ClassifierSpec, FeatureSpec, IndexJob
from ask.config.run import load_artifacts, load_run, read_run
from ask.config.training import NetworkSpec
from ask.data import download, prepare
from ask.hardware import machines, processor, settled_in
from ask.knn import DkNN
from ask.measure.cells import run_cell
from ask.measure.place import Place, build_index
from ask.models.networks import build, fold_batchnorm, load_network
from ask.paths import Run
from ask.plan.planner import plan_run
from ask.precision import GAIN, autocast, expected, network_passes, settled, trainable

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """AT on digits, in both precisions."""
    network = NetworkSpec(name="vgg16", width=1 / 16, dropout=0)
    job = make_job(network=network, epochs=4, learning_rate=0.03, augment="none")
    folder = tmp_path_factory.mktemp("models")
    return {passes: run(job, load_images(), folder / passes, passes=passes) for passes in ("float32", "bfloat16")}


def test_outputs_are_float32_and_bfloat16_rounds_them() -> None:
    network = build(NetworkSpec(name="resnet18", width=1 / 16), in_channels=1, image_size=32, num_classes=10).eval()
    images = torch.rand(4, 1, 32, 32)
    exact, features = network.forward_with_features(images, ("input", "conv3"))
    with network_passes("bfloat16"):
        logits, rounded = network.forward_with_features(images, ("input", "conv3"))
        again = network.features(images, ("conv3",))["conv3"]
        assert torch.is_autocast_enabled("cpu") is False, "a pass leaves nothing switched on"
    assert {x.dtype for x in (logits, again, *rounded.values())} == {torch.float32}
    assert torch.equal(rounded["input"], features["input"])
    for one, other in ((logits, exact), (again, features["conv3"])):
        assert 0 < (one - other).abs().max() < 0.05 * other.abs().max()
    assert torch.equal(network(images), exact), "the block has ended"


def test_a_network_of_doubles_stays_one() -> None:
    network = build(NetworkSpec(name="resnet18", width=1 / 16), in_channels=1, image_size=16, num_classes=3).double()
    assert network(torch.rand(2, 1, 16, 16, dtype=torch.float64)).dtype == torch.float64


def test_attacks_in_both_precisions_leave_the_same_accuracy(trained: dict[str, Path]) -> None:
    """Paired: the same network, images, references and random starts."""
    pixels, labels = load_images()
    images, classes = torch.from_numpy(pixels).float() / 255, torch.from_numpy(labels)
    network = fold_batchnorm(load_network(trained["float32"]))
    x, y, pool = images[:1000], classes[:1000], images[1000:]
    for attack in ("pgd", "ask"):
        accuracy = {}
        for passes in ("float32", "bfloat16"):
            dknn = DkNN(network.features, layers=("conv4",), n_neighbors=5).fit(pool, classes[1000:])
            generator = torch.Generator().manual_seed(0)
            with network_passes(passes):
                if attack == "pgd":
                    found = PGD(network, PGDConfig(eps=0.15, step_size=0.04, steps=10), generator=generator)(x, y)
                else:
                    config = ASKAttackConfig(layers=("conv4",), eps=0.15, step_size=0.04, steps=10, tau=0.03)
                    found = ASKAttack(network.features, dknn, config, generator=generator)(x, y)
            assert (found - x).abs().max() <= 0.15 + 1e-6
            accuracy[passes] = dknn.score(found, y)
        assert 0.1 < accuracy["float32"] < 0.95, accuracy
        assert accuracy["bfloat16"] == pytest.approx(accuracy["float32"], abs=0.01), (attack, accuracy)


def test_trainings_in_both_precisions_end_alike(trained: dict[str, Path]) -> None:
    pixels, labels = load_images()
    images, classes = torch.from_numpy(pixels).float() / 255, torch.from_numpy(labels)
    found, robust = {}, {}
    for passes, folder in trained.items():
        network = load_network(folder, "last")
        found[passes] = float((network(images).argmax(1) == classes).float().mean())
        moved = PGD(network, PGDConfig(eps=0.1, step_size=0.04, steps=5), generator=torch.Generator().manual_seed(0))
        robust[passes] = float((network(moved(images, classes)).argmax(1) == classes).float().mean())
    assert min(found.values()) > 0.8, found
    # Noise of a training this short: two seeds differ by about as much.
    assert found["bfloat16"] == pytest.approx(found["float32"], abs=0.05)
    assert robust["bfloat16"] == pytest.approx(robust["float32"], abs=0.1)


def test_a_record_names_the_precision(trained: dict[str, Path]) -> None:
    for passes, folder in trained.items():
        assert f"\npasses: {passes}\n" in (folder / "config.yaml").read_text()


@pytest.mark.parametrize(("side", "fits"), [(16, False), (32, True)])
def test_a_network_whose_gradients_bfloat16_garbles_is_trained_in_float32(
    tmp_path: Path, side: int, fits: bool
) -> None:
    """A stride of 2 on a single pixel: on processors made for bfloat16, torch finds other gradients each time."""
    network = NetworkSpec(name="resnet18", width=1 / 16)
    built = build(network, in_channels=1, image_size=side, num_classes=10)
    assert trainable(built, torch.zeros(1, side, side)) == fits
    assert built.training, "and it is as it was"
    images, labels = load_images()
    data = images[:200, :, :: 32 // side, :: 32 // side].copy(), labels[:200]
    for attempt in ("one", "other"):
        run(make_job(network=network, epochs=1), data, tmp_path / attempt, passes="bfloat16")
    assert same(weights(tmp_path / "one"), weights(tmp_path / "other"))
    passes = "bfloat16" if fits else "float32"
    assert f"\npasses: {passes}\n" in (tmp_path / "one/config.yaml").read_text()


def test_stored_weights_may_be_rounded(tmp_path: Path) -> None:
    """And nothing else changes: they are the nearest bfloat16 to those of the same training."""
    exact = run(make_job(), load_images(), tmp_path / "exact")
    short = run(make_job(stored="bfloat16"), load_images(), tmp_path / "rounded")
    for which in ("weights", "last"):
        whole, rounded = weights(exact, which), weights(short, which)
        assert {str(v.dtype) for v in rounded.values()} == {"torch.bfloat16", "torch.int64"}
        assert same(rounded, {k: v.bfloat16() if v.is_floating_point() else v for k, v in whole.items()})
    assert all(p.dtype == torch.float32 for p in load_network(short).parameters())


def test_a_training_continues_in_the_precision_in_which_it_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in bfloat16 and continued on a machine that would take float32."""
    job, data = make_job(), load_images()
    whole = weights(run(job, data, tmp_path / "whole", passes="bfloat16"))
    with monkeypatch.context() as patch:
        interrupt(patch, 40)
        with pytest.raises(Interrupted):
            run(job, data, tmp_path / "cut", passes="bfloat16", checkpoint_seconds=0)
    assert same(weights(run(job, data, tmp_path / "cut", passes="float32")), whole)
    assert not same(weights(run(job, data, tmp_path / "other", passes="float32")), whole)


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, float]]:
    """What measuring finds, last first; the cache lies in a fresh home."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("os.getloadavg", lambda: (0.0, 0.0, 0.0))
    found: list[dict[str, float]] = []
    monkeypatch.setattr("ask.precision._measure", lambda device: found.pop())
    return found


def test_auto_takes_what_is_faster_by_a_fifth_and_measures_once_a_machine(
    tmp_path: Path, rates: list[dict[str, float]]
) -> None:
    rates.append({"float32": 100e9, "bfloat16": 100e9 * GAIN})
    assert settled("auto", CPU, tmp_path / "one") == "bfloat16"
    assert settled("auto", CPU, tmp_path / "two") == "bfloat16", "from the machine's cache: nothing is left to measure"
    record = json.loads((tmp_path / "one" / "precision.json").read_text())
    assert record["gflops"] == {"float32": 100.0, "bfloat16": 120.0}
    assert record["threads"] == torch.get_num_threads()
    assert record["processor"]
    assert not list((tmp_path / "one").glob("*.lock"))


def test_what_a_busy_machine_measures_is_not_kept(
    tmp_path: Path, rates: list[dict[str, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.getloadavg", lambda: (100.0, 0.0, 0.0))
    rates += [{"float32": 100e9, "bfloat16": 200e9}, {"float32": 1e9, "bfloat16": 1e9}]
    assert expected("auto", CPU)["gflops"] == {"float32": 1.0, "bfloat16": 1.0}
    assert expected("auto", CPU)["precision"] == "bfloat16"


def test_a_small_gain_is_none(tmp_path: Path, rates: list[dict[str, float]]) -> None:
    rates.append({"float32": 100e9, "bfloat16": 119e9})
    assert settled("auto", CPU, tmp_path) == "float32"


@pytest.fixture
def processors(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Moves to another machine, by name and vector units of its processor."""

    def move(name: str, units: str) -> None:
        monkeypatch.setattr("ask.hardware._processor", lambda: (name, units))

    return move


FAST, SLOW = {"float32": 1e9, "bfloat16": 9e9}, {"float32": 9e9, "bfloat16": 1e9}


def test_a_run_keeps_its_precision_on_other_machines(
    tmp_path: Path, rates: list[dict[str, float]], processors: Callable[..., None]
) -> None:
    """On all that are faster in it; the others take float32, which suits all."""
    run = tmp_path / "run"
    for name, units, found, precision in (
        ("EPYC", "AVX-512 bf16", FAST, "bfloat16"),
        ("EPYC", "AVX2", SLOW, "float32"),
        ("Xeon", "AMX", FAST, "bfloat16"),
        ("Core", "AVX2", SLOW, "float32"),
    ):
        processors(name, units)
        rates.append(found)
        assert settled("auto", CPU, run) == settled("auto", CPU, run) == precision
        assert not rates, "each kind measures once"
    record = json.loads((run / "precision.json").read_text())
    assert record["precision"] == "bfloat16"
    assert "EPYC, AVX-512 bf16" in record["processor"]
    assert [other["precision"] for other in record["others"]] == ["float32", "bfloat16", "float32"]
    processors("EPYC", "AVX2")
    assert settled_in(run, machines())["precision"] == "float32", "what plan goes by"
    processors("Xeon", "AMX")
    assert settled("auto", CPU, run) == "bfloat16"


def test_a_run_that_began_in_float32_stays_in_it(
    tmp_path: Path, rates: list[dict[str, float]], processors: Callable[..., None]
) -> None:
    processors("EPYC", "AVX2")
    rates.append(SLOW)
    assert settled("auto", CPU, tmp_path) == "float32"
    processors("Xeon", "AMX")
    assert settled("auto", CPU, tmp_path) == "float32"
    assert "others" not in json.loads((tmp_path / "precision.json").read_text())


def test_records_from_before_units_were_noted_are_of_machines_with_avx512(
    tmp_path: Path, rates: list[dict[str, float]], processors: Callable[..., None]
) -> None:
    old = f"EPYC, {os.cpu_count()} cores, 2 threads"
    (tmp_path / "precision.json").write_text(json.dumps({"precision": "bfloat16", "processor": old}))
    processors("EPYC", "AVX-512 bf16")
    assert old.startswith(machines())
    assert settled("auto", CPU, tmp_path) == "bfloat16"
    processors("EPYC", "AVX2")
    assert not old.startswith(machines())
    rates.append(SLOW)
    assert settled("auto", CPU, tmp_path) == "float32"


@pytest.mark.skipif(not Path("/proc/cpuinfo").is_file(), reason="not Linux")
def test_a_processor_is_named_with_its_units() -> None:
    flags = Path("/proc/cpuinfo").read_text()
    assert processor().endswith(", AVX2") == ("avx2" in flags and "avx512f" not in flags)
    assert ("AVX-512" in processor() or "AMX" in processor()) == ("avx512f" in flags)


def test_a_choice_measures_nothing_and_leaves_no_file(tmp_path: Path, rates: list[dict[str, float]]) -> None:
    assert settled("bfloat16", CPU, tmp_path) == "bfloat16"
    assert settled("float32", CPU, tmp_path) == "float32"
    assert not (tmp_path / "precision.json").exists()


def test_a_machine_without_a_home_measures_each_run(
    tmp_path: Path, rates: list[dict[str, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    rates += [{"float32": 1e9, "bfloat16": 9e9}] * 2
    assert settled("auto", CPU, tmp_path / "one") == settled("auto", CPU, tmp_path / "two") == "bfloat16"
    assert not rates


def test_the_measurement_measures() -> None:
    from ask.precision import _measure

    found = _measure(CPU)
    assert set(found) == {"float32", "bfloat16"}
    assert all(1e8 < rate < 1e15 for rate in found.values())


def test_a_choice_stands_in_jobs_and_auto_does_not() -> None:
    config = read_run([ROOT / "config/config.yaml", ROOT / "config/demo.yaml"])
    artifacts = load_artifacts(ROOT / "config/artifacts", ("table03",))

    def texts(choice: str) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for task in plan_run(config.model_copy(update={"precision": choice}), artifacts, PAPER).tasks.values():
            found.setdefault(task.name, []).append(task.text)
        return found

    assert not any('"precision"' in text for kind in texts("auto").values() for text in kind)
    chosen = texts("bfloat16")
    assert all('"precision":"bfloat16"' in text for kind in ("train", "calibrate") for text in chosen[kind])
    assert all(('"precision":"bfloat16"' in text) != ('"attack":null' in text) for text in chosen["attack"])
    assert not any('"precision"' in text for kind in ("index", "prepare") for text in chosen[kind])


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(Exception, match="precision"):
        load_run({"precision": "float16"})


def test_no_pass_is_in_bfloat16_unless_asked_for() -> None:
    with autocast(CPU):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == torch.float32
    with network_passes("bfloat16"), autocast(CPU):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == torch.bfloat16


def test_cells_note_the_precision_of_attacks(tmp_path: Path, trained: dict[str, Path]) -> None:
    """And classify in float32: clean predictions are equal, whatever the attack's passes compute in."""
    spec = DataSpec(source="digits", image_size=32)
    download(spec, tmp_path / "data", None)
    prepare(spec, tmp_path / "data", "digits")
    place = Place(run=Run(tmp_path / "run"), data=tmp_path / "data", device=CPU)
    shutil.copytree(trained["float32"], place.run.model("digits", "at"))
    features = FeatureSpec(dataset="digits", model="at", network=NetworkSpec(name="vgg16", width=1 / 16, dropout=0))
    build_index(IndexJob(features=features, layer="conv4"), place)
    attack = ASKAttackConfig(layers=("conv4",), eps=0.15, step_size=0.04, steps=3, tau=0.03)
    found = {}
    for choice in ("float32", "bfloat16"):
        job = CellJob(
            id="cell",
            features=features,
            attack=attack,
            similarity="cosine",
            classifiers=(ClassifierSpec(similarity="cosine", layers=("conv4",), k=5),),
            references_per_class=80,
            trials=1,
            test_images=60,
            precision=choice,
            seed=0,
        )
        measured, found[choice] = run_cell(job, place)
        assert measured["passes"] == choice
        network = {kind: found[choice][f"network_{kind}"] == found[choice]["labels"] for kind in ("clean", "robust")}
        assert {kind: one["mean"] for kind, one in measured["network"].items()} == pytest.approx(
            {kind: right.mean() for kind, right in network.items()}
        )
        assert network["robust"].mean() < network["clean"].mean()
    if find_spec("pyautoattack"):  # it stops at what it takes for fooled, and so sees images as they are judged
        square = SquareConfig(layers=("conv4",), eps=0.15, queries=5)
        exact, seen = run_cell(job.model_copy(update={"id": "square", "attack": square}), place)
        assert exact["passes"] == "float32"
        other = job.model_copy(update={"id": "other", "attack": square, "precision": "float32"})
        assert np.array_equal(run_cell(other, place)[1]["robust"], seen["robust"])
    for kind in ("clean", "network_clean", "labels"):
        assert np.array_equal(found["float32"][kind], found["bfloat16"][kind])


def test_steps_of_a_training_repeat_and_precisions_differ() -> None:
    """What tests/steps.py compares two commits by."""
    from steps import digests

    once, again = dict(digests(("at", "ask-def"))), dict(digests(("at", "ask-def")))
    assert once == again
    assert len(once) == len(set(once.values())) == 8, "each method, network and precision ends elsewhere"
