"""Why a job would run again: Snakemake's own decision, in words that name the value, the function or the file.

Snakemake keeps each output's parameters: the job's slice of the configuration and the fingerprint of its code. What the
fingerprint stood for is kept beside it (`remember`), so that changed functions can be named.
"""

import ast
import json
import os
import re
from base64 import urlsafe_b64encode
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from ask import files
from ask.config.stored import covers, current
from ask.errors import AskError
from ask.hardware import digest_of
from ask.measure.journal import without_trials
from ask.measure.setting import parameters_of
from ask.paths import Run
from ask.plan.graph import Task, Tasks, in_order, required
from ask.plan.planner import Plan
from ask.plan.provenance import closure, fingerprint, read
from ask.steps import LAST, RENDERED

MISSING = object()
_PLACE = re.compile(r"\[\d+\]")
SNAKEFILE = Path(__file__).resolve().parents[2] / "Snakefile"
"""Of this checkout."""
CODE = Path(".snakemake/ask-code.json")
"""What fingerprints stood for."""


def reasons(tasks: Tasks, targets: Iterable[Path] = (), overlays: Sequence[Path] = ()) -> dict[Path, str]:
    """Why each job would run to make targets, upstream first; jobs that are up to date have no entry.

    ``tasks`` are of the run that the overlays configure; the others are as for :func:`to_run`.
    """
    known, owners = read_code(), {str(output): task for task in tasks.values() for output in task.outputs}
    found: dict[Path, str] = {}
    for outputs, reason in to_run(targets, overlays):
        if task := next((owners[output] for output in outputs if output in owners), None):
            found[task.output] = in_words(task, reason, known)
    return found


def to_run(targets: Iterable[Path] = (), overlays: Sequence[Path] = ()) -> list[tuple[list[str], Any]]:
    """Outputs of each job that a local Snakemake would run, upstream first, and its reason.

    Args:
        targets: files to make, from the project's folder; none: all of the run.
        overlays: configuration files, as for snakemake.

    Raises:
        AskError: Snakemake cannot plan the run.
    """
    from snakemake.api import SnakemakeApi
    from snakemake.settings.types import (
        ConfigSettings,
        DAGSettings,
        OutputSettings,
        Quietness,
        RerunTrigger,
        ResourceSettings,
    )
    from snakemake_interface_common.exceptions import WorkflowError

    try:
        with SnakemakeApi(OutputSettings(quiet={Quietness.ALL})) as api:
            config = ConfigSettings(configfiles=list(overlays))
            parsed = api.workflow(ResourceSettings(cores=1), config_settings=config, snakefile=SNAKEFILE)
            # As the profiles have it: names of inputs follow from a job's settings, or are a cluster's batches.
            triggers = frozenset(RerunTrigger.all()) - {RerunTrigger.INPUT}
            asked = DAGSettings(targets=set(map(str, targets)), rerun_triggers=triggers, force_incomplete=True)
            parsed.dag(asked)
            workflow = parsed._workflow
            workflow._prepare_dag(forceall=False, ignore_incomplete=False, lock_warn_only=True)
            workflow._build_dag()
            dag = workflow.dag
            jobs = (job for level in dag.toposorted() for job in level if dag.needrun(job))
            return [(list(map(str, job.output)), dag.reason(job)) for job in jobs]
    except WorkflowError as error:
        raise AskError(f"snakemake cannot plan this run: {error}") from None


def adopt(tasks: Tasks, run: Run) -> None:
    """Put the times of measurements in order that came without Snakemake's notes, as from git or an archive.

    Snakemake would go by the times of their arrival, and measure again. Only files count whose record is of the planned
    job, and only against others that came likewise.
    """
    for task in in_order(tasks):
        there = [path for path in (*task.outputs, run.benchmark(task.output)) if path.is_file()]
        if task.step.stage in (RENDERED, LAST) or task.output not in there or _noted(task.output):
            continue
        needs = [need.stat().st_mtime_ns for need in task.needs if need.is_file() and not _noted(need)]
        newest = max(needs, default=0)
        older = newest > min(path.stat().st_mtime_ns for path in there) and task.output.suffix == ".json"
        if older and covers(current(record_of(task.output).get("job") or {}), task.document):
            for path in there:
                with suppress(OSError):  # another user's
                    os.utime(path, ns=(newest, newest))


OTHER = "other-settings-or-weights"
"""File that is newer than any evidence that came and is not what the plan asks for."""
MADE_ALIKE = ("download", "prepare", "index", "blocks")
"""Steps that make the same whenever they are run: of the same data, and of the same weights."""


def arrived(tasks: Tasks, run: Run) -> tuple[set[Path], dict[Path, list[Path]]]:
    """What came without Snakemake's notes, as from git or an archive, by whether it is what the plan asks for.

    Returns:
        Outputs that stand and need nothing: weights, and what was measured on just these, so that a run goes on with
        what is missing, though data and indexes, which do not travel, are made anew. Their records are of the planned
        jobs, and so are those of all that they read; where data are a user's own images, which may differ here, none
        stands. And outputs of other settings, measured on other weights than those here or with other parameters than
        calibrated, or drawn from what was there then, all of which file times alone would let pass, each with a file
        that is newer, to be made again.
    """
    standing, other, newer = set[Path](), dict[Path, list[Path]](), run.root / "scratch" / OTHER
    for task in in_order(tasks):
        if task.name in MADE_ALIKE or not task.done or _noted(task.output):
            continue
        if task.step.stage in (RENDERED, LAST):
            other[task.output] = [newer]
            continue
        reads, record = [tasks[need] for need in task.needs if need in tasks], record_by(task)
        weights = {run.weights(*model.split("/")): digest for model, digest in (record.get("weights") or {}).items()}
        alike = all(digest_of(path) == digest for path, digest in weights.items() if path.is_file())
        alike = alike and not other_parameters(task, record)
        if not (alike and covers(current(record.get("job") or {}), task.document)):
            other |= {task.output: [newer]} if record.get("job") else {}
        elif weights.keys() <= standing and all(one.output in standing or _made_alike(one) for one in reads):
            standing.add(task.output)
    if other:
        files.write_text(newer, "")
    return standing, other


def _made_alike(task: Task) -> bool:
    """Whether it makes the same wherever it is run."""
    return task.name in MADE_ALIKE and not getattr(task.job, "content", "")


def other_parameters(task: Task, record: Mapping[str, Any]) -> bool:
    """Whether a cell was measured with other parameters than those that the calibrations here have picked."""
    if task.name != "attack" or "setting" not in record:  # the first records knew their calibrations' names alone
        return False
    with suppress(FileNotFoundError):  # a calibration that is not here
        return bool(parameters_of(task.job, Run(task.output.parents[3])) != record["setting"])
    return False


def stale(plan: Plan, path: Path, sized: bool = True) -> str:
    """Why a cell, calibration or example has to be measured (again); empty if its record is what the plan asks for.

    A record counts if it, and records here of trainings, calibrations and cells that it needs, are of the planned jobs,
    with at least as many trials (unless it need not be ``sized`` as planned, nor for all classifiers), and it of the
    weights here, if any, and of what calibrations here have picked. Code and a user's images are compared by ``ask
    why``.
    """
    task = plan.tasks[path]
    if not all(output.is_file() for output in task.outputs):
        return "not measured"
    record = record_of(path)
    if not covers(current(record.get("job") or {}), task.document, sized):
        return "measured with other settings"
    for one in (plan.tasks[need] for need in required(plan.tasks, [path]) - {path}):
        made = record_by(one).get("job") if one.name in ("train", "adopt", "calibrate") else None
        if made and not covers(current(made), one.document):
            return f"measured with other settings of {one.output}"
        if one.name == "attack" and one.done and (why := stale(plan, one.output, sized)):
            return f"made of {one.output}, which was {why}"
    for model, digest in (record.get("weights") or {}).items():
        weights = plan.run.weights(*model.split("/"))
        if weights.is_file() and digest_of(weights) != digest:
            return f"measured on other weights of {model}"
    return "measured with other parameters than calibrated" if other_parameters(task, record) else ""


def counts(plan: Plan, path: Path) -> bool:
    """Whether a file is there and, if it is a measurement on features, of the planned settings, whatever its size."""
    judged = path in plan.tasks and plan.tasks[path].name in ("attack", "failures", "timing", "example")
    return path.is_file() and not (judged and stale(plan, path, sized=False))


def record_by(task: Task) -> dict[str, Any]:
    """What a finished job wrote of itself, if it is here: that of a model lies beside its weights."""
    if task.output.suffix == ".json":
        return record_of(task.output) if task.output.is_file() else {}
    path = task.output.with_name("config.yaml")
    return {"job": _trained(path, path.stat().st_mtime_ns)} if path.is_file() else {}


@cache
def _trained(path: Path, changed: int) -> Any:  # noqa: ARG001  # read once as long as it stays
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8")).get("job")
    except (yaml.YAMLError, AttributeError) as error:
        raise AskError(f"{path} is no whole record ({error}): delete its folder, and it is trained again") from None


def record_of(path: Path) -> dict[str, Any]:
    """A record, read; raises AskError, which names it, where it was damaged."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (TypeError, ValueError) as error:
        raise AskError(f"{path} is no whole record ({error}): delete it, and it is measured again") from None


def _noted(path: Path) -> bool:
    """Whether Snakemake made a file here, and noted how; not if it was replaced since."""
    noted = notes(path)
    return noted.is_file() and not (path.is_file() and path.stat().st_mtime_ns > noted.stat().st_mtime_ns)


def notes(path: Path) -> Path:
    """Where Snakemake notes how it made a file."""
    name = urlsafe_b64encode(str(path).encode()).decode()
    parts = [name[start : start + 254] for start in range(0, len(name), 254)]
    return Path(".snakemake/metadata", *(f"@{part}" for part in parts[:-1]), parts[-1])


def in_words(task: Task, reason: Any, known: Mapping[str, Any]) -> str:
    """Snakemake's reason for a job: what lies in the job itself before what it only needs."""
    if reason.incomplete_output:
        return "left half-made"
    if reason.params_changed:
        made = set(map(Path, reason.updated_input_run))
        return _parameters(task, list(map(_plain, reason.params_changed.only_old)), known, made)
    if reason.code_changed:
        return "its rule has changed"
    if reason.updated_input:
        newer = min(reason.updated_input, key=lambda one: (Path(one).name != OTHER, one))
        if Path(newer).name != OTHER:
            return f"{newer} is newer"
        if task.step.stage in (RENDERED, LAST):
            return "drawn without Snakemake, from what was there then"
        if covers(job := current((record := record_by(task)).get("job") or {}), task.document):
            what = "with other parameters than calibrated" if other_parameters(task, record) else "on other weights"
            return f"measured {what}"
        return f"measured with other settings: {'; '.join(summary(job, task.document))}"
    if reason.missing_output:
        return "not made yet"
    return f"needs {min(reason.updated_input_run, default='what is not known')}"


def _parameters(task: Task, before: Sequence[Any], known: Mapping[str, Any], made: Container[Path | None]) -> str:
    """What changed of a job's parameters, when some of what it reads is made anew."""
    job = next((value for value in before if isinstance(value, dict)), None)
    if job is not None and job != task.document:
        grows = task.counts_trials and without_trials(job) == without_trials(task.document)
        left = f"; {task.trials_left(made)} of {task.document['trials']} trials to measure" if grows else ""
        return "changed: " + "; ".join(summary(job, task.document)) + left
    code = next((value for value in before if isinstance(value, str) and re.fullmatch("[0-9a-f]{16}", value)), None)
    if code and code != task.code:
        return f"code changed: {changed_functions(known, code, task.modules)}"
    return f"changed: what its rule is given, which was {', '.join(map(str, before)) or 'less'}"


def recorded(task: Task) -> tuple[dict[str, Any] | None, str | None]:
    """The job and the fingerprint of its code that Snakemake recorded of an output; None where it did not."""
    record = notes(task.output)
    params = (
        [_plain(text) for text in json.loads(record.read_text(encoding="utf-8")).get("params", ())]
        if record.is_file()
        else []
    )
    before = next((value for value in params if isinstance(value, dict)), None)
    codes = (value for value in params if isinstance(value, str) and re.fullmatch("[0-9a-f]{16}", value))
    return before, next(codes, None)


def resized(task: Task) -> bool:
    """Whether a finished job would run again for no other reason than its number of trials."""
    if not (task.done and task.counts_trials):
        return False
    before, code = recorded(task)
    other = before is not None and before != task.document
    return other and code == task.code and without_trials(before or {}) == without_trials(task.document)


def summary(before: Any, now: Any, most: int = 3) -> list[str]:
    """Differences in a few words: alike changes of a list's members are one, and of many the first ones are named."""
    alike = Counter(f"{_PLACE.sub('[*]', path)} {change}" for path, change in differences(before, now))
    found = [words if count == 1 else f"{words} ({count} times)" for words, count in alike.items()]
    return found[:most] + ([f"{len(found) - most} more"] if len(found) > most else [])


def differences(before: Any, now: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Changed values of two documents, by path: ``("attack.eps", "8.0 → 4.0")``."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in dict.fromkeys((*before, *now)):
            pair = before.get(key, MISSING), now.get(key, MISSING)
            yield from differences(*pair, f"{path}.{key}" if path else key)
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for place, pair in enumerate(zip(before, now, strict=True)):
            yield from differences(*pair, f"{path}[{place}]")
    elif before != now:
        yield path, f"{_short(before)} → {_short(now)}"


def remember(steps: Iterable[tuple[str, ...]]) -> None:
    """Note what the fingerprints of steps (each the modules that it starts from) stand for, to compare with later."""
    known = read_code()
    new = {code: modules for modules in steps if (code := fingerprint(modules)) not in known["fingerprints"]}
    for code, modules in new.items():
        found = {name: read(name) for name in closure(modules)}
        known["fingerprints"][code] = {name: module.syntax for name, module in found.items()}
        known["modules"] |= {module.syntax: module.parts for module in found.values()}
    if new:
        files.write_json(CODE, known)


def read_code() -> dict[str, Any]:
    """What was noted: modules of each fingerprint, and functions of each module."""
    return dict(json.loads(CODE.read_text(encoding="utf-8"))) if CODE.is_file() else {"fingerprints": {}, "modules": {}}


def changed_functions(known: Mapping[str, Any], code: str, modules: tuple[str, ...]) -> str:
    """Functions that differ from what a fingerprint stood for, as ``ask.knn.search (ExactSearch, check_queries)``."""
    if code not in known["fingerprints"]:
        return "what it was has not been noted"
    before = {module: known["modules"][name] for module, name in known["fingerprints"][code].items()}
    now = {module: read(module).parts for module in closure(modules)}
    found = []
    for module in sorted({*before, *now}):
        old, new = before.get(module), now.get(module)
        if old is None or new is None:
            found.append(f"{module} is {'new' if old is None else 'gone'}")
        elif changed := sorted(name for name in {*old, *new} if old.get(name) != new.get(name)):
            found.append(f"{module} ({', '.join(changed)})")
    return "; ".join(found) or "the report's templates"


def _plain(text: str) -> Any:
    """A recorded parameter: Snakemake keeps its representation, ours are JSON documents and words."""
    try:
        value = ast.literal_eval(text)
        if isinstance(value, str) and value.startswith("@"):
            value = Path(value[1:]).read_text(encoding="utf-8")
        return json.loads(value) if isinstance(value, str) and value.startswith("{") else value
    except (OSError, SyntaxError, ValueError):
        return text


def _short(value: Any) -> str:
    if value is MISSING:
        return "(none)"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}…"
