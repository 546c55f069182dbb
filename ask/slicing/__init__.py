"""A run in slices: making one within a time limit, bringing its evidence back, and showing what there is."""

import argparse
from pathlib import Path

SLICING = {
    "slice": "Make a slice of a run within a time limit; exit status 0: finished, 75: more to do, 1: failed.",
    "pack": "Pack a run's evidence (or a slice's) into archives, without weights and indexes.",
    "merge": "Merge packed evidence into its run, by content.",
    "render": "Render the tables, figures, claims and report that a run's evidence suffices for; measures nothing.",
}
"""The commands, and what they do."""


def register(parser: argparse.ArgumentParser, name: str) -> None:
    """Add a command's arguments."""
    if name == "merge":
        parser.add_argument("archives", nargs="+", type=Path, help="archives, or folders of them")
        parser.add_argument("--into", type=Path, default=Path("results"), help="folder of the runs (default: results)")
        parser.add_argument("--replace", action="store_true", help="where both differ, take the archive's")
        return
    if name != "render":
        help_text = "name of the slice" if name == "slice" else "name of the slice (default: the whole run)"
        parser.add_argument("slice", nargs=None if name == "slice" else "?", help=help_text)
    parser.add_argument("--configfile", nargs="+", type=Path, default=[], help="overlays, as for snakemake")
    if name == "pack":
        parser.add_argument("--out", type=Path, required=True, help="folder for the archives; earlier ones of it go")
    if name == "slice":
        parser.add_argument("--minutes", type=float, help="stop cleanly before so many minutes have passed")
        parser.add_argument("--trials", type=int, help="at most so many trials (evaluation.max_trials)")
        parser.add_argument("--pack", type=Path, metavar="FOLDER", help="pack the slice's evidence at the end, always")
        parser.add_argument("--flags", default="", help="more options for snakemake, in one word")
