"""Attacks on k-nearest-neighbour classifiers and on networks: ``attack(images, labels) -> adversarial images``.

Names are imported when first used, so that a job loads, and depends on, only the attack that it runs.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ask.attacks.advknn import AdvKnn, AdvKnnConfig, BlockConfig, DeepKNNBlock, fit_blocks
    from ask.attacks.ask import ASKAttack, ASKAttackConfig, identity_features
    from ask.attacks.dknn_atk import DkNNAttack, DkNNAttackConfig
    from ask.attacks.linf import frozen, linf_ascent
    from ask.attacks.pgd import PGD, PGDConfig

HOMES = {
    "ask": "ask.attacks.ask",
    "dknn": "ask.attacks.dknn_atk",
    "advknn": "ask.attacks.advknn",
    "pgd": "ask.attacks.pgd",
    "autoattack": "ask.attacks.auto",
    "square": "ask.attacks.auto",
}
"""Module of each attack by its name in a configuration; a cell imports, and its fingerprint counts, only its own."""
_HOMES = {
    "AdvKnn": "advknn",
    "AdvKnnConfig": "advknn",
    "BlockConfig": "advknn",
    "DeepKNNBlock": "advknn",
    "fit_blocks": "advknn",
    "DkNNAttack": "dknn_atk",
    "DkNNAttackConfig": "dknn_atk",
    "ASKAttack": "ask",
    "ASKAttackConfig": "ask",
    "PGD": "pgd",
    "PGDConfig": "pgd",
    "frozen": "linf",
    "identity_features": "ask",
    "linf_ascent": "linf",
}
__all__ = [
    "PGD",
    "ASKAttack",
    "ASKAttackConfig",
    "AdvKnn",
    "AdvKnnConfig",
    "BlockConfig",
    "DeepKNNBlock",
    "DkNNAttack",
    "DkNNAttackConfig",
    "PGDConfig",
    "fit_blocks",
    "frozen",
    "identity_features",
    "linf_ascent",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
