"""Attacks on k-nearest-neighbour classifiers and on networks: ``attack(images, labels) -> adversarial images``.

Names are imported when first used, so that a job loads, and depends on, only the attack that it runs.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .ask import ASKAttack, ASKAttackConfig
    from .linf import frozen, linf_ascent
    from .pgd import PGD, PGDConfig

_HOMES = {
    "ASKAttack": "ask",
    "ASKAttackConfig": "ask",
    "PGD": "pgd",
    "PGDConfig": "pgd",
    "frozen": "linf",
    "linf_ascent": "linf",
}
__all__ = ["PGD", "ASKAttack", "ASKAttackConfig", "PGDConfig", "frozen", "linf_ascent"]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
