"""Named tensors with text metadata in one safetensors file: written atomically, read without unpickling anything."""

import json
import os
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


def partial_of(path: Path) -> Path:
    """Where a file is written before it is put in place; one name, so that killed runs do not pile up files."""
    return path.with_name(f".{path.name}.partial")


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a neighbour of ``path``, then put it in place: a kill leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_of(path)
    write(partial)
    with partial.open("rb+") as file:
        os.fsync(file.fileno())
    partial.replace(path)


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write tensors from any device and in any memory format.

    Metadata are one JSON text, for safetensors writes several in a random order: equal content gives equal bytes.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = {"metadata": json.dumps(metadata, sort_keys=True)}
    write_atomically(path, lambda partial: save_file(plain, partial, header))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by name, on the CPU, and the metadata given to :func:`save_tensors` (empty in another's file).

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a safetensors file, or cut short.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}: run the step that makes it")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            metadata: dict[str, str] = json.loads(header.get("metadata", "{}"))
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118  # no dict
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error}): delete it and make it again") from error
