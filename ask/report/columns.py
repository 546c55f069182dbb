"""Columns of tidy tables, and the words of the claims ledger."""

SETTING_COLUMNS = (
    "dataset",
    "model",
    "attack",
    "variant",
    "similarity",
    "attack_layers",
    "classifier_similarity",
    "dknn_layers",
    "k_in",
    "k_out",
    "classifier_k",
    "eps",
    "steps",
    "about",
    "metric",
)
"""What describes a measured value."""

VERDICTS = (
    *("reproduced", "direction only", "not reproduced", "undecided", "inconsistent in the paper", "not evaluated"),
    *("holds on stand-in data", "does not hold on stand-in data", "undecided on stand-in data"),
)
"""What a run can say about a claim of the paper."""
