"""The DAG: a tiny run from data to report, and what re-runs after an edit."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

ROOT = Path(__file__).parent.parent
PARTS = ("Snakefile", "rules", "ask", "config", "profiles", "environment.yml")
TINY = {
    "run": "tiny",
    "datasets": {
        "digits-tiny": {
            "label": "Digits",
            "source": "digits",
            "image_size": 32,
            "references_per_class": 60,
            "test_images": 40,
            "network": {"name": "vgg16", "width": 0.03125, "dropout": 0},
            "training": {"epochs": 1, "batch_size": 256, "eps": 10, "steps": 1, "holdout": 20, "augment": "none"},
        }
    },
    "evaluation": {"max_trials": 2, "steps": 3},
    "calibration": {"images": 20, "tau_cosine": [0.03, 0.3]},
}
SETTINGS = {"dataset": "digits-tiny", "model": "at", "layers": ["conv4"], "eps": 50, "step_size": 10}
TABLE = {
    "kind": "table",
    "title": "A table",
    "caption": "Of two rows.",
    "category": "attack",
    "settings": SETTINGS,
    "rows": [{"values": [{"label": "K = 5", "k": 5}, {"label": "K = 3", "k": 3}]}],
    "columns": [{"values": [{"label": "ASK-Atk", "attack": "ask"}]}],
}
FIGURE = {
    "kind": "figure",
    "title": "A figure",
    "caption": "Of one line.",
    "category": "attack",
    "settings": SETTINGS,
    "panels": [
        {
            "title": "K",
            "x": {"label": "K", "setting": "k", "values": [3, 5]},
            "lines": {"values": [{"label": "ASK-Atk"}]},
        }
    ],
}
pytestmark = pytest.mark.xdist_group("workflow")  # one run serves all tests of this file


def snakemake(folder, *options, check=True):
    return python(folder, "snakemake", "--configfile", "config/tiny.yaml", *options, check=check)


def python(folder, module, *options, check=True):
    # Rules say `python`: the one that runs this, though its environment is not activated.
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(folder),
        "PATH": "/usr/local/bin:/usr/bin:/bin",
    }
    environment.pop("ASK_DATA_MIRROR", None)
    command = [sys.executable, "-m", module, *options]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    output = done.stdout + done.stderr
    assert not check or done.returncode == 0, output[-5000:]
    return output


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of this project with a tiny configuration, run to its end."""
    folder = tmp_path_factory.mktemp("project with a space")
    for part in PARTS:
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, folder / part)
    for path in (folder / "config/artifacts").glob("*.yaml"):
        path.unlink()
    (folder / "config/artifacts/small.yaml").write_text(yaml.safe_dump(TABLE))
    (folder / "config/artifacts/curve.yaml").write_text(yaml.safe_dump(FIGURE))
    (folder / "config/tiny.yaml").write_text(yaml.safe_dump(TINY))
    snakemake(folder, "--cores", "2")
    return folder


def jobs(folder, *options):
    """How many jobs of each rule a dry run lists."""
    output = snakemake(folder, "--dry-run", *options)
    if "Nothing to be done" in output:
        return {}
    stats = output.split("Job stats:")[1].split("Reasons:")[0]
    found = {m[1]: int(m[2]) for m in re.finditer(r"^(\w+)\s+(\d+)$", stats, re.MULTILINE)}
    return {rule: count for rule, count in found.items() if rule not in ("all", "total")}


@pytest.fixture
def edit(project):
    """Replace text in a file of the project; undone after the test."""
    before = {}

    def replace(name, old, new):
        path = project / name
        before.setdefault(path, path.read_text())
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new, 1))

    yield replace
    for path, text in before.items():
        path.write_text(text)


def test_a_tiny_run_makes_everything(project):
    run = project / "results/tiny"
    cell = json.loads((run / "cells/digits-tiny/at/ask-cos-L4-K5-e50-s3-step10.json").read_text())
    assert cell["validity"]["max_linf"] <= 50 / 255 + 1e-6
    assert len(cell["results"][0]["robust"]["trials"]) == 2
    assert cell["setting"]["tau"]["conv4"] in (0.03, 0.3)
    for suffix in ("csv", "md", "tex", "html"):
        assert (run / f"tables/small.{suffix}").stat().st_size > 0
    for suffix in ("csv", "svg", "png", "pdf"):
        assert (run / f"figures/curve.{suffix}").stat().st_size > 0
    assert "A figure" in (run / "report/index.html").read_text()
    assert not (run / "scratch").exists() or not any((run / "scratch").rglob("*.safetensors"))


def test_a_cell_can_be_made_again_from_its_own_record(project, tmp_path):
    """The command in a cell's record gives the same predictions, bit for bit."""
    name = "cells/digits-tiny/at/ask-cos-L4-K5-e50-s3-step10"
    record = json.loads((project / f"results/tiny/{name}.json").read_text())
    shutil.copytree(project / "results/tiny", tmp_path / "again")
    (tmp_path / f"again/{name}.npz").unlink()
    command = [
        sys.executable,
        "-m",
        "ask",
        "attack",
        "--run",
        str(tmp_path / "again"),
        "--job",
        json.dumps(record["job"]),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(project)}
    subprocess.run(command, cwd=project, check=True, capture_output=True, env=environment)
    again = (tmp_path / f"again/{name}.npz").read_bytes()
    assert again == (project / f"results/tiny/{name}.npz").read_bytes()
    assert "python -m ask attack --run results/tiny --job" in record["command"]


def test_nothing_is_left_to_do(project):
    assert jobs(project) == {}


def test_a_comment_or_docstring_reruns_nothing(project, edit):
    edit("ask/attacks/ask.py", "class ASKAttack(", "# What follows is the attack.\nclass ASKAttack(")
    edit("ask/attacks/ask.py", '"""ASK-Atk (paper', '"""The attack ASK-Atk (paper')
    edit("ask/config/training.py", '"""Images a step."""', '"""Images of one step."""')
    assert jobs(project) == {}


def test_a_change_of_the_attack_reruns_its_cells_and_trains_nothing(project, edit):
    edit("ask/attacks/ask.py", "place < config.k_in", "place <= config.k_in")
    assert jobs(project) == {"calibrate": 1, "attack": 2, "table": 1, "figure": 1, "claims": 1, "report": 1}


def test_a_change_of_figure_code_measures_nothing_again(project, edit):
    edit("ask/report/figures.py", "def render_figure(", "UNUSED = 1\n\n\ndef render_figure(")
    assert jobs(project) == {"figure": 1, "claims": 1, "report": 1}


def test_a_new_classifier_k_reruns_only_the_cell_that_serves_it(project, edit):
    edit("config/artifacts/small.yaml", "label: K = 3", "label: K = 3, 7 of the classifier\n    classifier_k: 7")
    assert jobs(project) == {"attack": 1, "table": 1, "figure": 1, "claims": 1, "report": 1}


def test_a_new_row_adds_its_cell_and_touches_no_other(project, edit):
    edit("config/artifacts/small.yaml", "  - k: 5", "  - {k: 4, label: K = 4}\n  - k: 5")
    assert jobs(project) == {"attack": 1, "table": 1, "claims": 1, "report": 1}


def test_a_changed_seed_reruns_what_depends_on_it(project, edit):
    edit("config/tiny.yaml", "run: tiny", "run: tiny\nseed: 1")
    assert jobs(project) == {
        "train": 1,
        "index": 1,
        "calibrate": 1,
        "attack": 2,
        "table": 1,
        "figure": 1,
        "claims": 1,
        "report": 1,
    }


def ask(folder, *arguments):
    command = [sys.executable, "-m", "ask", *arguments, "--configfile", "config/tiny.yaml"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout


def test_more_trials_measure_what_is_missing(project, tmp_path):
    """2 -> 5 trials: `why`, `plan` and `-n` agree, three are measured, and the two stay; going back costs nothing."""
    folder = tmp_path / "copy"
    shutil.copytree(project, folder, symlinks=True)
    cells = sorted((folder / "results/tiny/cells/digits-tiny/at").glob("*.npz"))
    before = {path: np.load(path)["robust"] for path in cells}
    config = folder / "config/tiny.yaml"
    config.write_text(config.read_text().replace("max_trials: 2", "max_trials: 5"))
    assert jobs(folder) == {"attack": 2, "table": 1, "figure": 1, "claims": 1, "report": 1}
    assert "trials 2 → 5; 3 of 5 trials to measure\n  2 attack" in ask(folder, "why", "small", "curve")
    (stage,) = (
        stage
        for stage in json.loads(ask(folder, "plan", "small", "curve", "--json"))["stages"]
        if stage["stage"] == "attacks"
    )
    assert stage["left"] == 2
    config.write_text(config.read_text().replace("run: tiny", "run: other"))
    (whole,) = (
        stage
        for stage in json.loads(ask(folder, "plan", "small", "curve", "--json"))["stages"]
        if stage["stage"] == "attacks"
    )
    assert stage["flop"] == pytest.approx(0.6 * whole["flop"]), "of three trials in five"
    config.write_text(config.read_text().replace("run: other", "run: tiny"))
    snakemake(folder, "--cores", "2")
    for path, robust in before.items():
        record = json.loads(path.with_suffix(".json").read_text())
        assert record["known"] == 2
        assert np.array_equal(np.load(path)["robust"][:, :2], robust)
        assert len(record["results"][0]["robust"]["trials"]) == 5
    assert jobs(folder) == {}
    assert not (folder / "results/tiny/scratch/cells").exists() or not list(
        (folder / "results/tiny/scratch/cells").rglob("*.npz")
    )
    config.write_text(config.read_text().replace("max_trials: 5", "max_trials: 2"))
    assert "trials 5 → 2; 0 of 2 trials to measure" in ask(folder, "why", "small", "curve")
    snakemake(folder, "--cores", "2")
    for path, robust in before.items():
        assert np.array_equal(np.load(path)["robust"], robust)
        assert json.loads(path.with_suffix(".json").read_text())["known"] == 2


def test_cells_of_fewer_steps_come_after_the_one_whose_ascent_passes_through_them(project, tmp_path):
    """They are measured with it if it is made at all; what there is stays as it is."""
    folder = tmp_path / "copy"
    shutil.copytree(project, folder, symlinks=True)
    small = folder / "config/artifacts/small.yaml"
    rows = "".join(f"  - {{k: 5, steps: {steps}, label: After {steps}}}\n" for steps in (2, 6))
    small.write_text(small.read_text().replace("  - k: 5", f"{rows}  - k: 5"))
    cells = folder / "results/tiny/cells/digits-tiny/at"
    few, known, most = (cells / f"ask-cos-L4-K5-e50-s{steps}-step10.json" for steps in (2, 3, 6))
    before = {path: path.stat().st_mtime_ns for path in cells.glob("*.*")}
    assert known in before
    assert jobs(folder, str(few.relative_to(folder))) == {"attack": 1}

    def waits():
        output = snakemake(folder, "--dry-run")
        return most.name in re.search(rf"input: (.*)\n +output: .*{few.name}", output)[1]

    assert waits()
    log = folder / "results/tiny/logs" / most.relative_to(folder / "results/tiny").with_suffix(".log")
    log.touch()
    assert not waits(), "for one that has failed"
    log.unlink()
    snakemake(folder, "--cores", "2")
    record = json.loads(few.read_text())
    assert record["known"] == 2
    assert {row["passed_by"] for row in record["by_trial"]} == {most.stem}
    assert all(path.stat().st_mtime_ns == changed for path, changed in before.items()), "a cell was made again"
    assert jobs(folder) == {}


def test_a_part_that_came_from_elsewhere_goes_on_with_what_is_missing(project, tmp_path):
    """Weights and records, as from git, are not made again, though data and indexes are; on other weights all are."""

    def clone(name):
        folder = tmp_path / name
        shutil.copytree(project, folder, copy_function=shutil.copy)  # all times are of now
        for part in (".snakemake", "data", *(f"results/tiny/{one}" for one in ("index", "scratch", "logs"))):
            shutil.rmtree(folder / part)
        (folder / "results/tiny/models/digits-tiny/at/last.safetensors").unlink()
        small = folder / "config/artifacts/small.yaml"
        small.write_text(small.read_text().replace("  - k: 5", "  - {k: 2, label: K = 2}\n  - k: 5"))
        return folder

    folder = clone("clone")
    kept = [folder / "results/tiny" / part for part in ("models", "cells", "calibration")]
    kept = [path for part in kept for path in part.rglob("*.*")]
    before = {path: path.stat().st_mtime_ns for path in kept}
    assert len(before) > 6
    todo = jobs(folder)
    made = {step for step in todo if step in ("prepare", "train", "index", "calibrate", "attack")}
    assert made == {"prepare", "index", "attack"}
    assert todo["attack"] == 1
    one = next(path for path in kept if path.match("cells/*/at/*-K5-*.json"))
    forced = jobs(folder, str(one.relative_to(folder)), "--force")
    assert (forced["attack"], "train" in forced, "calibrate" in forced) == (1, False, False)
    snakemake(folder, "--cores", "2")
    assert all(path.stat().st_mtime_ns == changed for path, changed in before.items()), "made again"
    assert jobs(folder) == {}
    other = clone("other")
    with (other / "results/tiny/models/digits-tiny/at/weights.safetensors").open("ab") as file:
        file.write(b" ")
    assert jobs(other)["attack"] == 3
    longer = clone("longer")
    tiny = longer / "config/tiny.yaml"
    tiny.write_text(tiny.read_text().replace("epochs: 1", "epochs: 2"))
    todo = jobs(longer)
    assert (todo["train"], todo["attack"]) == (1, 3), "evidence of other settings is no evidence"
    assert "measured with other settings: training.epochs 1 → 2" in python(
        longer, "ask", "why", "small", "--configfile", "config/tiny.yaml"
    )
    tiny.write_text(tiny.read_text().replace("epochs: 2", "epochs: 1"))
    assert "train" not in jobs(longer), "of today's settings again"
    assert "train" not in jobs(longer, "--forcerun", "attack")
    assert jobs(longer, "--forcerun", "train")["train"] == 1
    forced = jobs(longer, "--forcerun", f"./{one.relative_to(folder)}")
    assert (forced["attack"], "train" in forced) == (2, False), "that one, and the one that is missing"


def test_batches_make_what_is_left_and_a_local_run_measures_nothing_again(project, tmp_path):
    """New cells alone go to a batch; one that fails takes no other along, and its tables wait; nothing is repeated."""
    folder, batched = tmp_path / "copy", ("--resources", "batches=4")
    shutil.copytree(project, folder, symlinks=True)
    assert jobs(folder, *batched) == {}
    small, broken = folder / "config/artifacts/small.yaml", folder / "pyautoattack/__init__.py"
    broken.parent.mkdir()
    broken.write_text("raise ImportError('a package that is not there')\n")
    before = {path: path.stat().st_mtime_ns for path in (folder / "results/tiny/cells").rglob("*.*")}
    whole = small.read_text().replace("  - k: 5", "  - {k: 4, label: K = 4}\n  - k: 5")
    small.write_text(whole.replace("  - attack: ask", "  - {attack: autoattack, label: AutoAttack}\n  - attack: ask"))
    assert jobs(folder, *batched) == {"batch": 1, "table": 1, "claims": 1, "report": 1}
    (spec,) = (folder / "results/tiny/scratch/batches").glob("*[0-9].json")
    members = json.loads(spec.read_text())["targets"]
    assert sorted(Path(one).stem for one in members) == ["ask-cos-L4-K4-e50-s3-step10", "autoattack-e50"]
    manifest = spec.with_suffix(".done")
    output = python(folder, "ask", "batch", str(spec), "--out", str(manifest), check=False)
    assert "AutoAttack and Square need a package: pip install pyautoattack" in output
    assert [(folder / member).is_file() for member in sorted(members)] == [True, False]
    assert not manifest.exists(), "tables would be drawn without the cell that failed"
    assert jobs(folder) == {"attack": 1, "table": 1, "claims": 1, "report": 1}
    small.write_text(whole.replace("  - k: 5", "  - {k: 2, label: K = 2}\n  - k: 5"))
    for path in spec.parent.glob("*"):
        path.unlink()
    output = snakemake(folder, "--dry-run", *batched)
    (spec,) = spec.parent.glob("*[0-9].json")
    assert f"Batch {spec.stem}, 1 attack: results/tiny/cells/digits-tiny/at/ask-cos-L4-K2-e50-s3-step10.json" in output
    python(folder, "ask", "batch", str(spec), "--out", str(manifest))
    assert json.loads(manifest.read_text())["members"] == 1
    assert jobs(folder) == {"table": 1, "claims": 1, "report": 1}
    small.write_text(small.read_text().replace("k: 2, label: K = 2", "k: 1, label: K = 1"))
    one_model = jobs(folder, "results/tiny/scratch/digits-tiny/at.done", *batched)
    assert one_model == {"batch": 1, "model": 1}, "its cells are the batch's"
    assert all(path.stat().st_mtime_ns == changed for path, changed in before.items()), "a cell was made again"


def test_a_mistake_ends_before_any_job_with_one_message(project, edit):
    unknown = snakemake(project, "--dry-run", "results/tiny/index/cifar10/at/conv4.npy", check=False)
    assert "conv4.npy is not part of this run: no artifact of it needs this file" in unknown
    edit("config/artifacts/small.yaml", "- conv4", "- conv6")
    output = snakemake(project, "--dry-run", check=False)
    assert "small.yaml: model 'at' has no layer 'conv6'; choose from conv1" in output
    assert "Traceback" not in output
    assert "Job stats" not in output


def test_parsing_imports_nothing_heavy():
    """Every cluster job parses the Snakefile again."""
    rules = "".join(path.read_text() for path in [ROOT / "Snakefile", *(ROOT / "rules").glob("*.smk")])
    modules = {"ask.cli", *re.findall(r"^(?:from|import) (ask\S*)", rules, re.MULTILINE)}
    assert {"ask.config.run", "ask.plan.planner", "ask.plan.why", "ask.worker"} <= modules
    heavy = {"torch", "faiss", "pandas", "matplotlib", "numpy", "scipy", "sklearn", "jinja2"}
    code = f"import sys, {', '.join(sorted(modules))}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_snakemake_still_has_the_limiter_that_local_runs_switch_off():
    """Where it goes, the line in the Snakefile goes too."""
    from snakemake.scheduling.job_scheduler import JobScheduler

    assert "job_rate_limiter" in JobScheduler.job_selector.__code__.co_names
    assert "job_rate_limiter = None" in (ROOT / "Snakefile").read_text()
