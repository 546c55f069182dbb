"""What installs the project says the same everywhere: pyproject.toml, pins, conda, Makefile, README and CI."""

import os
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

REPOSITORY = Path(__file__).resolve().parent.parent

PYPI_NAME = {
    "matplotlib-base": "matplotlib",
    "pytorch": "torch",
    "pytorch-gpu": "torch",
    "snakemake-minimal": "snakemake",
}
"""Conda's names of packages that PyPI knows by another one."""


def read(name: str) -> str:
    return (REPOSITORY / name).read_text(encoding="utf-8")


def project() -> dict[str, Any]:
    content: dict[str, Any] = tomllib.loads(read("pyproject.toml"))["project"]
    return content


def by_name(requirements: list[str]) -> dict[str, Requirement]:
    parsed = [Requirement(text) for text in requirements]
    return {canonicalize_name(one.name): one for one in parsed}


def pins() -> dict[str, Version]:
    found: dict[str, Version] = {}
    for line in read("constraints.txt").splitlines():
        if not line or line.startswith("#"):
            continue
        requirement = Requirement(line)
        (specifier,) = requirement.specifier
        assert specifier.operator == "==", f"constraints.txt: {line!r} is no pin; write name==version"
        name = canonicalize_name(requirement.name)
        assert name not in found, f"constraints.txt pins {name} twice"
        found[name] = Version(specifier.version)
    return found


def conda_packages() -> dict[str, SpecifierSet]:
    """PyPI name -> versions that environment.yml allows."""
    packages: dict[str, SpecifierSet] = {}
    *entries, last = yaml.safe_load(read("environment.yml"))["dependencies"]
    by_pip = [str(Requirement(text).name) + f" {Requirement(text).specifier}" for text in last["pip"]]
    for entry in [*entries, *by_pip]:
        name, _, versions = entry.partition(" ")
        if name == "pip":
            continue
        packages[canonicalize_name(PYPI_NAME.get(name, name))] = SpecifierSet(versions)
    return packages


def all_requirements() -> list[tuple[str, Requirement]]:
    groups = {"dependencies": project()["dependencies"], **project()["optional-dependencies"]}
    return [(group, one) for group, texts in groups.items() for one in by_name(texts).values()]


@pytest.mark.parametrize(("group", "requirement"), all_requirements(), ids=lambda value: str(value))
def test_every_requirement_is_met_by_a_pin(group: str, requirement: Requirement) -> None:
    if canonicalize_name(requirement.name) == canonicalize_name(project()["name"]):
        extras = set(project()["optional-dependencies"])
        assert requirement.extras <= extras, f"extra {group!r} names {requirement.extras - extras}, which do not exist"
        return
    pin = pins().get(canonicalize_name(requirement.name))
    assert pin, f"{requirement.name} ({group}) has no pin in constraints.txt"
    assert pin in requirement.specifier, (
        f"constraints.txt pins {requirement.name}=={pin}, pyproject.toml: {requirement}"
    )


def test_what_the_makefile_installs_by_name_is_pinned() -> None:
    (found,) = re.findall(r"^\t@\$\(PIP\) --no-deps (.+)$", read("Makefile"), flags=re.MULTILINE)
    named = found.split()
    assert named == ["torchattacks", "timm"]
    assert {canonicalize_name(name) for name in named} <= set(pins())


def test_pins_name_no_build_of_one_machine() -> None:
    local = {name: str(pin) for name, pin in pins().items() if pin.local}
    assert not local, (
        f"drop the build tag (+cpu, +cu130), so that machines with and without a GPU share the pin: {local}"
    )


def test_conda_environment_holds_every_runtime_dependency() -> None:
    wanted = by_name(project()["dependencies"] + project()["optional-dependencies"]["slurm"])
    wanted |= by_name(project()["optional-dependencies"]["faiss-gpu"])
    wanted |= by_name(project()["optional-dependencies"]["autoattack"])
    extra = set(conda_packages()) - set(wanted) - {"python"}
    missing = set(wanted) - set(conda_packages())
    assert not missing, f"environment.yml lacks {sorted(missing)}"
    assert not extra, f"environment.yml has {sorted(extra)}, which pyproject.toml does not ask for"


@pytest.mark.parametrize("name", sorted(set(conda_packages()) - {"python"}))
def test_conda_versions_agree(name: str) -> None:
    allowed = conda_packages()[name]
    assert pins()[name] in allowed, f"environment.yml wants {name} {allowed}, constraints.txt pins {pins()[name]}"
    by_pip = {canonicalize_name(one.name): one.specifier for _, one in all_requirements()}[name]
    if name != "faiss-gpu":  # its wheels on PyPI begin at a later version than conda's packages
        assert allowed == by_pip, f"environment.yml wants {name} {allowed}, pyproject.toml {by_pip}"


def test_python_version_is_the_same_everywhere() -> None:
    wanted = project()["requires-python"]
    (lowest,) = SpecifierSet(wanted)
    major, minor = lowest.version.split(".")
    assert str(conda_packages()["python"]) == wanted
    assert f"({major}, {minor})" in read("Makefile"), "the Makefile's check of the Python version is out of date"
    tools = tomllib.loads(read("pyproject.toml"))["tool"]
    assert tools["ruff"]["target-version"] == f"py{major}{minor}"
    assert tools["mypy"]["python_version"] == lowest.version


def make_targets() -> set[str]:
    lines = re.findall(r"^([a-z0-9 -]+):", read("Makefile"), flags=re.MULTILINE)
    return {name for line in lines for name in line.split()}


def test_continuous_integration_runs_what_readers_run() -> None:
    assert os.access(REPOSITORY / ".ci/run", os.X_OK), "chmod +x .ci/run"
    steps = re.findall(r"^step make ([a-z]+)$", read(".ci/run"), flags=re.MULTILINE)
    assert set(steps) == {"lint", "docs", "demo", "test"}
    assert set(steps) <= make_targets()


@pytest.mark.parametrize(
    "page", ["README.md", *sorted(str(p.relative_to(REPOSITORY)) for p in REPOSITORY.glob("docs/*.md"))]
)
def test_documented_make_commands_exist(page: str) -> None:
    code = "\n".join(re.findall(r"```.*?```|`[^`\n]+`", read(page), flags=re.DOTALL))
    named = set(re.findall(r"(?:^|[`$\s])make ([a-z0-9-]+)\b", code))
    assert named <= make_targets(), f"{page} names {sorted(named - make_targets())}, which the Makefile does not have"


@pytest.mark.parametrize("name", ["default", "slurm"])
def test_profiles_are_valid(name: str) -> None:
    """Snakemake itself reads every key: it knows none that is misspelt."""
    from snakemake.cli import get_argument_parser

    path = f"profiles/{name}/profile.yaml"
    profile = yaml.safe_load(read(path))
    options = {text.lstrip("-") for action in get_argument_parser()._actions for text in action.option_strings}
    unknown = {key for key in profile if key not in options and not key.startswith("slurm-")}
    assert not unknown, f"{path}: snakemake has no option {sorted(unknown)}"
    assert profile["keep-going"] is True
    assert profile["rerun-incomplete"] is True


def test_every_file_beside_the_code_is_installed_with_it() -> None:
    tools = tomllib.loads(read("pyproject.toml"))["tool"]["setuptools"]
    declared: set[Path] = set()
    for package, patterns in tools["package-data"].items():
        folder = REPOSITORY.joinpath(*package.split("."))
        for pattern in patterns:
            matches = set(folder.glob(pattern))
            assert matches, f"pyproject.toml: nothing matches {pattern} in {package}"
            declared |= matches
    present = {path for path in (REPOSITORY / "ask").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    missing = {str(path.relative_to(REPOSITORY)) for path in present - declared if path.suffix != ".py"}
    assert not missing, f"add to [tool.setuptools.package-data] in pyproject.toml: {sorted(missing)}"
