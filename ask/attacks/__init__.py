"""Attacks on k-nearest-neighbour classifiers and on networks: ``attack(images, labels) -> adversarial images``.

Names are imported when first used, so that a job loads, and depends on, only the attack that it runs.
"""

from typing import TYPE_CHECKING

from ask.lazy import exports

if TYPE_CHECKING:
    from ask.attacks.advknn import AdvKnn, DeepKNNBlock, fit_blocks
    from ask.attacks.ask import ASKAttack
    from ask.attacks.dknn_atk import DkNNAttack
    from ask.attacks.linf import frozen, linf_ascent
    from ask.attacks.pgd import PGD
    from ask.attacks.references import identity_features
    from ask.config.attacks import AdvKnnConfig, ASKAttackConfig, BlockConfig, DkNNAttackConfig, PGDConfig

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
__getattr__ = exports(
    __name__,
    {
        **dict.fromkeys(("AdvKnn", "AdvKnnConfig", "BlockConfig", "DeepKNNBlock", "fit_blocks"), "advknn"),
        **dict.fromkeys(("ASKAttack", "ASKAttackConfig"), "ask"),
        **dict.fromkeys(("DkNNAttack", "DkNNAttackConfig"), "dknn_atk"),
        **dict.fromkeys(("frozen", "linf_ascent"), "linf"),
        **dict.fromkeys(("PGD", "PGDConfig"), "pgd"),
        "identity_features": "references",
    },
)
