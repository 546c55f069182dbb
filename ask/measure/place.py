"""Where a job runs, feature functions of trained models, and the index of the training images' features."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ask import files
from ask.config.jobs import FeatureSpec, IndexJob
from ask.data.arrays import load
from ask.paths import Run, prepared

if TYPE_CHECKING:
    from ask.models.networks import Network

Features = Callable[[Tensor, Sequence[str]], Mapping[str, Tensor]]
"""Maps images and layer names to features (images, dimensions) by layer, differentiably."""
FORWARD_BATCH = 250


@dataclass(frozen=True)
class Place:
    """Where a job reads, writes and computes; of no influence on what it finds but for rounding."""

    run: Run
    data: Path
    device: torch.device
    code: str = ""
    """Fingerprint of the step's code, for the record."""
    mirror: str | None = None
    """Folder(s) or URL of published data sets."""
    cuda_graphs: bool = False
    """Whether a training on a GPU replays its crafting as CUDA graphs."""
    log: Callable[[str], object] = str
    """Takes lines for who watches."""


def build_index(job: IndexJob, place: Place) -> None:
    """Write the training images' features at one layer: float32 (images, dimensions)."""
    images, _ = load(prepared(place.data, job.features), "train")
    extract, _ = load_subject(job.features, place)

    def features_of(rows: slice) -> NDArray[np.float32]:
        with torch.inference_mode():
            found = extract(to_float(images[rows], place.device), (job.layer,))[job.layer]
        return np.asarray(found.float().cpu().numpy())

    def fill(part: Path) -> None:
        about = {"descr": "<f4", "fortran_order": False, "shape": (len(images), features_of(slice(0, 1)).shape[1])}
        with part.open("wb") as stream:  # written through a map, a full disk would kill the process (SIGBUS)
            np.lib.format.write_array_header_1_0(stream, about)
            for start in range(0, len(images), FORWARD_BATCH):
                stream.write(features_of(slice(start, start + FORWARD_BATCH)).tobytes())

    files.write(place.run.index(job.features.dataset, job.features.model, job.layer), fill)


def load_subject(spec: FeatureSpec, place: Place) -> tuple[Features, "Network | None"]:
    """The feature function of a trained model, ready for attacks, and its network; or raw pixels and None."""
    if spec.network is None:
        return lambda images, layers: {layer: images.flatten(1) for layer in layers}, None
    from ask.models.networks import fold_batchnorm, load_network

    saved = load_network(place.run.model(spec.dataset, spec.model), layers=spec.network.layers)
    network = fold_batchnorm(saved).to(place.device)
    network.to(memory_format=network.memory_format)  # type: ignore[call-overload]  # torch's stubs lack it
    network.requires_grad_(False)
    return network.features, network


def to_float(images: NDArray[np.uint8], device: torch.device) -> Tensor:
    """uint8 (images, channels, height, width) as float32 in [0, 1]."""
    return torch.from_numpy(np.array(images)).to(device).float().div_(255)
