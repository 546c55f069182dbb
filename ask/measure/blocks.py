"""AdvKnn's deep kNN blocks: one for each trial's reference set, all fitted together."""

import json
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ask.attacks.advknn import fit_blocks, vote_distributions
from ask.config.jobs import BlockJob
from ask.data.arrays import load
from ask.hardware import weights_read
from ask.knn.dknn import make_search
from ask.knn.faiss import searching
from ask.knn.similarity import unit
from ask.measure.evaluator import draw_references
from ask.measure.journal import data_read, held_blocks, key_of
from ask.measure.place import Place
from ask.measure.setting import reference_seed
from ask.paths import prepared
from ask.seeds import derive_seed
from ask.tensorfile import load_tensors, save_tensors


def fit(job: BlockJob, place: Place) -> None:
    """Write the parameters of every trial's block, stacked, as ``0``, ``1``, … (trials, …).

    Blocks of a smaller or larger number of trials (:mod:`ask.measure.journal`) stay as they are. Those that are added
    are drawn together, from a seed of their own: as good as those of a run that fits all at once, and others.
    """
    features, document = job.features, job.model_dump(mode="json")
    data = data_read(place.data, job.features)
    key = key_of(document, weights_read(document, place.run), data, place.device.type, place.code)
    out = place.run.blocks(features.dataset, features.model, job.id)
    stacked = _held(out, key, job.trials)
    if (count := len(stacked[0]) if stacked else 0) < job.trials:
        added = _fit(job, place, range(count, job.trials))
        stacked = [torch.cat([old, new.cpu()]) for old, new in zip(stacked, added, strict=True)] if stacked else added
    save_tensors(out, {str(i): tensor for i, tensor in enumerate(stacked)}, {"job": job.model_dump_json(), "key": key})


def _held(out: Path, key: str, trials: int) -> list[Tensor]:
    """Parameters of at most so many trials that are fitted already, the most there are; nothing if there are none."""
    for path in held_blocks(out, key):
        with suppress(ValueError):  # cut short
            tensors, header = load_tensors(path)
            if path != out or json.loads(header["job"])["trials"] != trials:
                return [tensors[name][:trials] for name in sorted(tensors)]
    return []


def _fit(job: BlockJob, place: Place, trials: range) -> list[Tensor]:
    """Parameters of some trials' blocks, stacked."""
    features = job.features
    labels = np.array(load(prepared(place.data, features), "train")[1])
    index = np.load(place.run.index(features.dataset, features.model, job.layer))
    pool = torch.from_numpy(index).to(place.device)
    rows, targets = [], []
    for trial in trials:
        chosen = draw_references(labels, job.references_per_class, reference_seed(job, trial))
        classes = torch.from_numpy(labels[chosen]).to(place.device)
        search = make_search(pool[chosen], classes, job.similarity, searching(place.device))
        targets.append(vote_distributions(search, job.k))
        rows.append(torch.from_numpy(chosen).to(place.device)[search.order])
    more = (trials.start,) if trials.start else ()
    blocks = fit_blocks(
        unit(pool) if job.similarity == "cosine" else pool,
        torch.stack(rows),
        torch.stack(targets),
        similarity=job.similarity,
        config=job.block,
        generator=torch.Generator().manual_seed(derive_seed(job.seed, features.dataset, "blocks", *more)),
    )
    return [torch.stack(parameters) for parameters in zip(*(block.parameters for block in blocks), strict=True)]
