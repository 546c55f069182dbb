"""ASK-Atk (paper, IV and Algorithm 1): ascend the ASK loss towards the nearest references of other classes."""

import copy
import warnings
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakSet

import torch
from torch import Tensor

from ask.attacks.linf import Ascent, FeatureFunction, FeatureLoss, ascend
from ask.attacks.references import ReferenceAttack, calibrated
from ask.config.attacks import ASKAttackConfig
from ask.knn.search import Neighbours, Search
from ask.losses.ask import ask_margin, class_wise, scale_free_loss
from ask.models.hooks import module_of

if TYPE_CHECKING:
    from ask.knn.classifier import DkNN


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

    ``tau="auto"``, the default without a ``config``, is chosen in the first call and kept, which needs a DkNN to judge
    by: up to 32 images, evenly spread over the given ones, are attacked at each of several temperatures. These are
    .003, .01, .03, .1, .3, 1 and 3 times the mean distance, at each layer, from these images to the nearest references
    of each class. The one that leaves the DkNN the least accuracy is taken, and where several do, the one that leaves
    the true classes the fewest votes. A DkNN that gets less than half of these images right without an attack is a
    warning, once a network.

    Attributes:
        tau: temperature of each layer; empty until it is chosen.

    >>> classifier = DkNN(metric="l2").fit(x, y)
    >>> attack = ASKAttack(classifier, eps=8 / 255)
    >>> adversarial = attack(images, labels)
    >>> attack.tau
    {'input': 0.2153}
    """

    config_type = ASKAttackConfig

    def __init__(
        self,
        features: "FeatureFunction | DkNN",
        references: "Mapping[str, Search] | DkNN | None" = None,
        config: ASKAttackConfig | None = None,
        *,
        tau: Mapping[str, float] | float | Literal["auto"] | None = None,
        **options: Any,
    ) -> None:
        auto = tau == "auto" or (config is None and tau is None)
        if not (config is not None and (tau is None or auto)):
            options["tau"] = None if auto else tau
        super().__init__(features, references, config, **options)
        config = self.config
        if auto and self.classifier is None:
            raise ValueError("tau='auto' needs a fitted DkNN to judge by; give one instead of features, or a number")
        self.k_class = max(config.k_in, config.k_out)
        self.tau = {} if auto else {layer: temperature(config, layer) for layer in config.layers}
        self.omega = {layer: weight for layer, weight in weights(config).items() if weight > 0}
        self.layers = tuple(self.omega)
        for search in self.references.values():
            vectors = 1 if search.similarity == "cosine" else self.k_class
            self.image_bytes += 4 * self.n_classes * vectors * search.features.shape[1]

    def ready(self, images: Tensor, labels: Tensor, neighbours: Mapping[str, Neighbours], targeted: bool) -> Ascent:
        """As :class:`ReferenceAttack`, with a temperature chosen on these images where there is none yet."""
        if not self.tau:
            few = torch.arange(0, len(images), -(-len(images) // _FEW), device=images.device)
            known = {
                layer: Neighbours(*(getattr(found, field.name)[few] for field in fields(found)))
                for layer, found in neighbours.items()
            }
            self.tau = self._choose_tau(images[few], labels[few], known, targeted)
        return super().ready(images, labels, neighbours, targeted)

    def _choose_tau(
        self, images: Tensor, labels: Tensor, neighbours: Mapping[str, Neighbours], targeted: bool
    ) -> dict[str, float]:
        """The temperature of each layer, as the class says."""
        assert self.classifier is not None
        near = {layer: neighbours[layer].class_distances[:, :, : self.k_class] for layer in self.config.layers}
        scale = {layer: float(distances.mean()) or 1.0 for layer, distances in near.items()}
        tries = []
        for factor in _FACTORS:
            one = copy.copy(self)
            one.tau = {layer: factor * distance for layer, distance in scale.items()}
            one.generator, one.on_gradient = torch.Generator().manual_seed(self.generator.initial_seed()), None
            tries.append(one)
        found = ascend([one.ready(images, labels, neighbours, targeted) for one in tries])
        shares = torch.from_numpy(self.classifier.predict_proba(torch.cat([*found, images])))
        places = labels.cpu().repeat(len(found) + 1)
        right = (shares.argmax(1) == places).double().reshape(-1, len(images)).mean(1).tolist()
        votes = shares.gather(1, places.unsqueeze(1)).reshape(-1, len(images)).mean(1).tolist()
        if right[-1] < _LEAST_ACCURACY and not targeted:
            self._doubt(right[-1], len(images))
        left = [(-a, -b) if targeted else (a, b) for a, b in zip(right[:-1], votes[:-1], strict=True)]
        best = [one for one, accuracy in zip(tries, left, strict=True) if accuracy == min(left)]
        return best[len(best) // 2].tau

    def _doubt(self, accuracy: float, images: int) -> None:
        """Warn of a DkNN that is seldom right without an attack, once for its network."""
        assert self.classifier is not None
        module = module_of(self.features)
        network = self.classifier if module is None else module
        if network not in _warned:
            _warned.add(network)
            warnings.warn(
                f"without an attack, the DkNN gets {accuracy:.0%} of {images} images right, so its robust accuracy says"
                " little; are images and labels of the kind that it was fitted on?",
                RuntimeWarning,
                stacklevel=6,
            )

    def losses(self, neighbours: Mapping[str, Neighbours], labels: Tensor) -> Callable[[slice], FeatureLoss]:
        """As :class:`ReferenceAttack`: the losses of :func:`ask.losses.ask.scale_free_loss`."""
        config = self.config
        chosen = {layer: self._choose(neighbours[layer], labels, layer) for layer in config.layers}
        weighed = {layer: neighbours[layer] for layer in self.layers}
        targets = nearest_wrong_class(weighed, labels, config.k_out) if config.variant == "targeted" else None
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
            drawn = draw_references(search.counts, len(labels), k, self.generator)
            if config.k_in != config.k_out:  # of a class, the first few are then used: any few, in random order
                order = torch.rand(drawn.shape, generator=self.generator, device=drawn.device).argsort(2)
                drawn = drawn.gather(2, order)
            drawn = drawn.to(ids.device)
            ids = drawn if config.random_in_class else torch.where(is_own, ids, drawn)
        place = torch.arange(k, device=ids.device)
        shares = torch.where(is_own, (place < config.k_in) / config.k_in, (place < config.k_out) / config.k_out)
        return ids, shares.to(search.features.dtype)


build = ASKAttack.build

_FEW = 32
"""Images that a temperature is chosen on."""
_FACTORS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
"""Temperatures tried, over the images' mean distance to their nearest references."""
_LEAST_ACCURACY = 0.5
"""Of a clean DkNN, below which its robust accuracy says little."""
_warned: WeakSet[object] = WeakSet()


def nearest_wrong_class(neighbours: Mapping[str, Neighbours], labels: Tensor, k: int) -> Tensor:
    """The targeted variant's class (batch,): the wrong class at the least mean distance to the clean image.

    The paper (App. E) leaves open over which points and layers; here over the k nearest references
    of each class, averaged over layers after division by the image's mean distance at each.
    """
    total = torch.zeros(())
    for found in neighbours.values():
        distance = found.class_distances[:, :, :k].mean(2)
        total = total.to(distance) + distance / distance.mean(1, keepdim=True).clamp_min(1e-12)
    return total.scatter(1, labels.unsqueeze(1), float("inf")).argmin(1)


def draw_references(counts: Tensor, batch: int, k: int, generator: torch.Generator) -> Tensor:
    """Rows (batch, classes, k) of class-sorted references, k a class, uniformly and without replacement.

    Any k are as likely as any other, but not at any place among them.
    """
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
