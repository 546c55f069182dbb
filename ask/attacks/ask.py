"""ASK-Atk (paper, IV and Algorithm 1): ascend the ASK loss towards the nearest references of other classes."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ask.attacks.linf import FeatureFunction, FeatureLoss
from ask.attacks.references import ReferenceAttack, calibrated
from ask.config.attacks import ASKAttackConfig
from ask.knn.dknn import DkNN
from ask.knn.search import Neighbours, Search
from ask.losses.ask import ask_margin, class_wise, scale_free_loss


def temperature(config: ASKAttackConfig, layer: str) -> float:
    """tau of one layer; raises ValueError if it has none."""
    return calibrated(f"tau of {layer}", config.tau.get(layer) if isinstance(config.tau, Mapping) else config.tau)


def weights(config: ASKAttackConfig) -> dict[str, float]:
    """omega of every attacked layer, summing to 1; raises ValueError for an omega or tau of another layer."""
    tau = config.tau if isinstance(config.tau, Mapping) else {}
    for name, by_layer in (("omega", config.omega), ("tau", tau)):
        others = [layer for layer in by_layer if layer not in config.layers]
        if others:
            attacked = ", ".join(config.layers)
            raise ValueError(f"{name} is given for {others[0]!r}, which is not attacked; attacked layers: {attacked}")
    given = {layer: config.omega.get(layer, 0.0 if config.omega else 1.0) for layer in config.layers}
    total = sum(given.values())
    return {layer: weight / total for layer, weight in given.items()}


class ASKAttack(ReferenceAttack[ASKAttackConfig]):
    """ASK-Atk on any differentiable feature function; arguments as :class:`ReferenceAttack`.

    >>> classifier = DkNN(metric="l2").fit(x, y)
    >>> config = ASKAttackConfig(layers=("input",))
    >>> attack = ASKAttack(classifier, config=config, generator=torch.Generator().manual_seed(0))
    >>> adversarial = attack(images, labels)
    """

    def __init__(
        self,
        features: FeatureFunction | DkNN,
        references: Mapping[str, Search] | DkNN | None = None,
        config: ASKAttackConfig | None = None,
        **draws: Any,
    ) -> None:
        if config is None:
            raise ValueError("config is missing; give ASKAttackConfig(layers=..., eps=...)")
        super().__init__(features, references, config, **draws)
        self.k_class = max(config.k_in, config.k_out)
        self.tau = {layer: temperature(config, layer) for layer in config.layers}
        self.omega = {layer: weight for layer, weight in weights(config).items() if weight > 0}
        self.layers = tuple(self.omega)
        for search in self.references.values():
            vectors = 1 if search.similarity == "cosine" else self.k_class
            self.image_bytes += 4 * self.n_classes * vectors * search.features.shape[1]

    def losses(self, neighbours: Mapping[str, Neighbours], labels: Tensor) -> Callable[[slice], FeatureLoss]:
        """As :class:`ReferenceAttack`: the losses of :func:`ask.losses.ask.scale_free_loss`."""
        config = self.config
        chosen = {layer: self._choose(neighbours[layer], labels, layer) for layer in config.layers}
        targets = nearest_wrong_class(neighbours, labels, config.k_out) if config.variant == "targeted" else None

        omega = self.references[self.layers[0]].features.new_tensor(list(self.omega.values()))

        def make_loss(part: slice) -> FeatureLoss:
            own, aimed = labels[part], None if targets is None else targets[part]
            similarities = {}
            for layer in self.layers:
                search, (ids, shares) = self.references[layer], chosen[layer]
                similarities[layer] = class_wise(
                    search.features,
                    ids[part],
                    weights=shares[part],
                    similarity=search.similarity,
                    tau=self.tau[layer],
                    centre=search.centre,
                )

            def loss(features: Mapping[str, Tensor]) -> Tensor:
                margins = [ask_margin(similar(features[layer]), own, aimed) for layer, similar in similarities.items()]
                return scale_free_loss(margins, omega)

            return loss

        return make_loss

    def _choose(self, neighbours: Neighbours, labels: Tensor, layer: str) -> tuple[Tensor, Tensor]:
        """Reference rows (batch, classes, k) into the sorted reference set, and their weights."""
        config, search = self.config, self.references[layer]
        k = self.k_class
        ids = search.rows(neighbours.class_indices[:, :, :k])
        is_own = torch.nn.functional.one_hot(labels, self.n_classes).bool().unsqueeze(2)
        if config.variant == "random-sampling":
            drawn = draw_references(search.counts, len(labels), k, self.generator).to(ids.device)
            ids = drawn if config.random_in_class else torch.where(is_own, ids, drawn)
        place = torch.arange(k, device=ids.device)
        shares = torch.where(is_own, (place < config.k_in) / config.k_in, (place < config.k_out) / config.k_out)
        return ids, shares.to(search.features.dtype)


build = ASKAttack.build


def nearest_wrong_class(neighbours: Mapping[str, Neighbours], labels: Tensor, k: int) -> Tensor:
    """The targeted variant's class (batch,): the wrong class at the least mean distance to the clean image.

    The paper (App. E) leaves open over which points and layers; here over the k nearest references
    of each class, averaged over layers after division by each layer's mean distance.
    """
    total = torch.zeros(())
    for found in neighbours.values():
        distance = found.class_distances[:, :, :k].mean(2)
        total = total.to(distance) + distance / distance.mean().clamp_min(1e-12)
    return total.scatter(1, labels.unsqueeze(1), float("inf")).argmin(1)


def draw_references(counts: Tensor, batch: int, k: int, generator: torch.Generator) -> Tensor:
    """Rows (batch, classes, k) of class-sorted references, k a class, uniformly and without replacement."""
    drawn = []
    for start, count in zip((counts.cumsum(0) - counts).tolist(), counts.tolist(), strict=True):
        # Floyd's sampling: place j is uniform below j + 1, or j itself when that is taken.
        ids = torch.full((batch, k), -1, dtype=torch.int64, device=generator.device)
        for place, last in enumerate(range(count - k, count)):
            pick = torch.randint(last + 1, (batch,), generator=generator, device=generator.device)
            taken = (ids[:, :place] == pick.unsqueeze(1)).any(1)
            ids[:, place] = torch.where(taken, last, pick)
        drawn.append(ids + start)
    return torch.stack(drawn, 1)
