"""Why a job would run again: its recorded configuration and code against what they are now.

Snakemake keeps each output's parameters: the job's slice of the configuration and the fingerprint of its code. What the
fingerprint stood for is kept beside it (`remember`), so that changed functions can be named.
"""

import ast
import base64
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ask import files
from ask.measure.journal import without_trials
from ask.plan.graph import Task, Tasks, in_order, required
from ask.plan.provenance import closure, fingerprint, read

MISSING = object()
_PLACE = re.compile(r"\[\d+\]")
METADATA = Path(".snakemake/metadata")
CODE = Path(".snakemake/ask-code.json")
"""What fingerprints stood for."""


def reasons(tasks: Tasks, targets: Iterable[Path]) -> dict[Path, str]:
    """Why each job would run to make targets, upstream first; jobs that are up to date have no entry.

    Snakemake's rules: files that are not there are made only if they are targets or a job that runs needs them.
    """
    known, asked = read_code(), set(targets)
    wanted = required(tasks, asked)
    own = {task.output: own_reason(task, known) for task in in_order(tasks) if task.output in wanted}
    found: dict[Path, str] = {}
    before = -1
    while len(found) > before:
        before = len(found)
        for path, reason in own.items():
            if any(output in asked and not output.is_file() for output in tasks[path].outputs):
                reason = "not made yet"
            upstream = next((f"needs {need}" for need in tasks[path].needs if need in found), "")
            if reason or upstream:
                found[path] = reason or upstream
                asked.update(tasks[path].needs)
    return {path: found[path] for path in own if path in found}


def own_reason(task: Task, known: Mapping[str, Any]) -> str:
    """A reason that lies in a finished job itself; nothing if there is none."""
    if not task.done:
        return ""
    before, code = recorded(task)
    if before is not None and before != task.document:
        grows = f"; {task.trials_left} of {task.document['trials']} trials to measure" if resized(task) else ""
        return "changed: " + "; ".join(summary(before, task.document)) + grows
    if code and code != task.code:
        return f"code changed: {changed_functions(known, code, task.modules)}"
    newer = [need for need in task.needs if need.exists() and need.stat().st_mtime > task.output.stat().st_mtime]
    return f"{newer[0]} is newer" if newer else ""


def recorded(task: Task) -> tuple[dict[str, Any] | None, str | None]:
    """The job and the fingerprint of its code that Snakemake recorded of an output; None where it did not.

    Without them Snakemake, too, goes by the files' times alone.
    """
    record = METADATA / base64.urlsafe_b64encode(str(task.output).encode()).decode()
    params = [_plain(text) for text in json.loads(record.read_text()).get("params", ())] if record.is_file() else []
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
    return dict(json.loads(CODE.read_text())) if CODE.is_file() else {"fingerprints": {}, "modules": {}}


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
        return json.loads(value) if isinstance(value, str) and value.startswith("{") else value
    except (SyntaxError, ValueError):
        return text


def _short(value: Any) -> str:
    if value is MISSING:
        return "(none)"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}…"
