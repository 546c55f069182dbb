"""What a result was made with: device, versions, code and weights, for the record beside every number."""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ask import __version__, files
from ask.data.sources import PUBLISHED
from ask.errors import AskError
from ask.paths import Run, prepared

if TYPE_CHECKING:
    import torch

UNITS = {"amx_bf16": "AMX", "avx512_bf16": "AVX-512 bf16", "avx512f": "AVX-512", "avx2": "AVX2"}
"""Names of x86 processors' vector units by the flag that tells of them, widest first."""
WIDE = ("AMX", "AVX-512 bf16", "AVX-512")
PACKAGES = ("torch", "numpy", "safetensors", "snakemake", "faiss-cpu", "faiss-gpu")


def pick_device(wanted: str) -> "torch.device":
    """The device for ``auto``, ``cpu`` or ``cuda``.

    Raises AskError when a GPU is asked for and there is none, or when there is one, by its driver's own tool, that
    torch cannot use: a run of days on a CPU is not what ``auto`` means then.
    """
    import torch

    if wanted == "cpu":
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda")
    if wanted == "cuda":
        raise AskError("device 'cuda' was asked for, but torch sees no GPU; use device: auto or cpu")
    driver = _driver()
    if driver:
        try:
            torch.cuda.init()
            why = "torch sees no GPU"
        except (RuntimeError, AssertionError) as error:  # the latter from a build without CUDA
            why = str(error).partition("\n")[0]
        raise AskError(
            f"there is a GPU driver ({driver}) that torch {torch.__version__} cannot use: {why}; install a driver and "
            "a torch that fit each other, or use device: cpu"
        )
    return torch.device("cpu")


def _driver() -> str:
    """What ``nvidia-smi`` says of the driver; empty where there is none, no card, or none that this process may see."""
    if shutil.which("nvidia-smi") is None or os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return ""
    command = ["nvidia-smi", "--query-gpu=driver_version,name", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"nvidia-smi: {error}"
    said = (done.stdout.strip() or done.stderr.strip()).partition("\n")[0]
    return "" if "No devices were found" in said else said or f"nvidia-smi ended with status {done.returncode}"


def describe(device: "torch.device") -> dict[str, Any]:
    """Device, hardware, precision of float32 arithmetic, and versions, JSON-able."""
    from ask.precision import in_force

    about = {"device": device.type, "hardware": hardware(device), "precision": in_force(device)}
    return {**about, "versions": versions()}


def hardware(device: "torch.device") -> str:
    """E.g. ``AMD EPYC, AVX2, 2 cores, 1 thread``."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{processor()}, {os.cpu_count()} cores, {threads} thread{'s' * (threads > 1)}"


def usage(device: "torch.device") -> dict[str, float]:
    """CPU time of this process and its largest memory so far, on the GPU too if it used one."""
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF)
    unit = 2**20 if sys.platform == "darwin" else 2**10
    found = {"cpu_seconds": used.ru_utime + used.ru_stime, "peak_memory_mib": used.ru_maxrss / unit}
    if device.type == "cuda":
        import torch

        found["peak_gpu_memory_mib"] = torch.cuda.max_memory_allocated(device) / 2**20
    return {name: round(value, 3) for name, value in found.items()}


def matmul_peak(
    device: "torch.device", *, dtype: "torch.dtype | None" = None, side: int | None = None, read: str = "ieee"
) -> float:
    """Floating-point operations a second of the best of five square products: what arithmetic can reach here, now.

    In the precision of training passes unless told otherwise: bf16 on a GPU, fp32 on a CPU. ``read`` is how float32
    factors are read, ``ieee`` or ``tf32``: convolutions and searches differ in it.
    """
    import torch

    from ask.precision import products_read_as

    gpu = device.type == "cuda"
    side = side or (8192 if gpu else 1024)
    generator = torch.Generator(device).manual_seed(0)  # the global one belongs to the caller
    factors = torch.rand((2, side, side), generator=generator, device=device)
    a, b = factors.to(dtype or (torch.bfloat16 if gpu else torch.float32)).unbind()
    with products_read_as(read):
        return float(2 * side**3 / min(timed(device, lambda: torch.mm(a, b)) for _ in range(5)))


def timed(device: "torch.device", work: Callable[[], object]) -> float:
    """Seconds that some work takes, a GPU's share of it included."""
    import torch

    wait: Callable[[], object] = partial(torch.cuda.synchronize, device) if device.type == "cuda" else int
    wait()
    began = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - began


def versions() -> dict[str, str]:
    """Versions of Python, this package and what it computes with, as they were when first asked for."""
    return dict(_versions())


@cache
def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found | {"ask": __version__} | commit()


def commit() -> dict[str, str]:
    """The git commit of the code, if it lies in a checkout; ``+`` marks uncommitted changes, but those of results."""
    git = partial(subprocess.run, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10)
    try:
        found = git(["git", "rev-parse", "--short=12", "HEAD"])
        changed = git(["git", "status", "--porcelain", "--untracked-files=no", ":/", ":(top,exclude)results"])
    except (OSError, subprocess.TimeoutExpired):
        return {}
    return {"commit": found.stdout.strip() + "+" * bool(changed.stdout)} if found.returncode == 0 else {}


def processor() -> str:
    """The processor's model name and its widest vector units, as far as the system tells: ``AMD EPYC, AVX2``.

    Clouds call several generations of a processor alike, and speed and last digits come of these units.
    """
    return ", ".join(part for part in _processor() if part)


@cache
def _processor() -> tuple[str, str]:
    try:
        found = dict(
            re.findall(r"^(model name|flags)\s*: (.*)$", Path("/proc/cpuinfo").read_text("utf-8"), re.MULTILINE)
        )
    except OSError:  # not Linux
        found = {}
    flags = found.get("flags", "").split()
    name = found.get("model name") or platform.processor() or platform.machine()
    return name.strip(), next((units for flag, units in UNITS.items() if flag in flags), "")


def machines(gpu: str = "") -> tuple[str, ...]:
    """How records of jobs on this machine begin, on its GPU if one is named; without units, it had AVX-512."""
    if gpu:
        return (gpu,)
    name, units = _processor()
    names = {processor(), name} if units in WIDE else {processor()}
    return tuple(f"{known}, {os.cpu_count()} cores" for known in sorted(names))


def settled_in(run: Path, machines: tuple[str, ...]) -> dict[str, Any]:
    """What a run's folder says of its network passes' precision on a machine (:func:`ask.precision.settled`).

    Where that machine is not named: what the machine said that asked first; nothing until one has.
    """
    try:
        found: dict[str, Any] = json.loads((run / "precision.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return next((one for one in found.get("others", ()) if one["processor"].startswith(machines)), found)


def weights_read(job: Mapping[str, Any], run: Run) -> dict[str, str]:
    """SHA-256 of the weights that a measurement reads, by ``dataset/model``; none on raw pixels."""
    found = _features_read(job)
    read = {f"{f['dataset']}/{f['model']}": run.weights(f["dataset"], f["model"]) for f in found if f["network"]}
    return {name: digest_of(path) for name, path in read.items() if path.is_file()}


def unverified(job: Mapping[str, Any], data: Path) -> dict[str, str]:
    """What arrays that a measurement reads say of their origin, by data set, if it is not the published files."""
    found = {}
    for features in _features_read(job):
        facts = prepared(data, SimpleNamespace(**{"data": "", **features})) / "facts.json"
        known = json.loads(facts.read_text(encoding="utf-8")) if facts.is_file() else {"source": ""}
        if known["source"] in PUBLISHED and known["note"] == PUBLISHED[known["source"]].image_zip_note != "":
            found[features["dataset"]] = known["note"]
    return found


def _features_read(job: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [part["features"] for part in (job, job.get("cell") or {}, *job.get("cells", ())) if part.get("features")]


def digest_of(path: Path) -> str:
    """SHA-256 of a file's content, computed once for each time of change."""
    return _digest(path, path.stat().st_mtime_ns)


@cache
def _digest(path: Path, _changed: int) -> str:
    return files.digest(path)
