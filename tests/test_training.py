"""Training: schedules, augmentation, adversarial training itself, resuming after a kill, failures."""

import copy
import re
import signal
import time
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from numpy.typing import NDArray
from plans import jobs, planned
from torch import Tensor, nn
from training_jobs import (
    CPU,
    Arrays,
    Interrupted,
    history,
    interrupt,
    load_images,
    make_job,
    run,
    same,
    start,
    told_generator,
    untimed,
    weights,
)

from ask.attacks.linf import linf_ascent
from ask.attacks.pgd import pgd_loss
from ask.config.artifacts import ArtifactConfig
from ask.config.run import ConfigError, load_run, merge
from ask.config.training import ASKSpec, ModelSpec, NetworkSpec, ScheduleSpec, TrainingSpec, TrainJob
from ask.models.networks import Network, build, fold_batchnorm, load_network, load_weights
from ask.plan.planner import plan_run
from ask.precision import Passes
from ask.training import TrainingDivergedError, train
from ask.training.images import ResidentImages, augment, seeded, split_holdout
from ask.training.methods import AdversarialTraining, BaseOutput, Batch, make_method
from ask.training.record import Checkpoint, State
from ask.training.run import Run, learning_rate
from ask.training.selection import Judge

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def digits() -> Arrays:
    """The first 1437 digits."""
    return load_images()[0][:1437], load_images()[1][:1437]


@pytest.fixture(scope="module")
def few(digits: Arrays) -> Arrays:
    """So few that an epoch takes a fraction of a second."""
    return digits[0][:150], digits[1][:150]


# Schedules


def torch_rates(spec: TrainingSpec, steps: int) -> list[float]:
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=spec.learning_rate)
    scheduler: torch.optim.lr_scheduler.LRScheduler
    if spec.schedule.name == "step":
        scheduler = torch.optim.lr_scheduler.MultiStepLR(
            optimiser, [m * steps for m in spec.schedule.milestones], spec.schedule.gamma
        )
    else:
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, spec.learning_rate, total_steps=spec.epochs * steps, cycle_momentum=False
        )
    rates = []
    for _ in range(spec.epochs * steps):
        rates.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        scheduler.step()
    return rates


@pytest.mark.filterwarnings("ignore:Detected call of")
@pytest.mark.parametrize("steps", [1, 7])
@pytest.mark.parametrize(
    "schedule",
    [
        ScheduleSpec(name="step", milestones=(3,)),
        ScheduleSpec(name="step", milestones=(2, 5), gamma=0.5),
        ScheduleSpec(name="onecycle"),
    ],
)
def test_rates_are_torchs(schedule: ScheduleSpec, steps: int) -> None:
    spec = TrainingSpec(epochs=9, schedule=schedule, learning_rate=0.3)
    ours = [learning_rate(spec, epoch, step, steps) for epoch in range(9) for step in range(steps)]
    assert ours == pytest.approx(torch_rates(spec, steps))


@pytest.mark.parametrize("epochs", range(1, 12))
def test_onecycle_of_a_few_steps_has_positive_rates(epochs: int) -> None:
    spec = TrainingSpec(epochs=epochs, schedule=ScheduleSpec(name="onecycle"))
    assert all(0 < learning_rate(spec, epoch, 0, 1) <= spec.learning_rate for epoch in range(epochs))


# Augmentation


def coded(batch: int, side: int = 16) -> Tensor:
    """Images whose pixels are all different and none zero, the same image ``batch`` times."""
    return torch.arange(1, 3 * side * side + 1).view(1, 3, side, side).repeat(batch, 1, 1, 1)


def test_a_crop_is_a_window_of_the_padded_image_and_every_window_occurs() -> None:
    side, margin = 16, 2
    images = coded(1000)
    out = augment(images, "crop", seeded(CPU, 0))
    assert out.shape == images.shape
    assert out.dtype == images.dtype
    padded = F.pad(images[0], (margin,) * 4)
    windows = {
        (top, left): padded[:, top : top + side, left : left + side]
        for top in range(2 * margin + 1)
        for left in range(2 * margin + 1)
    }
    counts = {key: int((out == window).flatten(1).all(1).sum()) for key, window in windows.items()}
    assert sum(counts.values()) == 1000
    assert min(counts.values()) > 15  # 40 expected


def test_half_of_the_images_are_flipped() -> None:
    images = coded(2000)
    crops = augment(images, "crop", seeded(CPU, 0))
    flips = augment(images, "crop-flip", seeded(CPU, 0))  # the same shifts, drawn first
    plain = (flips == crops).flatten(1).all(1)
    reach = coded(1)[0, 0, :, 4].tolist()  # column 4 is in every window
    falling = torch.tensor([bool((image[0].diff(dim=1)[6, 5:10] < 0).all()) for image in flips])
    assert torch.equal(plain, ~falling)
    assert all(value in flips[i, 0] for i in range(20) for value in reach[4:12])
    assert abs(falling.float().mean().item() - 0.5) < 0.04


@pytest.mark.parametrize(("pad", "margin"), [(None, 16), (4, 4), (0, 0)])
def test_the_padding_is_an_eighth_of_the_side_unless_it_is_given(pad: int | None, margin: int) -> None:
    data = ResidentImages(
        np.full((400, 1, 128, 128), 255, np.uint8), np.zeros(400, np.int64), device=CPU, kind="crop", pad=pad
    )
    rows = data.draw(torch.arange(400), seeded(CPU, 0))[0][:, 0].amax(2)
    shifts = {int(row.argmax()) - int(row.flip(0).argmax()) for row in rows}
    assert shifts == set(range(-margin, margin + 1))
    assert rows.mean(1).min() == pytest.approx(1 - margin / 128)


def test_augmentation_repeats_for_a_seed_and_none_changes_nothing() -> None:
    images = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(augment(images, "crop-flip", seeded(CPU, 1)), augment(images, "crop-flip", seeded(CPU, 1)))
    assert not torch.equal(augment(images, "crop-flip", seeded(CPU, 1)), augment(images, "crop-flip", seeded(CPU, 2)))
    assert torch.equal(augment(images, "none", seeded(CPU, 1)), images)


# Data


@pytest.mark.parametrize("holdout", [0, 20, 23])
def test_holdout_is_class_balanced_and_disjoint(few: Arrays, holdout: int) -> None:
    kept, held = split_holdout(few[1], holdout, seed=3)
    assert len(held) == holdout
    assert sorted([*kept, *held]) == list(range(150))
    if holdout:
        counts = np.bincount(few[1][held], minlength=10)
        assert counts.max() - counts.min() <= 1
    assert np.array_equal(held, split_holdout(few[1], holdout, seed=3)[1])


def test_a_holdout_that_leaves_nothing_is_refused(few: Arrays) -> None:
    with pytest.raises(ValueError, match=r"holdout=200 takes 20 of the \d+ training images of class"):
        split_holdout(few[1], 200, seed=0)


def test_references_are_drawn_from_every_class(few: Arrays) -> None:
    data = ResidentImages(*few, device=CPU)
    images, labels = data.references(5, seeded(CPU, 0))
    assert labels.tolist() == [c for c in range(10) for _ in range(5)]
    assert images.shape == (50, 1, 32, 32)
    assert len(data.references(200, seeded(CPU, 0))[0].unique(dim=0)) == len(few[0]), "any of a class"
    known = {image.tobytes(): label for image, label in zip(few[0], few[1], strict=True)}
    for image, label in zip((images * 255).round().to(torch.uint8).numpy(), labels.tolist(), strict=True):
        assert known[np.ascontiguousarray(image).tobytes()] == label


# Methods


def test_adversarial_training_scores_images_inside_the_ball(few: Arrays) -> None:
    job = make_job(network=NetworkSpec(name="resnet18", width=1 / 32))
    data = ResidentImages(*few, device=CPU)
    images, labels = data.draw(torch.arange(16), seeded(CPU, 0))
    network = build(job.network, in_channels=1, image_size=32, num_classes=10)
    before = {name: p.clone() for name, p in network.named_parameters()}
    batch = Batch(images=images, labels=labels, generator=seeded(CPU, 1), target=fold_batchnorm(network), source=data)
    output = AdversarialTraining(job.training)(network, batch, ("conv4",))
    distance = (output.adversarial - images).abs()
    assert 0 < distance.max() <= 25.5 / 255 + 1e-6
    pgd: dict[str, Any] = {"eps": 25.5 / 255, "step_size": 12.75 / 255, "steps": 2, "generator": seeded(CPU, 1)}
    assert torch.equal(output.adversarial, linf_ascent(pgd_loss(batch.target, labels), images, **pgd))
    assert not output.adversarial.requires_grad
    assert output.adversarial.min() >= 0
    assert output.adversarial.max() <= 1
    assert output.features["conv4"].requires_grad
    assert all(p.grad is None for p in network.parameters())
    assert all(torch.equal(p, before[name]) for name, p in network.named_parameters())
    # ResNet18 has no dropout, so that the same pass can be made again.
    torch.testing.assert_close(output.loss, F.cross_entropy(network.train()(output.adversarial), labels))


def test_unknown_methods_are_refused() -> None:
    with pytest.raises(ValueError, match="base 'none' trains no network; choose from at, trades"):
        make_method(ModelSpec(label="raw", base="none"), TrainingSpec())


def test_a_regulariser_joins_without_touching_the_loop(
    few: Arrays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Shrink:
        """Pulls conv4's features to zero and draws references, as SNN and ASK will."""

        layers = ("conv4",)
        state: ClassVar[dict[str, Tensor]] = {}

        def __init__(self, spec: TrainingSpec) -> None:
            self.steps = spec.steps

        def __call__(self, network: Network, batch: Batch, output: BaseOutput) -> Tensor:
            assert network.training
            images, labels = batch.source.references(2, batch.generator)
            assert len(images) == len(labels) == 20
            return 10 * output.features["conv4"].square().mean()

    plain = weights(run(make_job(holdout=0), few, tmp_path / "plain"))
    monkeypatch.setattr("ask.training.run.make_method", lambda _, spec: (AdversarialTraining(spec), Shrink(spec)))
    shrunk = weights(run(make_job(holdout=0), few, tmp_path / "shrunk"))
    assert not same(plain, shrunk)


# Training


def test_adversarial_training_learns_digits_and_resists(digits: Arrays, tmp_path: Path) -> None:
    job = make_job(
        network=NetworkSpec(name="resnet18", width=1 / 16),
        epochs=4,
        batch_size=64,
        steps=3,
        augment="none",
        holdout=200,
        step_size=10,
    )
    run(job, digits, tmp_path)
    best = history(tmp_path)[yaml.safe_load((tmp_path / "config.yaml").read_text())["chosen_epoch"] - 1]
    assert float(best["val_clean_accuracy"]) > 0.8
    assert float(best["val_robust_accuracy"]) < float(best["val_clean_accuracy"]) - 0.1
    assert float(best["val_robust_accuracy"]) > 0.4  # just above or at 0.5, by how a processor rounds


def test_a_run_is_sgd_on_all_images_in_a_new_order_drawn_anew(
    few: Arrays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On clean images, against torch's own optimiser and scheduler."""
    seen: list[tuple[Tensor, int, Tensor, Tensor]] = []
    draw = ResidentImages.draw

    def drawn(self: ResidentImages, indices: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        seen.append((indices, generator.initial_seed(), *draw(self, indices, generator)))
        return seen[-1][2:]

    monkeypatch.setattr(ResidentImages, "draw", drawn)
    monkeypatch.setattr(AdversarialTraining, "craft", lambda _self, _batch, images, _labels: images)
    job = make_job(network=NetworkSpec(name="resnet18", width=1 / 32), holdout=0, weight_decay=0.05)
    ours = Run(job, *few, CPU, Checkpoint(tmp_path, job, "", ""))
    theirs, rate = copy.deepcopy(ours.network).train(), job.training.learning_rate
    sgd = torch.optim.SGD(theirs.parameters(), lr=rate, momentum=0.9, weight_decay=0.05, nesterov=True)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(sgd, rate, total_steps=2 * ours.steps, cycle_momentum=False)
    while ours.state.epoch < 2:
        ours.advance()
        sgd.zero_grad()
        F.cross_entropy(theirs(seen[-1][2]), seen[-1][3]).backward()
        sgd.step()
        scheduler.step()
        if ours.state.step == ours.steps:
            ours.end_epoch()
    for name, tensor in theirs.state_dict().items():
        torch.testing.assert_close(ours.network.state_dict()[name], tensor, msg=name)
    orders = [torch.cat([indices for indices, *_ in seen[i : i + ours.steps]]) for i in (0, ours.steps)]
    assert [sorted(order.tolist()) for order in orders] == [list(range(150))] * 2
    assert not torch.equal(*orders)
    assert len({seed for _, seed, *_ in seen}) == len(seen), "each step draws anew"
    plain = torch.from_numpy(few[0])[orders[0]] / 255
    assert (torch.cat([images for *_, images, _ in seen[: ours.steps]]) != plain).flatten(1).any(1).float().mean() > 0.9


def test_the_epoch_kept_is_the_most_robust_of_those_that_are_clean_enough(
    few: Arrays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([(0.9, 0.3), (0.4, 0.8), (0.7, 0.6), (0.8, 0.5)])
    monkeypatch.setattr(Judge, "__call__", lambda *_: next(scores))
    run(make_job(epochs=4, steps=1, min_clean_accuracy=0.5), few, tmp_path)
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["chosen_epoch"] == 3


def test_what_judges_is_not_trained_on(few: Arrays, tmp_path: Path) -> None:
    job = make_job(holdout=20)
    training = Run(job, *few, CPU, Checkpoint(tmp_path, job, "", ""))
    assert training.judge is not None
    trained, judged = (
        {image.numpy().tobytes() for image in some.images} for some in (training.data, training.judge.judged)
    )
    assert (len(trained), len(judged)) == (130, 20)
    assert trained.isdisjoint(judged)


def test_outputs_say_what_was_done(few: Arrays, tmp_path: Path) -> None:
    job = make_job()
    run(job, few, tmp_path, fingerprint="code", data_hash="data", made_with={"versions": {"torch": "2.x"}})
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "config.yaml",
        "history.csv",
        "last.safetensors",
        "weights.safetensors",
    ]
    record = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert TrainJob.model_validate(record["job"]) == job
    assert record["fingerprint"] == "code"
    assert record["training_images"] == 130
    assert record["heldout_images"] == 20
    assert record["versions"]["torch"] == "2.x"
    rows = history(tmp_path)
    assert [row["epoch"] for row in rows] == ["1", "2"]
    robust = [float(row["val_robust_accuracy"]) for row in rows]
    assert record["chosen_epoch"] == 1 + robust.index(max(robust))
    assert f"epoch {record['chosen_epoch']} of 2: highest held-out robust" in record["selection"]
    assert "under PGD-10, eps 25.5" in record["selection"]
    assert [row["val_attack"] for row in rows] == ["PGD-10, eps 25.5"] * 2
    last = float(rows[-1]["val_clean_accuracy"])
    assert record["selection"].endswith(f"; the last epoch's: {robust[-1]:.4f} (clean {last:.4f})")
    assert load_weights(tmp_path / "weights.safetensors")[1]["epoch"] == str(record["chosen_epoch"])
    assert load_network(tmp_path).spec == job.network


def test_without_a_qualifying_epoch_the_last_is_kept_and_named(few: Arrays, tmp_path: Path) -> None:
    run(make_job(min_clean_accuracy=1.0), few, tmp_path)
    record = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert record["chosen_epoch"] == 2
    assert "no epoch's held-out clean accuracy exceeded min_clean_accuracy=1.0" in record["selection"]
    assert same(weights(tmp_path), weights(tmp_path, "weights"))


def test_without_held_out_images_the_last_is_kept(few: Arrays, tmp_path: Path) -> None:
    run(make_job(holdout=0, epochs=1), few, tmp_path)
    assert history(tmp_path)[0]["val_clean_accuracy"] == ""
    assert "nothing is held out" in (tmp_path / "config.yaml").read_text()
    assert same(weights(tmp_path), weights(tmp_path, "weights"))


def test_weights_depend_on_the_seed_alone(few: Arrays, tmp_path: Path) -> None:
    state = torch.get_rng_state()
    first = weights(run(make_job(epochs=1), few, tmp_path / "1"))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(9)
    assert same(first, weights(run(make_job(epochs=1), few, tmp_path / "2")))
    assert not same(first, weights(run(make_job(epochs=1, seed=1), few, tmp_path / "3")))


def test_a_last_batch_of_one_image_is_left_out(few: Arrays, tmp_path: Path) -> None:
    job = make_job(network=NetworkSpec(name="resnet18", width=1 / 32), batch_size=43, holdout=20, epochs=1)
    checkpoint = Checkpoint(tmp_path, job, "", "")
    assert Run(job, *few, CPU, checkpoint).steps == 3  # 130 = 3 * 43 + 1
    run(job, few, tmp_path)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((4, 1, 32, 32), np.float32), np.arange(4), "must be uint8"),
        (np.zeros((4, 32, 32), np.uint8), np.arange(4), "must be uint8"),
        (np.zeros((4, 1, 32, 32), np.uint8), np.array([0, 1, 3, 3]), "every class from 0 on"),
        (np.zeros((4, 1, 32, 32), np.uint8), np.arange(3), "must be int64"),
        (np.zeros((4, 1, 32, 32), np.uint8), np.arange(4) - 1, "every class from 0 on"),
        (np.zeros((0, 1, 32, 32), np.uint8), np.arange(0), "every class from 0 on"),
        (np.zeros((4, 1, 28, 28), np.uint8), np.arange(4), "multiple of 32, not 28"),
    ],
)
def test_unfit_data_are_refused(
    images: NDArray[np.uint8], labels: NDArray[np.int64], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        run(make_job(holdout=0), (images, labels), tmp_path)


def test_tensors_and_names_of_folders_are_taken(few: Arrays, tmp_path: Path) -> None:
    arrays = {"train_images": torch.from_numpy(few[0]), "train_labels": torch.from_numpy(few[1])}
    out, scratch = (str(tmp_path / name) for name in ("out", "scratch"))
    train(make_job(epochs=1, steps=1), **arrays, out=out, scratch=scratch, progress=False)  # type: ignore[arg-type]
    assert (tmp_path / "out/weights.safetensors").is_file()


# Averaged weights


def test_what_is_kept_is_the_average_of_weights_and_statistics(
    few: Arrays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the plain recurrence in float64 over the weights of every step."""

    def size(network: Network) -> float:
        return float(next(network.head.parameters()).detach().abs().sum())

    monkeypatch.setattr(Judge, "__call__", lambda _, folded, passes: (1.0, size(folded)))
    job, without, decay = make_job(ema=0.6), make_job(), 0.6
    training = Run(job, *few, CPU, Checkpoint(tmp_path, job, "", ""))
    plain = Run(without, *few, CPU, Checkpoint(tmp_path, without, "", ""))
    expected = {name: tensor.double().clone() for name, tensor in training.network.state_dict().items()}
    while training.state.epoch < 2:
        step = training.position
        training.advance()
        plain.advance()
        now = dict(training.network.state_dict())
        assert same(now, dict(plain.network.state_dict()))  # training itself takes no notice
        share = min(decay, (1 + step) / (10 + step))
        expected = {name: share * mean + (1 - share) * now[name].double() for name, mean in expected.items()}
        if training.state.step == training.steps:
            training.end_epoch()
            plain.end_epoch()
    kept = training.kept.state_dict()
    floats = [name for name in kept if kept[name].is_floating_point()]
    assert any(name.endswith("running_var") for name in floats)
    for name in floats:
        torch.testing.assert_close(kept[name].double(), expected[name], rtol=1e-5, atol=1e-6)
    assert all(torch.equal(kept[name], now[name]) for name in kept if name not in floats)
    # The average is what is judged, and what is written: the last, and that of the epoch that was judged best.
    scores = [row["val_robust_accuracy"] for row in training.state.rows]
    assert scores[-1] == size(training.kept) != size(training.network)
    run(job, few, tmp_path / "run")
    assert same(weights(tmp_path / "run"), dict(kept))
    assert size(load_network(tmp_path / "run")) == max(scores)


@pytest.mark.parametrize("after", [3, 5, 7])
def test_a_resumed_average_equals_an_undisturbed_one(
    after: int, few: Arrays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(ema=0.9)
    calm = run(job, few, tmp_path / "calm")
    with monkeypatch.context() as patch:
        interrupt(patch, after)
        with pytest.raises(Interrupted):
            run(job, few, tmp_path / "resumed", checkpoint_seconds=0)
    run(job, few, tmp_path / "resumed")
    for which in ("last", "weights"):
        assert same(weights(calm, which), weights(tmp_path / "resumed", which))
    assert not same(weights(calm), weights(run(make_job(), few, tmp_path / "plain")))


# A method's own settings


def planned_training(overlay: dict[str, Any]) -> dict[str, TrainJob]:
    """Training jobs on CIFAR-10 by model, of a table of two models."""
    files = [ROOT / "config/config.yaml"]
    raw = merge(yaml.safe_load(files[0].read_text()), overlay)
    artifact = ArtifactConfig.model_validate(
        {"kind": "table", "title": "", "caption": "", "category": "defence"}
        | {"settings": {"dataset": "cifar10", "layers": ["conv4"]}, "columns": [{"values": [{"label": ""}]}]}
        | {"rows": [{"values": [{"label": name, "model": name} for name in ("at", "mine")]}]}
    )
    return {task.job.model: task.job for task in plan_run(load_run(raw), {"x": artifact}).of("train")}


def test_a_method_may_change_settings_of_the_training() -> None:
    mine = {"label": "Mine", "base": "at", "epochs_factor": 2.5, "training": {"eps": 8, "ema": 0.999}}
    shared = {"epochs": 30, "steps": 3, "schedule": {"name": "step", "milestones": [9, 21]}}
    found = planned_training({"models": {"mine": mine}, "datasets": {"cifar10": {"training": shared}}})
    at, own = found["at"].training, found["mine"].training
    assert (at.eps, at.ema, at.epochs, at.schedule.milestones) == (4, None, 30, (9, 21))
    assert (own.eps, own.ema, own.epochs, own.schedule.milestones) == (8, 0.999, 75, (22, 52))
    changed = {"eps", "ema", "epochs", "schedule"}
    assert own.model_dump(exclude=changed) == at.model_dump(exclude=changed)
    # The job says what is trained, once: its method is that of plain AT, but for the label.
    assert found["mine"].method.model_dump() == found["at"].method.model_dump() | {"label": "Mine"}
    assert TrainJob.model_validate_json(found["mine"].model_dump_json()) == found["mine"]


def test_what_a_method_leaves_open_of_its_schedule_is_the_data_sets() -> None:
    shared = {"epochs": 30, "schedule": {"name": "step", "milestones": [15, 25], "gamma": 0.2}}
    mine = {"label": "Mine", "base": "at", "training": {"schedule": {"gamma": 0.5}}}
    found = planned_training({"models": {"mine": mine}, "datasets": {"cifar10": {"training": shared}}})
    assert found["mine"].training.schedule == found["at"].training.schedule.model_copy(update={"gamma": 0.5})
    assert found["at"].training.schedule.gamma == 0.2


def test_jobs_without_new_options_are_written_as_before() -> None:
    """Evidence, checkpoints and Snakemake's record of parameters go by these documents."""
    job = make_job(method={"regulariser": "ask"}).model_dump(mode="json")
    assert not {"ema", "pad", "ask_step_size"} & job["training"].keys()
    assert not {"training", "epochs_factor"} & job["method"].keys()
    assert "layers" not in job["method"]["ask"]
    several = ASKSpec(layers=("conv3", "conv4"))
    assert several.model_dump(mode="json")["layers"] == ["conv3", "conv4"]
    assert ASKSpec.model_validate_json(several.model_dump_json()) == several
    new = make_job(ema=0.5, pad=2, ask_step_size=6)
    assert TrainJob.model_validate_json(new.model_dump_json()) == new


@pytest.mark.parametrize("name", ["lite", "demo", "paper"])
def test_each_control_changes_what_it_is_named_for(name: str) -> None:
    plan = planned(name)
    trained = jobs(plan, "train").items()
    found = {model: job.training for (dataset, model), job in trained if dataset in ("cifar10", "digits-vgg")}
    at, step = found["at"], found["at-step"].model_dump()
    factor = at.ask_eps / at.eps
    # The control's generator reaches as far in its ball as AT against the same radius does.
    step_size = found["ask-def-reach"].ask_step_size
    assert found["ask-def-reach"].model_dump() == at.model_dump() | {"ask_step_size": step_size}
    assert step_size >= found["at-eps8"].step_size > 0.9 * at.ask_eps / at.steps
    assert (found["at-eps8"].eps, found["ask-def-eps4"].ask_eps) == (factor * at.eps, at.eps)
    assert found["at-long"].epochs == 2.5 * at.epochs
    assert step["schedule"]["name"] == "step"
    assert at.epochs // 2 <= min(step["schedule"]["milestones"]) <= max(step["schedule"]["milestones"]) < at.epochs
    assert found["at-ema"].model_dump() == step | {"ema": 0.999}
    assert found["ask-def-conv34"] == found["ask-def"] == at
    seeds = {model for model in found if "-seed" in model}
    most = plan.config.evaluation.max_training_seeds or 3
    assert seeds == {f"{model}-seed{i}" for model in ("at", "at-long", "ask-def") for i in range(1, most)}


def test_imagenettes_images_are_padded_by_four_pixels() -> None:
    found = jobs(planned("paper"), "train")
    assert (found["imagenette", "at"].training.pad, found["cifar10", "at"].training.pad) == (4, None)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"training": {"eps": 300}}, r"training\.eps: input should be less than or equal to 255"),
        ({"training": {"epsilon": 8}}, r"training\.epsilon: unknown option; allowed here: ask_eps"),
        ({"epochs_factor": 0}, r"epochs_factor: input should be greater than 0"),
        (
            {"training": {"schedule": {"gamma": 2}}},
            r"training\.schedule\.gamma: input should be less than or equal to 1",
        ),
        ({"base": "none", "epochs_factor": 2}, "base: none trains nothing: remove training and epochs_factor"),
    ],
)
def test_nonsense_in_a_methods_own_settings_is_refused(model: dict[str, Any], message: str) -> None:
    raw = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    raw["models"]["mine"] = {"label": "Mine", "base": "at"} | model
    with pytest.raises(ConfigError, match=rf"models\.mine.*{message}"):
        load_run(raw)


# Interruption and failure


def test_a_killed_run_ends_with_the_same_weights(few: Arrays, tmp_path: Path, repository: Path) -> None:
    data = tmp_path / "data.npz"
    np.savez(data, images=few[0], labels=few[1])
    job = make_job(epochs=4, batch_size=16)
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    # Rounding may depend on the thread count: the same one here and in the other processes.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    run(job, few, calm)
    torch.set_num_threads(threads)
    random = told_generator()
    for attempt in range(2):
        process = start(killed, data, job, 0, repository)
        assert process.stdout is not None
        process.stdout.readline()
        # The first kill waits for a checkpoint, so that there is something to continue from.
        while attempt == 0 and process.poll() is None and not list((killed / "scratch").glob("[!.]*")):
            time.sleep(0.01)
        time.sleep(random.uniform(0, 0.2))
        process.send_signal(signal.SIGKILL)
        process.stdout.close()
        assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    assert list((killed / "scratch").glob("[!.]*"))
    with start(killed, data, job, 0, repository) as process:
        process.communicate()
    assert process.returncode == 0
    for which in ("last", "weights"):
        assert (killed / f"{which}.safetensors").read_bytes() == (calm / f"{which}.safetensors").read_bytes()
    for row, expected in zip(history(killed), history(calm), strict=True):
        assert untimed(row) == untimed(expected)
    assert not (killed / "scratch").exists()


@pytest.mark.parametrize("after", [1, 5, 7])  # in the first epoch, at its end, in the second
@pytest.mark.parametrize("name", ["vgg16", "resnet18"])
def test_a_resumed_run_equals_an_undisturbed_one(
    name: str, after: int, few: Arrays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(network=NetworkSpec(name=name, width=1 / 32))
    calm = run(job, few, tmp_path / "calm")
    folder = tmp_path / "resumed"
    with monkeypatch.context() as patch:
        interrupt(patch, after)
        with pytest.raises(Interrupted):
            run(job, few, folder, checkpoint_seconds=0)
    # A kill between a history line and the checkpoint leaves lines too many.
    with (folder / "history.csv").open("a") as file:
        file.write("99,0,0,0,0,0,0\n")
    steps: list[int] = []
    advance = Run.advance
    monkeypatch.setattr(Run, "advance", lambda self: (steps.append(self.position), advance(self))[1])
    run(job, few, folder)
    assert steps == list(range(after, 10))
    assert same(weights(calm), weights(folder))
    assert same(weights(calm, "weights"), weights(folder, "weights"))
    assert [row["epoch"] for row in history(folder)] == ["1", "2"]
    assert [row["train_loss"] for row in history(folder)] == [row["train_loss"] for row in history(calm)]


@pytest.mark.parametrize("change", ["job", "fingerprint", "data_hash"])
def test_a_stale_checkpoint_is_ignored(
    change: str, few: Arrays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt(patch, 3)
        with pytest.raises(Interrupted):
            run(make_job(epochs=1), few, tmp_path, checkpoint_seconds=0)
    steps: list[int] = []
    advance = Run.advance
    monkeypatch.setattr(Run, "advance", lambda self: (steps.append(self.position), advance(self))[1])
    job = make_job(epochs=1, learning_rate=0.05) if change == "job" else make_job(epochs=1)
    run(job, few, tmp_path, **({} if change == "job" else {change: "other"}))
    assert steps[0] == 0


def test_a_library_s_training_takes_the_jobs_precision_and_continues_on_the_same_data_alone(
    few: Arrays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(epochs=1).model_copy(update={"precision": "bfloat16"})
    images, labels = few[0], few[1]
    given: dict[str, Any] = {"out": tmp_path / "out", "scratch": tmp_path / "scratch", "checkpoint_seconds": 0}
    with monkeypatch.context() as patch:
        interrupt(patch, 3)
        with pytest.raises(Interrupted):
            train(job, train_images=images, train_labels=labels, **given)
    steps: list[Any] = []
    advance = Run.advance
    noted = lambda self: (steps.append((self.position, self.state.passes)), advance(self))[1]  # noqa: E731
    monkeypatch.setattr(Run, "advance", noted)
    train(job, train_images=255 - images, train_labels=labels, **given)
    assert steps[0] == (0, "bfloat16")


def test_a_checkpoint_returns_what_was_saved(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "scratch", make_job(), "code", "data")
    assert checkpoint.load() is None
    state = State(epoch=3, step=2, best_epoch=1, best_accuracy=0.1 + 0.2, rows=[{"epoch": 1, "train_loss": 1 / 3}])
    checkpoint.save(state, network={"a.b/c": torch.rand(3)}, best={})
    found = checkpoint.load()
    assert found is not None
    assert found[0] == state
    assert list(found[1]) == ["network"]
    (tmp_path / "scratch" / f".elsewhere-1.{checkpoint.path.name}").write_text("half of a checkpoint")
    checkpoint.remove()
    assert not (tmp_path / "scratch").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_bad_loss_stops_training_with_the_reason(
    value: float, few: Arrays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = AdversarialTraining.__call__
    count = 0

    def spoilt(self: AdversarialTraining, network: Network, batch: Batch, layers: tuple[str, ...]) -> BaseOutput:
        nonlocal count
        count += 1
        output = method(self, network, batch, layers)
        if count < 8:
            return output
        return BaseOutput(loss=output.loss * value, correct=output.correct, adversarial=output.adversarial, features={})

    monkeypatch.setattr(AdversarialTraining, "__call__", spoilt)
    with pytest.raises(
        TrainingDivergedError,
        match=rf"loss is {value} at epoch 2, step 3 of 5 \(learning rate 0\.0\d+\): lower training.learning_rate",
    ):
        run(make_job(), few, tmp_path)
    assert not (tmp_path / "weights.safetensors").exists()


def test_divergence_of_the_weights_alone_is_seen(few: Arrays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    advance = Run.advance

    def spoilt(self: Run) -> None:
        advance(self)
        if self.state.step == self.steps:
            next(self.network.parameters()).data.fill_(float("inf"))

    monkeypatch.setattr(Run, "advance", spoilt)
    with pytest.raises(TrainingDivergedError, match="a weight is not finite"):
        run(make_job(), few, tmp_path)


def test_a_log_gets_a_line_an_epoch(few: Arrays, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(make_job(), few, tmp_path, progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("at: epoch 1/2, loss ")
    assert re.search(r"images/s, \d+ GFLOP/s$", lines[0])
    assert lines[2].startswith("at: kept epoch ")


@pytest.mark.gpu
def test_cuda_gives_the_cpus_loss_and_gradient() -> None:
    network = build(NetworkSpec(name="resnet18", width=1 / 4), in_channels=3, image_size=32, num_classes=10, seed=0)
    images = torch.rand(64, 3, 32, 32, generator=seeded(CPU, 0))
    labels = torch.arange(64) % 10
    losses, gradients = [], []
    for device, rounded in (("cpu", False), ("cpu", True), ("cuda", True)):
        copy = build_on(network, device)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=rounded):
            loss = F.cross_entropy(copy(images.to(device)), labels.to(device))
        found = torch.autograd.grad(loss, list(copy.parameters()))
        losses.append(loss.item())
        gradients.append(torch.cat([gradient.float().cpu().flatten() for gradient in found]))
    assert losses[2] == pytest.approx(losses[0], rel=0.02)
    # Two processors' bfloat16 differ by more than a fixed bar allows for: neither may be further from float32.
    cpu, cuda = (1 - F.cosine_similarity(gradients[0], gradient, dim=0) for gradient in gradients[1:])
    assert cuda < 1.5 * cpu < 0.3


def build_on(network: Network, device: str) -> Network:
    again = build(network.spec, in_channels=3, image_size=32, num_classes=10)
    again.load_state_dict(network.state_dict())
    again.to(device, memory_format=torch.channels_last)
    return again


@pytest.mark.gpu
@pytest.mark.parametrize("passes", ["float32", "bfloat16"])
def test_training_on_cuda(few: Arrays, tmp_path: Path, passes: Passes) -> None:
    run(make_job(), few, tmp_path, device="cuda", passes=passes)
    assert len(history(tmp_path)) == 2
