"""Cluster runs in few, full jobs: how what is left is cut, and what a run of the paper takes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from ask.errors import AskError
from ask.paths import Run
from ask.plan.batches import LONGEST, NOTICE, START, Batches, batch_command, cut, forecast, predicted
from ask.plan.graph import required
from ask.plan.planner import load


@pytest.fixture(scope="module")
def paper():
    return load([])


def everything(plan):
    return required(plan.tasks, [plan.run.report, *map(plan.shown, plan.artifacts)])


@pytest.mark.parametrize(
    ("overlay", "kind", "count"), [("", "GPU", 32), ("", "GPU", 4), ("lite", "CPU", 32), ("demo", "CPU", 8)]
)
def test_every_measurement_is_in_one_batch_behind_what_it_needs(paper, overlay, kind, count):
    plan = load([Path(f"config/{overlay}.yaml")]) if overlay else paper
    seconds, todo = predicted(plan, kind), everything(plan)
    batches = cut(plan, todo, seconds, count)
    home = {}
    for number, batch in enumerate(batches):
        assert batch.targets
        for target in map(Path, batch.targets):
            assert target not in home
            home[target] = number
            made = {need for need in plan.tasks[target].needs if need in home}
            assert all(home[need] != number or str(need) in batch.targets for need in made)
            before = batch.targets[: batch.targets.index(str(target))]
            for need in plan.tasks[target].needs:
                record = str(need.with_suffix(".json") if need.suffix == ".npz" else need)  # predictions come with it
                assert record in before or record in batch.needs
        assert batch.seconds == pytest.approx(sum(seconds[Path(target)] for target in batch.targets))
    sharing = [task for task in plan.tasks.values() if task.after]
    assert len(sharing) >= 10
    assert all(home[task.output] == home[task.after] for task in sharing), "an ascent is climbed twice"
    reads = {task.output: {*task.needs} for task in plan.tasks.values()}
    assert all(reads[task.output] <= reads[task.after] for task in sharing), "an ascent looks at what may not be there"
    left = {plan.tasks[path].name for path in todo - home.keys()}
    assert left <= {"train", "prepare", "download", "table", "figure", "pictures", "boundaries", "claims", "report"}
    order, done = (
        {number: {home[Path(n)] for n in b.needs if Path(n) in home} for number, b in enumerate(batches)},
        set(),
    )
    while ready := {number for number, needs in order.items() if number not in done and needs <= done}:
        done |= ready
    assert done == order.keys(), "batches wait for each other in a circle"


def test_a_models_measurements_travel_together(paper):
    """A model has one batch, or a first one with all its indexes and calibrations and further ones of cells."""
    batches = cut(paper, everything(paper), predicted(paper, "GPU"), 32)
    first, cells = {}, {}
    for number, batch in enumerate(batches):
        for task in (paper.tasks[Path(target)] for target in batch.targets):
            features = getattr(task.job, "features", None)
            if task.name in ("index", "calibrate", "blocks"):
                first.setdefault((features.dataset, features.model), set()).add(number)
            elif task.name == "attack":
                cells.setdefault((features.dataset, features.model), set()).add(number)
    assert all(len(numbers) == 1 for numbers in first.values())
    assert all(min(cells[subject]) >= min(first[subject]) for subject in cells if subject in first)
    assert max(map(len, cells.values())) > 1, "a model with many cells is cut"


def test_the_paper_run_in_few_full_jobs(paper):
    found = forecast(paper, everything(paper), "GPU", 32)
    assert found["jobs"] <= 60
    assert found["start_share"] <= 0.1
    assert found["efficiency"][8] >= 0.7
    assert found["wall"][8] < found["wall"][4] < found["wall"][1]
    work = found["efficiency"][1] * found["wall"][1]
    assert work + START * found["jobs"] <= found["wall"][1] <= work + (START + NOTICE) * found["jobs"]
    assert forecast(paper, everything(paper), "CPU", 32)["batches"] > 32, "no batch is longer than queues take"
    longest = max(batch.seconds for batch in cut(paper, everything(paper), predicted(paper, "CPU"), 1))
    slowest = max(predicted(paper, "CPU")[path] for path in everything(paper) if paper.tasks[path].name == "attack")
    assert longest <= 1.5 * LONGEST + slowest


@pytest.mark.parametrize("text", ['{"a": 1}', "{", "[1]"])
def test_a_batch_that_no_run_wrote_is_a_clear_error(tmp_path, text):
    (tmp_path / "a-1.json").write_text(text)
    with pytest.raises(AskError, match=r"a-1\.json is no batch that a run wrote"):
        batch_command(tmp_path / "a-1.json", out=tmp_path / "made.json")


def test_tables_wait_for_manifests_and_a_cell_as_target_for_none(paper, tmp_path):
    shown, elsewhere = paper.shown("table03"), replace(paper, run=Run(tmp_path))
    batches = Batches(elsewhere, {"run": "paper"}, 8, [shown], "GPU")
    (config,) = batches.folder.glob("*.config.json")
    assert json.loads(config.read_text()) == {"run": "paper"}
    needs = batches.instead(paper.tasks[shown].needs)
    assert needs
    assert all(need.suffix == ".done" for need in needs)
    asked = required(paper.tasks, [shown])
    for need in needs:
        batch = batches.read(need.stem)
        assert {Path(target) for target in batch.targets} <= asked, "nothing but what the table needs"
        assert all(not path.name.endswith(".npz") for path in batches.needs(need.stem))
        assert batch.targets[0] in batches.summary(need.stem)
    cell = next(path for path in paper.tasks[shown].needs)
    for count, targets in ((32, [cell]), (0, [shown])):
        assert Batches(elsewhere, {}, count, targets, "GPU").instead([cell]) == [cell]
