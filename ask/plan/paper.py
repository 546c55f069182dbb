"""The paper's own numbers: what to put beside a measured value."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

from ask.errors import AskError

ATTACKS = {"ask": "ASK-Atk", "dknn": "DkNN-Atk", "advknn": "AdvKnn", "pgd": "PGD", "none": "none"}
METRICS = {"dknn_standard_accuracy": "dknn_clean_accuracy"}
"""Where the table of paper values says a metric in other words."""
OWN_VARIANTS = ("", "non-targeted", "targeted", "random-sampling", "adam")
"""Variants of attacks that the paper can be compared with."""


@dataclass(frozen=True)
class Paper:
    """Tables and claims of the paper, as rows of ``config/paper/{tables,claims}.csv``."""

    tables: list[dict[str, str]] = field(default_factory=list)
    claims: dict[str, dict[str, str]] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> "Paper":
        """Both files of a folder."""
        # UTF-8 with or without the mark that spreadsheets put first.
        texts = ((folder / name).read_text(encoding="utf-8-sig") for name in ("tables.csv", "claims.csv"))
        tables, claims = (list(csv.DictReader(StringIO(text))) for text in texts)
        return cls(tables, {row["id"]: row for row in claims})

    def claimed(self, claim: str) -> float:
        """The number of a claim; raises AskError if it has none."""
        try:
            return float(self.claims[claim]["threshold"])
        except (KeyError, ValueError):
            raise AskError(f"paper_claims: claim {claim!r} is unknown or states no number") from None

    def value(self, table: int | None, asked: Mapping[str, Any], model: str) -> tuple[float | None, float | None]:
        """What a table (None: none) prints for settings, of which blank ones match all, and for a model's label."""
        clean = asked["attack"] == "none"
        ask = asked["attack"] == "ask"
        if table is None or asked["variant"] not in OWN_VARIANTS:
            return None, None
        wanted = {
            "dataset": asked["dataset"],
            "model_training": model,
            "attack": ATTACKS.get(asked["attack"], asked["attack"]),
            "attack_variant": asked["variant"] if ask else "",
            "similarity": asked["similarity"],
            "attack_layers": "" if clean else "+".join(asked["attack_layers"] or ()),
            "dknn_layers": "+".join(asked["dknn_layers"] or ()),
            "attack_k_pos": str(asked["k_in"]) if ask else "",
            "attack_k_neg": str(asked["k_out"]) if ask else "",
            "classifier_k": str(asked["classifier_k"]),
            "eps": "" if clean else f"{asked['eps']:g}",
            "steps": "" if clean else str(asked["steps"]),
        }
        for row in self.tables:
            metric = METRICS.get(row["metric"], row["metric"])
            if row["table"] != str(table) or metric != asked["metric"]:
                continue
            if all(row[name] in ("", value) or not value for name, value in wanted.items()):
                return float(row["value_percent"]), float(row["ci95_percent"]) if row["ci95_percent"] else None
        return None, None
