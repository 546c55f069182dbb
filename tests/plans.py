"""Plans of this project's runs, and their jobs by what they are about."""

from functools import cache
from pathlib import Path
from typing import Any

from ask.config.run import load_artifacts, read_run
from ask.plan.paper import Paper
from ask.plan.planner import Plan, plan_run

ROOT = Path(__file__).parent.parent
PAPER = Paper.read(ROOT / "config/paper")


@cache
def planned(name: str) -> Plan:
    """The plan of ``config/<name>.yaml`` on the base configuration, which is the paper's run."""
    files = [ROOT / "config/config.yaml", *([] if name == "paper" else [ROOT / f"config/{name}.yaml"])]
    config = read_run(files)
    return plan_run(config, load_artifacts(ROOT / "config/artifacts", config.artifacts), PAPER)


def jobs(plan: Plan, step: str) -> dict[tuple[str, ...], Any]:
    """The jobs of a step in order, by data set, model and the name of what they make; models by data set and model."""
    found = {}
    for task in plan.of(step):
        *_, dataset, model, _ = task.output.parts
        found[(dataset, model) if step == "train" else (dataset, model, task.output.stem)] = task.job
    return found
