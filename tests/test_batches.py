"""Cluster runs in few, full jobs: how what is left is cut, and what a run of the paper takes."""

import json
import os
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from plans import ROOT

from ask.errors import AskError
from ask.paths import Run
from ask.plan.batches import LONGEST, NOTICE, START, Asked, Batches, batch_command, cut, forecast, predicted
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
    cell = paper.tasks[shown].needs[0]
    assert Batches(elsewhere, {}, 0, [shown], "GPU").instead([cell]) == [cell]
    assert asked_for(elsewhere, cell).batches.instead([cell]) == [cell]


def asked_for(plan, *targets):
    """What is asked of a Snakemake with a cluster's profile."""
    flags = dict.fromkeys(("forceall", "forcerun", "forcetargets", "until", "omit_from"), ())
    resources = SimpleNamespace(unwrapped_items=lambda: [("batches", 8)])
    main = {"is_main_process": True, "non_local_exec_or_dryrun": True, "global_resources": resources}
    workflow = SimpleNamespace(dag_settings=SimpleNamespace(targets=list(map(str, targets)), **flags), **main)
    return Asked(workflow, plan, {"run": "paper"}, "GPU")


def test_a_models_part_is_cut_into_batches_of_its_own(paper, tmp_path):
    asked = asked_for(paper, paper.run.root / "scratch/imagenette/at-snn.done")
    assert asked.targets == paper.of_model("imagenette", "at-snn")
    assert len(asked.targets) > 5
    made = Batches(replace(paper, run=Run(tmp_path)), {"run": "paper"}, 8, asked.targets, "GPU").maker
    models = {path.parts[3:5] for path in made if path.parts[0] == "results"}
    assert models == {("imagenette", "at-snn")}
    assert asked_for(paper, "all").targets[0] == paper.run.report


def test_wide_networks_first_layers_are_given_more_memory():
    """Attacks on them took 11 to 13.6 GB, on Conv 3 and beyond 6 to 7 (results/cpu)."""
    memory = {task.output.stem: task.memory for task in load([Path("config/cpu.yaml")]).of("attack")}
    assert memory["ask-cos-L34-K5-e8-s20"] == memory["pgd-e8-s20"] == 8000
    assert memory["ask-cos-L1234-K5-e8-s20"] == 16000


@pytest.mark.parametrize(
    ("written", "back"),
    [("cells/a.json", True), ("scratch/ascents.json", False), ("scratch/other-settings-or-weights", False)],
)
def test_an_allocation_goes_back_into_the_queue_if_it_finished_something(tmp_path, written, back):
    """What every start writes is nothing that was finished; and results may be a link to another file system."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "results").symlink_to("elsewhere")
    output = tmp_path / "results/paper" / written
    for name, text in (
        ("snakemake", f"mkdir -p {output.parent} && touch {output} begun && exec sleep 60"),
        ("squeue", "date -d '+5 minutes' +%FT%T"),
        ("scontrol", 'echo "$@"'),
    ):
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\n{text}\n")
        program.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    script = subprocess.Popen(
        ["bash", ROOT / "profiles/allocation.sbatch"], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
    )
    while not (tmp_path / "begun").exists() and script.poll() is None:
        time.sleep(0.05)
    time.sleep(0.2)
    script.send_signal(signal.SIGUSR1)
    said, _ = script.communicate(timeout=60)
    assert ("requeue 7" in said, script.returncode) == ((True, 0) if back else (False, 1)), said
    assert back or "nothing was finished in this allocation" in said
