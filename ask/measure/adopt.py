"""The step that makes a model of a network which was trained elsewhere."""

import json
from pathlib import Path

import yaml

from ask.config.jobs import AdoptJob
from ask.errors import AskError
from ask.files import write_text
from ask.hardware import describe, digest_of, usage
from ask.measure.place import Place
from ask.models.networks import build, save_weights
from ask.models.own import OwnNetwork, load_own
from ask.paths import prepared
from ask.seeds import derive_seed


def adopt(job: AdoptJob, place: Place) -> None:
    """Make the network, load its weights, and keep both in the form of a trained model."""
    facts = json.loads((prepared(place.data, job.dataset) / "facts.json").read_text())
    channels, height, width = facts["image_shape"]
    if height != width:
        raise AskError(f"{job.dataset}: images of {width}x{height} pixels; set datasets.{job.dataset}.image_size")
    network = take(job, channels, height, len(facts["class_names"]))
    out = place.run.model(job.dataset, job.model)
    about = {"fingerprint": place.code, "weights": job.digest or "", "seed": str(job.seed)}
    save_weights(out / "weights.safetensors", network, about)
    record = {
        "job": job.model_dump(mode="json"),
        "module": f"{type(network.module).__module__}.{type(network.module).__qualname__}",
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "folded": len(network.pairs()),
        **describe(place.device),
        "usage": usage(place.device),
        "fingerprint": place.code,
    }
    write_text(out / "config.yaml", yaml.safe_dump(record, sort_keys=False))


def take(job: AdoptJob, channels: int, side: int, classes: int) -> OwnNetwork:
    """The network of a job for images (channels, side, side) and at least so many classes, with its weights."""
    seed = derive_seed(job.seed, "network")
    network = build(job.network, in_channels=channels, image_size=side, num_classes=classes, seed=seed)
    assert isinstance(network, OwnNetwork)
    if job.weights:
        path = Path(job.weights).expanduser()
        load_own(network, path)
        if digest_of(path) != job.digest:
            raise AskError(f"{job.weights} has changed since this job was planned; start again")
    return network
