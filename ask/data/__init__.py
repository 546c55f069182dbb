"""Data sets: from the publisher (or a mirror) to memory-mapped arrays. Sources, mirrors and checks: docs/data.md.

    manifest = download(spec, root, mirror)   # root/raw/<source>/: the publisher's files, verified
    folder = prepare(spec, root, name)        # root/prepared/<name>/: arrays and facts.json, verified
    images, labels = load(folder, "train")    # memory-mapped uint8 (N, C, H, W) and int64 (N,)

Nothing is ever unpickled, and no archive is unpacked to disk.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from ask.data.errors import DataError

if TYPE_CHECKING:
    from ask.data.arrays import load
    from ask.data.downloading import download
    from ask.data.preparing import prepare

__all__ = ["DataError", "download", "load", "prepare"]

_HOMES = {"download": "downloading", "load": "arrays", "prepare": "preparing"}


def __getattr__(name: str) -> object:
    """Import a public function at its first use, so that ``import ask.data`` stays free of NumPy and Pillow."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
