"""What training a model cost, relative to plain adversarial training ("comparable complexity", paper, V)."""

from typing import Any

import yaml

from ask.config.jobs import CostJob
from ask.measure.place import Place


def compare(job: CostJob, place: Place) -> dict[str, Any]:
    """Training seconds without validation, image passes a training image, and factors to the base of whole trainings.

    A pass is one image forward or backward through the network, whether to its end or to the attacked layer; the
    multiply-adds count how far. Factors count epochs, too. Seconds were measured where each model was trained, beside
    whatever else ran there.
    """
    paths = (place.run.model(job.dataset, model) / "config.yaml" for model in (job.model, job.base))
    own, base = (yaml.safe_load(path.read_text(encoding="utf-8")) for path in paths)
    images, base_images = (record["passes_per_step"]["images"] for record in (own, base))
    passes, base_passes = (
        (record["passes_per_step"]["forward"] + record["passes_per_step"]["backward"]) / count
        for record, count in ((own, images), (base, base_images))
    )
    work, base_work = own["passes_per_step"]["gmac"] / images, base["passes_per_step"]["gmac"] / base_images
    epochs = own["job"]["training"]["epochs"] / base["job"]["training"]["epochs"]
    seconds, base_seconds = own["train_seconds"], base["train_seconds"]
    found = {
        "training_seconds": seconds,
        "passes_per_image": passes,
        "times_passes": epochs * passes / base_passes,
        "times_work": epochs * work / base_work,
        "times_seconds": seconds / base_seconds,
    }
    result = {name: {"mean": float(value), "ci95": None, "trials": [float(value)]} for name, value in found.items()}
    return {"results": [result], "hardware": own.get("hardware", ""), "versions": own.get("versions", {})}
