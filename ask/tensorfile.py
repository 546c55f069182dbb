"""Named tensors with text metadata in one safetensors file: written atomically, read without unpickling anything."""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ask.files import write


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write tensors from any device and in any memory format.

    Metadata are one JSON text, for safetensors writes several in a random order: equal content gives equal bytes.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = {"metadata": json.dumps(metadata, sort_keys=True)}
    write(path, lambda part: save_file(plain, part, header))


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
