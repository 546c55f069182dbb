"""DkNN-Atk (Sitawarin and Wagner, 2019 and 2020): pull the features towards guides of one wrong class.

Guides are a wrong class's references nearest to the clean image. With d the Euclidean distance between the features
(of unit length under cosine similarity) and a guide, and eta the distance at which a guide counts as a neighbour,

    maximise  - sum_l mean_j sigmoid(alpha (d_lj / eta_l - 1)),

the soft count of guides that are neighbours. The default follows a later implementation by an author of the ASK
paper; the options hold the original and its successor.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ask.attacks.linf import BoxSteps, FeatureFunction, FeatureLoss
from ask.attacks.references import ReferenceAttack, calibrated, leave_one_out
from ask.config.attacks import DkNNAttackConfig
from ask.knn.search import ExactSearch, Neighbours, Search
from ask.knn.similarity import negative_distance, unit

if TYPE_CHECKING:
    from ask.knn.classifier import DkNN


class DkNNAttack(ReferenceAttack[DkNNAttackConfig]):
    """DkNN-Atk on any differentiable feature function; arguments as :class:`ReferenceAttack`.

    >>> adversarial = DkNNAttack(classifier, eps=8 / 255)(images, labels)
    """

    config_type = DkNNAttackConfig

    def __init__(
        self,
        features: "FeatureFunction | DkNN",
        references: "Mapping[str, Search] | DkNN | None" = None,
        config: DkNNAttackConfig | None = None,
        **options: Any,
    ) -> None:
        super().__init__(features, references, config, **options)
        config = self.config
        idle = {"step_size"} if config.optimizer != "sign" else {"learning_rate"}
        if mute := options.keys() & (idle | ({"alpha"} if config.loss == "relu" else set())):
            kind = f"optimizer={config.optimizer!r}, loss={config.loss!r}"
            raise ValueError(f"{', '.join(sorted(mute))}: of no effect with {kind}; leave it out, or change these")
        self.k_class = config.guides
        self.image_bytes = sum(4 * config.guides * search.features.shape[1] for search in self.references.values())
        # What the loss or the steps do not read may be left uncalibrated.
        self.alpha = calibrated("alpha", config.alpha) if config.loss == "sigmoid" else 0.0
        if config.optimizer != "sign":
            self.rule = BoxSteps(config.optimizer, calibrated("learning_rate", config.learning_rate))
        self.thresholds = {
            layer: config.threshold or mean_neighbour_distance(search, config.k)
            for layer, search in self.references.items()
        }

    def losses(self, neighbours: Mapping[str, Neighbours], labels: Tensor) -> Callable[[slice], FeatureLoss]:
        """As :class:`ReferenceAttack`."""
        return self._towards(neighbours, lambda found, part: self.choose(found, labels[part]))

    def targeted_losses(self, neighbours: Mapping[str, Neighbours], labels: Tensor) -> Callable[[slice], FeatureLoss]:
        """As :class:`ReferenceAttack`, towards guides of the classes."""
        return self._towards(neighbours, lambda found, part: self.choose(found, labels[part], targeted=True))

    def _towards(
        self,
        neighbours: Mapping[str, Neighbours],
        choose: Callable[[Mapping[str, Neighbours], slice], Mapping[str, Tensor]],
    ) -> Callable[[slice], FeatureLoss]:
        """Losses from a choice of guides for a part of the images, by layer, from their neighbours."""
        everyone, refresh = choose(neighbours, slice(None)), self.config.refresh

        def make_loss(part: slice) -> FeatureLoss:
            guides = {layer: self.references[layer].features[rows[part]] for layer, rows in everyone.items()}
            calls = 0

            def loss(features: Mapping[str, Tensor]) -> Tensor:
                nonlocal calls
                if refresh and calls and calls % refresh == 0:
                    found = {
                        layer: search.search(features[layer].detach(), k_class=self.k_class)
                        for layer, search in self.references.items()
                    }
                    for layer, rows in choose(found, part).items():
                        guides[layer] = self.references[layer].features[rows]
                calls += 1
                terms = [self._guide_loss(layer, features[layer], vectors) for layer, vectors in guides.items()]
                return -torch.stack(terms).sum(0)

            return loss

        return make_loss

    def choose(
        self, neighbours: Mapping[str, Neighbours], labels: Tensor, *, targeted: bool = False
    ) -> dict[str, Tensor]:
        """Rows (batch, m) of the guides at each layer, all of the wrong class with the least summed mean distance.

        With the ``relu`` loss, the first m // 2 are of the true class and the last m // 2 of that wrong class.
        Where labels are ``targeted``, these and the other class change places.
        """
        m = self.config.guides
        total = torch.zeros(())
        for layer, search in self.references.items():
            distance = euclidean(neighbours[layer].class_distances[:, :, :m], search)
            total = total.to(distance) + distance.mean(2)
        wrong = total.scatter(1, labels.unsqueeze(1), float("inf")).argmin(1)
        if targeted:
            labels, wrong = wrong, labels
        chosen = {}
        for layer, search in self.references.items():
            rows = search.rows(neighbours[layer].class_indices[:, :, :m].contiguous())
            batch = torch.arange(len(labels), device=rows.device)
            if self.config.loss == "relu":
                half = max(1, m // 2)
                chosen[layer] = torch.cat([rows[batch, labels, :half], rows[batch, wrong, :half]], 1)
            else:
                chosen[layer] = rows[batch, wrong]
        return chosen

    def _guide_loss(self, layer: str, features: Tensor, guides: Tensor) -> Tensor:
        """Mean over guides (batch, m, dimensions) of what the attack minimises at one layer, (batch,)."""
        config, eta = self.config, self.thresholds[layer]
        if self.references[layer].similarity == "cosine":
            features = unit(features)
        if (centre := self.references[layer].centre) is not None:
            features, guides = features - centre, guides - centre
        distance = -negative_distance(features.unsqueeze(1), guides, guides.square().sum(2)).squeeze(1)
        excess = distance / eta - 1 if config.relative else distance - eta
        if config.loss == "sigmoid":
            return torch.sigmoid(self.alpha * excess).mean(1)
        half = guides.shape[1] // 2
        return torch.cat([-excess[:, :half], excess[:, half:]], 1).relu().mean(1)


build = DkNNAttack.build


def euclidean(distances: Tensor, search: Search) -> Tensor:
    """Euclidean distances of (unit) features from a search's distances, which are 1 - cos under cosine."""
    return (2 * distances).clamp_min(0).sqrt() if search.similarity == "cosine" else distances


def mean_neighbour_distance(search: Search, k: int) -> float:
    """Mean Euclidean distance of a fifth of the references to their k-th nearest other reference.

    Where that is 0, for all of these are duplicates, these count once, and k is at most what is left; 1 if nothing is.
    """
    distances, _ = leave_one_out(search, k, every=5)
    mean = float(euclidean(distances[:, -1], search).mean())
    if mean == 0 and len(distinct := search.features.unique(dim=0)) > 1:
        labels = torch.zeros(len(distinct), dtype=torch.int64, device=distinct.device)
        once = ExactSearch(distinct, labels, similarity=search.similarity)
        distances, _ = leave_one_out(once, min(k, len(distinct) - 1), every=5)
        mean = float(euclidean(distances[:, -1], once).mean())
    return mean or 1.0
