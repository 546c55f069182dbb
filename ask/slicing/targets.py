"""What a slice has to measure, and what of it is there: judged by content, so that merged evidence counts too."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ask.config.run import ConfigError, RunConfig
from ask.config.slices import SliceSpec
from ask.hardware import digest_of, weights_of
from ask.paths import Run
from ask.plan.planner import Plan
from ask.plan.tasks import Task, required


@dataclass(frozen=True)
class Targets:
    """Measurements of a slice."""

    outputs: list[Path]
    """Cells and examples, in the order of the plan."""
    elsewhere: dict[Path, list[str]]
    """Examples that also need the weights of models which the slice does not train and this machine does not have."""


def slice_of(config: RunConfig, name: str) -> SliceSpec:
    """A slice by name; raises ConfigError with the names that there are."""
    if name not in config.slices:
        known = ", ".join(config.slices) or "none"
        raise ConfigError(f"no slice {name!r} in run {config.run!r}; it has {known}; name one, or add it to `slices`")
    return config.slices[name]


def targets_of(config: RunConfig, plan: Plan, run: Run, name: str) -> Targets:
    """Measurements of a slice; artifacts that this run leaves out are passed over."""
    part = slice_of(config, name)
    stand_ins = {key: value.dataset for key, value in config.stand_ins.items()}
    datasets = {stand_ins.get(dataset, dataset) for dataset in part.datasets}
    if unknown := [one for one in part.artifacts if not Path(f"config/artifacts/{one}.yaml").is_file()]:
        raise ConfigError(f"slice {name!r}: no artifact {unknown[0]!r} in config/artifacts; mend its spelling")

    def wanted(dataset: str, model: str) -> bool:
        method = model.partition("-seed")[0]
        return (not datasets or dataset in datasets) and (not part.models or method in part.models)

    artifacts = [one for one in part.artifacts if one in plan.artifacts]
    keys = {key for one in artifacts if one not in plan.examples for key in plan.cells_of(one)}
    found = [run.cell(*key) for key in plan.measurements if key in keys and wanted(*key[:2])]
    elsewhere = {}
    for one in artifacts:
        job = plan.examples.get(one)
        pairs = [(c.features.dataset, c.features.model) for c in job.cells] if job else []
        if not pairs or not any(wanted(*pair) for pair in pairs):
            continue
        found += [run.cell(*key) for key in plan.cells_of(one) if wanted(*key[:2])]
        lacking = {m for d, m in pairs if not wanted(d, m) and not weights_of(run, d, m).is_file()}
        if lacking:
            elsewhere[run.example(one)] = sorted(lacking)
        else:
            found.append(run.example(one))
    return Targets(list(dict.fromkeys(found)), elsewhere)


def stale(tasks: Mapping[Path, Task], run: Run, path: Path) -> str:
    """Why a cell, calibration or example has to be measured (again); empty if its record is what the plan asks for.

    A record counts if it is of the planned job, with at least as many trials, and of the weights that are here. Without
    weights here any weights count, and of records that name none any do. The code is not compared (``ask why`` does).
    """
    if not path.is_file():
        return "not measured"
    record, job = json.loads(path.read_text()), tasks[path].job
    planned = job if isinstance(job, dict) else job.model_dump(mode="json")
    if not covers(record.get("job") or {}, json.loads(json.dumps(planned))):
        return "measured with other settings"
    for model, digest in (record.get("weights") or {}).items():
        weights = weights_of(run, *model.split("/"))
        if weights.is_file() and digest_of(weights) != digest:
            return f"measured on other weights of {model}"
    return ""


def covers(measured: Mapping[str, Any], planned: Mapping[str, Any]) -> bool:
    """Whether a job is the planned one, with at least as many trials."""
    trials = [job.get("trials") or 0 for job in (measured, planned)]
    return {**measured, "trials": 0} == {**planned, "trials": 0} and trials[0] >= trials[1]


def calibrations_before(tasks: dict[Path, Task], outputs: list[Path]) -> list[Path]:
    """Calibrations that measurements read."""
    return [path for path in required(tasks, outputs) if tasks[path].step == "calibrate"]
