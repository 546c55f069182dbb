"""Timing in turns, floors, and the record of a part."""

import gc
import os
import re
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ask.hardware import matmul_peak
from ask.precision import Passes, in_force, network_passes

Peaks = Mapping[Passes, float]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What all parts read."""

    device: torch.device
    repeats: int = 3
    """Rounds in which all contenders take turns."""
    small: bool = False
    """Shapes that take seconds: they show that a part works, not how fast it is."""
    share: float = 1.0
    """Of the images or queries that a part takes: less for a machine that is slow, or busy with other work."""

    def count(self, full: int) -> int:
        """So many images or queries, of ``full``."""
        return max(1, round(self.share * full))


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One way to do a piece of work."""

    name: str
    run: Callable[[], Any]
    passes: Passes = "float32"
    """Precision of the network's passes, and of the floor that it is held against."""


@dataclass(kw_only=True)
class Row:
    """A line of a table; seconds of wall clock, and CPU seconds (:func:`cpu_time`)."""

    name: str
    seconds: list[float]
    cpu_seconds: list[float] = field(default_factory=list)
    ratio: float | None = None
    """Median over rounds of this contender's seconds over the first contender's."""
    cpu_ratio: float | None = None
    floor: float | None = None
    """Fraction of the floor reached: least seconds that the arithmetic takes here over the median of seconds."""
    peak_rss_mib: float | None = None
    """Largest resident memory while it ran, everything else in the process included."""
    peak_gpu_mib: float | None = None
    result: Any = None

    @property
    def median(self) -> float:
        """Median of seconds."""
        return statistics.median(self.seconds)


@dataclass(kw_only=True)
class Case:
    """A table: contenders for the same work, ours first."""

    title: str
    shapes: dict[str, Any]
    rows: list[Row]
    facts: dict[str, Any] = field(default_factory=dict)
    """Checks and other findings, JSON-able."""

    def record(self) -> dict[str, Any]:
        """JSON-able."""
        rows = [
            {
                "name": row.name,
                "median_seconds": round(row.median, 6),
                "least_seconds": round(min(row.seconds), 6),
                "most_seconds": round(max(row.seconds), 6),
                "rounds": len(row.seconds),
                "cpu_seconds": round(statistics.median(row.cpu_seconds), 6) if row.cpu_seconds else None,
                "ratio": row.ratio,
                "cpu_ratio": row.cpu_ratio,
                "fraction_of_floor": row.floor,
                "peak_rss_mib": row.peak_rss_mib,
                "peak_gpu_mib": row.peak_gpu_mib,
            }
            for row in self.rows
        ]
        return {"title": self.title, "shapes": self.shapes, "rows": rows, "facts": self.facts}


def take_turns(
    contenders: Sequence[Contender],
    options: Options,
    *,
    flop: float = 0,
    peaks: Peaks | None = None,
    warm_up: bool = True,
) -> list[Row]:
    """Run all contenders ``options.repeats`` times, in turns, so that what else the machine does hits all alike.

    Args:
        contenders: ours first; the last round's results are kept in the rows.
        options: rounds and device.
        flop: floating-point operations that the work takes at least.
        peaks: operations a second of this device (:func:`floor_peaks`), for the fraction of the floor.
        warm_up: run each once before, untimed.
    """
    rows = [Row(name=contender.name, seconds=[]) for contender in contenders]
    if warm_up:
        for contender in contenders:
            with network_passes(contender.passes):
                contender.run()
    for _ in range(options.repeats):
        for contender, row in zip(contenders, rows, strict=True):
            gc.collect()
            reset_peaks(options.device)
            synchronise(options.device)
            began, began_cpu = time.perf_counter(), cpu_time()
            with network_passes(contender.passes):
                row.result = contender.run()
            synchronise(options.device)
            row.seconds.append(time.perf_counter() - began)
            row.cpu_seconds.append(cpu_time() - began_cpu)
            rss, gpu = largest(options.device)
            row.peak_rss_mib, row.peak_gpu_mib = _larger(row.peak_rss_mib, rss), _larger(row.peak_gpu_mib, gpu)
    for row in rows:
        row.ratio = _ratio(row.seconds, rows[0].seconds)
        row.cpu_ratio = _ratio(row.cpu_seconds, rows[0].cpu_seconds)
    for contender, row in zip(contenders, rows, strict=True):
        if flop and peaks:
            row.floor = round(flop / peaks[contender.passes] / row.median, 3)
    return rows


def cpu_time() -> float:
    """CPU seconds of all threads of this process, and of the processes that it has started and that have ended."""
    ended = os.times()
    return time.process_time() + ended.children_user + ended.children_system


def _ratio(theirs: Sequence[float], ours: Sequence[float]) -> float:
    return round(statistics.median(t / max(o, 1e-9) for t, o in zip(theirs, ours, strict=True)), 3)


def _larger(one: float | None, other: float | None) -> float | None:
    return max(filter(None, (one, other)), default=None)


def synchronise(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reset_peaks(device: torch.device) -> None:
    """Begin to look for the largest memory anew, where the system lets a process do so (Linux)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):  # the peak since the start of the process, then
        Path("/proc/self/clear_refs").write_text("5")


def largest(device: torch.device) -> tuple[float, float | None]:
    """Largest resident memory and GPU memory since :func:`reset_peaks`, MiB."""
    gpu = torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else None
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        found = None
    if found:
        return round(int(found[1]) / 2**10, 1), gpu
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1), gpu


def floor_peak(options: Options, dtype: torch.dtype = torch.float32, *, of: str = "convolutions") -> float:
    """FLOP/s that a matrix product reaches here, as things are now, in the precision in which the work is done.

    float32 ``convolutions`` and ``products`` (of searches) are read in different precisions on a GPU.
    """
    read = in_force(options.device)[of]
    return matmul_peak(options.device, dtype=dtype, side=256 if options.small else None, read=read)


def floor_peaks(options: Options) -> dict[Passes, float]:
    """:func:`floor_peak` of a network's passes in each precision."""
    return {"float32": floor_peak(options), "bfloat16": floor_peak(options, torch.bfloat16)}


def product(peaks: Peaks) -> str:
    """The floors' speeds in words."""
    found = " and ".join(f"{rate / 1e9:.0f} in {passes}" for passes, rate in peaks.items())
    return f"GFLOP/s (measured product): {found}"


def table(case: dict[str, Any]) -> str:
    """A case's record as a Markdown table."""
    head = ("", "median s", "min – max", "ratio", "CPU s", "CPU ratio", "of floor", "peak RSS MiB", "peak GPU MiB")
    lines = [f"### {case['title']}", "", ", ".join(f"{name} {value}" for name, value in case["shapes"].items()), ""]
    lines += [f"| {' | '.join(head)} |", "| --- " + "| ---: " * (len(head) - 1) + "|"]
    for row in case["rows"]:
        spread = f"{row['least_seconds']:.3g} – {row['most_seconds']:.3g}"
        cells = (
            row["name"],
            f"{row['median_seconds']:.3g}",
            spread,
            _show(row["ratio"], ".2f"),
            _show(row["cpu_seconds"], ".3g"),
            _show(row["cpu_ratio"], ".2f"),
            _show(row["fraction_of_floor"], ".0%"),
            _show(row["peak_rss_mib"], ".0f"),
            _show(row["peak_gpu_mib"], ".0f"),
        )
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", *(f"* {name}: {value}" for name, value in case["facts"].items())]
    return "\n".join(lines).rstrip() + "\n"


def _show(value: float | None, style: str) -> str:
    return "" if value is None else format(value, style)
