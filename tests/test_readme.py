"""What the README says works as written."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ask.config import load_artifacts, load_run, merge
from ask.experiments import plan_run

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_library_example_runs_and_attacks():
    (code,) = blocks("python")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    clean, robust = map(float, re.match(r"clean (\S+), robust (\S+)", done.stdout).groups())
    assert clean > 0.9
    assert robust < clean - 0.3


def test_own_data_configuration_is_valid():
    (text,) = blocks("yaml")
    raw = merge(yaml.safe_load((ROOT / "config/config.yaml").read_text()), yaml.safe_load(text))
    config = load_run(raw)
    plan = plan_run(config, load_artifacts(ROOT / "config/artifacts", config.artifacts))
    assert set(plan.data) == {"flowers"}


@pytest.mark.parametrize("target", re.findall(r"\]\(([^)#]+)\)", README))
def test_links_lead_somewhere(target):
    assert (ROOT / target).exists(), target
