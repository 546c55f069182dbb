"""Seconds of several attacks on one machine, in turns, set-up counted and not counted (paper, App. E-d)."""

from typing import Any

import numpy as np
import torch

from ask.config.jobs import CellJob, TimingJob
from ask.data.arrays import load
from ask.hardware import timed
from ask.measure.evaluator import Attack, Evaluator, draw_references
from ask.measure.place import FORWARD_BATCH, Place, to_float
from ask.measure.setting import Setting, layers_of, reference_seed, start_seed
from ask.paths import prepared
from ask.statistics import summarise


def measure(job: TimingJob, place: Place) -> dict[str, Any]:
    """Milliseconds an image of each attack, search for clean neighbours included, over rounds in which all take turns.

    Set-up is what one trial needs before its first attack: the references' features, the choice of references and
    what the attack makes of them (AdvKnn fits its blocks), and the attack's calibration: grid points times
    calibration images times the seconds an image. ``*_with_setup`` spreads it over the test images of one trial.
    """
    racers = [_Racer(cell, job, place) for cell in job.cells]
    for racer in racers:
        racer.attack_once()  # the first time pays for memory and code that later ones find ready
    seconds = np.array([[timed(place.device, racer.attack_once) for racer in racers] for _ in range(job.rounds)])
    an_image = seconds / racers[0].images
    setups = [
        racer.setup_seconds + points * job.calibration_images * float(np.median(an_image[:, i]))
        for i, (racer, points) in enumerate(zip(racers, job.grid_sizes, strict=True))
    ]
    whole = an_image + np.array(setups) / racers[0].available
    results = [
        {
            "timed": cell.id,
            "ms_per_image": summarise(1000 * an_image[:, i]),
            "setup_seconds": summarise(np.array([setups[i]])),
            "ms_with_setup": summarise(1000 * whole[:, i]),
            "slower": summarise(an_image[:, i] / an_image[:, 0]),
            "slower_with_setup": summarise(whole[:, i] / whole[:, 0]),
        }
        for i, cell in enumerate(job.cells)
    ]
    passes = racers[0].evaluator.passes
    return {"results": results, "images": racers[0].images, "rounds": job.rounds, "passes": passes}


class _Racer:
    """One attack, ready to start, and what it took to get there."""

    def __init__(self, cell: CellJob, job: TimingJob, place: Place) -> None:
        labels = load(prepared(place.data, cell.features), "test")[1]
        self.available = min(cell.test_images or len(labels), len(labels))
        self.images = min(job.images, self.available)
        self.evaluator = Evaluator(
            cell.features, layers_of(cell.attack), cell.similarity, (), self.images, place, cell.precision
        )
        self.setup_seconds = timed(place.device, lambda: self._set_up(cell, place))

    def _set_up(self, cell: CellJob, place: Place) -> None:
        """Compute the references' features, as the index step does for the whole training set; make the attack."""
        images, _ = load(prepared(place.data, cell.features), "train")
        seed = reference_seed(cell, 0)
        chosen = draw_references(self.evaluator.pool_labels, cell.references_per_class, seed)
        with torch.inference_mode():
            for start in range(0, len(chosen), FORWARD_BATCH):
                batch = to_float(images[chosen[start : start + FORWARD_BATCH]], place.device)
                self.evaluator.extract(batch, layers_of(cell.attack))
        self.trial = self.evaluator.draw(cell.references_per_class, seed)
        # AdvKnn's blocks are fitted here, for this trial alone, and not read from disk.
        self.attack: Attack = self.trial.attack(Setting(cell, place).config, start_seed(cell, 0))

    def attack_once(self) -> None:
        """Attack all images, from the search for their neighbours on."""
        clean = self.trial.neighbours(self.evaluator.clean_features, self.attack)
        self.evaluator.run([self.attack], [clean])
