"""What one job reads, and nothing else: a slice of the configuration for each kind of job.

A field that is added to a job is translated for stored records in :mod:`ask.config.stored`.
"""

from pydantic import Field

from ask.config.attacks import Attack, BlockConfig
from ask.config.base import DataSpec, Key, Layer, Precision, Similarity, Spec
from ask.config.training import ASKSpec, ModelSpec, NetworkSpec, TrainingSpec


class ClassifierSpec(Spec):
    """One DkNN classifier (eq. 1)."""

    similarity: Similarity
    layers: tuple[Layer, ...]
    k: int = Field(ge=1)


class DownloadJob(Spec):
    """A publisher's files."""

    source: str


class PrepareJob(Spec):
    """Arrays of a data set."""

    dataset: str
    """Its name in the configuration."""
    data: Key = ""
    """What its arrays are made from."""
    spec: DataSpec
    content: str = Field(default="", exclude_if=lambda content: not content)
    """What changes when a user's own images do."""


class FeatureSpec(Spec):
    """The feature function: a trained model of a data set, or the pixels."""

    dataset: str
    data: Key = ""
    """What its arrays are made from."""
    model: str
    network: NetworkSpec | None
    """Null: raw pixels. Of a network of one's own, the layers that the job reads."""
    code: str | None = Field(default=None, exclude_if=lambda code: code is None)
    """Fingerprint of the code that makes a network of one's own, as far as it is no installed package's."""


class AdoptJob(Spec):
    """A network trained elsewhere, to become a model of the run."""

    features: FeatureSpec
    weights: str | None
    """File; null: as the factory makes it."""
    digest: str | None
    """SHA-256 of that file."""
    seed: int


class IndexJob(Spec):
    """Features of the whole training set at one layer."""

    features: FeatureSpec
    layer: Layer


class CalibrationJob(Spec):
    """Search of an attack's parameters: tau of one layer, omega of several, or alpha and the learning rate of DkNN-Atk
    or its number of guides.
    """

    id: str
    features: FeatureSpec
    attack: Attack
    """With None for what is searched, but for guides."""
    similarity: Similarity
    """Similarity measure of the attack's reference search."""
    classifier: ClassifierSpec
    grid: tuple[dict[str, float], ...]
    """Points, by parameter; `omega` is the first layer's of two, and that of more stands by the layers' names."""
    images: int
    references_per_class: int
    tau_from: tuple[str, ...] = ()
    """Ids of the calibrations that hold each layer's tau; empty when tau itself is searched."""
    extend: int = Field(default=0, exclude_if=lambda extra: extra == 0)
    """At most so many points beyond the grid, while the best one lies at an end."""
    precision: Precision = Field(default="auto", exclude_if=lambda precision: precision == "auto")
    """Of the network's passes on the way; `auto` is settled by the run (:func:`ask.precision.settled`)."""
    seed: int

    @property
    def of_layers(self) -> bool:
        """Whether weights of more than two layers are searched, one after the other."""
        return bool(self.tau_from) and "omega" not in self.grid[0]


class BlockJob(Spec):
    """AdvKnn's deep kNN blocks of one layer, one for each trial's reference set."""

    id: str
    features: FeatureSpec
    layer: Layer
    similarity: Similarity
    k: int
    block: BlockConfig
    references_per_class: int
    trials: int
    seed: int


class CellJob(Spec):
    """One attack on one model over all trials, seen by every classifier that an artifact asks of it."""

    id: str
    features: FeatureSpec
    attack: Attack | None
    """None: clean images only."""
    similarity: Similarity
    """Similarity measure of the attack's reference search."""
    classifiers: tuple[ClassifierSpec, ...]
    references_per_class: int
    trials: int
    test_images: int | None
    """So many test images, of one fixed shuffle; null: all."""
    tau_from: tuple[str, ...] = ()
    """Calibration id of each attacked layer's tau."""
    omega_from: str | None = None
    """Calibration id of the layer weights; null: equal weights."""
    alpha_from: str | None = None
    """Calibration id of DkNN-Atk's alpha and learning rate, of its guides, or of what an added attack declares."""
    blocks_from: tuple[str, ...] = ()
    """Id of each attacked layer's deep kNN blocks (AdvKnn)."""
    calibration_images: int | None = Field(default=None, exclude_if=lambda images: images is None)
    """Size of the batch that its parameters were picked on, the first test images of the fixed shuffle; the accuracy on
    the other images is then noted too."""
    precision: Precision = Field(default="auto", exclude_if=lambda precision: precision == "auto")
    """Of the network's passes on the way; `auto` is settled by the run (:func:`ask.precision.settled`)."""
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
    """Attacks shown, and the clean image."""
    classifier: ClassifierSpec
    class_index: int | None
    """The image is of this class, if one of it fits; null: of any."""
