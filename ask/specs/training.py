"""What the training step reads."""

from typing import Literal

from pydantic import Field

from .base import Pixels, Spec


class NetworkSpec(Spec):
    """A network of five named convolutional blocks and a head."""

    name: Literal["vgg16", "resnet18"]
    """VGG16 with batch norm (CIFAR-10) or ResNet18 (Imagenette); paper, App. D-b."""
    width: float = Field(default=1.0, gt=0, le=4)
    """Multiplier of every layer's channel count; 1 is the paper's network."""
    dropout: float = Field(default=0.5, ge=0, lt=1)
    """Rate of the two dropouts in VGG16's head; 0 suits narrow networks, which it starves (ResNet18 has none)."""


class ScheduleSpec(Spec):
    """Learning-rate schedule."""

    name: Literal["step", "onecycle"] = "step"
    """`step`: times `gamma` at each milestone; `onecycle`: one rise and one fall, per batch."""
    milestones: tuple[int, ...] = (100,)
    """Epochs at which the rate is multiplied by `gamma` (step only)."""
    gamma: float = Field(default=0.1, gt=0, le=1)
    """Factor at a milestone (step only)."""


class TrainingSpec(Spec):
    """Settings of the one training loop.

    Defaults are CIFAR-10's (paper, App. D-e/f; released code where the paper is silent).
    """

    epochs: int = Field(default=200, ge=1)
    """Passes over the training images."""
    batch_size: int = Field(default=128, ge=1)
    """Images a step."""
    learning_rate: float = Field(default=0.1, gt=0)
    """Initial (step) or largest (onecycle) learning rate of SGD."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Nesterov momentum of SGD."""
    weight_decay: float = Field(default=2e-4, ge=0)
    """L2 penalty of SGD on every parameter."""
    schedule: ScheduleSpec = ScheduleSpec()
    """Learning-rate schedule."""
    augment: Literal["crop-flip", "crop", "none"] = "crop-flip"
    """Random crop after padding by an eighth of the side (4 of 32), and horizontal flip."""
    eps: Pixels = 4
    """l-infinity radius of the training attack, n/255."""
    step_size: Pixels = 2
    """Step of the training attack, n/255."""
    steps: int = Field(default=10, ge=1)
    """Steps of the training attack."""
    holdout: int = Field(default=1000, ge=0)
    """Training images (class-balanced) kept out of training and used to pick the best epoch; 0 keeps the last epoch."""
    eval_eps: Pixels = 8
    """l-infinity radius of the PGD attack on the held-out images by which the best epoch is picked, n/255."""
    min_clean_accuracy: float = Field(default=0.83, ge=0, le=1)
    """An epoch counts as best only above this clean accuracy of the network on the held-out images."""


class ModelSpec(Spec):
    """A training method: base x regulariser."""

    label: str
    """Name in tables."""
    base: Literal["none", "at"]
    """`none`: raw pixels, no network; `at`: cross-entropy on PGD examples (adversarial training)."""
    regulariser: Literal["none"] = "none"
    """Term added to the base's loss."""


class TrainJob(Spec):
    """One model to train."""

    dataset: str
    model: str
    network: NetworkSpec
    method: ModelSpec
    training: TrainingSpec
    seed: int
