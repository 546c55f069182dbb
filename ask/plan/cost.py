"""Floating-point operations and bytes of every job, counted from configurations alone: no data, and no torch but for
networks of one's own, which are run once on tensors without content.

A multiply-add counts as two operations. Forward to a layer costs F, an input gradient 2F (forward and backward-data), a
training step 3F. Batch norm, pooling and element-wise work are left out; they are a few percent.
"""

import math
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ask.config import jobs
from ask.config.attacks import AutoAttackOptions, SquareConfig
from ask.config.base import DataSpec
from ask.config.training import NetworkSpec, TrainJob, layers_of
from ask.data.sources import PUBLISHED
from ask.errors import AskError, DataError
from ask.plan.graph import Task
from ask.plan.planner import Plan
from ask.plan.preflight import counted

VGG16_PLAN = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
RESNET18_STAGES = (64, 128, 256, 512)
UNKNOWN, UNKNOWN_SIDE = 10_000, 32
"""Images of a user's own data set that is not there (yet), and their side."""


@dataclass(frozen=True)
class Shape:
    """What a data set contributes to the arithmetic."""

    channels: int
    side: int
    classes: int
    train: int
    test: int


@dataclass(frozen=True)
class Cost:
    """What a job takes."""

    flop: float = 0.0
    """Floating-point operations."""
    size: float = 0.0
    """Bytes of what it keeps."""
    shared: float = 0.0
    """Of these operations, those of an ascent that another task climbs, if that is made too (:attr:`Task.after`)."""
    unknown: str = ""
    """Why neither is known, if so."""


def costs(plan: Plan) -> dict[Path, Cost]:
    """What each task takes, by its main output; nothing where nothing is counted, as of data, tables and the report."""
    shapes = {task.job.dataset: shape_of(task.job.spec) for task in plan.of("prepare")}
    return {path: _known(task.job, shapes) for path, task in plan.tasks.items()}


def _known(job: Any, shapes: Mapping[str, Shape]) -> Cost:
    try:
        return _cost(job, shapes)
    except AskError as error:
        return Cost(unknown=str(error))


def cost_left(task: Task, cost: Cost, made: Container[Path | None] = ()) -> Cost:
    """What is left of a task's cost beside others that are ``made``: of a cell, that of the trials to be measured."""
    if not task.counts_trials:
        return cost
    share = task.trials_left(made) / task.document["trials"]
    own = cost.flop - (cost.shared if task.after in made else 0)
    return replace(cost, flop=own * share, size=cost.size * share)


def shape_of(spec: DataSpec) -> Shape:
    """Counts of a published data set, or of a user's own; guesses where that is not there."""
    known = PUBLISHED.get(spec.source)
    if known is None:
        with suppress(DataError):
            own = counted(spec)
            side = max(own.sides or (UNKNOWN_SIDE,))
            return Shape(own.channels, side, len(own.names), sum(own.train), sum(own.test))
        return Shape(3, spec.image_size or UNKNOWN_SIDE, 10, UNKNOWN, UNKNOWN)
    channels, side, _ = known.shape or (3, 160, 160)
    return Shape(
        channels, spec.image_size or side, len(known.class_names), sum(known.train_counts), sum(known.test_counts)
    )


def convolutions(network: NetworkSpec, shape: Shape) -> Iterator[tuple[int, int, int, int, int]]:
    """Every convolution of a network: its block (0 to 4), channels in and out, side of its kernel and of its output."""

    def scaled(channels: int) -> int:
        return max(1, round(channels * network.width))

    channels, side = shape.channels, shape.side
    if network.name == "vgg16":
        for block, plan in enumerate(VGG16_PLAN):
            for out in map(scaled, plan):
                yield block, channels, out, 3, side
                channels = out
            side //= 2
        return
    side = math.ceil(side / 2)
    yield 0, channels, scaled(64), 7, side
    channels, side = scaled(64), math.ceil(side / 2)
    for block, out in enumerate(map(scaled, RESNET18_STAGES), 1):
        side = math.ceil(side / 2) if block > 1 else side
        for source in (channels, out, out, out):
            yield block, source, out, 3, side
        if block > 1:
            yield block, channels, out, 1, side
        channels = out


def network_macs(network: NetworkSpec, shape: Shape) -> tuple[list[float], float, list[int], int]:
    """Multiply-adds of an image up to each of the five blocks and through the head, the blocks' dimensions, weights."""
    macs, weights, upto, dimensions, vgg = 0.0, 0, [0.0] * 5, [0] * 5, network.name == "vgg16"
    for block, channels, out, kernel, side in convolutions(network, shape):
        weights += kernel**2 * channels * out
        macs += side**2 * kernel**2 * channels * out
        # Every block of VGG16 ends with pooling, of ResNet18 only the first.
        pooled = side // 2 if vgg else math.ceil(side / 2) if block == 0 else side
        upto[block], dimensions[block] = macs, out * pooled**2
    head = out * shape.classes + (dimensions[-1] * out + out**2 if vgg else 0)
    return upto, macs + head, dimensions, weights + head


def reach(network: NetworkSpec, shape: Shape, layer: str | None = None) -> tuple[float, int, int]:
    """Multiply-adds of an image up to a layer (None: through the head), the layer's dimensions, the network's weights.

    Raises AskError for a network of one's own that can't be counted.
    """
    if network.factory:
        from ask.models.own import count

        text = network.model_copy(update={"layers": {}}).model_dump_json()
        return count(text, network.layers[layer] if layer else None, shape.channels, shape.side)
    upto, whole, dimensions, weights = network_macs(network, shape)
    place = network.names.index(layer) if layer else -1
    return upto[place] if layer else whole, dimensions[place], weights


def _forward(features: jobs.FeatureSpec, shape: Shape, layer: str | None = None) -> tuple[float, int]:
    """Operations of one image forward up to a layer (None: through the head), and the layer's dimensions."""
    if features.network is None or layer == "input":
        return 0.0, shape.channels * shape.side**2
    macs, dimensions, _ = reach(features.network, shape, layer)
    return 2 * macs, dimensions


def _cost(job: Any, shapes: Mapping[str, Shape]) -> Cost:
    match job:
        case TrainJob():  # keeps the weights of two epochs
            shape = shapes[job.dataset]
            return Cost(_training(job, shape), 8.0 * reach(job.network, shape)[2])
        case jobs.AdoptJob():
            shape = shapes[job.features.dataset]
            return Cost(0.0, 4.0 * (reach(job.features.network, shape)[2] if job.features.network else 0))
        case jobs.IndexJob():
            shape = shapes[job.features.dataset]
            forward, dimensions = _forward(job.features, shape, job.layer)
            return Cost(shape.train * forward, 4.0 * shape.train * dimensions)
        case jobs.CalibrationJob():
            tries = len(job.grid) + 2 * len(job.classifier.layers) * job.of_layers
            return Cost(tries * _once(job, shapes, (job.classifier,), job.images))
        case jobs.BlockJob():
            shape = shapes[job.features.dataset]
            _, dimensions = _forward(job.features, shape, job.layer)
            references, size = job.references_per_class * shape.classes, dimensions * shape.classes
            search = 2 * references**2 * dimensions
            return Cost(job.trials * (job.block.epochs * references * 6 * size + search), 4.0 * job.trials * size)
        case jobs.CellJob():  # keeps predictions, counted before compression
            test = shapes[job.features.dataset].test
            images = min(job.test_images or test, test)
            size = images * (job.trials * (2 * len(job.classifiers) + 1) + 2)
            whole = job.trials * _once(job, shapes, job.classifiers, images)
            return Cost(whole, size, whole - job.trials * _once(job, shapes, job.classifiers, images, climbs=False))
        case jobs.TimingJob():
            return Cost(job.rounds * sum(_once(cell, shapes, cell.classifiers, job.images) for cell in job.cells))
    return Cost()


def _training(job: TrainJob, shape: Shape) -> float:
    """Operations of crafting, updates, and the regulariser's own passes; validation is left out."""
    training, method = job.training, job.method
    whole, batch = 2 * reach(job.network, shape)[0], training.batch_size
    gradient = 2 * whole
    step = batch * (training.steps * gradient + 3 * whole)
    if method.base == "trades":
        step += batch * 4 * whole  # the clean images' output for crafting, and their part of the update
    if method.regulariser == "ask" and method.ask:
        deepest = 2 * max(reach(job.network, shape, layer)[0] for layer in layers_of(method))
        clean = method.ask.references_per_class * shape.classes
        copies = clean * training.steps * (gradient if method.ask.reference_attack == "ce" else 2 * deepest)
        step += copies + 2 * clean * 4 * deepest + batch * (training.steps * 2 * deepest + 3 * deepest)
    images = shape.train - (training.holdout if training.selection != "test" else 0)
    return step * (images // batch) * training.epochs


def _once(
    job: jobs.CellJob | jobs.CalibrationJob,
    shapes: Mapping[str, Shape],
    classifiers: Iterable[jobs.ClassifierSpec],
    images: int,
    *,
    climbs: bool = True,
) -> float:
    """Operations of one attack on one reference set: the ascent, features and searches of clean and attacked images."""
    shape, attack = shapes[job.features.dataset], job.attack
    whole, own = _forward(job.features, shape)[0], getattr(attack, "layers", ())
    layers = {*own, *(layer for one in classifiers for layer in one.layers)}
    depths = {layer: _forward(job.features, shape, layer) for layer in layers}
    search = sum(2 * job.references_per_class * shape.classes * dimensions for _, dimensions in depths.values())
    steps = getattr(attack, "steps", 0)
    if isinstance(attack, AutoAttackOptions):  # a query of Square, which takes no gradient, counts as a half
        parts = ("square",) if isinstance(attack, SquareConfig) else attack.parts
        steps = sum(attack.queries / 2 if part == "square" else attack.iterations for part in parts)
    # An attack without layers of its own follows the network's output.
    ascent = 2 * max((depths[layer][0] for layer in own), default=whole)
    return min(images, shape.test) * (steps * ascent * climbs + 2 * search + 2 * whole)
