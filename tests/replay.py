"""Process replay: what the code plans and measures, written down at one commit and compared at another.

    python tests/replay.py record before     # at the old commit, after `make demo`
    python tests/replay.py record after      # at the new one, likewise, on the same machine
    python tests/replay.py compare before after

A refactoring must leave all of it as it was: the tasks of every run (outputs, settings, needs), the measurements of
every slice, and of the demo its predictions, calibrations and tidy CSVs, bit for bit. Stored settings are brought to
today's form first, as a run's stored evidence is. On another processor numbers round otherwise: record both on one.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
RUNS = {"paper": [], "demo": ["demo"], "lite": ["lite"], "paper-fast": ["paper-fast"], "raw-pixels": ["raw-pixels"]}
RUNS["rehearsal"] = ["rehearsal"]


def plans() -> Iterator[tuple[str, dict[str, Any]]]:
    """Tasks and slices of every run, by name of the run."""
    from ask.config.stored import current
    from ask.plan.planner import load
    from ask.slices import targets_of
    from ask.steps import RENDERED

    for name, overlays in RUNS.items():
        plan = load([Path(f"config/{overlay}.yaml") for overlay in overlays])
        kept = [task for task in plan.tasks.values() if task.step.stage not in ("data", "claims and report")]
        tasks = {
            str(task.output): {
                "step": task.name,
                "job": task.document if task.step.stage == RENDERED else current(task.document),
                "needs": sorted(
                    {str(need) for need in task.needs if need in plan.tasks and need.parts[0] == "results"}
                ),
            }
            for task in kept
        }
        slices = {part: sorted(map(str, targets_of(plan, part).outputs)) for part in plan.config.slices}
        yield name, {"tasks": tasks, "slices": slices}


def measured(run: Path) -> dict[str, Any]:
    """What a finished run holds: digests of predictions and tables, and its calibrations."""
    found: dict[str, Any] = {}
    for path in sorted([*run.glob("cells/**/*.npz"), *run.glob("examples/*.npz")]):
        with np.load(path) as stored:
            for key in sorted(stored):
                array = stored[key]
                text = f"{array.dtype} {array.shape}".encode() + np.ascontiguousarray(array).tobytes()
                found[f"{path.relative_to(run)}:{key}"] = hashlib.sha256(text).hexdigest()
    for path in sorted(run.glob("calibration/**/*.json")):
        record = json.loads(path.read_text())
        found[str(path.relative_to(run))] = {key: record[key] for key in ("picked", "grid", "accuracies")}
    for path in sorted([*run.glob("tables/*.csv"), *run.glob("figures/*.csv")]):
        # Seconds are measured anew each time.
        if path.stem not in ("timing", "training-cost"):
            found[str(path.relative_to(run))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def record(out: Path) -> None:
    """Write everything below a folder."""
    out.mkdir(parents=True, exist_ok=True)
    for name, plan in plans():
        (out / f"plan-{name}.json").write_text(json.dumps(plan, indent=1, sort_keys=True))
    (out / "demo.json").write_text(json.dumps(measured(Path("results/demo")), indent=1, sort_keys=True))


def differences(before: Any, after: Any, place: str = "") -> Iterator[str]:
    """Places at which two documents differ, in words."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted({*before, *after}):
            if key not in before or key not in after:
                yield f"{place}/{key}: only {'after' if key in after else 'before'}"
            else:
                yield from differences(before[key], after[key], f"{place}/{key}")
    elif before != after:
        yield f"{place}: {str(before)[:100]} -> {str(after)[:100]}"


def _today(document: dict[str, Any]) -> dict[str, Any]:
    """A plan of an earlier commit with its jobs in today's form."""
    from ask.config.stored import current

    for task in document.get("tasks", {}).values():
        if "entries" not in task["job"] and "panels" not in task["job"]:
            task["job"] = current(task["job"])
    return document


def compare(before: Path, after: Path) -> int:
    """Print what differs; the number of differences, at most 1."""
    count = 0
    for path in sorted(before.glob("*.json")):
        old, new = (_today(json.loads((folder / path.name).read_text())) for folder in (before, after))
        found = list(differences(old, new))
        count += len(found)
        print(f"{path.stem}: {'equal' if not found else f'{len(found)} differences'}")
        for line in found[:10]:
            print(f"  {line}")
    return int(bool(count))


def main() -> int:
    """Record or compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("record").add_argument("out", type=Path)
    comparing = commands.add_parser("compare")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    options = parser.parse_args()
    return record(options.out) or 0 if options.command == "record" else compare(options.before, options.after)


if __name__ == "__main__":
    sys.exit(main())
