"""The demo's wall time by part: imports, Snakemake, and what its jobs compute, from their benchmark files."""

import csv
import os
import shutil
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from ask.plan.planner import load

from .dag import REPOSITORY, python
from .measure import Case, Contender, Options, Row, take_turns

GOAL = 180.0
"""Seconds for the whole demo, once all is installed, on two cores."""
CONFIG = ("--configfile", "config/demo.yaml")


def cases(options: Options) -> Iterator[Case]:
    """One run from nothing in a copy of the repository; imports and the dry run beside it."""
    imports = {
        "importing torch": "import torch",
        "importing what jobs use": "import ask.measure.cells, ask.training, ask.report.figures",
        "importing snakemake's command line": "import snakemake.cli",
    }
    contenders = [Contender(name=name, run=lambda code=code: python("-c", code)) for name, code in imports.items()]
    with TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        _copy(copy)
        dry = ("-m", "snakemake", "-n", "--quiet", "all", *CONFIG)
        contenders.append(Contender(name="snakemake -n", run=lambda: python(*dry, folder=copy)))
        parts = take_turns(contenders, options, warm_up=False)
        cores = str(os.cpu_count() or 1)
        data = (task.output for task in load([Path("config/demo.yaml")]).of("prepare"))
        target = [str(next(data))] if options.small else []
        began = time.perf_counter()
        python("-m", "snakemake", *target, "--cores", cores, *CONFIG, folder=copy)
        whole = Row(name="the demo" if not target else "one job of the demo", seconds=[time.perf_counter() - began])
        jobs = _jobs(copy)
    for row in parts:
        row.peak_rss_mib = row.ratio = row.cpu_ratio = None  # other processes, other work
    jobs_rows = [Row(name=f"{count} jobs below {name}", seconds=[seconds]) for name, (count, seconds) in jobs.items()]
    total = sum(seconds for _, seconds in jobs.values())
    facts = {
        "goal": f"{GOAL:g} s",
        "wall time of all jobs together": f"{total:.0f} s on {cores} cores",
        "share of cores that jobs fill": f"{total / whole.median / int(cores):.0%}",
    }
    shapes = {"cores": cores}
    yield Case(title="The demo from nothing", shapes=shapes, rows=[whole, *parts, *jobs_rows], facts=facts)


def _copy(folder: Path) -> None:
    """The files that git knows of, as they are now."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    for name in filter(None, names.stdout.split("\0")):
        if not name.startswith("results/") and (REPOSITORY / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, folder / name)


def _jobs(folder: Path) -> dict[str, tuple[int, float]]:
    """Number and seconds of the jobs by the folder of their output, from Snakemake's benchmark files."""
    found: dict[str, tuple[int, float]] = defaultdict(lambda: (0, 0.0))
    for top in (folder / "results/demo/benchmarks", folder / "data"):
        for path in sorted(top.rglob("*.tsv")):
            kind = "data" if top.name == "data" else path.relative_to(top).parts[0]
            with path.open() as file:
                seconds = sum(float(row["s"]) for row in csv.DictReader(file, delimiter="\t"))
            count, sofar = found[kind]
            found[kind] = (count + 1, sofar + seconds)
    return dict(sorted(found.items(), key=lambda item: -item[1][1]))
