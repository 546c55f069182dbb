"""What a stranger would do with committed numbers: measure some of them again, from the weights beside them."""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from plans import ROOT

from ask.cli import main
from ask.errors import AskError
from ask.plan.commands import ALIKE, repeat
from ask.plan.planner import load

CELLS = 3
Draw = Callable[[Path], list[Path]]


@pytest.fixture
def draw() -> Draw:
    """Some records of cells below a folder, drawn at random; the seed is told, and set by ASK_SEED."""
    seed = os.environ.get("ASK_SEED") or str(random.SystemRandom().randrange(10**6))
    print(f"ASK_SEED={seed}")

    def drawn(run: Path) -> list[Path]:
        found = []
        for record in sorted(run.glob("cells/*/*/*.json")):
            job = json.loads(record.read_text())["job"]
            weights = run / "models" / record.parent.relative_to(run / "cells") / "weights.safetensors"
            if "features" in job and weights.is_file():
                found.append(record)
        return random.Random(seed).sample(found, CELLS)

    return drawn


def check(records: list[Path], data: Path, capsys: pytest.CaptureFixture[str], trials: int | None = None) -> None:
    """Bit-equal on the machine's own kind, and nearly so elsewhere."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as they were measured
    try:
        assert repeat(records, data=data, trials=trials) == 0
    finally:
        torch.set_num_threads(threads)
    lines = capsys.readouterr().out.splitlines()[-len(records) :]
    for record, line in zip(records, lines, strict=True):
        made = json.loads(record.read_text())
        alike = "this machine's kind" in line and made["versions"]["torch"] == torch.__version__
        share = float(line.split(": ")[1].split("%")[0]) / 100
        assert share == 1 if alike else share >= ALIKE, line


def test_cells_of_the_digits_are_what_they_were(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    draw: Draw,
) -> None:
    monkeypatch.chdir(ROOT)
    plan = load([Path("config/demo.yaml"), Path("config/digits.yaml")])
    for task in plan.of("prepare"):
        assert main(["prepare", "--job", task.text, "--data", str(tmp_path)]) == 0
    check(draw(ROOT / "results/digits"), tmp_path, capsys)


def test_cells_of_cifar10_are_what_they_were(capsys: pytest.CaptureFixture[str], draw: Draw) -> None:
    if not (ROOT / "data/prepared/cifar10/facts.json").is_file():
        pytest.skip("CIFAR-10 is not here (make it by: snakemake data/prepared/cifar10/facts.json)")
    check(draw(ROOT / "results/lite"), ROOT / "data", capsys, trials=1)


def test_what_cannot_be_repeated_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "digits"
    shutil.copytree(ROOT / "results/digits/cells", run / "cells")
    record = next(path for path in run.glob("cells/*/*/*.json"))
    for trials in (99, 0, -1):
        with pytest.raises(AskError, match=rf"holds \d+ trials; {trials} can't be compared"):
            repeat([record], trials=trials)
    with pytest.raises(AskError, match=r"was measured on weights .*; here are none"):
        repeat([record])
    shutil.copytree(ROOT / "results/digits/models", run / "models")
    with pytest.raises(AskError, match=r"facts\.json is not there; make it by: snakemake "):
        repeat([record], data=tmp_path)


def test_blocks_that_no_one_kept_are_fitted_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """AdvKnn's, for a cell of two layers, by the settings of the cell itself."""
    monkeypatch.chdir(ROOT)
    plan, run = load([Path("config/demo.yaml")]), tmp_path / "run"
    shutil.copytree(ROOT / "results/digits/models", run / "models")
    cell = plan.tasks[plan.run.cell("digits-vgg", "at", "advknn-cos-L34-K5-e51.2-s20")]
    for task in [*plan.of("prepare", "index", "blocks"), cell]:
        if task is cell or task.output in cell.needs:
            where = ["--data", str(tmp_path)] + (["--run", str(run)] if task.name != "prepare" else [])
            assert main([task.name, "--job", task.text, *where]) == 0
    record = run / cell.output.relative_to("results/demo")
    shutil.rmtree(run / "blocks")
    assert repeat([record], data=tmp_path, trials=1) == 0
    assert "100.00% of predictions equal" in capsys.readouterr().out


def test_other_predictions_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Half of the kept predictions are changed: the command says so and fails."""
    import numpy as np

    monkeypatch.chdir(ROOT)
    plan = load([Path("config/demo.yaml"), Path("config/digits.yaml")])
    for task in plan.of("prepare"):
        assert main(["prepare", "--job", task.text, "--data", str(tmp_path)]) == 0
    shutil.copytree(ROOT / "results/digits", tmp_path / "run", ignore=shutil.ignore_patterns("index"))
    record = next(iter(sorted((tmp_path / "run").glob("cells/*/*/*.json"))))
    with np.load(record.with_suffix(".npz")) as stored:
        kept = {name: stored[name] for name in stored}
    kept["robust"][..., ::2] = (kept["robust"][..., ::2] + 1) % 10
    np.savez_compressed(record.with_suffix(".npz"), **kept)
    assert repeat([record], data=tmp_path, trials=1) == 1
    share = float(capsys.readouterr().out.splitlines()[-1].split(": ")[1].split("%")[0])
    assert 60 < share < 90, "clean ones and the network's are as they were"
