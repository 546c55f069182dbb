"""Networks of one's own: the documented examples as they stand, what re-runs, what is refused and with which words."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import SET_UP
from PIL import Image
from safetensors.torch import save_file
from test_workflow import PARTS, ROOT

from ask.cli import main
from ask.config.run import ConfigError, load_artifacts, load_run, merge
from ask.config.training import NetworkSpec, OwnModule
from ask.models.own import OwnModelError, make
from ask.plan.cost import costs
from ask.plan.planner import load, plan_run

PAGE = (ROOT / "docs/how-to/own-model.md").read_text()
YAML = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
MY_MODELS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[-1]
TABLE = "results/own/tables/own-models.csv"
pytestmark = pytest.mark.xdist_group("own models")


def eval_page() -> dict[str, Any]:
    """What the page's my_models.py defines."""
    names: dict[str, Any] = {}
    exec(MY_MODELS, names)  # noqa: S102
    return names


def run(folder: Path, *command: str, check: bool = True) -> str:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{folder}:{SET_UP}", "PATH": path}
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )
    assert not check or done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    return done.stdout + done.stderr


def snakemake(folder: Path, *options: str) -> str:
    return run(folder, "snakemake", *options, "--cores", "2", "--configfile", "config/own.yaml")


def write_photos(folder: Path) -> None:
    """Three classes that differ in colour: 15 training and 4 test images each."""
    generator = np.random.default_rng(0)
    for label, name in enumerate(("ash", "beech", "cedar")):
        for split, count in (("train", 15), ("test", 4)):
            place = folder / split / name
            place.mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 200, (40, 48, 3))
                pixels[..., label] += 55
                Image.fromarray(pixels.astype(np.uint8)).save(place / f"{number}.png")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with the page's files, and weights in three kinds of files; run to its end."""
    if find_spec("timm") is None:
        pytest.skip("needs timm: make test installs it")
    folder = tmp_path_factory.mktemp("project")
    for part in PARTS:
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, folder / part)
    (folder / "config/own.yaml").write_text(YAML[0])
    (folder / "config/own-models.yaml").write_text(YAML[1])
    (folder / "my_models.py").write_text(MY_MODELS)
    write_photos(folder / "data/photos")
    for name, model in yaml.safe_load(YAML[0])["models"].items():
        spec = NetworkSpec(**{key: value for key, value in model.items() if key in OwnModule.model_fields})
        torch.manual_seed(1)
        state = (eval_page()["wide_resnet"](**spec.options) if name == "wrn" else make(spec)).state_dict()
        if name == "vit":
            save_file(state, folder / model["weights"])
        else:
            wrapped = {f"module.{key}": value for key, value in state.items()}
            torch.save({"epoch": 3, "state_dict": wrapped} if name == "wrn" else state, folder / model["weights"])
    snakemake(folder)
    return folder


def test_three_networks_trained_elsewhere_and_one_trained_here_are_attacked(project: Path) -> None:
    with (project / TABLE).open() as file:
        rows = list(csv.DictReader(file))
    assert [row["model"] for row in rows] == ["resnet50", "resnet50", "vit", "vit", "wrn", "wrn", "at", "at"]
    assert {row["dknn_layers"] for row in rows} == {"conv3+conv4", "middle+late", "conv4", ""}
    cell = json.loads((project / "results/own/cells/photos/vit/ask-cos-Lmiddle+late-K3-e8-s3.json").read_text())
    assert cell["validity"]["max_linf"] == pytest.approx(8 / 255, abs=1e-6)
    assert cell["job"]["features"]["network"]["layers"] == {"middle": "blocks.5", "late": "blocks.8"}
    assert "my_models:wide_resnet" in (project / "results/own/report/own-models.html").read_text()
    for model, folded in (("resnet50", 53), ("vit", 0), ("wrn", 4)):
        record = yaml.safe_load((project / f"results/own/models/photos/{model}/config.yaml").read_text())
        assert record["folded"] == folded


def waiting(folder: Path) -> dict[str, int]:
    """Jobs that a dry run would run for the table, by rule."""
    output = snakemake(folder, TABLE, "--dry-run")
    found = re.findall(r"^(\w+)\s+(\d+)$", output.split("Job stats:")[-1].split("Reasons:")[0], re.MULTILINE)
    return {rule: int(count) for rule, count in found if rule != "total"} if "Job stats:" in output else {}


def test_touched_files_and_unread_names_re_run_nothing(project: Path) -> None:
    overlay, weights = project / "config/own.yaml", project / "data/wrn.pt"
    os.utime(weights)
    os.utime(project / "my_models.py")
    overlay.write_text(YAML[0].replace("late: blocks.8}", "late: blocks.8, last: norm}"))
    (project / "my_models.py").write_text("# A comment\n" + MY_MODELS)
    assert waiting(project) == {}
    overlay.write_text(YAML[0])


def test_other_weights_and_other_code_re_run_what_reads_them(project: Path) -> None:
    weights, mine = project / "data/wrn.pt", project / "my_models.py"
    before, state = weights.read_bytes(), torch.load(weights, weights_only=True)
    state["state_dict"]["module.fc.bias"] += 1
    torch.save(state, weights)
    found = waiting(project)
    assert found == {"adopt": 1, "index": 1, "calibrate": 1, "attack": 2, "table": 1}
    weights.write_bytes(before)
    assert waiting(project) == {}
    mine.write_text(MY_MODELS.replace("F.relu(self.bn1(out)), 8", "F.relu(self.bn1(out)) * 2, 8"))
    assert waiting(project) == {"adopt": 1, "train": 1, "index": 2, "calibrate": 2, "attack": 4, "table": 1}
    mine.write_text(MY_MODELS)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("data/wrn.pt", "data/none.pt", r"models\.wrn\.weights: no file data/none\.pt; mend the path"),
        ("data/wrn.pt", "data/resnet50.pt", r"resnet50\.pt does not fit my_models:wide_resnet: .* Missing key"),
        ("data/wrn.pt", "my_models.py", r"my_models\.py is no file of tensors alone"),
        ("width: 2", "width: 1", r"wrn\.pt does not fit my_models:wide_resnet: .* Unexpected key.* size mismatch"),
        ("width: 2", "widht: 2", r"my_models:wide_resnet fails with options .*unexpected keyword"),
        ("middle: blocks.5", "middle: block.5", r"layer middle: no submodule 'block\.5'; it consists of patch_embed"),
        (
            "middle: blocks.5",
            "midle: blocks.5",
            r"own-models\.yaml: model 'vit' has no layer 'middle'; choose from mid",
        ),
        ("timm:create_model", "tim:create_model", r"models\.vit\.factory: no module 'tim'"),
        ("timm:create_model", "timm:make_model", r"factory timm:make_model: timm has no 'make_model'"),
        ("conv4: block3}\n    training", "late: block3}\n    training", r"model 'at' has no layer 'conv4'"),
        ("std: [0.5, 0.5, 0.5]", "std: [0.5]", r"models\.vit: .*mean and std belong together"),
        ("{num_classes: 3}", "{num_classes: 2}", r"returns \(2, 2\) .* give the number of classes in `options`"),
    ],
)
def test_check_names_mistakes_before_anything_runs(
    project: Path,
    old: str,
    new: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert YAML[0].count(old) >= 1
    (project / "config/wrong.yaml").write_text(YAML[0].replace(old, new))
    monkeypatch.chdir(project)
    monkeypatch.syspath_prepend(project)
    monkeypatch.delitem(sys.modules, "my_models", raising=False)
    assert main(["check", "config/wrong.yaml"]) == 1
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize("text", [b"def make(:\n", b"x = '\xff'\n", b"x = '\0'\n"])
def test_a_file_that_is_no_python_is_named(text: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "odd_models.py").write_bytes(text)
    network = {"name": None, "factory": "odd_models:make"}
    raw = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    config = load_run(merge(raw, {"datasets": {"cifar10": {"network": network}}}))
    place = rf"table01\.yaml: datasets\.cifar10\.network\.factory: {tmp_path}/odd_models\.py: .*; mend it"
    with pytest.raises(ConfigError, match=place) as told:
        plan_run(config, load_artifacts(ROOT / "config/artifacts", ["table01"]))
    assert "<unknown>" not in str(told.value)


def test_check_and_plan_count(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project)
    monkeypatch.syspath_prepend(project)
    assert main(["check", "config/own.yaml"]) == 0
    assert "own: 4 models" in capsys.readouterr().out
    for cost in costs(plan := load([Path("config/own.yaml")])).values():
        assert not cost.unknown
    assert all(costs(plan)[task.output].flop > 1e6 for task in plan.of("train", "index", "calibrate", "attack"))

    def fail(*_: object) -> None:
        raise OwnModelError("it looks at values")

    monkeypatch.setattr("ask.models.own.count", fail)
    assert main(["plan", "own-models", "--configfile", "config/own.yaml"]) == 0
    assert re.search(r"Not counted: \d+ jobs \(it looks at values\)", capsys.readouterr().out)
