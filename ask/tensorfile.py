"""Named tensors with text metadata in one safetensors file: written atomically, read without unpickling anything."""

import hashlib
import json
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ask.files import write

DIGEST = "sha256"  # of the tensors' bytes in order of their names, hexadecimal, among the metadata
INSIDE = ("state_dict", "model_state_dict", "model", "net", "params")
"""Keys under which others' files keep the weights beside other things."""


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write tensors from any device and in any memory format, tied ones under each name.

    Metadata are one JSON text, for safetensors writes several in a random order: equal content gives equal bytes. With
    them goes a digest, by which `load_tensors` knows damage.
    """
    # Copies, for safetensors refuses tensors that share memory.
    plain = {k: v.detach().to("cpu", copy=True, memory_format=torch.contiguous_format) for k, v in tensors.items()}
    header = {"metadata": json.dumps({**metadata, DIGEST: _digest(plain)}, sort_keys=True)}
    write(path, lambda part: save_file(plain, part, header))


def _digest(tensors: dict[str, Tensor]) -> str:
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by name, on the CPU, and the metadata given to :func:`save_tensors` (empty in another's file).

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a safetensors file, cut short, or of other content than was written.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}: run the step that makes it")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            metadata: dict[str, str] = json.loads(header.get("metadata", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no dict
        if metadata.pop(DIGEST, found := _digest(tensors)) != found:
            raise SafetensorError("other content than was written")
        return tensors, metadata
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error}): delete it and make it again") from error


def load_others(path: Path) -> dict[str, Tensor]:
    """Tensors by name, on the CPU, of a safetensors file or of one that ``torch.save`` wrote; nothing is executed.

    They may lie under a key of their own (`INSIDE`). Raises FileNotFoundError, and ValueError where it does not hold
    tensors by name, or more than tensors.
    """
    write_it = "write it by torch.save(model.state_dict(), path), or as safetensors"
    try:
        found: Any = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"{path} is no file of tensors alone ({reason}): {write_it}") from error
    while isinstance(found, dict) and (inside := [found[key] for key in INSIDE if isinstance(found.get(key), dict)]):
        found = inside[0]
    named = found.items() if isinstance(found, dict) else ()
    tensors = {name: value for name, value in named if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(f"{path} holds no tensors by name: {write_it}")
    return tensors
