"""Every block of commands and code in the documentation is executed, as it stands or as a dry run where it says so."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import yaml
from own_images import draw

from ask.config.run import load_artifacts, load_run, merge
from ask.plan.planner import plan_run

ROOT = Path(__file__).parent.parent
MADE = ("api.md", "configuration.md")
PAGES = sorted(path for path in (ROOT / "docs").rglob("*.md") if path.name not in (*MADE, "data.md"))
"""Pages with commands; two are made from code, and the blocks of data.md are layouts of folders."""
SLURM = os.geteuid() == 0 and all(shutil.which(name, path="/usr/sbin:/usr/bin") for name in ("slurmctld", "munged"))
BLOCK = re.compile(
    r"(?:<!-- (?P<marker>[a-z-]+) -->\n)?^```(?P<language>[a-z]+)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE
)


@dataclass(frozen=True)
class Block:
    page: Path
    place: int
    language: str
    marker: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT / 'docs')}-{self.place}"


def blocks() -> list[Block]:
    return [
        Block(page, place, found["language"], found["marker"] or "", found["text"])
        for page in PAGES
        for place, found in enumerate(BLOCK.finditer(page.read_text()))
    ]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project to act in, with the configurations that pages tell readers to save."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("ask", "config", "rules", "profiles", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Snakefile", "Makefile", "environment.yml", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    yamls = {block.page.stem: block.text for block in blocks() if block.language == "yaml"}
    (folder / "config/mine.yaml").write_text(yamls["own-data"])
    (folder / "config/artifacts/steps.yaml").write_text(yamls["add-a-table"])
    (folder / "data").mkdir()
    draw(folder / "flowers", train=240, test=5)
    shutil.make_archive(str(folder / "data/flowers"), "zip", folder / "flowers")
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    subprocess.run(["git", "add", "-A"], cwd=folder, check=True)
    identity = ["-c", "user.name=t", "-c", "user.email=t@t"]
    subprocess.run(["git", *identity, "commit", "-qm", "as it was"], cwd=folder, check=True)
    return folder


def shell(text: str, folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "PYTHONPATH": str(folder),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "ASK_WORKER": "",
        "OMP_NUM_THREADS": "1",
        **more,
    }
    command = ["bash", "-euo", "pipefail", "-c", text]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("block", [b for b in blocks() if b.language == "sh"], ids=str)
def test_commands_run(block: Block, project: Path) -> None:
    if block.marker == "slurm":
        run_on_slurm(block.text, project)
        return
    assert block.marker in ("", "dry-run"), f"{block}: unknown marker {block.marker!r}"
    text = block.text
    if block.marker:
        text, found = re.subn(r"^(snakemake|make)\b", r"\1 -n", text, flags=re.MULTILINE)
        assert found == len(text.strip().splitlines()), f"{block}: only make and snakemake have a dry run"
    done = shell(text, project)
    assert done.returncode == 0, done.stdout + done.stderr


def run_on_slurm(text: str, project: Path) -> None:
    """A cluster of one node, and on it one table of the demo instead of all."""
    if not SLURM:
        pytest.skip("needs root and SLURM: apt-get install slurmctld slurmd slurm-client munge")
    *commands, stop = [line for line in text.splitlines() if not line.startswith("apt-get ")]
    assert (commands[0], stop) == ("tests/slurm_loopback.sh start", "tests/slurm_loopback.sh stop")
    # A folder of its own, for somebody's own try may run in the usual one; munge wants every user to get there.
    with TemporaryDirectory(prefix="ask-slurm-") as folder:
        Path(folder).chmod(0o711)
        own = Path(folder) / "try"
        text = "\n".join(commands).replace("snakemake ", "snakemake results/demo/tables/proposition1.csv ")
        try:
            done = shell(text.replace("/tmp/slurm-try", str(own)), project, SLURM_TRY=str(own))
            if shlex.quote(sys.executable) != sys.executable:
                assert "put .venv where no path has a space" in done.stdout + done.stderr
                return
            assert done.returncode == 0, done.stdout + done.stderr
            assert "with SLURM jobid" in done.stdout + done.stderr
            assert (project / "results/demo/tables/proposition1.csv").is_file()
        finally:
            shell(stop, project, SLURM_TRY=str(own))


@pytest.mark.parametrize("block", [b for b in blocks() if b.language == "python"], ids=str)
def test_code_runs(block: Block, tmp_path: Path) -> None:
    script = tmp_path / "block.py"
    script.write_text(block.text)
    done = shell(shlex.join([sys.executable, str(script)]), ROOT)
    assert done.returncode == 0, done.stderr


def test_the_added_table_is_planned_and_drawn_from_its_yaml(project: Path) -> None:
    done = shell("snakemake -n results/demo/tables/steps.csv --configfile config/demo.yaml", project)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^attack +4$", done.stdout, re.MULTILINE), done.stdout
    done = shell("python -m ask status steps --configfile config/demo.yaml", project)
    assert "0 of 4 numbers measured" in done.stdout


def test_yaml_blocks_are_the_ones_that_are_tried() -> None:
    assert {block.page.stem for block in blocks() if block.language == "yaml"} == {
        "own-data",
        "own-model",
        "add-a-table",
    }
    assert {block.language for block in blocks()} <= {"sh", "python", "yaml", "text"}


def test_what_pages_tell_to_save_harms_no_other_run() -> None:
    """All runs make what lies in config/artifacts: it may name only what all of them have."""
    base = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    read = {
        (block.page.stem, block.place): yaml.safe_load(block.text) for block in blocks() if block.language == "yaml"
    }
    tables = {page: one["settings"]["dataset"] for (page, _), one in read.items() if "kind" in one}
    for page, dataset in tables.items():
        (path,) = set(re.findall(r"`(config/[\w/]+[\w-]+\.yaml)`", (ROOT / f"docs/how-to/{page}.md").read_text())) - {
            "config/artifacts/figure4.yaml"
        }
        overlays = [one for (other, _), one in read.items() if other == page and "kind" not in one]
        assert dataset in base["datasets"] or not path.startswith("config/artifacts/"), page
        assert all(overlay["artifacts"] == [path] for overlay in overlays), page


def test_own_data_keep_the_best_epoch_however_accurate() -> None:
    overlay = next(yaml.safe_load(b.text) for b in blocks() if (b.page.stem, b.language) == ("own-data", "yaml"))
    assert overlay["datasets"]["flowers"]["training"]["min_clean_accuracy"] == 0
    config = load_run(merge(yaml.safe_load((ROOT / "config/config.yaml").read_text()), overlay))
    plan = plan_run(config, load_artifacts(ROOT / "config/artifacts", config.artifacts))
    assert {task.job.dataset for task in plan.of("prepare", "train")} == {"flowers"}
    assert not plan.of("download")


def test_the_site_names_every_page() -> None:
    text = (ROOT / "mkdocs.yml").read_text()
    named = set(re.findall(r"[\w/-]+\.md", text))
    assert named == {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    assert yaml.safe_load(text)["strict"] is True


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="no mkdocs: make docs installs it")
    done = shell(f"python -m mkdocs build -q --strict --site-dir {tmp_path / 'site'}", ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "site/how-to/own-model.html").is_file()
    assert "ASKAttack" in (tmp_path / "site/library.html").read_text()
