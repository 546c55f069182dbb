"""The command line: what it offers, that it loads only what it runs, and failures a user can mend are one line."""

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Literal
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from ask import cli, files
from ask.cli import COMMANDS, main, perform
from ask.config.jobs import IndexJob
from ask.errors import AskError
from ask.hardware import pick_device, versions
from ask.measure.place import Place, build_index
from ask.paths import Run
from ask.plan.provenance import fingerprint
from ask.steps import STEPS, modules_of

ROOT = Path(__file__).parent.parent
HEAVY = {"torch", "pandas", "numpy", "scipy", "sklearn", "faiss", "matplotlib", "jinja2"}
GROUPS = ["Steps of the workflow", "Questions about a run", "A run in parts", "Tools"]
RAW = {"dataset": "digits", "model": "raw", "network": None}


def run(capsys, *arguments):
    status = main(arguments)
    return status, capsys.readouterr()


def cold(*arguments):
    """A command in a process of its own, and the modules that it imported."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "ASK_WORKER": ""}
    command = [sys.executable, "-X", "importtime", "-m", "ask", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    imported = set(re.findall(r"^import time:.*\| +(\S+)$", done.stderr, re.MULTILINE))
    messages = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    return done.returncode, done.stdout, messages, imported


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Folder of data with the embedded digits prepared."""
    folder = tmp_path_factory.mktemp("data")
    job = {"dataset": "digits", "spec": {"source": "digits"}}
    assert main(["prepare", "--data", str(folder), "--job", json.dumps(job)]) == 0
    return folder


def test_help_lists_every_command_in_its_group():
    status, shown, _, imported = cold("--help")
    assert status == 0
    assert "ask.cli" in imported
    assert not HEAVY & imported
    assert re.findall(r"^(\S.*):$", shown, re.MULTILINE) == GROUPS
    groups = dict(zip(GROUPS, re.split(r"^\S.*:$", shown, flags=re.MULTILINE)[1:], strict=True))
    listed = {group: re.findall(r"^  (\S+) +\S", text, re.MULTILINE) for group, text in groups.items()}
    assert listed["Steps of the workflow"] == list(STEPS)
    assert listed["Questions about a run"] == ["check", "plan", "status", "why", "repeat"]
    assert listed["A run in parts"] == ["slice", "batch", "pack", "merge", "render"]
    assert listed["Tools"] == ["demo", "bench", "reference"]


@pytest.mark.parametrize("name", ["train", "attack", *COMMANDS])
def test_every_command_explains_itself_and_loads_nothing_heavy(name):
    """Snakemake starts hundreds of commands, and a user waits for each question."""
    status, shown, messages, imported = cold(name, "--help")
    assert status == 0, messages
    assert not HEAVY & imported
    assert f"usage: ask {name}" in shown
    assert (STEPS[name].text if name in STEPS else COMMANDS[name].text) in " ".join(shown.split())


@pytest.mark.parametrize("name", STEPS)
def test_every_step_has_the_same_options(name, capsys):
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    assert end.value.code == 0
    options = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    assert options == {"--help", "--job", "--run", "--data", "--device", "--code", "--mirror", "--cuda-graphs"}


def test_a_job_that_was_planned_with_other_code_is_not_run(tmp_path, capsys):
    """Its record would vouch for code that did not make it."""
    job = '{"features": {"dataset": "digits", "model": "none", "network": null}, "layer": "input"}'
    status, said = run(capsys, "index", "--job", job, "--run", str(tmp_path), "--device", "cpu", "--code", "0" * 16)
    assert status == 1
    assert "the code has changed since this job was planned; start the run again" in said.err


def test_a_step_loads_only_its_own_modules():
    """What fails before it computes has loaded neither another step's module nor the report's libraries."""
    status, _, messages, imported = cold("index", "--job", "{}")
    assert status == 1
    assert "--job: layer: missing; add it" in messages
    assert not {"pandas", "matplotlib", "sklearn", "ask.measure.cells", "ask.report.tables"} & imported


def test_an_unknown_command_is_one_sentence(capsys):
    status, output = run(capsys, "attakc", "--job", "{}")
    assert status == 2
    assert output.err.count("\n") == 1
    assert output.err.startswith("ask: no command 'attakc'; it has download, prepare, train")


def test_without_a_command_the_help_is_shown(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["ask"])
    assert main() == 0
    assert capsys.readouterr().out == cli.usage() + "\n"


@pytest.mark.parametrize("arguments", [(), ("--job",), ("--job", "{}", "--device", "tpu"), ("--job", "{}", "-x")])
def test_a_wrong_option_is_told_with_the_commands_usage(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        main(["attack", *arguments])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("usage: ask attack")
    assert "ask attack: error: " in error.splitlines()[-1]


def test_options_are_a_functions_parameters():
    def function(
        folder: Annotated[Path, "where"],
        names: Annotated[list[str], "which"] = [],  # noqa: B006  # never changed
        *,
        minutes: Annotated[float | None, "at most"] = None,
        device: Literal["cpu", "cuda"] = "cpu",
        overlay: Annotated[list[Path], "files"] = [],  # noqa: B006
        keep_all: Annotated[bool, "nothing goes"] = False,
        json_: bool = False,
    ) -> None: ...

    parser = argparse.ArgumentParser()
    for parameter in cli.inspect.signature(function).parameters.values():
        cli._add(parser, parameter)
    assert vars(parser.parse_args(["here"])) == {
        "folder": Path("here"),
        "names": [],
        "minutes": None,
        "device": "cpu",
        "overlay": [],
        "keep_all": False,
        "json_": False,
    }
    given = ["here", "a", "b", "--minutes", "1.5", "--device", "cuda", "--overlay", "x", "y", "--keep-all", "--json"]
    assert vars(parser.parse_args(given)) == {
        "folder": Path("here"),
        "names": ["a", "b"],
        "minutes": 1.5,
        "device": "cuda",
        "overlay": [Path("x"), Path("y")],
        "keep_all": True,
        "json_": True,
    }


def test_the_rules_give_options_that_commands_have():
    """Snakemake would find out when the job runs, hours later."""
    rules = "".join(path.read_text() for path in sorted((ROOT / "rules").glob("*.smk")))
    commands = re.findall(r'"python -m ask (\S+) ([^"]*)"', re.sub(r'"\n +"', "", rules))
    assert {name for name, _ in commands} >= {"train", "attack", "table", "{params.step}"}
    for name, text in commands:
        parser, _ = cli._parser("attack" if name == "{params.step}" else name)
        wanted = {*re.findall(r"--[a-z-]+", text), *(["--cuda-graphs"] if name == "train" else [])}
        assert wanted <= set(parser._option_string_actions), name
    assert 'graphs=lambda wildcards, threads: "--cuda-graphs"' in rules


def test_a_mistake_in_a_configuration_is_one_line(capsys, tmp_path):
    (tmp_path / "run.yaml").write_text("run: x\ndatasets: {}\nmodels: {}\nevaluation: {eps: 300}\n")
    status, output = run(capsys, "check", str(tmp_path / "run.yaml"))
    assert status == 1
    assert output.err.count("\n") == 1
    assert "evaluation.eps: input should be less than or equal to 255 (got 300)" in output.err


def test_missing_data_is_one_line_that_names_the_file(capsys, tmp_path):
    features = {"dataset": "mnist", "model": "raw", "network": None}
    job = json.dumps({"features": features, "layer": "input"})
    status, output = run(capsys, "index", "--run", str(tmp_path), "--data", str(tmp_path), "--job", job)
    assert status == 1
    assert output.err.count("\n") == 1
    assert "mnist" in output.err


def test_a_missing_cell_is_one_line_that_names_it(capsys, tmp_path):
    entry = {
        "columns": {},
        "cell": {"dataset": "mnist", "model": "raw", "id": "ask-cos"},
        "classifier": {"similarity": "cosine", "layers": ["input"], "k": 5},
        "metric": "dknn_robust_accuracy",
        "paper_mean": None,
        "paper_ci95": None,
    }
    job = {
        "id": "one",
        "title": "t",
        "caption": "c",
        "paper": None,
        "notes": [],
        "row_names": [""],
        "row_headers": [["r"]],
        "column_headers": [["c"]],
        "entries": [{"row": 0, "column": 0, **entry}],
    }
    status, output = run(capsys, "table", "--run", str(tmp_path), "--job", json.dumps(job))
    assert status == 1
    assert "ask-cos" in output.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["study", "--job", "{"], "--job {: no readable JSON document"),
        (["study", "--job", "[1]"], "--job [1]: no readable JSON document"),
        (["study", "--job", '{"id":"x","seed":0,"seeed":1}'], "--job: seeed: unknown option; allowed here: "),
        (["prepare", "--job", '{"dataset":"d2","spec":{"source":"imagess"}}'], "--job: spec.source: input should be"),
        (["repeat", "nope.json"], "nope.json: No such file or directory; name another, or make it first"),
        (["repeat", "docs"], "docs: Is a directory; name another, or make it first"),
        (["repeat", "README.md/cell.json"], "README.md/cell.json: Not a directory; name another, or make it first"),
        (["repeat", "README.md"], "README.md: no record of a cell, results/<run>/cells/<dataset>/<model>/<cell>.json"),
        (["repeat", "config/schema.json"], "config/schema.json: no record of a cell, results/<run>/cells/"),
        (["batch", "nope.json", "--out", "o"], "nope.json: No such file or directory"),
        (["table", "--job", "{}"], "--job: id: missing; add it"),
        (["report", "--job", '{"run":"x"}'], "--job: artifacts: missing; add it"),
    ],
)
def test_a_malformed_job_and_a_missing_file_are_one_line(capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(ROOT)
    status, shown = run(capsys, *arguments)
    assert status == 1
    assert shown.err.startswith(f"ask {arguments[0]}: {message}")
    assert shown.err.count("\n") <= 2


def test_a_calibrations_record_is_no_cells(capsys):
    record = str(next((ROOT / "results/digits/calibration").rglob("*.json")))
    assert run(capsys, "repeat", record)[1].err.startswith(f"ask repeat: {record}: no record of a cell")


def test_weights_that_are_not_there_are_one_line(capsys, data, tmp_path):
    features = RAW | {"model": "at", "network": {"name": "resnet18"}}
    job = json.dumps({"features": features, "layer": "conv4"})
    status, shown = run(capsys, "index", "--run", str(tmp_path), "--data", str(data), "--job", job)
    path = tmp_path / "models/digits/at/weights.safetensors"
    assert (status, shown.err) == (1, f"ask index: no file {path}: run the step that makes it\n")


def test_a_programming_error_is_a_traceback(capsys, monkeypatch):
    for error in (KeyError("x"), TypeError("x"), ValueError("x")):
        monkeypatch.setattr("ask.report.tables.render_table", Mock(side_effect=error))
        with pytest.raises(type(error)):
            main(["table", "--job", "{}"])


def test_steps_work_without_snakemake(capsys, data, tmp_path):
    """From embedded data to an attacked index by hand."""
    job = json.dumps({"features": RAW, "layer": "input"})
    assert run(capsys, "index", "--run", str(tmp_path), "--data", str(data), "--job", job)[0] == 0
    assert np.load(tmp_path / "index/digits/raw/input.npy").shape[1] == 64
    assert not list((tmp_path / "index/digits/raw").glob(".*")), "no half-written files"
    cell = cell_job(trials=1)
    assert run(capsys, "attack", "--run", str(tmp_path), "--data", str(data), "--job", json.dumps(cell))[0] == 0
    record = json.loads((tmp_path / "cells/digits/raw/mine.json").read_text())
    assert record["job"] == cell
    assert record["validity"]["max_linf"] <= 40 / 255 + 1e-6
    assert record["command"] == f"python -m ask attack --run {tmp_path} --job {shlex.quote(json.dumps(cell))}"
    assert record["code"] == fingerprint(modules_of("attack", cell))
    assert {"id", "device", "hardware", "versions", "weights", "usage", "results", "seconds", "setting"} <= set(record)


def cell_job(**changes):
    return {
        "id": "mine",
        "features": RAW,
        "attack": {
            "name": "ask",
            "eps": 40.0,
            "step_size": 4.0,
            "steps": 3,
            "layers": ["input"],
            "k_in": 5,
            "k_out": 5,
            "variant": "non-targeted",
            "random_in_class": False,
            "tau": 0.1,
            "omega": {},
        },
        "similarity": "l2",
        "classifiers": [{"similarity": "l2", "layers": ["input"], "k": 5}],
        "references_per_class": 40,
        "trials": 1,
        "test_images": 20,
        "tau_from": [],
        "omega_from": None,
        "alpha_from": None,
        "blocks_from": [],
        "seed": 0,
    } | changes


def test_a_record_that_is_there_has_its_predictions_beside_it(data, tmp_path, monkeypatch):
    place = Place(run=Run(tmp_path), data=data, device=torch.device("cpu"), code="of the test")
    build_index(IndexJob.model_validate({"features": RAW, "layer": "input"}), place)
    written, whole = [], files.write

    def write(path, fill):
        written.append((path.name, sorted(p.name for p in tmp_path.glob("cells/*/*/*"))))
        return whole(path, fill)

    monkeypatch.setattr(files, "write", write)
    perform("attack", json.dumps(cell_job()), place)
    assert written == [("mine.npz", []), ("mine.json", ["mine.npz"])]
    assert json.loads((tmp_path / "cells/digits/raw/mine.json").read_text())["code"] == "of the test"


def test_a_gpu_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto").type == "cpu"
    with pytest.raises(AskError, match="torch sees no GPU; use device: auto or cpu"):
        pick_device("cuda")


@pytest.mark.parametrize(
    ("said", "status"), [("535.161.08, NVIDIA A100", 0), ("NVIDIA-SMI has failed because it could not communicate", 9)]
)
def test_a_gpu_that_torch_cannot_use_is_no_reason_to_run_on_a_cpu(said, status, monkeypatch, tmp_path):
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\necho '{said}'\nexit {status}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", Mock(side_effect=RuntimeError("The NVIDIA driver is too old\nmore")))
    with pytest.raises(AskError, match=rf"{said}.*The NVIDIA driver is too old; install a driver .*device: cpu"):
        pick_device("auto")
    assert pick_device("cpu").type == "cpu"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert pick_device("auto").type == "cpu"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    tool.write_text("#!/bin/sh\necho No devices were found\nexit 6\n")
    assert pick_device("auto").type == "cpu"


def test_precision_is_the_projects_whatever_the_environment_says():
    code = (
        "import torch; from ask.precision import in_force, settle;"
        "cpu, cuda = torch.device('cpu'), torch.device('cuda');"
        "print(in_force(cuda)['products']); settle(); print(*in_force(cuda).values(), *in_force(cpu).values())"
    )
    environment = os.environ | {"TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ["tf32", "ieee", "tf32", "ieee", "ieee"], done.stderr


def test_versions_say_what_computed():
    found = versions()
    assert found["python"].startswith("3.")
    assert found["torch"]
