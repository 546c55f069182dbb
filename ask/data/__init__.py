"""Data sets: from the publisher (or a mirror) to memory-mapped arrays. Sources, mirrors and checks: docs/data.md.

    manifest = download(spec, root, mirror)   # root/raw/<source>/: the publisher's files, verified
    folder = prepare(spec, root, name)        # root/prepared/<name>/: arrays and facts.json, verified
    images, labels = load(folder, "train")    # memory-mapped uint8 (N, C, H, W) and int64 (N,)

Nothing is ever unpickled, and no archive is unpacked to disk.
"""

from typing import TYPE_CHECKING

from ask.lazy import exports

if TYPE_CHECKING:
    from ask.data.arrays import load
    from ask.data.downloading import download
    from ask.data.preparing import prepare
    from ask.errors import DataError

__all__ = ["DataError", "download", "load", "prepare"]
__getattr__ = exports(
    __name__, {"DataError": "arrays", "download": "downloading", "load": "arrays", "prepare": "preparing"}
)
