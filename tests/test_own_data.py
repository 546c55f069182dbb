"""A user's own images in a run: what is looked at before, what is told, and what goes wrong elsewhere than here."""

import fcntl
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from artifact_jobs import table_job
from own_images import draw
from PIL import Image
from plans import PAPER, ROOT, planned

from ask import cli, files
from ask.config.base import DataSpec
from ask.config.run import ConfigError, load_artifacts, load_run, merge, read_run
from ask.config.training import NetworkSpec
from ask.data.sources import PUBLISHED
from ask.data.trees import fingerprint
from ask.hardware import unverified
from ask.models.networks import build
from ask.paths import Run
from ask.plan.cost import shape_of
from ask.plan.graph import Task
from ask.plan.planner import Plan, plan_run, report_job
from ask.plan.preflight import SIDES, counted, inspect
from ask.plan.tasks import key_of
from ask.plan.why import arrived
from ask.report.evidence import describe, warn
from ask.report.tables import render_table
from ask.steps import LONGEST

BASE = yaml.safe_load((ROOT / "config/config.yaml").read_text())
OWN = {"label": "Mine", "source": "images", "references_per_class": 12}
NETWORK = {"name": "resnet18", "width": 0.125}


def plan_of(overlay, artifacts=("table05",)) -> Plan:
    config = load_run(merge(BASE, {"run": "mine", "artifacts": list(artifacts)} | overlay))
    return plan_run(config, load_artifacts(ROOT / "config/artifacts", config.artifacts), PAPER)


def with_own(path, artifacts=("table05",), **changes) -> Plan:
    """The plan of a run in which own images stand in for what some artifacts ask for."""
    own = OWN | ({"path": str(path)} if path else {}) | changes
    scale = {"dataset": "own", "references_scale": 0.004}
    names = ("mnist", "fashion_mnist", "cifar10", "imagenette")
    return plan_of({"datasets": {"own": own}, "stand_ins": dict.fromkeys(names, scale)}, artifacts)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own images") / "imgs"
    draw(folder, train=12)
    return folder


# What tells that images have changed.


@pytest.mark.parametrize("by", ["times", "content"])
def test_a_fingerprint_is_of_names_sizes_and_times_or_content(images, tmp_path, by):
    folder = shutil.copytree(images, tmp_path / "imgs")
    before, one = fingerprint(folder, by), folder / "train/c0/0.png"
    assert fingerprint(folder, by) == before
    for name in ("train/.DS_Store", "README.txt", "train/notes"):
        (folder / name).touch()
    assert fingerprint(folder, by) == before
    one.rename(one.with_name("z.png"))
    assert fingerprint(folder, by) != before
    one.with_name("z.png").rename(one)
    assert fingerprint(folder, by) == before
    os.utime(one, ns=(0, 1))
    assert (fingerprint(folder, by) == before) == (by == "content")
    one.write_bytes(one.read_bytes()[::-1])
    assert fingerprint(folder, by) != before
    assert fingerprint(tmp_path / "no such folder", by) == ""
    archive = Path(shutil.make_archive(str(tmp_path / "imgs"), "zip", folder))
    packed = fingerprint(archive, by)
    archive.write_bytes(archive.read_bytes() + b"\0")
    assert fingerprint(archive, by) not in ("", packed)


def test_data_of_one_name_and_two_sizes_lie_apart(images):
    first, second = (with_own(images, image_size=size) for size in (8, 16))
    facts = [{task.output for task in plan.of("prepare")} for plan in (first, second)]
    assert len(facts[0] | facts[1]) == 2
    for plan, (output,) in zip((first, second), facts, strict=True):
        assert output.parent.name.startswith("own-")
        assert all(output in task.needs for task in plan.of("attack", "index", "calibrate"))
        assert {task.job.features.data for task in plan.of("attack", "index")} == {output.parent.name[4:]}
    assert not [task for task in planned("lite").of("attack") if "data" in task.document["features"]], "as committed"


def test_a_data_sets_key_is_of_what_it_is_made_from():
    assert key_of("mnist", DataSpec(source="mnist")) == ""
    others = [("mine", "mnist", None), ("mnist", "mnist", 32), ("mnist", "digits", None), ("mnist", "digits", 32)]
    keys = {key_of(name, DataSpec(source=source, image_size=size)) for name, source, size in others}
    assert len(keys) == 4
    assert all(len(key) == 8 for key in keys)


# What is told of them.


def test_only_the_published_data_count_as_the_papers(images):
    assert planned("paper").artifacts["table05"]["comparable"]
    for changes in ({"source": "images", "path": str(images)}, {"image_size": 32}):
        plan = plan_of({"datasets": {"mnist": changes, "fashion_mnist": {}}}, ["figure-raw-clean", "table05"])
        assert not plan.artifacts["table05"]["comparable"]
        assert report_job(plan.config, plan)["configuration"]["stand_ins"] == ["MNIST in place of MNIST"]
        claims = next(task.job for task in plan.of("claims"))
        assert claims["stand_ins"]["mnist"]["dataset"] == "mnist"
        assert plan.artifacts["table05"]["labels"]["mnist"] == "MNIST (in place of the published MNIST)"


def test_a_run_is_not_headed_as_the_papers_unless_it_is(images):
    titles = [report_job(plan.config, plan)["title"] for plan in (planned("paper"), with_own(images), planned("demo"))]
    assert titles[:2] == ["The paper's settings", "Run mine"]
    assert titles[2].startswith("Digits in place")


def test_the_notice_stands_in_every_export(tmp_path):
    run = Run(tmp_path)
    for comparable in (True, False):
        written = render_table(table_job(run) | {"comparable": comparable}, run)
        for path in (path for path in written if path.suffix != ".json"):
            assert ("Not comparable: measured on stand-in data" in path.read_text()) != comparable, path


def test_gradients_that_are_not_finite_are_told(tmp_path):
    cell = {"results": [], "validity": {"zero_gradient_share": 0.0, "non_finite_gradient_share": 0.002}}
    assert ("images with a gradient that is not finite", "0.20%") in describe("a/b/c", cell, Run(tmp_path))["facts"]
    assert warn(["a/b/c"], {"a/b/c": cell})[0].startswith(
        "a/b/c: 0.20% of the images had a gradient that is not finite"
    )
    cell["validity"]["non_finite_gradient_share"] = 0.0
    assert warn(["a/b/c"], {"a/b/c": cell}) == []


def test_data_that_are_not_the_published_files_are_a_reason_to_doubt(tmp_path):
    note = PUBLISHED["cifar10"].image_zip_note
    job = {"cell": {"features": {"dataset": "cifar10", "model": "at", "network": None}}}
    for told, expected in ((note, {"cifar10": note}), ("", {})):
        files.write_json(tmp_path / "prepared/cifar10/facts.json", {"source": "cifar10", "note": told})
        assert unverified(job, tmp_path) == expected
        doubts = warn(["a/b/c"], {"a/b/c": {"results": [], "data": expected}})
        assert doubts == [f"cifar10: {note[:-1]}"] * len(expected)


# What is looked at before a run.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": "no/such/folder"}, r"datasets.own: no/such/folder: no such folder or zip of images; correct `path`"),
        ({"path": None}, r"datasets.own: source `images` needs the path .* set `path`"),
        ({"path": "."}, r"datasets.own: .: no images of split train; expected <split>/<class>/<file>"),
        (
            {"references_per_class": 9999},
            r"references_per_class: 9999 .* class 'c0' has 12 training images; lower .* 12$",
        ),
        (
            {"image_size": 16, "network": NETWORK, "training": {"holdout": 36}},
            r"holdout: 36 images over 3 classes leave none of class 'c0' to train on, which has 12; lower it",
        ),
        (
            {"network": NETWORK},
            r"resnet18 needs square images with a side of at least 16, not 8 x 8; set it, e.g. to 16",
        ),
        (
            {"image_size": 48, "network": {"name": "vgg16"}},
            r"vgg16 needs square images with a side that is a multiple of 32, not 48 x 48; set it, e.g. to 64",
        ),
    ],
)
def test_what_would_end_a_run_later_ends_it_before(images, changes, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    artifacts = ("table03",) if "network" in changes else ("table05",)
    with pytest.raises(ConfigError, match=message):
        inspect(with_own(changes.pop("path", images), artifacts, **{"training": {"holdout": 3}} | changes))


@pytest.mark.parametrize(
    ("artifact", "message"),
    [
        ("table01", r"references_per_class: 10, and DkNN-Atk looks for 15 of each class; raise it, or lower evalu"),
        ("table01", r"references_per_class: 10, and DkNN-Atk looks for 20 of each class; raise it, or lower calib"),
        ("failures", r"references_per_class: 30 references, and failures are told by 50; raise it"),
        ("figure2", r"figure2: it shows a test image of class 9, and own has none; leave it out"),
        ("autoattack", r"evaluation.auto.parts: apgd-t compares 4 classes, own has 3; leave it out"),
    ],
)
def test_too_few_references_or_classes_are_told_before_a_run(images, artifact, message):
    few = {"references_per_class": 10, "image_size": 32, "network": {"name": "vgg16"}, "training": {"holdout": 3}}
    with pytest.raises(ConfigError, match=message):
        inspect(with_own(images, [artifact], **few))


@pytest.mark.parametrize(("part", "fits"), [("apgd-ce", True), ("apgd-dlr", False), ("apgd-t", False)])
def test_parts_of_autoattack_that_compare_more_classes_are_told_before_a_run(tmp_path, part, fits):
    draw(tmp_path / "two", classes=2)
    own = OWN | {"path": str(tmp_path / "two"), "image_size": 32, "references_per_class": 10}
    own |= {"network": {"name": "vgg16"}, "training": {"holdout": 2}}
    overlay = {"datasets": {"own": own}, "stand_ins": {"cifar10": {"dataset": "own"}}, "without": ["imagenette"]}
    overlay |= {"evaluation": {"auto": {"parts": [part]}}}
    plan = plan_of(overlay, ["autoattack"])
    if fits:
        inspect(plan)
    else:
        with pytest.raises(ConfigError, match=rf"{part} compares \d classes, own has 2; leave it out"):
            inspect(plan)
    own["network"] = {"factory": "test_own_networks:net", "layers": {"conv3": "bn1", "conv4": "late"}}
    inspect(plan_of(overlay, ["autoattack"]))  # whose outputs are its own affair


def test_data_of_one_class_are_told_before_a_run(tmp_path):
    draw(tmp_path / "one", classes=1)
    with pytest.raises(ConfigError, match=r"datasets.own: there is one class, 'c0'; classes are the folders below"):
        inspect(with_own(tmp_path / "one"))


def test_every_training_of_a_data_set_is_looked_at(images):
    """Not the first one alone: here only the last holds out more than there is."""
    own = OWN | {"path": str(images), "image_size": 16, "network": NETWORK, "training": {"holdout": 3}}
    overlay = {
        "datasets": {"own": own},
        "stand_ins": {"cifar10": {"dataset": "own", "references_scale": 0.004}},
        "without": ["imagenette"],
    }
    first, *_, last = (task.job.model for task in plan_of(overlay, ["table06"]).of("train"))
    assert first != last
    with pytest.raises(ConfigError, match="holdout: 36 images over 3 classes leave none"):
        inspect(plan_of(overlay | {"models": {last: {"training": {"holdout": 36}}}}, ["table06"]))


def test_a_run_that_can_work_has_nothing_to_remark(images):
    assert inspect(with_own(images)) == []
    assert inspect(with_own(images, ["table03"], image_size=16, network=NETWORK, training={"holdout": 6})) == []
    assert inspect(planned("paper")) == inspect(planned("demo")) == []


def test_evidence_of_own_images_does_not_stand_where_these_may_differ(images, tmp_path, monkeypatch):
    """As in a clone, which has records alone; published data are the same everywhere."""
    for plan, stands in ((with_own(images), False), (planned("raw-pixels"), True)):
        monkeypatch.chdir(tmp_path)
        cell = next(task for task in plan.of("attack") if task.job.attack is None and not task.job.features.network)
        cell.output.parent.mkdir(parents=True)
        cell.output.write_text(json.dumps({"job": cell.document}))
        assert (cell.output in arrived(plan.tasks, plan.run)[0]) == stands


def test_data_that_nothing_shows_are_remarked(images):
    unused = plan_of({"datasets": {"own": OWN | {"path": str(images)}}})
    assert inspect(unused) == ["datasets.own: no artifact shows it; name it in `stand_ins`, or in an artifact of yours"]


def test_each_dknn_has_an_analysis_of_failures_of_its_own(tmp_path):
    table = yaml.safe_load((ROOT / "config/artifacts/failures.yaml").read_text())
    table["rows"] = [{"values": [{"label": f"K = {k}", "group": "failures", "classifier_k": k} for k in (5, 9)]}]
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(table))
    plan = plan_of({}, ["failures", str(tmp_path / "two.yaml")])
    found = {task.output.stem: task.job.cell.classifiers[0].k for task in plan.of("failures")}
    assert found == {
        "failures-ask-cos-L4-K5-e8-s20": 5,
        "failures-ask-cos-L4-K5-e8-s20-cosine-L4-K9": 9,
    }
    assert {path.stem for path in plan.cells_of("two")} == {*found}


def test_a_model_that_is_left_out_is_no_baseline_either():
    plan = plan_of({"without": ["at", "imagenette"]}, ["table06-gain", "table06"])
    assert list(plan.artifacts) == ["table06"]
    assert {task.job.model for task in plan.of("train")} == {"ask-def", "at-snn"}


def test_radii_that_are_rarely_meant_are_remarked():
    plan = plan_of({"evaluation": {"eps": 0.031}}, ["table06"])
    assert any("eps 0.031 is 0.031 of 255" in remark and "write 7.9" in remark for remark in inspect(plan))
    small = dict.fromkeys(("step_size", "ask_eps", "ask_step_size", "eval_eps"), 0.5)
    overlay = {"datasets": {"cifar10": {"training": small}}, "models": {"trades": {"trades": {"eps": 0.03}}}}
    overlay["models"]["ask-def"] = {"training": {"eps": 0.25}}
    places = [f"datasets.cifar10.training.{name}: 0.5" for name in small]
    places += ["models.trades.trades.eps: 0.03", "models.ask-def.training.eps: 0.25"]
    remarks = inspect(plan_of(overlay | {"without": ["imagenette"]}, ["table06", "table13"]))
    assert {remark.split(" is ")[0] for remark in remarks} == {*places}
    assert len(remarks) == len(places)
    steps = {"datasets": {"cifar10": {"training": {"epochs": 30}}}, "without": ["imagenette"]}
    said = "models.at: no milestone of its step schedule comes before epoch 30, its last"
    assert said in inspect(plan_of(steps, ["table06"]))
    with pytest.raises(ConfigError, match=r"evaluation.eps: input should be greater than 0"):
        plan_of({"evaluation": {"eps": 0}})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eps": 0}, "eps = 0, which is no attack; give n of 255 above 0, or `attack: none`"),
        ({"step_size": 0}, "step_size = 0, which is no attack"),
        ({"attack": "pgd", "model": "at", "tau": 0.1}, "tau is ASK-Atk's, not attack 'pgd''s; remove it"),
    ],
)
def test_settings_of_no_attack_are_refused(settings, message, tmp_path):
    table = yaml.safe_load((ROOT / "config/artifacts/table08.yaml").read_text())
    table["settings"] = {"dataset": "cifar10", "model": "raw", "layers": ["input"]} | settings
    if settings.get("model"):
        table["settings"]["metric"], table["settings"]["layers"] = "dnn_robust_accuracy", None
    table |= {"rows": [{"values": [{"label": "a"}]}], "columns": [{"values": [{"label": "b"}]}]}
    (tmp_path / "odd.yaml").write_text(yaml.safe_dump(table))
    with pytest.raises(ConfigError, match=f"^{tmp_path}/odd.yaml: {message}".replace("(", r"\(")):
        plan_of({}, [str(tmp_path / "odd.yaml")])


def test_sides_are_those_that_the_networks_take():
    for name, (least, step) in SIDES.items():
        network = NetworkSpec(name=name, width=0.03125)
        assert build(network, in_channels=1, image_size=least, num_classes=2)
        for side in (least - 1, *([least + 1] if step > 1 else [])):
            with pytest.raises(ValueError, match="side"):
                build(network, in_channels=1, image_size=side, num_classes=2)


def test_own_data_are_counted(images):
    found = counted(DataSpec(source="images", path=str(images)))
    assert found == (1, (8, 8), ("c0", "c1", "c2"), (12, 12, 12), (3, 3, 3))
    shape = shape_of(DataSpec(source="images", path=str(images), image_size=16))
    assert (shape.channels, shape.side, shape.classes, shape.train, shape.test) == (1, 16, 3, 36, 9)


@pytest.mark.parametrize("split", ["train", "test"])
def test_own_data_are_in_colour_if_any_image_is(images, tmp_path, split):
    """As they are prepared, wherever the first image in colour lies."""
    folder = shutil.copytree(images, tmp_path / "imgs")
    Image.new("RGB", (8, 8)).save(sorted((folder / split / "c2").iterdir())[-1])
    assert counted(DataSpec(source="images", path=str(folder))).channels == 3


def test_an_overlay_names_its_run(tmp_path):
    overlay = tmp_path / "mine.yaml"
    overlay.write_text("artifacts: [table05]\n")
    with pytest.raises(ConfigError, match="no overlay names its `run`; add one"):
        read_run([ROOT / "config/config.yaml", overlay])
    overlay.write_text("\ufeffrun: mine\nartifacts: [table05]\n", encoding="utf-8")  # as some editors begin a file
    assert read_run([ROOT / "config/config.yaml", overlay]).run == "mine"


def test_a_run_of_two_overlays_is_not_made_of_one():
    """The second alone would put the paper's run in the place of the committed one's results."""
    base, demo, digits = (ROOT / f"config/{name}.yaml" for name in ("config", "demo", "digits"))
    with pytest.raises(ConfigError, match=r"run digits is made of config/demo\.yaml config/digits\.yaml; give"):
        read_run([base, digits])
    assert read_run([base, demo, digits]).run == "digits"


def test_an_artifact_of_ones_own_is_no_other_runs(tmp_path):
    own = tmp_path / "mine.yaml"
    shutil.copy(ROOT / "config/artifacts/table05.yaml", own)
    both = load_artifacts(ROOT / "config/artifacts", ("table04", str(own)))
    assert sorted(both) == ["mine", "table04"]
    every = load_artifacts(ROOT / "config/artifacts", ("all", str(own)))
    assert every.keys() - load_artifacts(ROOT / "config/artifacts", "all").keys() == {"mine"}
    taken = tmp_path / "table04.yaml"
    shutil.copy(own, taken)
    with pytest.raises(ConfigError, match=r"its name is taken, or no word"):
        load_artifacts(ROOT / "config/artifacts", (str(taken),))
    with pytest.raises(ConfigError, match="no such file"):
        load_artifacts(ROOT / "config/artifacts", (str(tmp_path / "none.yaml"),))


# Jobs that no command line holds.


def test_a_long_job_travels_in_a_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    job = next(task.job for task in planned("demo").of("table") if task.job["id"] == "table05")
    short, long = (Task("table", job | {"caption": words}, Path("x")) for words in ("one", "é" * LONGEST))
    assert short.argument == short.text
    assert long.argument.startswith("@.snakemake/ask-jobs/")
    assert len(long.argument) < 100
    assert cli._document(long.argument) == long.text
    assert cli.main(["table", "--job", long.argument]) == 1
    assert "has not been measured" in capsys.readouterr().err
    files.write_json(tmp_path / "record.json", {"job": job, "command": "python -m ask", "results": []})
    assert json.loads(cli._document(f"@{tmp_path}/record.json")) == job
    assert cli.main(["table", "--job", "@nothing.json"]) == 1
    assert "--job @nothing.json: no readable JSON document" in capsys.readouterr().err


# Parameters of an attack of one's own.


def test_what_an_attack_declares_is_calibrated_before_it_attacks(monkeypatch, tmp_path):
    import torch

    from ask.config.attacks import AdvKnnConfig
    from ask.data import prepare
    from ask.measure.calibrate import run_calibration
    from ask.measure.cells import run_cell
    from ask.measure.place import Place, build_index

    monkeypatch.setattr(AdvKnnConfig, "grid", {"ce_weight": (0.0, 2.0), "steps": (1.0, 2.0)})
    table = yaml.safe_load((ROOT / "config/artifacts/table05.yaml").read_text()) | {
        "settings": {"dataset": "digits", "model": "raw", "similarity": "l2", "attack": "advknn", "eps": 60},
        "rows": [{"values": [{"label": "K = 5"}]}],
        "columns": [{"values": [{"label": "AdvKnn"}]}],
        "paper_table": None,
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(table))
    digits = {"label": "Digits", "source": "digits", "references_per_class": 20, "test_images": 12}
    evaluation = {"max_trials": 1, "steps": 2, "advknn": {"block": {"epochs": 1}}}
    overlay = {"datasets": {"digits": digits}, "evaluation": evaluation, "calibration": {"images": 8}}
    plan = plan_of(overlay, [str(tmp_path / "mine.yaml")])
    (searched,), (cell,) = (task.job for task in plan.of("calibrate")), (task.job for task in plan.of("attack"))
    assert list(searched.grid) == [{"ce_weight": a, "steps": b} for a in (0.0, 2.0) for b in (1.0, 2.0)]
    assert cell.alpha_from == searched.id
    assert (
        plan.run.calibration("digits", "raw", searched.id) in plan.tasks[plan.run.cell("digits", "raw", cell.id)].needs
    )
    place = Place(Run(tmp_path / "run"), tmp_path / "data", torch.device("cpu"))
    prepare(DataSpec(source="digits"), place.data, "digits")
    build_index(next(task.job for task in plan.of("index")), place)
    found = run_calibration(searched, place)
    assert found["picked"] in found["grid"]
    files.write_json(place.run.calibration("digits", "raw", searched.id), found)
    measured, _ = run_cell(cell.model_copy(update={"blocks_from": ()}), place)
    assert measured["setting"] == found["picked"]
    assert isinstance(measured["setting"]["steps"], int)


# Terminals, locales and other users.


def command(*arguments, cwd=ROOT, **environment):
    every = {name: value for name, value in os.environ.items() if not name.startswith("ASK_")}
    every |= {"PYTHONPATH": str(ROOT)} | environment
    return subprocess.run([sys.executable, *arguments], cwd=cwd, env=every, capture_output=True, timeout=300, text=True)


def test_a_reader_that_has_read_enough_is_no_error():
    asked = f"{shlex.quote(sys.executable)} -m ask status --configfile config/lite.yaml"
    line = f"{asked} | head -n 1"
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.stdout.startswith("artifact")
    assert done.stderr == ""
    closed = (
        f"{shlex.quote(sys.executable)} -m ask status --configfile config/lite.yaml | true; echo ${{PIPESTATUS[0]}}"
    )
    done = subprocess.run(["bash", "-c", closed], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert (done.stdout.strip(), done.stderr) in (("141", ""), ("0", "")), "0 where all was said before"


def test_texts_are_utf_8_whatever_the_locale():
    ascii_only = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    done = command("-m", "ask", "status", "--configfile", "config/demo.yaml", **ascii_only)
    assert (done.returncode, done.stderr) == (0, "")
    assert "proposition1" in done.stdout
    for path in (ROOT / "ask").rglob("*.py"):
        assert ".read_text()" not in path.read_text(encoding="utf-8"), f"{path}: name the encoding"
    for path in (ROOT / "Snakefile", ROOT / "environment.yml", *ROOT.glob("rules/*"), *ROOT.glob("profiles/*/*.yaml")):
        assert path.read_text(encoding="utf-8").isascii(), f"{path}: Snakemake reads it in the locale's encoding"


def test_a_mark_that_spreadsheets_put_first_is_not_read(tmp_path):
    for name in ("tables.csv", "claims.csv"):
        text = (ROOT / "config/paper" / name).read_text(encoding="utf-8")
        (tmp_path / name).write_text("\ufeff" + text, encoding="utf-8")
    assert type(PAPER).read(tmp_path) == PAPER


def test_files_are_for_whom_the_user_gives_them_to(tmp_path):
    before = os.umask(0o002)
    try:
        files.write(tmp_path / "weights", lambda part: os.close(os.open(part, os.O_CREAT | os.O_WRONLY, 0o600)))
        with files.locked(tmp_path / "lock"):
            assert (tmp_path / "lock").stat().st_mode & 0o777 == 0o666
    finally:
        os.umask(before)
    assert (tmp_path / "weights").stat().st_mode & 0o777 == 0o664


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user, which only root can")
def test_another_user_can_hold_the_same_lock(tmp_path):
    lock = tmp_path / "lock"
    lock.touch(mode=0o644)
    for folder in (tmp_path, *tmp_path.parents[:-2]):
        folder.chmod(0o755)
    code = (
        "import fcntl, os, pathlib; from ask.files import locked; os.seteuid(65534)\n"
        f"with locked(pathlib.Path({str(lock)!r})): print('held')"
    )
    assert command("-c", code).stdout == "held\n"


def test_what_is_another_users_is_one_sentence(monkeypatch, capsys, tmp_path):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", "data/prepared/mine")

    monkeypatch.setattr(cli, "_parser", lambda name: (__import__("argparse").ArgumentParser(), refuse))
    assert cli.main(["check"]) == 1
    assert capsys.readouterr().err == "ask check: data/prepared/mine: Permission denied; it is another user's\n"


# One training at a time.


def test_a_job_ends_with_the_run_that_started_it(tmp_path):
    """Snakemake cannot stop its jobs when it is killed: they look whether it is there."""
    from ask import worker

    starter = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    waiting = "from ask import worker; worker.settle(); print(flush=True); import time; time.sleep(60)"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "ASK_STARTER": worker.named(starter.pid)}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    job = subprocess.Popen([sys.executable, "-c", waiting], env=environment, **streams)
    job.stdout.readline()
    starter.send_signal(signal.SIGKILL)
    starter.wait()
    began = time.monotonic()
    assert "the run that started this job is gone: ending" in job.communicate(timeout=20)[1]
    assert job.returncode
    assert time.monotonic() - began < 15


def test_a_second_training_of_a_model_waits_for_the_first(tmp_path, monkeypatch):
    import torch

    from ask.config.training import ModelSpec, TrainingSpec, TrainJob
    from ask.measure import train
    from ask.measure.place import Place

    said = []
    place = Place(Run(tmp_path), tmp_path / "data", torch.device("cpu"), log=said.append)
    spec = {"method": ModelSpec(label="AT", base="at"), "training": TrainingSpec(), "seed": 0}
    job = TrainJob(dataset="own", model="at", network=NetworkSpec(**NETWORK), **spec)
    lock = tmp_path / "scratch/own/at.lock"
    monkeypatch.setattr(train, "_train", lambda job, place: said.append("trained"))
    train.train_model(job, place)
    assert said == ["trained"]
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        free = lambda line: (said.append(line), fcntl.flock(held, fcntl.LOCK_UN))  # noqa: E731
        train.train_model(job, Place(place.run, place.data, place.device, log=free))
    assert said[1:] == [f"at: waiting for another training of it to end ({lock})", "trained"]


# All of it at once.


@pytest.mark.slow
def test_a_newcomers_images_go_from_check_to_report(tmp_path):
    """240 images in 3 classes: from another folder, data in a home, a notebook's backend, no UTF-8, a long TMPDIR."""
    draw(tmp_path / "home/imgs", train=60, test=20)
    training = {"epochs": 1, "batch_size": 32, "eps": 10, "steps": 1, "holdout": 9, "augment": "none"}
    own = {"label": "Mine", "source": "images", "path": "~/imgs", "image_size": 16, "references_per_class": 20}
    own |= {"network": {"name": "resnet18", "width": 0.0625}, "training": training}
    overlay = {
        "run": "mine",
        "precision": "float32",
        "data": {"root": "~/askdata"},
        "datasets": {"flowers": own},
        "stand_ins": {"cifar10": {"dataset": "flowers", "eps_scale": 4}},
        "evaluation": {"max_trials": 2, "x_values": {"k": [1, 5]}},
        "calibration": {"images": 10, "tau_cosine": [0.1], "tau_l2": [0.1], "omega": [0.5], "own": [], "extend": 0},
        "artifacts": ["table04", "figure5"],
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(overlay))
    elsewhere = tmp_path / ("a long name " * 12)
    (elsewhere / "out").mkdir(parents=True)
    odd = {
        "HOME": str(tmp_path / "home"),
        "TMPDIR": str(elsewhere),
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    }
    odd |= {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "OMP_NUM_THREADS": "1"}
    odd |= {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
    checked = command("-m", "ask", "check", "config/config.yaml", str(tmp_path / "mine.yaml"), **odd)
    assert (checked.stdout, checked.stderr) == ("mine: 2 models, 5 calibrations, 9 cells\n", "")
    run = ["-m", "snakemake", "-s", str(ROOT / "Snakefile"), "--directory", "out", "--cores", "2"]
    done = command(*run, "--configfile", str(tmp_path / "mine.yaml"), cwd=elsewhere, **odd)
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    assert "Traceback" not in done.stdout + done.stderr
    results = elsewhere / "out/results/mine"
    report, table = (
        (results / name).read_text(encoding="utf-8") for name in ("report/index.html", "tables/table04.md")
    )
    assert "Run mine" in report
    assert "Mine in place of CIFAR-10" in report
    assert "Not comparable" in table
    assert (results / "figures/figure5.svg").is_file()
    assert list((tmp_path / "home/askdata/prepared").glob("flowers-*/facts.json"))
    assert not (elsewhere / "out/~").exists()
