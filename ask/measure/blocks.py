"""AdvKnn's deep kNN blocks: one for each trial's reference set, all fitted together."""

import numpy as np
import torch

from ask.attacks.advknn import fit_blocks, vote_distributions
from ask.config.jobs import BlockJob
from ask.data.arrays import load
from ask.knn.search import ExactSearch
from ask.knn.similarity import unit
from ask.measure.cells import reference_seed
from ask.measure.evaluator import draw_references
from ask.measure.place import Place
from ask.paths import prepared
from ask.seeds import derive_seed
from ask.tensorfile import save_tensors


def fit(job: BlockJob, place: Place) -> None:
    """Write the parameters of every trial's block, stacked, as ``0``, ``1``, … (trials, …)."""
    features = job.features
    labels = np.array(load(prepared(place.data, features), "train")[1])
    index = np.load(place.run.index(features.dataset, features.model, job.layer))
    pool = torch.from_numpy(index).to(place.device)
    rows, targets = [], []
    for trial in range(job.trials):
        chosen = draw_references(labels, job.references_per_class, reference_seed(job, trial))
        classes = torch.from_numpy(labels[chosen]).to(place.device)
        search = ExactSearch(pool[chosen], classes, similarity=job.similarity)
        targets.append(vote_distributions(search, job.k))
        rows.append(torch.from_numpy(chosen).to(place.device)[search.order])
    blocks = fit_blocks(
        unit(pool) if job.similarity == "cosine" else pool,
        torch.stack(rows),
        torch.stack(targets),
        similarity=job.similarity,
        config=job.block,
        generator=torch.Generator().manual_seed(derive_seed(job.seed, features.dataset, "blocks")),
    )
    stacked = [torch.stack(parameters) for parameters in zip(*(block.parameters for block in blocks), strict=True)]
    out = place.run.blocks(features.dataset, features.model, job.id)
    save_tensors(out, {str(i): tensor for i, tensor in enumerate(stacked)}, {"job": job.model_dump_json()})
