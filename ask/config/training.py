"""What the training step reads."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from ask.config.base import LAYERS, Key, Layer, Pixels, Precision, Spec


def _empty(value: object) -> bool:
    return not value


Augmentation = Literal["crop-flip", "crop", "none"]
METHOD_HOMES = {"trades": "ask.training.trades", "snn": "ask.training.snn", "ask": "ask.training.ask_def"}
"""Modules of bases and regularisers; a training job imports, and its code fingerprint counts, its method's alone."""
OWN_HOME = "ask.models.own"
"""Module of networks of one's own, likewise."""


class OwnModule(Spec):
    """A network of your own: a function that makes a PyTorch module from images in [0, 1] to logits."""

    factory: str | None = Field(default=None, pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$", exclude_if=_empty)
    """`package.module:function` that makes a network of your own, a module from images in [0, 1] to logits; found in
    the project's folder or among installed packages."""
    options: dict[str, Any] = Field(default_factory=dict, exclude_if=_empty)
    """Arguments of that function, by name."""
    mean: tuple[float, ...] = Field(default=(), exclude_if=_empty)
    """Subtracted from its images, one value a channel; empty where the module itself normalises."""
    std: tuple[Annotated[float, Field(gt=0)], ...] = Field(default=(), exclude_if=_empty)
    """What its images are divided by after that, one value a channel."""
    layers: dict[Layer, str] = Field(default_factory=dict, exclude_if=_empty)
    """Names of its layers for attacks and DkNN, and whose outputs they are: paths of submodules, as in
    `named_modules()`. With `conv3` and `conv4` among the names, the paper's artifacts apply to it."""

    @model_validator(mode="after")
    def _check_own(self) -> Self:
        given = [name for name in OwnModule.model_fields if getattr(self, name)]
        if given and self.factory is None:
            raise ValueError(f"{given[0]} is given, but no factory: name the function that makes the network")
        if len(self.mean) != len(self.std):
            raise ValueError("mean and std belong together: give both, one value a channel")
        if "input" in self.layers:
            raise ValueError("the layer 'input' is the images themselves: choose another name")
        return self


class NetworkSpec(OwnModule):
    """A network: one of the paper's, of five named convolutional blocks and a head, or one of your own."""

    name: Literal["vgg16", "resnet18"] | None = Field(default=None, exclude_if=_empty)
    """VGG16 with batch norm (CIFAR-10) or ResNet18 (Imagenette); paper, App. D-b. Null: the `factory`'s."""
    width: float = Field(default=1.0, gt=0, le=4)
    """Multiplier of every layer's channel count; 1 is the paper's network."""
    dropout: float = Field(default=0.5, ge=0, lt=1)
    """Rate of the two dropouts in VGG16's head; 0 suits narrow networks, which it starves (ResNet18 has none)."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.name is None) == (self.factory is None):
            raise ValueError("give either name (vgg16 or resnet18), or factory; set the other one to null")
        if self.factory and self.model_fields_set & {"width", "dropout"}:
            raise ValueError("width and dropout are the paper's networks'; what the factory takes goes into options")
        return self

    @model_serializer(mode="wrap")
    def _read_parts(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        left_out = ("width", "dropout") if self.factory else ()
        return {name: value for name, value in serialise(self).items() if name not in left_out}

    @property
    def names(self) -> tuple[str, ...]:
        """Its layers' names."""
        return tuple(self.layers) if self.factory else LAYERS[1:]


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
    augment: Augmentation = "crop-flip"
    """Random crop after padding with `pad` black pixels on each side, and horizontal flip."""
    pad: int | None = Field(default=None, ge=0, exclude_if=lambda pad: pad is None)
    """Padding before the crop, in pixels; null: an eighth of the side (4 of 32)."""
    eps: Pixels = 4
    """l-infinity radius of the training attack, n/255."""
    step_size: Pixels = 2
    """Step of the training attack, n/255."""
    steps: int = Field(default=10, ge=1)
    """Steps of the training attack."""
    ask_eps: Pixels = 8
    """l-infinity radius of ASK-Def's second generator, of `steps` steps, n/255 (released code: 8; Imagenette: 4)."""
    ask_step_size: Pixels | None = Field(default=None, gt=0, exclude_if=_empty)
    """Step of that generator, n/255; null: the training attack's (released code)."""
    holdout: int = Field(default=1000, ge=0)
    """Training images (class-balanced) kept out of training and used to pick the best epoch; 0 keeps the last epoch."""
    eval_eps: Pixels = 8
    """l-infinity radius of the PGD attack on the held-out images by which the best epoch is picked, n/255."""
    eval_steps: int | None = Field(default=None, ge=1, exclude_if=lambda steps: steps is None)
    """Steps of that attack, which together reach across its ball whatever the training attack takes; null: 10."""
    min_clean_accuracy: float = Field(default=0.83, ge=0, le=1)
    """An epoch is best only above this clean accuracy on the images that judge it; without one, the last is kept."""
    selection: Literal["holdout", "holdout-dknn", "test"] = "holdout"
    """What picks the best epoch: the network's accuracy under PGD on held-out images; the same of a DkNN on Conv 4
    (cosine, K = 5, up to 2000 references a class); or that of a DkNN on four batches of test images, as in the
    released code, with all training images trained on."""
    stored: Literal["float32", "bfloat16"] = Field(default="float32", exclude_if=lambda stored: stored == "float32")
    """Type of the weights in their file, which all measurements read: `bfloat16` rounds them and halves the file."""
    ema: float | None = Field(default=None, ge=0, lt=1, exclude_if=lambda ema: ema is None)
    """Decay a step of an exponential moving average of weights and batch statistics, e.g. 0.999 (less in the first
    steps); the average is what is judged and kept. Null: the weights themselves."""


class SNNSpec(Spec):
    """Soft nearest neighbour regulariser (paper, reference 19) on the adversarial images of the base."""

    weight: float = 1.0
    """Factor of the term; negative drives classes together, as Frosst et al. do in hidden layers; 0 leaves it out."""
    temperature: float = Field(default=0.1, gt=0)
    """T of the loss, or where learning it starts."""
    learn_temperature: bool = False
    """Follow the gradient of T at every step, which always minimises the loss (Frosst et al., sec. 2; their code)."""
    similarity: Literal["cosine", "l2"] = "cosine"
    """Distance: `cosine` is 1 - cos, `l2` squared Euclidean."""
    layer: Layer = "conv4"
    """Layer whose features are compared."""


class TRADESSpec(Spec):
    """TRADES (paper, reference 16)."""

    beta: float = Field(default=6.0, ge=0)
    """Weight of the divergence between clean and adversarial outputs."""
    eps: Pixels | None = None
    """l-infinity radius, n/255; null: that of the training attack (the paper is silent; Zhang et al.: 8)."""
    start_noise: float = Field(default=0.001, gt=0, le=1)
    """Standard deviation of the normal noise at which the ascent starts, in [0, 1] (Zhang et al.)."""


class ASKSpec(Spec):
    """ASK-Def's regulariser (paper, eq. 6, 7 and Algorithm 2; released code where the paper is silent)."""

    weight: float = Field(default=1.0, ge=0)
    """lambda; 0 leaves the term out, which makes ASK-Def its base."""
    tau: float = Field(default=0.1, gt=0)
    """Temperature of the ASK loss (paper, App. D-f)."""
    similarity: Literal["cosine", "l2"] = "cosine"
    """Similarity of the ASK loss."""
    layer: Layer | None = Field(default="conv4", exclude_if=lambda layer: layer is None)
    """Layer whose features are compared."""
    layers: tuple[Layer, ...] = Field(default=(), exclude_if=lambda layers: not layers)
    """Several such layers, in place of `layer`: their losses add up (eq. 6)."""
    references_per_class: int = Field(default=5, ge=1)
    """Clean reference images drawn a class and step; each brings an adversarial copy."""
    reference_attack: Literal["ce", "ask"] = "ce"
    """What makes the copies: the training attack (released code), or ASK-Def's second generator against the clean
    references (a reading of eq. 7)."""
    outer_references: Literal["union", "clean", "adversarial"] = "union"
    """References of the loss that is minimised: all (released code), clean (eq. 6) or adversarial ones (Algorithm 2).
    The second generator always works against all of them (eq. 7)."""
    include_self: bool = False
    """Let the clean image join its class as one more reference."""
    crafting_batch_norm: Literal["eval", "train"] = "eval"
    """Batch norm of the second generator: running statistics, or those of the batch (released code), which also
    move the running ones."""
    joint_pass: bool = False
    """One training-mode pass of adversarial images and references, with common batch statistics, not one of each."""
    mass_floor: float = Field(default=0.0, ge=0, lt=1)
    """Added to a class's share of similarity before the logarithm; the released code adds 1e-6."""
    legacy_ref_labels: bool = False
    """Label the references as every published training script does, 90 % of them wrongly: clean images come first,
    then their copies, but the labels as if each image stood beside its copy."""
    legacy_step: bool = False
    """Steps of the second generator 255 times as long, into a corner of the ball, as in the training script from
    9 May to 6 August 2021."""

    @model_validator(mode="before")
    @classmethod
    def _several(cls, given: Any) -> Any:
        return {"layer": None, **given} if isinstance(given, Mapping) and given.get("layers") else given

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.layer is None) != bool(self.layers) or len(set(self.layers)) < len(self.layers):
            raise ValueError("give either layer, or layers, each of them once")
        if self.legacy_ref_labels and self.outer_references != "union":
            raise ValueError("legacy_ref_labels mixes up clean and adversarial references: set outer_references: union")
        return self


class ModelSpec(OwnModule):
    """A training method, base x regulariser; or a trained network of your own."""

    label: str
    """Name in tables."""
    base: Literal["none", "at", "trades", "external"]
    """`none`: raw pixels, no network; `at`: cross-entropy on PGD examples (adversarial training); `trades`: clean
    cross-entropy plus the divergence of adversarial outputs; `external`: a network trained elsewhere, by `factory`."""
    weights: str | None = Field(default=None, exclude_if=_empty)
    """Its weights: a safetensors file, or one that `torch.save` wrote of tensors by name; null: as the factory makes
    it. Jobs run again when the content changes."""
    regulariser: Literal["none", "snn", "ask"] = "none"
    """Term added to the base's loss: soft nearest neighbours, or the ASK loss (ASK-Def)."""
    trades: TRADESSpec | None = None
    """Options of base `trades`."""
    snn: SNNSpec | None = None
    """Options of regulariser `snn`."""
    ask: ASKSpec | None = None
    """Options of regulariser `ask`."""
    training: TrainingSpec | None = Field(default=None, exclude=True)
    """Settings in which this method's training differs from the data set's `training`: those that are given."""
    epochs_factor: float = Field(default=1.0, gt=0, exclude=True)
    """Factor on the epochs and on the milestones of the step schedule, e.g. for training at another method's cost."""

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, given: Any) -> Any:
        """Options of the parts that are used stand in the job, those of others don't."""
        if not isinstance(given, Mapping):
            return given
        used = [part for part in METHOD_HOMES if part in (given.get("base"), given.get("regulariser"))]
        return {**given, **{part: {} for part in used if given.get(part) is None}}

    @model_validator(mode="after")
    def _check(self) -> Self:
        trained = self.base in ("at", "trades")
        if not trained and self.regulariser != "none":
            raise ValueError(f"regulariser: {self.regulariser} needs a network to train: set base: at or trades")
        if not trained and (self.training or self.epochs_factor != 1):
            raise ValueError(f"base: {self.base} trains nothing: remove training and epochs_factor")
        if self.base == "external" and not self.factory:
            raise ValueError("base: external needs factory: name the function that makes the network")
        if self.base != "external" and (self.factory or self.weights):
            raise ValueError(
                "factory and weights are read with base: external; to train a network of your own, give"
                " `network: {factory: ...}` to the data set"
            )
        for part in METHOD_HOMES:
            if getattr(self, part) is not None and part not in (self.base, self.regulariser):
                where = "base" if part == "trades" else "regulariser"
                raise ValueError(f"options of {part} are given, but not read: set {where}: {part}, or remove them")
        return self


def layers_of(method: ModelSpec) -> tuple[str, ...]:
    """Layers whose features its training compares."""
    ask, snn = method.ask, method.snn
    return (*((ask.layers or filter(None, [ask.layer])) if ask else ()), *([snn.layer] if snn else ()))


class TrainJob(Spec):
    """One model to train."""

    dataset: str
    data: Key = ""
    """What its arrays are made from."""
    model: str
    network: NetworkSpec
    code: str | None = Field(default=None, exclude_if=_empty)
    """Fingerprint of the code that makes a network of one's own, as far as it is no installed package's."""
    method: ModelSpec
    training: TrainingSpec
    precision: Precision = Field(default="auto", exclude_if=lambda precision: precision == "auto")
    """Of the network's passes on the way; `auto` is settled by the run (:func:`ask.precision.settled`)."""
    seed: int
