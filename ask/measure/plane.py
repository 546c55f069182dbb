"""Figure 3 (paper, V-b) as a computation: AT and ASK-Def on two classes in the plane, where boundaries can be seen.

Points of the unit square are images of two channels and one pixel, so that training, attacks and the classifier are
the library's own. A small network learns two interleaved half moons by adversarial training, with and without the ASK
loss on its second hidden layer; a kNN classifies by the features there.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ask.attacks.ask import ASKAttack
from ask.attacks.pgd import PGD
from ask.config.attacks import ASKAttackConfig, PGDConfig
from ask.config.jobs import PlaneJob
from ask.config.training import ModelSpec, NetworkSpec
from ask.knn.classifier import DkNN
from ask.models.networks import Network
from ask.seeds import derive_seed
from ask.statistics import summarise
from ask.training.images import ResidentImages, seeded
from ask.training.methods import Batch, make_method

LAYER = "conv2"
CPU = torch.device("cpu")
TAU = 0.1


class Points(ResidentImages):
    """Training points, float32 in [0, 1], shape (points, 2, 1, 1), which nothing augments."""

    def __init__(self, points: NDArray[np.float32], labels: NDArray[np.int64]) -> None:
        super().__init__(np.empty(points.shape, np.uint8), labels, device=CPU)
        self.images = torch.from_numpy(points)

    def draw(self, indices: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:  # noqa: ARG002  # a protocol
        """Points and labels of ``indices``."""
        return self.images[indices], self.labels[indices]


def show(job: PlaneJob, _place: object = None) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Train both models from every seed and attack them.

    Returns accuracies in [0, 1] by model, over seeds, of kNN and network, clean and under ASK-Atk and PGD; and, of the
    first seed, what the figure draws: ``points`` and ``labels`` (the references), ``grid_<model>_{knn,network}``
    (side, side), scores of class 1 over the square, the ``benign`` point and each model's ``adversarial_<model>``.
    """
    accuracies: dict[str, dict[str, list[float]]] = {model.label: {} for model in job.models}
    drawn: dict[str, NDArray[Any]] = {}
    facts: dict[str, Any] = {}
    for seed in range(job.seeds):
        points, labels = moons(job.points, job.noise, np.random.default_rng(derive_seed(job.seed, "train", seed)))
        queries, wanted = moons(job.points, job.noise, np.random.default_rng(derive_seed(job.seed, "test", seed)))
        found = {}
        for model in job.models:
            network = train(job, model, Points(points, labels), seed)
            knn = DkNN(network.features, layers=[LAYER], n_neighbors=job.k).fit(points, labels)
            found[model.label] = network, knn, attack(job, network, knn, queries, wanted, seed)
            for name, images in {"clean": torch.from_numpy(queries), **found[model.label][2]}.items():
                classes = {"knn": knn.predict(images), "network": network(images).argmax(1).numpy()}
                for who, predicted in classes.items():
                    accuracies[model.label].setdefault(f"{who}_{name}", []).append(float((predicted == wanted).mean()))
        if seed == 0:
            facts, drawn = draw(job, found, points, labels, queries, wanted)
    results = [
        {"model": label} | {name: summarise(values) for name, values in measured.items()}
        for label, measured in accuracies.items()
    ]
    return {"results": results, **facts}, drawn


def moons(points: int, noise: float, random: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Two interleaved half moons in the unit square, as images (points, 2, 1, 1), and their labels (points,)."""
    labels = np.arange(points) % 2
    angle = np.pi * random.random(points)
    x = np.where(labels == 0, np.cos(angle), 1 - np.cos(angle))
    y = np.where(labels == 0, np.sin(angle), 0.4 - np.sin(angle))
    plane = np.stack([(x + 1.5) / 4, (y + 1.3) / 3], axis=1) + noise * random.standard_normal((points, 2))
    return np.clip(plane, 0, 1).astype(np.float32)[:, :, None, None], labels.astype(np.int64)


def train(job: PlaneJob, model: ModelSpec, source: Points, seed: int) -> Network:
    """One model, by the library's training method, in evaluation mode."""
    base, regulariser = make_method(model, job.training)
    network = build(job, seed)
    optimiser = torch.optim.Adam(network.parameters(), lr=job.training.learning_rate)
    for step in range(job.training.epochs):
        draws = seeded(CPU, job.seed, "step", seed, step)
        indices = torch.randint(len(source), (job.training.batch_size,), generator=draws)
        images, labels = source.draw(indices, draws)
        batch = Batch(images=images, labels=labels, generator=draws, target=network, source=source)
        output = base(network, batch, ())
        loss = output.loss + (regulariser(network, batch, output) if regulariser else 0)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
    return network.eval().requires_grad_(False)


def build(job: PlaneJob, seed: int) -> Network:
    """Two hidden layers and a linear head; the blocks beyond hold nothing. Neither batch norm nor dropout."""

    def hidden(inputs: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(inputs, job.hidden, 1), nn.ReLU())

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(job.seed, "network", seed))
        blocks = [hidden(2), hidden(job.hidden), *(nn.Identity() for _ in range(3))]
        head = nn.Sequential(nn.Flatten(), nn.Linear(job.hidden, 2))
    unused = NetworkSpec(name="vgg16")
    return Network(blocks, head, spec=unused, in_channels=2, image_size=1, num_classes=2)


def attack(
    job: PlaneJob, network: Network, knn: DkNN, queries: NDArray[np.float32], wanted: NDArray[np.int64], seed: int
) -> dict[str, Tensor]:
    """Test points under ASK-Atk and PGD, both of the radius that ASK-Def trains against."""
    training = job.training
    eps, step_size = training.ask_eps / 255, training.step_size / 255
    images, labels = torch.from_numpy(queries), torch.from_numpy(wanted)
    config = ASKAttackConfig(layers=(LAYER,), tau=TAU, k_in=job.k, k_out=job.k, eps=eps, step_size=step_size)
    ask = ASKAttack(network.features, knn.search_, config, generator=seeded(CPU, job.seed, "ask", seed))
    pgd = PGD(network, PGDConfig(eps=eps, step_size=step_size), generator=seeded(CPU, job.seed, "pgd", seed))
    return {"ask": ask(images, labels), "pgd": pgd(images, labels)}


def draw(
    job: PlaneJob,
    found: dict[str, tuple[Network, DkNN, dict[str, Tensor]]],
    points: NDArray[np.float32],
    labels: NDArray[np.int64],
    queries: NDArray[np.float32],
    wanted: NDArray[np.int64],
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Boundaries over the square, and one test point that ASK-Atk carries across the first model's boundaries."""
    side = np.linspace(0, 1, job.side, dtype=np.float32)
    square = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)[:, :, None, None]
    drawn: dict[str, NDArray[Any]] = {"points": points[:, :, 0, 0], "labels": labels}
    clean_right = np.ones(len(wanted), dtype=bool)
    crossed: list[NDArray[np.bool_]] = []
    for label, (network, knn, adversarial) in found.items():
        clean_right &= (knn.predict(queries) == wanted) & (
            network(torch.from_numpy(queries)).argmax(1).numpy() == wanted
        )
        moved = adversarial["ask"]
        crossed.append((knn.predict(moved) != wanted) & (network(moved).argmax(1).numpy() != wanted))
        drawn[f"grid_{label}_knn"] = knn.predict_proba(square)[:, 1].reshape(job.side, job.side).astype(np.float32)
        scores = network(torch.from_numpy(square)).softmax(1)[:, 1]
        drawn[f"grid_{label}_network"] = scores.reshape(job.side, job.side).numpy()
    first, *others = crossed
    rules = {
        "crosses both boundaries of the first model alone": clean_right & first & ~np.any(others, axis=0),
        "crosses both boundaries of the first model": clean_right & first,
        "is classified right by all": clean_right,
        "is any": np.ones_like(clean_right),
    }
    rule, candidates = next((rule, which) for rule, which in rules.items() if which.any())
    # Of those, the one that the first model's network is surest of.
    surest = next(iter(found.values()))[0](torch.from_numpy(queries)).softmax(1).amax(1).detach().numpy()
    chosen = int(np.argmax(np.where(candidates, surest, -1)))
    drawn["benign"] = queries[chosen, :, 0, 0]
    for label, (_, _, adversarial) in found.items():
        drawn[f"adversarial_{label}"] = adversarial["ask"][chosen, :, 0, 0].numpy()
    return {"rule": rule, "class": int(wanted[chosen])}, drawn
