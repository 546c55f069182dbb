"""Why a job would run again: its recorded configuration and code against what they are now.

Snakemake keeps each output's parameters: the job's slice of the configuration and the fingerprint of its code. What the
fingerprint stood for is kept beside it (`remember`), so that changed functions can be named.
"""

import ast
import base64
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ask.plan.graph import Task
from ask.plan.provenance import PACKAGE, closure, fingerprint, without_documentation
from ask.steps import modules_of

MISSING = object()
_PLACE = re.compile(r"\[\d+\]")
METADATA = Path(".snakemake/metadata")
CODE = Path(".snakemake/ask-code.json")
"""What fingerprints stood for."""


def reasons(tasks: dict[Path, Task]) -> dict[Path, str]:
    """Why each job would run, upstream first; jobs that are up to date have no entry."""
    found: dict[Path, str] = {}
    known = read_code()
    current: dict[str, str] = {}
    for task in _in_order(tasks):
        upstream = [need for need in task.needs if need in found]
        reason = own_reason(task, known, current)
        if reason:
            found[task.output] = reason
        elif upstream:
            found[task.output] = f"needs {upstream[0]}"
        elif newer := next((need for need in task.needs if _newer(need, task.output)), None):
            found[task.output] = f"{newer} is newer"
    return found


def own_reason(task: Task, known: dict[str, Any], current: dict[str, str]) -> str:
    """A reason that lies in the job itself; nothing if there is none."""
    if not task.done:
        return "not made yet"
    record = METADATA / base64.urlsafe_b64encode(str(task.output).encode()).decode()
    if not record.is_file():
        return ""  # Snakemake, too, then goes by the files' times alone
    params = [_plain(text) for text in json.loads(record.read_text()).get("params", ())]
    before = next((value for value in params if isinstance(value, dict)), None)
    now = _document(task)
    if before is not None and before != now:
        return "changed: " + "; ".join(summary(before, now))
    code = next((value for value in params if isinstance(value, str) and len(value) == 16 and value.isalnum()), None)
    modules = modules_of(task.name, now)
    key = " ".join(modules)
    current[key] = current.get(key) or fingerprint(modules)
    if code and code != current[key]:
        return f"code changed: {changed_functions(known, code, modules)}"
    return ""


def summary(before: Any, now: Any, most: int = 3) -> list[str]:
    """Differences in a few words: alike changes of a list's members are one, and of many the first ones are named."""
    alike: dict[str, int] = {}
    for difference in differences(before, now):
        path, _, change = difference.partition(" ")
        words = f"{_PLACE.sub('[*]', path)} {change}"
        alike[words] = alike.get(words, 0) + 1
    found = [words if count == 1 else f"{words} ({count} times)" for words, count in alike.items()]
    return found[:most] + ([f"{len(found) - most} more"] if len(found) > most else [])


def differences(before: Any, now: Any, path: str = "") -> Iterator[str]:
    """Changed values of two documents, by path: ``attack.eps 8.0 -> 4.0``."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in dict.fromkeys((*before, *now)):
            old, new = before.get(key, MISSING), now.get(key, MISSING)
            if old != new:
                yield from differences(old, new, f"{path}.{key}" if path else key)
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for place, (old, new) in enumerate(zip(before, now, strict=True)):
            if old != new:
                yield from differences(old, new, f"{path}[{place}]")
    else:
        yield f"{path} {_short(before)} → {_short(now)}"


def remember(steps: Iterable[tuple[str, ...]]) -> None:
    """Note what the fingerprints of steps (each the modules that it starts from) stand for, to compare with later."""
    known = read_code()
    for modules in steps:
        found = functions(modules)
        known["fingerprints"][fingerprint(modules)] = {module: _digest(parts) for module, parts in found.items()}
        known["modules"] |= {_digest(parts): parts for parts in found.values()}
    CODE.parent.mkdir(exist_ok=True)
    CODE.write_text(json.dumps(known))


def read_code() -> dict[str, Any]:
    """What was noted: modules of each fingerprint, and functions of each module."""
    return dict(json.loads(CODE.read_text())) if CODE.is_file() else {"fingerprints": {}, "modules": {}}


def changed_functions(known: Mapping[str, Any], code: str, modules: tuple[str, ...]) -> str:
    """Functions that differ from what a fingerprint stood for, as ``ask.knn.search (ExactSearch, check_queries)``."""
    if code not in known["fingerprints"]:
        return "what it was has not been noted"
    before = {module: known["modules"][name] for module, name in known["fingerprints"][code].items()}
    now = functions(modules)
    found = []
    for module in sorted({*before, *now}):
        old, new = before.get(module), now.get(module)
        if old is None or new is None:
            found.append(f"{module} is {'new' if old is None else 'gone'}")
        elif changed := sorted(name for name in {*old, *new} if old.get(name) != new.get(name)):
            found.append(f"{module} ({', '.join(changed)})")
    return "; ".join(found) or "the report's templates"


def functions(modules: tuple[str, ...], package: Path = PACKAGE) -> dict[str, dict[str, str]]:
    """A hash of each function and class of the modules and all that they import; the rest of a module in one."""
    found = {}
    for module in closure(modules, package):
        path = package.parent.joinpath(*module.split("."))
        tree = without_documentation(path / "__init__.py" if path.is_dir() else path.with_suffix(".py"))
        parts: dict[str, str] = {}
        for node in tree.body:
            named = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            name = node.name if named else "the module's own level"  # type: ignore[attr-defined]  # named says it
            parts[name] = parts.get(name, "") + ast.dump(node)
        found[module] = {name: hashlib.sha256(text.encode()).hexdigest()[:12] for name, text in parts.items()}
    return found


def _digest(parts: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def _in_order(tasks: dict[Path, Task]) -> Iterator[Task]:
    """All tasks, each after those that it needs."""
    seen: set[Path] = set()

    def visit(task: Task) -> Iterator[Task]:
        if task.output not in seen:
            seen.add(task.output)
            for need in task.needs:
                if need in tasks:
                    yield from visit(tasks[need])
            yield task

    for task in tasks.values():
        yield from visit(task)


def _document(task: Task) -> Any:
    plain = task.job if isinstance(task.job, dict) else task.job.model_dump(mode="json")
    return json.loads(json.dumps(plain))


def _plain(text: str) -> Any:
    """A recorded parameter: Snakemake keeps its representation, ours are JSON documents and words."""
    try:
        value = ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text
    try:
        return json.loads(value) if isinstance(value, str) and value.startswith("{") else value
    except json.JSONDecodeError:
        return value


def _newer(need: Path, output: Path) -> bool:
    return need.is_file() and need.stat().st_mtime > output.stat().st_mtime


def _short(value: Any) -> str:
    if value is MISSING:
        return "(none)"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}…"
