"""A user's own labels, model and data: right, or refused with the fix, whichever attack or classifier gets them."""

import warnings

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors
from torch import nn

from ask.attacks import (
    PGD,
    AdvKnn,
    AdvKnnConfig,
    ASKAttack,
    ASKAttackConfig,
    DkNNAttack,
    DkNNAttackConfig,
    PGDConfig,
    identity_features,
    linf_ascent,
)
from ask.attacks.adapters import DkNNModule, to_foolbox, to_torchattacks
from ask.attacks.dknn_atk import mean_neighbour_distance
from ask.attacks.linf import BoxSteps
from ask.attacks.references import leave_one_out
from ask.config.attacks import BlockConfig
from ask.config.jobs import CellJob, ClassifierSpec, FeatureSpec, IndexJob
from ask.knn import DkNN
from ask.knn.search import ExactSearch
from ask.losses.ask import class_wise, instance_wise
from ask.losses.snn import pairwise_distance
from ask.measure.cells import compact, run_cell
from ask.measure.climb import Validity
from ask.measure.place import Place, build_index
from ask.models.hooks import hook_features
from ask.paths import Run

EPS = {"layers": ("input",), "eps": 0.2, "step_size": 0.02}
ATTACKS = {
    "ask": (ASKAttack, ASKAttackConfig(**EPS, tau=0.1)),
    "targeted": (ASKAttack, ASKAttackConfig(**EPS, tau=0.1, variant="targeted")),
    "dknn": (DkNNAttack, DkNNAttackConfig(**EPS, guides=5)),
    "dknn sign": (DkNNAttack, DkNNAttackConfig(**EPS, guides=5, optimizer="sign")),
    "dknn successor": (DkNNAttack, DkNNAttackConfig(**EPS, guides=6, optimizer="rmsprop", loss="relu", refresh=5)),
    "advknn": (AdvKnn, AdvKnnConfig(**EPS, block=BlockConfig(epochs=2))),
}
BY_NAME = pytest.mark.parametrize(("attack", "config"), ATTACKS.values(), ids=ATTACKS)
BACKENDS = pytest.mark.parametrize("backend", ["exact", "faiss"])


def seeded():
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="module")
def digits():
    pixels, labels = load_digits(return_X_y=True)
    return torch.from_numpy(pixels / 16).float(), torch.from_numpy(labels)


def split(digits):
    images, labels = digits
    return images[:500], labels[:500], images[1600:1660], labels[1600:1660]


# Labels.


def names(labels, kind):
    """Positions under other names, and what attacks call them."""
    shifted = labels * 3 - 4
    return {
        "shifted": (shifted, shifted),
        "float": (shifted.double(), shifted),
        "strings": (np.array([f"class {i}" for i in labels.tolist()]), labels),
    }[kind]


@BY_NAME
@pytest.mark.parametrize("kind", ["shifted", "float", "strings"])
def test_attacks_know_the_labels_given_to_fit(digits, attack, config, kind):
    x, y, images, labels = split(digits)
    known = DkNN(metric="l2").fit(x, y)
    expected = attack(identity_features, known.search_, config, generator=seeded())(images, labels)
    renamed = DkNN(metric="l2").fit(x, names(y, kind)[0])
    for references in (renamed, renamed.search_):
        found = attack(identity_features, references, config, generator=seeded())(images, names(labels, kind)[1])
        assert torch.equal(found, expected)
    assert renamed.score(found, names(labels, kind)[0]) == known.score(expected, labels)


@BY_NAME
def test_labels_that_were_not_given_to_fit_are_refused(digits, attack, config):
    x, y, images, labels = split(digits)
    classifier = DkNN(metric="l2").fit(x, y + 1)
    with pytest.raises(
        ValueError, match=r"label 0 was not among the labels of the references, 1, 2, .*, 10; give labels"
    ):
        attack(identity_features, classifier, config, generator=seeded())(images, labels)
    with pytest.raises(ValueError, match="labels must be int64"):
        attack(identity_features, classifier, config, generator=seeded())(images, labels.float() + 1)


def test_an_attack_takes_a_fitted_dknn_alone(digits):
    x, y, images, labels = split(digits)
    for features in (None, lambda images, layers: {layer: 2 * images.flatten(1) for layer in layers}):
        classifier = DkNN(features, layers=("input",)).fit(x, y)
        attack, config = ATTACKS["ask"]
        found = attack(classifier, config=config, generator=seeded())(images, labels)
        spelt = attack(features or identity_features, classifier.search_, config, generator=seeded())(images, labels)
        assert torch.equal(found, spelt)
    with pytest.raises(ValueError, match=r"not fitted yet; call fit\(X, y\) first"):
        attack(DkNN(), config=config, generator=seeded())
    with pytest.raises(ValueError, match="references are missing; give them, or a fitted DkNN"):
        attack(identity_features, config=config, generator=seeded())
    with pytest.raises(ValueError, match=r"tau='auto' needs a fitted DkNN to judge by"):
        attack(identity_features, classifier.search_, generator=seeded())
    with pytest.raises(ValueError, match="eps: put it into config, or give all settings without a config"):
        attack(classifier, config=config, eps=0.1)


def test_layers_fitted_on_different_labels_are_refused(digits):
    x, y, *_ = split(digits)
    references = {"a": DkNN().fit(x, y).search_["input"], "b": DkNN().fit(x, y + 1).search_["input"]}
    with pytest.raises(ValueError, match="different classes; fit them on the same labels"):
        ASKAttack(identity_features, references, ASKAttackConfig(layers=("a", "b")), generator=seeded())


@pytest.mark.parametrize("library", ["foolbox", "torchattacks"])
def test_other_libraries_judge_by_the_labels_given_to_fit(digits, library):
    module = pytest.importorskip(library)
    x, y, images, labels = split(digits)
    classifier = DkNN(metric="l2").fit(x, 2 * y + 1)
    labels = 2 * labels + 1
    attack, config = ATTACKS["ask"]
    ask = attack(classifier, config=config, generator=seeded())
    judge = DkNNModule(classifier).eval()
    assert judge(images).shape == (60, 20)
    assert judge(images).argmax(1).tolist() == classifier.predict(images).tolist()
    if library == "foolbox":
        model = module.PyTorchModel(judge, bounds=(0, 1), device="cpu")
        assert module.accuracy(model, images, labels) == pytest.approx(classifier.score(images, labels))
        _, found, fooled = to_foolbox(lambda _: ask)(model, images, labels, epsilons=0.2)
        assert 1 - fooled.float().mean() == pytest.approx(classifier.score(found, labels))
    else:
        found = to_torchattacks(ask, judge)(images, labels)
    assert classifier.score(found, labels) < classifier.score(images, labels) - 0.3


def test_labels_that_cannot_be_columns_are_refused(digits):
    x, y, images, _ = split(digits)
    for strange in (y - 1, y + 2**16):
        with pytest.raises(ValueError, match=r"can't be columns 0\.\.65535; fit on positions"):
            DkNNModule(DkNN().fit(x, strange))
    assert DkNNModule(DkNN().fit(x, [f"class {i}" for i in y]))(images).shape == (60, 10)


# Many classes.


def test_predictions_take_the_smallest_type_that_holds_them():
    assert compact(np.array([0, 255])).dtype == np.uint8
    assert compact(np.zeros((0, 3), np.int64)).dtype == np.uint8
    assert compact(np.array([[0], [256]])).tolist() == [[0], [256]]
    assert compact(np.array([256])).dtype == np.uint16


def test_a_cell_of_300_classes_is_right(tmp_path):
    classes = 300
    folder = tmp_path / "data/prepared/many"
    folder.mkdir(parents=True)
    codes = np.random.default_rng(0).integers(20, 235, (classes, 1, 4, 4)).astype(np.uint8)
    for name, copies in (("train", 2), ("test", 1)):
        np.save(folder / f"{name}_images.npy", np.concatenate([codes + i for i in range(copies)]).astype(np.uint8))
        np.save(folder / f"{name}_labels.npy", np.tile(np.arange(classes), copies))
    place = Place(Run(tmp_path / "run"), tmp_path / "data", torch.device("cpu"))
    raw = FeatureSpec(dataset="many", model="raw", network=None)
    build_index(IndexJob(features=raw, layer="input"), place)
    job = CellJob(
        id="cell",
        features=raw,
        attack=ASKAttackConfig(layers=("input",), k_in=1, k_out=1, eps=1 / 255, step_size=1 / 255, steps=1),
        similarity="l2",
        classifiers=(ClassifierSpec(similarity="l2", layers=("input",), k=1),),
        references_per_class=2,
        trials=1,
        test_images=None,
        tau_from=(),
        omega_from=None,
        seed=0,
    )
    measured, found = run_cell(job, place)
    assert {array.dtype for array in found.values()} == {np.dtype(np.uint16)}
    assert found["labels"].tolist() == list(range(classes))
    assert found["clean"][0, 0].tolist() == found["robust"][0, 0].tolist() == list(range(classes))
    assert measured["results"][0]["clean"]["mean"] == 1


# Zero vectors under cosine similarity.


@BACKENDS
@pytest.mark.parametrize("short", [0.0, 1e-14, 1e-25])
def test_a_zero_reference_ranks_as_one_at_right_angles(backend, short):
    vectors = torch.randn(60, 8, generator=seeded())
    vectors[::6] *= short / vectors[::6].norm(dim=1, keepdim=True)
    labels = torch.arange(60) % 3
    queries = torch.randn(40, 8, generator=seeded().manual_seed(1))
    found = DkNN(backend=backend).fit(vectors, labels).search_["input"].search(queries, k=60, k_class=20)
    cosine = nn.functional.normalize(queries) @ nn.functional.normalize(vectors).T
    expected = 1 - torch.where(torch.arange(60) % 6 == 0, 0, cosine)
    torch.testing.assert_close(found.distances, expected.gather(1, found.indices), atol=1e-5, rtol=0)
    assert (found.distances.diff(dim=1) >= -1e-5).all()
    by_class = expected.gather(1, found.class_indices.flatten(1)).reshape(found.class_indices.shape)
    torch.testing.assert_close(found.class_distances, by_class, atol=1e-5, rtol=0)
    if backend == "exact":
        # Equidistant ones in the order given.
        zeros = [[i for i in row if i % 6 == 0] for row in found.indices.tolist()]
        assert all(row == sorted(row) for row in zeros)
        theirs = NearestNeighbors(metric="cosine", algorithm="brute").fit(vectors * (torch.arange(60) % 6 > 0)[:, None])
        np.testing.assert_allclose(found.distances, theirs.kneighbors(queries, 60)[0], atol=1e-5)


@BACKENDS
@pytest.mark.parametrize("zeros", [slice(0, 0), slice(0, 2), slice(None)])
def test_to_a_zero_query_all_references_are_equally_near(backend, zeros):
    vectors, labels = torch.randn(12, 4, generator=seeded()), torch.tensor([2, 0, 1] * 4)
    vectors[zeros] = 0
    search = DkNN(backend=backend).fit(vectors, labels).search_["input"]
    queries = torch.randn(3, 4, generator=seeded())
    queries[1] = 0
    found = search.search(queries, k=5, k_class=2)
    assert found.indices[1].tolist() == [0, 1, 2, 3, 4]
    assert found.class_indices[1].tolist() == [[1, 4], [2, 5], [0, 3]]
    assert (found.distances[1] == 1).all()
    assert (found.class_distances[1] == 1).all()
    alone = search.search(queries[[0, 2]], k=5, k_class=2)
    assert torch.equal(found.distances[[0, 2]], alone.distances)
    assert search.search(queries, k_class=1).indices.shape == (3, 0)
    assert leave_one_out(search, 2)[0].shape == (12, 2)


def test_zero_vectors_have_similarity_0_in_the_losses():
    references, rows = torch.randn(6, 4, generator=seeded()), torch.tensor([[[0, 1], [2, 3]]])
    references[2:4] = 0
    query = torch.randn(1, 4, generator=seeded())
    assert class_wise(references, rows, similarity="cosine", tau=1)(query)[0, 1] == 0
    zero = torch.zeros(1, 4, requires_grad=True)
    found = class_wise(references, rows, similarity="cosine", tau=1)(zero)
    assert found.tolist() == [[0, 0]]
    assert torch.autograd.grad(found.sum(), zero)[0].isfinite().all()
    shares = instance_wise(zero, references.reshape(2, 3, 4), similarity="cosine", tau=1)
    torch.testing.assert_close(shares, torch.full((1, 2), np.log(3), dtype=torch.float32))
    assert (pairwise_distance(references, "cosine")[2, :2] == 1).all()


@BY_NAME
def test_attacks_climb_away_from_dead_features(digits, attack, config):
    x, y, images, labels = split(digits)
    x, images = x.clone(), images.clone()
    x[::7], images[::7] = 0, 0
    classifier = DkNN().fit(x, y)
    found = attack(identity_features, classifier.search_, config, generator=seeded())(images, labels)
    assert found.isfinite().all()
    assert (found - images).abs().flatten(1).amax(1).min() > 0.1


# A constant that all features carry, and float64.


@pytest.mark.parametrize("name", ["ask", "targeted", "dknn", "dknn sign", "dknn successor"])
@pytest.mark.parametrize("offset", [100, 1000, 10_000])
def test_l2_attacks_do_not_weaken_when_all_features_carry_a_constant(digits, name, offset):
    x, y, images, labels = split(digits)
    attack, config = ATTACKS[name]
    scores = []
    for carried in (0, offset):

        def features(images, layers, carried=carried):
            return {layer: images.flatten(1) + carried for layer in layers}

        classifier = DkNN(features, metric="l2").fit(x, y)
        assert (classifier.search_["input"].centre is None) == (carried == 0)
        found = attack(features, classifier.search_, config, generator=seeded())(images, labels)
        scores.append(classifier.score(found, labels))
    assert scores[0] < 0.9
    assert scores[1] == pytest.approx(scores[0], abs=0.05)


@BACKENDS
def test_class_distances_survive_a_common_constant(backend):
    vectors = torch.randn(60, 16, generator=seeded())
    # A power of two, which takes only the last bits.
    exact = (vectors * 1024).round() / 1024
    labels = torch.arange(60) % 3
    plain, moved = (
        DkNN(metric="l2", backend=backend).fit(x, labels).search_["input"].search(x[:9], k=3, k_class=4)
        for x in (exact, exact + 4096)
    )
    assert torch.equal(plain.indices, moved.indices)
    assert torch.equal(plain.class_indices, moved.class_indices)
    torch.testing.assert_close(plain.class_distances, moved.class_distances, atol=5e-3, rtol=0)
    torch.testing.assert_close(plain.distances, moved.distances, atol=2e-3, rtol=0)


@pytest.mark.parametrize("backend", ["exact", "faiss", "faiss-ivf"])
@pytest.mark.parametrize("kind", ["<f8", ">f8", "<i8", ">i8", ">i4", "g"])
def test_numbers_beyond_float32_are_told_apart(backend, kind):
    """Seconds since 1970, whatever finds them and in whatever order their bytes are."""
    seconds = (1_700_000_000 + np.arange(400)[:, None] ** 2).astype(kind)
    order = np.random.default_rng(0).permutation(400)
    x, queries, y = seconds[order[:300]], seconds[order[300:]], np.arange(400) // 10 % 2
    classifier = DkNN(metric="l2", n_neighbors=1, backend=backend).fit(x, y[order[:300]])
    right = (y[order[300:]] == classifier.predict(queries)).mean()
    truth = KNeighborsClassifier(1).fit(x.astype(float), y[order[:300]]).score(queries.astype(float), y[order[300:]])
    assert right == pytest.approx(truth, abs=0.1 if backend == "faiss-ivf" else 0)
    assert truth > 0.8


@BACKENDS
@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_features_whose_squares_overflow_are_refused(backend, metric):
    x, labels = 1e20 * torch.rand(60, 16, generator=seeded()), torch.arange(60) % 3
    with pytest.raises(ValueError, match=r"references hold .* such as float32 can't square"):
        DkNN(metric=metric, backend=backend).fit(x, labels)
    small = DkNN(metric=metric, backend=backend).fit(x / 1e20, labels)
    with pytest.raises(ValueError, match=r"queries hold .* such as float32 can't square"):
        small.predict(x[:2])
    assert DkNN(metric=metric, backend=backend).fit(x.double(), labels).score(x.double(), labels) > 0.5


@BACKENDS
@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_features_with_a_gradient_are_searched_without_it(backend, metric):
    vectors, labels = torch.rand(60, 16, generator=seeded()), torch.arange(60) % 3
    learning = vectors.clone().requires_grad_()
    plain = ExactSearch(vectors, labels, similarity=metric).search(vectors[:9], k=3, k_class=4)
    made = DkNN(metric=metric, backend=backend).fit(learning, labels).search_["input"]
    found = made.search(learning[:9] * 1, k=3, k_class=4)
    assert torch.equal(found.indices, plain.indices)
    assert not found.distances.requires_grad
    assert torch.equal(ExactSearch(learning, labels, similarity=metric).search(vectors[:9], k=3).indices, plain.indices)


@BACKENDS
@pytest.mark.parametrize("unit", [1.0, 0.25])
def test_equal_distances_stay_equal_beside_a_common_constant(backend, unit):
    """Whole numbers have many; they are ranked by position, as in float64."""
    x, queries = (
        unit * torch.empty(rows, 6).geometric_(0.3, generator=torch.Generator().manual_seed(rows))
        for rows in (600, 200)
    )
    x, queries = (torch.cat([part, torch.full((len(part), 1), 3e4)], 1) for part in (x, queries))
    exact = torch.cdist(queries.double(), x.double(), compute_mode="donot_use_mm_for_euclid_dist")
    classifier = DkNN(metric="l2", backend=backend).fit(x, torch.arange(600) % 3)
    assert classifier.search_["input"].centre is not None
    assert (classifier.kneighbors(queries)[1] == exact.argsort(dim=1, stable=True)[:, :5].numpy()).all()


def test_a_constant_is_left_alone_where_it_does_no_harm():
    vectors, labels = torch.randn(60, 16, generator=seeded()), torch.arange(60) % 3
    for carried, kind in ((30, "l2"), (1e4, "cosine")):
        assert ExactSearch(vectors + carried, labels, similarity=kind).centre is None
    assert ExactSearch(vectors.double() + 1e4, labels, similarity="l2").centre is None
    assert ExactSearch(vectors + 300, labels, similarity="l2").centre is not None


@pytest.mark.parametrize("kind", [np.float64, np.int64, np.float32])
@pytest.mark.parametrize("as_tensor", [False, True])
def test_arrays_keep_what_float32_would_cut(kind, as_tensor):
    random = np.random.default_rng(0)
    x = random.normal(size=(300, 5)) * (1 if kind is np.float64 else 100)
    y = (x[:, 0] > 0).astype(int)
    x = (x + (0 if kind is np.float32 else 1e8)).astype(kind)
    give = torch.from_numpy if as_tensor else np.asarray
    ours = DkNN(metric="l2").fit(give(x[:200]), y[:200])
    theirs = KNeighborsClassifier(5, algorithm="kd_tree").fit(x[:200], y[:200])
    assert ours.score(give(x[200:]), y[200:]) == theirs.score(x[200:], y[200:]) > 0.85
    assert ours.kneighbors(give(x[200:]))[0].dtype == (np.float32 if kind is np.float32 else np.float64)
    seen = []
    DkNN(lambda images, layers: seen.append(images.dtype) or dict.fromkeys(layers, images), layers=("a",)).fit(x, y)
    assert seen == [torch.float32]


@BY_NAME
def test_float32_images_attack_float64_references(digits, attack, config):
    x, y, images, labels = split(digits)
    classifier = DkNN(metric="l2").fit(x.double().numpy(), y)
    found = attack(identity_features, classifier.search_, config, generator=seeded())(images, labels)
    assert found.dtype == torch.float32
    assert classifier.score(found, labels) < classifier.score(images, labels)


# Duplicates, and gradients that are not finite.


@pytest.mark.parametrize("metric", ["cosine", "l2"])
@pytest.mark.parametrize("distinct", [1, 2, 10])
@BY_NAME
def test_duplicate_references_leave_images_finite(attack, config, distinct, metric):
    x = torch.rand(distinct, 8, generator=seeded()).repeat_interleave(20, 0)
    y = torch.arange(len(x)) % 2
    classifier = DkNN(metric=metric).fit(x, y)
    images = x[::20].contiguous()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".*gradients are zero")  # equal references draw equally
        found = attack(identity_features, classifier.search_, config, generator=seeded())(images, y[::20])
    assert found.isfinite().all()
    assert ((found - images).abs() <= 0.2 + 1e-6).all()


def test_where_all_references_are_duplicates_they_count_once():
    x = torch.rand(10, 8, generator=seeded())
    y = torch.zeros(10, dtype=torch.int64)
    for k in (3, 50):
        many = ExactSearch(x.repeat(60, 1), y.repeat(60), similarity="l2")
        once = ExactSearch(x.unique(dim=0), y, similarity="l2")
        assert mean_neighbour_distance(many, k) == mean_neighbour_distance(once, min(k, 9)) > 0
    assert mean_neighbour_distance(ExactSearch(x[:1].repeat(9, 1), y[:9], similarity="l2"), 3) == 1


def edges(images, layers):
    """Magnitudes of differences, whose gradient is NaN where there is none."""
    return {layer: images.diff(dim=1).square().sqrt() for layer in layers}


@BY_NAME
def test_gradients_that_are_not_finite_are_a_warning_once_a_call(digits, attack, config):
    x, y, images, labels = split((digits[0].round(), digits[1]))
    classifier = DkNN(edges, metric="l2").fit(x, y)
    seen = Validity()
    made = attack(edges, classifier.search_, config.model_copy(update={"batch_size": 25}), generator=seeded())
    made.on_gradient = seen.see_gradient
    with pytest.warns(
        RuntimeWarning, match="gradients hold NaN or infinite values.*make the features different"
    ) as said:
        found = made(images, labels)
    assert len(said) == 1
    assert said[0].filename == __file__
    assert found.isfinite().all()
    seen.see_images(images, found, 0.2)
    assert 0 < seen.over([seen.counts()])["non_finite_gradient_share"] <= 1


def test_finite_gradients_are_no_warning_and_share_0(digits):
    x, y, images, labels = split(digits)
    seen = Validity()
    attack, config = ATTACKS["ask"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attack(DkNN().fit(x, y), config=config, generator=seeded(), on_gradient=seen.see_gradient)(images, labels)
    assert seen.over([seen.counts()])["non_finite_gradient_share"] == 0


def test_validity_counts_gradients_that_are_not_finite():
    seen = Validity()
    assert seen.over([seen.counts()])["non_finite_gradient_share"] is None
    seen.see_gradient(torch.tensor([[0.0, float("nan")], [float("inf"), 1.0], [0.0, 0.0], [1.0, 2.0]]))
    assert seen.over([seen.counts()])["non_finite_gradient_share"] == 0.5
    assert seen.over([seen.counts()])["zero_gradient_share"] == 0.25


@pytest.mark.parametrize("rule", [None, BoxSteps("adam", 0.1), BoxSteps("rmsprop", 0.1)])
def test_pixels_without_a_finite_gradient_rest_and_the_others_move(rule):
    def loss(images):
        return images[:, 1] + (0 * images[:, 0]).sqrt()

    images = torch.full((2, 2), 0.5)
    found = linf_ascent(loss, images, eps=0.1, step_size=0.02, steps=5, rule=rule)
    torch.testing.assert_close(found[:, 0], images[:, 0])
    assert (found[:, 1] > 0.53).all()


def test_an_image_of_which_rounding_leaves_no_room_stays_finite():
    images = torch.ones(1, 3)
    rule = BoxSteps("adam", 0.1)
    found = linf_ascent(lambda x: x.sum(1), images, eps=1e-10, step_size=1e-10, steps=3, generator=seeded(), rule=rule)
    assert torch.equal(found, images)


# Networks in training mode.


class Layered(nn.Module):
    """A network whose features, as a bound method, depend on its mode."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten())

    def forward(self, images):
        return self.body(images)

    def features(self, images, layers):
        return {layer: self(images) for layer in layers}


@pytest.mark.parametrize("access", ["hooks", "bound method"])
def test_a_network_in_training_mode_is_in_evaluation_mode_as_long_as_a_call_runs(access):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Layered().train()
    network.body[0].eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    features = hook_features(network, {"end": "body.3"}) if access == "hooks" else network.features
    x, y = torch.rand(60, 1, 8, 8, generator=seeded()), torch.arange(60) % 3
    classifier = DkNN(features, layers=("end",), n_neighbors=1).fit(x, y)
    assert classifier.score(x, y) == 1
    config = ASKAttackConfig(layers=("end",), steps=2, k_in=1, k_out=1)
    first, second = (ASKAttack(classifier, config=config, generator=seeded())(x[:8], y[:8]) for _ in range(2))
    assert torch.equal(first, second)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert [m.training for m in network.body] == [False, True, True, True]
    assert network.training
    assert all(p.requires_grad for p in network.parameters())


def test_a_failing_call_puts_the_mode_back():
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 2)).train()
    with pytest.raises(RuntimeError):
        hook_features(network, ["1"])(torch.rand(2, 1, 3, 3), ["1"])
    assert all(m.training for m in network.modules())


# Settings.


def test_score_refuses_labels_of_another_shape(digits):
    x, y, images, labels = split(digits)
    classifier = DkNN().fit(x, y)
    assert classifier.score(images, labels) == classifier.score(images, labels.tolist()) > 0.9
    for column in (labels.reshape(-1, 1), labels.numpy().reshape(-1, 1)):
        with pytest.raises(
            ValueError, match=r"one label for each of the 60 samples, got shape \(60, 1\); ravel\(\) it"
        ):
            classifier.score(images, column)
    with pytest.raises(ValueError, match=r"one label for each of the 60 samples, got shape \(59,\)"):
        classifier.score(images, labels[:59])
    with pytest.raises(ValueError, match=r"got shape \(500, 1\); ravel\(\) it"):
        DkNN().fit(x, y.reshape(-1, 1))


@pytest.mark.parametrize("k", [0, -1, 2.0, True, "5", None])
def test_neighbours_are_a_whole_number_of_at_least_1(digits, k):
    x, y, images, _ = split(digits)
    with pytest.raises(ValueError, match=rf"n_neighbors={k!r} must be a whole number of at least 1"):
        DkNN(n_neighbors=k).fit(x, y)
    fitted = DkNN().fit(x, y)
    if k is not None:
        with pytest.raises(ValueError, match="must be a whole number of at least 1"):
            fitted.kneighbors(images, n_neighbors=k)
    with pytest.raises(ValueError, match="must be a whole number of at least 1"):
        fitted.set_params(n_neighbors=k).predict(images)
    assert DkNN(n_neighbors=np.int64(3)).fit(x, y).kneighbors(images)[1].shape == (60, 3)


def test_other_mistakes_with_a_dknn_are_clear_errors(digits):
    x, y, images, _ = split(digits)
    with pytest.raises(ValueError, match=r"layers='input' must be .* names, each once; write \('input',\)"):
        DkNN(layers="input").fit(x, y)
    for layers in ((), ("input", "input")):
        with pytest.raises(ValueError, match=r"layers=\(.*\) must be a non-empty sequence of layer names, each once$"):
            DkNN(layers=layers).fit(x, y)
    with pytest.raises(ValueError, match="layer 'conv9' was not fitted; choose from input"):
        DkNN().fit(x, y).kneighbors(images, layer="conv9")
    with pytest.raises(
        ValueError, match=r"X must be \(samples, \.\.\.\), got shape \(64,\); a single sample is x\[None\]"
    ):
        DkNN().fit(x, y).predict(images[0])
    with pytest.raises(ValueError, match="X is empty"):
        DkNN().fit(x[:0], y[:0])
    with pytest.raises(ValueError, match="batch_size=0 must be a whole number of at least 1"):
        DkNN(batch_size=0).fit(x, y)
    with pytest.raises(ValueError, match="labels are fractions; classes must be whole numbers or strings"):
        DkNN().fit(x, y / 2)


@pytest.mark.parametrize("name", ["omega", "tau"])
def test_settings_of_a_layer_that_is_not_attacked_are_refused(digits, name):
    x, y, *_ = split(digits)
    config = ASKAttackConfig(layers=("input",), **{name: {"input": 0.5, "inptu": 0.5}})
    with pytest.raises(
        ValueError, match=rf"{name} is given for 'inptu', which is not attacked; attacked layers: input"
    ):
        ASKAttack(DkNN().fit(x, y), config=config, generator=seeded())


@pytest.mark.parametrize("generator", [0, np.random.default_rng(0)])
def test_a_generator_is_a_torch_generator(digits, generator):
    x, y, images, _ = split(digits)
    classifier = DkNN().fit(x, y)
    fix = r", got int; torch\.Generator\(\)\.manual_seed\(0\)\?" if generator == 0 else ", got"
    makers = [lambda: PGD(nn.Linear(64, 10), PGDConfig(), generator=generator)]
    makers += [
        lambda attack=attack, config=config: attack(identity_features, classifier, config, generator=generator)
        for attack, config in ATTACKS.values()
    ]
    makers.append(lambda: linf_ascent(torch.sum, images, eps=0.1, step_size=0.1, steps=1, generator=generator))
    for make in makers:
        with pytest.raises(ValueError, match=rf"generator must be a torch\.Generator{fix}"):
            make()
