"""``python -m ask plan``, ``status`` and ``why``: the terminal's view of a run."""

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ask.config.run import RunConfig, load_artifacts, read_run
from ask.errors import AskError
from ask.paths import Run
from ask.plan.paper import Paper
from ask.plan.planner import Plan, plan_run
from ask.plan.predict import MACHINES, Predictor, hardware_of, predictor
from ask.plan.tasks import Task, required, tasks_of
from ask.slicing.targets import targets_of

BASE = Path("config/config.yaml")


def plan(options: argparse.Namespace) -> None:
    """Print what each artifact, slice and the whole run take, and after a run what they took."""
    config, planned = _plan([BASE, *options.configfile], options.trials)
    run = Run(Path("results") / config.run)
    tasks = tasks_of(planned, run)
    slices = {name: targets_of(config, planned, run, name).outputs for name in config.slices}
    artifacts = [name for name in options.names if name not in slices]
    targets = _targets(planned, run, artifacts) if artifacts or not options.names else {}
    parts = {name: paths for name, paths in slices.items() if paths and (name in options.names or not options.names)}
    runs = list(_known_runs(run, tasks))
    known, before = predictor(runs), predictor([(run, {}), *runs[1:]])
    rows = [{"artifact": name, **_sum(tasks, paths, known)} for name, paths in {**targets, **parts}.items()]
    paths = [path for paths in {**targets, **parts}.values() for path in paths]
    wanted, left = required(tasks, paths), required(tasks, paths, undone=True)
    groups = []
    for group in dict.fromkeys(task.group for task in tasks.values()):
        own = {path: task for path, task in tasks.items() if path in wanted and task.group == group}
        took = [(task, seconds) for task in own.values() if (seconds := task.seconds(run)) is not None]
        expected = sum(before.seconds(task, _kind_of(task, run)) for task, _ in took)
        row = {"stage": group, **_sum(own, own, known, left), "basis": known.basis(group)}
        groups.append({**row, "predicted": expected, "actual": sum(seconds for _, seconds in took)})
    total = _sum(tasks, paths, known)
    if options.json:
        print(json.dumps({"run": run.root.name, "artifacts": rows, "stages": groups, "total": total}, indent=1))
        return
    print(f"Run {run.root.name}: jobs, and of those still to do their arithmetic, time and disk\n")
    head = ("jobs", "to do", "TFLOP", *MACHINES, "disk")
    shown = [*rows, {"artifact": "all, shared jobs once", **total}]
    print(_table(("artifact", *head), [(r["artifact"], *_cells(r)) for r in shown]))
    print("\nBy stage, and for finished jobs what was to be expected without them against what they took\n")
    cells = [
        (r["stage"], *_cells(r), r["basis"], _time(r["predicted"]), _time(r["actual"])) for r in groups if r["jobs"]
    ]
    print(_table(("stage", *head, f"basis ({known.here})", "predicted", "actual"), cells))
    print(
        "\nTime is the sum over jobs, some of which run side by side; on a CPU, of one core each. A job whose output is"
        "\nthere counts as done, up to date or not (`python -m ask why` tells), and so does what only it needs."
        "\nAssumed: CPU 150 GFLOP/s a core in training, 105 in attacks; GPU 280 TFLOP/s in training (35 % of 800 in"
        "\nbf16), 100 in attacks (tf32), 6 s a job; small GPU 58 and 20. Preparing data is left out."
    )


def _kind_of(task: Task, run: Run) -> str:
    """Kind of machine that a finished job ran on."""
    return "CPU" if " cores" in (found := hardware_of(task, run)) or not found else "GPU"


def status(options: argparse.Namespace) -> None:
    """Print what of each artifact is done; partial tables of those that are named."""
    planned, run, tasks = _load(options.configfile)
    if options.names:
        from ask.report.tables import partial_table

        _targets(planned, run, options.names)
        for name in options.names:
            print(partial_table(planned.artifacts[name], run))
        return
    rows = []
    for name, paths in _targets(planned, run, []).items():
        needs = [tasks[path] for path in required(tasks, paths) - set(paths)]
        measured = [task for task in needs if task.stage in ("attacks", "analyses")]
        trained = [task for task in needs if task.stage == "training"]
        rendered = "yes" if all(tasks[path].done for path in paths) else "no"
        rows.append((name, _of(trained), _of(measured), rendered))
    print(_table(("artifact", "models", "measurements", "rendered"), rows))


def why(options: argparse.Namespace) -> None:
    """Print which jobs would run, and for what reason."""
    from ask.plan.why import reasons

    planned, run, tasks = _load(options.configfile)
    files = [Path(name) for name in options.names if "/" in name]
    artifacts = [name for name in options.names if "/" not in name]
    targets = files
    if artifacts or not files:
        targets = files + [path for paths in _targets(planned, run, artifacts).values() for path in paths]
    wanted = required(tasks, targets)
    found = {path: reason for path, reason in reasons(tasks).items() if path in wanted}
    if not found:
        print("Nothing would run.")
        return
    known = predictor(_known_runs(run, tasks))
    own = {path: reason for path, reason in found.items() if not reason.startswith("needs ")}
    groups: dict[str, list[Task]] = {}
    for path, reason in own.items():
        groups.setdefault(reason, []).append(tasks[path])
    for reason, members in groups.items():
        print(f"{reason}\n  {_count(members)}: {_few(str(task.output) for task in members)}")
    followers = [tasks[path] for path in found if path not in own]
    if followers:
        print(f"because of those\n  {_count(followers)}: {_few(str(task.output) for task in followers)}")
    took = sum(known.seconds(tasks[path]) for path in found)
    print(f"\n{len(found)} of {len(wanted)} jobs, about {_time(took)} of job time.")


def _load(overlays: Sequence[Path]) -> tuple[Plan, Run, dict[Path, Task]]:
    config, planned = _plan([BASE, *overlays])
    run = Run(Path("results") / config.run)
    return planned, run, tasks_of(planned, run)


def _plan(files: Sequence[Path], trials: int | None = None) -> tuple[RunConfig, Plan]:
    config = read_run(list(files))
    if trials:
        config = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"max_trials": trials})})
    artifacts = load_artifacts(Path("config/artifacts"), config.artifacts)
    return config, plan_run(config, artifacts, Paper.read(Path("config/paper")))


def _known_runs(run: Run, tasks: dict[Path, Task]) -> Iterable[tuple[Run, dict[Path, Task]]]:
    """The run itself and all other runs that have results and a configuration of their name."""
    yield run, tasks
    for folder in sorted(Path("results").glob("*/benchmarks")):
        name = folder.parent.name
        overlay = Path(f"config/{name}.yaml")
        if folder.parent == run.root or not (name == "paper" or overlay.is_file()):
            continue
        other = Run(folder.parent)
        yield other, tasks_of(_plan([BASE] if name == "paper" else [BASE, overlay])[1], other)


def _targets(planned: Plan, run: Run, names: Sequence[str]) -> dict[str, list[Path]]:
    unknown = [name for name in names if name not in planned.artifacts]
    if unknown:
        raise AskError(f"no artifact {unknown[0]!r} in this run; it has {', '.join(planned.artifacts)}")
    return {
        name: [run.table(name) if planned.artifacts[name]["kind"] == "table" else run.figure(name)]
        for name in names or planned.artifacts
    }


def _sum(
    tasks: dict[Path, Task], targets: Iterable[Path], known: Predictor, left: set[Path] | None = None
) -> dict[str, Any]:
    targets = list(targets)
    wanted = required(tasks, targets)
    todo = [tasks[path] for path in (required(tasks, targets, undone=True) if left is None else wanted & left)]
    times = {kind: sum(known.seconds(task, kind) for task in todo) for kind in MACHINES}
    return {
        "jobs": len(wanted),
        "left": len(todo),
        "flop": sum(task.flop for task in todo),
        "seconds": times[known.here],
        **times,
        "bytes": sum(task.size for task in todo),
    }


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    flop = row["flop"] / 1e12
    return (
        f"{row['jobs']:,}",
        f"{row['left']:,}",
        f"{flop:,.0f}" if flop >= 10 else f"{flop:.2f}",
        *(_time(row[kind]) for kind in MACHINES),
        _size(row["bytes"]),
    )


def _of(tasks: Sequence[Task]) -> str:
    return f"{sum(task.done for task in tasks)} of {len(tasks)}" if tasks else "–"


def _count(tasks: Sequence[Task]) -> str:
    steps = [task.step for task in tasks]
    return ", ".join(f"{steps.count(step)} {step}" for step in dict.fromkeys(steps))


def _few(names: Iterable[str], most: int = 3) -> str:
    listed = list(names)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]

    def line(row: Sequence[str]) -> str:
        pairs = enumerate(zip(row, widths, strict=True))
        return "  ".join(text.rjust(width) if place else text.ljust(width) for place, (text, width) in pairs).rstrip()

    return "\n".join([line(head), "  ".join("-" * width for width in widths), *map(line, rows)])


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
