"""DkNN-Atk and AdvKnn against naive implementations written from their formulas, one image and one guide at a time.

And what artifacts make of the rivals: their cells, and the sentence on what remains of ASK-Atk's margin.
"""

import itertools
import json
import math
from importlib import import_module

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from artifact_jobs import measure, write_cell
from plans import PAPER, ROOT, jobs, planned
from sklearn.datasets import load_digits
from sklearn.neighbors import NearestNeighbors

from ask.attacks import AdvKnn, AdvKnnConfig, ASKAttack, ASKAttackConfig, BlockConfig, DkNNAttack, DkNNAttackConfig
from ask.attacks.advknn import build as build_advknn
from ask.attacks.advknn import fit_blocks, vote_distributions
from ask.attacks.dknn_atk import mean_neighbour_distance
from ask.attacks.linf import BoxSteps, ascend, linf_ascent
from ask.attacks.references import Subject, identity_features, leave_one_out
from ask.config.attacks import VARIANTS
from ask.config.run import load_artifacts
from ask.knn import DkNN
from ask.knn.search import ExactSearch
from ask.paths import Run
from ask.plan.planner import plan_run
from ask.plan.settings import leave_out
from ask.report.tables import render_table
from ask.statistics import summarise

CLASSES, PER_CLASS, SIDE = 4, 12, 3
ARTIFACTS = ROOT / "config/artifacts"


@pytest.fixture
def scene():
    """References in [0, 1] around one centre a class, images among them, and a two-layer feature function."""
    generator = torch.Generator().manual_seed(3)
    centres = torch.rand(CLASSES, SIDE * SIDE, generator=generator)
    labels = torch.arange(CLASSES).repeat(PER_CLASS)
    spread = 0.15 * torch.randn(len(labels), SIDE * SIDE, generator=generator)
    references = (centres[labels] + spread).clamp(0, 1).reshape(-1, 1, SIDE, SIDE)
    y = torch.tensor([0, 1, 2, 3, 0, 2])
    images = (centres[y] + 0.15 * torch.randn(6, SIDE * SIDE, generator=generator)).clamp(0, 1)
    first = torch.randn(SIDE * SIDE, 8, generator=generator)
    second = torch.randn(8, 5, generator=generator)

    def features(x, layers):
        one = torch.tanh(x.flatten(1) @ first.to(x.dtype))
        return {name: {"a": one, "b": torch.tanh(one @ second.to(x.dtype))}[name] for name in layers}

    return references, labels, images.reshape(-1, 1, SIDE, SIDE), y, features


def searches(scene, layers, similarity):
    references, labels, _, _, features = scene
    found = features(references, layers)
    return {layer: ExactSearch(found[layer], labels, similarity=similarity) for layer in layers}


def vector(feature, similarity):
    return feature / feature.norm() if similarity == "cosine" else feature


def naive_threshold(features, similarity, k):
    """Mean distance of every fifth reference (sorted by class) to its k-th nearest other one."""
    total = []
    for i in range(0, len(features), 5):
        distances = sorted(float((features[i] - features[j]).norm()) for j in range(len(features)) if j != i)
        total.append(distances[k - 1])
    return sum(total) / len(total)


def naive_guides(clean, references, labels, y, m):
    """Per layer, the m references nearest to one image, of the wrong class with the least summed mean distance."""
    best, best_total = None, math.inf
    for c in range(CLASSES):
        if c == y:
            continue
        total = 0.0
        for layer, vectors in references.items():
            distances = sorted(
                float((clean[layer] - v).norm()) for v, label in zip(vectors, labels, strict=True) if label == c
            )
            total += sum(distances[:m]) / m
        if total < best_total:
            best, best_total = c, total
    chosen = {}
    for layer, vectors in references.items():
        own = [v for v, label in zip(vectors, labels, strict=True) if label == best]
        chosen[layer] = sorted(own, key=lambda v: float((clean[layer] - v).norm()))[:m]
    return best, chosen


@pytest.mark.parametrize("similarity", ["cosine", "l2"])
@pytest.mark.parametrize("layers", [("a",), ("a", "b")])
@pytest.mark.parametrize("options", [{}, {"threshold": 0.7}, {"relative": False}, {"loss": "relu", "guides": 6}])
def test_dknn_attack_equals_a_naive_implementation(scene, similarity, layers, options):
    references, labels, images, y, features = scene
    config = DkNNAttackConfig(layers=layers, **({"guides": 5, "alpha": 3.0, "k": 4} | options))
    attack = DkNNAttack(features, searches(scene, layers, similarity), config, generator=torch.Generator())
    moved = (images + 0.1 * torch.rand(images.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)

    found = features(references, layers)
    order = torch.argsort(labels, stable=True)
    vectors = {layer: [vector(f, similarity) for f in found[layer]] for layer in layers}
    etas = {
        layer: config.threshold or naive_threshold([vectors[layer][i] for i in order], similarity, config.k)
        for layer in layers
    }
    expected_values, expected_gradients = [], []
    for image, label, start in zip(images, y, moved, strict=True):
        clean = {layer: vector(features(image[None], layers)[layer][0], similarity) for layer in layers}
        m = config.guides // 2 if config.loss == "relu" else config.guides
        _wrong, chosen = naive_guides(clean, vectors, labels, int(label), config.guides)
        x = start.clone().requires_grad_()
        now = {layer: vector(features(x[None], layers)[layer][0], similarity) for layer in layers}
        total = 0.0
        for layer in layers:
            terms = []
            guides = [(g, -1) for g in chosen[layer][:m]]
            if config.loss == "relu":
                own = [v for v, c in zip(vectors[layer], labels, strict=True) if c == label]
                own = sorted(own, key=lambda v: float((clean[layer] - v).norm()))[:m]
                guides += [(g, 1) for g in own]
            for guide, w in guides:
                distance = (now[layer] - guide).norm()
                excess = distance / etas[layer] - 1 if config.relative else distance - etas[layer]
                if config.loss == "relu":
                    terms.append(torch.relu(-w * excess))
                else:
                    terms.append(1 / (1 + torch.exp(-config.alpha * excess)))
            total = total + sum(terms) / len(terms)
        (gradient,) = torch.autograd.grad(-total, x)
        expected_values.append(-total.detach())
        expected_gradients.append(gradient)

    x = moved.clone().requires_grad_()
    neighbours = {
        layer: search.search(features(images, layers)[layer], k_class=config.guides)
        for layer, search in attack.references.items()
    }
    values = attack.losses(neighbours, y)(slice(None))(features(x, layers))
    (gradient,) = torch.autograd.grad(values.sum(), x)
    torch.testing.assert_close(values.detach(), torch.stack(expected_values), rtol=2e-4, atol=2e-5)
    torch.testing.assert_close(gradient, torch.stack(expected_gradients), rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("similarity", ["cosine", "l2"])
def test_thresholds_and_votes_leave_the_reference_itself_out(scene, similarity):
    (search,) = searches(scene, ("a",), similarity).values()
    sklearn = NearestNeighbors(n_neighbors=5, algorithm="brute").fit(search.features.double().numpy())
    distances, ids = sklearn.kneighbors()  # without arguments scikit-learn leaves each point itself out
    assert mean_neighbour_distance(search, 5) == pytest.approx(distances[::5, 4].mean(), rel=1e-4)
    classes = np.repeat(np.arange(CLASSES), PER_CLASS)[ids]
    expected = np.stack([(classes[:, :4] == c).mean(1) for c in range(CLASSES)], 1)
    np.testing.assert_allclose(vote_distributions(search, 4), expected)


def test_a_duplicated_reference_is_left_out_once():
    features = torch.tensor([[0.0], [0.0], [1.0], [5.0], [5.0], [6.0]])
    search = ExactSearch(features, torch.tensor([0, 0, 0, 1, 1, 1]), similarity="l2")
    distances, classes = leave_one_out(search, 2)
    assert distances.tolist() == [[0, 1], [0, 1], [1, 1], [0, 1], [0, 1], [1, 1]]
    assert classes.tolist() == [[0, 0]] * 3 + [[1, 1]] * 3


@pytest.mark.parametrize("optimizer", ["adam", "rmsprop"])
def test_box_steps_are_the_optimiser_on_the_tanh_variable(optimizer):
    generator = torch.Generator().manual_seed(0)
    images, target = torch.rand(2, 1, 4, 4, generator=generator), torch.rand(2, 1, 4, 4, generator=generator)
    start = 0.1 * (2 * torch.rand(images.shape, generator=generator) - 1)
    found = linf_ascent(
        lambda x: -(x - target).square().flatten(1).sum(1),
        images,
        eps=0.2,
        step_size=1.0,
        steps=7,
        start=start,
        rule=BoxSteps(optimizer, 0.2),
    )
    low, high = (images - 0.2).clamp(min=0), (images + 0.2).clamp(max=1)
    middle, half = (low + high) / 2, (high - low) / 2
    w = ((images + start).clamp(low, high) - middle).div(half).clamp(-0.999, 0.999).atanh().requires_grad_()
    update = {"adam": torch.optim.Adam, "rmsprop": torch.optim.RMSprop}[optimizer]([w], lr=0.2, eps=1e-12)
    for _ in range(7):
        update.zero_grad()
        (middle + half * w.tanh() - target).square().sum().backward()
        update.step()
    torch.testing.assert_close(found, (middle + half * w.tanh()).detach(), rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize(("rate", "end"), [(0.03, 0.38), (0.1, 0.88), (0.3, 0.998)])
def test_how_far_twenty_steps_of_adam_go(rate, end):
    """From random starts, under a gradient of constant sign: what table01.yaml, the docs and BoxSteps say."""
    images = torch.full((50, 1, 20, 20), 0.5)
    for sign in (1, -1):
        found = linf_ascent(
            lambda x, sign=sign: sign * x.flatten(1).sum(1),
            images,
            eps=0.1,
            step_size=1.0,
            steps=20,
            generator=torch.Generator().manual_seed(0),
            rule=BoxSteps("adam", rate),
        )
        assert float((sign * (found - images) / 0.1).mean()) == pytest.approx(end, abs=0.006)


def test_guides_are_chosen_anew_after_refresh_steps(scene):
    *_, images, y, features = scene
    calls = []
    config = DkNNAttackConfig(layers=("a",), guides=3, steps=7, refresh=3, optimizer="sign", eps=0.2, step_size=0.05)
    attack = DkNNAttack(features, searches(scene, ("a",), "l2"), config, generator=torch.Generator().manual_seed(0))
    choose = attack.choose
    attack.choose = lambda found, labels: calls.append(1) or choose(found, labels)
    attack(images, y)
    assert len(calls) == 3  # at the start, before steps 4 and 7
    attack.choose = choose
    loss, other = (attack.losses(attack.search(x), y)(slice(None)) for x in (images, 1 - images))
    for _ in range(3):
        assert not torch.allclose(loss(features(1 - images, ("a",))), other(features(1 - images, ("a",))))
    torch.testing.assert_close(loss(features(1 - images, ("a",))), other(features(1 - images, ("a",))))


@pytest.mark.parametrize("similarity", ["cosine", "l2"])
@pytest.mark.parametrize("ce_weight", [0.0, 0.3])
def test_advknn_equals_a_naive_implementation(scene, similarity, ce_weight):
    references, labels, images, y, features = scene
    layers = ("a", "b")
    config = AdvKnnConfig(layers=layers, k=3, ce_weight=ce_weight, block=BlockConfig(epochs=3, batch_size=16))
    attack = AdvKnn(features, searches(scene, layers, similarity), config, generator=torch.Generator().manual_seed(1))
    found = features(references, layers)
    moved = (images + 0.1).clamp(0, 1)
    values, gradients = [], []
    for image, start in zip(images, moved, strict=True):
        x = start.clone().requires_grad_()
        total = 0.0
        for layer in layers:
            clean = vector(features(image[None], layers)[layer][0], similarity)
            near = sorted(range(len(labels)), key=lambda j: float((vector(found[layer][j], similarity) - clean).norm()))
            p = torch.tensor([sum(int(labels[j]) == c for j in near[:3]) / 3 for c in range(CLASSES)])
            weight, bias = attack.blocks[layer].parameters
            q = torch.softmax(vector(features(x[None], layers)[layer][0], similarity) @ weight + bias[0], 0)
            total = total + sum(p[c] * torch.log(p[c] / q[c]) for c in range(CLASSES) if p[c] > 0)
            total = total - ce_weight * torch.log(q[int(p.argmax())])
        values.append(total.detach())
        gradients.append(torch.autograd.grad(total, x)[0])
    found_neighbours = {
        layer: search.search(features(images, layers)[layer], k=3) for layer, search in attack.references.items()
    }
    x = moved.clone().requires_grad_()
    loss = attack.losses(found_neighbours, y)(slice(None))(features(x, layers))
    torch.testing.assert_close(loss.detach(), torch.stack(values), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.autograd.grad(loss.sum(), x)[0], torch.stack(gradients), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("ce_weight", [0.0, 0.3])
def test_advknn_away_from_the_label_climbs_the_blocks_cross_entropy(scene, ce_weight):
    *_, images, y, features = scene
    layers = ("a", "b")
    block = BlockConfig(epochs=3, batch_size=16)
    config = AdvKnnConfig(layers=layers, k=3, ce_weight=ce_weight, block=block, target="label")
    attack = AdvKnn(features, searches(scene, layers, "cosine"), config, generator=torch.Generator().manual_seed(1))
    attack.references["a"].search = attack.references["b"].search = None  # is not called any more
    moved = (images + 0.1).clamp(0, 1)
    expected = torch.zeros(len(y))
    for layer in layers:
        unit = F.normalize(features(moved, layers)[layer], dim=1)
        weight, bias = attack.blocks[layer].parameters
        expected += (1 + ce_weight) * F.cross_entropy(unit @ weight + bias, y, reduction="none")
    assert (attack.k, attack.k_class) == (0, 0)
    torch.testing.assert_close(attack.losses({}, y)(slice(None))(features(moved, layers)), expected)
    assert attack(images, y).shape == images.shape


def test_the_label_leads_images_that_votes_would_put_right_further_away(digits):
    """On digits with a few wrong references: of images that the clean DkNN gets wrong, votes put more right."""
    train, labels, images, y = digits
    search = {"input": ExactSearch(train[:60].flatten(1), labels[:60], similarity="l2")}
    classifier = DkNN(n_neighbors=5, metric="l2").fit(train[:60], labels[:60])
    wrong = torch.as_tensor(classifier.predict(images)) != y
    right = {}
    for target in ("votes", "label"):
        config = AdvKnnConfig(
            layers=("input",),
            eps=0.15,
            step_size=0.03,
            block=BlockConfig(epochs=100, learning_rate=0.1),
            target=target,
        )
        attack = AdvKnn(identity_features, search, config, generator=torch.Generator().manual_seed(0))
        right[target] = (torch.as_tensor(classifier.predict(attack(images, y))) == y)[wrong].float().mean()
    assert wrong.sum() >= 10
    assert right["votes"] > right["label"] == 0


@pytest.mark.parametrize("hidden", [None, 7])
def test_blocks_fitted_together_equal_blocks_fitted_alone(hidden):
    """All sets at once, by plain SGD on the mean KL divergence: as a module of torch.nn fitted set by set."""
    generator = torch.Generator().manual_seed(0)
    pool = torch.randn(60, 5, generator=generator)
    rows = torch.stack([torch.randperm(60, generator=generator)[:40] for _ in range(3)])
    targets = torch.softmax(torch.randn(3, 40, 4, generator=generator), 2)
    config = BlockConfig(epochs=4, batch_size=16, learning_rate=0.05, hidden=hidden)

    def draws():
        return torch.Generator().manual_seed(9)

    blocks = fit_blocks(pool, rows, targets, similarity="l2", config=config, generator=draws())
    replay = draws()
    widths = [5, *([hidden] if hidden else []), 4]
    initial = []
    for inputs, outputs in itertools.pairwise(widths):
        for shape in ((3, inputs, outputs), (3, 1, outputs)):
            initial.append((2 * torch.rand(shape, generator=replay) - 1) * inputs**-0.5)
    orders = [torch.rand(3, 40, generator=replay).argsort(1) for _ in range(4)]
    for i, block in enumerate(blocks):
        modules = []
        for j in range(0, len(initial), 2):
            linear = torch.nn.Linear(*initial[j][i].shape)
            linear.load_state_dict({"weight": initial[j][i].T.clone(), "bias": initial[j + 1][i, 0].clone()})
            modules += [linear, torch.nn.ReLU()]
        network = torch.nn.Sequential(*modules[:-1])
        sgd = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, weight_decay=2e-4, nesterov=True)
        for order in orders:
            for batch in order[i].split(16):
                sgd.zero_grad()
                x, p = pool[rows[i][batch]], targets[i][batch]
                F.kl_div(network(x).log_softmax(1), p, reduction="batchmean").backward()
                sgd.step()
        with torch.no_grad():
            torch.testing.assert_close(block(pool), network(pool).log_softmax(1), rtol=1e-4, atol=1e-5)


def test_a_fitted_block_imitates_the_votes():
    digits = load_digits()
    x, y = torch.tensor(digits.data[:600] / 16, dtype=torch.float32), torch.tensor(digits.target[:600])
    search = ExactSearch(x, y, similarity="l2")
    config = BlockConfig(epochs=30, learning_rate=0.1)
    rows = torch.arange(600)[None]
    targets = vote_distributions(search, 5)[None]
    (block,) = fit_blocks(search.features, rows, targets, similarity="l2", config=config, generator=torch.Generator())
    test = torch.tensor(digits.data[600:900] / 16, dtype=torch.float32)
    voted = DkNN(n_neighbors=5, metric="l2").fit(x, y).predict(test)
    assert (block(test).argmax(1).numpy() == voted).mean() > 0.85


@pytest.mark.parametrize("hidden", [None, 32])
@pytest.mark.parametrize(
    ("similarity", "scale", "constant"), [("cosine", 1, 0), ("l2", 1, 0), ("l2", 50, 0), ("l2", 1, 3e3)]
)
def test_blocks_learn_few_references_whatever_their_features_length(similarity, scale, constant, hidden, recwarn):
    """At the published rate of 0.001 a block of 200 unit vectors knows next to nothing, and the attack with it."""
    x, y = load_digits(return_X_y=True)
    x, y = torch.from_numpy(x / 16).float() * scale + constant, torch.from_numpy(y)
    search = ExactSearch(x[:200], y[:200], similarity=similarity)
    assert (search.centre is not None) == (constant > 0)

    def right(**options):
        config = AdvKnnConfig(layers=("input",), block=BlockConfig(hidden=hidden, **options))
        block = AdvKnn(identity_features, {"input": search}, config).blocks["input"]
        return float((block(x[200:500]).argmax(1) == y[200:500]).float().mean())

    assert right() > 0.8
    assert not recwarn
    if similarity == "cosine":
        with pytest.warns(RuntimeWarning, match="hardly follows it, .* leave block's learning_rate out"):
            assert right(learning_rate=1e-3) < 0.4


ATTACKS = {
    "dknn": lambda f, s, g: DkNNAttack(
        f, s, DkNNAttackConfig(layers=("input",), eps=0.25, learning_rate=0.3), generator=g
    ),
    "dknn-sign": lambda f, s, g: DkNNAttack(
        f, s, DkNNAttackConfig(layers=("input",), eps=0.25, step_size=0.03, optimizer="sign"), generator=g
    ),
    "successor": lambda f, s, g: DkNNAttack(
        f,
        s,
        DkNNAttackConfig(layers=("input",), eps=0.25, learning_rate=0.1, optimizer="rmsprop", loss="relu"),
        generator=g,
    ),
    "advknn": lambda f, s, g: AdvKnn(
        f,
        s,
        AdvKnnConfig(layers=("input",), eps=0.25, step_size=0.03, block=BlockConfig(epochs=20, learning_rate=0.1)),
        generator=g,
    ),
    "ask": lambda f, s, g: ASKAttack(
        f, s, ASKAttackConfig(layers=("input",), eps=0.25, step_size=0.03, tau=0.3), generator=g
    ),
}


@pytest.fixture(scope="module")
def digits():

    found = load_digits()
    images = torch.tensor(found.images / 16, dtype=torch.float32).unsqueeze(1)
    labels = torch.tensor(found.target)
    return images[:1200], labels[:1200], images[1200:1300], labels[1200:1300]


@pytest.fixture(scope="module")
def accuracies(digits):
    train, labels, images, y = digits
    classifier = DkNN(n_neighbors=5, metric="l2").fit(train, labels)
    search = {"input": ExactSearch(train.flatten(1), labels, similarity="l2")}
    found = {"clean": classifier.score(images, y)}
    for name, make in ATTACKS.items():
        attack = make(identity_features, search, torch.Generator().manual_seed(0))
        adversarial = attack(images, y)
        assert (adversarial - images).abs().max() <= 0.25 + 1e-6
        assert adversarial.min() >= 0
        assert adversarial.max() <= 1
        again = make(identity_features, search, torch.Generator().manual_seed(0))(images, y)
        assert torch.equal(adversarial, again)
        found[name] = classifier.score(adversarial, y)
    return found


def test_the_successor_by_sign_steps_is_stronger_than_by_its_own(digits, accuracies):
    train, labels, images, y = digits
    search = {"input": ExactSearch(train.flatten(1), labels, similarity="l2")}
    variant = VARIANTS["dknn"]["successor-sign"]
    config = DkNNAttackConfig(layers=("input",), eps=0.25, step_size=0.03, alpha=None, learning_rate=None, **variant)
    assert config.refresh is None, "20 steps are too few to choose guides anew"
    attack = DkNNAttack(identity_features, search, config, generator=torch.Generator().manual_seed(0))
    classifier = DkNN(n_neighbors=5, metric="l2").fit(train, labels)
    assert classifier.score(attack(images, y), y) < accuracies["successor"]


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_lowers_accuracy(accuracies, name):
    assert accuracies["clean"] > 0.9
    assert accuracies[name] < accuracies["clean"] - 0.2


def test_ask_attack_is_the_strongest_by_iterations_alone(accuracies):
    """The paper's order: ASK-Atk below its rivals, on raw digits, where it is clear."""
    rivals = [accuracies[name] for name in ATTACKS if name != "ask"]
    assert accuracies["ask"] < min(rivals) + 0.02


def test_the_split_into_batches_changes_nothing(digits):
    train, labels, images, y = digits
    search = {"input": ExactSearch(train.flatten(1), labels, similarity="l2")}
    for make in (
        lambda size: DkNNAttack(
            identity_features,
            search,
            DkNNAttackConfig(layers=("input",), batch_size=size, steps=5),
            generator=torch.Generator().manual_seed(1),
        ),
        lambda size: AdvKnn(
            identity_features,
            search,
            AdvKnnConfig(layers=("input",), batch_size=size, steps=5, block=BlockConfig(epochs=1)),
            generator=torch.Generator().manual_seed(1),
        ),
    ):
        torch.testing.assert_close(make(7)(images[:20], y[:20]), make(20)(images[:20], y[:20]), atol=1e-4, rtol=0)


def together(digits, *makers):
    """What attacks find alone and together, and how many images each pass of the features held."""
    train, labels, images, y = digits
    passes = []

    def features(x, layers=("input",)):
        passes.append(len(x))
        return identity_features(x, layers)

    searches = [
        {"input": ExactSearch(train[half::2].flatten(1), labels[half::2], similarity="l2")} for half in range(2)
    ]
    made = [make(features, search) for make, search in zip(makers, searches, strict=True)]
    alone = [attack(images[:20], y[:20]) for attack in made]
    passes.clear()
    made = [make(features, search) for make, search in zip(makers, searches, strict=True)]
    neighbours = [attack.search(images[:20]) for attack in made]
    passes.clear()
    joined = ascend([a.ascent(images[:20], y[:20], neighbours=n) for a, n in zip(made, neighbours, strict=True)])
    return alone, joined, passes


def maker(attack, config, seed, seen=None):
    return lambda features, search: attack(
        features,
        search,
        config,
        generator=torch.Generator().manual_seed(seed),
        on_gradient=None if seen is None else lambda gradient: seen.append(len(gradient)),
    )


@pytest.mark.parametrize(
    ("attack", "config"),
    [
        (ASKAttack, ASKAttackConfig(layers=("input",), steps=3, tau=0.3, batch_size=40)),
        (AdvKnn, AdvKnnConfig(layers=("input",), steps=3, block=BlockConfig(epochs=1), batch_size=40)),
        (DkNNAttack, DkNNAttackConfig(layers=("input",), steps=3, batch_size=40)),
        (DkNNAttack, DkNNAttackConfig(layers=("input",), steps=3, batch_size=40, optimizer="sign", refresh=2)),
    ],
)
def test_trials_that_climb_together_end_where_they_would_alone(digits, attack, config):
    seen = [], []
    makers = [maker(attack, config, seed, seen[seed]) for seed in range(2)]
    alone, joined, passes = together(digits, *makers)
    assert passes == [40] * 3, "one pass of both a step"
    assert seen == ([20] * 6, [20] * 6), "each sees its own gradients"
    assert not torch.allclose(joined[0], joined[1], atol=0.01), "other references, other starts"
    for one, other in zip(alone, joined, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("changes", "passes"),
    [
        ({"batch_size": 39}, [20, 20] * 3),  # no room for both
        ({"eps": 0.1}, [20, 20] * 3),
        ({"learning_rate": 0.2}, [20, 20] * 3),
        ({"optimizer": "sign"}, [20, 20] * 3),
        ({"steps": 2}, [20] * 5),
        ({"alpha": 9.0}, [40] * 3),  # another loss
    ],
)
def test_only_attacks_of_the_same_steps_climb_together(digits, changes, passes):
    config = DkNNAttackConfig(layers=("input",), steps=3, batch_size=40)
    makers = [maker(DkNNAttack, config, 0), maker(DkNNAttack, config.model_copy(update=changes), 1)]
    alone, joined, seen = together(digits, *makers)
    assert seen == passes
    for one, other in zip(alone, joined, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DkNNAttackConfig(layers=("a",), alpha=0.0), "alpha\n.*greater than 0"),
        (lambda: DkNNAttackConfig(layers=("a",), guides=0), "guides\n.*greater than or equal to 1"),
        (lambda: AdvKnnConfig(layers=("a",), k=0), "k\n.*greater than or equal to 1"),
        (lambda: BlockConfig(epochs=0), "epochs\n.*greater than or equal to 1"),
        (lambda: AdvKnnConfig(layers=("a",), eps=8), "write 8 of 255 as 8 / 255"),
    ],
)
def test_nonsense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


BLOCK = BlockConfig(epochs=1)


@pytest.mark.parametrize(
    ("attack", "config"),
    [
        (ASKAttack, ASKAttackConfig(layers=("a", "b"), variant="random-sampling", tau=0.3)),
        (DkNNAttack, DkNNAttackConfig(layers=("b",), guides=3)),
        (AdvKnn, AdvKnnConfig(layers=("a",), k=3, block=BLOCK)),
    ],
)
def test_a_cells_attack_is_the_one_that_its_configuration_describes(scene, attack, config):
    *_, images, y, features = scene
    subject = Subject(features, searches(scene, config.layers, "cosine"))
    read = type(config).model_validate_json(config.model_dump_json())
    made = import_module(config.home).build(read, subject, generator=torch.Generator().manual_seed(2))
    own = attack(features, subject.references, config, generator=torch.Generator().manual_seed(2))
    assert torch.equal(made(images, y), own(images, y))


def test_a_cells_blocks_may_be_fitted_before(scene):
    subject = Subject(scene[-1], searches(scene, ("a",), "cosine"))
    config = AdvKnnConfig(layers=("a",), k=3, block=BLOCK)
    fitted = build_advknn(config, subject, generator=torch.Generator().manual_seed(1))
    given = {layer: block.parameters for layer, block in fitted.blocks.items()}
    again = build_advknn(config, subject, blocks=given, generator=torch.Generator().manual_seed(2))
    assert again.blocks == fitted.blocks


def test_what_is_yet_to_be_calibrated_is_refused_where_it_is_read(scene):
    def make(**settings):
        config = DkNNAttackConfig(layers=("a",), **settings)
        return DkNNAttack(lambda x, _: {}, searches(scene, ("a",), "l2"), config, generator=torch.Generator())

    for name in ("alpha", "learning_rate"):
        with pytest.raises(ValueError, match=f"{name} is yet to be calibrated; give a value"):
            make(**{name: None})
    make(learning_rate=None, optimizer="sign")
    make(alpha=None, loss="relu")


@pytest.mark.gpu
def test_blocks_on_a_gpu_equal_those_on_a_cpu():
    """The captured step, its replay and the last, smaller batch."""
    generator = torch.Generator().manual_seed(0)
    pool = torch.randn(300, 16, generator=generator)
    rows = torch.stack([torch.randperm(300, generator=generator)[:200] for _ in range(3)])
    targets = torch.softmax(torch.randn(3, 200, 10, generator=generator), 2)
    config = BlockConfig(epochs=5, batch_size=64, learning_rate=0.05)
    found = [
        fit_blocks(
            pool.to(device),
            rows.to(device),
            targets.to(device),
            similarity="l2",
            config=config,
            generator=torch.Generator().manual_seed(9),
        )
        for device in ("cpu", "cuda")
    ]
    for cpu, gpu in zip(*found, strict=True):
        torch.testing.assert_close(gpu(pool.cuda()).cpu(), cpu(pool), rtol=1e-3, atol=1e-3)


def test_rivals_beyond_the_paper_are_cells_of_their_own():
    cells, found = jobs(planned("demo"), "attack"), jobs(planned("demo"), "calibrate")
    label = cells["digits-vgg", "at", "advknn-label-cos-L4-K5-e51.2-s20"]
    votes = cells["digits-vgg", "at", "advknn-cos-L4-K5-e51.2-s20"]
    assert label.attack == votes.attack.model_copy(update={"target": "label"})
    assert label.blocks_from == votes.blocks_from
    assert "target" not in votes.attack.model_dump(mode="json")
    sign = cells["digits-vgg", "at", "dknn-successor-sign-cos-L4-K5-e51.2-s20"]
    assert (sign.attack.optimizer, sign.attack.loss, sign.alpha_from) == (
        "sign",
        "relu",
        "guides-dknn-successor-sign-cos-L4-e51.2",
    )
    guides = found["digits-vgg", "at", sign.alpha_from]
    assert guides.grid == ({"guides": 2}, {"guides": 10})
    assert found["digits-vgg", "at", "alpha-dknn-sign-cos-L4-e51.2"].grid == ({"alpha": 1}, {"alpha": 4})


@pytest.mark.parametrize("names", [["table01"], ["table08", "table01"]])
def test_one_pgd_serves_every_classifier(names):
    """An attack on the network has no similarity of its own, whichever table asks for it."""
    plan = plan_run(planned("demo").config, load_artifacts(ARTIFACTS, names), PAPER)
    pgd = jobs(plan, "attack")["digits-vgg", "at", "pgd-e51.2-s20"]
    assert pgd.similarity == "cosine"
    assert {(c.similarity, c.layers) for c in pgd.classifiers} == {
        (similarity, layers)
        for similarity in ("cosine", "l2")
        for layers in (("conv3",), ("conv4",), ("conv3", "conv4"))
    }
    shown = [e for e in plan.artifacts["table01"]["entries"] if e["columns"]["attack"] == "pgd"]
    assert len(shown) == 6
    assert {e["columns"]["similarity"] for e in shown} == {"cosine", "l2"}
    assert {(e["columns"]["metric"], e["columns"]["attack_layers"]) for e in shown} == {("dknn_robust_accuracy", "")}
    assert all(e["paper_mean"] is None for e in shown)


def test_a_run_may_leave_parts_of_artifacts_out():
    (whole,) = load_artifacts(ARTIFACTS, ["table01"]).values()
    labels = [value.label for value in leave_out(whole, {"fair-rivals"}).columns[1].values]
    assert labels == ["ASK-Atk", "AdvKnn", "DkNN-Atk", "DkNN-Atk (sign-PGD)"]
    assert leave_out(whole, set()) == whole


def margin_table(run, accuracies):
    """A table of attacks (columns) on two layers (rows), its accuracies in percent by column."""
    entries = []
    for column, (label, values) in enumerate(accuracies.items()):
        for row, value in enumerate(values):
            name, layers = f"cell-{row}-{column}", (f"conv{3 + row}",)
            write_cell(run, name, [measure(layers, value / 100)])
            columns = {"dataset": "digits", "metric": "dknn_robust_accuracy", "attack": label}
            entries.append(
                {
                    "row": row,
                    "column": column,
                    "columns": columns,
                    "metric": "dknn_robust_accuracy",
                    "cell": {"dataset": "digits", "model": "at", "id": name},
                    "classifier": {"similarity": "cosine", "layers": list(layers), "k": 5},
                }
            )
    return {
        "id": "table01",
        "kind": "table",
        "title": "Attacks",
        "caption": "",
        "paper": None,
        "notes": ["A note."],
        "row_names": ["Layers"],
        "row_headers": [["Conv 3"], ["Conv 4"]],
        "column_headers": [["cosine", label] for label in accuracies],
        "entries": entries,
        "margin": {"of": "ASK-Atk", "rivals": ["AdvKnn", "DkNN-Atk"]},
    }


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        (
            (40.0, 29.9),
            (
                "ASK-Atk leaves at least 12.6 points less than the best of the paper's rivals (smallest margin: "
                "cosine, Conv 4, AdvKnn) and at least 2.9 points less than the best of all shown (smallest margin: "
                "cosine, Conv 4, PGD on the network). Margins against the best of all: cosine, Conv 3 +20.0 (PGD on"
                " the network); cosine, Conv 4 +2.9 (PGD on the network)."
            ),
        ),
        (
            (60.0, 25.4),
            (
                "and up to 1.6 points more than the best of all shown (smallest margin: cosine, Conv 4, PGD on the "
                "network). Margins against the best of all: cosine, Conv 3 +25.0 (DkNN-Atk); cosine, Conv 4 "
                "\N{MINUS SIGN}1.6 (PGD on the network)."
            ),
        ),
        ((60.0, 27.0), "and in some setting as much as the best of all shown (smallest margin: cosine, Conv 4, PGD"),
    ],
)
def test_what_remains_of_the_margin_is_said_below_the_table(tmp_path, network, expected):
    run = Run(tmp_path / "run")
    accuracies = {"ASK-Atk": (20, 27), "AdvKnn": (55, 39.6), "DkNN-Atk": (45, 50), "PGD on the network": network}
    render_table(margin_table(run, accuracies), run)
    texts = {suffix: run.table("table01").with_suffix(suffix).read_text() for suffix in (".md", ".tex", ".html")}
    assert "- A note.\n- ASK-Atk leaves at least 12.6 points less" in texts[".md"]
    assert expected in texts[".md"]
    assert expected.split(" (")[0].replace("'", "&#x27;") in texts[".html"].partition("</table>")[2]
    assert "ASK-Atk leaves at least 12.6 points less" in texts[".tex"]


def test_margins_bear_intervals_of_paired_differences(tmp_path):
    run = Run(tmp_path / "run")
    job = margin_table(run, {"ASK-Atk": (20, 27), "AdvKnn": (30, 40)})
    trials = [0.18, 0.22] * 5
    for name, own in {"cell-0-0": trials, "cell-0-1": [one + 0.1 for one in trials], "cell-1-1": trials}.items():
        path = run.cell("digits", "at", name)
        content = json.loads(path.read_text())
        content["results"][0]["robust"] = summarise(own)
        path.write_text(json.dumps(content))
    render_table(job, run)
    text = run.table("table01").with_suffix(".md").read_text()
    half = 100 * summarise(trials)["ci95"]
    assert f"cosine, Conv 3 +10.0 (AdvKnn); cosine, Conv 4 \N{MINUS SIGN}7.0±{half:.1f} (AdvKnn)" in text
    assert f"leaves up to 7.0±{half:.1f} points more than the best of the paper's rivals" in text


def test_a_table_without_that_wish_says_nothing(tmp_path):
    run = Run(tmp_path / "run")
    job = margin_table(run, {"ASK-Atk": (20, 27), "AdvKnn": (55, 39.6)})
    render_table({key: value for key, value in job.items() if key != "margin"}, run)
    assert "leaves" not in run.table("table01").with_suffix(".md").read_text()
