"""A run in slices: each made within a time limit, its evidence packed, merged elsewhere and rendered.

What is done is judged by content, so that merged evidence counts; weights, indexes and blocks stay where they are.
"""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from ask.config.run import ConfigError, SliceSpec, load_artifacts
from ask.config.stored import covers, current
from ask.errors import AskError
from ask.files import locked, write, write_json
from ask.hardware import describe, pick_device
from ask.plan.graph import required
from ask.plan.paper import Paper
from ask.plan.planner import ARTIFACTS, PAPER, Plan, claims_job, load, plan_run, report_job
from ask.plan.why import counts, notes, stale
from ask.steps import STEPS

FINISHED, FAILED, MORE = 0, 1, 75
"""Exit statuses; 75 is that of a temporary failure (EX_TEMPFAIL): the same command continues."""
GRACE = 20.0
"""Seconds from asking Snakemake to stop until it is killed."""
MANIFEST, MOST_ARCHIVES, MOST_BYTES = "manifest.json", 8, 16 * 2**20
"""What comes back from a lent machine: archives, and bytes of each."""
EVIDENCE = re.compile(
    r"(bench|[a-z0-9][a-z0-9_-]*/(cells|calibration|models|examples|benchmarks|tables|figures))"
    r"(/[^./\\:][^/\\:]*)+\.(json|npz|csv|yaml|tsv|md|tex|html|svg|png|pdf|xml|txt)"
)
"""Names of files that travel, below the folder of runs; `bench` holds benchmarks of the code."""
DRAWN = re.compile(r"[^/]+/(tables|figures)/")
"""Names of those drawn from evidence: they travel to be looked at, and are never in conflict."""
Overlays = Annotated[Sequence[Path], "overlays, as for snakemake"]
_say = partial(print, flush=True)


def slice_command(
    name: Annotated[str, "name of the slice"],
    *,
    configfile: Overlays = (),
    minutes: Annotated[float | None, "stop cleanly before so many minutes have passed"] = None,
    trials: Annotated[int | None, "at most so many trials (evaluation.max_trials)"] = None,
    pack: Annotated[Path | None, "pack the slice's evidence into this folder at the end, always"] = None,
    flags: Annotated[str, "more options for snakemake, in one word"] = "",
) -> int:
    """Make a slice of a run within a time limit; exit status 0: finished, 75: more to do, 1: failed."""
    began = time.monotonic()
    for number in (signal.SIGTERM, signal.SIGHUP):  # what is cleaned up at the end would not be
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, lambda got, _: sys.exit(128 + got))
    for option, value in (("--minutes", minutes), ("--trials", trials)):
        if value is not None and value <= 0:
            raise ConfigError(f"{option} {value:g}: must be above 0; leave it out for no limit")
    plan = load(configfile, trials)
    targets, lock, status = targets_of(plan, name), plan.run.root / "scratch" / "slice.lock", FAILED
    # A minute of ten, a third of a short limit, is kept for stopping jobs and packing.
    deadline = began + 60 * minutes - min(60.0, 20.0 * minutes) if minutes else float("inf")
    options = [*shlex.split(flags), *(["--configfile", *map(str, configfile)] if configfile else [])]
    options += ["--config", f"evaluation={{max_trials: {trials}}}"] if trials else []
    try:
        with locked(lock, wait=False) as held:  # by Snakemake, too, which may outlive this process
            made = make(plan, name, options, deadline, [held])
        if made != MORE:
            render(plan)
        status = made
    except BlockingIOError:
        _say(f"ask slice: {lock}: another slice of this run is being made here; wait until it ends")
    except AskError as error:
        _say(f"ask slice: {error}")
    finally:  # whatever happened, what was measured goes home
        if pack:
            pack_command(name, out=pack, configfile=configfile)
    left = [path for path in targets.outputs if stale(plan, path)]
    for path, models in targets.elsewhere.items():
        _say(f"{path}: also needs the weights of {', '.join(models)}; make it where those were trained")
    words = {FINISHED: "finished", MORE: "more to do; the same command continues", FAILED: "failed; see above"}
    _say(f"{name}: {len(targets.outputs) - len(left)} of {len(targets.outputs)} measurements, {words[status]}")
    return status


def pack_command(
    name: Annotated[str, "name of the slice (default: the whole run)"] = "",
    *,
    out: Annotated[Path, "folder for the archives; earlier ones of it go"],
    configfile: Overlays = (),
) -> int:
    """Pack a run's evidence (or a slice's) into archives, without weights and indexes."""
    plan = load(configfile)
    results, wanted = plan.run.root.parent, required(plan.tasks, targets_of(plan, name).outputs if name else plan.tasks)
    part = plan.config.slices[name] if name else SliceSpec()
    wanted |= {plan.shown(one) for one in part.artifacts if one in plan.artifacts}
    files = list((results / "bench").rglob("*")) if part.commands or not name else []
    for task in (plan.tasks[path] for path in wanted if path.is_relative_to(results)):
        own = [path for path in task.outputs if EVIDENCE.fullmatch(path.relative_to(results).as_posix())]
        files += [*own, plan.run.benchmark(task.output)] if own and all(path.is_file() for path in own) else []
    names = sorted(path.relative_to(results).as_posix() for path in files if path.is_file())
    device = pick_device("auto" if plan.config.device == "cuda" else plan.config.device)
    about = {"format": 1, "run": plan.config.run, "slice": name, "time": time.strftime("%FT%TZ", time.gmtime())}
    about |= {"command": shlex.join(["python", "-m", "ask", *sys.argv[1:]]), **describe(device)}
    stem, written = f"{plan.config.run}-{name or 'all'}", list[Path]()
    for old in out.glob(f"{stem}-*.zip"):
        old.unlink()
    waiting = [one for one in names if EVIDENCE.fullmatch(one)]
    while waiting or not written:
        if len(written) == MOST_ARCHIVES:
            raise AskError(f"more than {MOST_ARCHIVES} archives of {MOST_BYTES} bytes: pack slice by slice")
        fill = partial(_fill, waiting=waiting, results=results, about=about)
        written.append(write(out / f"{stem}-{len(written) + 1}.zip", fill))
        _say(f"{written[-1]} ({written[-1].stat().st_size / 2**20:.1f} MiB)")
    return FINISHED


def merge_command(
    archives: Annotated[Sequence[Path], "archives, or folders of them"],
    *,
    into: Annotated[Path, "folder of the runs (default: results)"] = Path("results"),
    replace: Annotated[bool, "where both differ, take the archive's"] = False,
) -> int:
    """Merge packed evidence into its run, by content; all is checked before anything is written."""
    content: dict[str, bytes] = {}
    for path in (one for given in archives for one in (sorted(given.glob("*.zip")) if given.is_dir() else [given])):
        for name, data in _read(path).items():
            if content.setdefault(name, data) != data and not DRAWN.match(name):
                raise AskError(f"{path}: {name} differs from the same file of another archive; merge one of the two")
    if not content:
        raise AskError("no archives (*.zip) there; name the folder that `ask pack` wrote")
    jobs: dict[str, list[str]] = {}  # a job's files are judged together
    for name in sorted(content):
        job = PurePosixPath(name.replace("/benchmarks/", "/", 1)).with_suffix("")
        jobs.setdefault(str(job.parent if job.parts[1] == "models" else job), []).append(name)
    done = {one: _decide(names, content, into, replace) for one, names in jobs.items()}
    taken = [names[::-1] for one, names in jobs.items() if done[one] in ("new", "grown", "replaced")]  # records last
    for name in (name for names in taken for name in names):
        notes(Path(os.path.relpath(into / name))).unlink(missing_ok=True)  # what Snakemake knows of what was here
        write(into / name, partial(Path.write_bytes, data=content[name]))
    for word in ("new", "identical", "grown", "kept", "replaced", "drawn here already"):
        found = [one for one in jobs if done[one] == word]
        shown = ", ".join(found[:5]) + (f" and {len(found) - 5} more" if len(found) > 5 else "")
        _say(f"{len(found)} {word}" + (f": {shown}" if found and word != "identical" else ""))
    return FINISHED


def render_command(*, configfile: Overlays = ()) -> int:
    """Render the tables, figures, claims and report that a run's evidence suffices for; measures nothing."""
    render(load(configfile))
    return FINISHED


@dataclass(frozen=True)
class Targets:
    """Measurements of a slice."""

    outputs: list[Path]
    """Cells and examples, in the order of the plan."""
    elsewhere: dict[Path, list[str]]
    """Examples that also need the weights of models which the slice does not train and this machine does not have."""


def targets_of(plan: Plan, name: str) -> Targets:
    """Measurements of a slice, passing over artifacts that this run leaves out; raises ConfigError for a mistake."""
    if (part := plan.config.slices.get(name)) is None:
        known = ", ".join(plan.config.slices) or "none"
        where = f"in run {plan.config.run!r}"
        raise ConfigError(f"no slice {name!r} {where}; it has {known}; name one, or add it to `slices`")
    if unknown := [one for one in {*part.artifacts} - {*plan.artifacts} if not (ARTIFACTS / f"{one}.yaml").is_file()]:
        raise ConfigError(f"slice {name!r}: no artifact {unknown[0]!r} in {ARTIFACTS}; mend its spelling")
    stand_ins = {paper: stand_in.dataset for paper, stand_in in plan.config.stand_ins.items()}
    datasets = {stand_ins.get(dataset, dataset) for dataset in part.datasets}

    def wanted(path: Path) -> bool:
        dataset, method = _subject(path)
        return (not datasets or dataset in datasets) and (not part.models or method in part.models)

    shown = [one for one in part.artifacts if one in plan.artifacts]
    cells = {cell for one in shown for cell in plan.cells_of(one) if wanted(cell)}
    found, elsewhere = [path for path in plan.tasks if path in cells], {}
    for path in map(plan.run.example, shown):
        needs = plan.tasks[path].needs if path in plan.tasks else ()
        if path in plan.tasks and (not needs or not cells.isdisjoint(needs)):
            weights = [need for need in needs if need.name == "weights.safetensors" and not wanted(need)]
            if lacking := sorted(one.parent.name for one in weights if not one.is_file()):
                elsewhere[path] = lacking
            else:
                found.append(path)
    return Targets(found, elsewhere)


def _subject(path: Path) -> tuple[str, str]:
    """Data set and training method that a measurement or weights are of, read off their place."""
    return path.parts[-3], path.parts[-2].partition("-seed")[0]


def make(plan: Plan, name: str, options: Sequence[str], deadline: float, held: Sequence[int] = ()) -> int:
    """Make a slice until it is finished, something fails or ``deadline`` (of ``time.monotonic``) is near.

    What it starts holds locks on too, by their descriptors.
    """
    scratch = plan.run.root / "scratch"
    done_in = scratch / f"{name}.json"
    done = json.loads(done_in.read_text(encoding="utf-8")) if done_in.is_file() else []
    for text in (text for text in plan.config.slices[name].commands if text not in done):
        _say(text)
        program, *words = shlex.split(text)
        status = _within([sys.executable if program == "python" else program, *words], deadline, held)
        if status != FINISHED:
            return status
        write_json(done_in, done := [*done, text])
    left = [path for path in targets_of(plan, name).outputs if stale(plan, path)]
    needed, seconds = required(plan.tasks, left), deadline - time.monotonic()

    def progress() -> dict[Path, int]:
        kept = [*scratch.rglob("*.safetensors"), *scratch.rglob("*.npz")]  # of trainings, and trials of cells
        there = [path for path in [*needed, *kept] if path.is_file()]
        return {path: path.stat().st_mtime_ns for path in there}

    at_start = progress()
    for folder in dict.fromkeys(path.parent for path in left):  # one model is used before the next is trained
        todo = [path for path in left if path.parent == folder]
        _say(f"{name}: {len(left)} measurements to make, now {len(todo)} in {folder}")
        reads = required(plan.tasks, todo)
        calibrations = [task.output for task in plan.of("calibrate") if task.output in reads]
        again = [str(path) for path in (*calibrations, *todo) if path.is_file() and stale(plan, path)]
        command = [sys.executable, "-m", "snakemake", *map(str, todo), "--nolock", *options]
        status = _within([*command, *(["--forcerun", *again] if again else [])], deadline, held)
        if status == MORE and seconds > 0 and progress() == at_start:
            first = next((path for path in plan.tasks if path in reads and not path.is_file()), todo[0])
            took = f"nothing was finished in {seconds:.0f} s, {first} for one"
            raise AskError(f"slice {name!r}: {took}; give it more --minutes")
        if status != FINISHED:
            return status
        if still := [path for path in todo if stale(plan, path)]:
            raise AskError(f"slice {name!r}: {still[0]} was made, and still is {stale(plan, still[0])}")
    return FINISHED


def _within(command: Sequence[str], deadline: float, held: Sequence[int] = ()) -> int:
    """Run a command in its own process group; at the deadline it is stopped as Ctrl-C would, then killed."""
    if time.monotonic() >= deadline:
        return MORE
    # Where this runs in the background, SIGINT is ignored, and Snakemake would never hear that it shall stop.
    process = subprocess.Popen(
        command,
        start_new_session=True,
        pass_fds=held,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        return FAILED if process.wait(deadline - time.monotonic()) else FINISHED
    except subprocess.TimeoutExpired:
        return MORE
    finally:
        for number, patience in ((signal.SIGINT, GRACE), (signal.SIGKILL, None)):
            if process.poll() is None:
                with suppress(ProcessLookupError, subprocess.TimeoutExpired):
                    os.killpg(process.pid, number)
                    process.wait(patience)


def _fill(path: Path, waiting: list[str], results: Path, about: Mapping[str, Any]) -> None:
    """Write an archive of as many files as it holds, and strike them off those waiting."""
    sums: dict[str, str] = {}
    size = 10_000  # the manifest's head
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for name in waiting:
            data = (results / name).read_bytes()
            most = len(data) + 4 * len(name) + 400  # names stand in the archive twice and in the manifest, with digests
            if size + most > MOST_BYTES:
                break
            archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
            size += archive.getinfo(name).compress_size + most - len(data)
            sums[name] = sha256(data).hexdigest()
        archive.writestr(MANIFEST, json.dumps({**about, "files": sums}, indent=1))
    if waiting and not sums:
        raise AskError(f"{waiting[0]} alone exceeds an archive's {MOST_BYTES} bytes")
    del waiting[: len(sums)]


def _read(path: Path) -> dict[str, bytes]:
    """Content of an archive, checked against its manifest: evidence, and nothing that could land elsewhere."""
    try:
        with zipfile.ZipFile(path) as archive:
            content = {info.filename: archive.read(info) for info in archive.infolist()}
        sums = json.loads(content.pop(MANIFEST))["files"]
    except FileNotFoundError:
        raise AskError(f"{path}: no such archive or folder; mend the path") from None
    except (zipfile.BadZipFile, zlib.error, KeyError, TypeError, ValueError, OSError, EOFError, RuntimeError) as error:
        raise AskError(f"{path}: corrupt ({type(error).__name__}: {error}); copy it again") from None
    for name in sorted({*content, *sums}):
        if not EVIDENCE.fullmatch(name):
            raise AskError(
                f"{path}: refuses {name!r}, which is no file of a run's evidence; was it made by `ask pack`?"
            )
        if name not in content or sha256(content[name]).hexdigest() != sums.get(name):
            raise AskError(f"{path}: corrupt ({name} is not what the manifest says); copy it again")
    return content


def _decide(names: Sequence[str], content: Mapping[str, bytes], into: Path, replace: bool) -> str:
    """What is done with a job's files; its time is never in conflict."""
    files = [name for name in names if "/benchmarks/" not in name]
    here = {name: (into / name).read_bytes() for name in files or names if (into / name).is_file()}
    differing = [name for name in here if name in files and here[name] != content[name]]
    if not differing:
        return "identical" if len(here) == len(files or names) else "new"
    if DRAWN.match(differing[0]):
        return "drawn here already"
    for name in (name for name in differing if name.endswith(".json")):
        records = [json.loads(text) for text in (here[name], content[name])]
        old, new = (current(record.get("job") or {}) for record in records)
        alike = records[0].get("weights") == records[1].get("weights")
        if alike and old != new and (covers(new, old) or covers(old, new)):
            return "grown" if covers(new, old) else "kept"
    if replace:
        return "replaced"
    raise AskError(
        f"conflict: {', '.join(differing)} is here with other content; nothing was merged. "
        "Keep what is here by leaving the archive out, or take the archive's: --replace"
    )


def render(plan: Plan) -> None:
    """Render all that evidence suffices for, without weights or Snakemake; says how much of the artifacts that is.

    An artifact that lacks measurements is shown without the data sets and models that have none, if anything remains;
    training costs, which are read off two records, are compared first.
    """
    from ask.cli import find, main
    from ask.report.numbers import MissingValueError

    for task in plan.of("cost"):
        if not task.done and all(weights.with_name("config.yaml").is_file() for weights in task.needs):
            main(["cost", "--job", task.text, "--run", str(plan.run.root)])
    shown: dict[str, dict[str, Any]] = {}
    states = dict.fromkeys(("whole", "in part", "not measured", "measured with other settings"), 0)
    for name in plan.artifacts:
        job, state = _measured(plan, name)
        try:
            if job:
                find(STEPS[job["kind"]].does)(job, plan.run)
                shown[name] = job
        except MissingValueError:  # of another configuration: its cells lack what is asked for now
            state = "measured with other settings"
        states[state] += 1
    _say("Artifacts rendered: " + "; ".join(f"{count} {state}" for state, count in states.items()))
    if shown:
        part = replace(plan, artifacts=shown, tasks={path: task for path, task in plan.tasks.items() if task.done})
        find(STEPS["claims"].does)(claims_job(plan.config, plan, shown), plan.run)
        find(STEPS["report"].does)(report_job(plan.config, part), plan.run)
        _say(plan.run.report)


def _measured(plan: Plan, name: str) -> tuple[dict[str, Any], str]:
    """What can be shown of an artifact, if need be without data sets or models that lack anything; how much that is."""
    there = cache(partial(counts, plan))

    def whole(plan: Plan) -> bool:
        return name in plan.artifacts and all(map(there, plan.tasks[plan.shown(name)].needs))

    config, job, cells = plan.config, plan.artifacts[name], plan.cells_of(name)
    if whole(plan):
        return job, "whole"
    lacking = [_subject(path) for path in cells if not there(path)]
    unbegun = {path.parts[-3] for path in cells} - {path.parts[-3] for path in cells if there(path)}
    paper_names = {stand_in.dataset: paper for paper, stand_in in config.stand_ins.items()}
    for datasets in ({dataset for dataset, _ in lacking}, unbegun):
        absent = {paper_names.get(dataset, dataset) for dataset in datasets}
        absent |= {method for dataset, method in lacking if dataset not in datasets}
        smaller = config.model_copy(update={"without": (*config.without, *absent)})
        rest = plan_run(smaller, {name: load_artifacts(ARTIFACTS, config.artifacts)[name]}, Paper.read(PAPER))
        if job["kind"] != "pictures" and whole(rest):
            labels = sorted((config.models.get(one) or config.datasets[one]).label for one in absent)
            note = f"Not measured yet, and left out: {('; ' if ',' in ''.join(labels) else ', ').join(labels)}."
            return {**rest.artifacts[name], "notes": [*rest.artifacts[name]["notes"], note]}, "in part"
    other = any(path.is_file() and not there(path) for path in cells)
    return {}, "measured with other settings" if other else "not measured"
