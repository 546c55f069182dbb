"""Floating-point operations and bytes of every job, counted from configurations alone: no torch, no data.

A multiply-add counts as two operations. Forward to a layer costs F, an input gradient 2F (forward and backward-data), a
training step 3F. Batch norm, pooling and element-wise work are left out; they are a few percent.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ask.config.base import LAYERS
from ask.config.data import DataSpec
from ask.config.jobs import AttackSpec, ClassifierSpec
from ask.config.training import NetworkSpec, TrainJob
from ask.data.sources import PUBLISHED
from ask.plan.jobs import Jobs

VGG16_PLAN = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
RESNET18_STAGES = (64, 128, 256, 512)
UNKNOWN = 10_000
"""Images of a user's own data set, until it is there to be counted."""


@dataclass(frozen=True)
class Shape:
    """What a data set contributes to the arithmetic."""

    channels: int
    side: int
    classes: int
    train: int
    test: int


def shape_of(spec: DataSpec) -> Shape:
    """Counts of a published data set; guesses for a user's own."""
    known = PUBLISHED.get(spec.source)
    if known is None:
        return Shape(3, spec.image_size or 32, 10, UNKNOWN, UNKNOWN)
    channels, side, _ = known.shape or (3, 160, 160)
    return Shape(
        channels, spec.image_size or side, len(known.class_names), sum(known.train_counts), sum(known.test_counts)
    )


def network_macs(network: NetworkSpec, shape: Shape) -> tuple[list[float], float, list[int]]:
    """Multiply-adds of one image forward up to each of the five blocks and through the head, and their dimensions."""

    def scaled(channels: int) -> int:
        return max(1, round(channels * network.width))

    macs, upto, dimensions = 0.0, [], []
    channels, side = shape.channels, shape.side
    if network.name == "vgg16":
        for plan in VGG16_PLAN:
            for wide in plan:
                macs += side**2 * channels * scaled(wide) * 9
                channels = scaled(wide)
            side //= 2
            upto.append(macs)
            dimensions.append(channels * side**2)
        hidden = scaled(512)
        return upto, macs + dimensions[-1] * hidden + hidden**2 + hidden * shape.classes, dimensions
    side = math.ceil(side / 2)
    macs += side**2 * channels * scaled(64) * 49
    channels, side = scaled(64), math.ceil(side / 2)
    upto.append(macs)
    dimensions.append(channels * side**2)
    for stage, wide in enumerate(RESNET18_STAGES):
        inside, channels_in = scaled(wide), channels
        side = math.ceil(side / 2) if stage else side
        macs += side**2 * inside * 9 * (channels_in + 3 * inside)
        macs += side**2 * channels_in * inside if channels_in != inside or stage else 0
        channels = inside
        upto.append(macs)
        dimensions.append(channels * side**2)
    return upto, macs + channels * shape.classes, dimensions


class Arithmetic:
    """Operations and bytes of a run's jobs."""

    def __init__(self, jobs: Jobs) -> None:
        self.jobs = jobs
        self.shapes = {name: shape_of(spec) for name, spec in jobs.data.items()}

    def layer(self, features: Any, layer: str) -> tuple[float, int]:
        """Operations of one image forward up to a layer, and its dimensions."""
        shape = self.shapes[features.dataset]
        if features.network is None or layer == "input":
            return 0.0, shape.channels * shape.side**2
        upto, _, dimensions = network_macs(features.network, shape)
        place = LAYERS.index(layer) - 1
        return 2 * upto[place], dimensions[place]

    def whole(self, features: Any) -> float:
        """Operations of one image through the whole network."""
        if features.network is None:
            return 0.0
        return 2 * network_macs(features.network, self.shapes[features.dataset])[1]

    def train(self, job: TrainJob) -> float:
        """A training: crafting, updates, and the regulariser's own passes; validation is left out."""
        shape, training, method = self.shapes[job.dataset], job.training, job.method
        upto, all_macs, _ = network_macs(job.network, shape)
        whole = 2 * all_macs
        batch, gradient = training.batch_size, 2 * whole
        step = batch * (training.steps * gradient + 3 * whole)
        if method.base == "trades":
            step += batch * 4 * whole  # the clean images' output for crafting, and their part of the update
        if method.regulariser == "ask" and method.ask:
            reach = 2 * upto[LAYERS.index(method.ask.layer) - 1]
            clean = method.ask.references_per_class * shape.classes
            copies = clean * training.steps * (gradient if method.ask.reference_attack == "ce" else 2 * reach)
            step += copies + 2 * clean * 4 * reach + batch * (training.steps * 2 * reach + 3 * reach)
        images = shape.train - (training.holdout if training.selection != "test" else 0)
        return step * (images // batch) * training.epochs

    def attack(self, features: Any, attack: AttackSpec, classifiers: Any, images: int, references: int) -> float:
        """One attack on one reference set: the ascent, and features and searches of clean and attacked images."""
        names = {*attack.layers, *(layer for c in classifiers for layer in c.layers)}
        layers = [self.layer(features, layer) for layer in names]
        if attack.name in ("pgd", "autoattack"):
            ascent = 2 * self.whole(features)
        else:
            ascent = 2 * max((self.layer(features, layer)[0] for layer in attack.layers), default=0.0)
        steps = float(attack.steps)
        if attack.auto:
            parts = attack.auto.parts if attack.name == "autoattack" else ("square",)
            steps = sum(attack.auto.queries / 2 if part == "square" else attack.auto.iterations for part in parts)
        search = sum(2 * references * dimensions for _, dimensions in layers)
        return images * (steps * ascent + 2 * search + 2 * self.whole(features))

    def cell(self, job: Any) -> float:
        """All trials of a cell."""
        shape = self.shapes[job.features.dataset]
        images = min(job.test_images or shape.test, shape.test)
        references = job.references_per_class * shape.classes
        return float(job.trials) * self.attack(job.features, job.attack, job.classifiers, images, references)

    def calibration(self, job: Any) -> float:
        """All points of a grid."""
        shape = self.shapes[job.features.dataset]
        references = job.references_per_class * shape.classes
        images = min(job.images, shape.test)
        classifiers: tuple[ClassifierSpec, ...] = (job.classifier,)
        return len(job.grid) * self.attack(job.features, job.attack, classifiers, images, references)

    def index(self, job: Any) -> tuple[float, float]:
        """Operations and bytes of all training images' features at a layer."""
        forward, dimensions = self.layer(job.features, job.layer)
        images = self.shapes[job.features.dataset].train
        return images * forward, 4.0 * images * dimensions

    def blocks(self, job: Any) -> tuple[float, float]:
        """Operations and bytes of AdvKnn's blocks of all trials."""
        shape = self.shapes[job.features.dataset]
        _, dimensions = self.layer(job.features, job.layer)
        references = job.references_per_class * shape.classes
        size = dimensions * shape.classes
        search = 2 * references**2 * dimensions
        return job.trials * (job.block.epochs * references * 6 * size + search), 4.0 * job.trials * size

    def timing(self, job: Any) -> float:
        """All rounds of a comparison of seconds."""
        shape = self.shapes[job.cells[0].features.dataset]
        references = job.cells[0].references_per_class * shape.classes
        once = sum(self.attack(c.features, c.attack, c.classifiers, job.images, references) for c in job.cells)
        return float(job.rounds) * once

    def predictions(self, job: Any) -> float:
        """Bytes of a cell's predictions, before compression."""
        shape = self.shapes[job.features.dataset]
        images = min(job.test_images or shape.test, shape.test)
        return float(images * (job.trials * (2 * len(job.classifiers) + 1) + 2))

    def weights(self, job: TrainJob) -> float:
        """Bytes of a model's two files of weights."""
        shape = self.shapes[job.dataset]

        def scaled(channels: int) -> int:
            return max(1, round(channels * job.network.width))

        if job.network.name == "vgg16":
            chain = [shape.channels, *(scaled(wide) for plan in VGG16_PLAN for wide in plan)]
            parameters = float(sum(9 * a * b + 5 * b for a, b in pairwise(chain)))
            parameters += 2 * scaled(512) ** 2 + chain[-1] * scaled(512) * ((shape.side // 32) ** 2 - 1)
        else:
            parameters = sum(scaled(wide) ** 2 * (9 * 3.5 + 0.5) for wide in RESNET18_STAGES)
        return 8.0 * parameters
