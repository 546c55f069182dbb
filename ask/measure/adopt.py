"""The step that makes a model of a network which was trained elsewhere."""

import json
from pathlib import Path

import yaml

from ask.config.jobs import AdoptJob
from ask.errors import AskError
from ask.files import write_text
from ask.hardware import describe, digest_of, usage
from ask.measure.place import Place
from ask.models.networks import save_weights
from ask.models.own import build_own
from ask.paths import prepared
from ask.seeds import derive_seed


def adopt(job: AdoptJob, place: Place) -> None:
    """Make the network, load its weights, and keep both in the form of a trained model."""
    dataset, spec = job.features.dataset, job.features.network
    assert spec is not None
    facts = json.loads((prepared(place.data, job.features) / "facts.json").read_text(encoding="utf-8"))
    channels, height, width = facts["image_shape"]
    if height != width:
        raise AskError(f"{dataset}: images of {width} x {height} pixels; set `datasets.{dataset}.image_size`")
    seed = derive_seed(job.seed, "network")
    network = build_own(spec, job.weights, channels, height, len(facts["class_names"]), seed)
    if job.weights and digest_of(Path(job.weights).expanduser()) != job.digest:
        raise AskError(f"{job.weights} has changed since this job was planned; start again")
    out = place.run.model(dataset, job.features.model)
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
