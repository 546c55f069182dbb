"""Attack and harden k-nearest-neighbour classifiers on deep features; reproduce the paper on it.

Public names are imported when first used: ``import ask`` loads neither torch nor anything else.
"""

from typing import TYPE_CHECKING

from ask.lazy import exports

if TYPE_CHECKING:
    from ask import zoo
    from ask.attacks.advknn import AdvKnn
    from ask.attacks.ask import ASKAttack
    from ask.attacks.dknn_atk import DkNNAttack
    from ask.attacks.pgd import PGD
    from ask.attacks.references import identity_features
    from ask.knn.classifier import DkNN
    from ask.knn.search import ExactSearch
    from ask.models.hooks import hook_features
    from ask.training.loop import train

__version__ = "0.1.0"
__all__ = [
    "PGD",
    "ASKAttack",
    "AdvKnn",
    "DkNN",
    "DkNNAttack",
    "ExactSearch",
    "hook_features",
    "identity_features",
    "train",
    "zoo",
]
__getattr__ = exports(
    __name__,
    {
        "PGD": "attacks.pgd",
        "ASKAttack": "attacks.ask",
        "AdvKnn": "attacks.advknn",
        "DkNN": "knn.classifier",
        "DkNNAttack": "attacks.dknn_atk",
        "ExactSearch": "knn.search",
        "hook_features": "models.hooks",
        "identity_features": "attacks.references",
        "train": "training.loop",
        "zoo": "zoo",
    },
)
