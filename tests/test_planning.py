"""Arithmetic against the real networks, predictions, and the terminal's commands."""

import base64
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import pytest
import torch
import yaml
from training_jobs import load_images
from training_jobs import run as run_training

from ask.config.artifacts import ArtifactConfig
from ask.config.base import DataSpec
from ask.config.run import load_artifacts, read_run
from ask.config.training import NetworkSpec
from ask.errors import AskError
from ask.models.networks import BLOCKS, build
from ask.paths import Run
from ask.plan import commands, predict, why
from ask.plan.cost import Shape, cost_left, costs, network_macs, shape_of
from ask.plan.graph import Task, required
from ask.plan.paper import Paper
from ask.plan.planner import Plan, load, plan_run
from ask.plan.predict import Speed, learn
from ask.training.record import count_passes

ROOT = Path(__file__).parent.parent


def planned(name: str, more_layers: Literal["search", "equal"] = "search") -> Plan:
    files = [ROOT / "config/config.yaml", *([] if name == "paper" else [ROOT / f"config/{name}.yaml"])]
    config = read_run(files)
    calibration = config.calibration.model_copy(update={"more_layers": more_layers})
    config = config.model_copy(update={"calibration": calibration})
    paper = Paper.read(ROOT / "config/paper")
    return plan_run(config, load_artifacts(ROOT / "config/artifacts", config.artifacts), paper)


def in_folder(plan: Plan, folder: Path) -> Plan:
    """The same plan with its results (and not this checkout's) below a folder."""
    moved = {output: folder / output for task in plan.tasks.values() for output in task.outputs}
    tasks = [
        Task(task.name, task.job, moved[path], tuple(moved.get(need, need) for need in task.needs))
        for path, task in plan.tasks.items()
    ]
    return Plan(plan.config, Run(folder / plan.run.root), {task.output: task for task in tasks}, plan.artifacts)


@pytest.mark.parametrize("width", [1.0, 0.25])
@pytest.mark.parametrize(("name", "side"), [("vgg16", 32), ("resnet18", 32), ("resnet18", 128)])
def test_multiply_adds_and_dimensions_are_those_of_the_networks(name: str, side: int, width: float) -> None:
    spec = NetworkSpec(name=name, width=width)
    upto, whole, dimensions, weights = network_macs(spec, Shape(3, side, 10, 1, 1))
    network = build(spec, in_channels=3, image_size=side, num_classes=10).eval()
    images = torch.zeros(1, 3, side, side)
    with torch.no_grad():
        for place, layer in enumerate(BLOCKS):
            with count_passes(network) as passes:
                features = network.features(images, (layer,))[layer]
            assert passes["macs"] == pytest.approx(upto[place], rel=1e-9)
            assert features.shape[1] == dimensions[place]
        with count_passes(network) as passes:
            network(images)
    assert passes["macs"] == pytest.approx(whole, rel=1e-9)
    assert weights == sum(p.numel() for p in network.parameters() if p.ndim > 1)


def test_the_papers_network_costs_what_is_known_of_it() -> None:
    upto, whole, dimensions, _ = network_macs(NetworkSpec(name="vgg16"), shape_of(DataSpec(source="cifar10")))
    assert whole / 1e9 == pytest.approx(0.3137, abs=0.0001)
    assert upto[2] / 1e9 == pytest.approx(0.1905, abs=0.0001)
    assert upto[3] / 1e9 == pytest.approx(0.2849, abs=0.0001)
    assert dimensions == [16384, 8192, 4096, 2048, 512]


@pytest.mark.parametrize("model", ["at", "at-snn", "ask-def", "ask-def-conv34", "trades", "ask-def-trades"])
def test_trainings_cost_what_the_loop_counts_in_a_step(model: str, tmp_path: Path) -> None:
    plan = planned("demo")
    output = plan.run.weights("digits-vgg", model)
    job, predicted = plan.tasks[output].job, costs(plan)[output].flop
    steps = (1442 - job.training.holdout) // job.training.batch_size * job.training.epochs
    images, labels = load_images()
    short = job.model_copy(update={"training": job.training.model_copy(update={"epochs": 1})})
    run_training(short, (images[:200], labels[:200]), tmp_path)
    counted = yaml.safe_load((tmp_path / "config.yaml").read_text())["passes_per_step"]["gmac"] * 1e9
    assert predicted / steps / 2 == pytest.approx(counted, rel=0.06)


def test_weights_and_indexes_take_the_bytes_they_take() -> None:
    plan = planned("paper")
    found = costs(plan)
    network = build(NetworkSpec(name="vgg16"), in_channels=3, image_size=32, num_classes=10)
    parameters = sum(p.numel() for p in network.parameters())
    assert found[plan.run.weights("cifar10", "at")].size == pytest.approx(8 * parameters, rel=0.02)
    assert found[plan.run.index("cifar10", "at", "conv4")].size == 4 * 50_000 * 2048


def test_a_target_needs_all_that_it_rests_on(tmp_path: Path) -> None:
    plan = in_folder(planned("demo"), tmp_path)
    tasks = plan.tasks
    wanted = required(tasks, [plan.run.table("table04")])
    steps = sorted(tasks[path].name for path in wanted)
    assert steps == ["attack"] * 3 + ["calibrate"] * 3 + ["index"] * 2 + ["prepare", "table", "train"]
    assert not any(tasks[path].done for path in wanted)
    made = {output for task in tasks.values() for output in task.outputs}
    needed = {need for task in tasks.values() for need in task.needs}
    assert needed - made == {Path("config/paper/claims.csv"), Path("config/paper/claims.yaml")}
    assert required(tasks, [plan.run.report]) == set(tasks), "the report shows everything"


def test_weights_of_two_layers_are_given_or_searched() -> None:
    plan = planned("paper")
    jobs = [task.job for task in plan.of("attack") if task.job.id.startswith("ask-cos-L34-K5-e8-s20")]
    given = {job.features.dataset: (job.attack, job.omega_from) for job in jobs if job.attack.tau == 0.03}
    assert {name: attack.omega for name, (attack, _) in given.items()} == {
        "cifar10": {"conv3": 0.5, "conv4": 0.5},
        "imagenette": {"conv3": 0.1, "conv4": 0.9},
    }
    assert {omega_from for _, omega_from in given.values()} == {None}
    searched = [job for job in jobs if job.attack.tau is None and "-o0" not in job.id]
    assert all(job.omega_from and not job.attack.omega for job in searched)
    weights = {job.features.dataset: job for job in jobs if job.attack.tau is None and "-o0" in job.id}
    assert {name: job.attack.omega for name, job in weights.items()} == {
        name: attack.omega for name, (attack, _) in given.items()
    }
    assert all(job.tau_from and not job.omega_from for job in weights.values()), (
        "the paper's, at calibrated temperatures"
    )
    assert not any(getattr(task.job.attack, "omega", {}) for task in plan.of("calibrate"))


def test_blocks_that_are_not_the_runs_own_stand_beside_them() -> None:
    tasks = [task.job for task in planned("lite").of("attack", "blocks") if getattr(task.job, "layer", "") == "conv3"]
    rates = {job.id: job.block.learning_rate for job in tasks if job.features.model == "at"}
    assert rates == {"cos-L3-K5": 0.001, "cos-L3-K5-fitted": None}
    cells = {task.job.id: task.job for task in planned("lite").of("attack") if task.job.id.startswith("advknn")}
    assert {job.blocks_from for name, job in cells.items() if name.endswith("L4-K5-e8-s20-fitted")} == {
        ("cos-L4-K5-fitted",)
    }
    assert all(("fitted" in name) == (job.attack.block.learning_rate is None) for name, job in cells.items())
    assert not any("fitted" in task.output.stem for task in planned("demo").tasks.values()), "its own are"


@pytest.mark.parametrize("how", ["search", "equal"])
def test_weights_of_more_layers_are_searched_unless_they_shall_be_equal(how: Literal["search", "equal"]) -> None:
    plan = planned("demo", more_layers=how)
    cells = [task.job for task in plan.of("attack") if len(getattr(task.job.attack, "layers", ())) > 2]
    assert cells
    names = {job.omega_from for job in cells}
    found = {task.job.id: task.job for task in plan.of("calibrate") if task.job.of_layers}
    assert names == (set(found) if how == "search" else {None})
    assert bool(found) == (how == "search")
    assert all(len(job.tau_from) == len(job.grid[0]) == len(job.attack.layers) > 2 for job in found.values())


def test_evidence_that_came_without_notes_is_put_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clone's files have the times of their arrival: what was measured from them must not be older."""
    monkeypatch.chdir(tmp_path)
    plan = planned("raw-pixels")
    cell, other = (task for task in plan.of("attack") if task.output.name == "ask-l2-Lin-K5-e40-s20.json")
    (calibration,) = (need for need in cell.needs if "calibration" in need.parts)
    elsewhere = next(need for need in other.needs if "calibration" in need.parts)
    for path in (cell.output, other.output, calibration, elsewhere, plan.run.benchmark(cell.output)):
        path.parent.mkdir(parents=True, exist_ok=True)
        job = plan.tasks[path].document if path in plan.tasks else None
        path.write_text(json.dumps({"job": job and {**job, **({"steps": 1} if path == other.output else {})}}))
        os.utime(path, (1000, 1000))
    for path in (calibration, elsewhere):
        os.utime(path, (2000, 2000))

    def times(*paths: Path) -> list[float]:
        return [path.stat().st_mtime for path in paths]

    why.adopt(plan.tasks, plan.run)
    assert times(cell.output, plan.run.benchmark(cell.output), calibration) == [2000] * 3
    assert times(other.output) == [1000], "it was measured with other settings"
    os.utime(calibration, (3000, 3000))
    note = Path(".snakemake/metadata", base64.urlsafe_b64encode(str(calibration).encode()).decode())
    note.parent.mkdir(parents=True)
    note.touch()
    why.adopt(plan.tasks, plan.run)
    assert times(cell.output) == [2000], "Snakemake made that calibration here, and knows"
    cell.output.unlink()
    why.adopt(plan.tasks, plan.run)
    assert not cell.output.exists(), "a record that was deleted is measured again, whatever else of it is there"


def test_what_was_drawn_or_replaced_since_snakemake_noted_it_is_judged_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`ask render` draws what there is; files of another machine may land on those of this one."""
    monkeypatch.chdir(tmp_path)
    plan = planned("raw-pixels")
    table, cell = plan.of("table")[0].output, plan.of("attack")[0]
    for path, content in ((table, ""), (cell.output, json.dumps({"job": cell.document | {"seed": 7}}))):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        why.notes(path).parent.mkdir(parents=True, exist_ok=True)
        assert path in why.arrived(plan.tasks, plan.run)[1]
        why.notes(path).touch()
        assert path not in why.arrived(plan.tasks, plan.run)[1], "Snakemake made it here, and knows"
        os.utime(path, (2**31, 2**31))
        assert path in why.arrived(plan.tasks, plan.run)[1]
    reason = SimpleNamespace(incomplete_output=(), params_changed=(), code_changed=False, updated_input={why.OTHER})
    assert why.in_words(plan.tasks[table], reason, {}) == "drawn without Snakemake, from what was there then"


def test_what_is_not_counted_takes_the_time_of_a_table() -> None:
    plan = planned("demo")
    found = costs(plan)
    assert not any(found[task.output].flop for task in plan.of("prepare", "study", "table", "claims", "report"))
    assert all(found[path].flop > 0 for path, task in plan.tasks.items() if task.name in ("train", "attack", "timing"))
    known = predict.Predictor("CPU", factor=3.0)
    for task in plan.of("prepare", "table", "claims", "report"):
        assert known.speed(task.group).seconds(found[task.output].flop) == 1


def test_a_processor_is_as_fast_as_its_convolutions(monkeypatch):
    monkeypatch.setattr(predict, "gpu", lambda: "")
    found = {"precision": "bfloat16", "gflops": {"float32": 187.0, "bfloat16": 561.0}, "threads": 2}
    pace = predict.pace_of(found)
    assert (pace.passes, pace.other) == (1.5, 0.5)
    here, assumed = predict.Predictor("CPU", pace=pace), predict.Predictor("CPU")
    times = 1 / (predict.CONVOLVING / 1.5 + (1 - predict.CONVOLVING) / 0.5)  # activations are no faster in bfloat16
    for group in ("training", "attacks"):
        assert here.speed(group).rate == pytest.approx(times * assumed.speed(group).rate)
    assert here.speed("indexes").rate == pytest.approx(0.5 * assumed.speed("indexes").rate)
    assert here.speed("training", "GPU") == assumed.speed("training", "GPU")
    wide = "attacks of wide networks"
    assert here.speed(wide).rate == pytest.approx(times * assumed.speed(wide).rate)
    assert assumed.speed(wide).rate > assumed.speed("attacks").rate
    assert assumed.speed(wide, "GPU") == assumed.speed("attacks", "GPU")
    groups = {name: {task.group for task in planned(name).of("train", "attack")} for name in ("cpu", "lite")}
    assert groups == {
        "cpu": {"training of wide networks", wide, "attacks on pixels"},
        "lite": {"training", "attacks"},
    }
    assert predict.pace_of({}) == predict.Pace()


def test_what_came_from_elsewhere_and_is_not_what_is_asked_for_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    task = next(task for task in planned("lite").of("attack") if "ask-cos-L34" in task.output.name)
    task.output.parent.mkdir(parents=True)
    marker = f"results/lite/scratch/{why.OTHER}"
    for changes, newer, words in (
        ({}, marker, "measured on other weights"),
        ({"trials": task.document["trials"] + 1}, marker, "measured on other weights"),
        ({"seed": 7}, marker, f"measured with other settings: seed 7 → {task.document['seed']}"),
        ({"seed": 7}, "config/a", "config/a is newer"),
    ):
        task.output.write_text(json.dumps({"job": task.document | changes}))
        reason = SimpleNamespace(incomplete_output=(), params_changed=(), code_changed=False, updated_input={newer})
        assert why.in_words(task, reason, {}) == words


def test_trials_of_other_weights_are_no_work_done(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned("lite")
    task = next(task for task in plan.of("attack") if task.needs and "ask-cos-L34" in task.output.name)
    counted = costs(plan)[task.output]
    trials = task.document["trials"]
    monkeypatch.setattr("ask.plan.graph.known", lambda *_: set(range(trials - 1)))
    fewer = SimpleNamespace(only_old=[repr(json.dumps(task.document | {"trials": 1}))])
    for made, words in (
        ((), f"1 of {trials} trials to measure"),
        (task.needs, f"{trials} of {trials} trials to measure"),
    ):
        reason = SimpleNamespace(incomplete_output=(), params_changed=fewer, updated_input_run=[*map(str, made)])
        assert why.in_words(task, reason, {}).endswith(words)
    monkeypatch.setattr("ask.plan.graph.known", lambda *_: set(range(trials)))
    assert cost_left(task, counted).flop == 0
    weights = next(need for need in task.needs if need.name == "weights.safetensors")
    tau = next(need for need in task.needs if "calibration" in need.parts)
    index = next(need for need in task.needs if "index" in need.parts)
    assert cost_left(task, counted, {weights}).flop == cost_left(task, counted, {tau}).flop == counted.flop
    assert cost_left(task, counted, {index}).flop == 0, "it is made alike"
    advknn = next(one for one in planned("demo").of("attack") if "advknn" in one.output.name)
    blocks = {need for need in advknn.needs if "blocks" in need.parts}
    assert blocks
    assert advknn.trials_left(blocks) == advknn.trials_left(), "those of more trials leave the fitted ones"


def test_analyses_of_several_models_are_all_made() -> None:
    """Failures over trainings, and two tables of times whose first attack is the same."""
    config = read_run([ROOT / "config/config.yaml", ROOT / "config/demo.yaml"])
    seeds = config.evaluation.model_copy(update={"training_seeds": 3, "max_training_seeds": None})
    config = config.model_copy(update={"evaluation": seeds})
    artifacts = load_artifacts(ROOT / "config/artifacts", ["failures", "timing"])
    fewer = artifacts["timing"].rows[0].model_copy(update={"values": artifacts["timing"].rows[0].values[:2]})
    artifacts["times"] = artifacts["timing"].model_copy(update={"rows": (fewer,)})
    plan = plan_run(config, artifacts, Paper.read(ROOT / "config/paper"))
    assert {task.output.parent.name for task in plan.of("failures")} == {"at", "at-seed1", "at-seed2"}
    sizes = {
        name: max(len(task.job.cells) for task in plan.of("timing") if task.output in plan.cells_of(name))
        for name in ("timing", "times")
    }
    assert sizes == {"timing": len(artifacts["timing"].rows[0].values), "times": 2}
    for name in artifacts:
        assert all(path in plan.tasks for path in plan.cells_of(name)), name


def test_each_model_is_timed_by_itself_and_once_whatever_the_seeds() -> None:
    config = planned("lite").config
    seeds = config.evaluation.model_copy(update={"training_seeds": 3, "max_training_seeds": None})
    config = config.model_copy(update={"evaluation": seeds})
    table = load_artifacts(ROOT / "config/artifacts", ["timing"])["timing"].model_dump()
    models = {"values": [{"label": name, "model": name} for name in ("at", "ask-def")]}
    both = ArtifactConfig.model_validate({**table, "rows": [models, *table["rows"]]})
    plan = plan_run(config, {"both": both}, Paper.read(ROOT / "config/paper"))
    assert sorted(str(task.output.parent.name) for task in plan.of("timing")) == ["ask-def", "at"]
    assert all(
        {cell.features.model for cell in task.job.cells} == {task.output.parent.name} for task in plan.of("timing")
    )
    entries = plan.tasks[plan.run.table("both")].job["entries"]
    assert all("over" not in entry for entry in entries)
    assert {entry["cell"]["model"] for entry in entries} == {"at", "ask-def"}


def test_speed_is_learned_from_finished_jobs() -> None:
    speed = learn([(flop, 2 + flop / 50e9) for flop in (1e9, 5e10, 1e11, 1e12, 2e12)])
    assert speed is not None
    assert speed.rate == pytest.approx(50e9)
    assert speed.overhead == pytest.approx(2)
    assert learn([(1e9, 1.0)] * 4) is None, "too few"
    flat = learn([(0.0, 1.0), (0.0, 3.0), (0.0, 1.0), (0.0, 1.0), (0.0, 1.0)])
    assert flat == Speed(float("inf"), pytest.approx(1.4), 5), "as many seconds in all as were measured"
    few = learn([(9e10, 4.0)], overhead=1.0)
    assert few == Speed(pytest.approx(3e10), 1.0, 1)


def test_a_measured_stage_corrects_those_that_were_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = in_folder(planned("demo"), tmp_path)
    counted = costs(plan)
    monkeypatch.setattr(predict, "gpu", lambda: "")
    cells = [task for task in plan.tasks.values() if task.group == "attacks" and counted[task.output].flop > 0][:6]
    slow, assumed = 2.0, predict.Predictor("CPU")
    for task in cells:
        task.output.parent.mkdir(parents=True, exist_ok=True)
        task.output.write_text(json.dumps({"hardware": f"{predict.machines()[0]}, 1 thread", "job": task.document}))
        noted = plan.run.benchmark(task.output)
        noted.parent.mkdir(parents=True, exist_ok=True)
        seconds = slow * assumed.speed("attacks").seconds(counted[task.output].flop)
        noted.write_text(f"s\tload\n{seconds}\t0\n")
    known = predict.predictor(predict.finished(plan, counted))
    assert known.factor == pytest.approx(slow)
    assert known.basis("attacks") == "6 jobs here"
    assert known.basis("training") == "assumed, times 2"
    assert known.speed("training").overhead == assumed.speed("training").overhead
    assert known.speed("training").rate == pytest.approx(assumed.speed("training").rate / slow)
    assert known.speed("training", "GPU") == assumed.speed("training", "GPU")
    hardware = {"hardware": f"{predict.machines()[0]}, 1 thread"}
    for task in cells:
        job = task.document | {"trials": 2 * task.document["trials"]}
        task.output.write_text(json.dumps(hardware | {"job": job, "known": task.document["trials"]}))
    pairs = predict.finished(plan, counted)["attacks"]
    assert [flop for flop, _ in pairs] == pytest.approx([counted[task.output].flop for task in cells]), "half was known"
    for task in cells:
        task.output.write_text(json.dumps(hardware | {"job": task.document | {"test_images": 3}}))
    assert predict.predictor(predict.finished(plan, counted)).learned == {}, "measured with other settings"
    for task in cells:
        task.output.write_text(json.dumps({"hardware": "another machine", "job": task.document}))
    assert predict.predictor(predict.finished(plan, counted)).learned == {}


def test_a_training_on_two_cores_counts_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = in_folder(planned("demo"), tmp_path)
    monkeypatch.setattr(predict, "gpu", lambda: "")
    first, second = plan.of("train")[:2]
    for task, threads in ((first, "1 thread"), (second, "2 threads")):
        task.output.parent.mkdir(parents=True)
        task.output.touch()
        task.output.with_name("config.yaml").write_text(f"hardware: {predict.machines()[0]}, {threads}\n")
        noted = plan.run.benchmark(task.output)
        noted.parent.mkdir(parents=True, exist_ok=True)
        noted.write_text("s\tload\n60\t0\n")
    found = predict.finished(plan, costs(plan))
    assert [seconds for _, seconds in found["training"]] == [60, 120]
    with second.output.with_name("config.yaml").open("a") as record:
        record.write("seconds: 3600.5\ntrain_seconds: 3000.0\n")
    found = predict.finished(plan, costs(plan))
    assert [seconds for _, seconds in found["training"]] == [60, 7201], "it went on, and its last start took a minute"


def test_a_record_that_was_cut_off_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever damaged it, a run begins without it or says which it is."""
    monkeypatch.chdir(tmp_path)
    plan = planned("raw-pixels")
    cell = next(task for task in plan.of("attack") if task.output.name == "ask-l2-Lin-K5-e40-s20.json")
    calibration = next(plan.tasks[need] for need in cell.needs if "calibration" in need.parts)
    for path in (cell.output, calibration.output, plan.run.benchmark(cell.output)):
        path.parent.mkdir(parents=True, exist_ok=True)
    plan.run.benchmark(cell.output).write_text("s\tload\n60\t0\n")
    calibration.output.write_text(json.dumps({"job": calibration.document}))
    cell.output.write_text('{"job": {"id"')
    os.utime(cell.output, (1000, 1000))
    assert predict.measured(cell, plan.run, costs(plan)[cell.output]) is None
    assert not predict.hardware_of(cell, plan.run)
    for judge in (why.adopt, why.arrived):
        with pytest.raises(AskError, match=rf"^{cell.output} is no whole record .*: delete it"):
            judge(plan.tasks, plan.run)


def test_jobs_are_held_against_the_machine_that_they_ran_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run whose precision was settled on a machine ten times as fast goes on here."""
    monkeypatch.setattr(predict, "gpu", lambda: "")
    monkeypatch.chdir(tmp_path)
    Path("config").symlink_to(ROOT / "config")
    plan = load([Path("config/demo.yaml")])
    counted, product = costs(plan), predict.PRODUCT / 1e9
    fast = {"precision": "float32", "processor": "a fast one, 2 cores, 1 thread", "threads": 1}
    here = {"precision": "float32", "processor": f"{predict.machines()[0]}, 1 thread", "threads": 1}
    fast["gflops"], here["gflops"] = {"float32": 10 * product}, {"float32": product}
    monkeypatch.setattr("ask.precision.expected", lambda wanted, device: here | {"precision": wanted})
    plan.run.root.mkdir(parents=True)
    (plan.run.root / "precision.json").write_text(json.dumps(fast))
    cells = [task for task in plan.tasks.values() if task.group == "attacks" and counted[task.output].flop > 0][:2]
    seconds = {}
    for task, machine in zip(cells, (fast, here), strict=True):
        speed = predict.Predictor("CPU", pace=predict.pace_of(machine)).speed("attacks")
        seconds[task.output] = speed.seconds(counted[task.output].flop)
        task.output.parent.mkdir(parents=True, exist_ok=True)
        task.output.write_text(json.dumps({"hardware": machine["processor"], "job": task.document}))
        noted = plan.run.benchmark(task.output)
        noted.parent.mkdir(parents=True, exist_ok=True)
        noted.write_text(f"s\tload\n{seconds[task.output]}\t0\n")
    commands.plan(configfile=[Path("config/demo.yaml")], json_=True)
    found = json.loads(capsys.readouterr().out)
    (row,) = (stage for stage in found["stages"] if stage["stage"] == "attacks")
    assert row["predicted"] == pytest.approx(sum(seconds.values()))
    assert row["actual"] == pytest.approx(sum(seconds.values()))
    assert row["basis"] == "1 job here"
    assert predict.pace_of(commands._settled(plan)) == predict.Pace(), "what is left runs here"
    cells[1].output.unlink()
    assert not predict.finished(plan, counted), "a time whose record is gone tells nothing"


def test_plan_and_status_of_a_run_that_has_not_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ask.cli import main

    for name in ("config", "rules", "Snakefile", "environment.yml"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    assert main(["plan", "--configfile", "config/demo.yaml", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    total = found["total"]
    assert total["jobs"] == total["left"] > 400
    assert total["seconds"] > 0
    assert sum(row["jobs"] for row in found["artifacts"]) > total["jobs"], "artifacts share jobs"
    assert main(["status", "--configfile", "config/demo.yaml"]) == 0
    assert "0 of 24" in capsys.readouterr().out
    assert main(["status", "table01", "--configfile", "config/demo.yaml"]) == 0
    assert "0 of 42 numbers measured" in capsys.readouterr().out
    assert main(["why", "table01", "--configfile", "config/demo.yaml"]) == 0
    assert "not made yet" in capsys.readouterr().out
    assert main(["why", "results/demo/claims.csv", "--configfile", "config/demo.yaml"]) == 0
    steps = capsys.readouterr().out
    assert "3 prepare" in steps
    assert "21 train" in steps
    assert main(["plan", "slice-2", "--trials", "1", "--json"]) == 0
    (part,) = json.loads(capsys.readouterr().out)["artifacts"]
    assert part["artifact"] == "slice-2"
    assert part["CPU"] > 100 * part["GPU"] > 0
    assert main(["plan", "table99", "--configfile", "config/demo.yaml"]) == 1
    assert "no artifact 'table99' in this run" in capsys.readouterr().err


def test_differences_name_the_path_and_both_values() -> None:
    before = {"attack": {"eps": 8.0, "layers": ["conv4"]}, "trials": 3, "gone": 1}
    now = {"attack": {"eps": 4.0, "layers": ["conv4"]}, "trials": 3, "new": None}
    found = [" ".join(difference) for difference in why.differences(before, now)]
    assert found == ["attack.eps 8.0 → 4.0", "gone 1 → (none)", "new (none) → null"]
    many = {"entries": [{"k": 1}, {"k": 1}, {"k": 2}]}
    assert why.summary(many, {"entries": [{"k": 5}, {"k": 5}, {"k": 2}]}) == ["entries[*].k 1 → 5 (2 times)"]


def test_why_names_the_function_the_value_and_the_file(tmp_path: Path) -> None:
    """A real run of two small jobs in a copy of the project: nothing, a comment, a function, a value, a lost file."""
    import shutil

    for name in ("ask", "config", "rules", "profiles"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Snakefile", "environment.yml"):
        shutil.copy(ROOT / name, tmp_path)
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "ASK_WORKER": "", "OMP_NUM_THREADS": "1"}
    table = "results/demo/tables/proposition1-classes.csv"

    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", *arguments, "--configfile", "config/demo.yaml"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("snakemake", table, "--cores", "1")
    assert run("ask", "why", "proposition1-classes") == "Nothing would run.\n"
    source = tmp_path / "ask/measure/proposition1.py"
    text = source.read_text()
    source.write_text(text.replace("SIGMA_R = 0.5\n", "SIGMA_R = 0.5  # of the references\n"))
    assert run("ask", "why", "proposition1-classes") == "Nothing would run.\n"
    source.write_text(text.replace("return losses\n", "return losses * 1.0\n"))
    told = run("ask", "why", "proposition1-classes")
    assert "code changed: ask.measure.proposition1 (loss_of)" in told
    assert "1 study: results/demo/cells/simulated/none/proposition1.json" in told
    assert "because of those\n  1 table: " + table in told
    source.write_text(text)
    config = tmp_path / "config/config.yaml"
    config.write_text(config.read_text().replace("seed: 0", "seed: 7", 1))
    assert "changed: seed 0 → 7" in run("ask", "why", "proposition1-classes")
    config.write_text(config.read_text().replace("seed: 7", "seed: 0", 1))
    page = table.replace(".csv", ".md")
    (tmp_path / page).unlink()
    assert f"not made yet\n  1 table: {table}" in run("ask", "why", page)


def test_what_fingerprints_stood_for_is_noted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    steps = {("ask.measure.failures",), ("ask.measure.proposition1",)}
    why.remember(steps)
    first = why.CODE.stat().st_ino
    why.remember(steps)
    assert why.CODE.stat().st_ino == first, "nothing new, nothing written: a file is replaced as a whole"
    noted = why.read_code()
    assert len(noted["fingerprints"]) == 2
    (study,) = [code for code, modules in noted["fingerprints"].items() if "ask.measure.proposition1" in modules]
    noted["modules"][noted["fingerprints"][study]["ask.measure.proposition1"]]["loss_of"] = "other"
    assert why.changed_functions(noted, study, ("ask.measure.proposition1",)) == "ask.measure.proposition1 (loss_of)"


def test_terminal_tables_align() -> None:
    assert commands._table(("a", "bc"), [("long", "1"), ("x", "22")]).splitlines() == [
        "a     bc",
        "----  --",
        "long   1",
        "x     22",
    ]


def test_a_table_of_a_part_of_its_numbers_is_not_done(tmp_path: Path) -> None:
    """As `ask render` leaves one; what is missing counts as to do."""
    plan = in_folder(planned("demo"), tmp_path)
    table = next(task for task in plan.of("table") if len(task.needs) > 2)
    for path in (table.output, *table.needs[1:]):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    left = required(plan.tasks, [table.output], undone=True)
    assert {table.output, table.needs[0]} <= left
    assert left.isdisjoint(table.needs[1:])
    table.needs[0].parent.mkdir(parents=True, exist_ok=True)
    table.needs[0].touch()
    assert not required(plan.tasks, [table.output], undone=True)
