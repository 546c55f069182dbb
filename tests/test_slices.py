"""Slices: what they measure, within a time limit, their evidence packed and merged, and shown without weights."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import yaml

from ask import bundle, slices
from ask.config.claims import Claims
from ask.config.run import ConfigError, load_run, merge, read_spec
from ask.config.stored import covers
from ask.errors import AskError
from ask.files import locked
from ask.plan import why
from ask.plan.planner import entries, load, plan_run
from ask.plan.why import notes, stale
from ask.slices import merge_command, pack_command, targets_of

ROOT = Path(__file__).parent.parent


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A project folder with the configuration and no results, where commands run."""
    (tmp_path / "config").symlink_to(ROOT / "config")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_slices_share_no_measurement_and_make_all_that_the_papers_tables_show(home):
    plan = load([])
    run = plan.run
    outputs = {name: targets_of(plan, name).outputs for name in plan.config.slices}
    every = [path for paths in outputs.values() for path in paths]
    assert len(every) == len(set(every))
    assert not outputs["slice-1"]
    assert run.example("figure3") in outputs["slice-7"]
    tables = [f"table{n:02}" for n in range(1, 15) if n != 5]
    for name in [*tables, "figure1-left", "figure1-right", "figure4", "figure5", "failures", "timing"]:
        assert set(plan.cells_of(name)) <= set(every), name
    assert targets_of(plan, "slice-3").elsewhere == {run.example("figure2"): ["at"]}
    weights = run.weights("cifar10", "at")
    weights.parent.mkdir(parents=True)
    weights.touch()
    assert run.example("figure2") in targets_of(plan, "slice-3").outputs


def test_slices_make_all_that_claims_are_judged_by(home):
    plan = load([])
    every = {path for name in plan.config.slices for path in targets_of(plan, name).outputs}
    models = {(path.parts[-3], path.parts[-2]) for path in every}
    costs = {task.output for task in plan.of("cost")}  # compared where evidence is merged (`ask.slices.render`)
    assert {path.parts[-2] for path in costs} <= {model for dataset, model in models if dataset == "cifar10"}
    claims = read_spec(Claims, ROOT / "config/paper/claims.yaml").claims.values()
    parts = [part for claim in claims for part in claim.parts]
    named = {part.artifact for part in parts}
    named |= {settings.get("artifact", part.artifact) for part in parts for settings in (*part.of, *part.minus)}
    for name in named:
        assert set(plan.cells_of(name)) - costs <= every, name
    assert named <= set(plan.artifacts)
    wanted = {(dataset, part.artifact) for part in parts for dataset in part.datasets}
    shown = {
        (columns["dataset"], name)
        for name, artifact in plan.artifacts.items()
        for columns in (entry["columns"] for entry in entries(artifact))
    }
    assert wanted <= shown


def test_mistakes_in_slices_are_named(home):
    raw = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    for part, message in (
        ({"datasets": ["svhn"]}, r"slice 'x': no data set 'svhn'; choose from cifar10"),
        ({"models": ["vgg"]}, r"slice 'x': no model 'vgg'; choose from raw, at"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_run(merge(raw, {"slices": {"x": part}}))
    with pytest.raises(ConfigError, match=r"no slice 'slice-9' in run 'paper'; it has slice-1, slice-2"):
        targets_of(load([]), "slice-9")
    config = load_run(merge(raw, {"slices": {"x": {"artifacts": ["table99"]}}}))
    with pytest.raises(ConfigError, match=r"slice 'x': no artifact 'table99'"):
        targets_of(plan_run(config, {}), "x")
    with pytest.raises(ConfigError, match=r"--minutes 0: must be above 0"):
        slices.slice_command("slice-2", minutes=0)


def test_a_record_counts_if_it_is_of_the_planned_job_and_of_the_weights_here(home):
    plan = load([Path("config/demo.yaml")])
    task = next(task for task in plan.of("attack") if task.group == "attacks")
    path, job = task.output, task.document
    assert stale(plan, path) == "not measured"
    name = f"{job['features']['dataset']}/{job['features']['model']}"
    path.parent.mkdir(parents=True)

    def record(**changes):
        path.write_text(json.dumps({"job": job | changes, "weights": {name: hashlib.sha256(b"one").hexdigest()}}))

    record()
    assert stale(plan, path) == "not measured", "its predictions are missing"
    path.with_suffix(".npz").touch()
    assert not stale(plan, path), "no weights here: any count"
    record(trials=job["trials"] + 1)
    assert not stale(plan, path)
    record(seed=5)
    assert stale(plan, path) == "measured with other settings"
    path.write_text(path.read_text()[:40])
    with pytest.raises(AskError, match=rf"^{path} is no whole record .*: delete it"):
        stale(plan, path)
    record()
    weights = plan.run.weights(*name.split("/"))
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"one")
    assert not stale(plan, path)
    model = weights.with_name("config.yaml")
    trained = plan.tasks[weights].document
    model.write_text(yaml.safe_dump({"job": trained}))
    assert not stale(plan, path)
    model.write_text(yaml.safe_dump({"job": trained | {"seed": 7}}))
    os.utime(model, (1000, 1000))
    assert stale(plan, path) == f"measured with other settings of {weights}"
    model.unlink()
    for needed in (one for one in task.needs if "calibration" in one.parts):
        needed.parent.mkdir(parents=True, exist_ok=True)
        needed.write_text(json.dumps({"job": plan.tasks[needed].document | {"images": 77}}))
        assert stale(plan, path) == f"measured with other settings of {needed}"
        needed.unlink()
    weights.write_bytes(b"another")
    assert stale(plan, path) == f"measured on other weights of {name}"
    weights.write_bytes(b"one")
    assert covers({"trials": 20, "k": 5}, {"trials": 3, "k": 5})
    assert not covers({"trials": 3, "k": 5}, {"trials": 20, "k": 5})


def test_what_was_measured_with_other_parameters_or_settings_is_not_shown(home):
    """A calibration was made anew, or the configuration has another seed; what is smaller than planned is shown."""
    plan = load([Path("config/raw-pixels.yaml")])
    for path in plan.cells_of("table05"):
        task = plan.tasks[path]
        for need in (need for need in task.needs if "calibration" in need.parts):
            need.parent.mkdir(parents=True, exist_ok=True)
            need.write_text(json.dumps({"job": plan.tasks[need].document, "picked": {"tau": 0.1, "alpha": 0.1}}))
        path.parent.mkdir(parents=True, exist_ok=True)
        setting = {"tau": {"input": 0.1}, "omega": {"input": 1.0}} if task.job.tau_from else {"alpha": 0.1}
        path.write_text(json.dumps({"job": task.document, "setting": setting if task.job.attack else {}}))
        path.with_suffix(".npz").touch()
    assert slices._measured(plan, "table05")[1] == "whole"
    assert path not in why.arrived(plan.tasks, plan.run)[1]
    kept = json.loads(path.read_text())
    path.write_text(json.dumps(kept | {"job": kept["job"] | {"trials": 1}}))
    assert stale(plan, path) == "measured with other settings"
    assert slices._measured(plan, "table05")[1] == "whole"
    path.write_text(json.dumps(kept | {"job": kept["job"] | {"seed": 7}}))
    assert slices._measured(plan, "table05")[1] in ("in part", "measured with other settings")
    path.write_text(json.dumps(kept | {"setting": {"tau": {"input": 0.3}, "omega": {"input": 1.0}}}))
    assert stale(plan, path) == "measured with other parameters than calibrated"
    assert path in why.arrived(plan.tasks, plan.run)[1]
    path.write_text(json.dumps(kept))
    path.with_suffix(".npz").unlink()
    assert slices._measured(plan, "table05")[1] != "whole", "intervals are of predictions"


def test_models_whose_labels_have_commas_are_told_apart_where_they_are_left_out(home):
    plan = load([Path("config/lite.yaml")])
    for path in plan.cells_of("control-loss"):
        if path.parts[-2].partition("-seed")[0] in ("at", "ask-def"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"job": plan.tasks[path].document}))
            path.with_suffix(".npz").touch()
    job, state = slices._measured(plan, "control-loss")
    assert state == "in part"
    left_out = "Not measured yet, and left out: ASK-Def, eps 4; ASK-Def, longer steps; AT+SNN; AT, at ASK-Def's cost"
    assert left_out in job["notes"][-1]


def test_what_a_killed_slice_started_holds_its_lock(tmp_path):
    """Snakemake may outlive it, and another would measure the same beside it."""
    lock, child = tmp_path / "slice.lock", "import os; print(os.getpid(), flush=True); import time; time.sleep(60)"
    driver = (
        "import sys, time; from pathlib import Path; from ask.files import locked; from ask.slices import _within\n"
        f"with locked(Path({str(lock)!r})) as held:\n"
        f"    _within([sys.executable, '-c', {child!r}], time.monotonic() + 60, [held])"
    )
    started = subprocess.Popen([sys.executable, "-c", driver], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    left = int(started.stdout.readline())
    try:
        started.kill()
        started.wait()
        with pytest.raises(BlockingIOError), locked(lock, wait=False):
            pass
    finally:
        os.kill(left, signal.SIGKILL)
    with locked(lock):  # freed with it
        pass


def test_one_slice_of_a_run_at_a_time(home, capsys):
    with locked(load([]).run.root / "scratch/slice.lock"):
        assert slices.slice_command("slice-2") == slices.FAILED
    said = capsys.readouterr().out
    assert "results/paper/scratch/slice.lock: another slice of this run is being made here; wait until it ends" in said
    assert said.endswith("slice-2: 0 of 200 measurements, failed; see above\n")


def test_a_command_is_stopped_at_the_deadline_as_by_ctrl_c_and_killed_if_it_does_not_listen(monkeypatch):
    monkeypatch.setattr(slices, "GRACE", 0.5)
    deaf = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(60)"
    for command, seconds, status in (
        (["true"], float("inf"), slices.FINISHED),
        (["false"], 60.0, slices.FAILED),
        (["true"], 0.0, slices.MORE),
        (["sleep", "60"], 0.2, slices.MORE),
        ([sys.executable, "-c", deaf], 1.0, slices.MORE),
    ):
        began = time.monotonic()
        assert slices._within(command, began + seconds) == status
        assert time.monotonic() - began < 30


# Archives.


def archive(path, files, sums=None):
    """An archive as ``ask pack`` writes it; ``sums`` belie the content."""
    found = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()} | (sums or {})
    with zipfile.ZipFile(path, "w") as file:
        for name, data in files.items():
            file.writestr(name, data)
        file.writestr("manifest.json", json.dumps({"format": 1, "files": found}))
    return path


def cell(trials=3, value=0.5, **job):
    return json.dumps({"job": {"id": "c", "trials": trials, **job}, "value": value}).encode()


CELL, PREDICTIONS = "paper/cells/cifar10/at/c.json", "paper/cells/cifar10/at/c.npz"


@pytest.fixture
def merged(tmp_path, capsys):
    """Merges archives into a folder; returns how many jobs were treated how."""

    def run(*archives, into="results", **options):
        capsys.readouterr()
        merge_command(archives, into=tmp_path / into, **options)
        lines = re.findall(r"^(\d+) ([a-z ]+)", capsys.readouterr().out, re.MULTILINE)
        return {word: int(number) for number, word in lines if number != "0"}

    return run


def test_merging_is_by_content_and_twice_is_once(tmp_path, merged):
    one = archive(tmp_path / "1.zip", {CELL: cell(), PREDICTIONS: b"p", "bench/a.json": b"{}"})
    assert merged(one) == {"new": 2}
    assert merged(tmp_path) == {"identical": 2}
    assert (tmp_path / "results" / PREDICTIONS).read_bytes() == b"p"
    more = archive(tmp_path / "more.zip", {CELL: cell(trials=20), PREDICTIONS: b"pp"})
    assert merged(more) == {"grown": 1}
    assert (tmp_path / "results" / PREDICTIONS).read_bytes() == b"pp"
    assert merged(one) == {"identical": 1, "kept": 1}
    other = json.loads(cell(trials=30)) | {"weights": {"cifar10/at": "other"}}
    with pytest.raises(AskError, match=rf"conflict: {CELL} is here with other content"):
        merged(archive(tmp_path / "other.zip", {CELL: json.dumps(other).encode()}))
    assert json.loads((tmp_path / "results" / CELL).read_text())["job"]["trials"] == 20


def test_a_conflict_is_named_and_nothing_is_merged_unless_replaced(tmp_path, merged):
    merged(archive(tmp_path / "1.zip", {CELL: cell()}))
    other = {CELL: cell(value=0.6), "paper/calibration/cifar10/at/t.json": b"{}"}
    two = archive(tmp_path / "2.zip", other)
    with pytest.raises(AskError, match=rf"conflict: {CELL} is here with other content; nothing .*--replace"):
        merged(two)
    assert not (tmp_path / "results/paper/calibration").exists()
    assert merged(two, replace=True) == {"new": 1, "replaced": 1}
    assert json.loads((tmp_path / "results" / CELL).read_text())["value"] == 0.6
    with pytest.raises(AskError, match=r"differs from the same file of another archive"):
        merged(tmp_path / "1.zip", two, into="elsewhere")


def test_what_is_merged_is_judged_by_its_content(tmp_path, merged, monkeypatch):
    """Snakemake's note of the fewer trials that were here would have it measured again."""
    monkeypatch.chdir(tmp_path)
    other = CELL.replace("c.json", "d.json")
    merged(archive(tmp_path / "1.zip", {CELL: cell(), other: cell()}))
    grown, same = (notes(Path("results", name)) for name in (CELL, other))
    for note in (grown, same):
        note.parent.mkdir(parents=True, exist_ok=True)
        note.touch()
    assert merged(archive(tmp_path / "2.zip", {CELL: cell(trials=20), other: cell()})) == {"identical": 1, "grown": 1}
    assert same.is_file()
    assert not grown.exists()


def test_tables_are_drawn_anew_rather_than_merged(tmp_path, merged):
    table = "paper/tables/table01.csv"
    merged(archive(tmp_path / "1.zip", {table: b"a"}))
    done = merged(archive(tmp_path / "2.zip", {table: b"b"}))
    assert done == {"drawn here already": 1}
    assert (tmp_path / "results" / table).read_bytes() == b"a"
    assert merged(tmp_path, into="both") == {"new": 1}, "two slices draw what each has seen"


def test_corrupt_archives_are_refused(tmp_path, merged):
    good = archive(tmp_path / "good.zip", {CELL: cell(), PREDICTIONS: bytes(range(256)) * 40}).read_bytes()
    bad = tmp_path / "bad.zip"
    for content in (good[: len(good) // 2], good[:400] + b"####" + good[404:], b"", b"no zip"):
        bad.write_bytes(content)
        with pytest.raises(AskError, match=r"bad\.zip: corrupt .*copy it again"):
            merged(bad)
    for files, sums in (({CELL: b"{}"}, {CELL: "0" * 64}), ({}, {CELL: "0" * 64})):
        with pytest.raises(AskError, match=r"not what the manifest says"):
            merged(archive(bad, files, sums))
    with zipfile.ZipFile(bad, "w") as file:
        file.writestr(CELL, b"{}")
    with pytest.raises(AskError, match=r"corrupt \(KeyError"):
        merged(bad)
    with pytest.raises(AskError, match=r"no such archive"):
        merged(tmp_path / "none.zip")
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    "name",
    [
        "../outside.json",
        "/tmp/outside.json",
        "paper/../../outside.json",
        "paper/cells/../../../outside.json",
        "paper\\cells\\c.json",
        "paper/models/cifar10/at/weights.safetensors",
        "paper/elsewhere/c.json",
        "paper/cells/.hidden/c.json",
        "outside.json",
        "bench/../paper/cells/c.json",
    ],
)
def test_names_that_lead_elsewhere_are_refused(tmp_path, name, merged):
    with pytest.raises(AskError, match=r"refuses '.*', which is no file of a run's evidence"):
        merged(archive(tmp_path / "1.zip", {name: b"{}"}))
    assert not (tmp_path / "results").exists()


def test_evidence_fills_as_many_archives_as_it_needs(home, merged, monkeypatch):
    monkeypatch.setattr(slices, "MOST_BYTES", 60_000)
    demo, out = [Path("config/demo.yaml")], home / "out"
    plan = load(demo)
    for task in plan.of("attack")[:6]:
        task.output.parent.mkdir(parents=True, exist_ok=True)
        task.output.write_text("{}")
        task.output.with_suffix(".npz").write_bytes(os.urandom(20_000))
    unfinished = plan.run.model("digits-vgg", "at") / "history.csv"
    unfinished.parent.mkdir(parents=True)
    unfinished.touch()
    for _ in range(2):
        pack_command(out=out, configfile=demo)
        written = sorted(out.iterdir())
        assert len(written) == 3
    assert all(path.stat().st_size < 60_000 for path in written)
    manifest = json.loads(zipfile.ZipFile(written[0]).read("manifest.json"))
    assert {"run", "slice", "time", "command", "device", "hardware", "versions", "files"} <= set(manifest)
    assert merged(out, into="copy") == {"new": 6}
    assert len([path for path in (home / "copy").rglob("*") if path.is_file()]) == 12
    with pytest.raises(ConfigError, match=r"no slice 'slice-9'"):
        pack_command("slice-9", out=out)
    monkeypatch.setattr(slices, "MOST_ARCHIVES", 2)
    with pytest.raises(AskError, match=r"pack slice by slice"):
        pack_command(out=out, configfile=demo)
    monkeypatch.setattr(slices, "MOST_BYTES", 25_000)
    with pytest.raises(AskError, match=r"\.npz alone exceeds an archive's 25000 bytes"):
        pack_command(out=out, configfile=demo)


# The bundle.


def test_the_bundle_names_what_snakemake_needs_and_leaves_out_what_a_gpu_machine_has():
    names = {pin.partition("==")[0] for pin in bundle.pins("3.12")}
    assert {"snakemake", "pulp", "pydantic-core", "safetensors", "pytest", "hypothesis", "pyautoattack"} <= names
    assert not names & {"torch", "numpy", "pandas", "matplotlib", "scikit-learn", "scipy", "faiss-cpu"}
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in lines if "==" in line}
    assert names <= pinned


def test_data_travels_in_parts_that_come_one_by_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bundle, "PART_BYTES", 50_000)
    monkeypatch.setattr(bundle, "_install", lambda *_: None)
    here = ".".join(map(str, sys.version_info[:2]))
    raw, content = Path("data/raw/mnist"), os.urandom(120_000)
    raw.mkdir(parents=True)
    with pytest.raises(SystemExit, match=r"data/raw/mnist/manifest.json: no such file"):
        bundle.make(Path("out"), here, ["x"], ["mnist"])
    (raw / "manifest.json").write_text("{}")
    (raw / "images").write_bytes(content)
    bundle.make(Path("out"), here, ["x"], ["mnist"])
    parts = sorted(Path("out").glob("mnist-*"))
    assert [part.name for part in parts] == [f"mnist-{n}-of-3.part" for n in (1, 2, 3)]
    shutil.rmtree("data")
    arrived = Path("arrived")
    arrived.mkdir()
    for name in ("bundle.json", "packages-1-of-1.part", parts[1].name):
        shutil.copy(Path("out") / name, arrived)
    assert bundle.unpack(arrived) == [parts[0].name, parts[2].name]
    kept = bundle.SITE / "parts" / parts[1].name
    kept.write_bytes(b"of an earlier bundle")
    (arrived / parts[1].name).unlink()
    assert bundle.unpack(arrived) == [part.name for part in parts]
    shutil.copy(parts[1], kept)
    (arrived / parts[2].name).write_bytes(b"damaged")
    with pytest.raises(SystemExit, match=r"mnist-3-of-3.part: damaged on its way"):
        bundle.unpack(arrived)
    for part in (parts[0], parts[2]):
        shutil.copy(part, arrived)
    assert bundle.unpack(arrived) == []
    assert (raw / "images").read_bytes() == content
    assert bundle.unpack(arrived) == []


# All of it, small.

SMALL = {
    "datasets": {
        name: {"test_images": 10, "training": {"epochs": 1}, "network": {"width": width}}
        for name, width in (("digits-vgg", 0.015625), ("digits-resnet", 0.03125))
    },
    "evaluation": {"steps": 2},
    "slices": {
        "slice-1": {"commands": ["python -c \"open('ran', 'a').write('x')\""]},
        "slice-2": {"artifacts": ["table04"]},
        "slice-3": {"artifacts": ["table08"], "models": ["ask-def"]},
        "slice-4": {"models": ["trades"]},
        "slice-5": {"artifacts": ["table08"], "models": ["at"]},
    },
}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Makes copies of the project with a small rehearsal, whose make targets use this interpreter."""

    def copy(name):
        folder = tmp_path_factory.mktemp("slices") / name
        folder.mkdir()
        for part in ("ask", "config", "rules", "profiles"):
            shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        for part in ("Snakefile", "Makefile", "environment.yml", "pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / part, folder)
        overlay = folder / "config/rehearsal.yaml"
        overlay.write_text(yaml.safe_dump(merge(yaml.safe_load(overlay.read_text()), SMALL)))
        (folder / ".venv").symlink_to(sys.prefix)
        return folder

    return copy


def run_make(folder, *words):
    stamps = [f"-o.venv/.stamp-{name}" for name in ("faiss-cpu", "faiss-gpu", "test")]
    environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["make", *stamps, "RUN=rehearsal", *words], cwd=folder, env=environment, capture_output=True, text=True
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_slices_are_made_within_limits_brought_back_and_shown_without_weights(project, tmp_path):
    there, here = project("a card that is lent"), project("home")
    for _ in range(2):
        status, said = run_make(there, "slice-1")
        assert status == 0, said
    assert (there / "ran").read_text() == "x", "a command that has succeeded is not run again"
    status, said = run_make(there, "slice-2", "MINUTES=0.1", "TRIALS=1")
    assert status == 2
    assert re.search(r"^slice-2: [012] of 3 measurements, more to do|nothing was finished in", said, re.MULTILINE), said
    packs = tmp_path / "packs"
    for place in (2, 3, 4, 5):
        status, said = run_make(there, f"slice-{place}", "TRIALS=1", f"PACK={packs}", "MINUTES=9")
        assert status == 0, said
        assert re.search(rf"^slice-{place}: (\d+) of \1 measurements, finished$", said, re.MULTILINE), said
    assert len(list(packs.glob("*.zip"))) == 4
    for _ in range(2):
        status, said = run_make(here, "merge", f"FROM={packs}")
        assert status == 0, said
    run = here / "results/rehearsal"
    assert (run / "report/index.html").is_file()
    assert (run / "tables/table04.csv").is_file()
    assert "Not measured yet, and left out: AT, AT+SNN, Imagenette." in (run / "tables/table08.md").read_text()
    assert not list(here.rglob("*.safetensors"))
    assert not list(run.glob("index"))
    # Without weights Snakemake would train again; a slice knows that it is finished.
    status, said = run_make(here, "slice-2", "TRIALS=1")
    assert status == 0, said
    assert "Building DAG" not in said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_slice_as_its_deadline_does(home, number):
    """The command that it runs does not outlive it, and what was measured is packed."""
    text = (
        "import sys; from pathlib import Path; from ask import slices\n"
        "command = ['bash', '-c', f'echo $$ > pid; sleep 1; kill -{sys.argv[1]} $PPID; exec sleep 60']\n"
        "slices.make = lambda *_: slices._within(command, float('inf'))\n"
        "slices.slice_command('slice-2', pack=Path('out'))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", text, str(int(number))]
    done = subprocess.run(
        command, env=environment, timeout=60, preexec_fn=lambda: signal.signal(number, signal.SIG_DFL)
    )
    assert done.returncode == 128 + number
    with pytest.raises(ProcessLookupError):
        os.kill(int(Path("pid").read_text()), 0)
    assert list(Path("out").glob("*.zip"))
