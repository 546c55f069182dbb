"""What a run would cost, what of it is done, and why parts of it would run again; no step depends on this."""

import argparse
from pathlib import Path

PLANNING = {
    "plan": "Count what a run takes, what is done, and how predictions compare with what it took.",
    "status": "Say what of each artifact is done, and print partial tables.",
    "why": "Say which jobs would run again, and because of which value, function or file.",
}
"""The commands, and what they do."""


def register(parser: argparse.ArgumentParser, name: str) -> None:
    """Add a command's arguments."""
    words = {"plan": "artifacts and slices to plan (default: all)", "status": "artifacts whose partial tables to print"}
    parser.add_argument("names", nargs="*", help=words.get(name, "artifacts or outputs to explain (default: all)"))
    parser.add_argument("--configfile", nargs="+", type=Path, default=[], help="overlays, as for snakemake")
    if name == "plan":
        parser.add_argument("--trials", type=int, help="at most so many trials (evaluation.max_trials)")
        parser.add_argument("--json", action="store_true", help="print everything as JSON")
