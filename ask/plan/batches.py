"""Few, full cluster jobs: what is left of a run, cut into batches that each run in one job with one warm worker.

A batch is made by a Snakemake of its own, inside its job and with the local executor. So its members are the same jobs
as those of a local run: they are recorded alike, each is finished as soon as it has run, and none but itself is lost
when one fails or the job is killed.
"""

import heapq
import json
import math
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Annotated, Any

from ask import files
from ask.errors import AskError
from ask.plan.cost import cost_left, costs
from ask.plan.graph import Task, in_order, required
from ask.plan.planner import Plan
from ask.plan.predict import Pace, Predictor, Speed, pace_of, settled_in
from ask.plan.why import SNAKEFILE, to_run

MEASURE = ("adopt", "index", "calibrate", "blocks", "attack")
"""Steps that a model's batch begins with, in this order."""
RULES = dict.fromkeys(("timing", "cost"), "analyse") | {"study": "simulate", "example": "illustrate"}
RULES |= {"plane": "illustrate", "pictures": "drawing", "boundaries": "drawing"}
"""Rules of the steps that are not called like theirs."""
MEMBERS = ("train", *MEASURE, "failures", "timing", "example", "cost", "study", "plane")
SHORTEST, LONGEST = 120.0, 4 * 3600.0
"""Seconds of work that a batch has at least, so that its start does not count, and at most, so that queues take it."""
KEPT = 30 * 24 * 3600.0
"""Seconds after which descriptions of batches go."""
WARM = {"CPU": 0.5}
"""Seconds of a job beside its arithmetic when its process forks from the warm worker, by kind of machine."""
NOTICE = 90.0
"""Seconds from a job's end until what waits for it is sent: Snakemake asks the queue ever more rarely, up to 3 min."""
START = 25.0
"""Seconds until a cluster job's first member begins: two starts of Snakemake, and torch."""


@dataclass(frozen=True)
class Batch:
    """One cluster job."""

    targets: tuple[str, ...]
    """Main outputs of its members, each after those that it needs."""
    needs: tuple[str, ...]
    """Files that they read and that none of them makes."""
    seconds: float
    """Predicted work."""
    gpu: bool
    """Whether any of them computes on the run's device."""
    trains: bool
    """Whether any of them is a training, which may want several cores."""

    @property
    def minutes(self) -> int:
        """Time limit."""
        return 60 + math.ceil(3 * self.seconds / 60)


def predicted(plan: Plan, kind: str, todo: Collection[Path] | None = None) -> dict[Path, float]:
    """Seconds of what is left of each task (all are made, or some) in a warm process, on an assumed kind of machine."""
    counted, machine = costs(plan), Predictor(kind, pace=pace_of(settled_in(plan.run)) if kind == "CPU" else Pace())

    def of(task: Task) -> float:
        speed = machine.speed(task.group, kind)
        speed = Speed(speed.rate, WARM.get(kind, speed.overhead))
        return speed.seconds(cost_left(task, counted[task.output], plan.tasks if todo is None else todo).flop)

    return {path: of(task) for path, task in plan.tasks.items()}


def cut(plan: Plan, todo: Collection[Path], seconds: Mapping[Path, float], count: int) -> list[Batch]:
    """About ``count`` batches of the jobs to do that are no long trainings, data or tables.

    What is measured on one model stays together, behind its training if that is short, as long as it is no more than
    one batch; more is cut into a first part, with all indexes and calibrations, and further ones, of cells alone. Small
    ones share a batch. What reads several models' records comes last.
    """
    members = [task for task in in_order(plan.tasks) if task.output in todo and task.name in MEMBERS]
    total = sum(seconds[task.output] for task in members)
    length = min(LONGEST, max(SHORTEST, total / count))
    members = [task for task in members if task.name != "train" or seconds[task.output] <= length / 4]
    groups: dict[Any, list[Task]] = {}
    home: dict[Path, Any] = {}
    for task in members:
        near = {home[need] for need in task.needs if need in home}
        about = getattr(task.job, "features", task.job)
        subject = (about.dataset, about.model) if task.name in ("train", *MEASURE) else None
        alone = "rest" if near or task.name == "cost" else "apart"  # a comparison waits for trainings
        home[task.output] = subject or (near.pop() if len(near) == 1 else alone)
        groups.setdefault(home[task.output], []).append(task)
    rest = groups.pop("rest", [])
    parts: list[list[Task]] = [[]]
    for own in groups.values():
        whole = _time(own, seconds)
        if whole > 1.5 * length:
            parts[:0] = _split(own, seconds, whole / math.ceil(whole / length))
        elif _time(parts[-1], seconds) + whole / 2 <= length:
            parts[-1] += own
        else:
            parts.append(own)
    return [_batch(part, seconds) for part in (*parts, rest) if part]


def _time(tasks: Iterable[Task], seconds: Mapping[Path, float]) -> float:
    return sum(seconds[task.output] for task in tasks)


def _split(tasks: Sequence[Task], seconds: Mapping[Path, float], length: float) -> list[list[Task]]:
    """Parts of about this length, the first with all but cells; cells of an ascent and their readers stay together."""
    cells = {task.output for task in tasks if task.name == "attack"}
    ascents: dict[Path, list[Task]] = {}
    for task in (task for task in tasks if task.output in cells):
        ascents.setdefault(task.after if task.after in cells else task.output, []).append(task)
    parts = [[task for task in tasks if task.output not in cells and cells.isdisjoint(task.needs)]]
    for own in ascents.values():
        if _time(parts[-1], seconds) + _time(own, seconds) / 2 > length:
            parts.append([])
        parts[-1] += own
    for task in tasks:
        if not cells.isdisjoint(task.needs):
            next(part for part in reversed(parts) if {one.output for one in part} & set(task.needs)).append(task)
    return parts


def _batch(tasks: Sequence[Task], seconds: Mapping[Path, float]) -> Batch:
    made = {output for task in tasks for output in task.outputs}
    needs = dict.fromkeys(str(need) for task in tasks for need in task.needs if need not in made)
    gpu, trains = any(task.step.device for task in tasks), any(task.name == "train" for task in tasks)
    return Batch(tuple(str(task.output) for task in tasks), tuple(needs), _time(tasks, seconds), gpu, trains)


def to_do(config: Path, targets: Iterable[Path]) -> set[Path]:
    """Outputs of the jobs that a local Snakemake would run to make targets; asked in a process of its own."""
    command = [sys.executable, "-m", "ask.plan.batches", str(config), *map(str, targets)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise AskError(f"what is left of the run could not be found: {done.stderr.strip()[-2000:]}")
    return set(map(Path, json.loads(done.stdout.splitlines()[-1])))


class Batches:
    """A run's batches as its main process cuts and writes them, and as the jobs of the cluster read them.

    Args:
        plan: of the run.
        config: its configuration as Snakemake holds it, which the Snakemake of a batch is given.
        count: about how many to cut what is left into; 0: none.
        targets: outputs that the run shall make.
        kind: of machine that they run on, a key of :data:`ask.plan.predict.MACHINES`.
    """

    def __init__(self, plan: Plan, config: Mapping[str, Any], count: int, targets: Iterable[Path], kind: str) -> None:
        self.plan, self.folder = plan, plan.run.root / "scratch" / "batches"
        self.maker: dict[Path, Path] = {}
        """What has been made when an output of a batch's member is there: the batch's manifest."""
        if not count:
            return
        for path in self.folder.glob("*"):
            if time.time() - path.stat().st_mtime > KEPT:
                path.unlink(missing_ok=True)
        stamp = f"{int(time.time()):x}-{os.getpid():x}"
        settings = files.write_json(self.folder / f"{stamp}.config.json", {**config, "run": plan.config.run})
        todo = to_do(settings, targets)
        found = cut(plan, todo, predicted(plan, kind, todo), count)
        for number, batch in enumerate(found):
            spec = self.folder / f"{stamp}-{number:03}.json"
            for target in batch.targets:
                self.maker |= dict.fromkeys(plan.tasks[Path(target)].outputs, spec.with_suffix(".done"))
            files.write_json(spec, asdict(batch))

    def instead(self, needs: Iterable[Path]) -> list[Path]:
        """Files that a job waits for: of those that a batch makes, its manifest."""
        return list(dict.fromkeys(self.maker.get(need, need) for need in needs))

    def read(self, name: str) -> Batch:
        """A batch as it was written."""
        return Batch(**json.loads((self.folder / f"{name}.json").read_text(encoding="utf-8")))

    def summary(self, name: str) -> str:
        """Its members by step; few ones by name."""
        targets = self.read(name).targets
        steps = Counter(self.plan.tasks[Path(target)].name for target in targets)
        words = ", ".join(f"{count} {step}" for step, count in steps.items())
        return f"{words}: {', '.join(targets[:4])}" + (f" and {len(targets) - 4} more" if len(targets) > 4 else "")

    def memory(self, name: str, threads: int) -> int:
        """MB of a batch on a CPU: its members share what they map, and run side by side."""
        return 4000 + max(self.plan.tasks[Path(target)].memory for target in self.read(name).targets) // 2 * threads

    def needs(self, name: str) -> list[Path]:
        """Files that a batch waits for."""
        return self.instead(map(Path, self.read(name).needs))


class Asked:
    """What is asked of a workflow of Snakemake's, which knows it only when all rules are read.

    Args:
        workflow: as the Snakefile has it.
        plan, config, kind: as of :class:`Batches`.
    """

    def __init__(self, workflow: Any, plan: Plan, config: Mapping[str, Any], kind: str) -> None:
        self.workflow, self.plan, self.config, self.kind = workflow, plan, config, kind

    @cached_property
    def targets(self) -> list[Path]:
        """Main outputs that are named, or all of the run."""
        every, found = [self.plan.run.report, *map(self.plan.shown, self.plan.artifacts)], list[Path]()
        for name in self.named:
            of_model = self.plan.of_model(name.parent.name, name.stem) if name.suffix == ".done" else []  # rule `model`
            found += [self.makers[name]] if name in self.makers else of_model or every
        return list(dict.fromkeys(found)) or every

    @cached_property
    def named(self) -> list[Path]:
        """Targets as they are given."""
        return [Path(name) for name in self.workflow.dag_settings.targets]

    @cached_property
    def makers(self) -> dict[Path, Path]:
        """Main output of the task that makes a file."""
        return {output: path for path, task in self.plan.tasks.items() for output in task.outputs}

    @cached_property
    def wanted(self) -> set[Path]:
        """The same and what they need."""
        return required(self.plan.tasks, self.targets)

    def before(self, task: Task) -> list[Path]:
        """What shall be made before a task, unless that would make it look old, or has failed already."""
        if task.after is None or task.after not in self.wanted:
            return []
        waits = task.after.is_file() or not (task.done or self.plan.run.log(task.after).is_file())
        return [task.after] if waits else []

    @cached_property
    def forced(self) -> set[Path]:
        """Outputs that are made though they are there, and what rests on them."""
        asked = self.workflow.dag_settings
        named, found = set(map(os.path.normpath, asked.forcerun)), set(self.targets if asked.forcetargets else ())
        for task in in_order(self.plan.tasks):
            ways = {RULES.get(task.name, task.name), *map(str, task.outputs)}
            if asked.forceall or not named.isdisjoint(ways) or not found.isdisjoint(task.needs):
                found.add(task.output)
        return found

    @cached_property
    def batches(self) -> Batches:
        """What is left, cut into batches if the profile says so and jobs leave this machine (rules/batch.smk)."""
        workflow, asked = self.workflow, self.workflow.dag_settings
        count = dict(workflow.global_resources.unwrapped_items()).get("batches", 0)
        chosen = asked.forceall or asked.forcerun or asked.forcetargets or asked.until or asked.omit_from
        members = (self.plan.tasks[self.makers[one]].name in MEMBERS for one in self.named if one in self.makers)
        if chosen or any(members) or not (workflow.is_main_process and workflow.non_local_exec_or_dryrun):
            count = 0
        return Batches(self.plan, self.config, int(count), self.targets, self.kind)


def batch_command(
    spec: Annotated[Path, "the batch, as the run wrote it"],
    *,
    out: Annotated[Path, "manifest to write when all of it is made"],
    cores: Annotated[int, "cores of the job"] = 1,
) -> int:
    """Make a batch's members with a Snakemake of its own; what is made stays, whatever else fails."""
    began = time.time()
    config = spec.with_name(f"{spec.stem.rpartition('-')[0]}.config.json")
    try:
        targets = list(map(str, json.loads(spec.read_text(encoding="utf-8"))["targets"]))
    except (ValueError, TypeError, KeyError) as error:
        raise AskError(f"{spec} is no batch that a run wrote ({error!r}); start the run again") from None
    command = [sys.executable, "-m", "snakemake", *targets, "--snakefile", str(SNAKEFILE), "--configfile", str(config)]
    command += ["--executor", "local", "--cores", str(cores), "--nolock"]
    environment = {name: value for name, value in os.environ.items() if name != "SNAKEMAKE_PROFILE"}
    status = subprocess.call(command, env=environment)
    if not status:
        files.write_json(out, {"members": len(targets), "seconds": round(time.time() - began, 1)})
    return status


def forecast(plan: Plan, todo: set[Path], kind: str, count: int, widths: Iterable[int] = (1, 4, 8)) -> dict[str, Any]:
    """Cut what is to do, and let so many jobs at once work it off, as they come: figures, times in seconds.

    ``jobs`` are a cluster's: ``batches``, and each long training and data set on its own; ``wall`` and ``efficiency``
    are by the number of jobs at once.
    """
    seconds = predicted(plan, kind, todo)
    found = cut(plan, todo, seconds, count)
    inside = {Path(target) for batch in found for target in batch.targets}
    alone = [task for path, task in plan.tasks.items() if path in todo - inside and task.name in ("prepare", "train")]
    jobs = [*(_batch([task], seconds) for task in alone), *found]
    times, wall = [job.seconds for job in jobs] or [0.0], {width: _wall(jobs, width) for width in widths}
    return {
        "jobs": len(jobs),
        "batches": len(found),
        "median": median(times),
        "longest": max(times),
        "start_share": START * len(jobs) / max(sum(times), 1e-9),
        "wall": wall,
        "efficiency": {width: sum(times) / max(width * took, 1e-9) for width, took in wall.items()},
    }


def _wall(jobs: Sequence[Batch], width: int) -> float:
    """Seconds until the last of some jobs has ended, when so many run at once."""
    maker = {target: number for number, job in enumerate(jobs) for target in job.targets}
    before = [{maker[need] for need in job.needs if need in maker} for job in jobs]
    took = [job.seconds + START for job in jobs]
    last, free, done, waiting = 0.0, width, set[int](), set(range(len(jobs)))
    events: list[tuple[float, bool, int]] = []  # when, whether it is only noticed then, of which job
    now = 0.0
    while waiting or events:
        ready = sorted(number for number in waiting if before[number] <= done)
        for number in ready[:free]:
            heapq.heappush(events, (now + took[number], False, number))
            waiting.remove(number)
            free -= 1
        now, noticed, number = heapq.heappop(events)
        if noticed:
            done.add(number)
        else:
            last, free = now, free + 1
            heapq.heappush(events, (now + NOTICE, True, number))
    return last


if __name__ == "__main__":
    _overlay, *_targets = map(Path, sys.argv[1:])
    sys.stdout.write(json.dumps([output for outputs, _ in to_run(_targets, [_overlay]) for output in outputs]))
