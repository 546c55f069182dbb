"""AutoAttack on a network's output (Croce and Hein, 2020), and its black-box part, Square, on a DkNN's votes.

Both are the authors' own code, package ``pyautoattack`` (extra ``autoattack``). Square needs no gradient, so it tells
whether a DkNN that withstands gradient attacks does so by masking them.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ask.attacks.linf import frozen
from ask.attacks.references import Subject, neighbour_classes
from ask.attacks.validation import HALF, check_labels, checked, rounded
from ask.config.attacks import LEAST_CLASSES, AutoAttackConfig, SquareConfig
from ask.errors import AskError
from ask.knn.dknn import votes
from ask.precision import undisturbed


class MissingPackageError(AskError):
    """The optional package is not installed."""


class AutoAttack:
    """AutoAttack on a network, or Square on the votes of a DkNN.

    >>> attack = AutoAttack(network, AutoAttackConfig(eps=8 / 255), seed=0)
    >>> adversarial = attack(images, labels)

    Args:
        scores: maps images (batch, channels, height, width) in [0, 1] to class scores (batch, classes); a network is in
            evaluation mode, without parameter gradients, as long as the attack runs.
        config: radius, parts, iterations and queries; the default is the standard ensemble.
        seed: of all that the parts draw.

    Raises:
        MissingPackageError: ``pyautoattack`` is not installed.
    """

    k = k_class = 0

    def __init__(
        self, scores: Callable[[Tensor], Tensor], config: AutoAttackConfig | SquareConfig, *, seed: int
    ) -> None:
        try:
            from pyautoattack.autoattack import AutoAttack as Ensemble
        except ImportError as error:
            raise MissingPackageError("AutoAttack and Square need a package: pip install pyautoattack") from error
        self.scores, self.config, self.seed = scores, config, seed % 2**31
        self._make = Ensemble

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """Adversarial images (batch, channels, height, width) in [0, 1] where one was found, else the clean ones.

        They are detached and of the type of ``images``, which may be of any precision.
        """
        with undisturbed(getattr(images, "device", None)), frozen(self.scores):
            images, labels = checked(images, labels, None, "images")
            return self._run(images, labels)

    def _run(self, images: Tensor, labels: Tensor) -> Tensor:
        """As a call; the package climbs in float32, and the scores get images of the type given."""
        config, kind = self.config, images.dtype
        square = config.name == "square" or "square" in config.parts
        if images.ndim != 4 and (square or images.ndim != 2):
            fix = "; give parts without square" if images.ndim == 2 and config.name != "square" else ""
            raise ValueError(f"images must be (batch, channels, height, width), got {tuple(images.shape)}{fix}")
        with torch.no_grad():
            self.classes = classes = self.scores(images[:1]).shape[1]
        check_labels(labels, len(images), classes)
        for part, least in LEAST_CLASSES.items():
            if isinstance(config, AutoAttackConfig) and classes < least and part in config.parts:
                raise ValueError(f"{part} compares {least} classes, the network has {classes}; give parts without it")
        near = rounded(self._found(images, labels, config.eps), images, config.eps)
        if kind not in HALF:
            return near
        # Rounded into the ball, some fool no longer; where any rounding stays within, all do.
        with torch.no_grad():
            seen = torch.cat([self.scores(part).argmax(1) for part in near.split(config.batch_size)])
        lost = (near != images).flatten(1).any(1) & (seen == labels)
        within = config.eps - torch.finfo(kind).eps / 4
        near[lost] = images[lost]
        if lost.any() and within > 0:
            near[lost] = self._found(images[lost], labels[lost], within).to(kind)
        return near

    def _found(self, images: Tensor, labels: Tensor, eps: float) -> Tensor:
        """What the package finds within a radius, in float32 at least."""
        config, kind = self.config, images.dtype
        images = images.float() if kind in HALF else images
        exact = images.float().contiguous()  # the package takes views
        scores = self.scores if kind == torch.float32 else lambda x: self.scores(x.to(kind)).float()
        ensemble = self._make(
            scores,
            attacks=["square"] if config.name == "square" else list(config.parts),
            eps=eps,
            seed=self.seed,
            version="custom",
            device=images.device,
        )
        ensemble.apgd.n_restarts, ensemble.fab.n_restarts = 1, 1
        ensemble.apgd_targeted.n_target_classes = ensemble.fab.n_target_classes = min(9, self.classes - 1)
        for one in (ensemble.apgd, ensemble.apgd_targeted, ensemble.fab):
            one.n_iter = config.iterations
        ensemble.square.n_queries = config.queries
        # The package seeds torch's own generator.
        with torch.random.fork_rng(devices=[images.device] if images.is_cuda else []):
            found: Tensor = ensemble.run_standard_evaluation(exact, labels, batch_size=config.batch_size)[0]
        if kind == torch.float64:  # what was not fooled stays as it was
            found = images + (found - exact)
        return torch.clamp(found, images - eps, images + eps).clamp_(0, 1)


def build(
    config: AutoAttackConfig | SquareConfig,
    subject: Subject,
    *,
    blocks: object = None,  # noqa: ARG001  # AdvKnn's
    generator: torch.Generator,
    on_gradient: object = None,  # noqa: ARG001  # the package shows no gradients
) -> AutoAttack:
    """The attack of a cell: ``autoattack`` on the network, ``square`` on the DkNN of the attacked layers."""
    scores = dknn_scores(subject, config.k) if isinstance(config, SquareConfig) else subject.network
    if scores is None:
        raise ValueError("AutoAttack attacks a network's own output, and raw pixels have no network")
    return AutoAttack(scores, config, seed=generator.initial_seed())


def dknn_scores(subject: Subject, k: int) -> Callable[[Tensor], Tensor]:
    """Mean vote fractions of a DkNN on the attacked layers (eq. 1), as scores (batch, classes).

    The DkNN's choice has half a vote more: Square takes an image at a tie for fooled, and stops there.
    """
    layers = tuple(subject.references)

    def scores(images: Tensor) -> Tensor:
        with torch.no_grad():
            features = subject.features(images, layers)
            found = []
            for layer, search in subject.references.items():
                nearest = search.search(features[layer], k=k)
                found.append(votes(neighbour_classes(search, nearest, k), search.n_classes))
        counts = torch.stack(found).sum(0)
        return (counts + 0.5 * F.one_hot(counts.argmax(1), counts.shape[1])) / (k * len(found))

    return scores
