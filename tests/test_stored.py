"""Stored evidence: the settings that committed results were measured with are what today's plans hold for them."""

import html
import json
import re
from pathlib import Path
from typing import Any

import pytest
from plans import ROOT, planned

from ask.config.stored import current
from ask.paths import Run
from ask.plan.planner import Plan, load
from ask.report.evidence import describe
from ask.report.numbers import collect
from ask.report.tables import margin_remark

RUNS = {"lite": "lite", "cpu": "cpu", "paper": "raw-pixels"}
"""Committed results by their folder, and the configurations that made them."""
EARLIER = json.loads(Path(__file__).with_name("stored_jobs.json").read_text())
"""Jobs of the first lite run's records: each as written, and as a plan held it once each attack had its own type."""
VGG16 = {"name": "vgg16", "width": 1.0, "dropout": 0.5}
AUTO = {"parts": ["apgd-ce", "apgd-t", "fab-t", "square"], "iterations": 100, "queries": 5000, "batch_size": 500}


def stored(run: str) -> dict[Path, dict[str, Any]]:
    """The job of every committed record, by its place in the project's folder."""
    folder = ROOT / "results" / run
    paths = [path for part in ("calibration", "cells", "examples") for path in (folder / part).rglob("*.json")]
    return {path.relative_to(ROOT): json.loads(path.read_text())["job"] for path in sorted(paths)}


def old_cell(name: str, /, **attack: Any) -> dict[str, Any]:
    """A cell's job as it was written when all attacks shared one type."""
    shared = {"similarity": "cosine", "layers": [], "k_in": 5, "k_out": 5, "eps": 8.0, "step_size": 2.0, "steps": 20}
    options = {"variant": "", "dknn": None, "advknn": None, "auto": None}
    return {
        "id": name,
        "features": {"dataset": "cifar10", "model": "at", "network": VGG16},
        "attack": {**shared, **options, **attack},
        "classifiers": [],
        "references_per_class": 2000,
        "trials": 1,
        "test_images": None,
        "tau": None,
        "tau_from": [],
        "omega_from": None,
        "alpha_from": None,
        "blocks_from": [],
        "seed": 0,
    }


def document(plan: Plan, path: Path) -> dict[str, Any]:
    return plan.tasks[path].document


@pytest.mark.parametrize("run", RUNS)
def test_committed_records_are_those_of_todays_plan(run: str) -> None:
    """All but the trials of one cell on raw pixels, which an artifact asks for more of since."""
    plan, records = planned(RUNS[run]), stored(run)
    assert len(records) > 60
    for path, job in records.items():
        wanted = document(plan, path)
        if path.stem == "clean-l2":
            wanted = wanted | {"trials": job["trials"]}
        assert current(job) == wanted, path


@pytest.mark.parametrize("name", EARLIER)
def test_records_of_earlier_forms_are_read_as_todays(name: str) -> None:
    assert current(EARLIER[name]["stored"]) == EARLIER[name]["today"]
    assert EARLIER[name]["stored"] != EARLIER[name]["today"]
    assert current(EARLIER[name]["today"]) == EARLIER[name]["today"]


def test_committed_records_are_of_many_forms() -> None:
    """What the tests above rest on: each kind of record, and each attack that the first lite run measured."""
    jobs = [job["stored"] for job in EARLIER.values()] + [job for run in RUNS for job in stored(run).values()]
    attacks = {(job["attack"]["name"], job["attack"].get("variant")) for job in jobs if job.get("attack")}
    assert attacks >= {
        ("none", ""),
        ("ask", "targeted"),
        ("dknn", "sign"),
        ("dknn", "adam"),
        ("advknn", ""),
        ("pgd", ""),
    }
    assert any(job.get("tau") for job in jobs), "a fixed tau"
    assert any("tau" in point for job in jobs for point in job.get("grid", ()) if isinstance(point, dict))
    assert any(isinstance(point, float) for job in jobs for point in job.get("grid", ())), "the first form of a grid"
    assert any("alpha_from" not in job for job in jobs if "omega_from" in job), "the first form of a cell"
    assert any("cell" in job for job in jobs), "failures"
    assert sum("cells" in job for job in jobs) >= 2, "timing and Figure 2"


@pytest.mark.parametrize("run", RUNS)
def test_todays_form_stays_as_it_is(run: str) -> None:
    for path, job in stored(run).items():
        once = current(job)
        assert current(once) == once, path
    for task in planned(RUNS[run]).tasks.values():
        assert current(task.document) == task.document, task.output


def test_a_record_is_left_as_it_was() -> None:
    job = old_cell("pgd-e8-s20", name="pgd")
    before = json.dumps(job)
    current(job)
    assert json.dumps(job) == before


@pytest.mark.parametrize(
    ("name", "attack"),
    [
        ("autoattack-e8", {"name": "autoattack", "auto": AUTO, "step_size": 0.0, "steps": 0}),
        ("square-cos-L4-K5-e8", {"name": "square", "layers": ["conv4"], "auto": AUTO, "step_size": 0.0, "steps": 0}),
    ],
)
def test_attacks_of_the_paper_run_that_no_committed_result_shows(name: str, attack: dict[str, Any]) -> None:
    plan = planned("paper")
    wanted = document(plan, plan.run.cell("cifar10", "at", name))
    found = current(old_cell(name, **attack) | {"trials": wanted["trials"], "classifiers": wanted["classifiers"]})
    assert found == wanted


def test_the_successor_of_dknn_atk_is_a_variant_spelt_out() -> None:
    options = {"guides": 15, "threshold": None, "relative": True}
    found = current(old_cell("x", name="dknn", variant="successor", layers=["conv4"], dknn=options, k_in=7))["attack"]
    assert found.pop("eps") == 8
    assert found == {
        "name": "dknn",
        "layers": ["conv4"],
        "step_size": 2,
        "steps": 20,
        **options,
        "k": 7,
        "optimizer": "rmsprop",
        "learning_rate": None,
        "alpha": None,
        "loss": "relu",
        "refresh": 100,
    }


def test_the_first_grids_held_values_of_what_was_searched() -> None:
    tau = current({"id": "tau", "grid": [0.1, 0.3], "tau_from": []})
    omega = current({"id": "omega", "grid": [0.1, 0.9], "tau_from": ["tau-3", "tau-4"]})
    assert (tau["grid"], omega["grid"]) == ([{"tau": 0.1}, {"tau": 0.3}], [{"omega": 0.1}, {"omega": 0.9}])


def test_unknown_documents_stay_as_they_are() -> None:
    assert current({"anything": 1}) == {"anything": 1}
    assert current({"attack": None, "id": "clean"}) == {"attack": None, "id": "clean"}


def test_clean_errors_counted_as_errors_are_told_by_committed_predictions() -> None:
    """Most of ASK-Atk's margin over AdvKnn on Conv 4 is images that AdvKnn puts right."""
    plan = planned("cpu")
    run, margins = Run(ROOT / plan.run.root), {}
    for name in ("table01", "table01-kept"):
        numbers = collect(plan.artifacts[name], run)
        found = numbers[(numbers["similarity"] == "cosine") & (numbers["dknn_layers"] == "conv4")]
        means = dict(zip(found["attack"] + found["variant"], found["mean"], strict=True))
        margins[name] = means["advknn"] - means["asknon-targeted"]
        assert "ASK-Atk leaves at least" in margin_remark(plan.artifacts[name], numbers, run)
    assert margins["table01"] == pytest.approx(6.63, abs=0.005)
    assert margins["table01-kept"] == pytest.approx(1.13, abs=0.005)


def test_committed_parameters_at_an_end_of_their_grid_are_marked() -> None:
    marked = {}
    for folder in RUNS:
        run = Run(ROOT / "results" / folder)
        for path in sorted((run.root / "cells").rglob("*.json")):
            name = "/".join(path.relative_to(run.root / "cells").with_suffix("").parts)
            marked[folder, name] = describe(name, json.loads(path.read_text()), run)["parameters"]
    assert marked["lite", "cifar10/at-long-seed2/ask-cos-L3-K5-e8-s20"] == "τ conv3 0.0009 (edge of its grid)"
    assert marked["paper", "mnist/raw/ask-cos-Lin-K5-e40-s20"] == "τ input 0.003 (edge of its grid)"
    assert marked["paper", "fashion_mnist/raw/ask-l2-Lin-K5-e40-s20"] == "τ input 0.03", "it lies inside"
    assert marked["cpu", "cifar10/at/ask-cos-L34-K5-e8-s20"].endswith("ω conv3 0.3 (edge of its grid), conv4 0.7")
    assert "edge" not in marked["lite", "cifar10/at/pgd-e8-s20"]


@pytest.mark.parametrize("folder", [*RUNS, "digits"])
def test_commands_of_committed_reports_make_what_they_name(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are of the overlays that made the run, whatever these are called."""
    monkeypatch.chdir(ROOT)
    pattern = re.compile(r"snakemake --cores all (?:--force )?(\S+\.\w+)((?: --configfile)?(?: config/\S+\.yaml)*)")
    plans: dict[str, Plan] = {}
    found = set()
    for page in (ROOT / "results" / folder / "report").glob("*.html"):
        found |= set(pattern.findall(html.unescape(page.read_text())))
    assert found
    for target, files in found:
        if files not in plans:
            plans[files] = load([Path(name) for name in files.split()[1:]])
        assert Path(target) in plans[files].tasks, (target, files)


def test_fields_added_to_attacks_are_in_documents_only_where_they_are_set() -> None:
    found = current(old_cell("x", name="advknn", layers=["conv4"], advknn={"ce_weight": 0.0}))["attack"]
    assert "target" not in found
    plan = planned("paper")
    label = document(plan, plan.run.cell("cifar10", "at", "advknn-label-cos-L4-K5-e8-s20"))
    assert label["attack"]["target"] == "label"
    assert current(label) == label
