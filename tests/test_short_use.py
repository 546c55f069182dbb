"""The shortest use is short, and right in whatever mode and precision the caller is."""

import re
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

from ask import PGD, AdvKnn, ASKAttack, DkNN, DkNNAttack, hook_features
from ask.attacks import AdvKnnConfig, ASKAttackConfig, DkNNAttackConfig, PGDConfig, identity_features, linf_ascent
from ask.attacks.auto import AutoAttack
from ask.attacks.validation import rounded
from ask.config.attacks import AutoAttackConfig, BlockConfig
from ask.knn.similarity import similarity_matrix
from ask.losses.ask import class_wise
from ask.losses.snn import pairwise_distance, snn_loss
from ask.precision import undisturbed

BLOCK = BlockConfig(epochs=2)
EPS = 0.2


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def digits():
    """500 references and 60 images, (n, 64) in [0, 1], and their labels."""
    pixels, labels = load_digits(return_X_y=True)
    x, y = torch.from_numpy(pixels / 16).float(), torch.from_numpy(labels)
    return x[:500], y[:500], x[1600:1660], y[1600:1660]


@pytest.fixture(scope="module")
def raw(digits):
    return DkNN(metric="l2").fit(*digits[:2])


def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 10))


class Pair(nn.Module):
    """A network that returns a tuple."""

    def forward(self, x):
        return x, x


# Single settings instead of a config.


@pytest.mark.parametrize("labels", ["as they are", "shifted"])
def test_three_words_attack_a_dknn(digits, labels):
    x, y, images, true = digits
    shift = 0 if labels == "as they are" else 7
    classifier = DkNN(metric="l2").fit(x, y + shift)
    attack = ASKAttack(classifier, eps=EPS)
    assert attack.tau == {}
    adversarial = attack(images, true + shift)
    assert classifier.score(images, true + shift) > 0.85
    assert classifier.score(adversarial, true + shift) < 0.5
    assert (adversarial - images).abs().max() <= EPS + 1e-6
    assert attack.config == ASKAttackConfig(layers=("input",), eps=EPS, step_size=EPS / 4, tau=None)


def test_the_short_form_is_the_long_one_with_the_papers_ratios(digits, raw):
    _, _, images, labels = digits
    common = {"layers": ("input",), "eps": EPS, "step_size": EPS / 4, "steps": 20}
    long = {
        ASKAttack: ASKAttackConfig(**common, tau=0.1),
        DkNNAttack: DkNNAttackConfig(**common),
        AdvKnn: AdvKnnConfig(**common, block=BLOCK),
    }
    extra = {ASKAttack: {"tau": 0.1}, DkNNAttack: {}, AdvKnn: {"block": BLOCK}}
    for attack, config in long.items():
        short = attack(raw, eps=EPS, **extra[attack])
        assert short.config == config
        spelt = attack(identity_features, raw.search_, config, generator=seeded())
        assert torch.equal(short(images, labels), spelt(images, labels))
    net = network().eval()
    assert torch.equal(
        PGD(net, eps=EPS)(images, labels),
        PGD(net, PGDConfig(eps=EPS, step_size=EPS / 4), generator=seeded())(images, labels),
    )
    assert PGD(net).config == PGDConfig() == PGD(net, eps=8 / 255).config


def test_settings_follow_the_classifier(digits):
    x, y, images, labels = digits
    few = torch.cat([(y == c).nonzero()[:3, 0] for c in range(10)])
    features = hook_features(network(), {"first": "0", "last": "3"})
    classifier = DkNN(features, n_neighbors=2).fit(x[few], y[few])
    assert classifier.layers_ == ("first", "last")
    for attack in (ASKAttack(classifier, eps=EPS), DkNNAttack(classifier, eps=EPS), AdvKnn(classifier, block=BLOCK)):
        assert attack.config.layers == ("first", "last")
        assert {search.similarity for search in attack.references.values()} == {"cosine"}
        assert attack(images, labels).shape == images.shape
    assert (ASKAttack(classifier).config.k_in, DkNNAttack(classifier).config.guides) == (2, 3)
    assert (DkNNAttack(classifier).config.k, AdvKnn(classifier, block=BLOCK).config.k) == (2, 2)
    alone = ASKAttack(classifier, layers=("last",), steps=3, k_in=2, step_size=0.01, eps=0.1)
    assert (alone.config.layers, alone.config.steps, alone.config.k_in) == (("last",), 3, 2)
    assert (alone.config.step_size, alone.config.eps) == (0.01, 0.1)


@pytest.mark.parametrize("k", [1, 15])
def test_ask_atk_has_the_dknns_k_and_is_stronger_for_it(digits, k):
    x, y, images, labels = digits
    classifier = DkNN(metric="l2", n_neighbors=k).fit(x, y)
    own, five = ASKAttack(classifier, eps=0.15, tau=0.1), ASKAttack(classifier, eps=0.15, tau=0.1, k_in=5, k_out=5)
    assert (own.config.k_in, own.config.k_out) == (k, k)
    assert classifier.score(own(images, labels), labels) < classifier.score(five(images, labels), labels)
    assert ASKAttack(DkNN(n_neighbors=100).fit(x, y), eps=0.1).config.k_in == int(y.bincount().min()), "makes do"


def test_a_saturated_loss_is_a_warning(digits):
    """Large logits leave cross-entropy no gradient."""
    _, _, images, labels = digits
    linear = nn.Linear(64, 10)
    prototypes = torch.stack([digits[0][digits[1] == c].mean(0) for c in range(10)])
    with torch.no_grad():
        linear.weight.copy_(prototypes)
        linear.bias.copy_(-prototypes.square().sum(1) / 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PGD(linear, eps=0.05)(images, labels)
    with torch.no_grad():
        for parameter in linear.parameters():
            parameter.mul_(1e4)
    with pytest.warns(RuntimeWarning, match=r"% of the images' gradients are zero, .* Large logits saturate"):
        PGD(linear, eps=0.05)(images, labels)


def test_seeds(digits, raw):
    _, _, images, labels = digits
    one, same, other = (ASKAttack(raw, eps=EPS, tau=0.1, steps=1, seed=seed) for seed in (3, 3, 4))
    first = one(images, labels)
    assert torch.equal(first, same(images, labels))
    assert not torch.equal(first, other(images, labels))
    assert not torch.equal(first, one(images, labels)), "each call draws anew"
    assert torch.equal(first, ASKAttack(raw, eps=EPS, tau=0.1, steps=1, generator=seeded(3))(images, labels))


@pytest.mark.parametrize("eps", [np.float32(0.2), np.float64(0.2), torch.tensor(0.2)])
def test_the_step_is_a_quarter_of_any_number(raw, eps):
    for attack in (PGD(network(), eps=eps), ASKAttack(raw, eps=eps)):
        assert attack.config.step_size == pytest.approx(0.05)


def test_a_config_without_a_step_covers_its_ball(digits, raw):
    for given in (
        PGDConfig(eps=0.2),
        ASKAttackConfig(layers=("input",), eps=0.2),
        DkNNAttackConfig(layers=("a",), eps=0.2),
    ):
        assert given.step_size == pytest.approx(0.05)
    assert PGDConfig().step_size == 2 / 255
    assert PGDConfig.model_validate_json(
        PGDConfig(eps=0.2, step_size=0.01).model_dump_json()
    ).step_size == pytest.approx(0.01)
    full = ASKAttack(raw, config=ASKAttackConfig(eps=0.2, layers=("input",), tau=0.1))
    assert torch.equal(full(*digits[2:]), ASKAttack(raw, eps=0.2, tau=0.1)(*digits[2:]))


def test_a_class_of_few_references_that_weakens_the_attack_on_all_is_told(digits):
    x, y, *_ = digits
    few = torch.cat([(y != 9).nonzero().squeeze(1), (y == 9).nonzero().squeeze(1)[:2]])
    rare = DkNN().fit(x[few], y[few])
    with pytest.warns(RuntimeWarning, match="a class has 2 references, so k_in, k_out fall to 2 for all classes"):
        assert ASKAttack(rare, eps=0.1).config.k_in == 2
    with pytest.warns(RuntimeWarning, match="so guides fall to 2"):
        DkNNAttack(rare, eps=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ASKAttack(rare, eps=0.1, k_in=2, k_out=2)
        ASKAttack(DkNN(n_neighbors=100).fit(x, y), eps=0.1, k_in=5, k_out=5)


def test_numbers_in_an_array_of_objects_are_labels_as_others_are(digits):
    x, y, images, labels = digits
    kinds = [(y + 1).numpy().astype(kind) for kind in (np.int64, object)]
    one, other = (ASKAttack(DkNN().fit(x, kind), eps=0.2, tau=0.1)(images, labels + 1) for kind in kinds)
    assert torch.equal(one, other)


def test_a_network_that_keeps_what_a_pass_made_can_be_attacked_after_fit(digits):
    class Keeps(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.kept = network(), None

        def forward(self, x):
            if self.kept is None:
                self.kept = torch.linspace(0.5, 1.5, 64).to(x)
            return self.inner(x * self.kept)

    x, y, images, labels = digits
    net = Keeps().eval()
    classifier = DkNN(hook_features(net, ["inner.0"])).fit(x, y)
    for attack in (ASKAttack(classifier, tau=0.1, eps=EPS, steps=2), PGD(net, eps=EPS, steps=2)):
        assert (attack(images, labels) != images).any()


def test_the_soft_nearest_neighbour_loss_is_defined_in_half_precision(digits):
    features, labels = digits[2], digits[3]
    want = snn_loss(pairwise_distance(features, "cosine"), labels, 0.1)
    for kind in (torch.float16, torch.bfloat16):
        found = snn_loss(pairwise_distance(features, "cosine").to(kind), labels, 0.1)
        assert float(found) == pytest.approx(float(want), rel=0.05)


def test_a_layer_that_a_feature_function_does_not_return_is_named(digits):
    with pytest.raises(ValueError, match="features returned layers b, not 'a'"):
        DkNN(lambda x, _: {"b": x.flatten(1)}, layers=["a"]).fit(*digits[:2])


def test_arrays_of_any_order_and_kind_are_classified(digits, raw):
    array, want = digits[2].numpy(), raw.predict(digits[2])
    assert (raw.predict(array[::-1])[::-1] == want).all()
    for kind in (">f4", np.longdouble, np.float16):
        assert (
            DkNN(metric="l2").fit(digits[0].numpy().astype(kind), digits[1]).predict(array.astype(kind)) == want
        ).all()


@pytest.mark.parametrize("similarity", ["cosine", "l2"])
def test_losses_are_in_full_precision_whatever_the_caller_has_set(digits, similarity):
    """Features of a large constant show what l2 products lose."""
    x, y, images, labels = digits

    def features(x, layers):
        return {layer: x.flatten(1) + 10 for layer in layers}

    classifier = DkNN(features, layers=["a"], metric=similarity).fit(x, y)

    near = torch.from_numpy(classifier.kneighbors(images, 20)[1]).reshape(-1, 2, 10)

    def found():
        f = features(images, "a")["a"]
        loss = class_wise(x + 10, near, similarity=similarity, tau=0.1)
        shown = loss(f), similarity_matrix(f, x + 10, similarity), pairwise_distance(f, similarity)
        return *shown, torch.from_numpy(classifier.kneighbors(images)[1])

    def attacked():
        return ASKAttack(classifier, eps=EPS, tau=0.1, steps=4)(images, labels)

    want = *found(), attacked()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(map(torch.equal, (*found(), attacked()), want))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        assert all(map(torch.equal, found(), want))
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_a_network_of_double_precision_is_attacked_in_double_precision(digits):
    _, _, images, labels = digits
    net, images = network().eval().double(), images.double()
    for attack in (PGD(net, eps=EPS), AutoAttack(net, AutoAttackConfig(eps=EPS, parts=("apgd-ce",)), seed=0)):
        found = attack(images, labels)
        assert found.dtype == torch.float64
        moved = (found - images).abs().amax(1)
        assert (moved <= EPS).all()
        assert (net(found).argmax(1) == labels).sum() < (net(images).argmax(1) == labels).sum()
    wrong = net(images).argmax(1) != labels
    assert wrong.any()
    assert not moved[wrong].any(), "AutoAttack leaves alone what is wrong already"


def test_another_nearest_neighbour_classifier_is_no_dknn(digits):
    other = KNeighborsClassifier().fit(*(part.numpy() for part in digits[:2]))
    with pytest.raises(ValueError, match="references are missing; give them, or a fitted DkNN"):
        ASKAttack(other, eps=EPS)


@pytest.mark.parametrize(
    ("attack", "settings", "message"),
    [
        (DkNNAttack, {"step_size": 0.01}, "step_size: of no effect with optimizer='adam', loss='sigmoid'"),
        (DkNNAttack, {"optimizer": "sign", "learning_rate": 0.1}, "learning_rate: of no effect with optimizer='sign'"),
        (DkNNAttack, {"loss": "relu", "alpha": 2.0}, "alpha: of no effect with optimizer='adam', loss='relu'"),
        (ASKAttack, {"random_in_class": True}, "random_in_class needs variant='random-sampling', not 'non-targeted'"),
    ],
)
def test_settings_of_no_effect_are_clear_errors(raw, attack, settings, message):
    with pytest.raises(ValueError, match=message):
        attack(raw, eps=EPS, **settings)


def test_mistakes_in_the_short_form_are_clear_errors(raw):
    with pytest.raises(ValueError, match=r"ASKAttack has no setting 'epsilon'; choose from batch_size, eps, "):
        ASKAttack(raw, epsilon=EPS)
    with pytest.raises(ValueError, match="write 8 of 255 as 8 / 255") as told:
        ASKAttack(raw, eps=8)
    assert "step_size" not in str(told.value)
    with pytest.raises(ValueError, match="eps"):
        ASKAttack(raw, eps="8/255")
    with pytest.raises(ValueError, match=r"eps: input should be a valid number \(got tensor\(\[0\.1"):
        ASKAttack(raw, eps=torch.tensor([0.1, 0.2]))
    with pytest.raises(ValueError, match=r"config must be of type PGDConfig, got 0\.03; name .*eps=8 / 255"):
        PGD(network(), 0.03)
    with pytest.raises(ValueError, match=r"references must be a fitted DkNN, or searches by layer, got 0\.03"):
        ASKAttack(raw, 0.03)
    with pytest.raises(ValueError, match="config must be of type ASKAttackConfig"):
        ASKAttack(raw, None, 0.03)
    for make in (
        lambda: DkNN(network()).fit(torch.rand(20, 64), torch.arange(20) % 2),
        lambda: ASKAttack(network(), raw),
    ):
        with pytest.raises(ValueError, match=r"function of images and layers, got a Sequential; .* hook_features"):
            make()
    with pytest.raises(ValueError, match="got a list"):
        DkNN(["1"]).fit(torch.rand(20, 64), torch.arange(20) % 2)
    with pytest.raises(ValueError, match=r"PGD attacks a network, a torch\.nn\.Module, got a DkNN"):
        PGD(raw, eps=0.1)
    with pytest.raises(ValueError, match=r"must return logits \(batch, classes\), got tuple"):
        PGD(Pair(), eps=0.1)(torch.rand(2, 64), torch.arange(2))
    with pytest.raises(ValueError, match="the loss has no gradient"):
        ASKAttack(lambda x, _: {"input": x.detach()}, raw, tau=0.1, eps=0.1)(torch.rand(2, 64), torch.arange(2))
    with pytest.raises(ValueError, match=r"y holds int64, labels given to fit are <U1; give labels as to fit"):
        DkNN(n_neighbors=1).fit(torch.rand(4, 3), np.array(list("abab"))).score(torch.rand(2, 3), torch.arange(2))
    with pytest.raises(ValueError, match="tau: put it into config"):
        ASKAttack(raw, config=ASKAttackConfig(layers=("input",)), tau=0.1)
    with pytest.raises(ValueError, match="eps: put it into config"):
        PGD(network(), PGDConfig(), eps=0.1)
    with pytest.raises(ValueError, match="no references for attacked layers"):
        ASKAttack(raw, layers=("conv9",))
    with pytest.raises(ValueError, match="all of one class"):
        ASKAttack(DkNN().fit(torch.rand(20, 4), torch.zeros(20, dtype=torch.int64)), eps=0.1)
    with pytest.raises(ValueError, match="k=5 exceeds the 4 references beside each; lower k or add references"):
        AdvKnn(DkNN(n_neighbors=5).fit(torch.rand(5, 4), torch.arange(5)), eps=0.1)(torch.rand(2, 4), torch.arange(2))
    whole = DkNN(hook_features(network(), ["3"])).fit(torch.rand(20, 64), torch.arange(20) % 2)
    with pytest.raises(ValueError, match=r"floating-point images in \[0, 1\], got uint8; divide by 255"):
        whole.predict((255 * torch.rand(3, 64)).byte().numpy())


# The temperature chosen by itself.


@pytest.mark.parametrize("metric", ["cosine", "l2"])
@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_a_chosen_temperature_is_about_as_good_as_the_best(digits, metric, scale):
    x, y, images, labels = digits

    def features(images, layers):
        return {layer: scale * images.flatten(1) for layer in layers}

    classifier = DkNN(features, metric=metric).fit(x, y)
    attack = ASKAttack(classifier, eps=EPS)
    found = attack(images, labels)
    distance = classifier.search_["input"].search(scale * images[::2], k_class=5).class_distances.mean()
    factor = attack.tau["input"] / float(distance)
    assert min(abs(factor / f - 1) for f in (0.003, 0.01, 0.03, 0.1, 0.3, 1, 3)) < 1e-3
    fixed = {
        f: classifier.score(ASKAttack(classifier, eps=EPS, tau=f * float(distance))(images, labels), labels)
        for f in (0.01, 0.1, 3.0)
    }
    assert classifier.score(found, labels) <= min(fixed.values()) + 0.05
    assert min(fixed.values()) < max(fixed.values()) - 0.1, "no choice to make"


def test_a_chosen_temperature_is_kept_and_can_be_given_again(digits, raw):
    _, _, images, labels = digits
    attack = ASKAttack(raw, eps=EPS)
    found = attack(images, labels)
    chosen = dict(attack.tau)
    assert torch.equal(found, ASKAttack(raw, eps=EPS, tau=chosen)(images, labels))
    attack(images[:3], labels[:3])
    assert attack.tau == chosen
    config = ASKAttackConfig(layers=("input",), eps=EPS, step_size=EPS / 4, tau=5.0)
    asked = ASKAttack(raw, config=config, tau="auto")
    assert torch.equal(asked(images, labels), found)
    assert ASKAttack(raw, config=config).tau == {"input": 5.0}


def test_few_images_are_taken_from_all_of_them(digits, raw):
    x, y, _, _ = digits
    seen = []
    classifier = DkNN(lambda images, layers: seen.append(images.detach().clone()) or identity_features(images, layers))
    classifier.fit(x, y)
    seen.clear()
    ASKAttack(classifier, eps=EPS, layers=("input",))(x[:100], y[:100])
    tried = seen[1].reshape(7, -1, 64)
    assert tried.shape[1] == 25
    assert all(((one - x[:100:4]).abs() <= EPS + 1e-6).all() for one in tried)


def test_an_unlikely_classifier_is_a_warning_once_a_network(digits):
    x, y, images, labels = digits
    wrong = (labels + 1) % 10
    net = network()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for n_neighbors in (1, 5):
            classifier = DkNN(hook_features(net, ["0"]), n_neighbors=n_neighbors).fit(x, y)
            for eps in (0.1, 0.2):
                ASKAttack(classifier, eps=eps, steps=1)(images, wrong)
    assert said[0].category is RuntimeWarning
    assert re.search(r"gets \d+% of 30 images right, so its robust accuracy says little", str(said[0].message))
    assert len(said) == 1
    assert said[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ASKAttack(DkNN(hook_features(network(), ["0"])).fit(x, y), eps=0.1, steps=1)(images, labels)


# Modes and precisions of the caller.


def attacks(digits):
    """Each attack, ready to be called; new ones at each call, for they draw."""
    net = network().eval()
    deep = DkNN(hook_features(net, ["0"]), metric="l2").fit(*digits[:2])
    raw = DkNN(metric="l2").fit(*digits[:2])
    common = {"eps": EPS, "steps": 4}
    return {
        "ask raw": lambda: ASKAttack(raw, **common),
        "ask deep": lambda: ASKAttack(deep, tau=0.1, **common),
        "random": lambda: ASKAttack(raw, tau=0.1, variant="random-sampling", **common),
        "dknn": lambda: DkNNAttack(deep, **common),
        "dknn sign": lambda: DkNNAttack(raw, optimizer="sign", loss="relu", refresh=2, **common),
        "advknn": lambda: AdvKnn(deep, block=BLOCK, **common),
        "advknn label": lambda: AdvKnn(raw, block=BLOCK, target="label", **common),
        "pgd": lambda: PGD(net, **common),
        "autoattack": lambda: AutoAttack(net, AutoAttackConfig(eps=EPS, parts=("apgd-ce",), iterations=4), seed=0),
    }


NAMES = (
    *("ask raw", "ask deep", "random", "dknn", "dknn sign", "advknn", "advknn label"),
    *("pgd", "autoattack"),
)
BY_NAME = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module")
def made(digits):
    return attacks(digits)


@BY_NAME
def test_images_that_require_a_gradient(digits, made, name):
    _, _, images, labels = digits
    expected = made[name]()(images, labels)
    leaf = images.clone().requires_grad_()
    for given in (leaf, leaf * 1):
        found = made[name]()(given, labels)
        assert torch.equal(found, expected)
        assert not found.requires_grad
    assert leaf.grad is None


@BY_NAME
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_inside_other_modes(digits, made, name, mode):
    _, _, images, labels = digits
    expected = made[name]()(images, labels)
    with mode():
        found = made[name]()(images.clone(), labels.clone())  # in inference mode, of a kind of their own
        assert torch.is_inference_mode_enabled() == (mode is torch.inference_mode)
    assert torch.equal(found, expected)
    assert not found.is_inference()


def test_a_classifier_fitted_in_inference_mode_can_be_attacked(digits, made):
    x, y, images, labels = digits
    net = network().eval()
    with torch.inference_mode():
        raw = DkNN(metric="l2").fit(x.clone(), y.clone())
        deep = DkNN(hook_features(net, ["0"])).fit(x.clone(), y.clone())
    for classifier in (raw, deep):
        for attack in (ASKAttack, DkNNAttack):
            attack(classifier, eps=EPS, steps=2)(images, labels)
        AdvKnn(classifier, eps=EPS, steps=2, block=BLOCK)(images, labels)
    assert torch.equal(ASKAttack(raw, eps=EPS, steps=4)(images, labels), made["ask raw"]()(images, labels))
    assert raw.score(images.clone().requires_grad_(), labels) > 0.85


@BY_NAME
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_images_of_other_precisions_stay_in_their_ball(digits, made, name, kind):
    _, _, images, labels = digits
    images = images.to(kind)
    if name in ("pgd", "autoattack", "ask deep", "dknn", "advknn"):
        # The network decides what it takes, and it is of float32.
        with pytest.raises(RuntimeError, match="dtype"):
            made[name]()(images, labels)
        return
    found = made[name]()(images, labels)
    assert found.dtype == kind
    assert ((found.double() - images.double()).abs() <= EPS + 1e-7).all()
    assert found.min() >= 0
    assert found.max() <= 1
    assert (found.double() - images.double()).abs().mean() > EPS / 3


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("eps", [8 / 255, 1 / 255])
def test_a_network_of_half_precision_is_attacked_in_half_precision(digits, kind, eps):
    _, _, images, labels = digits
    net = network().eval().to(kind)
    images = images.to(kind)
    full = PGD(network().eval(), eps=eps)(images.float(), labels)
    for attack in (PGD(net, eps=eps), AutoAttack(net, AutoAttackConfig(eps=eps, parts=("apgd-ce",)), seed=0)):
        found = attack(images, labels)
        assert found.dtype == kind
        assert ((found.double() - images.double()).abs() <= eps).all()
    loss = nn.CrossEntropyLoss()
    clean, mine, theirs = (
        float(loss(network().eval()(x.float()), labels).detach())
        for x in (images, PGD(net, eps=eps)(images, labels), full)
    )
    assert mine - clean > 0.4 * (theirs - clean) > 0


def test_linf_ascent_keeps_half_precision_in_the_ball():
    images = torch.rand(50, 20, generator=seeded()).bfloat16().requires_grad_()
    for generator in (None, seeded()):
        with torch.inference_mode():
            found = linf_ascent(
                lambda x: x.sum(1) + (x.dtype != torch.bfloat16) * 1e9,
                images,
                eps=8 / 255,
                step_size=0.01,
                steps=9,
                generator=generator,
            )
        assert found.dtype == torch.bfloat16
        assert ((found.double() - images.double()).abs() <= 8 / 255).all()
        assert (found >= images).float().mean() > 0.9


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_rounding_takes_the_nearest_number_in_the_ball(kind):
    images = torch.rand(2000, generator=seeded()).to(kind)
    images[:3] = torch.tensor([0, 1, 1e-8])
    for eps in (8 / 255, 1e-3, 1e-9):
        low, high = (images.float() - eps).clamp(min=0), (images.float() + eps).clamp(max=1)
        for wanted in (low, high, low + (high - low) * torch.rand(2000, generator=seeded())):
            found = rounded(wanted, images, eps)
            assert ((found.double() - images.double()).abs() <= eps).all()
            nearest = wanted.to(kind)
            inside = (nearest.double() - images.double()).abs() <= eps
            assert torch.equal(found[inside], nearest[inside])
            assert ((found - nearest).abs() <= 2**-7 * nearest + 1e-7).all(), "a step of one number"


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.int64, torch.complex64])
def test_other_types_are_refused(digits, raw, kind):
    with pytest.raises(ValueError, match="images must be a non-empty float tensor"):
        ASKAttack(raw, tau=0.1)(digits[2].to(kind), digits[3])


def test_weights_take_no_gradient_and_keep_theirs(digits):
    x, y, images, labels = digits
    net = network().train()
    seen = []
    net[3].register_forward_pre_hook(
        lambda *_: seen.append([(p.requires_grad, net.training) for p in net.parameters()])
    )
    classifier = DkNN(hook_features(net, ["3"])).fit(x, y)
    seen.clear()
    for attack in (ASKAttack(classifier, eps=EPS, tau=0.1, steps=2), PGD(net, eps=EPS, steps=2)):
        attack.ascent(images, labels)
        seen.clear()
        attack(images, labels)
        assert [(False, False)] * 4 in seen
        assert all(not training for one in seen for _, training in one)
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    assert net.training


# Denormal numbers.


def flushing():
    """Shares of torch's work that meet denormal numbers as 0, across threads."""
    return float(((torch.full((64, 40_000), 1e-39) * 0.5) == 0).double().mean())


THREADS = """
import sys, torch
sys.path[:0] = {paths!r}
from test_short_use import flushing
from ask import ASKAttack, DkNN
from ask.precision import undisturbed

torch.set_num_threads(2)
assert flushing() == 0, "threads begin as they like"
x, y = torch.rand(60, 4), torch.arange(60) % 3
seen = []
def features(images, layers):
    seen.append(flushing())
    return {{layer: images.flatten(1) for layer in layers}}

classifier = DkNN(features).fit(x, y)
classifier.predict(x)
ASKAttack(classifier, eps=0.1)(x, y)
assert set(seen) == {{1.0}}, seen
assert flushing() == 0, "as it was"
try:
    with undisturbed():
        raise KeyError
except KeyError:
    assert flushing() == 0
torch.set_flush_denormal(True)
with undisturbed():
    pass
assert (torch.full((1,), 1e-39) * 0.5 == 0).all(), "the caller's setting stays"
print("fine")
"""


def test_denormal_numbers_are_kept_away_in_all_threads_and_only_there(repository):
    code = THREADS.format(paths=[str(repository), str(repository / "tests")])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "fine\n", done.stderr


def test_nothing_is_set_for_a_gpu():
    before = flushing()
    with undisturbed("meta"):
        assert flushing() == before
