"""ASK-Atk and the loop that attacks share."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import nn

from ask.attacks import PGD, ASKAttack, ASKAttackConfig, PGDConfig, frozen, linf_ascent
from ask.attacks.ask import draw_references, nearest_wrong_class, temperature, weights
from ask.attacks.references import identity_features
from ask.knn import DkNN
from ask.knn.search import ExactSearch
from ask.models.hooks import hook_features

SIMILARITIES = ("cosine", "l2")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def digits():
    """1000 references and 150 test images of scikit-learn's digits, float32 (n, 1, 8, 8) in [0, 1]."""
    pixels, classes = load_digits(return_X_y=True)
    order = torch.randperm(len(pixels), generator=seeded())
    images = torch.from_numpy(pixels / 16).float().reshape(-1, 1, 8, 8)[order]
    labels = torch.from_numpy(classes)[order]
    return images[:1000], labels[:1000], images[1000:1150], labels[1000:1150]


@pytest.fixture
def network():
    """A smooth network with layers a and b."""
    torch.manual_seed(0)
    first = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Softplus())
    second = nn.Sequential(nn.Conv2d(4, 6, 3), nn.Softplus())
    module = nn.Sequential(first, second, nn.Flatten(), nn.Linear(96, 10)).double().requires_grad_(False)

    def features(images, layers):
        a = first(images)
        return {layer: (a if layer == "a" else second(a)).flatten(1) for layer in layers}

    module.features = features
    return module


def similarity_of(f, r, similarity):
    return (f @ r) / (f.norm() * r.norm()) if similarity == "cosine" else -(f - r).norm()


def naive_attack(image, label, start, references, reference_labels, config, features, similarity):
    """Algorithm 1 with the projection of eq. (5), for one image, in plain loops."""
    x = image.unsqueeze(0)
    nearest = {}
    for layer in config.layers:
        clean, pool = features(x, (layer,))[layer][0], features(references, (layer,))[layer]
        for c in range(10):
            k = config.k_in if c == label else config.k_out
            members = sorted(pool[reference_labels == c], key=lambda r: -similarity_of(clean, r, similarity))
            nearest[layer, c] = members[:k]
    distance = {}
    for c in range(10):
        total = 0
        for layer in config.layers:
            clean = features(x, (layer,))[layer][0]
            total += sum(-similarity_of(clean, r, similarity) for r in nearest[layer, c]) / len(nearest[layer, c])
        distance[c] = total
    wrong = [c for c in range(10) if c != label]
    others = [min(wrong, key=distance.get)] if config.variant == "targeted" else wrong
    current = (x + start).clamp(0, 1)
    for _ in range(config.steps):
        current.requires_grad_(True)
        loss = 0
        for layer in config.layers:
            f = features(current, (layer,))[layer][0]
            mass = {}
            for c in [label, *others]:
                values = [similarity_of(f, r, similarity) / temperature(config, layer) for r in nearest[layer, c]]
                mass[c] = torch.exp(sum(values) / len(values))
            loss = loss - weights(config)[layer] * torch.log(mass[label] / sum(mass.values()))
        (gradient,) = torch.autograd.grad(loss, current)
        current = (current.detach() + config.step_size * gradient.sign()).clamp(0, 1)
        current = x + (current - x).clamp(-config.eps, config.eps)
    return current[0]


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize(
    ("layers", "k_in", "k_out", "omega", "variant"),
    [
        (("a",), 3, 3, {}, "non-targeted"),
        (("b",), 2, 4, {}, "non-targeted"),
        (("a", "b"), 3, 3, {"a": 0.3, "b": 0.7}, "non-targeted"),
        (("b",), 3, 3, {}, "targeted"),
    ],
)
def test_equals_a_naive_implementation(digits, network, similarity, layers, k_in, k_out, omega, variant):
    references, reference_labels = digits[0][:150].double(), digits[1][:150]
    images, labels = digits[2][:5].double(), digits[3][:5]
    config = ASKAttackConfig(
        layers=layers,
        eps=0.1,
        step_size=0.02,
        steps=8,
        k_in=k_in,
        k_out=k_out,
        omega=omega,
        variant=variant,
        tau=0.2 if similarity == "cosine" else 1.0,
        batch_size=2,
    )
    searches = {
        layer: ExactSearch(f, reference_labels, similarity=similarity)
        for layer, f in network.features(references, layers).items()
    }
    found = ASKAttack(network.features, searches, config, generator=seeded())(images, labels)
    starts = torch.rand(images.shape, generator=seeded(), dtype=torch.float64) * 0.2 - 0.1
    for adversarial, image, label, start in zip(found, images, labels.tolist(), starts, strict=True):
        expected = naive_attack(image, label, start, references, reference_labels, config, network.features, similarity)
        torch.testing.assert_close(adversarial, expected)


def accuracy(digits, similarity, attack_images):
    references, reference_labels, _, labels = digits
    return DkNN(metric=similarity).fit(references, reference_labels).score(attack_images, labels)


def attack_digits(digits, similarity="l2", seed=0, **changes):
    references, reference_labels, images, labels = digits
    search = ExactSearch(references.flatten(1), reference_labels, similarity=similarity)
    settings = {"layers": ("input",), "eps": 0.2, "step_size": 0.02, "tau": 0.1 if similarity == "l2" else 0.03}
    config = ASKAttackConfig(**(settings | changes))
    return ASKAttack(identity_features, {"input": search}, config, generator=seeded(seed))(images, labels)


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize(
    ("changes", "at_most"),
    [
        ({}, 0.60),
        ({"variant": "targeted"}, 0.55),
        ({"variant": "random-sampling"}, 0.75),
        ({"k_in": 1, "k_out": 9}, 0.75),
        ({"eps": 0.05, "step_size": 0.01}, 0.99),
    ],
)
def test_lowers_the_accuracy_of_knn_on_raw_pixels(digits, similarity, changes, at_most):
    clean = accuracy(digits, similarity, digits[2])
    assert clean > 0.95
    assert accuracy(digits, similarity, attack_digits(digits, similarity, **changes)) <= min(at_most, clean)


def test_more_eps_and_more_steps_hurt_more(digits):
    by_eps = [accuracy(digits, "l2", attack_digits(digits, eps=eps, step_size=eps / 8)) for eps in (0.05, 0.1, 0.2)]
    assert by_eps[0] > by_eps[1] > by_eps[2]
    by_steps = [accuracy(digits, "l2", attack_digits(digits, steps=steps)) for steps in (1, 3, 12)]
    assert by_steps[0] > by_steps[1] > by_steps[2]


def test_noise_alone_is_no_attack(digits):
    images = digits[2]
    noise = (images + torch.rand(images.shape, generator=seeded()) * 0.4 - 0.2).clamp(0, 1)
    assert accuracy(digits, "l2", noise) > 0.9


def test_is_deterministic_and_independent_of_how_the_batch_is_split(digits):
    whole, again = attack_digits(digits, batch_size=150), attack_digits(digits, batch_size=150)
    assert torch.equal(whole, again)
    torch.testing.assert_close(attack_digits(digits, batch_size=7), whole)
    assert not torch.equal(attack_digits(digits, seed=1), whole)


@settings(max_examples=25, deadline=None)
@given(
    eps=st.floats(1 / 255, 1),
    step=st.floats(1 / 255, 1),
    steps=st.integers(1, 4),
    similarity=st.sampled_from(SIMILARITIES),
    variant=st.sampled_from(["non-targeted", "targeted", "random-sampling"]),
    seed=st.integers(0, 99),
)
def test_stays_in_the_ball_and_in_range(eps, step, steps, similarity, variant, seed):
    images, references = torch.rand(3, 1, 4, 4, generator=seeded(seed)), torch.rand(30, 16, generator=seeded(seed + 1))
    search = ExactSearch(references, torch.arange(30) % 3, similarity=similarity)
    config = ASKAttackConfig(layers=("input",), eps=eps, step_size=step, steps=steps, k_in=2, k_out=3, variant=variant)
    adversarial = ASKAttack(identity_features, {"input": search}, config, generator=seeded(seed))(
        images, torch.tensor([0, 1, 2])
    )
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    assert (adversarial - images).abs().max() <= eps + 1e-6


def test_random_references_are_uniform_distinct_and_of_their_class():
    counts = torch.tensor([4, 7])
    drawn = draw_references(counts, 6000, 3, seeded())
    assert drawn.shape == (6000, 2, 3)
    for c, (low, high) in enumerate([(0, 4), (4, 11)]):
        ids = drawn[:, c]
        assert ids.min() == low
        assert ids.max() == high - 1
        assert (ids.sort(1).values.diff(dim=1) > 0).all()
        share = torch.bincount(ids.flatten(), minlength=11)[low:high] / 6000
        torch.testing.assert_close(share, torch.full_like(share, 3 / (high - low)), atol=0.03, rtol=0)


def test_random_sampling_keeps_the_nearest_own_references_unless_told_otherwise(digits):
    references, reference_labels, images, labels = digits
    search = ExactSearch(references.flatten(1), reference_labels)
    for both in (False, True):
        config = ASKAttackConfig(layers=("input",), variant="random-sampling", random_in_class=both)
        attack = ASKAttack(identity_features, {"input": search}, config, generator=seeded())
        neighbours = attack.search(images)["input"]
        ids, shares = attack._choose(neighbours, labels, "input")
        own = ids[torch.arange(len(labels)), labels]
        nearest = search.rows(neighbours.class_indices[torch.arange(len(labels)), labels])
        assert torch.equal(own, nearest) is not both
        torch.testing.assert_close(shares.sum(2), torch.ones_like(shares.sum(2)))
        wrong = torch.where(torch.nn.functional.one_hot(labels, 10).bool().unsqueeze(2), -1, ids)
        nearest_all = search.rows(neighbours.class_indices)
        assert (wrong == nearest_all).float().mean() < 0.2


def test_fewer_references_of_other_classes_are_as_random(digits):
    references, reference_labels, *_ = digits
    search = ExactSearch(references.flatten(1), reference_labels)
    config = ASKAttackConfig(layers=("input",), variant="random-sampling", k_in=5, k_out=1)
    attack = ASKAttack(identity_features, {"input": search}, config, generator=seeded())
    images, labels = torch.rand(20_000, 1, 8, 8, generator=seeded()), torch.zeros(20_000, dtype=torch.int64)
    ids, shares = attack._choose(attack.search(images)["input"], labels, "input")
    used = ids[:, 1][shares[:, 1] > 0] - search.bounds[1][0]
    share = torch.bincount(used, minlength=int(search.counts[1])) / len(images)
    torch.testing.assert_close(share, torch.full_like(share, 1 / len(share)), atol=0.005, rtol=0)


def test_other_images_in_the_batch_do_not_choose_an_images_target(digits):
    references, reference_labels, images, labels = digits
    searches = {
        name: ExactSearch(scale * references.flatten(1)[:, part], reference_labels, similarity="l2")
        for name, scale, part in (("a", 1, slice(20)), ("b", 9, slice(20, 60)))
    }
    features = {"a": images.flatten(1)[:, :20], "b": 9 * images.flatten(1)[:, 20:60]}
    # Far away at one layer: on its own it has no say there, for all classes are as far.
    far = features["a"].clone()
    far[1:] += 100

    def targets(a):
        near = {name: searches[name].search(f, k_class=5) for name, f in {"a": a, "b": features["b"]}.items()}
        return nearest_wrong_class(near, labels, 5)

    assert targets(far)[0] == targets(features["a"])[0]
    alone = {name: searches[name].search(f[:1], k_class=5) for name, f in features.items()}
    assert nearest_wrong_class(alone, labels[:1], 5)[0] == targets(far)[0]


def test_layers_count_alike_in_the_choice_of_a_target(digits):
    references, reference_labels, images, labels = digits

    def targets(scale):
        near = {}
        for name, factor, part in (("a", 1, slice(20)), ("b", scale, slice(20, 60))):
            search = ExactSearch(factor * references.flatten(1)[:, part], reference_labels, similarity="l2")
            near[name] = search.search(factor * images.flatten(1)[:, part], k_class=5)
        return nearest_wrong_class(near, labels, 5)

    assert torch.equal(targets(1), targets(1024))


def test_no_more_images_than_a_batch_pass_through_the_features(digits):
    references, reference_labels, images, labels = digits
    search, seen = ExactSearch(references.flatten(1), reference_labels), []

    def features(x, layers):
        seen.append(len(x))
        return identity_features(x, layers)

    config = ASKAttackConfig(layers=("input",), tau=0.1, steps=1, batch_size=7)
    ASKAttack(features, {"input": search}, config, generator=seeded())(images[:20], labels[:20])
    assert max(seen) == 7


def test_target_is_the_nearest_wrong_class(digits):
    references, reference_labels, images, labels = digits
    search = ExactSearch(references.flatten(1), reference_labels, similarity="l2")
    found = nearest_wrong_class({"input": search.search(images.flatten(1), k_class=5)}, labels, 5)
    for image, label, target in zip(images[:20], labels.tolist(), found.tolist(), strict=False):
        distance = torch.cdist(image.flatten().unsqueeze(0), references.flatten(1))[0]
        mean = {c: distance[reference_labels == c].sort().values[:5].mean() for c in range(10) if c != label}
        assert target == min(mean, key=mean.get)


def test_linf_ascent_reaches_the_corner_of_the_ball():
    images = torch.tensor([[[[0.5, 0.02]]]])
    found = linf_ascent(lambda x: x.flatten(1).sum(1), images, eps=0.1, step_size=0.03, steps=4)
    torch.testing.assert_close(found, images + 0.1)
    found = linf_ascent(lambda x: -x.flatten(1).sum(1), images, eps=0.1, step_size=0.03, steps=4)
    torch.testing.assert_close(found, torch.tensor([[[[0.4, 0.0]]]]))
    assert torch.equal(images, torch.tensor([[[[0.5, 0.02]]]])), "the caller's images must not change"


def test_frozen_restores_modes_and_flags_even_after_an_error():
    module = nn.Sequential(nn.BatchNorm2d(1), nn.Dropout(), nn.Conv2d(1, 1, 1))
    module[0].eval()
    module[2].bias.requires_grad_(False)
    before = [m.training for m in module.modules()], [p.requires_grad for p in module.parameters()]

    def fail():
        with frozen(module):
            assert not any(m.training for m in module.modules())
            assert not any(p.requires_grad for p in module.parameters())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert before == ([m.training for m in module.modules()], [p.requires_grad for p in module.parameters()])


def test_pgd_raises_the_loss_within_its_ball(digits, network):
    images, labels = digits[2].double(), digits[3]
    network.train()
    attack = PGD(network, PGDConfig(eps=0.1, step_size=0.02, steps=10), generator=seeded())
    adversarial = attack(images, labels)
    loss = nn.functional.cross_entropy
    assert loss(network(adversarial), labels) > loss(network(images), labels)
    assert (adversarial - images).abs().max() <= 0.1 + 1e-12
    assert network.training


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.full((2, 1, 8, 8), 2.0), [0, 1], "got values from 2 to 2; divide by 255"),
        (torch.full((2, 1, 8, 8), float("nan")), [0, 1], r"finite and in \[0, 1\]"),
        (torch.zeros(0, 1, 8, 8), [], "non-empty"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), [0, 1], "non-empty float tensor"),
        (torch.zeros(2, 1, 8, 8), [0, 10], r"must lie in 0\.\.9, got 0\.\.10"),
        (torch.zeros(2, 1, 8, 8), [0], r"int64 of shape \(2,\)"),
    ],
)
def test_bad_images_and_labels_are_one_clear_error(digits, images, labels, message):
    search = ExactSearch(digits[0].flatten(1), digits[1])
    attack = ASKAttack(identity_features, {"input": search}, ASKAttackConfig(layers=("input",)), generator=seeded())
    with pytest.raises(ValueError, match=message):
        attack(images, torch.tensor(labels, dtype=torch.int64))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eps": 8.0}, "write 8 of 255 as 8 / 255"),
        ({"step_size": 0.0}, "step_size=0.0 is outside"),
        ({"steps": 0}, "steps\n.*greater than or equal to 1"),
        ({"layers": ()}, "layers\n.*at least 1 item"),
        ({"k_in": 0}, "k_in\n.*greater than or equal to 1"),
        ({"tau": 0.0}, "tau=0.0 of input must be positive"),
        ({"tau": {"input": -1.0}}, "tau=-1.0 of input must be positive"),
        ({"omega": {"b": 1.0}}, "non-negative weights, not all zero"),
        ({"kin": 3}, "kin\n.*not permitted"),
    ],
)
def test_bad_settings_are_one_clear_error(changes, message):
    with pytest.raises(ValueError, match=message):
        ASKAttackConfig(**({"layers": ("input",)} | changes))


def test_a_single_bad_setting_is_told_in_one_line(digits):
    search = ExactSearch(digits[0].flatten(1), digits[1])
    with pytest.raises(ValueError, match=r"^eps: eps=8.0 is outside \(0, 1\]; .*, so write 8 of 255 as 8 / 255$"):
        ASKAttack(identity_features, {"input": search}, eps=8.0, tau=1.0)
    with pytest.raises(ValueError, match=r"^steps: input should be [^\n]*\nk_in: input should be [^\n]*$"):
        ASKAttack(identity_features, {"input": search}, steps=0, k_in=0, tau=1.0)


@pytest.mark.parametrize("tau", [None, {"b": 0.03}])
def test_an_attack_without_a_temperature_is_refused(digits, tau):
    search = ExactSearch(digits[0].flatten(1), digits[1])
    with pytest.raises(ValueError, match="tau of a is yet to be calibrated; give a value"):
        ASKAttack(identity_features, {"a": search}, ASKAttackConfig(layers=("a",), tau=tau), generator=seeded())


def test_missing_references_are_clear_errors(digits):
    search = ExactSearch(digits[0].flatten(1), digits[1])
    with pytest.raises(ValueError, match=r"no references for attacked layers \['b'\]"):
        ASKAttack(identity_features, {"a": search}, ASKAttackConfig(layers=("a", "b")), generator=seeded())
    few = ExactSearch(digits[0][:60].flatten(1), digits[1][:60])
    attack = ASKAttack(identity_features, {"a": few}, ASKAttackConfig(layers=("a",), k_out=50), generator=seeded())
    with pytest.raises(ValueError, match="lower k or add references"):
        attack(digits[2], digits[3])


@pytest.mark.gpu
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_gpu_equals_cpu(digits, network, similarity):
    references, reference_labels, images, labels = digits
    config = ASKAttackConfig(layers=("a", "b"), eps=0.1, step_size=0.02, steps=5, tau=0.5)
    found = {}
    for device in ("cpu", "cuda"):
        network.to(device)
        features = network.features(references.double().to(device), ("a", "b"))
        searches = {
            layer: ExactSearch(f, reference_labels.to(device), similarity=similarity) for layer, f in features.items()
        }
        attack = ASKAttack(network.features, searches, config, generator=seeded())
        neighbours = attack.search(images.double().to(device))
        adversarial = attack(images.double().to(device), labels.to(device), neighbours=neighbours)
        found[device] = adversarial.cpu(), neighbours["a"].class_indices.cpu()
    assert torch.equal(found["cpu"][1], found["cuda"][1])
    torch.testing.assert_close(found["cpu"][0], found["cuda"][0])


@pytest.mark.parametrize("variant", ["non-targeted", "targeted"])
def test_a_layer_of_no_weight_has_no_say(variant):
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.Conv2d(4, 4, 3), torch.nn.Flatten())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    images, labels = torch.rand(60, 1, 5, 5, generator=generator), torch.arange(60) % 3
    queries, own = torch.rand(20, 1, 5, 5, generator=generator), torch.arange(20) % 3

    def attacked(layers, **options):
        classifier = DkNN(hook_features(network, layers)).fit(images, labels)
        return ASKAttack(classifier, eps=0.1, tau=0.1, variant=variant, **options)(queries, own)

    assert torch.equal(attacked(["0", "1"], omega={"1": 1.0}), attacked(["1"]))
