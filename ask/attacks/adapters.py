"""The attacks here as attacks of foolbox and of torchattacks, and a DkNN as a module that both can judge by.

Neither library is a dependency: each is imported when its adapter is made.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ask.knn.dknn import numbers

if TYPE_CHECKING:
    from foolbox.attacks.base import FixedEpsilonAttack
    from torchattacks.attack import Attack

    from ask.knn.classifier import DkNN

ImageAttack = Callable[[Tensor, Tensor], Tensor]
"""Maps images (batch, ...) in [0, 1] and labels (batch,), int64, to adversarial images."""

_ROUNDING = 1e-5
"""How far undoing a normalisation may carry pixels out of [0, 1]; further is the caller's mistake."""
_MOST_COLUMNS = 2**16 - 1


class DkNNModule(nn.Module):
    """A fitted DkNN as a module: images (batch, ...) to vote fractions (batch, classes), as if they were logits.

    Column c holds the votes of label c, as attacks on the DkNN know it: of whole numbers given to ``fit`` up to the
    largest of them, columns of numbers that were not given being 0; of other labels, of their positions in
    ``classifier.classes_``. The largest column, the first in a tie, is what the DkNN predicts. Votes have no gradient:
    judge by this module, or run decision-based attacks on it.

    Raises ValueError for a classifier that is not fitted, or whose labels are below 0 or above 65,535, too many for
    columns. Images must be on the device of the references.

    >>> judge = foolbox.PyTorchModel(DkNNModule(classifier).eval(), bounds=(0, 1))
    """

    def __init__(self, classifier: "DkNN") -> None:
        super().__init__()
        if not hasattr(classifier, "search_"):
            raise ValueError("this DkNN is not fitted yet; call fit(X, y) first")
        self.classifier = classifier
        self.columns = numbers(classifier.classes_)
        if self.columns is not None and (self.columns[0] < 0 or self.columns[-1] > _MOST_COLUMNS):
            raise ValueError(
                f"labels {int(self.columns[0])}..{int(self.columns[-1])} can't be columns 0..{_MOST_COLUMNS};"
                " fit on positions: numpy.unique(y, return_inverse=True)"
            )
        device = next(iter(classifier.search_.values())).features.device
        # Both libraries ask a module's parameters for its device.
        self.place = nn.Parameter(torch.empty(0, device=device), requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        """Share of the votes of each class (batch, classes), float32."""
        shares = torch.from_numpy(self.classifier.predict_proba(images))
        if self.columns is not None:
            columns = shares.new_zeros((len(shares), int(self.columns[-1]) + 1))
            shares = columns.index_copy_(1, self.columns, shares)
        return shares.to(images.device, torch.float32)


def to_foolbox(make_attack: Callable[[float], ImageAttack]) -> "FixedEpsilonAttack":
    """An attack here as a foolbox attack: ``attack(model, inputs, criterion, epsilons=...)``.

    The foolbox model neither makes the adversarial images nor sees a gradient: it says whether they are misclassified.
    Give it the attacked network, or ``DkNNModule(classifier)`` to judge by the DkNN.

    Args:
        make_attack: attack of a radius ``eps`` in (0, 1]; called for each of foolbox's epsilons but 0, at which
            the inputs come back. Inputs and epsilons are converted from the foolbox model's bounds to [0, 1] and back,
            so the attack's own network takes images in [0, 1], with any preprocessing inside. A generator that all
            attacks share makes restarts (``attack.repeat``) differ; one made afresh in each call makes them equal.

    Returns:
        A ``foolbox.attacks.base.FixedEpsilonAttack`` under the l-infinity distance, for ``Misclassification``
        (or labels) and PyTorch inputs; it raises ValueError for others.

    Raises:
        ImportError: foolbox is not installed.

    >>> attack = to_foolbox(lambda eps: PGD(network, PGDConfig(eps=eps, step_size=eps / 4), generator=generator))
    >>> raw, clipped, success = attack(foolbox.PyTorchModel(network, (0, 1)), images, labels, epsilons=[0.1, 0.2])
    """
    try:
        import eagerpy
        from foolbox.attacks.base import FixedEpsilonAttack, get_criterion, raise_if_kwargs
        from foolbox.criteria import Misclassification
        from foolbox.distances import linf
    except ImportError as error:
        raise ImportError("to_foolbox needs foolbox: pip install foolbox") from error

    class FoolboxAttack(FixedEpsilonAttack):  # type: ignore[misc]  # foolbox is optional, and Any to the type checker
        distance = linf

        def __init__(self) -> None:
            self.make_attack = make_attack

        def run(self, model: Any, inputs: Any, criterion: Any, *, epsilon: float, **kwargs: Any) -> Any:
            raise_if_kwargs(kwargs)
            wrapped, restore = eagerpy.astensor_(inputs)
            x = wrapped.raw
            criterion = get_criterion(criterion)
            if not isinstance(x, Tensor):
                raise ValueError(f"inputs must be a torch tensor, got {type(x).__name__}; use foolbox.PyTorchModel")
            if not isinstance(criterion, Misclassification):
                raise ValueError(f"criterion {criterion} is not supported; use Misclassification(labels)")
            if epsilon == 0:
                return restore(eagerpy.astensor(x.clone()))
            low, high = model.bounds
            unit_range = (low, high) == (0, 1)
            # Within its bounds, as foolbox has checked, but for rounding.
            images = x if unit_range else ((x - low) / (high - low)).clamp(0, 1)
            found = self.make_attack(float(epsilon) / (high - low))(images, criterion.labels.raw)
            if not unit_range:
                found = (found * (high - low) + low).clamp(low, high)
            return restore(eagerpy.astensor(found))

    return FoolboxAttack()


def to_torchattacks(attack: ImageAttack, model: nn.Module) -> "Attack":
    """An attack here as a torchattacks attack: ``attack(images, labels)``, ``attack.save(loader, path)``, MultiAttack.

    Args:
        attack: takes images in [0, 1]; a network of its own, with any normalisation inside.
        model: what torchattacks judges by (``save``, ``MultiAttack``) and takes the device from: the attacked network,
            or ``DkNNModule(classifier)``. With ``set_normalization_used(mean, std)``, callers pass and get normalised
            images, and this model takes normalised images too; ``attack`` still sees [0, 1].

    Returns:
        A ``torchattacks.attack.Attack``; its targeted modes are not supported. It raises ValueError without labels.

    Raises:
        ImportError: torchattacks is not installed.

    >>> atk = to_torchattacks(ASKAttack(classifier, config=config, generator=generator), DkNNModule(classifier))
    >>> adversarial = atk(images, labels)
    """
    try:
        from torchattacks.attack import Attack
    except ImportError as error:
        raise ImportError("to_torchattacks needs torchattacks: pip install --no-deps torchattacks") from error

    class TorchattacksAttack(Attack):  # type: ignore[misc]  # torchattacks is optional, and Any to the type checker
        def __init__(self) -> None:
            super().__init__(type(attack).__name__, model)
            self._inner = attack

        def forward(self, inputs: Tensor, labels: Tensor | None = None) -> Tensor:
            if labels is None:
                raise ValueError("labels are missing; call attack(images, labels)")
            images = inputs.detach().to(self.device)
            if self.normalization_used is not None:
                clamped = images.clamp(0, 1)
                images = torch.where((images - clamped).abs() <= _ROUNDING, clamped, images)
            return self._inner(images, labels.detach().to(self.device))

    return TorchattacksAttack()
