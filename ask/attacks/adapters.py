"""The attacks here as attacks of foolbox, torchattacks and ART, and a DkNN as a module that all three can judge by.

None of these libraries is a dependency: each is imported when its adapter is made. Their targeted modes lead images to
given classes (:meth:`ask.attacks.linf.GradientAttack.ascent`). A model of theirs that normalises images by itself is
refused: the attack's own network would not see what it does. Put the normalisation into the network.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ask.attacks.linf import GradientAttack
from ask.knn.dknn import numbers

if TYPE_CHECKING:
    from art.attacks import EvasionAttack
    from foolbox.attacks.base import FixedEpsilonAttack
    from torchattacks.attack import Attack

    from ask.knn.classifier import DkNN

ImageAttack = Callable[[Tensor, Tensor], Tensor]
"""Maps images (batch, ...) in [0, 1] and labels (batch,), int64, to adversarial images."""

_ROUNDING = 1e-5
"""How far undoing a normalisation may carry pixels out of [0, 1]; further is the caller's mistake."""
_MOST_COLUMNS = 2**16 - 1


def _found(attack: ImageAttack, images: Tensor, labels: Tensor, *, targeted: bool) -> Tensor:
    """Adversarial images; labels are true classes, or those to lead the images to."""
    if not targeted:
        return attack(images, labels)
    if not isinstance(attack, GradientAttack):
        raise ValueError(f"{type(attack).__name__} can't lead images to given classes; take ASKAttack, PGD, ...")
    return attack(images, labels, targeted=True)


def _unrounded(images: Tensor) -> Tensor:
    """Images that rounding has carried out of [0, 1] are back; those further out are left for the attack to refuse."""
    clamped = images.clamp(0, 1)
    return torch.where((images - clamped).abs() <= _ROUNDING, clamped, images)


_INSIDE = (
    "{what}, which the attack's own network does not see; put that into the network that both get:"
    " torch.nn.Sequential(Normalize(mean, std), network)"
)


class DkNNModule(nn.Module):
    """A fitted DkNN as a module: images (batch, ...) to vote fractions (batch, classes), as if they were logits.

    Column c holds the votes of label c, as attacks on the DkNN know it: of whole numbers given to ``fit`` up to the
    largest of them, columns of numbers that were not given being 0; of other labels, of their positions in
    ``classifier.classes_``. The largest column is what the DkNN predicts, ties included. Votes have no gradient:
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
        """Share of the votes of each class (batch, classes), float32; that of the DkNN's choice is half a vote more."""
        found = self.classifier.predict_proba(images)
        # Attacks on scores take a tie for fooled.
        found[range(len(found)), found.argmax(1)] += 0.5 / (self.classifier.n_neighbors * len(self.classifier.layers_))
        shares = torch.from_numpy(found)
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
        (or labels), ``TargetedMisclassification`` and PyTorch inputs; it raises ValueError for others, and for a model
        with ``preprocessing``.

    Raises:
        ImportError: foolbox is not installed.

    >>> attack = to_foolbox(lambda eps: PGD(network, eps=eps))
    >>> raw, clipped, success = attack(foolbox.PyTorchModel(network, (0, 1)), images, labels, epsilons=[0.1, 0.2])
    """
    try:
        import eagerpy
        from foolbox.attacks.base import FixedEpsilonAttack, get_criterion, raise_if_kwargs
        from foolbox.criteria import Misclassification, TargetedMisclassification
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
            targeted = isinstance(criterion, TargetedMisclassification)
            if not targeted and not isinstance(criterion, Misclassification):
                raise ValueError(f"criterion {criterion} is not supported; use Misclassification(labels)")
            if epsilon == 0:
                return restore(eagerpy.astensor(x.clone()))
            low, high = model.bounds
            unit_range = (low, high) == (0, 1)
            # Within its bounds, as foolbox has checked, but for rounding.
            images = x if unit_range else ((x - low) / (high - low)).clamp(0, 1)
            _refuse_preprocessing(model, x, images)
            labels = (criterion.target_classes if targeted else criterion.labels).raw
            found = _found(self.make_attack(float(epsilon) / (high - low)), images, labels, targeted=targeted)
            if not unit_range:
                found = (found * (high - low) + low).clamp(low, high)
            return restore(eagerpy.astensor(found))

    return FoolboxAttack()


def _refuse_preprocessing(model: Any, inputs: Tensor, images: Tensor) -> None:
    """Raises ValueError if a foolbox model does more to inputs than map them to ``images`` in [0, 1]."""
    import eagerpy

    while not hasattr(model, "_preprocess_args") and hasattr(model, "_model"):
        inputs, model = model._preprocess(inputs), model._model  # other bounds
    if any(part is not None for part in getattr(model, "_preprocess_args", ())):
        seen = model._preprocess(eagerpy.astensor(inputs)).raw
        if not torch.allclose(seen, images.to(seen.dtype), atol=_ROUNDING):
            raise ValueError(_INSIDE.format(what="the foolbox model has preprocessing"))


def to_torchattacks(attack: ImageAttack, model: nn.Module) -> "Attack":
    """An attack here as a torchattacks attack: ``attack(images, labels)``, ``attack.save(loader, path)``, MultiAttack.

    Args:
        attack: takes images in [0, 1]; a network of its own, with any normalisation inside.
        model: what torchattacks judges by (``save``, ``MultiAttack``) and takes the device from: the attacked network,
            or ``DkNNModule(classifier)``. With ``set_normalization_used(mean, std)``, callers pass and get normalised
            images, and this model takes normalised images too; ``attack`` still sees [0, 1].

    Returns:
        A ``torchattacks.attack.Attack`` with its targeted modes. It raises ValueError where labels are missing.

    Raises:
        ImportError: torchattacks is not installed.

    >>> atk = to_torchattacks(ASKAttack(classifier, eps=8 / 255), DkNNModule(classifier))
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
            if isinstance(attack, GradientAttack):
                self.supported_mode.append("targeted")

        def forward(self, inputs: Tensor, labels: Tensor | None = None) -> Tensor:
            if self.targeted:
                labels = self.get_target_label(inputs, labels)
            if labels is None:
                raise ValueError("labels are missing; call attack(images, labels)")
            images = inputs.detach().to(self.device)
            if self.normalization_used is not None:
                images = _unrounded(images)
            return _found(self._inner, images, labels.detach().to(self.device), targeted=self.targeted)

    return TorchattacksAttack()


def to_art(attack: ImageAttack, estimator: Any, *, targeted: bool = False) -> "EvasionAttack":
    """An attack here as one of the adversarial-robustness-toolbox: ``attack.generate(x, y)`` on arrays.

    The estimator neither makes the adversarial images nor sees a gradient: it says in which range images lie, and what
    their labels are where none are given.

    Args:
        attack: takes images in [0, 1]; a network of its own, with any normalisation inside.
        estimator: an ART classifier of the attacked network, or of ``DkNNModule(classifier)``. Images are converted
            from its ``clip_values`` (0 and 1 where it has none) to [0, 1] and back.
        targeted: labels are the classes to lead the images to.

    Returns:
        An ``art.attacks.EvasionAttack``. It takes labels (samples,) or one-hot ones, and raises ValueError for an
        estimator with preprocessing or preprocessing defences, and where targeted labels are missing.

    Raises:
        ImportError: ART is not installed.

    >>> module, loss = DkNNModule(classifier), nn.CrossEntropyLoss()
    >>> judge = PyTorchClassifier(module, loss, (3, 32, 32), 10, clip_values=(0, 1))
    >>> adversarial = to_art(ASKAttack(classifier, eps=8 / 255), judge).generate(images, labels)
    """
    try:
        from art.attacks import EvasionAttack
        from art.estimators.classification import ClassifierMixin
        from art.estimators.estimator import BaseEstimator
    except ImportError as error:
        raise ImportError("to_art needs ART: pip install adversarial-robustness-toolbox") from error

    class ARTAttack(EvasionAttack):  # type: ignore[misc]  # ART is optional, and Any to the type checker
        attack_params: ClassVar = [*EvasionAttack.attack_params, "targeted"]
        _estimator_requirements = (BaseEstimator, ClassifierMixin)

        def __init__(self) -> None:
            super().__init__(estimator=estimator)
            self.targeted = targeted

        def generate(self, x: NDArray[Any], y: NDArray[Any] | None = None, **kwargs: Any) -> NDArray[Any]:
            if kwargs:
                raise TypeError(f"generate takes no {', '.join(kwargs)}; give it to the attack")
            if any(not _idle(operation) for operation in self.estimator.preprocessing_operations):
                raise ValueError(_INSIDE.format(what="the estimator preprocesses images"))
            if y is None:
                if self.targeted:
                    raise ValueError("labels to lead the images to are missing; call attack.generate(x, y)")
                y = self.estimator.predict(x)
            y = np.asarray(y)
            if y.ndim == 2:
                y = y.argmax(1) if y.shape[1] > 1 else y[:, 0]
            limits = self.estimator.clip_values
            low, high = (0.0, 1.0) if limits is None else limits
            device = getattr(self.estimator, "device", "cpu")
            images = _unrounded(torch.from_numpy((x - low) / (high - low)).to(device, torch.float32))
            labels = torch.from_numpy(y.astype(np.int64)).to(device)
            found = _found(attack, images, labels, targeted=self.targeted).cpu().numpy()
            result = np.clip(found * (high - low) + low, low, high)
            if x.dtype.kind in "iu":  # the nearest whole values, no farther off than the farthest
                whole = np.floor(np.abs(result - x).max() + 1e-3)
                result = x + np.clip(np.rint(result - x), -whole, whole)
            return result.astype(x.dtype)

    return ARTAttack()


def _idle(operation: Any) -> bool:
    """Whether an ART preprocessor leaves images as they are when an estimator predicts."""
    standard = np.all(getattr(operation, "mean", 1) == 0) and np.all(getattr(operation, "std", 0) == 1)
    return bool(standard) or not operation.apply_predict
