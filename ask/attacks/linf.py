"""The ascent loop that every l-infinity attack here shares (paper, eq. 5 and Algorithm 1).

Algorithm 1 as printed never updates delta and returns the clean image; what stands here is what
eq. (5) says: a sign step, then projection onto the eps-ball around the clean image and onto [0, 1].

A gradient can hold NaN or infinite values, as that of sqrt(x) does at 0. A sign step leaves a pixel with NaN where it
is and follows the sign of an infinite value; a step of an optimiser counts either as 0, so that images stay finite.
Such an attack looks weaker than it could be, of which a call warns once.
"""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Generic, Literal, TypeVar

import torch
from pydantic import ValidationError
from torch import Tensor

from ask.attacks.validation import HALF, plain, rounded
from ask.config.attacks import AttackConfig
from ask.config.base import explain
from ask.models.hooks import evaluating, module_of
from ask.precision import undisturbed

C = TypeVar("C", bound=AttackConfig)
LossFunction = Callable[[Tensor], Tensor]
"""Maps images (batch, channels, height, width) to one loss an image, (batch,)."""
FeatureFunction = Callable[[Tensor, Sequence[str]], Mapping[str, Tensor]]
"""Maps images and layer names to features (batch, dimensions) by layer, differentiably."""
FeatureLoss = Callable[[Mapping[str, Tensor]], Tensor]
"""Maps the images' features by layer to one loss an image, (batch,)."""
Step = Callable[[Tensor, Tensor], Tensor]
"""Next images from the current ones and their gradient, within the box that it was made for."""
StepRule = Callable[[Tensor, Tensor, Tensor], Step]
"""Makes the steps of one ascent from its box (lowest images, highest images) and the images that it starts from."""


def random_start(images: Tensor, eps: float, generator: torch.Generator) -> Tensor:
    """Uniform noise in [-eps, eps] of the shape and device of ``images``, drawn on the generator's device.

    It is of the type of ``images``, of float32 for half precision.
    """
    check_generator(generator)
    kind = torch.float32 if images.dtype in HALF else images.dtype
    noise = torch.rand(images.shape, generator=generator, device=generator.device, dtype=kind)
    return noise.to(images.device).mul_(2 * eps).sub_(eps)


def check_generator(generator: object) -> None:
    """Raises ValueError, with the fix, for what is no torch generator."""
    if not isinstance(generator, torch.Generator):
        fix = f"; torch.Generator().manual_seed({generator})?" if isinstance(generator, int) else ""
        raise ValueError(f"generator must be a torch.Generator, got {type(generator).__name__}{fix}")


def linf_ascent(
    loss_function: LossFunction,
    images: Tensor,
    *,
    eps: float,
    step_size: float,
    steps: int,
    start: Tensor | None = None,
    generator: torch.Generator | None = None,
    rule: StepRule | None = None,
    on_gradient: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """Maximise a loss within the l-infinity ball, by projected sign-gradient ascent unless told otherwise.

    Args:
        loss_function: losses (batch,) of images (batch, channels, height, width); images must not
            influence each other's loss, so that summing changes nothing but the scale.
        images: clean images in [0, 1].
        eps: radius in [0, 1] (8 of 255 is ``8 / 255``).
        step_size: step in the same unit.
        steps: gradient steps; the last iterate is returned, without early stopping.
        start: perturbation to start from, as ``images``, float32 for half precision; overrides ``generator``.
        generator: draws the uniform random start; with neither, the ascent starts at ``images``.
        rule: other steps, e.g. :class:`BoxSteps`; ``step_size`` then has no say.
        on_gradient: called with each step's gradient, for diagnostics.

    Returns:
        Adversarial images, detached, on the device and of the type of ``images``. Those of half precision are kept in
        float32 on the way, and ``loss_function`` gets them in their own type.
    """
    with undisturbed(images.device):
        images = plain(images)
        exact = images.float() if images.dtype in HALF else images
        low, high = (exact - eps).clamp_(min=0), (exact + eps).clamp_(max=1)
        if start is None and generator is not None:
            start = random_start(exact, eps, generator)
        current = exact.clone() if start is None else torch.clamp(exact + start, low, high)
        step = (rule or SignSteps(step_size))(low, high, current)
        for _ in range(steps):
            current.requires_grad_(True)
            with torch.enable_grad():
                loss = loss_function(current.to(images.dtype)).sum()
                if not loss.requires_grad:
                    raise ValueError("the loss has no gradient: compute it in torch, without detach() and no_grad()")
                with torch.autocast(images.device.type, enabled=False):  # what the way back is not meant for
                    (gradient,) = torch.autograd.grad(loss, current)
            if on_gradient is not None:
                on_gradient(gradient)
            current = step(current.detach(), gradient)
        return rounded(current, images, eps)


class Unsound:
    """Counts image gradients that hold NaN or infinite values, and those that are zero everywhere, on the device."""

    def __init__(self) -> None:
        self.found: Tensor | float = 0.0
        self.zero: Tensor | float = 0.0
        self.seen = 0

    def see(self, gradient: Tensor) -> None:
        """Count those of one step, (batch, ...)."""
        largest = gradient.flatten(1).abs().amax(1)
        self.found = self.found + (~largest.isfinite()).sum()
        self.zero = self.zero + (largest == 0).sum()
        self.seen += len(gradient)

    def warn(self, stacklevel: int = 3) -> None:
        """Say so if there were any, or many zero ones, at the line of the caller so many calls up."""
        if share := float(self.found) / max(1, self.seen):
            warnings.warn(
                f"{100 * share:.3g} % of the images' gradients hold NaN or infinite values; their pixels can't follow"
                " them, and the attack looks weaker than it is: make the features differentiable everywhere, e.g."
                " sqrt(x + 1e-12) instead of sqrt(x)",
                RuntimeWarning,
                stacklevel=stacklevel,
            )
        if (zero := float(self.zero) / max(1, self.seen)) > MOST_STILL:
            warnings.warn(
                f"{100 * zero:.3g} % of the images' gradients are zero, and their pixels stay: the attack may look"
                " weaker than it is. Large logits saturate cross-entropy, a large alpha DkNN-Atk's loss; that of its"
                " successor is zero where it is satisfied",
                RuntimeWarning,
                stacklevel=stacklevel,
            )


MOST_STILL = 0.05
"""Share of zero gradients beyond which an attack warns."""


@dataclass(frozen=True)
class SignSteps:
    """Steps of one length along the gradient's sign, then projection (Madry et al., 2018)."""

    size: float

    def __call__(self, low: Tensor, high: Tensor, start: Tensor) -> Step:  # noqa: ARG002  # every rule gets it
        """As :data:`StepRule`."""
        # Clipping to the ball and to [0, 1] in either order is clipping to their intersection.
        return lambda current, gradient: torch.clamp(current.add_(gradient.sign(), alpha=self.size), low, high)


@dataclass(frozen=True)
class BoxSteps:
    """Steps of an optimiser on w, images being middle + half width * tanh(w) of the box (Carlini and Wagner, 2017).

    How far 20 steps go is a matter of the learning rate alone: from random starts, under a gradient of constant sign,
    Adam ends on average at .38 of the box's half width at a rate of .03, at .88 at .1 and at .998 at .3.
    """

    optimizer: Literal["adam", "rmsprop"]
    learning_rate: float

    def __call__(self, low: Tensor, high: Tensor, start: Tensor) -> Step:
        """As :data:`StepRule`."""
        half, middle = (high - low) / 2, (high + low) / 2
        # Rounding may leave a pixel no room at all. At the very edge tanh is flat, and w infinite.
        w = ((start - middle) / half.clamp_min(torch.finfo(half.dtype).tiny)).clamp_(-_EDGE, _EDGE).atanh_()
        # Gradients of an image's loss are small beside the usual eps of 1e-8, which would brake the first steps.
        make = torch.optim.Adam if self.optimizer == "adam" else torch.optim.RMSprop
        update = make([w], lr=self.learning_rate, eps=1e-12, maximize=True)

        def step(current: Tensor, gradient: Tensor) -> Tensor:  # noqa: ARG001  # w is what moves
            w.grad = torch.nan_to_num(gradient, 0, 0, 0) * half * (1 - w.tanh().square())
            update.step()
            return torch.clamp(torch.addcmul(middle, half, w.tanh()), low, high)

        return step


_EDGE = 0.999


class GradientAttack(ABC, Generic[C]):
    """An attack that climbs a loss on features within the l-infinity ball; a subclass says which loss (:meth:`ascent`).

    Args:
        features: what is attacked; images must not influence each other's features. Its network, where
            :func:`ask.models.hooks.module_of` finds one, is :func:`frozen` as long as the attack climbs.
        layers: layers whose features the loss reads.
        config: settings.
        generator: draws the random start, and whatever else the attack draws; on with each call.
        seed: of the generator, where none is given.
        on_gradient: called with every step's gradient, for diagnostics.
    """

    config_type: type[C]
    """Settings of such an attack."""

    k = 0
    """Nearest references of all that it wants of clean images."""
    k_class = 0
    """Nearest references of each class that it wants of clean images."""
    image_bytes = 0
    """Memory that the references of one image take during the ascent."""
    types: Mapping[str, torch.dtype] = MappingProxyType({})
    """Types that layers' features are converted to; those that are not named keep theirs."""

    def __init__(
        self,
        features: FeatureFunction,
        layers: tuple[str, ...],
        config: C,
        *,
        generator: torch.Generator | None = None,
        seed: int = 0,
        on_gradient: Callable[[Tensor], None] | None = None,
    ) -> None:
        generator = torch.Generator().manual_seed(seed) if generator is None else generator
        check_generator(generator)
        self.features, self.layers, self.config = features, layers, config
        self.generator, self.on_gradient = generator, on_gradient
        self.rule: StepRule = SignSteps(config.step_size)

    def __call__(self, images: Tensor, labels: Tensor, **options: Any) -> Tensor:
        """Adversarial images, warning once of gradients that are not finite; arguments as :meth:`ascent`.

        They are detached, of the type and device of ``images``, within ``eps`` of them and in [0, 1].
        """
        unsound = Unsound()
        with undisturbed(getattr(images, "device", None)):
            (found,) = ascend([self.ascent(images, labels, **options)], unsound)
        unsound.warn()
        return found

    def start(self, images: Tensor) -> Tensor:
        """The perturbation to start from, by the generator's next draw."""
        return random_start(images, self.config.eps, self.generator)

    @abstractmethod
    def ascent(self, images: Tensor, labels: Tensor, *, targeted: bool = False) -> "Ascent":
        """The attack on these images, ready to climb.

        Args:
            images: (batch, ...) in [0, 1], of any precision.
            labels: true classes (batch,), int64.
            targeted: labels are classes to lead the images to instead.
        """

    @classmethod
    def configured(cls, config: C | None, settings: Mapping[str, Any], **defaults: Any) -> C:
        """The settings of an attack: those of a complete ``config``, or single ones, with defaults for the others."""
        if config is None:
            if unknown := settings.keys() - (fields := cls.config_type.model_fields):
                raise ValueError(
                    f"{cls.__name__} has no setting {min(unknown)!r}; choose from {', '.join(sorted(fields))}"
                )
            try:
                return cls.config_type(**{**defaults, **settings})
            except ValidationError as error:
                mistakes = (one for one in error.errors() if one["type"] != "default_factory_not_called")
                raise ValueError("\n".join(dict.fromkeys(explain(cls.config_type, one) for one in mistakes))) from None
        if not isinstance(config, cls.config_type):
            wanted = cls.config_type.__name__
            raise ValueError(f"config must be of type {wanted}, got {config!r}; name single settings: eps=8 / 255")
        if settings:
            raise ValueError(f"{', '.join(settings)}: put it into config, or give all settings without a config")
        return config


@dataclass(frozen=True)
class Ascent:
    """An attack that is ready to climb, so that :func:`ascend` can let several share the network's passes."""

    attack: GradientAttack[Any]
    """Its features, settings and step rule."""
    images: Tensor
    """Clean images (batch, ...) in [0, 1]."""
    start: Tensor
    """Perturbation to start from, like ``images``."""
    losses: Callable[[slice], FeatureLoss]
    """What a part of the images maximises, from the features of that part."""

    @property
    def batch_size(self) -> int:
        """Images attacked at a time; of no influence but on memory."""
        return self.attack.config.batch_size or fitting_batch(self.images, self.attack.image_bytes)

    def can_join(self, other: "Ascent") -> bool:
        """Whether both climb in the same steps on the same features, towards whatever end."""
        own, others = (
            (a.features, a.layers, a.types, a.config.eps, a.config.steps, a.rule) for a in (self.attack, other.attack)
        )
        return own == others


def ascend(ascents: Sequence[Ascent], unsound: Unsound | None = None) -> list[Tensor]:
    """Adversarial images of each ascent, as :func:`linf_ascent` finds them.

    Neighbours in the sequence that can join do so as long as all their images fit into one batch: small batches leave
    a device idle. An ascent of more images than its batch size climbs part by part.
    Gradients that are not finite are counted in ``unsound``, which waits for no device.
    """
    results: list[Tensor] = []
    while len(results) < len(ascents):
        first, *others = ascents[len(results) :]
        group = [first]
        for other in others:
            images = sum(len(ascent.images) for ascent in (*group, other))
            if images > min(first.batch_size, other.batch_size) or not first.can_join(other):
                break
            group.append(other)
        if len(group) > 1:
            found = _climb([(ascent, slice(None)) for ascent in group], unsound)
            results += found.split([len(ascent.images) for ascent in group])
        else:
            size = first.batch_size
            parts = [slice(begin, begin + size) for begin in range(0, len(first.images), size)]
            results.append(torch.cat([_climb([(first, part)], unsound) for part in parts]))
    return results


def _climb(parts: Sequence[tuple[Ascent, slice]], unsound: Unsound | None) -> Tensor:
    """Adversarial images of parts of ascents that can join, one after the other."""
    attack = parts[0][0].attack
    images = [ascent.images[where] for ascent, where in parts]
    sizes = [len(part) for part in images]
    losses = [ascent.losses(where) for ascent, where in parts]

    def loss(current: Tensor) -> Tensor:
        found = {
            layer: tensor.to(attack.types.get(layer, tensor.dtype)).split(sizes)
            for layer, tensor in attack.features(current, attack.layers).items()
        }
        return torch.cat([own({layer: each[i] for layer, each in found.items()}) for i, own in enumerate(losses)])

    def see(gradient: Tensor) -> None:
        if unsound is not None:
            unsound.see(gradient)
        for (ascent, _), own in zip(parts, gradient.split(sizes), strict=True):
            if ascent.attack.on_gradient is not None:
                ascent.attack.on_gradient(own)

    start = torch.cat([ascent.start[where] for ascent, where in parts])
    with frozen(attack.features):
        return linf_ascent(
            loss,
            torch.cat(images),
            eps=attack.config.eps,
            step_size=0.0,  # the rule steps
            steps=attack.config.steps,
            start=start,
            rule=attack.rule,
            on_gradient=see,
        )


def fitting_batch(images: Tensor, a_image: int) -> int:
    """Images attacked at a time when each holds ``a_image`` bytes of references: within 256 MiB, or a CPU's cache.

    On a GPU what a network stores for the backward pass counts too, which grows with the image: 2500 images of side 32
    take some 10 GiB on a full-width VGG16.
    """
    cpu = images.device.type == "cpu"
    budget, most = (16, 250) if cpu else (256, 2500 * _SMALL // max(_SMALL, images.shape[1:].numel()))
    return max(16, min(most, budget * 2**20 // max(a_image, 1)))


_SMALL = 3 * 32 * 32
"""Values of an image of which a GPU takes the most at a time."""


@contextmanager
def frozen(features: object) -> Iterator[None]:
    """Evaluation mode of a network, or of that of a feature function, without parameter gradients; then as it was.

    Weight gradients would cost a third of a step; a changed mode would pollute batch-norm statistics.
    """
    module = module_of(features)
    learning = [p for p in module.parameters() if p.requires_grad] if module is not None else []
    with evaluating(module):
        try:
            for parameter in learning:
                parameter.requires_grad_(False)
            yield
        finally:
            for parameter in learning:
                parameter.requires_grad_(True)
