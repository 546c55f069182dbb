"""What a run would take: operations over a throughput, which earlier runs on this machine reached or we assume."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from ask.hardware import processor
from ask.paths import Run
from ask.plan.tasks import Task

FEWEST = 5
"""Finished jobs of a group from which overhead and rate are both learned; fewer tell the rate alone."""
TABLES = "tables and figures"


@dataclass(frozen=True)
class Machine:
    """A machine's assumed throughput, in operations a second of one job, by group of jobs (:attr:`Task.group`)."""

    rates: Mapping[str, float]
    other: float
    """Of every other group."""
    overhead: float
    """Seconds of a job beside its arithmetic: start, imports, loading."""

    def speed(self, group: str) -> "Speed":
        """Speed where nothing was measured; tables take a second whatever the machine."""
        if group == TABLES:
            return Speed(float("inf"), 1.0)
        return Speed(self.rates.get(group, self.other), self.overhead)


MACHINES = {
    # What results/lite (training, and what follows on networks) and results/paper (pixels) reached on one core of a
    # server with AVX-512.
    "CPU": Machine(
        {
            "training": 150e9,
            "calibration": 85e9,
            "AdvKnn's blocks": 43e9,
            "calibration on pixels": 15e9,
            "attacks on pixels": 28e9,
        },
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

    def seconds(self, task: Task) -> float:
        """Predicted wall-clock seconds of a job."""
        return self.overhead + task.flop / self.rate


@dataclass(frozen=True)
class Predictor:
    """Seconds of jobs on each kind of machine; on this one, corrected by what was measured."""

    here: str
    """Kind of this machine."""
    learned: Mapping[str, Speed] = field(default_factory=dict)
    factor: float = 1.0
    """Measured over assumed seconds of all learned groups together, for groups without a measurement."""

    def speed(self, group: str, kind: str) -> Speed:
        """Speed of a group of jobs on a kind of machine."""
        if kind == self.here and group in self.learned:
            return self.learned[group]
        speed = MACHINES[kind].speed(group)
        return Speed(speed.rate / self.factor, speed.overhead) if kind == self.here and group != TABLES else speed

    def seconds(self, task: Task, kind: str | None = None) -> float:
        """Predicted wall-clock seconds of a job on a kind of machine (default: this one)."""
        return self.speed(task.group, kind or self.here).seconds(task)

    def basis(self, group: str) -> str:
        """Where the prediction for this machine comes from, in words."""
        if group in self.learned:
            count = self.learned[group].measured
            return f"{count} job{'s' * (count > 1)} here"
        return "assumed" if self.factor == 1 or group == TABLES else f"assumed, times {self.factor:.2g}"


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
    scale = total / sum(speed.overhead + flop / speed.rate for flop, _ in pairs)
    return Speed(speed.rate / scale, speed.overhead * scale, len(pairs))


def _fit(pairs: list[tuple[float, float]]) -> Speed:
    weights = [1 / seconds**2 for _, seconds in pairs]
    total = sum(weights)
    mean_flop, mean_seconds = (sum(w * pair[i] for w, pair in zip(weights, pairs, strict=True)) / total for i in (0, 1))
    around = [(w, flop - mean_flop, seconds - mean_seconds) for w, (flop, seconds) in zip(weights, pairs, strict=True)]
    spread = sum(w * f * f for w, f, _ in around)
    slope = sum(w * f * s for w, f, s in around) / spread if spread else 0.0
    overhead = mean_seconds - slope * mean_flop
    if slope <= 0:
        return Speed(float("inf"), mean_seconds)
    if overhead < 0:
        squares = sum(w * flop * flop for w, (flop, _) in zip(weights, pairs, strict=True))
        products = sum(w * flop * seconds for w, (flop, seconds) in zip(weights, pairs, strict=True))
        return Speed(squares / products, 0.0)
    return Speed(1 / slope, overhead)


def predictor(runs: Iterable[tuple[Run, dict[Path, Task]]]) -> Predictor:
    """What is known of this machine: for each group, the first run's own finished jobs, or those of all runs."""
    name = machine()
    kind = "GPU" if gpu() else "CPU"
    own: dict[str, list[tuple[float, float]]] = {}
    every: dict[str, list[tuple[float, float]]] = {}
    for place, (run, tasks) in enumerate(runs):
        for task in tasks.values():
            seconds = task.seconds(run)
            if seconds is None or not (task.group == TABLES or hardware_of(task, run).startswith(name)):
                continue
            for measured in [every] if place else [own, every]:
                measured.setdefault(task.group, []).append((task.flop, seconds))
    found: dict[str, Speed] = {}
    seconds_of = {"measured": 0.0, "assumed": 0.0}
    for group, pairs in every.items():
        chosen = own[group] if len(own.get(group, ())) >= FEWEST else pairs
        assumed = MACHINES[kind].speed(group)
        speed = learn(chosen, None if group == TABLES else assumed.overhead)
        if speed:
            found[group] = speed
        if group != TABLES and "pixels" not in group:
            seconds_of["measured"] += sum(seconds for flop, seconds in pairs if flop)
            seconds_of["assumed"] += sum(assumed.overhead + flop / assumed.rate for flop, _ in pairs if flop)
    factor = seconds_of["measured"] / seconds_of["assumed"] if seconds_of["assumed"] else 1.0
    return Predictor(kind, found, factor)


def hardware_of(task: Task, run: Run) -> str:
    """What a finished job ran on, by its record; indexes and blocks have none and go by their model's."""
    if task.output.suffix == ".json":
        try:
            return str(json.loads(task.output.read_text()).get("hardware") or "")
        except OSError:
            return ""
    features = getattr(task.job, "features", task.job)
    record = run.model(getattr(features, "dataset", ""), getattr(features, "model", "")) / "config.yaml"
    found = re.search(r"^hardware: (.*)$", record.read_text(), re.MULTILINE) if record.is_file() else None
    return found[1] if found else ""


def machine() -> str:
    """How records of this machine's jobs begin."""
    return gpu() or f"{processor()}, {os.cpu_count()} cores"


@cache
def gpu() -> str:
    """Name of this machine's first GPU, without asking torch; empty if there is none."""
    if not shutil.which("nvidia-smi"):
        return ""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        names = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return ""
    return names[0].strip() if names else ""
