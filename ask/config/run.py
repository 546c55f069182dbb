"""The configuration of a run: types with units and sources, loading, and messages that contain the fix."""

import os
import re
from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import Field, ValidationError, model_validator

from ask.config.artifacts import CATEGORIES, ArtifactConfig, XSetting
from ask.config.attacks import AdvKnnOptions, AutoAttackOptions, DkNNOptions
from ask.config.base import DataSpec, Pixels, Precision, Similarity, Spec, explain
from ask.config.training import ModelSpec, NetworkSpec, TrainingSpec
from ask.errors import AskError

T = TypeVar("T", bound=Spec)
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]


class ConfigError(AskError):
    """A mistake in the configuration: where, what, what is allowed, how to mend it."""


class DataConfig(Spec):
    """Where data lies."""

    root: str = "data"
    """Folder of downloaded and prepared data, shared by all runs."""
    mirror: str | None = None
    """Folder(s) or URL that hold the published files, for machines without internet (several folders separated
    as in PATH); the environment variable `ASK_DATA_MIRROR` is used when this is null."""


class DatasetConfig(DataSpec):
    """A data set, the reference sets drawn from it, and the network trained on it."""

    label: str
    """Name in tables."""
    fingerprint: Literal["times", "content"] = "times"
    """What tells that a user's own images have changed: names, sizes and times of the files, or (`content`) names and
    content, for which every start of a run reads them all."""
    references_per_class: int = Field(default=2000, ge=1)
    """Size of a trial's reference set, per class: 2000 on CIFAR-10, 850 on Imagenette (paper, App. D-e)."""
    test_images: int | None = Field(default=None, ge=1)
    """Evaluate so many test images, of one fixed shuffle; null evaluates all, as the paper does."""
    network: NetworkSpec | None = None
    """Network whose features are searched; null for raw pixels only."""
    training: TrainingSpec = TrainingSpec()
    """Settings of the training loop, shared by all training methods."""


class StandIn(Spec):
    """A data set that takes the place of one of the paper's in this run."""

    dataset: str
    """Name of the data set used instead."""
    eps_scale: float = Field(default=1.0, gt=0)
    """Factor on every eps and step size that an artifact asks for."""
    references_scale: float = Field(default=1.0, gt=0)
    """Factor on every reference-set size that an artifact asks for (the data set's own size stays)."""


Positive = Annotated[float, Field(gt=0)]
Value = TypeVar("Value")
Grid = Annotated[tuple[Value, ...], Field(min_length=1)]


class CalibrationConfig(Spec):
    """Search of the temperature tau and the layer weights omega (paper, IV-c and App. D-e)."""

    images: int = Field(default=500, ge=1)
    """Size of the first test batch, on which both are picked; the first of one fixed shuffle of the test images."""
    tau_cosine: Grid[Positive] = (0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 30)
    """Temperatures tried under cosine similarity."""
    tau_l2: Grid[Positive] = (0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30)
    """Temperatures tried under negative l2 distance."""
    omega: Grid[Annotated[float, Field(ge=0, le=1)]] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    """Weights tried for the first of two attacked layers; the second gets the rest."""
    more_layers: Literal["search", "equal"] = "search"
    """Weights of more than two layers: each in turn is tried a fourth and four times as large; or all are equal."""
    dknn_alpha: Grid[Positive] = (0.1, 0.3, 1, 4, 10, 30)
    """Slopes of DkNN-Atk's sigmoid that are tried, each with every learning rate."""
    dknn_learning_rate: Grid[Positive] = (0.03, 0.1, 0.3)
    """Learning rates tried for DkNN-Atk's optimiser (variants `adam` and `successor`)."""
    dknn_guides: Grid[Annotated[int, Field(ge=2)]] = (2, 6, 10, 20)
    """Numbers of guides tried for DkNN-Atk's variant `successor-sign`, half of each class."""
    extend: int = Field(default=0, ge=0)
    """At most so many points more for tau, alpha and learning rate, while the best one lies at an end of its grid: each
    further out by the grid's last ratio, three at most. What is still at an end is called an edge in the report."""
    outside: bool = False
    """Whether attacks with searched parameters note the accuracy on images outside that batch too."""
    own: tuple[Literal["variant", "eps", "step_size"], ...] = ("variant", "eps", "step_size")
    """Settings of an attack that get a search of their own; for the others, the run's default is searched once."""


class EvaluationConfig(Spec):
    """Defaults of every evaluation, which artifacts override."""

    eps: Pixels = Field(default=8, gt=0)
    """l-infinity radius, n/255 (paper, VI)."""
    step_size: Pixels = Field(default=2, gt=0)
    """Sign step (kappa), n/255; the paper is silent, the released code says 2."""
    steps: int = Field(default=20, ge=1)
    """Gradient steps (paper, App. D-e)."""
    k: int = Field(default=5, ge=1)
    """Nearest neighbours, of attack and classifier (paper, VI)."""
    similarity: Similarity = "cosine"
    """Similarity measure (paper, II-a)."""
    trials: int = Field(default=20, ge=1)
    """Trials: each redraws the reference set and the random starts (paper, VI)."""
    max_trials: int | None = Field(default=None, ge=1)
    """Upper bound on trials, whatever an artifact asks for; null for none."""
    training_seeds: int = Field(default=1, ge=1)
    """Models trained from different seeds, over which a value is averaged; with 1, as in the paper, the model is fixed
    and intervals are over trials."""
    max_training_seeds: int | None = Field(default=None, ge=1)
    """Upper bound on them, whatever an artifact asks for; null for none."""
    x_values: dict[XSetting, Grid[float]] = Field(default_factory=dict)
    """Values along the horizontal axes of figures, by setting (e.g. `eps`), in place of the artifacts' own."""
    dknn: DkNNOptions = DkNNOptions()
    """Options of DkNN-Atk."""
    advknn: AdvKnnOptions = AdvKnnOptions()
    """Options of AdvKnn."""
    auto: AutoAttackOptions = AutoAttackOptions()
    """Options of AutoAttack and Square."""


class TimingConfig(Spec):
    """How attacks are timed."""

    images: int = Field(default=500, ge=1)
    """Test images attacked in each round."""
    rounds: int = Field(default=5, ge=2)
    """Rounds, in each of which all attacks take their turn."""


class SliceSpec(Spec):
    """A part of a run that is made on its own, e.g. on a machine with a GPU lent for short sessions.

    It measures what its artifacts show of its data sets and models, and trains only its own models; artifacts are
    rendered once all that they show has been measured, by whichever slices.
    """

    title: str = ""
    """What it is, in a line."""
    artifacts: tuple[str, ...] = ()
    """Artifacts whose measurements it makes."""
    datasets: tuple[str, ...] = ()
    """Only on these of the paper's data sets; empty: on all."""
    models: tuple[str, ...] = ()
    """Only of these models; empty: of all."""
    commands: tuple[str, ...] = ()
    """Commands that run first, each until it has succeeded once; `python` and `pytest` are those of the run."""


class RunConfig(Spec):
    """A run: everything that decides its results."""

    run: Name
    """Name of the run; results go to `results/<run>`."""
    title: str = ""
    """One line on what the run is, for the report; empty: the run's name."""
    note: str = ""
    """Remark at the top of the report."""
    overlays: tuple[str, ...] = ()
    """Overlays that make this run, for its report's commands; none: `config/<run>.yaml`. One on top names its own."""
    seed: int = 0
    """Seed of everything random."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes a GPU when there is one."""
    precision: Precision = "auto"
    """Of a network's passes in trainings and attacks; features, losses, searches and votes are float32, and so are the
    passes that classify. `auto` takes bfloat16 where it is measured to be at least 1.2 times faster, once a run;
    machines that gain nothing by a run's bfloat16 take float32."""
    search: Literal["auto", "exact", "faiss"] = "auto"
    """What finds nearest neighbours: `exact` (torch) or `faiss` (Flat; on a GPU where its CUDA build is installed), the
    same ones; `auto` takes faiss where it is measured to be at least 1.2 times faster, once a machine."""
    train_threads: int = Field(default=4, ge=1)
    """CPU threads of a training (fewer where a machine has fewer); narrow networks gain nothing from a second one.
    On a CPU, weights repeat bit for bit only at the same number."""
    cuda_graphs: bool = False
    """Whether trainings on a GPU craft adversarial examples by replaying CUDA graphs: the same numbers, faster."""
    data: DataConfig = DataConfig()
    """Where data lies."""
    datasets: dict[Name, DatasetConfig]
    """Data sets by name."""
    models: dict[Name, ModelSpec]
    """Training methods by name."""
    stand_ins: dict[str, StandIn] = Field(default_factory=dict)
    """Data sets of the paper replaced in this run."""
    without: tuple[str, ...] = ()
    """Data sets and models of the paper, and parts of artifacts (`part`), left out of this run: their rows, columns and
    lines, and artifacts that show nothing else."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Defaults of every evaluation."""
    calibration: CalibrationConfig = CalibrationConfig()
    """Search of tau, omega, and DkNN-Atk's alpha and learning rate."""
    timing: TimingConfig = TimingConfig()
    """How attacks are timed."""
    artifacts: Literal["all"] | tuple[str, ...] = "all"
    """Artifacts to make: all of `config/artifacts`, or these, by name. `all` among names stands for all of those; what
    ends in `.yaml` is the path of one of your own, which no other run sees."""
    slices: dict[Name, SliceSpec] = Field(default_factory=dict)
    """Parts of the run that can be made one by one (`make slice-2`)."""

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        if taken := [name for name in self.models if "-seed" in name]:
            raise ValueError(f"models.{taken[0]}: '-seed' is for further trainings of a model; choose another name")
        for name, part in self.slices.items():
            asked = (("data set", part.datasets, self.datasets), ("model", part.models, self.models))
            for kind, one, known in ((kind, one, known) for kind, some, known in asked for one in some):
                if one not in known:
                    raise ValueError(f"slice {name!r}: no {kind} {one!r}; choose from {', '.join(known)}")
        return self


def load_run(raw: Mapping[str, Any], where: str = "configuration") -> RunConfig:
    """Validate a merged configuration; raises ConfigError with one line for each mistake."""
    return validate(RunConfig, raw, where)


def load_artifacts(folder: Path, chosen: Literal["all"] | Sequence[str]) -> dict[str, ArtifactConfig]:
    """The artifacts of a run by id (the file's name), in the order of the report."""
    files = {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    known, names = ", ".join(files), list[str]()
    for name in [chosen] if isinstance(chosen, str) else chosen:
        path = Path(name).expanduser()
        if name == "all":
            names += files
        elif path.suffix == ".yaml":
            if files.setdefault(path.stem, path) != path or not re.fullmatch(r"[A-Za-z0-9][\w-]*", path.stem):
                raise ConfigError(f"artifacts: {path}: its name is taken, or no word; call the file otherwise")
            names.append(path.stem)
        elif name in files:
            names.append(name)
        else:
            raise ConfigError(f"artifacts: no file {folder / (name + '.yaml')}; known artifacts: {known}")
    found = {name: validate(ArtifactConfig, read_mapping(files[name]), str(files[name])) for name in names}
    return dict(sorted(found.items(), key=lambda item: (*_rank(item[1]), item[0])))


def _rank(artifact: ArtifactConfig) -> tuple[int, int]:
    """Order of an artifact in the report: the paper's tables, its figures, then the rest, by category."""
    source = artifact.paper or ""
    return CATEGORIES.index(artifact.category), 2 - source.startswith("Figure") - 2 * source.startswith("Table")


def base(folder: Path = Path("config")) -> Path:
    """Path of the base configuration in a folder; raises ConfigError where there is none: outside a checkout."""
    if not (found := folder / "config.yaml").is_file():
        what = "this works in a checkout of the repository only, for no package holds its Snakefile, config/ and rules/"
        raise ConfigError(f"{found}: no such file; {what}; clone it and change to its folder")
    return found


def read_run(files: Sequence[Path]) -> RunConfig:
    """Read and merge configuration files as Snakemake does: mappings deeply, later files winning."""
    contents = [read_mapping(path) for path in files]
    if overlays := contents[1:]:
        name_run(reduce(merge, overlays, {}), files[1:])
    return load_run(reduce(merge, contents, {}), " + ".join(map(str, files)))


def name_run(options: Mapping[str, Any], overlays: Sequence[Path]) -> None:
    """Raises ConfigError if overlays with these options don't name the run whose results they make.

    They leave the run's name to the paper's, or lack one of those that the run says it is made of.
    """
    where = " + ".join(map(str, overlays))
    if "run" not in options:
        raise ConfigError(
            f"{where}: no overlay names its `run`; add one, for results/<run> (`run: paper`: the paper's)"
        )
    named, given = options.get("overlays"), {Path(path).name for path in overlays}
    if isinstance(named, list) and not {Path(str(one)).name for one in named} <= given:
        raise ConfigError(
            f"{where}: run {options['run']} is made of {' '.join(map(str, named))}; give all of them, in this order"
        )


def read_spec(kind: type[T], path: Path) -> T:
    """One YAML file as a configuration type; raises ConfigError with one line for each mistake."""
    return validate(kind, read_mapping(path), str(path))


def hand_on(config: RunConfig) -> None:
    """Hand the mirror to the jobs through ``ASK_DATA_MIRROR``, and what searches through ``ASK_SEARCH``.

    Not through their slices of the configuration, for where a file comes from does not change what it holds, nor what
    finds neighbours which these are.
    """
    if config.data.mirror:
        os.environ["ASK_DATA_MIRROR"] = config.data.mirror
    os.environ["ASK_SEARCH"] = config.search


def merge(base: Mapping[str, Any], overlay: Mapping[str, Any]) -> dict[str, Any]:
    """Deep merge of mappings; anything else is replaced."""
    result = dict(base)
    for key, value in overlay.items():
        old = result.get(key)
        result[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # C's where there is one
    """Refuses a key that stands twice, of which YAML's readers take the last."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Begins the reading of a mapping; keys that are merged into it stand before it, and may be among its own."""
        own = dict[str, yaml.Node]()
        for key in (key for key, _ in node.value if key.start_mark.index >= node.start_mark.index):
            if own.setdefault(f"{key.tag} {key.value}", key) is not key:
                raise yaml.YAMLError(f"line {key.start_mark.line + 1}: {key.value!r} stands twice; remove one of them")
        super().flatten_mapping(node)


def read_mapping(path: Path) -> dict[str, Any]:
    """The options of a YAML file as they stand; raises ConfigError where it holds none."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8-sig"), _Loader)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: no readable text file: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected a mapping of options, got {type(content).__name__}")
    return content


def validate(kind: type[T], raw: Mapping[str, Any], where: str) -> T:
    """A document as a configuration type; raises ConfigError with one line for each mistake."""
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        lines = [explain(kind, mistake) for mistake in error.errors()]
        raise ConfigError("\n".join(f"{where}: {line}" for line in dict.fromkeys(lines))) from None
