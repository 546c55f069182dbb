"""Columns of tidy tables."""

SETTING_COLUMNS = (
    "dataset",
    "model",
    "attack",
    "variant",
    "similarity",
    "attack_layers",
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
