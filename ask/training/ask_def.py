"""ASK-Def's regulariser (paper, section V, eq. 6 and 7, Algorithm 2)."""

import math
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ask.attacks.linf import linf_ascent, random_start
from ask.config.training import ASKSpec, TrainingSpec
from ask.losses.ask import ask_margin, instance_wise
from ask.models.networks import Network
from ask.training.methods import AdversarialTraining, BaseOutput, Batch, as_it_comes


class ASKRegulariser:
    """The ASK loss, instance-wise, of images that maximise it (generator G2), against a reference batch.

    A step draws ``references_per_class`` augmented images of each class and their adversarial copies. G2 climbs the
    loss against the features of all of them, which it takes as constant; the update then recomputes them in training
    mode, and its gradient flows through them too. Losses of several layers add up, all from one pass of the network;
    nothing deeper than the deepest is computed.
    """

    layers: Sequence[str] = ()

    def __init__(self, spec: ASKSpec, training: TrainingSpec) -> None:
        self.spec, self.compared = spec, spec.layers or tuple(filter(None, [spec.layer]))
        self.state: dict[str, Tensor] = {}
        self.eps, self.steps = training.ask_eps / 255, training.steps
        self.step_size = (training.ask_step_size or training.step_size) / (1 if spec.legacy_step else 255)
        self.training_attack = AdversarialTraining(training)

    def __call__(self, network: Network, batch: Batch, output: BaseOutput) -> Tensor:  # noqa: ARG002  # a protocol
        """See :class:`ask.training.methods.Regulariser`."""
        spec = self.spec
        references, labels = batch.source.references(spec.references_per_class, batch.generator)
        groups = {"clean": references, "adversarial": self._copies(network, batch, references, labels)}
        images = self._generate(network, batch, batch.images, batch.labels, list(groups.values()), spec.include_self)
        used = list(groups.values()) if spec.outer_references == "union" else [groups[spec.outer_references]]
        inputs = [images, torch.cat(used), *([batch.images] if spec.include_self else [])]
        layers = [
            (features, self._by_class(found, len(used), network), *own)
            for features, found, *own in self._training_features(network, inputs)
        ]
        return spec.weight * floored_loss(self._margins(batch.labels, layers), spec.mass_floor).sum(0).mean()

    def _copies(self, network: Network, batch: Batch, references: Tensor, labels: Tensor) -> Tensor:
        """Adversarial copies of clean references (classes x k, channels, side, side)."""
        if self.spec.reference_attack == "ce":
            return self.training_attack.craft(batch, references, labels)
        return self._generate(network, batch, references, labels, [references])

    def _generate(
        self,
        network: Network,
        batch: Batch,
        images: Tensor,
        labels: Tensor,
        references: list[Tensor],
        include_self: bool = False,
    ) -> Tensor:
        """Generator G2: adversarial copies of ``images`` against groups of reference images."""
        spec, target = self.spec, batch.target
        coupled = spec.crafting_batch_norm == "train"

        def extract(inputs: Tensor) -> list[Tensor]:
            return list((network if coupled else target).features(inputs, self.compared).values())

        def climb(images: Tensor, labels: Tensor, start: Tensor, *references: Tensor) -> Tensor:
            with torch.no_grad():
                found = [self._by_class(layer, len(references), network) for layer in extract(torch.cat(references))]
                own = [target.features(images, self.compared).values()] if include_self else []

            def loss(inputs: Tensor) -> Tensor:
                margins = self._margins(labels, zip(extract(inputs), found, *own, strict=True))
                if coupled:  # batch statistics make an image's share of the loss matter to the others
                    return F.softplus(margins).sum(0)
                # Sign steps need no more than each layer's slope, sigmoid(margin), over the image's largest, which
                # never underflows.
                slopes = F.logsigmoid(margins.detach())
                return ((slopes - slopes.amax(0)).exp() * margins).sum(0)

            return linf_ascent(loss, images, eps=self.eps, step_size=self.step_size, steps=self.steps, start=start)

        start = random_start(images, self.eps, batch.generator)
        # Batch statistics move with every pass, also with those that only prepare a recording.
        crafting = as_it_comes if coupled else batch.crafting
        network.requires_grad_(False)  # spares weight gradients without leaving the network's mode
        try:
            return crafting(f"ask, include_self={include_self}", climb, images, labels, start, *references)
        finally:
            network.requires_grad_(True)

    def _by_class(self, features: Tensor, groups: int, network: Network) -> Tensor:
        return by_class(features, groups, network.num_classes, legacy=self.spec.legacy_ref_labels)

    def _margins(self, labels: Tensor, layers: Iterable[Sequence[Tensor]]) -> Tensor:
        """The ASK loss's argument (layers, batch) of features, references' by class, and maybe clean images'."""
        kind, tau = self.spec.similarity, self.spec.tau
        similarities = (
            instance_wise(features, found, similarity=kind, tau=tau, own=next(iter(own), None), labels=labels)
            for features, found, *own in layers
        )
        return torch.stack([ask_margin(one, labels) for one in similarities])

    def _training_features(self, network: Network, groups: list[Tensor]) -> list[Sequence[Tensor]]:
        """On each layer, each group's features, from one training-mode pass a group, or one for all."""
        sizes = [len(group) for group in groups]
        if self.spec.joint_pass:
            joint = network.features(torch.cat(groups), self.compared)
            return [torch.split(features, sizes) for features in joint.values()]
        passes = [network.features(group, self.compared) for group in groups]
        return [[features[layer] for features in passes] for layer in self.compared]


def by_class(references: Tensor, groups: int, classes: int, *, legacy: bool = False) -> Tensor:
    """References sorted by class.

    Args:
        references: ``groups`` groups one after the other, each in class order, (groups x classes x k, ...).
        groups: number of groups, e.g. clean images and adversarial copies.
        classes: number of classes.
        legacy: cut into classes without regard to groups, as the published training scripts do: of two groups and ten
            classes, class c < 5 then holds the clean images of classes 2c and 2c + 1, and class c >= 5 the
            adversarial ones of 2c - 10 and 2c - 9.

    Returns:
        (classes, groups x k, ...).
    """
    shape = references.shape[1:]
    if legacy:
        return references.reshape(classes, -1, *shape)
    return references.reshape(groups, classes, -1, *shape).transpose(0, 1).reshape(classes, -1, *shape)


def floored_loss(margin: Tensor, floor: float) -> Tensor:
    """-log(S_y / sum_c S_c + floor) of the ASK loss's margin (see :mod:`ask.losses.ask`); the loss itself at 0."""
    if floor == 0:
        return F.softplus(margin)
    return -torch.logaddexp(F.logsigmoid(-margin), torch.full_like(margin, math.log(floor)))


build = ASKRegulariser
