"""The command line: every step is listed, and failures a user can mend are one line."""

import json
import subprocess
import sys

import numpy as np
import pytest

from ask.cli import STEPS, main
from ask.errors import AskError
from ask.hardware import pick_device, versions


def run(capsys, *arguments):
    status = main(arguments)
    return status, capsys.readouterr()


def test_help_lists_every_step():
    done = subprocess.run([sys.executable, "-m", "ask", "--help"], capture_output=True, text=True, check=True)
    assert all(step in done.stdout for step in (*STEPS, "check", "reference"))


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


def test_steps_work_without_snakemake(capsys, tmp_path):
    """From embedded data to an attacked index by hand."""
    data, folder = str(tmp_path / "data"), str(tmp_path / "run")
    spec = json.dumps({"source": "digits"})
    assert run(capsys, "prepare", "--data", data, "--job", spec, "--name", "digits")[0] == 0
    features = {"dataset": "digits", "model": "raw", "network": None}
    job = json.dumps({"features": features, "layer": "input"})
    assert run(capsys, "index", "--run", folder, "--data", data, "--job", job)[0] == 0
    assert np.load(tmp_path / "run/index/digits/raw/input.npy").shape[1] == 64
    assert not list((tmp_path / "run/index/digits/raw").glob(".*")), "no half-written files"


def test_a_gpu_that_is_not_there_is_named(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto").type == "cpu"
    with pytest.raises(AskError, match="torch sees no GPU; use device: auto or cpu"):
        pick_device("cuda")


def test_versions_say_what_computed():
    found = versions()
    assert found["python"].startswith("3.")
    assert found["torch"]
