"""What a caller gets wrong is one ValueError that says how to mend it, whichever the attack."""

import pytest
import torch
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
)
from ask.knn import DkNN
from ask.knn.search import ExactSearch

CLASSES, PER_CLASS = 3, 5


def seeded():
    return torch.Generator().manual_seed(0)


def references():
    features = torch.rand(CLASSES * PER_CLASS, 4, generator=seeded())
    return {"input": ExactSearch(features, torch.arange(len(features)) % CLASSES)}


def on_references(attack, config, k="k"):
    """Makes an attack on raw pixels of 1x2x2; ``k`` names the setting that says how many references it wants."""
    return lambda **wanted: attack(
        identity_features,
        references(),
        config(layers=("input",), steps=1, **{k: wanted.get("k", 1)}),
        generator=seeded(),
    )


def on_a_network(attack, config):
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, CLASSES))
    return lambda: attack(network, config(steps=1), generator=seeded())


ON_REFERENCES = {
    "ask in-class": on_references(ASKAttack, ASKAttackConfig, "k_in"),
    "ask out-of-class": on_references(ASKAttack, ASKAttackConfig, "k_out"),
    "dknn": on_references(DkNNAttack, DkNNAttackConfig, "guides"),
    "advknn": on_references(AdvKnn, AdvKnnConfig),
}
ATTACKS = ON_REFERENCES | {
    "pgd": on_a_network(PGD, PGDConfig),
}


def images():
    return torch.rand(3, 1, 2, 2, generator=seeded())


def with_pixel(value):
    changed = images()
    changed[1, 0, 1, 0] = value
    return changed


LABELS = torch.tensor([0, 1, 2])
MISTAKES = {
    "label too high": (images(), torch.tensor([0, 1, 3]), r"labels must lie in 0\.\.2, got 0\.\.3"),
    "label below zero": (images(), torch.tensor([0, -100, 1]), r"labels must lie in 0\.\.2, got -100\.\.1"),
    "labels of 32 bits": (images(), LABELS.int(), r"labels must be int64 of shape \(3,\), got torch.int32"),
    "float labels": (images(), LABELS.float(), r"labels must be int64 of shape \(3,\), got torch.float32"),
    "one-hot labels": (images(), torch.eye(3).long(), r"labels must be int64 of shape \(3,\).*shape \(3, 3\)"),
    "too few labels": (images(), LABELS[:2], r"labels must be int64 of shape \(3,\).*shape \(2,\)"),
    "labels in a list": (images(), [0, 1, 2], r"labels must be a torch tensor, got list; torch\.as_tensor"),
    "images as an array": (images().numpy(), LABELS, r"images must be a torch tensor, got ndarray; torch\.as_tensor"),
    "images of bytes": ((images() * 255).byte(), LABELS, "images must be a non-empty float tensor.*got torch.uint8"),
    "images without a batch": (images()[0, 0, 0], LABELS, r"images must be a non-empty float tensor \(batch, \.\.\.\)"),
    "no images": (images()[:0], LABELS[:0], "images must be a non-empty float tensor"),
    "images up to 255": (images() * 255, LABELS, r"finite and in \[0, 1\], got values from .*; divide by 255\?"),
    "a pixel below 0": (with_pixel(-0.01), LABELS, r"finite and in \[0, 1\], got values from -0.01"),
    "a pixel above 1": (with_pixel(1.01), LABELS, r"finite and in \[0, 1\], got values from .* to 1.01"),
    "NaN": (with_pixel(float("nan")), LABELS, r"finite and in \[0, 1\], got values from nan"),
    "infinity": (with_pixel(float("inf")), LABELS, r"finite and in \[0, 1\], got values from .* to inf"),
    "images elsewhere": (images().to("meta"), LABELS, r"images are on meta, .* on cpu; move one with \.to\(\)"),
    "labels elsewhere": (images(), LABELS.to("meta"), r"labels are on meta, .* on cpu; move one with \.to\(\)"),
    "both elsewhere": (images().to("meta"), LABELS.to("meta"), r"images are on meta, .* on cpu; move one with"),
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_good_input_is_attacked(attack):
    adversarial = attack()(images(), LABELS)
    assert adversarial.shape == images().shape
    assert not torch.equal(adversarial, images())


@pytest.mark.parametrize(("bad_images", "bad_labels", "message"), MISTAKES.values(), ids=MISTAKES)
@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_bad_images_and_labels_are_clear_errors(attack, bad_images, bad_labels, message):
    with pytest.raises(ValueError, match=message):
        attack()(bad_images, bad_labels)


@pytest.mark.parametrize("attack", ON_REFERENCES.values(), ids=ON_REFERENCES)
def test_more_neighbours_than_references_is_a_clear_error(attack):
    with pytest.raises(ValueError, match=r"k=1\d exceeds the \d+ references.*; lower k or add references"):
        attack(k=CLASSES * PER_CLASS)(images(), LABELS)


@pytest.mark.parametrize("attack", ON_REFERENCES.values(), ids=ON_REFERENCES)
def test_images_of_another_size_than_the_references_are_a_clear_error(attack):
    with pytest.raises(ValueError, match=r"queries must be \(queries, 4\) like the references, got \(3, 9\)"):
        attack()(torch.rand(3, 1, 3, 3, generator=seeded()), LABELS)


@pytest.mark.parametrize("n_classes", [None, 3])
def test_a_class_without_references_is_a_clear_error(n_classes):
    with pytest.raises(ValueError, match="class 1 has no reference; every class needs at least one"):
        ExactSearch(torch.rand(4, 4, generator=seeded()), torch.tensor([0, 2, 2, 0]), n_classes=n_classes)


def test_no_references_are_a_clear_error():
    with pytest.raises(ValueError, match=r"references must be \(references, dimensions\), got shape \(0, 4\)"):
        ExactSearch(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))


@pytest.mark.parametrize("kind", [torch.uint8, torch.int64, torch.bool])
def test_features_are_of_floating_point_images(kind):
    whole = (images() * 255).to(kind)
    for given in (whole, whole.numpy()):
        with pytest.raises(ValueError, match=r"in \[0, 1\], got .*(uint8|int64|bool); divide by 255"):
            DkNN(identity_features).fit(given, LABELS)
        assert DkNN(n_neighbors=1).fit(given, LABELS).predict(given).shape == LABELS.shape


def test_a_network_without_parameters_still_needs_images_and_labels_in_one_place():
    attack = PGD(nn.Flatten(), PGDConfig(steps=1), generator=seeded())
    with pytest.raises(ValueError, match="labels are on meta, images on cpu"):
        attack(images(), LABELS.to("meta"))
