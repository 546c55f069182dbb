"""AutoAttack on a network and Square on votes, through the authors' package."""

import pytest
import torch

from ask.attacks.auto import AutoAttack, MissingPackageError, build, dknn_scores
from ask.attacks.pgd import PGD, PGDConfig
from ask.attacks.references import Subject
from ask.config.attacks import AutoAttackConfig, SquareConfig
from ask.knn.search import ExactSearch

pytest.importorskip("pyautoattack", reason="no pyautoattack: pip install 'ask-knn[autoattack]'")
EPS = 0.15


def points(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ten classes of 4x4 images, one bright pixel each, with noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 10
    images = 0.3 * torch.rand((n, 1, 4, 4), generator=generator)
    images.view(n, -1)[torch.arange(n), labels] += 0.3
    return images, labels


class Linear(torch.nn.Module):
    """Reads the bright pixel; the rest has small weights of any sign."""

    def __init__(self) -> None:
        super().__init__()
        weight = 0.3 * torch.randn((10, 16), generator=torch.Generator().manual_seed(1))
        weight[range(10), range(10)] += 2
        self.weight = torch.nn.Parameter(weight)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1) @ self.weight.T


AUTO = AutoAttackConfig(parts=("apgd-ce", "apgd-t"), iterations=10, eps=EPS)


def test_autoattack_is_no_weaker_than_pgd_and_stays_in_the_ball() -> None:
    images, labels = points(60, 0)
    network = Linear()
    attack = build(AUTO, Subject(lambda x, _: {}, {}, network), generator=torch.Generator())
    state = torch.get_rng_state()
    found = attack(images, labels)
    assert torch.equal(torch.get_rng_state(), state)
    pgd = PGD(network, PGDConfig(eps=EPS, step_size=EPS / 4, steps=20), generator=torch.Generator())(images, labels)
    accuracy = {n: float((network(x).argmax(1) == labels).float().mean()) for n, x in (("auto", found), ("pgd", pgd))}
    assert accuracy["auto"] <= accuracy["pgd"] < float((network(images).argmax(1) == labels).float().mean())
    assert float((found - images).abs().max()) <= EPS + 1e-6
    assert 0 <= float(found.min()) <= float(found.max()) <= 1
    assert network.weight.requires_grad
    again = build(AUTO, Subject(lambda x, _: {}, {}, network), generator=torch.Generator())
    assert torch.equal(found, again(images, labels))


def test_square_lowers_a_dknn_by_its_votes_alone() -> None:
    references, classes = points(300, 1)
    images, labels = points(40, 2)
    search = ExactSearch(references.flatten(1), classes, n_classes=10, similarity="l2")
    subject = Subject(lambda x, layers: {layer: x.flatten(1) for layer in layers}, {"input": search})
    scores = dknn_scores(subject, 5)
    assert torch.allclose(scores(images).sum(1), torch.ones(40))
    config = SquareConfig(layers=("input",), queries=200, eps=EPS)
    attack = build(config, subject, generator=torch.Generator().manual_seed(3))
    found = attack(images, labels)
    before, after = (float((scores(x).argmax(1) == labels).float().mean()) for x in (images, found))
    assert after < before - 0.2
    assert float((found - images).abs().max()) <= EPS + 1e-6


def test_without_the_package_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyautoattack.autoattack", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'ask-knn\[autoattack\]'"):
        AutoAttack(Linear(), AutoAttackConfig(), seed=0)


def test_raw_pixels_have_no_network_to_attack() -> None:
    with pytest.raises(ValueError, match="raw pixels have no network"):
        build(AUTO, Subject(lambda x, _: {}, {}), generator=torch.Generator())


def test_a_radius_of_pixels_is_a_clear_error() -> None:
    with pytest.raises(ValueError, match=r"eps=8\.0 is outside \(0, 1\].*write 8 of 255 as 8 / 255"):
        AutoAttackConfig(eps=8)
