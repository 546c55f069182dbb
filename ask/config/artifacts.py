"""Artifacts as data: tables, figures and pictures, in the paper's own words."""

from itertools import chain
from typing import TYPE_CHECKING, Annotated, Literal, get_args

from pydantic import Field

from ask.config.attacks import VARIANTS
from ask.config.base import Layer, Pixels, Similarity, Spec

if TYPE_CHECKING:
    AttackName = str
    Variant = str
else:
    AttackName = Literal[tuple(VARIANTS)]
    Variant = Literal[tuple(dict.fromkeys(chain("", *VARIANTS.values())))]
CellMetric = Literal[
    "dknn_robust_accuracy", "dknn_clean_accuracy", "dknn_kept_accuracy", "dnn_robust_accuracy", "dnn_clean_accuracy"
]
FailureMetric = Literal["confidence_1", "confidence_95", "similarity_gap"]
TimingMetric = Literal["ms_per_image", "setup_seconds", "ms_with_setup", "slower", "slower_with_setup"]
CostMetric = Literal["training_seconds", "passes_per_image", "times_passes", "times_work", "times_seconds"]
StudyMetric = Literal[
    "information", "ask_loss", "excess_loss", "bound", "tighter_bound", "scaled_bound", "gap", "scaled_gap"
]
Metric = CellMetric | FailureMetric | TimingMetric | CostMetric | StudyMetric
Category = Literal["attack", "defence", "beyond the paper"]
CATEGORIES: tuple[Category, ...] = get_args(Category)
Group = Literal["failures", "successes"]
SETTING_COLUMNS = (
    *("dataset", "model", "attack", "variant", "similarity", "attack_layers", "classifier_similarity", "dknn_layers"),
    *("k_in", "k_out", "classifier_k", "eps", "steps", "about", "metric"),
)
"""Columns of tidy tables that describe a measured value."""


class Settings(Spec):
    """What a table's row, column or fixed part, or a figure's line, may set; the rest comes from `evaluation`."""

    dataset: str | None = None
    """Data set (or the one that stands in for it)."""
    model: str | None = None
    """Training method, a key of `models`."""
    attack: AttackName | None = None
    """`ask`, `dknn` (DkNN-Atk), `advknn`, `pgd` and `autoattack` (on the network), `square` (votes), `none`."""
    variant: Variant | None = None
    """Variant of ASK-Atk, DkNN-Atk or AdvKnn (`label`: away from the true label); null: its default, non-targeted, by
    Adam, or away from the clean image's votes."""
    similarity: Similarity | None = None
    """Similarity of attack and classifier."""
    classifier_similarity: Similarity | None = None
    """Similarity of the classifier, if not that of the attack."""
    layers: tuple[Layer, ...] | None = None
    """Layers of attack and classifier: `conv1` to `conv5`, the names that a network of your own gives its layers, or
    `input` on raw pixels."""
    attack_layers: tuple[Layer, ...] | None = None
    """Layers of the attack."""
    dknn_layers: tuple[Layer, ...] | None = None
    """Layers of the classifier."""
    k: int | None = Field(default=None, ge=1)
    """K of attack and classifier."""
    k_in: int | None = Field(default=None, ge=1)
    """K+ of the attack."""
    k_out: int | None = Field(default=None, ge=1)
    """K- of the attack."""
    classifier_k: int | None = Field(default=None, ge=1)
    """K of the classifier."""
    eps: Pixels | None = None
    """l-infinity radius, n/255."""
    step_size: Pixels | Annotated[str, Field(pattern=r"^eps/[1-9]\d*$")] | None = None
    """Sign step, n/255, or a fraction of eps, e.g. `eps/4`."""
    steps: int | None = Field(default=None, ge=1)
    """Gradient steps."""
    tau: float | None = Field(default=None, gt=0)
    """Fixed temperature; null: from calibration."""
    omega: float | None = Field(default=None, ge=0, le=1)
    """Fixed weight of the first of two attacked layers, the other having the rest; null: from calibration or, beside a
    fixed temperature, the same for both."""
    references_per_class: int | None = Field(default=None, ge=1)
    """Size of the reference set per class; null: the data set's."""
    trials: int | None = Field(default=None, ge=1)
    """Trials."""
    metric: Metric | None = None
    """What is shown; null: DkNN accuracy under attack. `dknn_kept_accuracy` counts clean errors as errors: the share of
    all images that the DkNN has right clean and under attack."""
    training_seeds: int | None = Field(default=None, ge=1)
    """Models trained from so many seeds: the mean over them, with the interval of training (each model's trials
    averaged) instead of that of trials; null: `evaluation.training_seeds`."""
    baseline: str | None = None
    """Show the difference to this model's value, in points, paired by trial (references and starts are shared)."""
    group: Group | None = None
    """Images that withstand the attack or that do not; for metrics of the failure analysis."""
    case: str | None = None
    """Which world of a study (`study`)."""
    form: str | None = None
    """Which loss of a study."""
    classes: int | None = Field(default=None, ge=2)
    """Number of classes in a study."""
    spread: float | None = Field(default=None, ge=0)
    """The study's own parameter: rho or sigma."""


class AxisValue(Settings):
    """One row, column or line."""

    label: str
    """Heading; `{dataset}` becomes the data set's label, `{eps}` the radius used, e.g. `8/255`."""
    part: str | None = None
    """A name under which runs can leave it out (`without`), with all that bears the same."""


class Axis(Spec):
    """A level of row or column headings."""

    name: str = ""
    """What the values are, e.g. `Attacked layers`."""
    values: tuple[AxisValue, ...] = Field(min_length=1)
    """Rows, columns or lines."""


XSetting = Literal["eps", "k", "k_in", "k_out", "classifier_k", "steps", "references_per_class", "classes"]
"""What a horizontal axis can show."""


class XAxis(Spec):
    """The horizontal axis of a panel."""

    label: str
    """Axis title."""
    setting: XSetting
    """Which setting varies."""
    values: tuple[float, ...] = Field(min_length=1)
    """Its values."""


class Panel(Spec):
    """One plot of a figure."""

    title: str
    """Title; `{dataset}` becomes the data set's label."""
    settings: Settings = Settings()
    """Fixed settings of the panel."""
    x: XAxis
    """Horizontal axis."""
    y_label: str = "DkNN robust accuracy (%)"
    """Vertical axis title."""
    lines: Axis
    """Lines."""


class MarginConfig(Spec):
    """A sentence below a table: how much less one attack leaves than the best of its rivals, in every setting."""

    of: str
    """Innermost heading of its columns."""
    rivals: tuple[str, ...] = Field(min_length=1)
    """Those of the paper's rivals; all other columns of a setting count as rivals too, in the second part."""


class ArtifactConfig(Spec):
    """A table or figure: data, not code."""

    kind: Literal["table", "figure", "pictures", "boundaries"]
    """Table, line plot, one image with its nearest neighbours (a model a row, an attack a column), or decision
    boundaries of models trained on a problem in the plane."""
    title: str
    """Title."""
    caption: str
    """What is shown, in a sentence or two; the settings used are said beside it, from the measurements."""
    category: Category
    """Section of the report."""
    paper: str | None = None
    """Number in the paper, e.g. `Table 1`."""
    paper_table: int | None = None
    """Table of `config/paper/tables.csv` whose values stand beside the measured ones."""
    paper_claims: dict[str, str] = Field(default_factory=dict)
    """Claims of `config/paper/claims.csv` whose values stand beside the measured ones, by metric
    (`<group>.<metric>` where it has groups)."""
    class_index: int | None = Field(default=None, ge=0)
    """Class of the image (pictures); null: any."""
    study: Literal["proposition1"] | None = None
    """Simulation whose results are shown, instead of attacks."""
    notes: tuple[str, ...] = ()
    """Remarks shown below it."""
    margin: MarginConfig | None = None
    """What remains of an attack's margin against the best of all, as a remark computed from the table's numbers."""
    settings: Settings = Settings()
    """Fixed settings."""
    rows: tuple[Axis, ...] = ()
    """Levels of row headings, outermost first (tables)."""
    columns: tuple[Axis, ...] = ()
    """Levels of column headings, outermost first (tables)."""
    panels: tuple[Panel, ...] = ()
    """Plots, side by side (figures)."""
