"""``python -m ask check``, ``plan``, ``status`` and ``why``: the terminal's view of a run; no step depends on this."""

import itertools
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any

import yaml

from ask import hardware
from ask.config.run import ConfigError, base, read_mapping, read_run
from ask.errors import AskError
from ask.paths import Run
from ask.plan import predict
from ask.plan.batches import START, forecast
from ask.plan.cost import cost_left, costs
from ask.plan.graph import Task, required
from ask.plan.planner import Plan, load, plan_of
from ask.plan.predict import MACHINES, Measured, Predictor, predictor
from ask.plan.preflight import inspect
from ask.plan.why import counts, reasons, resized

ASSUMED = """
Time is the sum over jobs, some of which run side by side; on a CPU, of one core each. A job whose output is
there counts as done, up to date or not (`python -m ask why` tells), and so does what only it needs; a table that
shows a part of its numbers does not.
Assumed: a CPU of 150 GFLOP/s a core in training and 105 in attacks (178 and 210 of wide networks), where a convolution
reaches 187 (this machine's is measured once; seven tenths of a network's time go with it); GPU 280 TFLOP/s in
training (35 % of 800 in bf16), 100 in attacks (tf32), 6 s a job; small GPU 58 and 20."""
ALIKE = 0.99
"""Least share of predictions that are equal on another kind of machine, where arithmetic rounds otherwise."""
Overlays = Annotated[Sequence[Path], "overlays, as for snakemake"]


def check(config: Annotated[Sequence[Path], "configuration files, later ones winning"]) -> None:
    """Validate a configuration and what it names on disk, and count its jobs.

    They are overlays of `config/config.yaml`, as for Snakemake, unless the first is a `config.yaml` itself.
    """
    read = read_run([*([] if config[0].name == "config.yaml" else [base()]), *config])
    planned = plan_of(read)
    for remark in inspect(planned, all_networks=True):
        print(f"remark: {remark}", file=sys.stderr)
    models, calibrations, cells = (len(planned.of(step)) for step in ("train", "calibrate", "attack"))
    print(f"{read.run}: {models + len(planned.of('adopt'))} models, {calibrations} calibrations, {cells} cells")


def plan(
    names: Annotated[Sequence[str], "artifacts and slices to plan (default: all)"] = (),
    *,
    configfile: Overlays = (),
    trials: Annotated[int | None, "at most so many trials (evaluation.max_trials)"] = None,
    profile: Annotated[str, "of a cluster, e.g. slurm: print its jobs and wall time, too"] = "",
    json_: Annotated[bool, "print everything as JSON"] = False,
) -> None:
    """Print what each artifact, slice and the whole run take, and after a run what they took."""
    planned = load(configfile, trials)
    tasks, run, counted = planned.tasks, planned.run, costs(planned)
    settled = _settled(planned)
    others, pace = list(_elsewhere(run, settled)), predict.pace_of(settled)
    known, before = predictor(predict.finished(planned, counted), others, pace), predictor({}, others, pace)
    grown = {path for path, task in tasks.items() if resized(task)}

    def undone(targets: list[Path]) -> set[Path]:
        """Jobs to do, cells among them of which more or fewer trials are wanted."""
        return required(tasks, targets, undone=True) | {one for one in required(tasks, targets) if one in grown}

    def total(wanted: set[Path], left: set[Path]) -> dict[str, Any]:
        both = wanted & left
        todo = [(task.group, cost_left(task, counted[path], both)) for path, task in tasks.items() if path in both]
        times = {kind: sum(known.speed(group, kind).seconds(cost.flop) for group, cost in todo) for kind in MACHINES}
        flop, size = (sum(getattr(cost, name) for _, cost in todo) for name in ("flop", "size"))
        jobs = {"jobs": len(wanted), "left": len(todo)}
        return {**jobs, "flop": flop, "seconds": times[known.here], **times, "bytes": size}

    def foreseen(path: Path, flop: float) -> float:
        """Seconds that a job of so many operations was to take on the machine that it ran on."""
        task, speeds = tasks[path], before
        if not predict.made_here(task, run):
            there = predict.pace_of(hardware.settled_in(run.root, (predict.hardware_of(task, run) or "unknown",)))
            speeds = Predictor(known.here, pace=there)
        return speeds.speed(task.group, predict.kind_of(task, run)).seconds(flop)

    def of_stage(group: str, wanted: set[Path], left: set[Path]) -> dict[str, Any]:
        own = {path for path in wanted if tasks[path].group == group}
        took = {path: pair for path in own if (pair := predict.measured(tasks[path], run, counted[path]))}
        predicted = sum(foreseen(path, flop) for path, (flop, _) in took.items())
        about = {"basis": known.basis(group), "predicted": predicted, "actual": sum(s for _, s in took.values())}
        return {"stage": group, **total(own, left), **about}

    parts = _targets(planned, names)
    rows = [{"artifact": name, **total(required(tasks, paths), undone(paths))} for name, paths in parts.items()]
    every = [*itertools.chain(*parts.values()), *([] if names else [run.report])]
    wanted, left = required(tasks, every), undone(every)
    groups = dict.fromkeys(task.group for path, task in tasks.items() if path in wanted)
    stages = [of_stage(group, wanted, left) for group in groups]
    found = {"run": run.root.name, "artifacts": rows, "stages": stages, "total": total(wanted, left)}
    if profile:
        count = _batches_of(profile)
        found["cluster"] = {kind: forecast(planned, left, kind, count) for kind in MACHINES}
    unknown = Counter(cost.unknown for path, cost in counted.items() if cost.unknown and path in wanted)
    if json_:
        print(json.dumps(found | {"not counted": unknown}, indent=1))
        return
    _show(found, known.here)
    for reason, jobs in unknown.items():
        print(f"\nNot counted: {jobs} jobs ({reason})")


def status(
    names: Annotated[Sequence[str], "artifacts whose partial tables to print"] = (), *, configfile: Overlays = ()
) -> None:
    """Print what of each artifact is done; partial tables of those that are named."""
    planned = load(configfile)
    targets = planned.targets(names)
    if names:
        from ask.report.tables import partial_table

        for name in targets:
            print(partial_table(planned.artifacts[name], planned.run))
        return
    rows, there = [], cache(partial(counts, planned))
    for name, paths in targets.items():
        needs = [planned.tasks[path] for path in required(planned.tasks, paths) - set(paths)]
        measured = [task.output for task in needs if task.step.stage in ("attacks", "analyses")]
        trained = [task.output for task in needs if task.name in ("train", "adopt")]
        whole, some = (all(getattr(planned.tasks[path], how) for path in paths) for how in ("whole", "done"))
        rendered = "yes" if whole and all(map(there, measured)) else "in part" if some else "no"
        rows.append((name, *(_of(list(map(there, tasks))) for tasks in (trained, measured)), rendered))
    print(_table(("artifact", "models", "measurements", "rendered"), rows))


def why(
    names: Annotated[Sequence[str], "artifacts or outputs to explain (default: all)"] = (), *, configfile: Overlays = ()
) -> None:
    """Print which jobs would run, and for what reason."""
    planned = load(configfile)
    tasks, counted = planned.tasks, costs(planned)
    targets = [
        *itertools.chain(*_targets(planned, names).values()),
        *(Path(name) for name in names if Path(name).suffix),
        *([] if names else [planned.run.report]),
    ]
    found = reasons(tasks, targets if names else (), configfile)
    if not found:
        print("Nothing would run.")
        return
    groups: dict[str, list[Task]] = {}
    for path, reason in sorted(found.items(), key=lambda item: item[1].startswith("needs ")):
        groups.setdefault("because of those" if reason.startswith("needs ") else reason, []).append(tasks[path])
    for reason, members in groups.items():
        steps = ", ".join(f"{count} {step}" for step, count in Counter(task.name for task in members).items())
        more = f" and {len(members) - 3} more" if len(members) > 3 else ""
        print(f"{reason}\n  {steps}: {', '.join(str(task.output) for task in members[:3])}{more}")
    settled = predict.settled_in(planned.run) and _settled(planned)  # else it would import torch
    own = predict.finished(planned, counted)
    others = () if set(own) - set(predict.LIGHT) else _elsewhere(planned.run, settled)  # a second of planning
    known = predictor(own, others, predict.pace_of(settled))
    left = {path: cost_left(tasks[path], counted[path], found).flop for path in found}
    took = sum(known.speed(tasks[path].group).seconds(flop) for path, flop in left.items())
    print(f"\n{len(found)} of {len(required(tasks, targets))} jobs, about {_time(took)} of job time.")


def repeat(
    cells: Annotated[Sequence[Path], "records of cells, results/<run>/cells/<dataset>/<model>/<cell>.json"],
    *,
    trials: Annotated[int | None, "measure the first so many trials only (default: all)"] = None,
    data: Annotated[Path, "folder of the data (default: data)"] = Path("data"),
) -> int:
    """Measure cells again and print the share of equal predictions; 1 if it is below 99 % for any of them."""
    from ask.measure.repeat import again

    shares = []
    for record in cells:
        share, machine = again(record, trials, data)
        shares.append(share)
        print(f"{record}: {share:.2%} of predictions equal (measured on {machine})", flush=True)
    return int(min(shares) < ALIKE)


def _targets(planned: Plan, names: Sequence[str]) -> dict[str, list[Path]]:
    """Main outputs of artifacts, slices and files by name (default: all artifacts and slices)."""
    makers = {str(output): path for path, task in planned.tasks.items() for output in task.outputs}
    found = {}
    for name in names or (*planned.artifacts, *planned.config.slices):
        if name in planned.config.slices:
            from ask.slices import targets_of

            found[name] = targets_of(planned, name).outputs
        else:
            found |= {name: [makers[name]]} if name in makers else planned.targets([name])
    return {name: paths for name, paths in found.items() if paths}


def _settled(planned: Plan) -> dict[str, Any]:
    """A run's precision on this machine, and this machine's rates; those written down without torch."""
    found = predict.settled_in(planned.run)
    if predict.gpu() or found.get("processor", "").startswith(predict.machines()):
        return found
    with suppress(ModuleNotFoundError):
        import torch

        from ask.precision import expected

        exact = found.get("precision") == "float32"  # which suits all machines
        return expected("float32" if exact else planned.config.precision, torch.device("cpu"))
    return found


def _elsewhere(run: Run, settled: Mapping[str, Any]) -> Iterator[Measured]:
    """What all other runs of this precision have measured that have results and a configuration of their name."""
    for folder in sorted(Path("results").glob("*/benchmarks")):
        overlays = [] if folder.parent.name == "paper" else [Path(f"config/{folder.parent.name}.yaml")]
        mine, other = (found.get("precision", "float32") for found in (settled, predict.settled_in(Run(folder.parent))))
        if folder.parent != run.root and mine == other and all(overlay.is_file() for overlay in overlays):
            with suppress(AskError):  # it may be in the making, or of files that are gone
                named = [Path(one) for path in overlays for one in read_mapping(path).get("overlays", ())]
                other = load(named or overlays)
                yield predict.finished(other, costs(other))


def _batches_of(profile: str) -> int:
    """About how many batches a profile asks for; raises ConfigError for one that is not there or asks for none."""
    path = Path("profiles") / profile / "profile.yaml"
    read = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    asked = (read.get("resources") or {}).get("batches")
    if not asked:
        raise ConfigError(f"--profile {profile}: {path} names no `resources: batches`; take slurm, or a copy of it")
    return int(asked)


def _show_cluster(cluster: Mapping[str, Any]) -> None:
    """Print what a cluster's jobs are, by kind of machine, each job on one device or core."""
    print("\nOn a cluster: jobs (training, data, batches), their length, and the wall time with so many at once\n")
    widths = next(iter(cluster.values()))["wall"]
    head = ("machine", "jobs", "batches", "median", "longest", "start-up", *(f"{width} at once" for width in widths))
    rows = [
        (
            *(kind, str(one["jobs"]), str(one["batches"]), _time(one["median"]), _time(one["longest"])),
            f"{one['start_share']:.1%}",
            *(f"{_time(wall)} ({one['efficiency'][width]:.0%})" for width, wall in one["wall"].items()),
        )
        for kind, one in cluster.items()
    ]
    print(_table(head, rows))
    print(f"Start-up: {START:.0f} s assumed a job, of its work. In brackets: share of the devices' time that is work.")


def _show(found: Mapping[str, Any], here: str) -> None:
    """Print what `plan` found, as two tables."""

    def cells(row: Mapping[str, Any]) -> tuple[str, ...]:
        flop = row["flop"] / 1e12
        counts = f"{row['jobs']:,}", f"{row['left']:,}", f"{flop:,.0f}" if flop >= 10 else f"{flop:.2f}"
        return (*counts, *(_time(row[kind]) for kind in MACHINES), _size(row["bytes"]))

    head = ("jobs", "to do", "TFLOP", *MACHINES, "disk")
    rows = [*found["artifacts"], {"artifact": "all, shared jobs once", **found["total"]}]
    print(f"Run {found['run']}: jobs, and of those still to do their arithmetic, time and disk\n")
    print(_table(("artifact", *head), [(row["artifact"], *cells(row)) for row in rows]))
    print("\nBy stage, and for finished jobs what was to be expected without them against what they took\n")
    times = [(row["basis"], _time(row["predicted"]), _time(row["actual"])) for row in found["stages"]]
    stages = [(row["stage"], *cells(row), *time) for row, time in zip(found["stages"], times, strict=True)]
    print(_table(("stage", *head, f"basis ({here})", "predicted", "actual"), stages))
    if "cluster" in found:
        _show_cluster(found["cluster"])
    print(ASSUMED)


def _of(done: Sequence[bool]) -> str:
    return f"{sum(done)} of {len(done)}" if done else "–"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [head, ["-" * width for width in widths], *rows]
    padded = [[line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in lines]
    return "\n".join("  ".join(line).rstrip() for line in padded)


def _time(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"


def _size(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:,.1f} TB"
