"""``python -m ask slice``, ``pack``, ``merge`` and ``render``: the terminal's view of slices."""

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from ask.config.run import ConfigError, RunConfig, load_artifacts, read_run
from ask.errors import AskError
from ask.paths import Run
from ask.plan.paper import Paper
from ask.plan.planner import Plan, plan_run
from ask.plan.tasks import tasks_of
from ask.slicing.packing import merge, pack
from ask.slicing.render import render
from ask.slicing.run import FAILED, FINISHED, MORE, make, overlay_of_trials, reserve
from ask.slicing.targets import slice_of, stale, targets_of

BASE = Path("config/config.yaml")


def slice_command(options: argparse.Namespace) -> int:
    """Make a slice; pack its evidence if asked, and unless time is up render what there is."""
    began, name = time.monotonic(), options.slice
    for option, value in (("--minutes", options.minutes), ("--trials", options.trials)):
        if value is not None and value <= 0:
            raise ConfigError(f"{option} {value:g}: must be above 0; leave it out for no limit")
    config, plan, run = _load(options.configfile)
    slice_of(config, name)
    overlays = list(options.configfile)
    if options.trials:
        overlays.append(overlay_of_trials(run, options.trials))
        config, plan, run = _load(overlays)
    limit = float("inf")
    if options.minutes:
        limit = began + 60 * options.minutes - reserve(options.minutes)
    status = FAILED
    try:
        status = make(config, plan, run, name, overlays, limit, options.flags, _say)
        if status != MORE:
            _show(render(config, plan, run))
    except AskError as error:
        _say(f"ask slice: {error}")
        status = FAILED
    finally:  # whatever happened, what was measured goes home
        targets, tasks = targets_of(config, plan, run, name), tasks_of(plan, run)
        if options.pack:
            _print(pack(config, plan, run, options.pack, name, targets))
    left = [path for path in targets.outputs if stale(tasks, run, path)]
    for path, models in targets.elsewhere.items():
        _say(f"{path}: also needs the weights of {', '.join(models)}; make it where those were trained")
    words = {FINISHED: "finished", MORE: "more to do; the same command continues", FAILED: "failed; see above"}
    _say(f"{name}: {len(targets.outputs) - len(left)} of {len(targets.outputs)} measurements, {words[status]}")
    return status


def pack_command(options: argparse.Namespace) -> int:
    """Pack evidence; prints the archives."""
    config, plan, run = _load(options.configfile)
    targets = targets_of(config, plan, run, options.slice) if options.slice else None
    _print(pack(config, plan, run, options.out, options.slice or "", targets))
    return FINISHED


def merge_command(options: argparse.Namespace) -> int:
    """Merge archives; says what was done with each job's files."""
    for words, names in merge(options.archives, options.into, replace=options.replace).items():
        _say(f"{len(names)} {words}" + (f": {_few(names)}" if names and words != "identical" else ""))
    return FINISHED


def render_command(options: argparse.Namespace) -> int:
    """Render what evidence suffices for."""
    config, plan, run = _load(options.configfile)
    _show(render(config, plan, run))
    if run.report.is_file():
        _say(str(run.report))
    return FINISHED


def _load(overlays: Sequence[Path]) -> tuple[RunConfig, Plan, Run]:
    config = read_run([BASE, *overlays])
    artifacts = load_artifacts(Path("config/artifacts"), config.artifacts)
    return config, plan_run(config, artifacts, Paper.read(Path("config/paper"))), Run(Path("results") / config.run)


def _show(states: Mapping[str, Sequence[str]]) -> None:
    _say("Artifacts rendered: " + "; ".join(f"{len(names)} {state}" for state, names in states.items()))


def _few(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _print(paths: Sequence[Path]) -> None:
    for path in paths:
        _say(f"{path} ({path.stat().st_size / 2**20:.1f} MiB)")


def _say(line: str) -> None:
    print(line, flush=True)
