"""`python -m ask why` and `snakemake -n` name the same jobs after any edit, and why says what was edited."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from own_images import draw
from PIL import Image

ROOT = Path(__file__).parent.parent
PARTS = ("Snakefile", "rules", "ask", "config", "profiles", "environment.yml")
OWN = {
    "run": "own",
    "datasets": {"mine": {"label": "Mine", "source": "images", "path": "imgs", "references_per_class": 8}},
    "evaluation": {"max_trials": 2, "steps": 3},
    "calibration": {"images": 6, "tau_l2": [0.1, 1]},
    "artifacts": ["small"],
}
TABLE = {
    "kind": "table",
    "title": "A table",
    "caption": "Of two rows.",
    "category": "attack",
    "settings": {"dataset": "mine", "model": "raw", "similarity": "l2", "eps": 40},
    "rows": [{"values": [{"label": "K = 5", "k": 5}, {"label": "K = 3", "k": 3}]}],
    "columns": [{"values": [{"label": "ASK-Atk", "attack": "ask"}]}],
}
CELL, TABLES = "results/own/cells/mine/raw/ask-l2-Lin-K5-e40-s3", "results/own/tables/small"
SERVER = """
import contextlib, io, json, os, re, sys
import pandas, pydantic, snakemake.api, snakemake.cli, yaml

def forked(work):
    read, write = os.pipe()
    if os.fork() == 0:
        try:
            found = work()
        except BaseException as error:
            found = repr(error)
        os.write(write, json.dumps(found).encode())
        os._exit(0)
    os.close(write)
    return os.fdopen(read)

def dry_run():
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), contextlib.suppress(SystemExit):
        snakemake.cli.main(["--dry-run", "--configfile", "config/own.yaml"])
    if "Job stats:" not in said.getvalue():
        return [] if "Nothing to be done" in said.getvalue() else said.getvalue()[-3000:]
    return sorted({line.split(", ")[0] for line in re.findall("^    output: (.+)$", said.getvalue(), re.M)})

def why():
    from pathlib import Path
    from ask.errors import AskError
    from ask.plan.planner import load
    from ask.plan.why import reasons
    plan = load([Path("config/own.yaml")])
    try:
        found = reasons(plan.tasks, (), [Path("config/own.yaml")])
    except AskError as error:
        return str(error)
    return {str(path): reason for path, reason in found.items()}

for folder in map(str.strip, sys.stdin):
    os.chdir(folder)
    sys.path.insert(0, folder)
    print(json.dumps([json.load(answer) for answer in [forked(dry_run), forked(why)]]), flush=True)
    sys.path.remove(folder)
"""
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("why")]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of this project with a user's own images, attacked on their pixels."""
    folder = tmp_path_factory.mktemp("why") / "project"
    folder.mkdir()
    for part in PARTS:
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, folder / part)
    for path in (folder / "config/artifacts").glob("*.yaml"):
        path.unlink()
    (folder / "config/artifacts/small.yaml").write_text(yaml.safe_dump(TABLE))
    (folder / "config/own.yaml").write_text(yaml.safe_dump(OWN))
    draw(folder / "imgs")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(folder), "PATH": path}
    command = [sys.executable, "-m", "snakemake", "--cores", "2", "--configfile", "config/own.yaml"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    return folder


@pytest.fixture(scope="module")
def ask_both():
    """Asks `snakemake -n` and why about a folder, in forks of one process that has Snakemake loaded."""
    server = subprocess.Popen([sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(folder):
        print(folder, file=server.stdin, flush=True)
        return json.loads(server.stdout.readline())

    yield ask
    server.stdin.close()
    server.wait()


def replaced(name, old, new):
    def edit(folder):
        text = (folder / name).read_text()
        assert old in text, text
        (folder / name).write_text(text.replace(old, new, 1))

    return edit


def option(**changes):
    return lambda folder: (folder / "config/own.yaml").write_text(yaml.safe_dump(OWN | changes))


def dataset(**changes):
    return option(datasets={"mine": OWN["datasets"]["mine"] | changes})


def artifact(**changes):
    return lambda folder: (folder / "config/artifacts/small.yaml").write_text(yaml.safe_dump(TABLE | changes))


def gone(name):
    return lambda folder: (shutil.rmtree if (folder / name).is_dir() else os.unlink)(folder / name)


def touched(name):
    return lambda folder: (folder / name).touch()


def arrays(folder):
    return next((folder / "data/prepared").glob("mine-*"))


def other_pixels(folder):
    Image.fromarray(np.full((8, 8), 7, np.uint8)).save(folder / "imgs/train/c1/3.png")


OWN_IMAGES = "changed: content "
EDITS = {
    # what is edited: (how, a reason that is given, or what runs: all, nothing or these steps' outputs)
    "nothing": (lambda folder: None, ""),
    "an image more": (
        lambda folder: shutil.copy(folder / "imgs/train/c0/0.png", folder / "imgs/train/c0/x.png"),
        OWN_IMAGES,
    ),
    "an image changed": (other_pixels, OWN_IMAGES),
    "an image renamed": (
        lambda folder: (folder / "imgs/test/c2/0.png").rename(folder / "imgs/test/c2/z.png"),
        OWN_IMAGES,
    ),
    "an image touched": (touched("imgs/test/c2/0.png"), OWN_IMAGES),
    "a file beside the images": (lambda folder: (folder / "imgs/README.txt").touch(), ""),
    "a hidden file": (lambda folder: (folder / "imgs/train/.DS_Store").touch(), ""),
    "how changes are told": (dataset(fingerprint="content"), OWN_IMAGES),
    "side of the images": (dataset(image_size=6), "not made yet"),
    "reference sets": (dataset(references_per_class=6), "changed: references_per_class 8 → 6"),
    "test images": (dataset(test_images=5), "changed: test_images null → 5"),
    "seed": (option(seed=1), "changed: seed 0 → 1"),
    "trials": (option(evaluation={"max_trials": 3, "steps": 3}), "changed: trials 2 → 3"),
    "grid": (option(calibration={"images": 6, "tau_l2": [0.1, 1, 3]}), "changed: grid"),
    "device": (option(device="cpu"), "changed: what its rule is given"),
    "threads of a training": (option(train_threads=1), ""),
    "caption": (artifact(caption="Of rows."), "changed: caption"),
    "a comment": (replaced("ask/attacks/ask.py", "class ASKAttack(", "# A comment.\nclass ASKAttack("), ""),
    "the attack": (
        replaced("ask/attacks/ask.py", "place < config.k_in", "place <= config.k_in"),
        "code changed: ask.attacks.ask",
    ),
    "the search": (replaced("ask/knn/search.py", "\ndef ", "\nUNUSED = 1\n\n\ndef "), "code changed: ask.knn.search"),
    "the reader of images": (
        replaced("ask/data/images.py", "\ndef ", "\nUNUSED = 1\n\n\ndef "),
        "code changed: ask.data.images",
    ),
    "tables": (replaced("ask/report/tables.py", "\ndef ", "\nUNUSED = 1\n\n\ndef "), "code changed: ask.report.tables"),
    "a template": (
        replaced("ask/report/templates/base.html.j2", "<body", "<body "),
        "code changed: the report's templates",
    ),
    "a rule": (replaced("rules/index.smk", "python -m ask index", "nice python -m ask index"), "its rule has changed"),
    "predictions lost": (gone(f"{CELL}.npz"), ""),
    "a table lost": (gone(f"{TABLES}.csv"), "not made yet"),
    "a table drawn since": (touched(f"{TABLES}.csv"), "drawn without Snakemake"),
    "a table's Markdown lost": (gone(f"{TABLES}.md"), ""),
    "the index lost": (gone("results/own/index/mine/raw/input.npy"), ""),
    "the index touched": (touched("results/own/index/mine/raw/input.npy"), ""),
    "a record edited": (replaced(f"{CELL}.json", '"results"', ' "results"'), f"{CELL}.json is newer"),
    "facts lost": (lambda folder: (arrays(folder) / "facts.json").unlink(), ""),
    "facts edited": (lambda folder: (arrays(folder) / "facts.json").write_text("{}"), "facts.json is newer"),
    "claims of the paper edited": (
        replaced("config/paper/claims.yaml", "\n", "\n\n"),
        "config/paper/claims.yaml is newer",
    ),
    "notes of Snakemake lost": (gone(".snakemake/metadata"), "drawn without Snakemake"),
}


def test_why_and_a_dry_run_agree(project, ask_both, tmp_path):
    wrong = {}
    for number, (what, (edit, reason)) in enumerate(EDITS.items()):
        folder = tmp_path / str(number)
        shutil.copytree(project, folder)
        edit(folder)
        listed, found = ask_both(folder)
        said = (
            [text for text in found.values() if not text.startswith("needs ")] if isinstance(found, dict) else [found]
        )
        if listed != sorted(found) or not (any(reason in text for text in said) if reason else not said):
            wrong[what] = (listed, found)
        shutil.rmtree(folder)
    assert not wrong
    assert len(EDITS) >= 30
