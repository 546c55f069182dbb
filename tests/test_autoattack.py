"""AutoAttack on a network and Square on votes, through the authors' package."""

from collections.abc import Callable

import pytest
import torch

from ask.attacks.auto import AutoAttack, MissingPackageError, build, dknn_scores
from ask.attacks.pgd import PGD, PGDConfig
from ask.attacks.references import Subject
from ask.config.attacks import AutoAttackConfig, SquareConfig
from ask.knn.search import ExactSearch

pytest.importorskip("pyautoattack", reason="no pyautoattack: pip install pyautoattack")
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
    assert torch.allclose(scores(images).sum(1), torch.full((40,), 1.1)), "half a vote of five more to the choice"
    config = SquareConfig(layers=("input",), queries=200, eps=EPS)
    attack = build(config, subject, generator=torch.Generator().manual_seed(3))
    found = attack(images, labels)
    before, after = (float((scores(x).argmax(1) == labels).float().mean()) for x in (images, found))
    assert after < before - 0.2
    assert float((found - images).abs().max()) <= EPS + 1e-6


def test_square_goes_on_where_votes_are_tied() -> None:
    """Two neighbours tie often; the lower class is the DkNN's choice, and is not fooled yet."""
    references, classes = points(300, 1)
    images, labels = points(100, 2)
    search = ExactSearch(references.flatten(1), classes, n_classes=10, similarity="l2")
    subject = Subject(lambda x, layers: {layer: x.flatten(1) for layer in layers}, {"input": search})
    scores = dknn_scores(subject, 2)
    margins = scores(images).topk(2).values.diff(dim=1)
    assert (margins < 0).all(), "no scores are equal"
    config = SquareConfig(layers=("input",), queries=300, eps=0.1, k=2)

    def withstands(judge: Callable[[torch.Tensor], torch.Tensor]) -> float:
        found = AutoAttack(judge, config, seed=0)(images, labels)
        return float((scores(found).argmax(1) == labels).float().mean())

    votes_alone = withstands(lambda x: torch.floor(2 * scores(x)) / 2)
    assert withstands(scores) < votes_alone - 0.05


def test_square_makes_as_many_queries_as_it_may() -> None:
    """Of an image that it never fools."""
    asked: list[int] = []

    def judge(images: torch.Tensor) -> torch.Tensor:
        asked.append(len(images))
        return torch.eye(10)[torch.zeros(len(images), dtype=torch.int64)]

    images, labels = points(1, 0)
    AutoAttack(judge, SquareConfig(layers=("input",), queries=300, eps=EPS), seed=0)(images, labels)
    assert sum(asked) == pytest.approx(300, abs=20)


@pytest.mark.parametrize("classes", [4, 5, 9])
def test_fewer_classes_than_the_ensembles_targets(classes: int) -> None:
    images, labels = points(20, 0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, classes))
    found = AutoAttack(network, AutoAttackConfig(eps=0.05, iterations=3, queries=5), seed=0)(images, labels % classes)
    assert found.shape == images.shape


@pytest.mark.parametrize(
    ("classes", "labels", "message"),
    [
        (3, torch.arange(6) % 3, r"apgd-t compares 4 classes, the network has 3; give parts without it"),
        (10, torch.arange(6) + 20, r"labels must lie in 0\.\.9, got 20\.\.25"),
        (10, torch.arange(6).int(), "labels must be int64"),
    ],
)
def test_what_the_ensemble_would_stumble_over_is_a_clear_error(
    classes: int, labels: torch.Tensor, message: str
) -> None:
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, classes))
    with pytest.raises(ValueError, match=message):
        AutoAttack(network, AutoAttackConfig(eps=0.05), seed=0)(points(6, 0)[0], labels)


def test_the_logit_difference_of_two_classes_is_a_clear_error() -> None:
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))
    config = AutoAttackConfig(eps=0.05, parts=("apgd-ce", "apgd-dlr"))
    with pytest.raises(ValueError, match="apgd-dlr compares 3 classes, the network has 2"):
        AutoAttack(network, config, seed=0)(points(6, 0)[0], torch.arange(6) % 2)


@pytest.mark.parametrize("part", ["apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square"])
def test_every_part_takes_images_with_channels_last(part: str) -> None:
    images, labels = points(12, 0)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Flatten(), torch.nn.Linear(128, 10))
    network, images = network.to(memory_format=torch.channels_last), images.repeat(1, 3, 1, 1)
    config = AutoAttackConfig(eps=EPS, parts=(part,), iterations=3, queries=10)
    plain, last = (
        AutoAttack(network, config, seed=0)(images.to(memory_format=layout), labels)
        for layout in (torch.contiguous_format, torch.channels_last)
    )
    torch.testing.assert_close(last, plain)


@pytest.mark.parametrize(
    ("shape", "config", "message"),
    [
        ((6, 16), AutoAttackConfig(), r"images must be \(batch, channels, .*\(6, 16\); give parts without square"),
        (
            (6, 16),
            SquareConfig(layers=("input",)),
            r"images must be \(batch, channels, height, width\), got \(6, 16\)$",
        ),
        ((6, 4, 4), AUTO, r"images must be \(batch, channels, height, width\), got \(6, 4, 4\)"),
    ],
)
def test_images_of_other_shapes_are_clear_errors(
    shape: tuple[int, ...], config: AutoAttackConfig, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        AutoAttack(Linear(), config, seed=0)(torch.rand(shape), torch.arange(6))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_what_moved_in_half_precision_fools(kind: torch.dtype) -> None:
    """Images are judged as they are returned: rounded, within the ball."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 64), torch.nn.ReLU(), torch.nn.Linear(64, 5))
    network, images = network.to(kind).requires_grad_(False), torch.rand(300, 3, 8, 8).to(kind)
    labels = network(images).argmax(1)
    config = AutoAttackConfig(eps=8 / 255, parts=("apgd-ce", "apgd-t"), iterations=20)
    found = AutoAttack(network, config, seed=0)(images, labels)
    moved = (found != images).flatten(1).any(1)
    assert torch.equal(moved, network(found).argmax(1) != labels)
    assert moved.double().mean() > 0.9
    assert float((found.double() - images.double()).abs().max()) <= 8 / 255


def test_tabular_images_are_attacked_by_what_follows_gradients() -> None:
    images, labels = points(20, 0)
    flat = AutoAttack(Linear(), AUTO, seed=0)(images.flatten(1), labels)
    assert flat.shape == (20, 16)
    assert (Linear()(flat).argmax(1) == labels).float().mean() < (Linear()(images).argmax(1) == labels).float().mean()


def test_without_the_package_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyautoattack.autoattack", None)
    with pytest.raises(MissingPackageError, match="pip install pyautoattack"):
        AutoAttack(Linear(), AutoAttackConfig(), seed=0)


def test_raw_pixels_have_no_network_to_attack() -> None:
    with pytest.raises(ValueError, match="raw pixels have no network"):
        build(AUTO, Subject(lambda x, _: {}, {}), generator=torch.Generator())


def test_a_radius_of_pixels_is_a_clear_error() -> None:
    with pytest.raises(ValueError, match=r"eps=8\.0 is outside \(0, 1\].*write 8 of 255 as 8 / 255"):
        AutoAttackConfig(eps=8)
