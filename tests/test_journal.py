"""Cells grow by trial: what is measured is kept, counted and never measured again, and nothing stale is used."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from ask import files
from ask.cli import perform
from ask.config.attacks import AdvKnnConfig, ASKAttackConfig
from ask.config.base import DataSpec
from ask.config.jobs import BlockJob, CellJob, ClassifierSpec, FeatureSpec, IndexJob
from ask.data import download, prepare
from ask.measure import blocks, journal
from ask.measure.evaluator import Evaluator
from ask.measure.place import Place, build_index
from ask.paths import Run
from ask.plan.provenance import fingerprint
from ask.steps import modules_of
from ask.tensorfile import load_tensors

RAW = FeatureSpec(dataset="digits", model="raw", network=None)
CLASSIFIERS = tuple(ClassifierSpec(similarity="l2", layers=("input",), k=k) for k in (1, 5))
ASK = ASKAttackConfig(layers=("input",), eps=40 / 255, step_size=4 / 255, steps=5, tau=0.1)
CODE = fingerprint(modules_of("attack", {"attack": {"name": "ask"}}))
ADVKNN = AdvKnnConfig(layers=("input",), eps=40 / 255, step_size=4 / 255, steps=5)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    spec = DataSpec(source="digits")
    download(spec, root, None)
    prepare(spec, root, "digits")
    return root


@pytest.fixture
def place(data, tmp_path):
    made = Place(run=Run(tmp_path / "run"), data=data, device=torch.device("cpu"), code=CODE)
    build_index(IndexJob(features=RAW, layer="input"), made)
    return made


@pytest.fixture
def attacked(monkeypatch):
    """How many trials' attacks were made, call by call."""
    counts: list[int] = []
    run = Evaluator.run

    def counting(self, attacks, clean):
        counts.append(len(attacks))
        return run(self, attacks, clean)

    monkeypatch.setattr(Evaluator, "run", counting)
    return counts


def cell(trials, **changes):
    job = {
        "id": "cell",
        "features": RAW,
        "attack": ASK,
        "similarity": "l2",
        "classifiers": CLASSIFIERS,
        "references_per_class": 60,
        "trials": trials,
        "test_images": 100,  # two attacks at once on a CPU
        "seed": 0,
    }
    return CellJob.model_validate(job | changes)


def measure(job, place):
    """As the step does: a record and its predictions."""
    perform("attack", job.model_dump_json(), place)
    path = place.run.cell("digits", "raw", job.id)
    with np.load(path.with_suffix(".npz")) as stored:
        return json.loads(path.read_text()), {name: stored[name] for name in stored}


def replaced(job, place):
    """What Snakemake does when a cell's settings have changed: `tend` at its start, then the outputs are deleted."""
    path = place.run.cell("digits", "raw", job.id)
    journal.tend([(path, job.model_dump(mode="json"))])
    path.unlink()
    path.with_suffix(".npz").unlink()


def left(job, place):
    return job.trials - len(
        journal.known(place.run.cell("digits", "raw", job.id), job.model_dump(mode="json"), place.code)
    )


def equal(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_twenty_trials_after_three_measure_seventeen(place, attacked):
    few, before = measure(cell(3), place)
    assert attacked == [2, 1]
    assert left(cell(20), place) == 17
    replaced(cell(20), place)
    assert left(cell(20), place) == 17
    attacked.clear()
    many, after = measure(cell(20), place)
    assert sum(attacked) == 17
    for kind in ("clean", "robust"):
        np.testing.assert_array_equal(after[kind][:, :3], before[kind])
    assert many["by_trial"][:3] == few["by_trial"], "seconds and validity stay, too"
    assert many["known"] == 3
    for old, new in zip(few["results"], many["results"], strict=True):
        assert new["robust"]["trials"][:3] == old["robust"]["trials"]
        assert len(new["robust"]["trials"]) == 20
    fresh, at_once = measure(cell(20, id="at-once"), place)
    equal(after, at_once)
    assert many["results"] == fresh["results"]
    assert many["validity"] == fresh["validity"]


def test_fewer_trials_measure_nothing_and_neither_do_as_many_again(place, attacked):
    _, many = measure(cell(5), place)
    attacked.clear()
    replaced(cell(2), place)
    record, few = measure(cell(2), place)
    np.testing.assert_array_equal(few["robust"], many["robust"][:, :2])
    assert record["job"]["trials"] == len(record["by_trial"]) == 2
    replaced(cell(5), place)
    _, again = measure(cell(5), place)
    equal(again, many)
    assert not attacked
    journal.tend([(place.run.cell("digits", "raw", "cell"), cell(5).model_dump(mode="json"))])
    assert not journal.folder_of(place.run.cell("digits", "raw", "cell")).exists(), "the record holds all"


def test_trials_that_the_record_does_not_hold_yet_are_kept(place):
    """A cell is measured on other data, and killed: its old record stands until the new one is whole."""
    measure(cell(3), place)
    output = place.run.cell("digits", "raw", "cell")
    shutil.rmtree(journal.folder_of(output))
    trial = journal.Trial({"trial": 0}, {"robust": np.zeros((1, 4))})
    journal.Journal(output, "of other data").add([trial], cell(3).model_dump(mode="json"), place.code)
    journal.tend([(output, cell(3).model_dump(mode="json"))])
    assert 0 in journal.Journal(output, "of other data").read()
    record = json.loads(output.read_text())
    output.write_text(json.dumps(record | {"key": "of other data"}))
    journal.tend([(output, cell(3).model_dump(mode="json"))])
    assert not journal.folder_of(output).exists()


def test_as_many_trials_are_measured_again_when_asked_for(place, attacked):
    measure(cell(2), place)
    measure(cell(2), place)
    assert attacked == [2, 2]


def test_a_cell_whose_attack_fails_keeps_what_it_has(place, monkeypatch):
    calm = measure(cell(5, id="calm"), place)[1]
    run, calls = Evaluator.run, []

    def dying(self, attacks, clean):
        calls.append(len(attacks))
        if len(calls) == 2:
            raise MemoryError
        return run(self, attacks, clean)

    monkeypatch.setattr(Evaluator, "run", dying)
    with pytest.raises(MemoryError):
        measure(cell(5), place)
    assert left(cell(5), place) == 3
    record, predictions = measure(cell(5), place)
    assert calls == [2, 2, 2, 1]
    assert record["known"] == 2
    equal(predictions, calm)


READ = {"weights": ("weights_read", {"digits/raw": "other"}), "passes": ("passes_of", "bfloat16")}


@pytest.mark.parametrize("change", ["code", "seed", "weights of blocks", "cut short", "data", "temperature", *READ])
def test_nothing_stale_is_used(place, attacked, change, tmp_path, data, monkeypatch):
    advknn = {"attack": ADVKNN, "blocks_from": ("one",)} if change == "weights of blocks" else {}
    if change == "temperature":
        advknn = {"attack": ASK.model_copy(update={"tau": None}), "tau_from": ("tau",)}
        files.write_json(place.run.calibration("digits", "raw", "tau"), {"picked": {"tau": 0.1}})
    fit(place, trials=4)
    measure(cell(2, **advknn), place)
    later, changed = cell(4, **advknn), place
    replaced(later, place)
    attacked.clear()
    if change == "code":
        changed = Place(place.run, place.data, place.device, "1" * 16)
    elif change == "seed":
        later = cell(4, seed=1)
    elif change == "temperature":
        files.write_json(place.run.calibration("digits", "raw", "tau"), {"picked": {"tau": 0.3}})
    elif change in READ:
        name, other = READ[change]
        monkeypatch.setattr(f"ask.measure.cells.{name}", lambda *_: other)
    elif change == "data":
        (tmp_path / "data/prepared").mkdir(parents=True)
        other = tmp_path / "data/prepared/digits"
        other.mkdir()
        for path in (data / "prepared/digits").iterdir():
            (other / path.name).write_bytes(path.read_bytes() + (b"\n" if path.name == "facts.json" else b""))
        changed = Place(place.run, tmp_path / "data", place.device, place.code)
    elif change == "cut short":
        (entry,) = journal.folder_of(place.run.cell("digits", "raw", "cell")).glob("*.npz")
        entry.write_bytes(entry.read_bytes()[:-50])
    else:
        place.run.blocks("digits", "raw", "one").unlink()
        fit(place, trials=4, seed=1)
    measure(later, changed)
    assert sum(attacked) == 4


def fit(place, trials, seed=0):
    job = {
        "id": "one",
        "features": RAW,
        "layer": "input",
        "similarity": "l2",
        "k": 5,
        "block": {"epochs": 2},
        "references_per_class": 60,
        "trials": trials,
        "seed": seed,
    }
    parsed = BlockJob.model_validate(job)
    out = place.run.blocks("digits", "raw", "one")
    journal.tend([(out, parsed.model_dump(mode="json"))])
    out.unlink(missing_ok=True)  # as Snakemake does
    blocks.fit(parsed, place)
    return load_tensors(out)[0]


def test_an_entry_that_was_cut_off_is_not_vouched_for_by_its_forerunner(tmp_path, monkeypatch):
    output = Run(tmp_path).cell("digits", "raw", "cell")

    def trial(value):
        return journal.Trial({"trial": 0}, {"robust": np.full((1, 4), value)})

    first = journal.Journal(output, "a")
    first.add([trial(1)], {}, "code")
    assert first.read()[0].predictions["robust"][0, 0] == 1
    monkeypatch.setattr(journal.files, "write_json", lambda *_: (_ for _ in ()).throw(OSError("killed")))
    with pytest.raises(OSError, match="killed"):
        journal.Journal(output, "b").add([trial(7)], {}, "code")
    assert first.read() == {}


def test_blocks_of_more_trials_leave_the_fitted_ones(place, attacked):
    three = fit(place, trials=3)
    job = cell(3, attack=ADVKNN, blocks_from=("one",))
    _, before = measure(job, place)
    seven = fit(place, trials=7)
    for name, tensor in three.items():
        assert len(seven[name]) == 7
        assert torch.equal(seven[name][:3], tensor)
    assert not torch.equal(seven["0"][3], seven["0"][2])
    more = cell(7, attack=ADVKNN, blocks_from=("one",))
    replaced(more, place)
    attacked.clear()
    _, after = measure(more, place)
    assert sum(attacked) == 4
    np.testing.assert_array_equal(after["robust"][:, :3], before["robust"])
    for name, tensor in fit(place, trials=2).items():
        assert torch.equal(tensor, three[name][:2])
    for name, tensor in fit(place, trials=7).items():
        assert torch.equal(tensor, seven[name]), "fewer in between"


def test_a_killed_process_continues(place):
    """SIGKILL after some trials; the same command measures the others, and all is as if nothing had happened."""
    calm = measure(cell(9, id="calm"), place)[1]
    text = cell(9).model_dump_json()
    command = [sys.executable, "-m", "ask", "attack", "--job", text, "--code", place.code, "--device", "cpu"]
    command += ["--run", str(place.run.root), "--data", str(place.data)]
    output = place.run.cell("digits", "raw", "cell")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    root = Path(__file__).parent.parent
    process = subprocess.Popen(command, cwd=root, env=environment, stdout=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while not list(journal.folder_of(output).glob("[0-9]*.json")) and time.monotonic() < until:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not output.exists(), "it was too fast to be killed"
    known = 9 - left(cell(9), place)
    assert known >= 2
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=True)
    assert f"{known} of 9 trials are known" in done.stdout
    with np.load(output.with_suffix(".npz")) as stored:
        equal({name: stored[name] for name in stored}, calm)


@pytest.mark.parametrize("images", [100, 300], ids=["two attacks in a batch", "an attack in two batches"])
@pytest.mark.parametrize("kind", [ASK, ADVKNN], ids=["ask", "advknn"])
def test_an_ascent_measures_the_cells_that_it_passes_through(place, attacked, images, kind):
    def job(steps, **changes):
        attack = kind.model_copy(update={"steps": steps})
        return cell(changes.pop("trials", 3), **{"id": f"s{steps}", "attack": attack, "test_images": images} | changes)

    longest, looked = job(5), {"s2": job(2, trials=2, classifiers=CLASSIFIERS[:1]), "s4": job(4)}
    alone = {name: measure(one, place) for name, one in looked.items()}
    whole = measure(longest, place)
    shutil.rmtree(place.run.root / "scratch")
    shutil.rmtree(place.run.root / "cells")
    outputs = {name: place.run.cell("digits", "raw", name) for name in ("s2", "s4", "s5")}
    other = job(3, similarity="cosine").model_dump(mode="json")  # another ascent, listed by mistake
    listed = [*(one.model_dump(mode="json") for one in looked.values()), other]
    journal.share(place.run.root, [(outputs["s5"], one) for one in listed])
    before = len(attacked)
    again = measure(longest, place)
    assert len(attacked) > before
    equal(whole[1], again[1])
    before = len(attacked)
    for name, one in looked.items():
        assert left(one, place) == 0
        record, predictions = measure(one, place)
        equal(alone[name][1], predictions)
        assert record["known"] == one.trials
        assert {row["passed_by"] for row in record["by_trial"]} == {"s5"}
        assert record["validity"] == alone[name][0]["validity"]
        assert record["results"] == alone[name][0]["results"]
    assert len(attacked) == before
    assert not journal.folder_of(place.run.cell("digits", "raw", "s3")).exists()


def test_what_an_ascent_passes_through_is_asked_of_any_cell(tmp_path):
    output = tmp_path / "cells/d/m/long.json"
    clean, short, long = ({"attack": attack} for attack in (None, {"eps": 8.0, "steps": 20}, {"eps": 8.0, "steps": 40}))
    assert journal.passed(tmp_path, output, long) == []
    journal.share(tmp_path, [(output, short), (output, {"attack": {"eps": 4.0, "steps": 20}})])
    assert journal.passed(tmp_path, output, long) == [short]
    assert journal.passed(tmp_path, output, short) == []
    assert journal.passed(tmp_path, output.with_name("clean.json"), clean) == []
