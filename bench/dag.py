"""What Snakemake takes before the first job of the paper run: a dry run of the whole plan."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from .measure import Case, Contender, Options, take_turns

REPOSITORY = Path(__file__).resolve().parent.parent
GOAL = 5.0
"""Seconds for the dry run."""


def cases(options: Options) -> Iterator[Case]:
    """The dry run, and what its imports alone take."""
    config = "demo" if options.small else "config"
    contenders = [
        Contender(name=f"snakemake -n ({config}.yaml)", run=lambda: dry_run(f"config/{config}.yaml")),
        Contender(name="importing snakemake's command line", run=lambda: python("-c", "import snakemake.cli")),
        Contender(
            name="importing the plan's modules", run=lambda: python("-c", "import ask.config.run, ask.plan.planner")
        ),
    ]
    rows = take_turns(contenders, options, warm_up=False)
    for row in rows:
        row.peak_rss_mib = row.ratio = row.cpu_ratio = None  # other processes, other work
    jobs = re.search(r"^total\s+(\d+)", rows[0].result, re.MULTILINE)
    facts = {"jobs that would run": jobs[1] if jobs else "none", "goal": f"{GOAL:g} s"}
    yield Case(title="Dry run", shapes={"configuration": f"config/{config}.yaml"}, rows=rows, facts=facts)


def dry_run(config: str) -> str:
    """What ``snakemake -n`` prints; the main configuration is the workflow's own."""
    own = [] if config == "config/config.yaml" else ["--configfile", config]
    return python("-m", "snakemake", "-n", "--quiet", "rules", *own)


def python(*arguments: str, folder: Path = REPOSITORY, **environment: str) -> str:
    """Standard output of a Python process in ``folder``; raises CalledProcessError with its errors shown."""
    # Rules say `python`: the one that runs this, whether its environment is activated or not.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PATH": path, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.stderr.write(done.stdout[-2000:] + done.stderr[-4000:])
        done.check_returncode()
    return done.stdout
