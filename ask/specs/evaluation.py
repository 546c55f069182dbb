"""What the index, calibration and attack steps read."""

from typing import Literal

from pydantic import Field

from .base import Pixels, Spec
from .training import NetworkSpec

Similarity = Literal["cosine", "l2"]
AttackName = Literal["none", "ask"]
Variant = Literal["non-targeted", "targeted", "random-sampling"]
Layer = Literal["input", "conv1", "conv2", "conv3", "conv4", "conv5"]


class CalibrationSpec(Spec):
    """Search of the temperature tau and the layer weights omega (paper, IV-c and App. D-e)."""

    images: int = Field(default=500, ge=1)
    """Size of the first test batch, on which both are picked; the first of one fixed shuffle of the test images."""
    tau_cosine: tuple[float, ...] = (0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 30)
    """Temperatures tried under cosine similarity."""
    tau_l2: tuple[float, ...] = (0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30)
    """Temperatures tried under negative l2 distance."""
    omega: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    """Weights tried for the first of two attacked layers; the second gets the rest. More layers weigh the same."""
    own: tuple[Literal["variant", "eps", "step_size"], ...] = ("variant", "eps", "step_size")
    """Settings of an attack that get a search of their own; for the others, the run's default is searched once."""


class AttackSpec(Spec):
    """One attack, in the paper's units."""

    name: AttackName
    """`ask`: ASK-Atk; `none`: clean images only."""
    variant: Variant = "non-targeted"
    """Non-targeted, targeted at the nearest wrong class, or with out-of-class references drawn at random."""
    similarity: Similarity = "cosine"
    """Similarity measure of the loss and of its reference search."""
    layers: tuple[Layer, ...]
    """Attacked layers."""
    k_in: int = Field(default=5, ge=1)
    """In-class references, K+."""
    k_out: int = Field(default=5, ge=1)
    """Out-of-class references a class, K-."""
    eps: Pixels
    """l-infinity radius, n/255."""
    step_size: Pixels
    """Step, n/255."""
    steps: int = Field(ge=0)
    """Gradient steps."""


class ClassifierSpec(Spec):
    """One DkNN classifier (eq. 1)."""

    similarity: Similarity
    layers: tuple[Layer, ...]
    k: int = Field(ge=1)


class FeatureSpec(Spec):
    """The feature function: a trained model of a data set, or the pixels."""

    dataset: str
    model: str
    network: NetworkSpec | None
    """Null: raw pixels."""


class IndexJob(Spec):
    """Features of the whole training set at one layer."""

    features: FeatureSpec
    layer: Layer


class CalibrationJob(Spec):
    """tau of one layer, or omega of several (their tau being known)."""

    id: str
    features: FeatureSpec
    attack: AttackSpec
    classifier: ClassifierSpec
    grid: tuple[float, ...]
    images: int
    references_per_class: int
    tau_from: tuple[str, ...]
    """Ids of the calibrations that hold each layer's tau; empty when tau itself is searched."""
    seed: int


class CellJob(Spec):
    """One attack on one model over all trials, seen by every classifier that an artifact asks of it."""

    id: str
    features: FeatureSpec
    attack: AttackSpec
    classifiers: tuple[ClassifierSpec, ...]
    references_per_class: int
    trials: int
    test_images: int | None
    """So many test images, of one fixed shuffle; null: all."""
    tau: float | None
    """Fixed temperature of every layer; null: from calibration."""
    tau_from: tuple[str, ...]
    """Calibration id of each attacked layer's tau."""
    omega_from: str | None
    """Calibration id of the layer weights; null: equal weights."""
    seed: int
