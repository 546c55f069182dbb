"""Attacks here as attacks of foolbox, torchattacks and ART: their conventions, and the same results as their own."""

import sys
from copy import deepcopy
from math import sqrt

import eagerpy
import foolbox
import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ask.attacks import PGD, ASKAttack, ASKAttackConfig, PGDConfig, identity_features, linf_ascent
from ask.attacks.adapters import DkNNModule, to_art, to_foolbox, to_torchattacks
from ask.attacks.pgd import pgd_loss
from ask.knn import DkNN

EPS, STEPS = 0.1, 10
STEP = EPS / 4


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def torchattacks():
    """The library, where ``make`` has installed it; its pin of requests keeps it out of the extra ``test``."""
    return pytest.importorskip("torchattacks", reason="torchattacks is optional: pip install --no-deps torchattacks")


@pytest.fixture(scope="module")
def digits():
    """1000 training and 797 test images of scikit-learn's digits, (n, 1, 8, 8) in [0, 1]."""
    pixels, classes = load_digits(return_X_y=True)
    order = torch.randperm(len(pixels), generator=seeded())
    images = torch.from_numpy(pixels / 16).float().reshape(-1, 1, 8, 8)[order]
    labels = torch.from_numpy(classes)[order]
    return images[:1000], labels[:1000], images[1000:], labels[1000:]


@pytest.fixture(scope="module")
def network(digits):
    """A small network, trained in a second."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 10))
        optimiser = torch.optim.Adam(module.parameters(), lr=1e-2)
        for _ in range(60):
            optimiser.zero_grad()
            nn.functional.cross_entropy(module(digits[0]), digits[1]).backward()
            optimiser.step()
    return module.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def classifier(digits):
    return DkNN(metric="l2").fit(digits[0], digits[1])


def pgd(network, eps=EPS, *, steps=STEPS, step_size=None, seed=0):
    config = PGDConfig(eps=eps, step_size=step_size or eps / 4, steps=steps)
    return PGD(network, config, generator=seeded(seed))


def ask_attack(classifier, eps=EPS, *, seed=0):
    config = ASKAttackConfig(layers=("input",), eps=eps, step_size=eps / 4, steps=STEPS, tau=0.1)
    return ASKAttack(identity_features, classifier.search_, config, generator=seeded(seed))


def correct(network, images, labels):
    with torch.no_grad():
        return network(images).argmax(1) == labels


def agree(ours, theirs):
    """Whether two attacks, judged image by image, are equally strong.

    Both attack the same images, so only those on which they differ tell them apart (McNemar): were they equally strong,
    each of these would fall to either side with probability 1/2, and the difference of the two counts would have a
    standard deviation of the root of their sum. Three of these are allowed; and 5 % of images that differ at most.
    """
    only_ours, only_theirs = int((~ours & theirs).sum()), int((ours & ~theirs).sum())
    differ = only_ours + only_theirs
    return abs(only_ours - only_theirs) <= 3 * sqrt(differ) and differ <= 0.05 * len(ours)


# Our PGD and theirs.


def test_pgd_is_as_strong_as_foolboxs(digits, network):
    images, labels = digits[2:]
    ours = correct(network, pgd(network, seed=1)(images, labels), labels)
    attack = foolbox.attacks.LinfProjectedGradientDescentAttack(abs_stepsize=STEP, steps=STEPS, random_start=True)
    torch.manual_seed(2)
    success = attack(foolbox.PyTorchModel(network, (0, 1), "cpu"), images, labels, epsilons=EPS)[2]
    assert 0.2 < ours.float().mean() < 0.8, "too strong or too weak to compare"
    assert agree(ours, ~success)


def test_pgd_is_as_strong_as_torchattacks(digits, network, torchattacks):
    images, labels = digits[2:]
    ours = correct(network, pgd(network, seed=1)(images, labels), labels)
    torch.manual_seed(2)
    theirs = torchattacks.PGD(network, eps=EPS, alpha=STEP, steps=STEPS, random_start=True)(images, labels)
    assert agree(ours, correct(network, theirs, labels))


@pytest.mark.parametrize("changes", [{"eps": 0.9 * EPS}, {"steps": 3}, {"step_size": EPS / 20}])
def test_the_comparison_would_notice_other_settings(digits, network, changes):
    images, labels = digits[2:]
    ours = correct(network, pgd(network, seed=1)(images, labels), labels)
    weaker = correct(network, pgd(network, **{"step_size": STEP, "seed": 2, **changes})(images, labels), labels)
    assert not agree(ours, weaker)
    assert agree(ours, correct(network, pgd(network, seed=2)(images, labels), labels))


def test_without_a_random_start_the_images_are_the_same(digits, network, torchattacks):
    images, labels = digits[2][:100].double(), digits[3][:100]
    network = deepcopy(network).double()
    ours = linf_ascent(pgd_loss(network, labels), images, eps=EPS, step_size=STEP, steps=STEPS)
    attack = foolbox.attacks.LinfProjectedGradientDescentAttack(abs_stepsize=STEP, steps=STEPS, random_start=False)
    foolboxs = attack(foolbox.PyTorchModel(network, (0, 1), "cpu"), images, labels, epsilons=EPS)[1]
    theirs = torchattacks.PGD(network, eps=EPS, alpha=STEP, steps=STEPS, random_start=False)(images, labels)
    torch.testing.assert_close(ours, foolboxs)
    torch.testing.assert_close(ours, theirs)


# foolbox.


def test_foolbox_gets_raw_clipped_and_success_for_each_epsilon(digits, network):
    images, labels = digits[2][:60], digits[3][:60]
    asked = []

    def make_attack(eps):
        asked.append(eps)
        return pgd(network, eps)

    attack = to_foolbox(make_attack)
    assert isinstance(attack, foolbox.attacks.Attack)
    model = foolbox.PyTorchModel(network, (0, 1), "cpu")
    raw, clipped, success = attack(model, images, labels, epsilons=[0, 0.05, 0.2])
    assert asked == [0.05, 0.2]
    assert (len(raw), len(clipped), success.shape, success.dtype) == (3, 3, (3, 60), torch.bool)
    for eps, found, limited, fooled in zip([0, 0.05, 0.2], raw, clipped, success, strict=True):
        assert (found - images).abs().max() == pytest.approx(eps, abs=1e-6)
        assert torch.equal(found, limited) or (found - limited).abs().max() < 1e-6
        assert torch.equal(fooled, ~correct(network, limited, labels))
    assert torch.equal(raw[0], images)
    assert success[0].sum() < success[1].sum() < success[2].sum()

    alone = attack(model, images, foolbox.Misclassification(labels), epsilons=0.2)
    assert torch.equal(alone[0], raw[2])
    assert torch.equal(alone[1], clipped[2])
    assert torch.equal(alone[2], success[2])


def test_foolbox_clips_an_attack_that_goes_too_far(digits, network):
    images, labels = digits[2][:20], digits[3][:20]
    attack = to_foolbox(lambda eps: lambda images, labels: (images + 2 * eps).clamp(0, 1))
    raw, clipped, _ = attack(foolbox.PyTorchModel(network, (0, 1), "cpu"), images, labels, epsilons=0.1)
    assert (raw - images).max() == pytest.approx(0.2)
    assert (clipped - images).max() == pytest.approx(0.1)


@pytest.mark.parametrize("bounds", [(0, 255), (-1, 1), (-2.118, 2.64)])
def test_foolbox_bounds_are_converted_both_ways(digits, network, bounds):
    images, labels = digits[2][:60].double(), digits[3][:60]
    network = deepcopy(network).double()
    width = bounds[1] - bounds[0]
    model = foolbox.PyTorchModel(network, (0, 1), "cpu")
    attack = to_foolbox(lambda eps: pgd(network, eps))
    _, expected, success = attack(model, images, labels, epsilons=EPS)
    inputs = (images * width + bounds[0]).clamp(*bounds)
    other = foolbox.models.TransformBoundsWrapper(model, bounds)
    _, clipped, same_success = attack(other, inputs, labels, epsilons=EPS * width)
    torch.testing.assert_close((clipped - bounds[0]) / width, expected)
    assert bounds[0] <= clipped.min() <= clipped.max() <= bounds[1]
    assert torch.equal(success, same_success)
    assert success.any()


def test_foolbox_bounds_that_float32_can_not_hold(network):
    # (high - low) / (high - low) is 1 and a bit in float32, which is no mistake of the caller.
    low, high = -1.1, -0.4
    images = torch.linspace(low + 1e-6, high - 1e-7, 64).reshape(1, 1, 8, 8).repeat(2, 1, 1, 1)
    images[:, :, -1, -1] = high
    assert ((images - low) / (high - low)).max() > 1
    model = foolbox.models.TransformBoundsWrapper(foolbox.PyTorchModel(network, (0, 1), "cpu"), (low, high))
    attack = to_foolbox(lambda eps: pgd(network, eps))
    _, clipped, _ = attack(model, images, torch.zeros(2, dtype=torch.int64), epsilons=0.01)
    assert (clipped - images).abs().max() == pytest.approx(0.01, abs=1e-6)


def test_foolbox_restarts_help(digits, network):
    images, labels = digits[2][:300], digits[3][:300]
    model = foolbox.PyTorchModel(network, (0, 1), "cpu")

    def attack():
        shared = seeded()
        config = PGDConfig(eps=EPS, step_size=STEP, steps=2)
        return to_foolbox(lambda eps: PGD(network, config, generator=shared))

    once = attack()(model, images, labels, epsilons=EPS)[2]
    best = attack().repeat(5)(model, images, labels, epsilons=EPS)[2]
    assert (best | ~once).all()
    assert best.sum() > once.sum()


def test_foolbox_tensors_of_eagerpy_stay_so(digits, network):
    images, labels = eagerpy.astensors(digits[2][:10], digits[3][:10])
    attack = to_foolbox(lambda eps: pgd(network, eps))
    found = attack(foolbox.PyTorchModel(network, (0, 1), "cpu"), images, labels, epsilons=EPS)
    assert all(isinstance(one, eagerpy.PyTorchTensor) for one in found)
    assert found[1].shape == images.shape


class Odd(foolbox.criteria.Criterion):
    def __repr__(self):
        return "Odd()"

    def __call__(self, perturbed, outputs):
        return outputs


@pytest.mark.parametrize(
    ("bounds", "preprocessing", "fits"),
    [
        ((0, 1), None, True),
        ((0, 1), {"mean": torch.tensor([0.0]), "std": torch.tensor([1.0]), "axis": -3}, True),
        ((0, 1), {"mean": torch.tensor([0.13]), "std": torch.tensor([0.31]), "axis": -3}, False),
        ((0, 1), {"flip_axis": -1}, False),
        # Those that map the bounds to [0, 1] are what the adapter does, too.
        ((0, 255), {"mean": torch.tensor([0.0]), "std": torch.tensor([255.0]), "axis": -3}, True),
        ((-1, 1), {"mean": torch.tensor([-1.0]), "std": torch.tensor([1.0]), "axis": -3}, False),
    ],
)
def test_foolbox_preprocessing_that_the_attack_does_not_see_is_refused(digits, network, bounds, preprocessing, fits):
    low, high = bounds
    inputs, labels = digits[2][:10] * (high - low) + low, digits[3][:10]
    attack = to_foolbox(lambda eps: pgd(network, eps))
    model = foolbox.PyTorchModel(network, bounds, "cpu", preprocessing)
    for one, scale in (
        (model, 1),
        (model.transform_bounds((0, 2)), 2),
        (model.transform_bounds((0, 2), wrapper=True), 2),
    ):
        given = inputs if one is model else (inputs - low) / (high - low) * scale
        eps = EPS * (high - low) if one is model else EPS * scale
        if fits:
            expected = pgd(network)(digits[2][:10], labels)
            found = attack(one, given, labels, epsilons=eps)[1]
            found = (found - low) / (high - low) if one is model else found / scale
            torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)
        else:
            with pytest.raises(ValueError, match="the foolbox model has preprocessing, which the attack's own network"):
                attack(one, given, labels, epsilons=eps)


def test_foolbox_mistakes_are_clear_errors(digits, network):
    images, labels = digits[2][:10], digits[3][:10]
    attack = to_foolbox(lambda eps: pgd(network, eps))
    model = foolbox.PyTorchModel(network, (0, 1), "cpu")
    with pytest.raises(ValueError, match=r"use Misclassification\(labels\)"):
        to_foolbox(lambda eps: None).run(model, images, Odd(), epsilon=EPS)
    with pytest.raises(ValueError, match="function can't lead images to given classes; take ASKAttack"):
        to_foolbox(lambda eps: lambda x, y: x)(model, images, foolbox.TargetedMisclassification(labels), epsilons=EPS)
    arrays = foolbox.NumPyModel(lambda x: np.eye(10, dtype=np.float32)[: len(x)], (0, 1))
    with pytest.raises(ValueError, match=r"must be a torch tensor.*foolbox\.PyTorchModel"):
        attack(arrays, images.numpy(), labels.numpy(), epsilons=EPS)
    with pytest.raises(TypeError, match="steps"):
        attack(model, images, labels, epsilons=EPS, steps=3)
    with pytest.raises(ValueError, match="outside"):
        attack(model, images, labels, epsilons=8)


def test_foolbox_judges_ask_atk_by_the_dknn(digits, classifier):
    images, labels = digits[2][:100], digits[3][:100]
    model = foolbox.PyTorchModel(DkNNModule(classifier).eval(), (0, 1), "cpu")
    assert foolbox.accuracy(model, images, labels) == pytest.approx(classifier.score(images, labels))
    attack = to_foolbox(lambda eps: ask_attack(classifier, eps))
    _, clipped, success = attack(model, images, labels, epsilons=[0.05, 0.2])
    torch.testing.assert_close(clipped[1], ask_attack(classifier, 0.2)(images, labels))
    for limited, fooled in zip(clipped, success, strict=True):
        assert 1 - fooled.float().mean() == pytest.approx(classifier.score(limited, labels))
    assert classifier.score(images, labels) > 0.95
    assert success[1].float().mean() > 0.4


# A DkNN as a module.


def test_dknn_module_votes_as_the_dknn(digits, classifier):
    noisy = (digits[2] + torch.rand(digits[2].shape, generator=seeded()) - 0.5).clamp(0, 1)
    fractions = DkNNModule(classifier)(noisy)
    assert (fractions.dtype, fractions.shape, fractions.requires_grad) == (torch.float32, (797, 10), False)
    shares, predicted = classifier.predict_proba(noisy), classifier.predict(noisy)
    shares[range(797), predicted] += 0.5 / (classifier.n_neighbors * len(classifier.layers_))
    np.testing.assert_allclose(fractions.numpy(), shares, rtol=1e-6)
    tied = (classifier.predict_proba(noisy) == classifier.predict_proba(noisy).max(1, keepdims=True)).sum(1) > 1
    assert tied.any(), "no tie to break"
    first, second = fractions.topk(2, dim=1).values.unbind(1)
    assert (first > second).all(), "an attack on scores would take a tie for fooled"
    assert (fractions.argmax(1).numpy() == predicted).all()


def test_dknn_module_needs_a_fitted_dknn():
    with pytest.raises(ValueError, match=r"call fit\(X, y\) first"):
        DkNNModule(DkNN())


# torchattacks.


@pytest.mark.parametrize("name", ["pgd", "ask"])
def test_torchattacks_calls_the_attack(digits, network, classifier, torchattacks, name, capsys):
    images, labels = digits[2][:60], digits[3][:60]
    make, model = {
        "pgd": (lambda: pgd(network), network),
        "ask": (lambda: ask_attack(classifier), DkNNModule(classifier)),
    }[name]
    before = images.clone()
    attack = to_torchattacks(make(), model)
    assert isinstance(attack, torchattacks.attack.Attack)
    assert torch.equal(attack(images, labels), make()(images, labels))
    assert torch.equal(images, before)
    assert attack.device == torch.device("cpu")
    assert repr(attack).startswith(type(make()).__name__)
    assert "Failed to set device" not in capsys.readouterr().out


def test_torchattacks_restores_the_models_mode(digits, network, torchattacks):
    model = nn.Sequential(nn.BatchNorm2d(1), *network)
    seen = []
    attack = to_torchattacks(lambda images, labels: seen.append(model.training) or images, model.train())
    attack(digits[2][:4], digits[3][:4])
    assert seen == [False]
    assert model.training
    network.eval()


def test_torchattacks_saves_and_reports(digits, network, torchattacks, tmp_path):
    images, labels = digits[2][:90], digits[3][:90]
    attack = to_torchattacks(pgd(network), network)
    batches = DataLoader(TensorDataset(images, labels), batch_size=40)
    robust, _, _ = attack.save(batches, tmp_path / "a.pt", return_verbose=True, save_predictions=True)
    saved = torch.load(tmp_path / "a.pt")
    assert torch.equal(saved["labels"], labels)
    assert (saved["adv_inputs"] - images).abs().max() == pytest.approx(EPS, abs=1e-6)
    assert robust == pytest.approx(100 * correct(network, saved["adv_inputs"], labels).float().mean().item())
    assert robust < 90


def test_torchattacks_normalisation_is_undone_before_and_redone_after(digits, network, torchattacks):
    images, labels = digits[2][:60], digits[3][:60]
    mean, std = 0.1307, 0.3081

    class Normalised(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network

        def forward(self, inputs):
            return self.inner(inputs * std + mean)

    attack = to_torchattacks(pgd(network), Normalised())
    attack.set_normalization_used([mean], [std])
    # Two values that come back from their normalised form a rounding error outside of [0, 1].
    inputs = (images - mean) / std
    inputs[0, 0, 0, :2] = torch.tensor([(0 - 1e-7 - mean) / std, (1 + 2e-7 - mean) / std])
    images[0, 0, 0, :2] = torch.tensor([0.0, 1.0])
    found = attack(inputs, labels)
    torch.testing.assert_close(found * std + mean, pgd(network)(images, labels), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="divide by 255"):
        attack(inputs + 0.1, labels)


def test_torchattacks_multiattack_takes_ours_beside_its_own(digits, network, torchattacks):
    images, labels = digits[2][:200], digits[3][:200]
    ours, theirs = to_torchattacks(pgd(network, steps=1), network), torchattacks.PGD(network, eps=EPS, alpha=STEP)
    torch.manual_seed(0)
    both = correct(network, torchattacks.MultiAttack([ours, theirs])(images, labels), labels)
    alone = correct(network, pgd(network, steps=1)(images, labels), labels)
    assert not (both & ~alone).any()
    assert both.sum() < alone.sum()


def test_torchattacks_mistakes_are_clear_errors(digits, network, torchattacks):
    attack = to_torchattacks(pgd(network), network)
    with pytest.raises(ValueError, match=r"call attack\(images, labels\)"):
        attack(digits[2][:4])
    with pytest.raises(ValueError, match="not supported"):
        to_torchattacks(lambda images, labels: images, network).set_mode_targeted_by_label()
    attack.set_mode_targeted_by_label(quiet=True)
    with pytest.raises(ValueError, match="label"):
        attack(digits[2][:4])


# Targeted modes, in all libraries.


def targeted(library, attack, judge, images, targets):
    """Images that the attack leads to the targets, as a library calls it."""
    if library == "foolbox":
        criterion = foolbox.TargetedMisclassification(targets)
        _, found, success = to_foolbox(lambda eps: attack)(
            foolbox.PyTorchModel(judge, (0, 1), "cpu"), images, criterion, epsilons=EPS
        )
        assert torch.equal(success, judge(found).argmax(1) == targets)
        return found
    if library == "torchattacks":
        made = to_torchattacks(attack, judge)
        made.set_mode_targeted_by_label(quiet=True)
        return made(images, targets)
    if library == "art":
        made = to_art(attack, art_estimator(judge, images), targeted=True)
        return torch.from_numpy(made.generate(images.numpy(), np.eye(10)[targets.numpy()]))
    return attack(images, targets, targeted=True)


def art_estimator(module, images, **changes):
    """ART's view of a network or a judge."""
    classifiers = pytest.importorskip("art.estimators.classification", reason="ART is optional")
    options = {"clip_values": (0, 1), "device_type": "cpu", **changes}
    return classifiers.PyTorchClassifier(module, nn.CrossEntropyLoss(), tuple(images.shape[1:]), 10, **options)


@pytest.mark.parametrize("library", ["ask", "foolbox", "torchattacks", "art"])
@pytest.mark.parametrize("name", ["pgd", "ask"])
def test_targeted_modes_lead_to_the_targets(digits, network, classifier, library, name):
    if library == "torchattacks":
        pytest.importorskip(library)
    images, labels = digits[2][:60], digits[3][:60]
    targets = (labels + 1 + torch.arange(60) % 9) % 10
    make, judge = {
        "pgd": (lambda: pgd(network, 3 * EPS), network),
        "ask": (lambda: ask_attack(classifier, 3 * EPS), DkNNModule(classifier).eval()),
    }[name]
    found = targeted(library, make(), judge, images, targets)
    limit = EPS if library == "foolbox" else 3 * EPS  # foolbox clips to its epsilon
    assert (found - images).abs().max() <= limit + 1e-6
    hit = correct(judge, found, targets).float().mean()
    if library != "foolbox":
        assert torch.equal(found, make()(images, targets, targeted=True))
        assert hit > 0.5
    before, away = correct(judge, images, targets), correct(judge, make()(images, labels), targets)
    assert hit > max(before.float().mean(), away.float().mean() if library != "foolbox" else 0)


def test_torchattacks_random_and_least_likely_targets(digits, network, torchattacks):
    images, labels = digits[2][:60], digits[3][:60]
    attack = to_torchattacks(pgd(network, 3 * EPS), network)
    attack.set_mode_targeted_least_likely(quiet=True)
    with torch.no_grad():
        unlikely = network(images).argmin(1)
    assert correct(network, attack(images, labels), unlikely).float().mean() > 0.5
    attack.set_mode_targeted_random(quiet=True)
    assert not correct(network, attack(images, labels), labels).float().mean() > 0.2


# ART.


@pytest.mark.parametrize("limits", [(0, 1), (0, 255), (-1, 1), None])
def test_art_calls_the_attack_on_arrays(digits, network, limits):
    images, labels = digits[2][:60], digits[3][:60]
    low, high = limits or (0, 1)
    inputs = (images * (high - low) + low).numpy()
    attack = to_art(pgd(network), art_estimator(network, images, clip_values=limits))
    expected = pgd(network)(images, labels).numpy()
    for given in (labels.numpy(), labels.numpy()[:, None], np.eye(10)[labels.numpy()]):
        attack = to_art(pgd(network), art_estimator(network, images, clip_values=limits))
        found = attack.generate(inputs, given)
        assert (found.dtype, found.shape) == (inputs.dtype, inputs.shape)
        np.testing.assert_allclose((found - low) / (high - low), expected, atol=2e-3)
        assert low <= found.min() <= found.max() <= high


def test_art_keeps_whole_pixel_values_in_the_ball(digits, network):
    images, labels = digits[2][:60], digits[3][:60]
    whole = (images * 255).round().to(torch.uint8).numpy()
    estimator = art_estimator(network, images, clip_values=(0, 255))
    found = to_art(pgd(network), estimator).generate(whole, labels.numpy())
    change = found.astype(int) - whole
    assert found.dtype == np.uint8
    assert abs(change).max() == int(255 * EPS + 1e-3)
    exact = to_art(pgd(network), estimator).generate(whole.astype(np.float32), labels.numpy())
    assert abs(exact - found).max() <= 0.5 + 255 * EPS % 1 + 1e-3, "the nearest"


def test_art_without_labels_attacks_what_the_estimator_predicts(digits, classifier):
    images = digits[2][:60]
    judge = art_estimator(DkNNModule(classifier).eval(), images)
    found = to_art(ask_attack(classifier), judge).generate(images.numpy())
    assert np.array_equal(found, ask_attack(classifier)(images, torch.from_numpy(classifier.predict(images))).numpy())
    assert np.array_equal(judge.predict(found).argmax(1), classifier.predict(found))


def test_art_mistakes_are_clear_errors(digits, network):
    images, labels = digits[2][:10], digits[3][:10].numpy()
    attack = to_art(pgd(network), art_estimator(network, images))
    with pytest.raises(TypeError, match="steps"):
        attack.generate(images.numpy(), labels, steps=3)
    with pytest.raises(ValueError, match="divide by 255"):
        attack.generate(255 * images.numpy(), labels)
    with pytest.raises(ValueError, match="labels to lead the images to are missing"):
        to_art(pgd(network), art_estimator(network, images), targeted=True).generate(images.numpy())
    with pytest.raises(ValueError, match="the estimator preprocesses images, which the attack's own network does not"):
        to_art(pgd(network), art_estimator(network, images, preprocessing=(0.1, 0.3))).generate(images.numpy(), labels)
    from art.defences.preprocessor import FeatureSqueezing

    squeezed = art_estimator(network, images, preprocessing_defences=FeatureSqueezing(clip_values=(0, 1), bit_depth=1))
    with pytest.raises(ValueError, match="the estimator preprocesses images"):
        to_art(pgd(network), squeezed).generate(images.numpy(), labels)
    assert "targeted=False" in repr(attack)


@pytest.mark.parametrize(
    ("library", "make"),
    [
        ("foolbox", lambda: to_foolbox(lambda eps: None)),
        ("torchattacks", lambda: to_torchattacks(None, nn.Identity())),
        ("art", lambda: to_art(None, None)),
    ],
)
def test_a_missing_library_is_one_clear_error(monkeypatch, library, make):
    for name in [library, *(name for name in sys.modules if name.startswith(f"{library}."))]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=rf"(?i)needs {library}: pip install"):
        make()
