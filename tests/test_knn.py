"""Exact search and the DkNN classifier, against scikit-learn."""

import pickle
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone, is_classifier
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

import ask.knn.faiss
from ask.errors import AskError
from ask.knn import DkNN
from ask.knn.dknn import classify, make_search, votes
from ask.knn.faiss import searching
from ask.knn.search import ExactSearch
from ask.models.hooks import hook_features

METRICS = {"cosine": "cosine", "l2": "euclidean"}


def problem(references=600, queries=80, dimensions=33, classes=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (references,), generator=generator)
    labels[:classes] = torch.arange(classes)
    centres = torch.rand(classes, dimensions, generator=generator)
    features = centres[labels] + 0.5 * torch.rand(references, dimensions, generator=generator)
    return features, labels, torch.rand(queries, dimensions, generator=generator)


def oracle(features, queries, similarity, k):
    neighbours = NearestNeighbors(n_neighbors=k, algorithm="brute", metric=METRICS[similarity])
    return neighbours.fit(features.double().numpy()).kneighbors(queries.double().numpy())


@pytest.mark.parametrize("similarity", METRICS)
@pytest.mark.parametrize("memory", [1, 100_000, 2**28])
def test_global_and_class_neighbours_equal_scikit_learn(similarity, memory):
    features, labels, queries = problem()
    found = ExactSearch(features, labels, similarity=similarity, memory=memory).search(queries, k=9, k_class=6)
    distances, ids = oracle(features, queries, similarity, 9)
    assert np.array_equal(found.indices.numpy(), ids)
    np.testing.assert_allclose(found.distances.numpy(), distances, rtol=1e-5, atol=1e-6)
    for label in range(7):
        members = (labels == label).nonzero().squeeze(1)
        distances, ids = oracle(features[members], queries, similarity, 6)
        assert np.array_equal(found.class_indices[:, label].numpy(), members.numpy()[ids])
        np.testing.assert_allclose(found.class_distances[:, label].numpy(), distances, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("memory", [4 * 130 * 7, 2**28], ids=["class by class", "at once"])
def test_pixels_of_equal_distance_are_ordered_by_position(memory):
    # Small integers: distances tie exactly, in float32 scores almost.
    generator = torch.Generator().manual_seed(1)
    features = torch.randint(0, 3, (500, 12), generator=generator) / 255
    queries = torch.randint(0, 3, (60, 12), generator=generator) / 255
    labels = torch.randint(4, (500,), generator=generator)
    found = ExactSearch(features, labels, similarity="l2", memory=memory).search(queries, k=20, k_class=9)
    squared = (queries.double().mul(255).round().unsqueeze(1) - features.double().mul(255).round()).square().sum(2)
    expected = squared.argsort(dim=1, stable=True)[:, :20]
    assert torch.equal(found.indices, expected)
    members = (labels == 2).nonzero().squeeze(1)
    assert torch.equal(found.class_indices[:, 2], members[squared[:, members].argsort(dim=1, stable=True)[:, :9]])


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    offset=st.sampled_from([0.0, 1.0, 100.0]),
    similarity=st.sampled_from(["cosine", "l2"]),
    dimensions=st.sampled_from([2, 784]),
    memory=st.sampled_from([4 * 70 * 10, 4 * 140 * 3, 2**28]),
)
def test_float32_scores_never_hide_a_neighbour(seed, offset, similarity, dimensions, memory):
    """With a large common offset float32 scores lose most digits; ids must stay those of float64."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.rand(200, dimensions, generator=generator) + offset
    queries = torch.rand(10, dimensions, generator=generator) + offset
    labels = torch.arange(200) % 3
    search = ExactSearch(features, labels, similarity=similarity, memory=memory)
    found = search.search(queries, k=5)
    # The contract is exactness for the references as float32 (and, under cosine, as float32 unit vectors).
    references = torch.empty_like(search.features)
    references[search.order] = search.features
    asked = torch.nn.functional.normalize(queries) if similarity == "cosine" else queries
    squared = (asked.double().unsqueeze(1) - references.double()).square().sum(2)
    assert torch.equal(found.indices, squared.argsort(dim=1, stable=True)[:, :5])


def test_many_references_are_compared_in_blocks_of_whole_classes():
    features, labels, _ = problem(600, 1)
    widths = lambda memory, queries: [  # noqa: E731
        last - first for first, last in ExactSearch(features, labels, memory=memory)._blocks(queries)
    ]
    assert widths(2**28, 10_000) == [7]
    assert widths(4 * 50 * 200, 50) == [2, 2, 2, 1]  # 200 references at a time
    assert widths(4 * 50 * 200, 5) == [7]
    assert widths(4 * 50 * 10, 50) == [1] * 7  # a class is never cut


def test_unbalanced_classes_and_k_of_a_whole_class():
    features, _, queries = problem(50, 5)
    labels = torch.tensor([0] * 40 + [1] * 7 + [2] * 3)
    found = ExactSearch(features, labels, similarity="l2").search(queries, k=50, k_class=3)
    assert found.indices.sort(1).values.tolist() == [list(range(50))] * 5
    assert found.class_indices[:, 2].sort(1).values.tolist() == [[47, 48, 49]] * 5


@pytest.mark.parametrize("backend", ["faiss", "faiss-ivf"])
@pytest.mark.parametrize("similarity", METRICS)
def test_faiss_agrees_with_exact_search(backend, similarity):
    pytest.importorskip("faiss", reason="faiss is an extra")
    features, labels, queries = problem(4000, 50)
    exact = ExactSearch(features, labels, similarity=similarity).search(queries, k=5, k_class=4)
    found = make_search(features, labels, similarity, backend).search(queries, k=5, k_class=4)
    assert torch.equal(found.class_indices, exact.class_indices)
    torch.testing.assert_close(found.class_distances, exact.class_distances, atol=1e-4, rtol=1e-3)
    overlap = (found.indices.unsqueeze(2) == exact.indices.unsqueeze(1)).any(2).float().mean()
    if backend == "faiss":
        assert torch.equal(found.indices, exact.indices)
        torch.testing.assert_close(found.distances, exact.distances, atol=1e-5, rtol=1e-4)
    else:
        assert 0.2 < overlap < 1  # approximate, and not by accident exact


def test_the_approximate_search_of_all_references_searches_no_class():
    pytest.importorskip("faiss", reason="faiss is an extra")
    features, labels, queries = problem(4000, 50)
    search = make_search(features, labels, "l2", "faiss-ivf")
    found = search.search(queries, k=5)
    assert not search._by_class
    assert found.class_indices.shape == found.class_distances.shape == (50, search.n_classes, 0)
    assert torch.equal(found.indices, search.search(queries, k=5, k_class=1).indices)


@pytest.mark.parametrize("similarity", METRICS)
@pytest.mark.parametrize("kind", ["plain", "many queries", "coarse", "doubled", "far", "zero"])
def test_faiss_finds_the_same_references_also_among_ties(kind, similarity):
    pytest.importorskip("faiss", reason="faiss is an extra")
    features, labels, queries = problem(3000, 2000 if kind == "many queries" else 60)
    if kind == "coarse":  # many references at the same distance
        features, queries = features.round(), queries.round()
    elif kind == "doubled":
        features = torch.cat([features[:1500]] * 2)
    elif kind == "far":  # the queries' own squares drown the distances
        features, queries = 1 + 1e-3 * features, 1 + 1e-3 * queries
    elif kind == "zero":
        features[::7], queries[::5] = 0, 0
    exact = ExactSearch(features, labels, similarity=similarity).search(queries, k=7, k_class=4)
    found = make_search(features, labels, similarity, "faiss").search(queries, k=7, k_class=4)
    assert torch.equal(found.indices, exact.indices)
    assert torch.equal(found.class_indices, exact.class_indices)
    assert torch.equal(found.distances, exact.distances)
    torch.testing.assert_close(found.class_distances, exact.class_distances, atol=1e-3, rtol=1e-3)


def test_what_searches_is_wanted_or_measured(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    device, rates = torch.device("cpu"), {"exact": 100.0, "faiss": 119.0}
    monkeypatch.setattr(ask.knn.faiss, "_measure", lambda _: rates)
    monkeypatch.setattr(ask.knn.faiss, "find_spec", lambda _: None)
    monkeypatch.setenv("ASK_SEARCH", "auto")
    assert searching(device) == "exact"
    monkeypatch.setenv("ASK_SEARCH", "faiss")
    with pytest.raises(AskError, match="no faiss is installed"):
        searching(device)
    monkeypatch.setattr(ask.knn.faiss, "find_spec", lambda name: name)
    assert searching(device) == "faiss"
    monkeypatch.delenv("ASK_SEARCH")
    assert searching(device) == "exact", "a gain too small"
    rates["faiss"] = 121.0
    assert searching(device) == "exact", "measured once a machine"
    (tmp_path / "ask" / "search.json").unlink()
    assert searching(device) == "faiss"
    monkeypatch.setenv("ASK_SEARCH", "exact")
    assert searching(device) == "exact"


def test_both_searches_are_measured():
    pytest.importorskip("faiss", reason="faiss is an extra")
    rates = ask.knn.faiss._measure(torch.device("cpu"))
    assert set(rates) == {"exact", "faiss"}
    assert min(rates.values()) > 0


@pytest.mark.parametrize("backend", ["exact", "faiss"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 601}, "k=601 exceeds the 600 references"),
        ({"k_class": 300}, "references of class"),
        ({"queries": torch.full((2, 33), float("nan"))}, "NaN"),
        ({"queries": torch.zeros(2, 32)}, r"must be \(queries, 33\)"),
        ({"features": torch.full((600, 33), float("inf"))}, "NaN or infinite"),
        ({"labels": torch.zeros(599, dtype=torch.int64)}, "must be int64 of shape"),
        ({"labels": torch.ones(600, dtype=torch.int64)}, "class 0 has no reference"),
    ],
)
def test_bad_input_is_one_clear_error(backend, change, message):
    if backend == "faiss":
        pytest.importorskip("faiss", reason="faiss is an extra")
    features, labels, queries = problem()
    features, labels = change.get("features", features), change.get("labels", labels)
    with pytest.raises(ValueError, match=message):
        make_search(features, labels, "l2", backend).search(
            change.get("queries", queries), k=change.get("k", 1), k_class=change.get("k_class", 0)
        )


@pytest.mark.parametrize("similarity", METRICS)
@pytest.mark.parametrize("k", [1, 5, 8])
def test_one_layer_votes_as_scikit_learn(similarity, k):
    features, labels, queries = problem(seed=3)
    ours = DkNN(n_neighbors=k, metric=similarity).fit(features, labels)
    theirs = KNeighborsClassifier(k, algorithm="brute", metric=METRICS[similarity]).fit(features, labels)
    np.testing.assert_allclose(ours.predict_proba(queries), theirs.predict_proba(queries.numpy()))
    assert np.array_equal(ours.predict(queries), theirs.predict(queries.numpy()))


def test_layers_vote_together_and_ties_go_to_the_lowest_class():
    """Equation (1) by hand: two layers, K = 3."""
    first = votes(torch.tensor([[0, 0, 1], [2, 2, 1]]), 3)
    second = votes(torch.tensor([[1, 1, 0], [2, 0, 1]]), 3)
    assert first.tolist() == [[2, 1, 0], [0, 1, 2]]
    assert classify([first, second]).tolist() == [0, 2]


def test_dknn_on_layers_of_a_feature_function():
    features, labels, queries = problem()
    halves = {"low": slice(0, 16), "high": slice(16, 33)}

    def extract(x, layers):
        return {layer: x[:, halves[layer]] for layer in layers}

    ours = DkNN(extract, layers=("low", "high"), n_neighbors=4, batch_size=17).fit(features, labels)
    parts = [
        KNeighborsClassifier(4, algorithm="brute", metric="cosine").fit(features[:, half], labels)
        for half in halves.values()
    ]
    expected = np.mean(
        [part.predict_proba(queries[:, half].numpy()) for part, half in zip(parts, halves.values(), strict=True)], 0
    )
    np.testing.assert_allclose(ours.predict_proba(queries), expected)
    assert np.array_equal(ours.kneighbors(queries, layer="high")[1], parts[1].kneighbors(queries[:, 16:].numpy())[1])


EXCEPTIONS = {
    "check_supervised_y_2d": "labels (n, 1) are refused: broadcast against predictions (n,), they gave scores near 0.1",
}
"""Checks of scikit-learn that a DkNN does not pass, with the reason."""


@pytest.mark.parametrize("options", [{}, {"metric": "l2", "n_neighbors": 3}], ids=["cosine", "l2"])
def test_scikit_learns_own_checks_pass(options):
    done = check_estimator(DkNN(**options), expected_failed_checks=EXCEPTIONS, on_skip=None, on_fail=None)
    failed = {one["check_name"]: one["exception"] for one in done if one["status"] == "failed"}
    assert not failed
    assert {one["check_name"] for one in done if one["status"] == "xfail"} == set(EXCEPTIONS)
    assert sum(one["status"] == "passed" for one in done) > 45


def hooked():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = torch.nn.Sequential(torch.nn.Linear(33, 16), torch.nn.ReLU(), torch.nn.Linear(16, 8))
    return hook_features(network, ["1", "2"])


@pytest.mark.parametrize("backend", ["exact", "faiss"])
@pytest.mark.parametrize("metric", METRICS)
def test_a_fitted_classifier_is_pickled_with_its_network(metric, backend):
    if backend == "faiss":
        pytest.importorskip("faiss", reason="faiss is an extra")
    features, labels, queries = problem()
    for extract in (None, hooked()):
        model = DkNN(extract, metric=metric, backend=backend).fit(features, labels)
        again = pickle.loads(pickle.dumps(model))
        np.testing.assert_array_equal(again.predict_proba(queries), model.predict_proba(queries))
        if extract is not None:
            assert again.features.module is not extract.module


def test_clones_share_the_network_and_searches_run_over_layers():
    features, labels, _ = problem()
    extract = hooked()
    model = DkNN(extract)
    assert clone(model).features is extract
    search = GridSearchCV(model, {"n_neighbors": [1, 5], "layers": [("1",), ["1", "2"], None]}, cv=2)
    assert search.fit(features.numpy(), labels.numpy()).best_score_ > 0.3
    pipeline = make_pipeline(StandardScaler(), DkNN()).fit(features.numpy(), labels.numpy())
    assert pipeline.score(features.numpy(), labels.numpy()) > 0.5


def test_a_classifier_shows_itself():
    assert repr(DkNN(n_neighbors=3)) == "DkNN(n_neighbors=3)"
    assert repr(DkNN(hooked())) == "DkNN(features=<Sequential: 1, 2>)"
    named = hook_features(hooked().module, {"hidden": "1"})
    assert repr(DkNN(named, layers=("hidden",))) == "DkNN(features=<Sequential: hidden=1>, layers=('hidden',))"


def test_neighbours_may_come_without_distances():
    features, labels, queries = problem()
    model = DkNN().fit(features, labels)
    positions = model.kneighbors(queries, return_distance=False)
    assert isinstance(positions, np.ndarray)
    assert np.array_equal(positions, model.kneighbors(queries)[1])
    assert np.array_equal(positions[:, :2], model.kneighbors(queries, 2, False))


def test_columns_of_a_data_frame_keep_their_names():
    features, labels, _ = problem()
    frame = pd.DataFrame(features.numpy(), columns=[f"c{i}" for i in range(33)])
    model = DkNN().fit(frame, labels)
    assert model.feature_names_in_.tolist() == list(frame.columns)
    assert np.array_equal(model.predict(frame), model.predict(features))
    with pytest.raises(ValueError, match="feature names should match"):
        model.predict(frame.rename(columns={"c0": "other"}))


def test_importing_attacks_and_votes_leaves_scikit_learn_alone():
    """It takes as long as torch, and no job of a run needs it."""
    code = "import sys, ask.attacks.ask, ask.attacks.advknn, ask.knn.dknn; assert 'sklearn' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_dknn_keeps_scikit_learns_estimator_contract():
    features, labels, queries = problem()
    names = np.array(["ant", "bee", "cat", "dog", "eel", "fox", "gnu"])[labels]
    model = DkNN(n_neighbors=3)
    assert is_classifier(model)
    assert clone(model).get_params() == model.get_params()
    assert model.fit(features.numpy(), names) is model
    assert model.classes_.tolist() == sorted(set(names))
    assert model.n_features_in_ == 33
    assert set(model.predict(queries.numpy())) <= set(names)
    search = GridSearchCV(DkNN(), {"n_neighbors": [1, 5], "metric": ["cosine", "l2"]}, cv=2)
    assert search.fit(features.numpy(), names).best_score_ > 0.5
    with pytest.raises(ValueError, match="Invalid parameter 'neighbours' for estimator DkNN"):
        model.set_params(neighbours=3)
    with pytest.raises(ValueError, match="not fitted"):
        DkNN().predict(queries)
    with pytest.raises(ValueError, match="metric='l1' is not one of"):
        DkNN(metric="l1").fit(features, labels)
