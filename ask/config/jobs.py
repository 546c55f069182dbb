"""What the index, calibration and attack steps read."""

from typing import Literal

from pydantic import Field

from ask.config.base import Pixels, Spec
from ask.config.training import ASKSpec, ModelSpec, NetworkSpec, TrainingSpec

Similarity = Literal["cosine", "l2"]
AttackName = Literal["none", "ask", "dknn", "advknn", "pgd", "autoattack", "square"]
Variant = Literal["", "non-targeted", "targeted", "random-sampling", "adam", "sign", "successor"]
VARIANTS: dict[AttackName, tuple[Variant, ...]] = {
    "none": ("",),
    "ask": ("non-targeted", "targeted", "random-sampling"),
    "dknn": ("adam", "sign", "successor"),
    "advknn": ("",),
    "pgd": ("",),
    "autoattack": ("",),
    "square": ("",),
}
"""Variants of each attack, its default first."""
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
    dknn_alpha: tuple[float, ...] = (0.1, 0.3, 1, 4, 10, 30)
    """Slopes of DkNN-Atk's sigmoid that are tried, each with every learning rate."""
    dknn_learning_rate: tuple[float, ...] = (0.03, 0.1, 0.3)
    """Learning rates tried for DkNN-Atk's optimiser (variants `adam` and `successor`)."""
    own: tuple[Literal["variant", "eps", "step_size"], ...] = ("variant", "eps", "step_size")
    """Settings of an attack that get a search of their own; for the others, the run's default is searched once."""


class DkNNAttackSpec(Spec):
    """Options of DkNN-Atk; alpha and the learning rate are calibrated."""

    guides: int = Field(default=15, ge=1)
    """Guides m: the references of one wrong class, nearest to the clean image, that features are pulled towards."""
    threshold: float | None = Field(default=None, gt=0)
    """Constant distance within which a guide counts as a neighbour; null: mean distance of references to their K-th
    nearest other reference."""
    relative: bool = True
    """Compare distances divided by that threshold; false: as they are (the original)."""


class BlockSpec(Spec):
    """Fitting of AdvKnn's deep kNN blocks."""

    epochs: int = Field(default=100, ge=1)
    """Passes over the reference set (paper, App. D-e)."""
    batch_size: int = Field(default=128, ge=1)
    """References a step."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Of SGD."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Nesterov momentum."""
    weight_decay: float = Field(default=2e-4, ge=0)
    """L2 penalty."""
    hidden: int | None = Field(default=None, ge=1)
    """Units of a hidden layer; null: a linear block."""


class AdvKnnSpec(Spec):
    """Options of AdvKnn."""

    ce_weight: float = Field(default=0, ge=0)
    """Weight of the cross-entropy with the clean image's majority vote, beside the KL divergence (the original: 20 on
    one layer, 0.3 on several)."""
    block: BlockSpec = BlockSpec()
    """Fitting of the deep kNN blocks."""


class AutoAttackSpec(Spec):
    """Options of AutoAttack and of Square; the default is the standard ensemble."""

    parts: tuple[Literal["apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square"], ...] = (
        "apgd-ce",
        "apgd-t",
        "fab-t",
        "square",
    )
    """Attacks of AutoAttack, in turn on the images that withstood those before."""
    iterations: int = Field(default=100, ge=1)
    """Of each part that follows gradients."""
    queries: int = Field(default=5000, ge=1)
    """Of Square."""
    batch_size: int = Field(default=500, ge=1)
    """Images attacked at a time."""


class AttackSpec(Spec):
    """One attack, in the paper's units."""

    name: AttackName
    """`ask`: ASK-Atk; `dknn`: DkNN-Atk; `advknn`: AdvKnn; `pgd`: PGD on the network;
    `autoattack`: AutoAttack on the network; `square`: Square on the DkNN's votes; `none`: clean images only."""
    variant: Variant = "non-targeted"
    """ASK-Atk: non-targeted, targeted at the nearest wrong class, or with out-of-class references drawn at random.
    DkNN-Atk: by Adam, by sign-PGD, or the successor (ReLU loss, RMSprop)."""
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
    dknn: DkNNAttackSpec | None = None
    """Options of DkNN-Atk."""
    advknn: AdvKnnSpec | None = None
    """Options of AdvKnn."""
    auto: AutoAttackSpec | None = None
    """Options of AutoAttack and Square."""


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
    """Search of an attack's parameters: tau of one layer, omega of two, or alpha and the learning rate of DkNN-Atk."""

    id: str
    features: FeatureSpec
    attack: AttackSpec
    classifier: ClassifierSpec
    grid: tuple[dict[str, float], ...]
    """Points, by parameter; `omega` is the first layer's."""
    images: int
    references_per_class: int
    tau_from: tuple[str, ...] = ()
    """Ids of the calibrations that hold each layer's tau; empty when tau itself is searched."""
    seed: int


class BlockJob(Spec):
    """AdvKnn's deep kNN blocks of one layer, one for each trial's reference set."""

    id: str
    features: FeatureSpec
    layer: Layer
    similarity: Similarity
    k: int
    block: BlockSpec
    references_per_class: int
    trials: int
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
    tau: float | None = None
    """Fixed temperature of every layer; null: from calibration."""
    tau_from: tuple[str, ...] = ()
    """Calibration id of each attacked layer's tau."""
    omega_from: str | None = None
    """Calibration id of the layer weights; null: equal weights."""
    alpha_from: str | None = None
    """Calibration id of DkNN-Atk's alpha and learning rate."""
    blocks_from: tuple[str, ...] = ()
    """Id of each attacked layer's deep kNN blocks (AdvKnn)."""
    seed: int


class FailureJob(Spec):
    """What tells images that withstand an attack from those that do not (paper, VI-A-f and App. G-a)."""

    id: str
    cell: CellJob
    """Whose predictions are analysed; its first classifier and the trials' reference sets."""
    similarity: Similarity
    layer: Layer
    confidence_k: int = 50
    """Neighbours whose largest vote is the confidence."""
    gap_k: int = 5
    """References a class whose mean similarity is compared."""


class StudyJob(Spec):
    """A simulation that needs neither data nor a trained network."""

    id: str
    seed: int


class PlaneJob(Spec):
    """Models trained on two half moons in the plane (Figure 3)."""

    id: str
    models: tuple[ModelSpec, ...] = (
        ModelSpec(label="AT", base="at"),
        ModelSpec(label="ASK-Def", base="at", regulariser="ask", ask=ASKSpec(layer="conv2", references_per_class=10)),
    )
    """The model that is fooled comes first."""
    training: TrainingSpec = TrainingSpec(
        epochs=300, batch_size=64, learning_rate=0.02, eps=6, ask_eps=14, step_size=5, steps=3
    )
    """Its epochs are steps of Adam; radii are n of 255 of the unit square's side."""
    seed: int
    seeds: int = 3
    """Data sets and networks, over which accuracies are averaged."""
    points: int = 300
    """Training points, and as many test points."""
    noise: float = 0.035
    """Standard deviation of the points around the moons; the square has side 1."""
    hidden: int = 64
    """Units of each hidden layer."""
    k: int = 5
    """Neighbours of classifier and attack."""
    side: int = 241
    """Places along each side of the square at which boundaries are evaluated."""


class CostJob(Spec):
    """Training cost of a model, relative to another one."""

    id: str
    dataset: str
    model: str
    base: str


class TimingJob(Spec):
    """Seconds of several attacks, in turns on one machine."""

    id: str
    cells: tuple[CellJob, ...]
    """Attacks to time, with their settings; the first is what the others are compared with."""
    grid_sizes: tuple[int, ...]
    """Points of each attack's calibration."""
    calibration_images: int
    images: int
    """Test images attacked in each round."""
    rounds: int


class ExampleJob(Spec):
    """One test image, clean and attacked in several ways, with its nearest references."""

    id: str
    cells: tuple[CellJob, ...]
    """Attacks shown; `none` for the clean image."""
    classifier: ClassifierSpec
    class_index: int | None
    """The image is of this class, if one of it fits; null: of any."""
