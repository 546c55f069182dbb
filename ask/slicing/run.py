"""One slice on one machine: Snakemake on what is missing, stopped in time, again until nothing is left."""

import contextlib
import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import yaml

from ask.config.run import RunConfig
from ask.errors import AskError
from ask.hardware import weights_of
from ask.paths import Run
from ask.plan.planner import Plan
from ask.plan.tasks import Task, required, tasks_of
from ask.slicing.targets import calibrations_before, slice_of, stale, targets_of

FINISHED, FAILED, MORE = 0, 1, 75
"""Exit statuses; 75 is that of a temporary failure (EX_TEMPFAIL): the same command continues."""
GRACE = 20.0
"""Seconds from asking Snakemake to stop until it is killed."""

Say = Callable[[str], None]


def reserve(minutes: float) -> float:
    """Seconds of a time limit that are kept for stopping jobs and packing: a minute of ten, a third of a short one."""
    return min(60.0, 20.0 * minutes)


def make(
    config: RunConfig, plan: Plan, run: Run, name: str, overlays: Sequence[Path], deadline: float, flags: str, say: Say
) -> int:
    """Make a slice until it is finished, something fails or ``deadline`` (of ``time.monotonic``) is near."""
    scratch = run.root / "scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    with _lock(scratch / "slice.lock"):
        status = _commands(slice_of(config, name).commands, scratch / f"{name}.json", deadline, say)
        if status != FINISHED:
            return status
        tasks, before = tasks_of(plan, run), list[Path]()
        while left := [p for p in targets_of(config, plan, run, name).outputs if stale(tasks, run, p)]:
            todo = _of_one_model(left, run)
            made_some = bool(before)
            if todo == before:
                raise AskError(f"slice {name!r}: {todo[0]} was made, and still is {stale(tasks, run, todo[0])}")
            before = todo
            again = [p for p in calibrations_before(tasks, todo) if p.is_file() and stale(tasks, run, p)]
            again += [p for p in todo if p.is_file()]
            say(f"{name}: {len(left)} measurements to make, now {len(todo)} in {todo[0].parent}")
            command = [sys.executable, "-m", "snakemake", *map(str, todo), "--nolock", *shlex.split(flags)]
            command += ["--configfile", *map(str, overlays)] if overlays else []
            command += ["--forcerun", *map(str, again)] if again else []
            seconds = deadline - time.monotonic()
            at_start = _progress(tasks, todo, scratch)
            status = _within(command, deadline)
            if status == MORE and seconds > 0 and not made_some and _progress(tasks, todo, scratch) == at_start:
                first = next(p for p in tasks if p in required(tasks, todo) and not p.is_file())
                raise AskError(
                    f"slice {name!r}: nothing was finished in {seconds:.0f} s, {first} for one; give it more --minutes"
                )
            if status != FINISHED:
                return status
    return FINISHED


def _of_one_model(outputs: Sequence[Path], run: Run) -> list[Path]:
    """Measurements of one model, a trained one if there is any: what was trained is used before the next one is."""
    folders = list(dict.fromkeys(path.parent for path in outputs))
    cells = [folder for folder in folders if folder.parent.parent.name == "cells"]
    trained = [folder for folder in cells if weights_of(run, folder.parent.name, folder.name).is_file()]
    chosen = (trained or cells or folders)[0]
    return [path for path in outputs if path.parent == chosen]


def _progress(tasks: dict[Path, Task], todo: Sequence[Path], scratch: Path) -> list[tuple[Path, int]]:
    """What is there of all that measurements need, and the trainings' checkpoints, with times."""
    there = [path for path in required(tasks, todo) if path.is_file()]
    return sorted((path, path.stat().st_mtime_ns) for path in [*there, *scratch.rglob("*.safetensors")])


def overlay_of_trials(run: Run, trials: int) -> Path:
    """A configuration overlay that limits trials, for Snakemake and for us alike."""
    path = run.root / "scratch" / f"trials-{trials}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({"evaluation": {"max_trials": trials}}))
    return path


def _commands(commands: Sequence[str], done_in: Path, deadline: float, say: Say) -> int:
    """Run a slice's commands, each until it has succeeded once on this machine."""
    done = json.loads(done_in.read_text()) if done_in.is_file() else []
    for text in commands:
        if text in done:
            continue
        words = shlex.split(text)
        if words[0] == "python":
            words[0] = sys.executable
        say(text)
        status = _within(words, deadline)
        if status != FINISHED:
            return status
        done.append(text)
        done_in.write_text(json.dumps(done))
    return FINISHED


def _within(command: Sequence[str], deadline: float) -> int:
    """Run a command in its own process group; at the deadline it is stopped as Ctrl-C would, then killed."""
    if time.monotonic() >= deadline:
        return MORE
    # Where this runs in the background, SIGINT is ignored, and Snakemake would never hear that it shall stop.
    process = subprocess.Popen(
        command, start_new_session=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    )
    try:
        left = None if deadline == float("inf") else max(deadline - time.monotonic(), 0.0)
        return FINISHED if process.wait(left) == 0 else FAILED
    except (subprocess.TimeoutExpired, KeyboardInterrupt) as end:
        for number, patience in ((signal.SIGINT, GRACE), (signal.SIGKILL, None)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(patience)
                break
        if isinstance(end, KeyboardInterrupt):
            raise
        return MORE


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """One slice at a time in a run; a killed process leaves no lock behind."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AskError(f"{path}: another slice of this run is being made here; wait until it ends") from None
        yield
