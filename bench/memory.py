"""Host and GPU memory that the stages of a run take, by arithmetic: does the paper run fit a common machine?

Bytes of what a stage holds at once at its largest; the interpreter, torch and CUDA's context stand in ``BASE_*``.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ask.attacks.linf import fitting_batch
from ask.config.base import LAYERS
from ask.config.training import NetworkSpec, TrainJob
from ask.knn.search import DEFAULT_MEMORY
from ask.measure.setting import layers_of
from ask.plan.cost import Shape, convolutions, network_macs, shape_of
from ask.plan.planner import Plan

GIB = 2**30
BASE_HOST = 1.5 * GIB
"""Interpreter, torch with its CUDA libraries, code."""
CARD = 24 * GIB
"""The smallest GPU that is reckoned with. One keeps the features of all training images if an eighth holds them."""
BASE_GPU = 1.0 * GIB
"""CUDA context, cuDNN's and cuBLAS' workspaces."""
FLOAT = 4


@dataclass(frozen=True, kw_only=True)
class Need:
    """Bytes of one stage at its largest."""

    stage: str
    host: float
    """On a machine without a GPU, or beside one: the larger of the two."""
    gpu: float


def activations(network: NetworkSpec, shape: Shape) -> float:
    """Bytes of one image's stored activations in fp32: each convolution's output, that of batch norm, and pooling's.

    ReLU works in place.
    """
    dimensions = network_macs(network, shape)[2]
    pooled = sum(dimensions) if network.name == "vgg16" else dimensions[0]
    return FLOAT * (pooled + sum(2 * channels * side**2 for _, _, channels, _, side in convolutions(network, shape)))


def needs(plan: Plan) -> list[Need]:
    """The largest training, index, attack and block fitting of every data set in a plan."""
    found: list[Need] = []
    shapes = {task.job.dataset: shape_of(task.job.spec) for task in plan.of("prepare")}
    found += [_training(task.job, shapes[task.job.dataset]) for task in plan.of("train")]
    for cell in (task.job for task in plan.of("attack")):
        shape, features = shapes[cell.features.dataset], cell.features
        layers = sorted({*layers_of(cell.attack), *(layer for c in cell.classifiers for layer in c.layers)})
        widths = [dimensions_of(features.network, shape, layer) for layer in layers]
        images = min(cell.test_images or shape.test, shape.test)
        picture = FLOAT * shape.channels * shape.side**2
        # Features of clean and adversarial images, and the references under each similarity, with a copy on the way.
        references = cell.references_per_class * shape.classes
        held = FLOAT * sum(widths) * (2 * images + 3 * references) + 4 * picture * images + DEFAULT_MEMORY
        pool = FLOAT * sum(widths) * shape.train
        kept = pool if 8 * pool <= CARD else 0.0
        one = 0.0 if features.network is None else activations(features.network, shape)
        vectors = 2**28  # what an attack's references may take in a batch
        # Batch norm is folded and stores nothing: half of it all, and as much again for gradients on their way.
        on_cpu, on_gpu = (fitting_batch(_images(shape, device), 0) for device in ("cpu", "meta"))
        found.append(
            Need(
                stage=f"attack {cell.features.dataset}/{cell.features.model}",
                host=BASE_HOST + held + one * on_cpu + vectors,
                gpu=BASE_GPU + held + kept + one * on_gpu + vectors,
            )
        )
    for block in (task.job for task in plan.of("blocks")):
        shape = shapes[block.features.dataset]
        width = dimensions_of(block.features.network, shape, block.layer)
        pool = FLOAT * width * shape.train
        # The pool, a scaled copy of it, a trial's references while they are searched, and the fitting's batches.
        held = 2 * pool + FLOAT * width * 2 * block.references_per_class * shape.classes + DEFAULT_MEMORY
        held += FLOAT * width * block.trials * block.block.batch_size
        found.append(Need(stage=f"blocks {block.features.dataset}", host=BASE_HOST + held, gpu=BASE_GPU + held))
    return found


def _images(shape: Shape, device: str) -> Tensor:
    """An image that takes no memory; whatever is no CPU counts as a GPU."""
    return torch.empty((1, shape.channels, shape.side, shape.side), device=device)


def dimensions_of(network: NetworkSpec | None, shape: Shape, layer: str) -> int:
    """Values of one image at a layer."""
    if network is None or layer == "input":
        return shape.channels * shape.side**2
    return network_macs(network, shape)[2][LAYERS.index(layer) - 1]


def _training(job: TrainJob, shape: Shape) -> Need:
    picture = shape.channels * shape.side**2
    images = picture * shape.train
    one = activations(job.network, shape)
    batch = job.training.batch_size
    if job.method.ask is not None:
        # The update's own pass of adversarial images and of two groups of references.
        batch += job.training.batch_size + 2 * shape.classes * job.method.ask.references_per_class
    weights = 64 * 2**20 * max(job.network.width, job.network.width**2)  # 16 million values
    # Weights, gradients, momentum, the folded copy, the best epoch's; a validation batch of 512 in evaluation mode.
    held = 5 * weights + 1.5 * one * max(batch, 512)
    return Need(
        stage=f"train {job.dataset}/{job.model}", host=BASE_HOST + 3 * images + held, gpu=BASE_GPU + images + held
    )


def largest(plan: Plan) -> tuple[Need, Need]:
    """The stages that take the most host memory and the most GPU memory."""
    found = needs(plan)
    return max(found, key=lambda need: need.host), max(found, key=lambda need: need.gpu)
