"""What a run's evidence suffices for, rendered without weights, indexes or Snakemake."""

from pathlib import Path
from typing import Any

from ask.config.run import RunConfig, load_artifacts
from ask.paths import Run
from ask.plan.paper import Paper
from ask.plan.planner import Plan, claims_job, plan_run, report_job


def render(config: RunConfig, plan: Plan, run: Run) -> dict[str, list[str]]:
    """Render all that evidence suffices for; artifacts by how much of them was shown.

    An artifact that lacks measurements is shown without the data sets and models that have none, if anything remains;
    training costs, which are read off two records, are compared first.
    """
    from ask.report.claims.ledger import write_ledger
    from ask.report.numbers import MissingValueError
    from ask.report.site import render_report

    _compare_costs(plan, run)
    shown: dict[str, dict[str, Any]] = {}
    states: dict[str, list[str]] = {"whole": [], "in part": [], "not measured": [], "measured with other settings": []}
    for name in plan.artifacts:
        state, job = "whole", plan.artifacts[name]
        if _missing(plan, name, run):
            job, state = _remainder(config, plan, name, run)
        try:
            if job:
                _render(job, run)
                shown[name] = job
        except MissingValueError:  # of another configuration: its cells lack what is asked for now
            state = "measured with other settings"
        states[state].append(name)
    part = Plan(**{**vars(plan), "artifacts": shown, "cells": {k: c for k, c in plan.cells.items() if _there(run, k)}})
    claims = Path("config/paper/claims.csv")
    if shown:
        write_ledger(claims_job(config, part), claims, run)
        render_report(report_job(config, part), run)
    return states


def _there(run: Run, key: tuple[str, str, str]) -> bool:
    return run.cell(*key).is_file()


def _missing(plan: Plan, name: str, run: Run) -> list[tuple[str, str]]:
    """Data set and model of each measurement that an artifact lacks."""
    job = plan.artifacts[name]
    if job["kind"] in ("pictures", "boundaries"):
        return [] if run.example(name).is_file() else [("", "")]
    return [key[:2] for key in plan.cells_of(name) if not _there(run, key)]


def _remainder(config: RunConfig, plan: Plan, name: str, run: Run) -> tuple[dict[str, Any], str]:
    """An artifact without the data sets that lack anything, or else without the models."""
    if plan.artifacts[name]["kind"] == "pictures":
        return {}, "not measured"
    keys, lacking = plan.cells_of(name), _missing(plan, name, run)
    paper_names = {stand_in.dataset: paper for paper, stand_in in config.stand_ins.items()}

    def absent_from(datasets: set[str]) -> set[str]:
        """These data sets, and the models that lack anything on others."""
        models = {model.partition("-seed")[0] for dataset, model in lacking if dataset not in datasets}
        return models | {paper_names.get(dataset, dataset) for dataset in datasets}

    begun = {key[0] for key in keys if _there(run, key)}
    for absent in (absent_from({d for d, _ in lacking}), absent_from({k[0] for k in keys} - begun)):
        smaller = config.model_copy(update={"without": tuple({*config.without, *absent})})
        part = plan_run(smaller, load_artifacts(Path("config/artifacts"), [name]), Paper.read(Path("config/paper")))
        if name in part.artifacts and not _missing(part, name, run):
            job = part.artifacts[name]
            labels = [config.models[m].label if m in config.models else config.datasets[m].label for m in absent]
            note = f"Not measured yet, and left out: {', '.join(sorted(labels))}."
            return {**job, "notes": [*job["notes"], note]}, "in part"
    return {}, "not measured"


def _compare_costs(plan: Plan, run: Run) -> None:
    """Make the comparisons of training costs whose two models are on record."""
    from ask.cli import main

    for key, job in plan.costs.items():
        records = [run.model(job.dataset, model) / "config.yaml" for model in (job.model, job.base)]
        if not _there(run, key) and all(path.is_file() for path in records):
            main(["cost", "--job", job.model_dump_json(), "--run", str(run.root)])


def _render(job: dict[str, Any], run: Run) -> None:
    """Render one table or figure."""
    from ask.report.figures import render_figure
    from ask.report.pictures import render_boundaries, render_pictures
    from ask.report.tables import render_table

    steps = {
        "table": render_table,
        "figure": render_figure,
        "pictures": render_pictures,
        "boundaries": render_boundaries,
    }
    steps[job["kind"]](job, run)
