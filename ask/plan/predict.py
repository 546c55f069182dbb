"""What a run would take: operations over a throughput, which earlier runs on this machine reached or we assume.

And while it runs, how far it is and how long it still takes.
"""

import math
import re
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

from ask import hardware
from ask.config.stored import current
from ask.config.training import TrainJob
from ask.errors import AskError
from ask.measure.journal import without_trials
from ask.paths import Run
from ask.plan.cost import Cost, cost_left, costs
from ask.plan.graph import ON_NETWORKS, WIDE, Task
from ask.plan.planner import Plan
from ask.plan.why import record_of
from ask.steps import LAST, RENDERED

FEWEST = 5
"""Finished jobs of a group from which overhead and rate are both learned; fewer tell the rate alone."""
Measured = Mapping[str, Sequence[tuple[float, float]]]
"""Operations and seconds of finished jobs, by group (:attr:`Task.group`)."""
LIGHT = ("data", "networks trained elsewhere", RENDERED, LAST)
"""Groups of jobs that take a second whatever the machine, and do not speak for it."""
EVERY = 300.0
"""Seconds between two lines about a run in progress."""


@dataclass(frozen=True)
class Machine:
    """A machine's assumed throughput, in operations a second of one job, by group of jobs (:attr:`Task.group`)."""

    rates: Mapping[str, float]
    other: float
    """Of every other group."""
    overhead: float
    """Seconds of a job beside its arithmetic: start, imports, loading."""


PRODUCT = 187e9
"""Operations a second of a convolution and back to its images (:func:`ask.precision.expected`) that a CPU's rates go
with, of one core. Assumed, for it was not measured on the server that they are of: there 150e9 would be 0.8 of it."""
CONVOLVING = 0.7
"""Share of a network's time there that goes with the product; activations, pooling and norms go as float32 does. With a
product in bfloat16 4.2 times as fast (AMX), trainings and attacks at full width were 1.9 and 2.6 times as fast."""
MACHINES = {
    # What results/lite (training, and what follows on networks) and results/paper (pixels) reached on one core of a
    # server with AVX-512: on another, and in another precision, in proportion to its product.
    "CPU": Machine(
        {"training": 150e9, "calibration": 85e9, "AdvKnn's blocks": 43e9}
        # At full width, near what results/cpu reached, taken to that server.
        | {f"training{WIDE}": 178e9, f"calibration{WIDE}": 200e9, f"attacks{WIDE}": 210e9}
        | {"calibration on pixels": 15e9, "attacks on pixels": 28e9},
        105e9,
        3.0,
    ),
    # No measurement of ours yet. An H100: training in bf16 at 35 % of 800 TFLOP/s; convolutions in tf32 at a quarter of
    # 400; searches in fp32 at a third of 60; blocks are small products, a tenth of the convolutions' rate.
    "GPU": Machine({"training": 280e12, "AdvKnn's blocks": 10e12, "attacks on pixels": 20e12}, 100e12, 6.0),
    # A card for games (165 TFLOP/s in bf16, 80 in tf32 and fp32), at the same shares.
    "small GPU": Machine({"training": 58e12, "AdvKnn's blocks": 2e12, "attacks on pixels": 20e12}, 20e12, 6.0),
}
"""Assumptions by kind of machine."""


@dataclass(frozen=True)
class Speed:
    """Seconds of a job: ``overhead`` + operations / ``rate``."""

    rate: float
    overhead: float
    measured: int = 0
    """Finished jobs that it was learned from; 0: an assumption."""

    def seconds(self, flop: float) -> float:
        """Predicted wall-clock seconds of a job of so many operations."""
        return self.overhead + flop / self.rate


@dataclass(frozen=True)
class Pace:
    """How many times as fast as what is assumed a machine is."""

    passes: float = 1.0
    """In the network's passes, in the run's precision."""
    other: float = 1.0
    """In all that stays in float32."""


@dataclass(frozen=True)
class Predictor:
    """Seconds of jobs on each kind of machine; on this one, corrected by what was measured."""

    here: str
    """Kind of this machine."""
    learned: Mapping[str, Speed] = field(default_factory=dict)
    pace: Pace = Pace()
    """Of this machine (:func:`pace_of`)."""
    factor: float = 1.0
    """Measured over assumed seconds of all learned groups together, for groups without a measurement."""

    def speed(self, group: str, kind: str = "") -> Speed:
        """Speed of a group of jobs on a kind of machine (default: this one)."""
        kind = kind or self.here
        if kind == self.here and group in self.learned:
            return self.learned[group]
        machine, factor = MACHINES[kind], self.factor if kind == self.here else 1.0
        if kind == self.here:
            share = CONVOLVING if group.removesuffix(WIDE) in ON_NETWORKS else 0.0
            factor *= share / self.pace.passes + (1 - share) / self.pace.other
        if group in LIGHT:
            return Speed(math.inf, 1.0)
        rate = machine.rates.get(group) or machine.rates.get(group.removesuffix(WIDE), machine.other)
        return Speed(rate / factor, machine.overhead)

    def basis(self, group: str) -> str:
        """Where the prediction for this machine comes from, in words."""
        if group in self.learned:
            count = self.learned[group].measured
            return f"{count} job{'s' * (count > 1)} here"
        return "assumed" if self.factor == 1 or group in LIGHT else f"assumed, times {self.factor:.2g}"


def learn(finished: Iterable[tuple[float, float]], overhead: float | None = None) -> Speed | None:
    """Overhead and rate from (operations, seconds) of finished jobs, neither below zero.

    Least squares of relative errors, so that a few long jobs do not speak for all; then scaled to the jobs' total. Of
    fewer than ``FEWEST`` jobs, the rate alone beside a given overhead.
    """
    pairs = [(flop, seconds) for flop, seconds in finished if seconds > 0]
    total = sum(seconds for _, seconds in pairs)
    if len(pairs) < FEWEST:
        flops, left = sum(flop for flop, _ in pairs), total - len(pairs) * (overhead or 0)
        known = overhead is not None and pairs and flops > 0
        return Speed(flops / max(left, 0.1 * total), overhead or 0.0, len(pairs)) if known else None
    speed = _fit(pairs)
    scale = total / sum(speed.seconds(flop) for flop, _ in pairs)
    return Speed(speed.rate / scale, speed.overhead * scale, len(pairs))


def _fit(pairs: Sequence[tuple[float, float]]) -> Speed:
    weights = [1 / seconds**2 for _, seconds in pairs]
    flop, took = (fmean(values, weights) for values in zip(*pairs, strict=True))
    spread = fmean([(f - flop) ** 2 for f, _ in pairs], weights)
    slope = fmean([(f - flop) * (s - took) for f, s in pairs], weights) / spread if spread else 0.0
    if slope <= 0:
        return Speed(math.inf, took)
    if took < slope * flop:
        return Speed(fmean([f * f for f, _ in pairs], weights) / fmean([f * s for f, s in pairs], weights), 0.0)
    return Speed(1 / slope, took - slope * flop)


def settled_in(run: Run) -> dict[str, Any]:
    """A run's precision on this machine, as far as it is written down (:func:`ask.hardware.settled_in`)."""
    return hardware.settled_in(run.root, machines())


def machines() -> tuple[str, ...]:
    """How records of this machine's jobs begin."""
    return hardware.machines(gpu())


def pace_of(found: Mapping[str, Any]) -> Pace:
    """Of the processor that settled a run's precision, by what is written down of it; that of the assumptions else."""
    if "threads" not in found or gpu():
        return Pace()
    rates = (found["gflops"][name] * 1e9 / found["threads"] for name in (found["precision"], "float32"))
    return Pace(*(rate / PRODUCT for rate in rates))


def predictor(own: Measured, others: Iterable[Measured] = (), pace: Pace = Pace()) -> Predictor:
    """What finished jobs tell of this machine: of each group, a run's own ones if they suffice, or those of all."""
    parts, assumed = [own, *others], Predictor("GPU" if gpu() else "CPU", pace=pace)
    learned, measured, expected = {}, 0.0, 0.0
    for group in dict.fromkeys(group for part in parts for group in part):
        pairs, speed = [pair for part in parts for pair in part.get(group, ())], assumed.speed(group)
        chosen = own[group] if len(own.get(group, ())) >= FEWEST else pairs
        if found := learn(chosen, None if group in LIGHT else speed.overhead):
            learned[group] = found
        if group not in LIGHT and "pixels" not in group:
            measured += sum(seconds for flop, seconds in pairs if flop)
            expected += sum(speed.seconds(flop) for flop, _ in pairs if flop)
    return replace(assumed, learned=learned, factor=measured / expected if expected else 1.0)


def finished(plan: Plan, costs: Mapping[Path, Cost]) -> Measured:
    """A run's jobs that this machine has finished, of those that Snakemake noted the time of; as on one core."""
    found = defaultdict[str, list[tuple[float, float]]](list)
    for path, task in plan.tasks.items():
        if (pair := measured(task, plan.run, costs[path])) and made_here(task, plan.run):
            found[task.group].append(pair)
    return found


def _record(task: Task) -> dict[str, Any]:
    """What a finished job wrote of itself; nothing where that is gone or damaged."""
    with suppress(OSError, AskError):
        return record_of(task.output)
    return {}


def hardware_of(task: Task, run: Run, line: str = "hardware") -> str:
    """What a finished job ran on (or another line), by its record; indexes and blocks have none but their model's."""
    if task.output.suffix == ".json":
        return str(_record(task).get(line) or "")
    features = getattr(task.job, "features", task.job)
    record = run.model(getattr(features, "dataset", ""), getattr(features, "model", "")) / "config.yaml"
    text = record.read_text(encoding="utf-8") if record.is_file() else ""
    return found[1] if (found := re.search(rf"^{line}: (.*)$", text, re.MULTILINE)) else ""


def measured(task: Task, run: Run, cost: Cost) -> tuple[float, float] | None:
    """Operations of a finished job and its seconds, as on one core; None if Snakemake did not note them.

    None, too, where its record is gone or of other settings. Trials that were known already are no work of its.
    """
    seconds, share, recorded = task.seconds(run), 1.0, task.output.suffix == ".json"
    record = _record(task) if recorded else {}
    if seconds is None or (recorded and not record):
        return None
    if recorded and task.group not in LIGHT:
        job, planned = current(record.get("job") or {}), task.document
        if without_trials(job) != without_trials(planned):
            return None
        share = (job["trials"] - record.get("known", 0)) / planned["trials"] if task.counts_trials else 1.0
    threads = re.search(r", (\d+) threads$", hardware_of(task, run)) if task.name == "train" else None
    took = hardware_of(task, run, "seconds") if task.name == "train" else ""  # Snakemake's are of its last start alone
    return cost.flop * share, float(took or seconds) * int(threads[1] if threads else 1)


def made_here(task: Task, run: Run) -> bool:
    """Whether a finished job ran on a machine like this one, by its record; a light one counts wherever it ran."""
    return task.group in LIGHT or hardware_of(task, run).startswith(machines())


def kind_of(task: Task, run: Run) -> str:
    """Kind of machine that a finished job ran on."""
    return "CPU" if " cores" in (found := hardware_of(task, run)) or not found else "GPU"


@cache
def gpu() -> str:
    """Name of this machine's first GPU, without asking torch; empty if there is none."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        names = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return ""
    return names[0].strip() if names else ""


class Progress:
    """Work done of the jobs that run now; a job's work is the seconds that it is predicted to take.

    Args:
        plan: of the run.
        outputs: main outputs of the jobs; one is done when its output is newer than this object.
        cores: how many of them work at a time, until there is a pace to go by.
        clock: seconds since the epoch.
    """

    def __init__(self, plan: Plan, outputs: Iterable[Path], cores: int, clock: Callable[[], float] = time.time) -> None:
        self.plan, self.cores, self.clock, self.began = plan, cores, clock, clock()
        counted = costs(plan)
        known = predictor(finished(plan, counted), pace=pace_of(settled_in(plan.run)))
        own = {path: plan.tasks[path] for path in outputs if path in plan.tasks}
        self.work = {
            path: known.speed(task.group).seconds(cost_left(task, counted[path], own).flop)
            for path, task in own.items()
        }
        self.telling = [path for path, task in own.items() if task.group not in LIGHT]
        kept = {path.parts[-3:-1] for path in (plan.run.root / "scratch").glob("*/*/*.safetensors")}
        self.continued = [path for path in self.telling if own[path].name == "train" and path.parts[-3:-1] in kept]
        self.before: dict[Path, float] = {}
        """Shares of these in which an epoch was seen first: when those before it were trained is not known."""

    def line(self) -> str:
        """Jobs, share of the work, and the time that what is left takes at the pace so far."""
        total, done, elapsed = sum(self.work.values()), self._done(self.work), self.clock() - self.began
        self.before = {path: share for path in self.continued if (share := self._share(path))} | self.before
        gained = self._done(self.telling) - sum(self.work[path] * share for path, share in self.before.items())
        pace = gained / elapsed if gained > 0 and elapsed > 0 else self.cores
        jobs = sum(self._share(path) == 1 for path in self.work)
        left = (total - done) / pace
        words = f"{max(1, left / 60):.0f} min" if left < 7200 else f"{left / 3600:.1f} h"
        return f"{jobs} of {len(self.work)} jobs, {done / max(total, 1e-9):.0%} of the work, about {words} left"

    def _done(self, paths: Iterable[Path]) -> float:
        return sum(self.work[path] * self._share(path) for path in paths)

    def _share(self, path: Path) -> float:
        """Of a job's work: all or nothing, but for the epochs that a training has finished."""
        job, history = self.plan.tasks[path].job, path.with_name("history.csv")
        with suppress(OSError):  # deleted meanwhile
            new = [one for one in (path, history) if one.is_file() and one.stat().st_mtime >= self.began]
            if path in new:
                return 1.0
            if isinstance(job, TrainJob) and new:
                return min((len(history.read_text(encoding="utf-8").splitlines()) - 1) / job.training.epochs, 0.99)
        return 0.0


def watch(plan: Plan, outputs: Iterable[Path], cores: int) -> None:
    """Say so now and then on stderr, from a thread that ends with the process."""
    progress = Progress(plan, outputs, cores)

    def say() -> None:
        while True:
            time.sleep(EVERY)
            sys.stderr.write(f"ask: {progress.line()}\n")

    threading.Thread(target=say, daemon=True).start()
