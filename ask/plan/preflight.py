"""What would end a run hours after its start, looked for before: own images, counts, sides, names and radii."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from ask.config.attacks import LEAST_CLASSES, PIXEL, AutoAttackConfig, DkNNAttackConfig
from ask.config.base import DataSpec
from ask.config.run import ConfigError
from ask.data.sources import PUBLISHED
from ask.data.trees import own_images, splits
from ask.errors import DataError
from ask.plan.graph import Task
from ask.plan.planner import Plan
from ask.plan.tasks import searches_guides

SIDES = {"vgg16": (32, 32), "resnet18": (16, 1)}
"""Least side of a network's images, and what it must be a multiple of."""
LOOKED_AT = 1000
"""Of a user's own images, about so many tell whether there are colours."""


class Counts(NamedTuple):
    """What is known of a data set before it is prepared."""

    channels: int
    sides: tuple[int, int] | None
    """Height and width; None where they vary."""
    names: tuple[str, ...]
    """Of the classes."""
    train: tuple[int, ...]
    """Images of each class."""
    test: tuple[int, ...]


def counted(spec: DataSpec) -> Counts:
    """Counts of a published data set, or of a user's own images, of which some are opened, up to the first in colour.

    Raises:
        DataError: there are no such images, or they do not lie as they should.
    """
    fixed = (spec.image_size, spec.image_size) if spec.image_size else None
    if known := PUBLISHED.get(spec.source):
        channels, *sides = known.shape or (3, 0, 0)
        return Counts(channels, fixed or (sides[0], sides[1]), known.class_names, known.train_counts, known.test_counts)
    from ask.data.images import opened

    names, found = splits([own_images(spec)])
    images = [member for split in found.values() for members in split for member in members]
    looked_at = images[:: max(1, len(images) // LOOKED_AT)]
    first, grey = opened(images[0]), all(opened(image).mode in ("1", "L") for image in looked_at)
    train, test = (tuple(map(len, found[split])) for split in ("train", "test"))
    return Counts(1 if grey else 3, fixed or (first.height, first.width), names, train, test)


def inspect(plan: Plan, *, all_networks: bool = False) -> list[str]:
    """Remarks on a run; raises ConfigError with a line for everything that would end it later.

    Networks of one's own are made once; those that the run has made already only with ``all_networks``.
    """
    mistakes, remarks = list[str](), list(_unused(plan))
    for task in plan.of("prepare"):
        try:
            found = counted(task.job.spec)
        except DataError as error:
            mistakes.append(f"datasets.{task.job.dataset}: {error}")
            continue
        mistakes += [*_counts(plan, task.job.dataset, found), *_few(plan, task.job.dataset, found)]
    if mistakes:
        raise ConfigError("\n".join(dict.fromkeys(mistakes)))
    _own_networks(plan, [task for task in plan.of("train", "adopt") if all_networks or not task.done])
    return remarks + list(dict.fromkeys(_rarely_meant(plan)))


def _unused(plan: Plan) -> Iterator[str]:
    used = {task.job.dataset for task in plan.of("prepare")}
    for name, dataset in plan.config.datasets.items():
        if dataset.source == "images" and name not in used:
            yield f"datasets.{name}: no artifact shows it; name it in `stand_ins`, or in an artifact of yours"


def _counts(plan: Plan, name: str, found: Counts) -> Iterator[str]:
    """What of a data set's jobs asks for more images than there are, or for others."""
    where = f"datasets.{name}"
    if empty := [each for each, *counts in zip(found.names, found.train, found.test, strict=True) if counts[0] == 0]:
        yield f"{where}: class {empty[0]!r} has no training images; add some, or remove the class"
    if len(found.names) < 2:
        yield f"{where}: there is one class, {found.names[0]!r}; classes are the folders below each split"
    least = min(found.train)
    cells = [task.job for task in plan.of("attack", "calibrate", "blocks") if task.job.features.dataset == name]
    if (most := max((cell.references_per_class for cell in cells), default=0)) > least:
        few = found.names[found.train.index(least)]
        yield (
            f"{where}.references_per_class: {most} are asked for, and class {few!r} has {least} training images;"
            f" lower it (or `references_scale` of the stand-in) to at most {least}"
        )
    classes = len(found.names)
    for job in (task.job for task in plan.of("train") if task.job.dataset == name):
        holdout = 0 if job.training.selection == "test" else job.training.holdout
        for number, count in enumerate(found.train):
            if 0 < count <= holdout // classes + (number < holdout % classes):
                which = f"leave none of class {found.names[number]!r} to train on, which has {count}"
                fix = "lower it; with 0 the last epoch is kept"
                yield f"{where}.training.holdout: {holdout} images over {classes} classes {which}; {fix}"
                break
        network = job.network.name or job.network.factory
        least_side, step = SIDES.get(job.network.name or "", (1, 1))
        height, width = found.sides or (0, 0)
        if height and (height != width or height < least_side or height % step):
            wanted = f"a side that is a multiple of {step}" if step > 1 else f"a side of at least {least_side}"
            yield (
                f"{where}.image_size: {network} needs square images with {wanted}, not {height} x {width};"
                f" set it, e.g. to {max(least_side, -(-height // step) * step)}, to which all are resized"
            )


def _few(plan: Plan, name: str, found: Counts) -> Iterator[str]:
    """What of a data set's measurements asks for more references or classes than there are."""
    place, classes = f"datasets.{name}.references_per_class", len(found.names)
    for job in (task.job for task in plan.of("attack", "calibrate") if task.job.features.dataset == name):
        attack, tried = job.attack, [point["guides"] for point in getattr(job, "grid", ()) if "guides" in point]
        if isinstance(attack, DkNNAttackConfig):
            guides = max(tried, default=0 if searches_guides(attack) else attack.guides)
            if guides > job.references_per_class:
                fix = f"raise it, or lower {'calibration.dknn_guides' if tried else 'evaluation.dknn.guides'}"
                yield f"{place}: {job.references_per_class}, and DkNN-Atk looks for {guides:g} of each class; {fix}"
        own = job.features.network and job.features.network.factory  # it may have more outputs than there are classes
        for part in attack.parts if isinstance(attack, AutoAttackConfig) and not own else ():
            if classes < (least := LEAST_CLASSES.get(part, 2)):
                yield f"evaluation.auto.parts: {part} compares {least} classes, {name} has {classes}; leave it out"
    for job in (task.job for task in plan.of("example") if task.job.cells[0].features.dataset == name):
        if (index := job.class_index) is not None and not sum(found.test[index : index + 1]):
            yield f"{job.id}: it shows a test image of class {index}, and {name} has none; leave it out"
    for job in (task.job for task in plan.of("failures") if task.job.cell.features.dataset == name):
        if job.confidence_k > (count := job.cell.references_per_class * classes):
            yield f"{place}: {count} references, and failures are told by {job.confidence_k}; raise it"


def _rarely_meant(plan: Plan) -> Iterator[str]:
    """Radii below one grey level and schedules without a step, which are rarely meant."""
    for task in plan.of("attack"):
        if task.job.attack is not None and (eps := round(task.job.attack.eps * PIXEL, 6)) < 1:
            meant = f"if that share of the range is meant, write {PIXEL * eps:g}"
            yield f"eps {eps:g} is {eps:g} of 255, less than a grey level; {meant}"
    for job in (task.job for task in plan.of("train")):
        shared, model = plan.config.datasets[job.dataset].training, f"models.{job.model.partition('-seed')[0]}"
        schedule, epochs = job.training.schedule, job.training.epochs
        if schedule.name == "step" and min(schedule.milestones, default=0) >= epochs > 1:
            yield f"{model}: no milestone of its step schedule comes before epoch {epochs}, its last"
        radii = {f"{model}.trades.eps": job.method.trades.eps} if job.method.trades else {}
        for name in ("eps", "step_size", "ask_eps", "ask_step_size", "eval_eps"):
            eps = getattr(job.training, name)
            radii[f"{f'datasets.{job.dataset}' if eps == getattr(shared, name) else model}.training.{name}"] = eps
        small = {place: eps for place, eps in radii.items() if eps and eps < 1}
        yield from (f"{place}: {eps:g} is {eps:g} of 255, less than a grey level" for place, eps in small.items())


def _own_networks(plan: Plan, tasks: Iterable[Task]) -> None:
    """Make every network of one's own among some tasks', with its weights and all layers that the run reads."""
    data = {task.job.dataset: task for task in plan.of("prepare")}
    features = [task.job.features for task in plan.tasks.values() if hasattr(task.job, "features")]
    for job in (task.job for task in tasks):
        about = getattr(job, "features", job)
        if not about.network.factory:
            continue
        from ask.models.own import OwnModelError, build_own

        same = [one.network.layers for one in features if (one.dataset, one.model) == (about.dataset, about.model)]
        layers = {name: path for one in (about.network.layers, *same) for name, path in one.items()}
        spec, weights = about.network.model_copy(update={"layers": layers}), getattr(job, "weights", None)
        found = counted(data[about.dataset].job.spec)
        if found.sides is None or found.sides[0] != found.sides[1]:
            where = f"datasets.{about.dataset}.image_size"
            raise ConfigError(f"{where}: model {about.model!r} needs square images; set it, and all are resized")
        try:
            build_own(spec, weights, found.channels, found.sides[0], len(found.names))
        except OwnModelError as error:
            raise ConfigError(f"model {about.model!r} of {about.dataset!r}: {error}") from error
