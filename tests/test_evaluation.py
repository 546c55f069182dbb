"""The evaluation protocol: reference sets, statistics, validity, calibration and cells on real digits."""

import errno
import json

import numpy as np
import pytest
import torch
from scipy import stats
from test_data import needs_mounts, on_a_small_disk

from ask.config.attacks import VARIANTS, ASKAttackConfig, DkNNAttackConfig
from ask.config.base import DataSpec
from ask.config.jobs import CalibrationJob, CellJob, ClassifierSpec, FeatureSpec, IndexJob
from ask.data import download, prepare
from ask.errors import AskError
from ask.grids import beyond, ends, weighed
from ask.knn import DkNN
from ask.measure.calibrate import run_calibration
from ask.measure.cells import run_cell
from ask.measure.climb import InvalidAttackError, Validity
from ask.measure.evaluator import Evaluator, draw_references, pick_test_images
from ask.measure.place import Place, build_index
from ask.measure.setting import Setting, reference_seed, start_seed
from ask.paths import Run
from ask.report.evidence import describe
from ask.report.numbers import MissingValueError, lookup
from ask.seeds import derive_seed
from ask.statistics import summarise

RAW = FeatureSpec(dataset="digits", model="raw", network=None)
ATTACK = ASKAttackConfig(layers=("input",), eps=40 / 255, step_size=4 / 255, steps=10, tau=0.1)
OPEN = ATTACK.model_copy(update={"tau": None})
"""Its temperature is to be calibrated."""
CLASSIFIERS = tuple(ClassifierSpec(similarity="l2", layers=("input",), k=k) for k in (1, 5))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("evaluation")
    spec = DataSpec(source="digits")
    download(spec, root / "data", None)
    prepare(spec, root / "data", "digits")
    made = Place(run=Run(root / "run"), data=root / "data", device=torch.device("cpu"))
    build_index(IndexJob(features=RAW, layer="input"), made)
    return made


def cell(**changes):
    job = {
        "id": "cell",
        "features": RAW,
        "attack": ATTACK,
        "similarity": "l2",
        "classifiers": CLASSIFIERS,
        "references_per_class": 80,
        "trials": 2,
        "test_images": 60,
        "tau_from": (),
        "omega_from": None,
        "seed": 0,
    }
    return CellJob.model_validate(job | changes)


def test_index_holds_every_training_image(place):
    index = np.load(place.run.index("digits", "raw", "input"))
    images = np.load(place.data / "prepared/digits/train_images.npy")
    assert index.dtype == np.float32
    np.testing.assert_allclose(index, images.reshape(len(images), -1) / 255, rtol=1e-6)


@needs_mounts
def test_an_index_that_a_disk_does_not_hold_is_an_error(tmp_path):
    """Through a memory map, it would be a signal that kills the process; here nothing half-written is left."""
    job = IndexJob(features=RAW, layer="input").model_dump_json()
    write = (
        "import errno, sys; from pathlib import Path; import numpy as np; import torch\n"
        "from ask.config.jobs import IndexJob; from ask.measure import place; from ask.paths import Run\n"
        "images = np.ones((1000, 3, 32, 32), np.uint8)\n"
        "place.load = lambda *_: (images, None)\n"
        f"job, run = IndexJob.model_validate_json({job!r}), Run(Path(sys.argv[1]))\n"
        "try: place.build_index(job, place.Place(run, Path('data'), torch.device('cpu')))\n"
        "except OSError as error: sys.exit(error.errno if not list(run.root.rglob('*.npy')) else 1)\n"
    )
    assert on_a_small_disk(write, tmp_path) == errno.ENOSPC


def test_reference_sets_are_balanced_distinct_and_seeded():
    labels = np.array([0] * 30 + [1] * 50 + [2] * 20)
    chosen = draw_references(labels, 20, seed=1)
    assert np.bincount(labels[chosen]).tolist() == [20, 20, 20]
    assert len(set(chosen.tolist())) == 60
    assert np.array_equal(chosen, draw_references(labels, 20, seed=1))
    assert not np.array_equal(chosen, draw_references(labels, 20, seed=2))
    with pytest.raises(AskError, match="class 2 has 20 training images, fewer than references_per_class = 21"):
        draw_references(labels, 21, seed=1)


def test_smaller_test_sets_are_part_of_larger_ones():
    small, large = pick_test_images(1000, 50, "mnist"), pick_test_images(1000, 200, "mnist")
    assert np.array_equal(small, large[:50])
    assert len(set(large.tolist())) == 200
    assert pick_test_images(1000, None, "mnist") == slice(None)
    assert pick_test_images(1000, 1000, "mnist") == slice(None)


def test_seeds_depend_on_every_part():
    seeds = {derive_seed(0, "mnist", "start", t) for t in range(100)} | {derive_seed(1, "mnist", "start", 0)}
    assert len(seeds) == 101
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed("ab", "c") != derive_seed("a", "bc")


@pytest.mark.parametrize("n", [2, 5, 20])
def test_interval_is_students(n):
    values = np.random.default_rng(0).random(n)
    found = summarise(values)
    low, high = stats.t.interval(0.95, n - 1, loc=values.mean(), scale=stats.sem(values))
    assert found["mean"] == pytest.approx(values.mean())
    assert found["ci95"] == pytest.approx((high - low) / 2)
    assert summarise(values[:1])["ci95"] is None


def test_validity_names_the_worst_image():
    clean = torch.full((3, 1, 2, 2), 0.5)
    seen = Validity()
    seen.see_images(clean, clean + 0.1, eps=0.1)
    assert seen.max_linf == pytest.approx(0.1)
    moved = clean.clone()
    moved[2, 0, 1, 1] += 0.2
    with pytest.raises(InvalidAttackError, match=r"image 2 was moved by 0\.2000.*more than eps"):
        seen.see_images(clean, moved, eps=0.1)
    with pytest.raises(InvalidAttackError, match="image 0"):
        seen.see_images(clean, torch.full_like(clean, float("nan")), eps=0.1)
    bright = torch.ones(2, 1, 2, 2)
    with pytest.raises(InvalidAttackError, match=r"image 1 leaves \[0, 1\]"):
        seen.see_images(bright, bright + torch.tensor([0.0, 0.05]).view(2, 1, 1, 1), eps=0.1)
    black_box = Validity()
    assert set(black_box.over([black_box.counts()]).values()) == {None}, "nothing was attacked"
    black_box.see_images(clean, clean + 0.1, eps=0.1)
    found = black_box.over([black_box.counts()])
    assert (found["max_linf"], found["min"], found["max"]) == pytest.approx((0.1, 0.6, 0.6))
    assert found["zero_gradient_share"] is found["non_finite_gradient_share"] is None
    seen.see_gradient(torch.tensor([[0.0, 0.0], [0.0, 1.0]]))
    assert seen.over([seen.counts()])["zero_gradient_share"] == 0.5


def test_a_cell_measures_what_its_predictions_say(place):
    measured, predictions = run_cell(cell(), place)
    assert predictions["robust"].shape == predictions["clean"].shape == (2, 2, 60)
    labels = predictions["labels"]
    for i, result in enumerate(measured["results"]):
        assert result["k"] == CLASSIFIERS[i].k
        for kind in ("robust", "clean"):
            by_hand = (predictions[kind][i] == labels).mean(1)
            assert result[kind]["trials"] == by_hand.tolist()
        kept = ((predictions["robust"][i] == labels) & (predictions["clean"][i] == labels)).mean(1)
        assert result["kept"]["trials"] == kept.tolist()
        assert "outside" not in result
        assert result["clean"]["mean"] > 0.9
        assert result["robust"]["mean"] < result["clean"]["mean"] - 0.1
    assert 0 < measured["validity"]["max_linf"] <= 40 / 255 + 1e-6
    assert measured["validity"]["zero_gradient_share"] == 0
    assert measured["setting"]["tau"] == {"input": 0.1}
    json.dumps(measured)


def test_trials_repeat_alone_and_do_not_depend_on_classifiers(place):
    """More trials or classifiers add to a cell and change nothing of it; seeds change all."""
    _, base = run_cell(cell(), place)
    _, more = run_cell(cell(trials=3, classifiers=CLASSIFIERS[:1]), place)
    assert np.array_equal(base["robust"][0], more["robust"][0, :2])
    assert not np.array_equal(more["robust"][0, 0], more["robust"][0, 2])
    assert len({seed(cell(), trial) for seed in (reference_seed, start_seed) for trial in range(3)}) == 6
    _, other = run_cell(cell(seed=1), place)
    assert not np.array_equal(base["robust"], other["robust"])


def test_attacks_of_a_trial_share_references(place):
    """Clean predictions are the same in all cells of a trial, so that attacks can be compared in pairs."""
    _, weak = run_cell(cell(attack=ATTACK.model_copy(update={"eps": 4 / 255})), place)
    _, none = run_cell(cell(attack=None), place)
    assert np.array_equal(weak["clean"], none["clean"])
    assert np.array_equal(none["clean"], none["robust"])


def test_the_classifier_may_use_another_similarity_than_the_attack(place):
    other = ClassifierSpec(similarity="cosine", layers=("input",), k=5)
    measured, _ = run_cell(cell(classifiers=(CLASSIFIERS[1], other)), place)
    assert [r["similarity"] for r in measured["results"]] == ["l2", "cosine"]
    assert all(r["clean"]["mean"] > r["robust"]["mean"] for r in measured["results"])


def calibration(**changes):
    job = {
        "id": "tau",
        "features": RAW,
        "attack": OPEN,
        "similarity": "l2",
        "classifier": CLASSIFIERS[1],
        "grid": ({"tau": 0.001}, {"tau": 0.1}, {"tau": 100.0}),
        "images": 60,
        "references_per_class": 80,
        "tau_from": (),
        "seed": 0,
    }
    return CalibrationJob.model_validate(job | changes)


def test_calibration_picks_the_lowest_accuracy_and_cells_use_it(place):
    found = run_calibration(calibration(), place)
    assert found["picked"] == found["grid"][int(np.argmin(found["accuracies"]))]
    assert len(set(found["accuracies"])) > 1
    assert found == run_calibration(calibration(), place)
    evaluator = Evaluator(RAW, ATTACK.layers, "l2", CLASSIFIERS[1:], 60, place)
    seed = derive_seed(0, "digits", "calibration")
    trial = evaluator.draw(80, derive_seed(seed, "references"))
    classifier = DkNN(metric="l2").fit(trial.searches["l2", "input"].features, trial.labels)
    for point, accuracy in zip(found["grid"], found["accuracies"], strict=True):
        attack = trial.attack(OPEN.model_copy(update=point), seed)
        robust = classifier.score(attack(evaluator.images, evaluator.labels), evaluator.labels)
        assert accuracy == pytest.approx(robust)
    path = place.run.calibration("digits", "raw", "tau")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found))
    job = cell(attack=OPEN, tau_from=("tau",))
    setting = Setting(job, place)
    assert setting.known == {"tau": {"input": found["picked"]["tau"]}, "omega": {"input": 1.0}}
    assert (setting.config.tau, setting.config.omega) == (setting.known["tau"], setting.known["omega"])
    assert run_cell(job, place)[0]["setting"]["tau"] == {"input": found["picked"]["tau"]}
    two = {"layers": ("conv3", "conv4"), "tau": 0.03}
    weighed = OPEN.model_copy(update=two | {"omega": {"conv3": 0.1, "conv4": 0.9}})
    assert Setting(cell(attack=weighed), place).config.omega == {"conv3": 0.1, "conv4": 0.9}
    assert Setting(cell(attack=OPEN.model_copy(update=two)), place).config.omega == {"conv3": 0.5, "conv4": 0.5}


TAU = ({"tau": 0.1}, {"tau": 1.0}, {"tau": 10.0}, {"tau": 100.0})


@pytest.mark.parametrize(
    ("point", "expected", "further"),
    [
        ({"tau": 1.0}, [], None),
        ({"tau": 0.1}, ["tau"], {"tau": 0.0333}),
        ({"tau": 100.0}, ["tau"], {"tau": 300.0}),
    ],
)
def test_coarse_grids_grow_by_three_from_their_ends(point, expected, further):
    assert ends(point, TAU) == expected
    assert beyond(point, TAU) == further


def test_a_grid_of_two_parameters_grows_along_one_at_a_time():
    grid = [{"alpha": a, "learning_rate": r} for a in (1.0, 4.0, 30.0) for r in (0.03, 0.1, 0.3)]
    assert ends(grid[5], grid) == ["learning_rate"]
    assert beyond(grid[5], grid) == {"alpha": 4.0, "learning_rate": 0.9}
    assert beyond(grid[8], grid) == {"alpha": 90.0, "learning_rate": 0.3}
    assert ends(grid[4], grid) == []
    fine = [{"alpha": 1.0}, {"alpha": 2.0}]
    assert (beyond(fine[0], fine), beyond(fine[1], fine)) == ({"alpha": 0.5}, {"alpha": 4.0}), "by their own ratio"


def test_what_is_not_searched_has_no_end_and_some_grids_do_not_grow():
    single = [{"alpha": a, "learning_rate": 0.3} for a in (1.0, 4.0, 30.0)]
    assert ends(single[1], single) == []
    guides = [{"guides": 2}, {"guides": 6}]
    assert (ends(guides[1], guides), beyond(guides[1], guides)) == (["guides"], None)
    omega = [{"omega": 0.1}, {"omega": 0.9}]
    assert (ends(omega[0], omega), beyond(omega[0], omega)) == ([], None)
    coarse = [{"omega": share} for share in (0.3, 0.5, 0.7)]
    assert [ends(one, coarse) for one in coarse] == [["omega"], [], ["omega"]], "0.1 and 0.9 were not tried"
    assert beyond(coarse[0], coarse) is None


@pytest.mark.parametrize("extend", [0, 1, 4])
def test_a_calibration_grows_until_the_best_lies_inside(place, extend):
    grid = ({"tau": 0.3}, {"tau": 1.0}, {"tau": 3.0})  # all of them too large
    plain = run_calibration(calibration(grid=grid), place)
    found = run_calibration(calibration(grid=grid, extend=extend), place)
    assert found["grid"][:3] == list(grid)
    assert found["accuracies"][:3] == plain["accuracies"]
    assert len(found["accuracies"]) == len(found["grid"]) <= 3 + extend
    for i in range(3, len(found["grid"])):
        best = found["grid"][int(np.argmin(found["accuracies"][:i]))]
        assert found["grid"][i] == beyond(best, found["grid"][:i])
    assert found["picked"] == found["grid"][int(np.argmin(found["accuracies"]))]
    assert found.get("edge", False) == bool(ends(found["picked"], found["grid"]))
    assert plain["edge"]
    if extend == 4:
        assert "edge" not in found, "it has got inside"
        assert found["picked"]["tau"] < 0.3


def test_documents_of_calibrations_and_cells_hold_nothing_new_unless_asked_for():
    assert not calibration().model_dump_json().count("extend")
    assert '"extend":2' in calibration(extend=2).model_dump_json()
    assert not cell().model_dump_json().count("calibration_images")
    assert CellJob.model_validate_json(cell(calibration_images=9).model_dump_json()).calibration_images == 9


def test_the_number_of_guides_is_calibrated_as_a_whole_number(place):
    open_attack = DkNNAttackConfig(
        layers=("input",),
        eps=40 / 255,
        step_size=4 / 255,
        steps=10,
        alpha=None,
        learning_rate=None,
        **VARIANTS["dknn"]["successor-sign"],
    )
    grid = tuple({"guides": guides} for guides in (2, 6, 20))
    job = calibration(id="guides", attack=open_attack, grid=grid)
    found = run_calibration(job, place)
    one_by_one = [run_calibration(calibration(attack=open_attack, grid=(point,)), place) for point in grid]
    assert found["accuracies"] == [each["accuracies"][0] for each in one_by_one], "each has all neighbours it needs"
    path = place.run.calibration("digits", "raw", "guides")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found))
    setting = Setting(cell(attack=open_attack, alpha_from="guides"), place)
    assert setting.known == {"guides": int(found["picked"]["guides"])}
    assert isinstance(setting.config.guides, int)


def test_accuracy_outside_the_calibration_is_that_of_the_other_images(place):
    measured, predictions = run_cell(cell(calibration_images=20), place)
    right = predictions["robust"] == predictions["labels"]
    for result, own in zip(measured["results"], right, strict=True):
        assert result["outside"]["trials"] == own[:, 20:].mean(1).tolist(), "the batch comes first in the shuffle"
    everyone, all_predictions = run_cell(cell(test_images=None, trials=1, calibration_images=20), place)
    batch = pick_test_images(len(all_predictions["labels"]), 20, "digits")
    others = np.setdiff1d(np.arange(len(all_predictions["labels"])), batch)
    assert len(others) == len(all_predictions["labels"]) - 20
    right = all_predictions["robust"][1, 0] == all_predictions["labels"]
    assert everyone["results"][1]["outside"]["mean"] == pytest.approx(right[others].mean())
    assert "outside" not in run_cell(cell(calibration_images=60), place)[0]["results"][0], "there are no others"


@pytest.mark.parametrize("attack", [ATTACK, DkNNAttackConfig(layers=("input",), eps=40 / 255, steps=5)])
def test_cells_are_the_same_whatever_searches(place, monkeypatch, attack):
    pytest.importorskip("faiss", reason="faiss is an extra")
    found = {}
    for search in ("exact", "faiss"):
        monkeypatch.setenv("ASK_SEARCH", search)
        record, found[search] = run_cell(cell(attack=attack), place)
        assert {row["search"] for row in record["by_trial"]} == {search}
    for name, predictions in found["exact"].items():
        assert np.array_equal(found["faiss"][name], predictions)


def test_the_report_marks_what_lies_at_an_end_and_tells_the_accuracy_outside(place):
    path = place.run.calibration("digits", "raw", "end")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"picked": {"tau": 0.003}, "grid": [0.003, 0.1, 0.3], "edge": True}))
    job = cell(attack=OPEN, tau_from=("end",), calibration_images=20)
    measured, _ = run_cell(job, place)
    described = describe("digits/raw/cell", {**measured, "job": job.model_dump(mode="json")}, place.run)
    assert described["parameters"] == "τ input 0.003 (edge of its grid)"
    facts = dict(described["facts"])
    assert facts["parameters"] == described["parameters"]
    assert facts["accuracy on images outside the calibration"].endswith(" % (l2, input, K=5)")
    path.write_text(json.dumps({"picked": {"tau": 0.1}, "grid": [{"tau": t} for t in (0.003, 0.1, 0.3)]}))
    measured, _ = run_cell(job, place)
    described = describe("digits/raw/cell", {**measured, "job": job.model_dump(mode="json")}, place.run)
    assert described["parameters"] == "τ input 0.1"


def test_clean_errors_count_as_errors_in_records_old_and_new(place):
    measured, predictions = run_cell(cell(id="kept"), place)
    entry = {
        "cell": {"dataset": "digits", "model": "raw", "id": "kept"},
        "classifier": CLASSIFIERS[1].model_dump(mode="json"),
        "metric": "dknn_kept_accuracy",
    }
    path = place.run.cell("digits", "raw", "kept")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(measured))
    np.savez_compressed(path.with_suffix(".npz"), **predictions)
    expected = lookup(entry, place.run)
    assert expected["mean"] <= lookup({**entry, "metric": "dknn_robust_accuracy"}, place.run)["mean"]
    for result in measured["results"]:
        del result["kept"]
    path.write_text(json.dumps(measured))
    assert lookup(entry, place.run) == expected
    path.with_suffix(".npz").unlink()
    with pytest.raises(MissingValueError, match=r"kept\.npz is missing; make it again: snakemake .* --force"):
        lookup(entry, place.run)


def test_layer_weights_come_from_their_calibration(place):
    for name, picked in (("t3", {"tau": 0.03}), ("t4", {"tau": 0.3}), ("omega", {"omega": 0.2})):
        path = place.run.calibration("digits", "raw", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"picked": picked}))
    two = OPEN.model_copy(update={"layers": ("conv3", "conv4")})
    job = cell(attack=two, tau_from=("t3", "t4"), omega_from="omega")
    assert Setting(job, place).known == {
        "tau": {"conv3": 0.03, "conv4": 0.3},
        "omega": {"conv3": 0.2, "conv4": 0.8},
    }
    weights = {"conv2": 0.1, "conv3": 0.3, "conv4": 0.6}
    place.run.calibration("digits", "raw", "omega").write_text(json.dumps({"picked": weights}))
    more = OPEN.model_copy(update={"layers": tuple(weights)})
    assert Setting(cell(attack=more, tau_from=("t3", "t3", "t4"), omega_from="omega"), place).known["omega"] == weights
    three = ATTACK.model_copy(update={"layers": ("conv2", "conv3", "conv4")})
    assert Setting(cell(attack=three), place).config.omega == pytest.approx(dict.fromkeys(three.layers, 1 / 3))


def test_weights_of_more_than_two_layers_are_searched_one_after_the_other(place):
    """Layers of raw pixels are all the same, but for their temperature."""
    layers = ("input", "second", "third")
    for layer in layers[1:]:
        place.run.index("digits", "raw", layer).write_bytes(place.run.index("digits", "raw", "input").read_bytes())
    for name, tau in (("t1", 100), ("t2", 0.1), ("t3", 0.1)):
        path = place.run.calibration("digits", "raw", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"picked": {"tau": tau}}))
    job = calibration(
        id="omega",
        attack=OPEN.model_copy(update={"layers": layers, "eps": 60 / 255}),
        classifier={"similarity": "l2", "layers": layers, "k": 5},
        images=200,
        grid=(dict.fromkeys(layers, 0.3333),),
        tau_from=("t1", "t2", "t3"),
    )
    assert job.of_layers
    found = run_calibration(job, place)
    assert len(found["grid"]) == len(found["accuracies"]) == 2 * len(layers) + 1
    assert len(set(found["accuracies"])) > 1
    assert found["picked"] == found["grid"][int(np.argmin(found["accuracies"]))]
    assert all(sum(one.values()) == pytest.approx(1, abs=1e-3) for one in found["grid"])
    for i, layer in enumerate(layers):
        first = 2 * i + 1
        best = found["grid"][int(np.argmin(found["accuracies"][:first]))]
        assert found["grid"][first : first + 2] == weighed(best, layer)
    assert found["grid"][2] == {"input": 0.6667, "second": 0.1667, "third": 0.1667}
    assert "edge" not in found


def test_an_evaluator_indexes_only_what_is_asked(place):
    evaluator = Evaluator(RAW, ATTACK.layers, "l2", CLASSIFIERS, 10, place)
    trial = evaluator.draw(20, seed=0)
    assert list(trial.searches) == [("l2", "input")]
    attack = trial.attack(ATTACK, seed=0)
    found = trial.neighbours(evaluator.clean_features, attack)["l2", "input"]
    assert found.indices.shape == (10, 5)
    assert found.class_indices.shape == (10, 10, 5)
    assert trial.neighbours(evaluator.clean_features)["l2", "input"].class_indices.shape[2] == 0


def test_attacks_at_once_change_no_prediction(place, monkeypatch):
    """Sixty images a trial: several trials fit into a CPU's batch, and one at a time they give the same."""
    assert Evaluator(RAW, ATTACK.layers, "l2", CLASSIFIERS, 60, place).attacks_at_once == 4
    assert Evaluator(RAW, ATTACK.layers, "l2", CLASSIFIERS, 300, place).attacks_at_once == 1
    measured, together = run_cell(cell(trials=5), place)
    monkeypatch.setattr(Evaluator, "attacks_at_once", 1)
    measured_alone, alone = run_cell(cell(trials=5), place)
    for name, predicted in alone.items():
        np.testing.assert_array_equal(together[name], predicted)
    assert measured["results"] == measured_alone["results"]
    assert measured["validity"] == pytest.approx(measured_alone["validity"])


def test_points_of_a_grid_at_once_change_no_accuracy(place, monkeypatch):
    job = calibration(grid=tuple({"tau": tau} for tau in (0.003, 0.03, 0.3, 3.0, 30.0)))
    together = run_calibration(job, place)
    monkeypatch.setattr(Evaluator, "attacks_at_once", 1)
    assert run_calibration(job, place) == together
