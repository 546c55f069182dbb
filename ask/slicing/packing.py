"""Evidence in archives: packed where it was measured, merged by content where it is kept.

Weights, indexes and blocks stay behind. A job's files travel and are judged together: a cell's record and predictions,
a calibration, a model's history and record, with its benchmark.
"""

import hashlib
import json
import shlex
import sys
import time
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from ask.config.run import RunConfig
from ask.errors import AskError
from ask.paths import Run
from ask.plan.planner import Plan
from ask.plan.tasks import required, tasks_of
from ask.slicing.targets import Targets, covers

MANIFEST = "manifest.json"
MOST_ARCHIVES, MOST_BYTES = 8, 16 * 2**20
"""What comes back from a lent machine: archives, and bytes of each."""
BENCH = "bench"
"""Folder beside the runs that holds benchmarks of the code."""
KEPT = {"cells", "calibration", "models", "examples", "benchmarks", "tables", "figures"}
DRAWN = {"tables", "figures"}
"""Drawn from evidence, wherever there is some: they travel to be looked at, and are never in conflict."""
SUFFIXES = {".json", ".npz", ".csv", ".yaml", ".tsv", ".md", ".tex", ".html", ".svg", ".png", ".pdf", ".xml", ".txt"}
SIBLINGS = {
    "train": ("history.csv", "config.yaml"),
    "table": (".csv", ".json", ".md", ".tex", ".html"),
    "figure": (".csv", ".json", ".svg", ".png", ".pdf"),
}


class PackingError(AskError):
    """Archives that cannot be made, read or merged: which, why, and what to do."""


def pack(config: RunConfig, plan: Plan, run: Run, out: Path, name: str, targets: Targets | None) -> list[Path]:
    """Write archives of a run's evidence, or of a slice's; earlier ones in ``out`` of the same name go."""
    files = _evidence(plan, run, config.slices[name].artifacts if targets else (), targets)
    if not targets or config.slices[name].commands:
        files += [path for path in sorted((run.root.parent / BENCH).rglob("*")) if path.is_file()]
    names = {path.relative_to(run.root.parent).as_posix(): path for path in files if path.suffix in SUFFIXES}
    stem = f"{config.run}-{name or 'all'}"
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob(f"{stem}-*.zip"):
        old.unlink()
    written: list[Path] = []
    waiting = sorted(names)
    about = _about(config, name)
    while waiting or not written:
        if len(written) == MOST_ARCHIVES:
            raise PackingError(f"more than {MOST_ARCHIVES} archives of {MOST_BYTES} bytes: pack slice by slice")
        path = out / f"{stem}-{len(written) + 1}.zip"
        taken = _fill(path, waiting, names, about)
        if waiting and not taken:
            raise PackingError(f"{waiting[0]} alone exceeds an archive's {MOST_BYTES} bytes")
        waiting = waiting[taken:]
        written.append(path)
    return written


def merge(archives: Iterable[Path], into: Path, *, replace: bool = False) -> dict[str, list[str]]:
    """Merge archives into the folder of runs; all are checked before anything is written.

    Returns:
        Names of jobs by what was done: new, identical, grown (the same job with more trials), kept (with fewer),
        replaced, and drawn here (tables and figures, which are rendered anew rather than merged).

    Raises:
        PackingError: an archive is corrupt or names a path that it may not, or files of one job differ.
    """
    content: dict[str, bytes] = {}
    for path in _listed(archives):
        for name, data in _read(path).items():
            if content.setdefault(name, data) != data and name.split("/")[1] not in DRAWN:
                raise PackingError(
                    f"{path}: {name} differs from the same file of another archive; merge one of the two"
                )
    done: dict[str, list[str]] = {
        word: [] for word in ("new", "identical", "grown", "kept", "replaced", "drawn here already")
    }
    groups: dict[str, list[str]] = {}
    for name in sorted(content):
        groups.setdefault(_job_of(name), []).append(name)
    for job, members in groups.items():
        done[_decide(job, members, content, into, replace)].append(job)
    for word in ("new", "grown", "replaced"):
        for name in (name for job in done[word] for name in groups[job]):
            path = into / name
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f".{path.name}.part")
            part.write_bytes(content[name])
            part.replace(path)
    return done


def _evidence(plan: Plan, run: Run, artifacts: Sequence[str], targets: Targets | None) -> list[Path]:
    """Files of finished jobs, and of rendered artifacts."""
    tasks = tasks_of(plan, run)
    wanted = required(tasks, targets.outputs if targets else tasks)
    drawn = [path for path, task in tasks.items() if task.stage == "tables and figures" and path.stem in artifacts]
    found: list[Path] = []
    for path in [*(p for p in tasks if p in wanted), *(p for p in drawn if p not in wanted)]:
        task = tasks[path]
        if task.step in ("index", "blocks"):
            continue
        main = path.with_name("config.yaml") if task.step == "train" else path
        if not main.is_file():
            continue
        table = "table" if task.step == "table" else "figure" if task.stage == "tables and figures" else task.step
        members = SIBLINGS.get(table, (".json", ".npz"))
        siblings = [path.with_name(m) if task.step == "train" else path.with_suffix(m) for m in members]
        found += [member for member in [*siblings, task.benchmark(run)] if member.is_file()]
    return found


def _about(config: RunConfig, name: str) -> dict[str, Any]:
    """What an archive was made with: every record inside says the same of itself."""
    import torch

    from ask.hardware import describe, pick_device

    device = pick_device(config.device if torch.cuda.is_available() else "cpu")
    command = shlex.join(["python", "-m", "ask", *sys.argv[1:]])
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return {"run": config.run, "slice": name, "time": now, "command": command, **describe(device)}


def _fill(path: Path, waiting: Sequence[str], names: dict[str, Path], about: dict[str, Any]) -> int:
    """Write as many files as an archive holds; returns how many."""
    sums: dict[str, str] = {}
    size = 10_000  # the manifest's head
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for name in waiting:
            data = names[name].read_bytes()
            most = len(data) + 4 * len(name) + 400  # names stand in the archive twice and in the manifest, with digests
            if size + most > MOST_BYTES:
                break
            archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
            size += archive.getinfo(name).compress_size + most - len(data)
            sums[name] = hashlib.sha256(data).hexdigest()
        archive.writestr(MANIFEST, json.dumps({"format": 1, **about, "files": sums}, indent=1))
    return len(sums)


def _listed(archives: Iterable[Path]) -> list[Path]:
    found: list[Path] = []
    for path in archives:
        if not path.exists():
            raise PackingError(f"{path}: no such archive or folder; mend the path")
        found += sorted(path.glob("*.zip")) if path.is_dir() else [path]
    if not found:
        raise PackingError("no archives (*.zip) there; name the folder that `ask pack` wrote")
    return found


def _read(path: Path) -> dict[str, bytes]:
    """Content of an archive, checked against its manifest."""
    try:
        with zipfile.ZipFile(path) as archive:
            content = {info.filename: archive.read(info) for info in archive.infolist()}
        sums = json.loads(content.pop(MANIFEST))["files"]
    except (zipfile.BadZipFile, zlib.error, KeyError, TypeError, ValueError, OSError, EOFError, RuntimeError) as error:
        raise PackingError(f"{path}: corrupt ({type(error).__name__}: {error}); copy it again") from None
    for name in sorted({*content, *sums}):
        _check_name(name, path)
        if name not in content or hashlib.sha256(content[name]).hexdigest() != sums.get(name):
            raise PackingError(f"{path}: corrupt ({name} is not what the manifest says); copy it again")
    return content


def _check_name(name: str, archive: Path) -> None:
    """Only evidence below a run's folder, or benchmarks: nothing that could land elsewhere."""
    parts = PurePosixPath(name).parts
    plain = not name.startswith("/") and "\\" not in name and ":" not in name and name == "/".join(parts)
    inside = len(parts) > 1 and all(part not in ("..", ".") and not part.startswith(".") for part in parts)
    known = inside and (parts[0] == BENCH or (len(parts) > 2 and parts[1] in KEPT))
    if not (plain and known and PurePosixPath(name).suffix in SUFFIXES):
        raise PackingError(
            f"{archive}: refuses {name!r}, which is no file of a run's evidence; was it made by `ask pack`?"
        )


def _job_of(name: str) -> str:
    """What a file belongs to: ``paper/cells/cifar10/at/x`` for its record, its predictions and its benchmark."""
    run, kind, *rest = name.split("/")
    if kind == "benchmarks" and len(rest) > 1:
        kind, *rest = rest
    inside = rest[:-1] if kind == "models" else [*rest[:-1], PurePosixPath(rest[-1]).stem] if rest else []
    return "/".join([run, kind, *inside])


def _decide(job: str, members: Sequence[str], content: dict[str, bytes], into: Path, replace: bool) -> str:
    """What is done with a job's files."""
    files = {name: into / name for name in members if name.split("/")[1] != "benchmarks"}
    if not files:
        return "new" if not any((into / name).is_file() for name in members) else "identical"
    here = {name for name, path in files.items() if path.is_file()}
    same = {name for name in here if files[name].read_bytes() == content[name]}
    if same == set(files):
        return "identical"
    if not here:
        return "new"
    if job.split("/")[1] in DRAWN:
        return "drawn here already"
    if same == here:
        return "new"
    record = next((name for name in here if name.endswith(".json")), None)
    if record and job.split("/")[0] != BENCH:
        old, new = json.loads(files[record].read_bytes()).get("job"), json.loads(content[record]).get("job")
        if old and new and old != new:
            if covers(new, old):
                return "grown"
            if covers(old, new):
                return "kept"
    if replace:
        return "replaced"
    differing = ", ".join(sorted(here - same))
    raise PackingError(
        f"conflict: {differing} is here with other content; nothing was merged. "
        "Keep what is here by leaving the archive out, or take the archive's: --replace"
    )
