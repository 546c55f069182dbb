"""Trained networks that lie beside the code: robust ones to try attacks on, and those of the committed results.

>>> network = ask.zoo.load("lite/cifar10/ask-def")
>>> network.features(images, ("conv4",))["conv4"].shape
(n, 512)
"""

from pathlib import Path
from typing import TYPE_CHECKING

from ask.errors import AskError

if TYPE_CHECKING:
    from ask.models.networks import Network

RESULTS = Path(__file__).resolve().parent.parent / "results"


def names() -> list[str]:
    """All of them, as ``run/dataset/model``: those committed, and those that this checkout has trained itself."""
    found = RESULTS.glob("*/models/*/*/weights.safetensors")
    return sorted("/".join(path.relative_to(RESULTS).parts[i] for i in (0, 2, 3)) for path in found)


def load(name: str) -> "Network":
    """A network in evaluation mode on the CPU, whose inputs are images (n, channels, side, side) in [0, 1].

    Args:
        name: ``run/dataset/model``, one of :func:`names`. How it was trained, and what it reaches, stands beside its
            weights in ``results/<run>/models/<dataset>/<model>/config.yaml`` and in the run's report.

    Raises:
        AskError: there is none of this name.
    """
    from ask.models.networks import load_network

    if name not in names():
        known = ", ".join(names()) or f"none: weights lie in {RESULTS} of a checkout"
        raise AskError(f"no network {name!r}; there are {known}")
    run, dataset, model = name.split("/")
    return load_network(RESULTS / run / "models" / dataset / model)
