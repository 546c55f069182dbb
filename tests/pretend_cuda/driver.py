"""Builds and loads ``driver.cpp``, once a version of torch and a process."""

import ctypes
import hashlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch

SOURCE = Path(__file__).with_name("driver.cpp")


@contextmanager
def installed() -> Iterator[None]:
    """Let torch's C++ code find one card."""
    library = _library()
    library.set_pretended(1)
    try:
        yield
    finally:
        library.set_pretended(0)


@cache
def _library() -> ctypes.CDLL:
    """The compiled driver; takes some seconds the first time on a machine."""
    key = hashlib.sha256(SOURCE.read_bytes() + torch.__version__.encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"pretend-cuda-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    library = folder / f"{key}.so"
    if not library.is_file():
        home = Path(torch.__file__).parent
        part = folder / f"{key}.{os.getpid()}.so"
        command = ["g++", "-std=c++20", "-O0", "-w", "-shared", "-fPIC", str(SOURCE), "-o", str(part)]
        command += [f"-I{home}/include", f"-I{home}/include/torch/csrc/api/include"]
        command += [f"-L{home}/lib", "-lc10", "-ltorch_cpu"]
        subprocess.run(command, check=True)
        part.replace(library)
    return ctypes.CDLL(str(library))
