"""Data sets: from the publisher (or a mirror) to memory-mapped arrays.

    manifest = download(spec, root, mirror)   # root/raw/<source>/: the publisher's files, verified
    folder = prepare(spec, root, name)        # root/prepared/<name>/: arrays and facts.json, verified
    images, labels = load(folder, "train")    # memory-mapped uint8 (N, C, H, W) and int64 (N,)

Mirrors
-------
A mirror is a folder, or an ``http(s)://`` or ``file://`` address, that holds the files for machines without internet.
Several may be given, separated by ``os.pathsep`` (``:`` on Linux); the first that has a file wins, then the publisher.
What a mirror holds::

    <mirror>/SHA256SUMS                  optional, lines of `<sha256>  <path relative to the mirror>`; then checked
    <mirror>/cifar10/cifar-10-binary.tar.gz
    <mirror>/imagenette/imagenette2-160.tgz
    <mirror>/mnist/{train,t10k}-{images-idx3,labels-idx1}-ubyte.gz           also re-compressed, or not compressed
    <mirror>/fashion_mnist/{train,t10k}-{images-idx3,labels-idx1}-ubyte.gz   likewise

A folder that holds the files directly, with no ``<source>/`` in between, works too: Debian's package
``dataset-fashion-mnist`` installs such a one, ``/usr/share/datasets/fashion-mnist``.

In place of the publisher's archive, ``<mirror>/cifar10`` and ``<mirror>/imagenette`` may hold image zips: any number of
``*.zip`` of ``<split>/<class>/<file>``. Folders can be listed, addresses cannot: an address is asked for
``train-0.zip``, ``train-1.zip`` and ``test.zip`` (CIFAR-10) and ``imagenette-128.zip`` (Imagenette).

Nothing is ever unpickled, and no archive is unpacked to disk.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from .errors import DataError

if TYPE_CHECKING:
    from .arrays import load
    from .downloading import download
    from .preparing import prepare

__all__ = ["DataError", "download", "load", "prepare"]

_HOMES = {"download": "downloading", "load": "arrays", "prepare": "preparing"}


def __getattr__(name: str) -> object:
    """Import a public function at its first use, so that ``import ask.data`` stays free of NumPy and Pillow."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
