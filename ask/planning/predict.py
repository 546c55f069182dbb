"""What a run would take: operations over the throughput that earlier runs on this machine reached."""

import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ask.hardware import processor
from ask.paths import Run
from ask.planning.tasks import Task

CPU_RATE, GPU_RATE = 40e9, 30e12
"""Operations a second of one job where nothing was measured: two cores with AVX2, a data-centre GPU in fp32/tf32."""
OVERHEAD = 3.0
"""Seconds of a job beside its arithmetic where nothing was measured: start, imports, loading."""
FEWEST = 5
"""Finished jobs of a stage from which its speed is learned."""


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


def assumed(stage: str) -> Speed:
    """Speed where nothing was measured; tables take a second whatever the machine."""
    if stage == "tables and figures":
        return Speed(CPU_RATE, 1.0)
    return Speed(GPU_RATE if shutil.which("nvidia-smi") else CPU_RATE, OVERHEAD)


def learn(finished: Iterable[tuple[float, float]]) -> Speed | None:
    """Overhead and rate from (operations, seconds) of finished jobs, neither below zero.

    Least squares of relative errors, so that a few long jobs do not speak for all.
    """
    pairs = [(flop, seconds) for flop, seconds in finished if seconds > 0]
    if len(pairs) < FEWEST:
        return None
    weights = [1 / seconds**2 for _, seconds in pairs]
    total = sum(weights)
    mean_flop, mean_seconds = (sum(w * pair[i] for w, pair in zip(weights, pairs, strict=True)) / total for i in (0, 1))
    around = [(w, flop - mean_flop, seconds - mean_seconds) for w, (flop, seconds) in zip(weights, pairs, strict=True)]
    spread = sum(w * f * f for w, f, _ in around)
    slope = sum(w * f * s for w, f, s in around) / spread if spread else 0.0
    overhead = mean_seconds - slope * mean_flop
    if slope <= 0:
        return Speed(float("inf"), mean_seconds, len(pairs))
    if overhead < 0:
        squares = sum(w * flop * flop for w, (flop, _) in zip(weights, pairs, strict=True))
        products = sum(w * flop * seconds for w, (flop, seconds) in zip(weights, pairs, strict=True))
        return Speed(squares / products, 0.0, len(pairs))
    return Speed(1 / slope, overhead, len(pairs))


def speeds(runs: Iterable[tuple[Run, dict[Path, Task]]]) -> dict[str, Speed]:
    """Speed of each stage: from the first run's own finished jobs, or from those of all runs made on this machine."""
    own: dict[str, list[tuple[float, float]]] = {}
    every: dict[str, list[tuple[float, float]]] = {}
    for place, (run, tasks) in enumerate(runs):
        if not made_here(run):
            continue
        for task in tasks.values():
            seconds = task.seconds(run)
            if seconds is not None:
                for measured in [every] if place else [own, every]:
                    measured.setdefault(task.stage, []).append((task.flop, seconds))
    found = {stage: learn(own.get(stage, ())) or learn(pairs) for stage, pairs in every.items()}
    return {stage: speed for stage, speed in found.items() if speed}


def made_here(run: Run) -> bool:
    """Whether a run's cells name this machine's processor and number of cores."""
    here = f"{processor()}, {os.cpu_count()} cores"
    for path in (run.root / "cells").rglob("*.json"):
        hardware = json.loads(path.read_text()).get("hardware")
        if hardware:
            return str(hardware).startswith(here)
    return False
