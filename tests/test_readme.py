"""What the README says works as written."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import SET_UP

from ask.config.run import load_artifacts, load_run, merge
from ask.plan.planner import plan_run

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def code_of(example):
    """The file without its docstring."""
    text = example.read_text()
    docstring = ast.parse(text).body[0]
    return "".join(text.splitlines(keepends=True)[docstring.end_lineno :]).lstrip("\n")


def test_the_library_is_shown_by_an_example_as_it_is():
    (shown,) = blocks("python")
    assert shown in map(code_of, EXAMPLES)
    assert all(f"examples/{example.name}" in README for example in EXAMPLES)


def test_it_stays_short():
    assert len(README.splitlines()) <= 95


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs_and_attacks(example, tmp_path):
    done = subprocess.run(
        [sys.executable, example],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{SET_UP}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    clean, robust = map(float, re.fullmatch(r"clean (\S+), robust (\S+)\n", done.stdout).groups())
    assert clean > 0.9
    assert robust < clean - 0.3


def test_own_data_configuration_is_valid():
    (text,) = blocks("yaml")
    raw = merge(yaml.safe_load((ROOT / "config/config.yaml").read_text()), yaml.safe_load(text))
    config = load_run(raw)
    plan = plan_run(config, load_artifacts(ROOT / "config/artifacts", config.artifacts))
    assert {task.job.dataset for task in plan.of("prepare")} == {"flowers"}


@pytest.mark.parametrize("target", re.findall(r"\]\(([^)#]+)\)", README))
def test_links_lead_somewhere(target):
    assert (ROOT / target).exists(), target
