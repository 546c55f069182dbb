"""l-infinity PGD with a uniform random start by torchattacks, foolbox and the adversarial robustness toolbox."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

Attack = Callable[[Tensor, Tensor], Tensor]
"""Maps images in [0, 1] and labels to adversarial images."""


def peers(
    network: nn.Module, *, eps: float, step_size: float, steps: int, device: torch.device
) -> Iterator[tuple[str, Attack]]:
    """Names and attacks; ``eps`` and ``step_size`` in [0, 1]. All images are one batch."""
    import torchattacks

    yield "torchattacks PGD", torchattacks.PGD(network, eps=eps, alpha=step_size, steps=steps, random_start=True)
    yield "foolbox LinfPGD", _foolbox(network, eps, step_size, steps, device)
    yield "adversarial-robustness-toolbox PGD", _toolbox(network, eps, step_size, steps, device)


def _foolbox(network: nn.Module, eps: float, step_size: float, steps: int, device: torch.device) -> Attack:
    import foolbox

    model = foolbox.PyTorchModel(network, bounds=(0, 1), device=device)
    attack = foolbox.attacks.LinfPGD(abs_stepsize=step_size, steps=steps, random_start=True)
    return lambda images, labels: attack(model, images, labels, epsilons=eps)[1]


def _toolbox(network: nn.Module, eps: float, step_size: float, steps: int, device: torch.device) -> Attack:
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    def attack(images: Tensor, labels: Tensor) -> Tensor:
        model = PyTorchClassifier(
            network,
            loss=nn.CrossEntropyLoss(),
            input_shape=tuple(images.shape[1:]),
            nb_classes=10,
            clip_values=(0, 1),
            device_type="gpu" if device.type == "cuda" else "cpu",
        )
        pgd = ProjectedGradientDescentPyTorch(
            model,
            eps=eps,
            eps_step=step_size,
            max_iter=steps,
            num_random_init=1,
            batch_size=len(images),
            verbose=False,
        )
        moved = pgd.generate(images.cpu().numpy(), labels.cpu().numpy())
        return torch.from_numpy(moved).to(images)

    return attack
