"""Measurements beside the cells, on real digits: failures, timing, pictures, and AdvKnn's blocks of all trials."""

import json

import numpy as np
import pytest
import torch
import yaml

from ask import files
from ask.cli import perform
from ask.config.attacks import AdvKnnConfig, ASKAttackConfig, BlockConfig, DkNNAttackConfig
from ask.config.base import DataSpec
from ask.config.jobs import (
    BlockJob,
    CellJob,
    ClassifierSpec,
    CostJob,
    ExampleJob,
    FailureJob,
    FeatureSpec,
    IndexJob,
    TimingJob,
)
from ask.data import download, prepare
from ask.measure.blocks import fit
from ask.measure.cost import compare
from ask.measure.evaluator import draw_references, pick_test_images
from ask.measure.example import RULES, show
from ask.measure.failures import analyse
from ask.measure.place import Place, build_index
from ask.measure.setting import Setting, reference_seed
from ask.measure.timing import measure
from ask.paths import Run
from ask.report.numbers import MissingValueError
from ask.report.pictures import render_drawing
from ask.tensorfile import load_tensors

RAW = FeatureSpec(dataset="digits", model="raw", network=None)
COMMON = {"layers": ("input",), "eps": 60 / 255, "step_size": 8 / 255, "steps": 8}
CLASSIFIER = ClassifierSpec(similarity="l2", layers=("input",), k=5)
BLOCKS = BlockConfig(epochs=5, learning_rate=0.1)
ATTACKS = {
    "none": None,
    "ask": ASKAttackConfig(tau=0.1, **COMMON),
    "advknn": AdvKnnConfig(block=BLOCKS, **COMMON),
    "dknn": DkNNAttackConfig(optimizer="sign", alpha=None, learning_rate=None, **COMMON),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Prepared digits, and the cells of all attacks, measured as the workflow does."""
    root = tmp_path_factory.mktemp("analyses")
    download(DataSpec(source="digits"), root / "data", None)
    prepare(DataSpec(source="digits"), root / "data", "digits")
    made = Place(run=Run(root / "run"), data=root / "data", device=torch.device("cpu"))
    build_index(IndexJob(features=RAW, layer="input"), made)
    files.write_json(made.run.calibration("digits", "raw", "alpha"), {"picked": {"alpha": 1.0}})
    fit(block_job(), made)
    for name in ATTACKS:
        perform("attack", cell(name).model_dump_json(), made)
    return made


def block_job():
    return BlockJob(
        id="l2",
        features=RAW,
        layer="input",
        similarity="l2",
        k=5,
        block=BLOCKS,
        references_per_class=80,
        trials=2,
        seed=0,
    )


def cell(name, **changes):
    job = {
        "id": name,
        "features": RAW,
        "attack": ATTACKS[name],
        "similarity": "l2",
        "classifiers": (CLASSIFIER,),
        "references_per_class": 80,
        "trials": 2,
        "test_images": 80,
        "alpha_from": "alpha" if name == "dknn" else None,
        "blocks_from": ("l2",) if name == "advknn" else (),
        "seed": 0,
    }
    return CellJob.model_validate(job | changes)


def test_every_attack_has_a_cell_that_lowers_accuracy(place):
    for name in ("ask", "advknn", "dknn"):
        measured = json.loads(place.run.cell("digits", "raw", name).read_text())
        (result,) = measured["results"]
        assert result["clean"]["mean"] > 0.9
        assert result["robust"]["mean"] < result["clean"]["mean"] - 0.15
        assert measured["validity"]["max_linf"] <= 60 / 255 + 1e-6
    assert measured["setting"] == {"alpha": 1.0}


def test_blocks_of_all_trials_are_kept_and_differ(place):
    tensors, _ = load_tensors(place.run.blocks("digits", "raw", "l2"))
    assert [tuple(tensors[name].shape) for name in "01"] == [(2, 64, 10), (2, 1, 10)]
    assert not torch.equal(tensors["0"][0], tensors["0"][1])
    for trial in range(2):
        weight, bias = Setting(cell("advknn"), place).blocks(trial)["input"]
        assert torch.equal(weight, tensors["0"][trial])
        assert torch.equal(bias, tensors["1"][trial])


def test_blocks_under_cosine_similarity_know_no_lengths(place, tmp_path):
    """A cell's attack shows them features of length 1."""
    pool = np.load(place.run.index("digits", "raw", "input"))
    found = []
    for name, lengths in (("one", 1), ("other", np.random.default_rng(0).uniform(1, 9, (len(pool), 1)))):
        own = Place(Run(tmp_path / name), place.data, place.device)
        own.run.index("digits", "raw", "input").parent.mkdir(parents=True)
        np.save(own.run.index("digits", "raw", "input"), (pool * lengths).astype(np.float32))
        fit(block_job().model_copy(update={"similarity": "cosine"}), own)
        found.append(load_tensors(own.run.blocks("digits", "raw", "l2"))[0])
    for tensor, other in zip(found[0].values(), found[1].values(), strict=True):
        torch.testing.assert_close(tensor, other, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("similarity", ["cosine", "l2"])
def test_failures_equal_a_count_by_hand(place, similarity):
    job = FailureJob(id="f", cell=cell("ask"), similarity=similarity, layer="input", confidence_k=50, gap_k=3)
    record, by_image = analyse(job, place)
    (found,) = record["results"]
    train = np.load(place.data / "prepared/digits/train_images.npy").reshape(-1, 64) / 255
    train_labels = np.load(place.data / "prepared/digits/train_labels.npy")
    with np.load(place.run.cell("digits", "raw", "ask").with_suffix(".npz")) as stored:
        clean, robust, labels = stored["clean"][0], stored["robust"][0], stored["labels"]
    everything = np.load(place.data / "prepared/digits/test_images.npy")
    test = everything[pick_test_images(len(everything), 80, "digits")].reshape(-1, 64) / 255
    for group in ("failures", "successes"):
        ones, most, gaps, spread = [], [], [], []
        for trial in range(2):
            chosen = draw_references(train_labels, 80, reference_seed(job.cell, trial))
            references, own = train[chosen], train_labels[chosen]
            flags, high, values = [], [], []
            for i, image in enumerate(test):
                held = robust[trial, i] == labels[i]
                if clean[trial, i] != labels[i] or held != (group == "failures"):
                    continue
                near = -np.linalg.norm(references - image, axis=1)
                if similarity == "cosine":
                    near = references @ image / np.linalg.norm(references, axis=1) / np.linalg.norm(image)
                largest = np.bincount(own[np.argsort(-near)[:50]]).max()
                flags.append(largest == 50)
                high.append(largest >= 48)
                means = sorted(np.sort(near[own == c])[-3:].mean() for c in range(10))
                values.append(means[-1] - means[-2])
            ones.append(np.mean(flags))
            most.append(np.mean(high))
            gaps.append(np.mean(values))
            spread.append(np.sum((np.array(flags) - np.mean(flags)) ** 2) / len(flags) ** 2)
        images = by_image[f"{group}.confidence_1"]
        assert images.shape == (2, 80)
        assert images.mean(1) == pytest.approx(ones)
        assert images.var(1) / 80 == pytest.approx(spread)  # a share's p (1 - p) / m, of its m members alone
        assert found[f"{group}.confidence_1"]["trials"] == pytest.approx(ones)
        assert found[f"{group}.confidence_95"]["trials"] == pytest.approx(most)
        assert found[f"{group}.similarity_gap"]["trials"] == pytest.approx(gaps, abs=1e-5)
    assert found["failures.similarity_gap"]["mean"] > found["successes.similarity_gap"]["mean"]


def test_a_group_without_images_has_no_measure(place, tmp_path):
    """An attack that never succeeds leaves nothing to describe, and no crash."""
    path = place.run.cell("digits", "raw", "none")
    job = FailureJob(id="f", cell=cell("none"), similarity="l2", layer="input", confidence_k=5)
    assert path.exists()
    (found,) = analyse(job, place)[0]["results"]
    assert found["successes.confidence_1"] is None
    assert found["failures.confidence_1"]["mean"] > 0.5


def test_attacks_are_timed_in_turns_and_set_up_is_counted(place):
    cells = tuple(cell(name, trials=1, classifiers=()) for name in ("ask", "advknn", "dknn"))
    job = TimingJob(id="t", cells=cells, grid_sizes=(5, 0, 3), calibration_images=40, images=30, rounds=3)
    found = measure(job, place)
    assert found["images"] == 30
    results = {result["timed"]: result for result in found["results"]}
    assert results["ask"]["slower"]["trials"] == [1, 1, 1]
    for result in results.values():
        ms, setup = result["ms_per_image"], result["setup_seconds"]["mean"]
        assert min(ms["trials"]) > 0
        with_setup = np.array(ms["trials"]) + 1000 * setup / 80
        np.testing.assert_allclose(result["ms_with_setup"]["trials"], with_setup)
        for slower, time in (("slower", "ms_per_image"), ("slower_with_setup", "ms_with_setup")):
            factors = np.divide(result[time]["trials"], results["ask"][time]["trials"])
            np.testing.assert_allclose(result[slower]["trials"], factors)
    # Five points of 40 images at the seconds an image that were measured.
    assert results["ask"]["setup_seconds"]["mean"] > 5 * 40 * min(results["ask"]["ms_per_image"]["trials"]) / 1000


def test_a_time_is_of_the_images_that_were_attacked(place, monkeypatch):
    monkeypatch.setattr("ask.measure.timing.timed", lambda _, work: work() or 3.0)
    job = {"id": "t", "cells": (cell("ask", trials=1),), "grid_sizes": (5,), "calibration_images": 40, "rounds": 2}
    (result,) = measure(TimingJob(images=30, **job), place)["results"]
    assert result["ms_per_image"]["trials"] == [100, 100]
    assert result["setup_seconds"]["mean"] == pytest.approx(3 + 5 * 40 * 0.1)


def example(**changes):
    names = ("none", "ask", "dknn")
    job = {"id": "e", "cells": tuple(cell(n) for n in names), "classifier": CLASSIFIER, "class_index": 9}
    return ExampleJob.model_validate(job | changes)


def test_the_example_is_chosen_by_its_rule_and_shows_what_was_measured(place):
    record, pictures = show(example(), place)
    with np.load(place.run.cell("digits", "raw", "ask").with_suffix(".npz")) as stored:
        labels, robust, clean = stored["labels"], stored["robust"][0, 0], stored["clean"][0, 0]
    fits = np.flatnonzero((labels == 9) & (clean == 9) & (robust != 9))
    every = len(np.load(place.data / "prepared/digits/test_images.npy"))
    assert record["image"] == pick_test_images(every, 80, "digits")[fits[0]]  # its number among all test images
    assert record["rule"] == RULES[0].format(of_class=" of class 9")
    shown = {found["cell"]: found for found in record["cells"]}
    # The attack is made again: its random start, and so its outcome, is that of the cell.
    assert shown["ask"]["predicted"] == str(robust[fits[0]])
    assert shown["none"]["right"]
    assert pictures["images"].shape == (3, 1, 8, 8)
    assert pictures["neighbours"].shape == (3, 5, 1, 8, 8)
    assert np.abs(pictures["images"][1].astype(int) - pictures["images"][0]).max() in range(50, 61)
    votes = [shown["none"]["neighbour_classes"].count(str(c)) for c in range(10)]
    assert int(np.argmax(votes)) == 9
    train = np.load(place.data / "prepared/digits/train_images.npy")
    assert np.array_equal(train[shown["ask"]["neighbours"]], pictures["neighbours"][1])


def test_an_image_that_no_attack_fools_is_said_to_be_one(place):
    record, _ = show(example(cells=(cell("none"),), class_index=None), place)
    assert "none of them yields" in record["rule"]
    with pytest.raises(ValueError, match="no test image is of class 11"):
        show(example(class_index=11), place)


def test_pictures_are_drawn_with_their_facts(place):
    job = {
        "id": "figure2",
        "kind": "pictures",
        "paper": "Figure 2",
        "title": "An image",
        "row_headers": [["AT"]],
        "column_headers": [["clean"], ["ASK-Atk"], ["DkNN-Atk"]],
        "entries": [
            {
                "row": 0,
                "column": i,
                "columns": {"dataset": "digits", "model": "raw", "attack": name},
                "cell": {"dataset": "digits", "model": "raw", "id": name},
                "classifier": CLASSIFIER.model_dump(mode="json"),
            }
            for i, name in enumerate(("none", "ask", "dknn"))
        ],
    }
    with pytest.raises(MissingValueError, match=r"examples/figure2\.json is missing; make it"):
        render_drawing(job, place.run)
    record, pictures = show(example(), place)
    path = place.run.example("figure2")
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(record))
    np.savez(path.with_suffix(".npz"), **pictures)
    written = render_drawing(job, place.run)
    assert [p.suffix for p in written] == [".csv", ".svg", ".png", ".pdf"]
    rows = written[0].read_text().splitlines()
    assert len(rows) == 1 + 3 * 5
    assert "digits/raw/ask#l2/input/5" in written[1].read_text()
    before = [p.read_bytes() for p in written]
    assert [p.read_bytes() for p in render_drawing(job, place.run)] == before


def test_training_costs_are_factors_of_the_base(tmp_path):
    run = Run(tmp_path)
    for model, epochs, seconds, forward, gmac in (("at", 4, 10.0, 600, 5.0), ("ask-def", 6, 25.0, 1500, 11.0)):
        folder = run.model("digits", model)
        folder.mkdir(parents=True)
        passes = {"images": 50, "forward": forward, "backward": forward, "gmac": gmac}
        record = {"job": {"training": {"epochs": epochs}}, "train_seconds": seconds, "passes_per_step": passes}
        (folder / "config.yaml").write_text(yaml.safe_dump(record))
    place = Place(run=run, data=tmp_path, device=torch.device("cpu"))
    (found,) = compare(CostJob(id="c", dataset="digits", model="ask-def", base="at"), place)["results"]
    means = {name: value["mean"] for name, value in found.items()}
    assert means == {
        "training_seconds": 25,
        "passes_per_image": 60,
        "times_passes": 1.5 * 2.5,  # one and a half times the epochs
        "times_work": pytest.approx(1.5 * 2.2),
        "times_seconds": 2.5,
    }
