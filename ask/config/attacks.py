"""Settings of the attacks: what a configuration is parsed into is what an attack takes.

To add an attack, write its settings here, name them in :data:`Attack`, and the attack itself in the module ``home``.
No code fingerprint counts this module, for every setting stands in the job that reads it: methods belong elsewhere.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, ValidationInfo, model_validator

from ask.config.base import Spec

PIXEL = 255


def _of_pixels(value: Any, info: ValidationInfo) -> Any:
    return value / PIXEL if info.mode == "json" and isinstance(value, int | float) else value


def _in_range(value: float, info: ValidationInfo) -> float:
    if not 0 < value <= 1:
        raise ValueError(
            f"{info.field_name}={value} is outside (0, 1]; pixels are in [0, 1], so write 8 of 255 as 8 / 255"
        )
    return value


Fraction = Annotated[
    float,
    BeforeValidator(_of_pixels),
    AfterValidator(_in_range),
    PlainSerializer(lambda value: round(value * PIXEL, 6), when_used="json"),
]
"""A perturbation size or step: in (0, 1] in Python, n of 255 in JSON, which is the paper's unit."""


class LinfConfig(Spec):
    """What all attacks have."""

    home: ClassVar[str]
    """Module of the attack; a job imports, and its code fingerprint counts, only its own."""
    grid: ClassVar[Mapping[str, tuple[float, ...]]] = {}
    """Parameters that a run searches beforehand, each with the values to try, for an attack that is added."""
    name: str
    eps: Fraction = 8 / PIXEL
    """l-infinity radius."""


class AttackConfig(LinfConfig):
    """What all gradient attacks have; ``eps`` and ``step_size`` in (0, 1]."""

    step_size: Fraction = Field(default_factory=lambda given: given["eps"] / 4)
    """Sign step (kappa); silent in the paper. Default: a quarter of ``eps``, as the released code's 2 of 8."""
    steps: int = Field(default=20, ge=1)
    """Gradient steps (paper, App. D-e)."""
    batch_size: int | None = Field(default=None, ge=1, exclude=True)
    """Images attacked at a time; default: :func:`ask.attacks.linf.fitting_batch`."""


class ReferenceAttackConfig(AttackConfig):
    """What attacks on nearest-neighbour search have besides."""

    layers: tuple[str, ...] = Field(min_length=1)
    """Attacked layers."""


class ASKAttackConfig(ReferenceAttackConfig):
    """Settings of ASK-Atk. Defaults: paper, App. D-e."""

    home: ClassVar[str] = "ask.attacks.ask"
    name: Literal["ask"] = "ask"
    k_in: int = Field(default=5, ge=1)
    """In-class references (K+)."""
    k_out: int = Field(default=5, ge=1)
    """References of each other class (K-)."""
    variant: Literal["non-targeted", "targeted", "random-sampling"] = "non-targeted"
    """``targeted``: only the wrong class nearest to the clean image enters the loss; ``random-sampling``:
    out-of-class references are drawn uniformly instead of being the nearest (App. E)."""
    random_in_class: bool = False
    """With ``random-sampling``: draw the in-class references too."""
    tau: Mapping[str, float] | float | None = 0.03
    """Temperature, by layer or for all; None: yet to be calibrated."""
    omega: Mapping[str, float] = Field(default_factory=dict)
    """Layer weights; default: all the same. Only their ratios matter."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        given = self.tau if isinstance(self.tau, Mapping) else dict.fromkeys(self.layers, self.tau)
        for layer, tau in given.items():
            if tau is not None and not tau > 0:
                raise ValueError(f"tau={tau} of {layer} must be positive")
        if self.random_in_class and self.variant != "random-sampling":
            raise ValueError(f"random_in_class needs variant='random-sampling', not {self.variant!r}")
        weights = [self.omega.get(layer, 0.0) for layer in self.layers]
        if self.omega and (sum(weights) <= 0 or min(weights) < 0):
            raise ValueError(f"omega={dict(self.omega)} must give {self.layers} non-negative weights, not all zero")
        return self


class DkNNOptions(Spec):
    """Options of DkNN-Atk that a run sets; alpha and the learning rate are calibrated."""

    guides: int = Field(default=15, ge=1)
    """Guides m: the references of one wrong class, nearest to the clean image, that features are pulled towards."""
    threshold: float | None = Field(default=None, gt=0)
    """Constant distance within which a guide counts as a neighbour; null: mean distance of references to their K-th
    nearest other reference (of a fifth of them)."""
    relative: bool = True
    """Compare distances divided by that threshold; false: as they are (the original)."""


class DkNNAttackConfig(DkNNOptions, ReferenceAttackConfig):
    """Settings of DkNN-Atk."""

    home: ClassVar[str] = "ask.attacks.dknn_atk"
    name: Literal["dknn"] = "dknn"
    k: int = Field(default=5, ge=1)
    """The threshold is the mean distance of references to their k-th nearest other reference."""
    optimizer: Literal["adam", "rmsprop", "sign"] = "adam"
    """``adam`` and ``rmsprop`` move the tanh variable of the box; ``sign`` is projected sign-gradient ascent."""
    learning_rate: float | None = Field(default=0.1, gt=0)
    """Of ``adam`` and ``rmsprop``; None: yet to be calibrated."""
    alpha: float | None = Field(default=4.0, gt=0)
    """Slope of the sigmoid; None: yet to be calibrated."""
    loss: Literal["sigmoid", "relu"] = "sigmoid"
    """``relu`` (the successor): push own-class guides beyond the threshold, pull the others within it; half of the
    guides are then of the true class."""
    refresh: int | None = Field(default=None, ge=1)
    """Choose guides anew after so many steps (the successor: 100); None keeps those of the clean image."""


class BlockConfig(Spec):
    """Fitting of AdvKnn's deep kNN blocks: SGD with Nesterov momentum on KL(p || q)."""

    epochs: int = Field(default=100, ge=1)
    """Passes over the reference set (paper, App. D-e)."""
    batch_size: int = Field(default=128, ge=1)
    """References a step."""
    learning_rate: float | None = Field(default=None, gt=0)
    """Of SGD (published: 0.001); default: 1, on features scaled to a mean squared length of 1, for sets of any size."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Nesterov momentum."""
    weight_decay: float = Field(default=2e-4, ge=0)
    """L2 penalty."""
    hidden: int | None = Field(default=None, ge=1)
    """Units of a hidden layer with ReLU; null: a linear block."""


class AdvKnnOptions(Spec):
    """Options of AdvKnn that a run sets."""

    ce_weight: float = Field(default=0, ge=0)
    """Weight of the cross-entropy with the clean image's majority vote, beside the KL divergence (the original: 20 on
    one layer, 0.3 on several)."""
    block: BlockConfig = BlockConfig()
    """Fitting of the deep kNN blocks."""


Target = Literal["votes", "label"]


class AdvKnnConfig(AdvKnnOptions, ReferenceAttackConfig):
    """Settings of AdvKnn, which sums over layers; ``block`` is used when no fitted blocks are given."""

    home: ClassVar[str] = "ask.attacks.advknn"
    name: Literal["advknn"] = "advknn"
    k: int = Field(default=5, ge=1)
    """Neighbours that vote."""
    target: Target = Field(default="votes", exclude_if=lambda target: target == "votes")
    """What the attack moves away from: the clean image's own ``votes`` (the published form, which leads an image that
    the clean DkNN gets wrong anywhere else, the true class included), or the true ``label``, as every other attack."""


class PGDConfig(AttackConfig):
    """Settings of PGD on a network's output."""

    home: ClassVar[str] = "ask.attacks.pgd"
    name: Literal["pgd"] = "pgd"


class AutoAttackOptions(Spec):
    """Options of AutoAttack and of Square that a run sets; the default is the standard ensemble."""

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


LEAST_CLASSES = {"apgd-t": 4, "apgd-dlr": 3}
"""Classes that a part of AutoAttack compares."""


class AutoAttackConfig(AutoAttackOptions, LinfConfig):
    """Settings of AutoAttack on a network's output; ``eps`` in (0, 1]."""

    home: ClassVar[str] = "ask.attacks.auto"
    name: Literal["autoattack"] = "autoattack"


class SquareConfig(AutoAttackOptions, LinfConfig):
    """Settings of Square on the votes of a DkNN; ``eps`` in (0, 1]."""

    home: ClassVar[str] = "ask.attacks.auto"
    name: Literal["square"] = "square"
    layers: tuple[str, ...] = Field(min_length=1)
    """Layers that vote."""
    k: int = Field(default=5, ge=1)
    """Neighbours that vote."""


Attack = Annotated[
    ASKAttackConfig | DkNNAttackConfig | AdvKnnConfig | PGDConfig | AutoAttackConfig | SquareConfig,
    Field(discriminator="name"),
]
"""Any attack, told by its name."""
ATTACKS: dict[str, type[LinfConfig]] = {
    kind.model_fields["name"].default: kind for kind in get_args(get_args(Attack)[0])
}
"""Settings of each attack by its name; ``home`` says where the attack is."""
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "none": {"": {}},
    "ask": {name: {"variant": name} for name in ("non-targeted", "targeted", "random-sampling")},
    "dknn": {
        "adam": {},
        "sign": {"optimizer": "sign"},
        "successor": {"optimizer": "rmsprop", "loss": "relu", "refresh": 100},
        # The strongest of DkNN-Atk's forms in 20 steps; its number of guides is calibrated.
        "successor-sign": {"optimizer": "sign", "loss": "relu"},
    },
    "advknn": {
        "": {},
        "label": {"target": "label"},
        # Blocks that learn as fast as is stable, whatever the run has.
        "fitted": {"block": {"learning_rate": None}},
        "label-fitted": {"target": "label", "block": {"learning_rate": None}},
    },
    "pgd": {"": {}},
    "autoattack": {"": {}},
    "square": {"": {}},
}
"""Variants that artifacts can ask for, each attack's default first, with the settings that they stand for."""
