"""Code fingerprints: they change with behaviour, and only for the steps that it concerns."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ask.hardware import commit
from ask.plan import provenance
from ask.steps import STEPS, modules_of

PACKAGE = provenance.PACKAGE
ATTACK = {"attack": {"name": "ask"}}


@pytest.fixture
def package(tmp_path):
    copy = tmp_path / "ask"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def fingerprints(package):
    provenance.read.cache_clear()
    provenance.fingerprint.cache_clear()
    found = {step: provenance.fingerprint(modules_of(step, {}), package) for step in STEPS}
    return found | {"ask attack": provenance.fingerprint(modules_of("attack", ATTACK), package)}


def changed_steps(package, edit):
    before = fingerprints(package)
    edit()
    after = fingerprints(package)
    return {step for step in before if before[step] != after[step]}


def replace(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


ANALYSES = {"blocks", "example", "failures", "plane", "timing"}


@pytest.mark.parametrize(
    ("module", "old", "new", "steps"),
    [
        ("attacks/ask.py", "class ASKAttack(", "# a comment\nclass ASKAttack(", set()),
        ("attacks/ask.py", '"""ASK-Atk (paper', '"""The attack (paper', set()),
        ("attacks/ask.py", "ids = search.rows(", "ids = (\n    search.rows)(", set()),
        ("attacks/ask.py", "place < config.k_in", "place <= config.k_in", {"ask attack", "plane"}),
        ("losses/ask.py", ".logsumexp(1) - own", ".logsumexp(1) - 2 * own", {"ask attack", "plane"}),
        ("config/jobs.py", "confidence_k: int = 50", "confidence_k: int = 60", set()),  # it stands in the job
        (
            "report/figures.py",
            "def render_figure(",
            "def also_render():\n    return 1\n\n\ndef render_figure(",
            {"figure"},
        ),
        ("knn/search.py", "beta=-0.5", "beta=-0.25", {"calibrate", "attack", "ask attack"} | ANALYSES),
        ("attacks/dknn_atk.py", ".sigmoid(", ".tanh(", set()),
        ("attacks/advknn.py", "nesterov=config.momentum > 0", "nesterov=False", {"blocks"}),
        ("measure/failures.py", "> ABOVE", ">= ABOVE", {"failures"}),
        ("attacks/pgd.py", 'reduction="none"', 'reduction="sum"', {"train", "plane"}),
        ("config/run.py", "class ConfigError(AskError)", "class ConfigError(Exception)", set()),
        ("hardware.py", "timeout=10", "timeout=9", set()),
    ],
)
def test_an_edit_concerns_the_steps_that_it_can_change(package, module, old, new, steps):
    assert changed_steps(package, lambda: replace(package / module, old, new)) == steps


NEW_ATTACK = '''class AwayConfig(AttackConfig):
    """Settings of a new attack."""

    home: ClassVar[str] = "ask.attacks.away"
    name: Literal["away"] = "away"
    layers: tuple[str, ...]


'''
NEW_JOB = '''

class SpreadJob(Spec):
    """A new analysis."""

    id: str
    features: FeatureSpec
'''
NEW_STEP = '"spread": Step("analyses", "ask.measure.spread:measure", jobs.SpreadJob, "Measure the spread."),'


def test_a_new_attack_and_a_new_analysis_run_nothing_again(package):
    """Neither the jobs nor their code change, in a plan with all that there is so far."""
    (package.parent / "config").symlink_to(Path(__file__).parent.parent / "config")
    program = """if True:
        import json, pathlib
        from ask.plan.planner import load
        from ask.steps import STEPS, modules_of
        tasks = load([pathlib.Path("config/demo.yaml")]).tasks
        new = modules_of("attack", {"attack": {"name": "away"}}) if "spread" in STEPS else ()
        print(json.dumps({"jobs": {str(path): [task.text, task.code] for path, task in tasks.items()}, "new": new}))
    """

    def planned():
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=package.parent,
            env=os.environ | {"PYTHONPATH": str(package.parent)},
            capture_output=True,
            text=True,
            check=True,
        )
        return json.loads(done.stdout)

    before = planned()
    replace(
        package / "config/attacks.py",
        "Attack = Annotated[\n    ",
        f"{NEW_ATTACK}Attack = Annotated[\n    AwayConfig | ",
    )
    (package / "attacks/away.py").write_text("from ask.attacks import linf\n")
    with (package / "config/jobs.py").open("a") as file:
        file.write(NEW_JOB)
    (package / "measure/spread.py").write_text("def measure(job, place):\n    return {}\n")
    replace(
        package / "steps.py", "STEPS: Mapping[str, Step] = {\n", f"STEPS: Mapping[str, Step] = {{\n    {NEW_STEP}\n"
    )
    after = planned()
    assert len(before["jobs"]) > 400
    assert after["jobs"] == before["jobs"]
    assert after["new"] == ["ask.measure.cells", "ask.attacks.away"]


def test_a_template_of_the_report_is_code(package):
    template = next((package / "report/templates").glob("*.css"))
    assert changed_steps(package, lambda: template.write_text(template.read_text() + "\n")) == {"report"}


def test_imports_are_followed_into_functions_but_not_for_type_checkers(tmp_path):
    package = tmp_path / "pack"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "a.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from pack.c import x\n"
        "def f():\n    from pack import b\n"
    )
    (package / "b.py").write_text("import pack.d\n")
    for name in "cd":
        (package / f"{name}.py").write_text("x = 1\n")
    assert provenance.closure(["pack.a"], package) == {"pack.a", "pack.b", "pack.d"}


def test_relative_imports_are_followed(tmp_path):
    """As packages of one's own networks have them, from a module, a package and a package below."""
    for path, text in {
        "nets/__init__.py": "from .model import net\n",
        "nets/model.py": "from .parts import shared\nfrom . import blocks\n",
        "nets/blocks.py": "",
        "nets/parts/__init__.py": "",
        "nets/parts/shared.py": "from ..blocks import Block\nfrom ..pooling import Pool\n",
        "nets/pooling.py": "",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    names = {"nets.model", "nets.blocks", "nets.pooling", "nets.parts.shared"}
    assert provenance.closure(("nets",), tmp_path / "nets") >= names
    assert provenance.closure(("nets.parts.shared",), tmp_path / "nets") >= {"nets.blocks", "nets.pooling"}


def test_steps_depend_on_what_they_run():
    """Lazily exporting packages hide what stands behind them, so inside the package their modules are named."""
    attack = provenance.closure(modules_of("attack", ATTACK))
    assert {
        "ask.attacks.ask",
        "ask.attacks.linf",
        "ask.losses.ask",
        "ask.knn.search",
        "ask.models.networks",
        "ask.data.arrays",
    } <= attack
    assert {"ask.attacks.linf", "ask.models.networks", "ask.training.methods"} <= provenance.closure(
        modules_of("train", {})
    )
    assert not any(name.startswith(("ask.report", "ask.config.run", "ask.training")) for name in attack)
    claims = provenance.closure(modules_of("claims", {}))
    assert "ask.config.claims" in claims, "how claims are judged stands in no job"
    for step in ("table", "figure", "report"):
        assert not any(
            name.startswith(("ask.attacks", "ask.models.networks", "ask.knn.search"))
            for name in provenance.closure(modules_of(step, {}))
        )


def test_a_commit_is_marked_for_changed_code_and_not_for_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run changes results that lie in the repository, of which its code knows nothing."""
    for name in ("ask/code.py", "config/config.yaml", "results/lite/precision.json"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("1\n")
    who = ("-c", "user.name=A", "-c", "user.email=a@example.org")
    for command in (("init", "-q"), ("add", "."), (*who, "commit", "-qm", "all")):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    monkeypatch.setattr("ask.hardware.__file__", str(tmp_path / "ask/code.py"))
    clean = commit()["commit"]
    assert re.fullmatch("[0-9a-f]{12}", clean)
    (tmp_path / "results/lite/precision.json").write_text("2\n")
    assert commit()["commit"] == clean
    (tmp_path / "config/config.yaml").write_text("2\n")
    assert commit()["commit"] == f"{clean}+"
    shutil.rmtree(tmp_path / ".git")
    assert commit() == {}
