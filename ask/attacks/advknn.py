"""AdvKnn (Li et al., 2019): a differentiable deep kNN block imitates the votes; PGD then ascends its divergence.

At each attacked layer a block q(x) = softmax(W f(x) + b) is fitted to the vote distribution p of each reference
among the others (leave one out). The attack starts near a clean image x and ascends

    sum_l KL(p_l(x) || q_l(x')) + w CE(q_l(x'), argmax p_l(x)),

p being votes of exact neighbours, or with ``target="label"`` the true class alone. An image that the clean DkNN gets
wrong is led away from that wrong class by its votes, and may so be put right; the label leads it away from the true
class, as every other attack does. Under cosine similarity, fitting and attack both see features of unit length.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ask.attacks.linf import FeatureFunction, FeatureLoss
from ask.attacks.references import ReferenceAttack, Subject, descended, leave_one_out, neighbour_classes
from ask.attacks.validation import plain
from ask.config.attacks import AdvKnnConfig, BlockConfig
from ask.graphs import cuda_graph
from ask.knn.dknn import votes
from ask.knn.search import Neighbours, Search, common
from ask.knn.similarity import Similarity, unit
from ask.precision import undisturbed

if TYPE_CHECKING:
    from ask.knn.classifier import DkNN


@dataclass(frozen=True)
class DeepKNNBlock:
    """A fitted block of one layer."""

    similarity: Similarity
    parameters: tuple[Tensor, ...]
    """Weight (dimensions, classes) and bias (1, classes); with a hidden layer, its weight and bias first."""

    def __call__(self, features: Tensor) -> Tensor:
        """Log-probabilities (batch, classes) of features (batch, dimensions)."""
        features = unit(features) if self.similarity == "cosine" else features
        return _logits(features.unsqueeze(0), [p.unsqueeze(0) for p in self.parameters])[0].log_softmax(1)


class AdvKnn(ReferenceAttack[AdvKnnConfig]):
    """AdvKnn on any differentiable feature function; arguments as :class:`ReferenceAttack`.

    ``blocks`` fitted on the same references may be given by layer; otherwise they are fitted here. True labels are
    used with ``target="label"``; otherwise the attack moves away from the clean image's own votes.

    >>> adversarial = AdvKnn(classifier, eps=8 / 255)(images, labels)
    """

    config_type = AdvKnnConfig

    def __init__(
        self,
        features: "FeatureFunction | DkNN",
        references: "Mapping[str, Search] | DkNN | None" = None,
        config: AdvKnnConfig | None = None,
        *,
        blocks: Mapping[str, DeepKNNBlock] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(features, references, config, **options)
        config = self.config
        self.k = config.k if config.target == "votes" else 0
        self.blocks = dict(blocks or {})
        for layer, search in self.references.items():
            if layer not in self.blocks:
                with undisturbed(search.features.device):
                    pool = plain(search.features)
                    (self.blocks[layer],) = fit_blocks(
                        pool,
                        torch.arange(len(pool), device=pool.device).unsqueeze(0),
                        vote_distributions(search, config.k).unsqueeze(0),
                        similarity=search.similarity,
                        config=config.block,
                        generator=self.generator,
                    )

    def search(self, images: Tensor) -> dict[str, Neighbours]:
        """As :class:`ReferenceAttack`; nothing where the true label takes the place of votes."""
        return super().search(images) if self.k else {}

    def losses(self, neighbours: Mapping[str, Neighbours], labels: Tensor) -> Callable[[slice], FeatureLoss]:
        """As :class:`ReferenceAttack`, from the clean images' vote distributions at each layer, or true classes."""
        if not self.k:
            return self._leave(self._certain(labels))
        return self._leave(
            {
                layer: votes(neighbour_classes(search, neighbours[layer], self.k), self.n_classes) / self.k
                for layer, search in self.references.items()
            }
        )

    def targeted_losses(
        self,
        neighbours: Mapping[str, Neighbours],  # noqa: ARG002  # votes have no say
        labels: Tensor,
    ) -> Callable[[slice], FeatureLoss]:
        """As :class:`ReferenceAttack`, towards votes for the classes alone."""
        return descended(self._leave(self._certain(labels)))

    def _certain(self, labels: Tensor) -> dict[str, Tensor]:
        """Distributions (batch, classes) of votes for these classes alone, at each layer."""
        features = next(iter(self.references.values())).features
        return dict.fromkeys(self.references, F.one_hot(labels, self.n_classes).to(features))

    def _leave(self, voted: Mapping[str, Tensor]) -> Callable[[slice], FeatureLoss]:
        """Losses that lead away from distributions (batch, classes) at each layer."""

        def make_loss(part: slice) -> FeatureLoss:
            def loss(features: Mapping[str, Tensor]) -> Tensor:
                terms = []
                for layer, everyone in voted.items():
                    p, log_q = everyone[part], self.blocks[layer](features[layer])
                    cross_entropy = F.nll_loss(log_q, p.argmax(1), reduction="none")
                    terms.append((torch.xlogy(p, p) - p * log_q).sum(1) + self.config.ce_weight * cross_entropy)
                return torch.stack(terms).sum(0)

            return loss

        return make_loss


def vote_distributions(search: Search, k: int) -> Tensor:
    """Share of each class (references, classes) among each reference's k nearest others, in the search's row order."""
    _, classes = leave_one_out(search, k)
    return votes(classes, search.n_classes).to(search.features.dtype) / k


def fit_blocks(
    pool: Tensor,
    rows: Tensor,
    targets: Tensor,
    *,
    similarity: Similarity,
    config: BlockConfig,
    generator: torch.Generator,
) -> list[DeepKNNBlock]:
    """Fit one block for each of several reference sets, all at once.

    Args:
        pool: features (images, dimensions) that the reference sets are drawn from; of unit length under cosine. Under
            l2, what they all carry (:func:`ask.knn.search.common`) is taken off while a block is fitted, and their
            length where no learning rate is given.
        rows: references of each set (sets, references) in the pool.
        targets: vote distribution of each reference (sets, references, classes).
        similarity: noted in the blocks.
        config: how.
        generator: draws initial weights and batches, on its own device.

    Returns:
        A block for each set; a warning tells of such as seldom have the majority of a reference's votes.
    """
    sets, count, classes = targets.shape
    centre = common(pool) if similarity == "l2" else None
    pool = pool if centre is None else pool - centre
    # At a rate of 1, SGD is stable on features of mean squared length 1.
    given = similarity == "cosine" or config.learning_rate is not None
    scale = 1.0 if given else float(pool.square().sum(1).mean().clamp_min(1e-24).rsqrt())
    pool = pool if given else pool * scale
    widths = [pool.shape[1], *([config.hidden] if config.hidden else []), classes]
    parameters: list[Tensor] = []
    for inputs, outputs in pairwise(widths):
        bound = inputs**-0.5  # as torch.nn.Linear
        for shape in ((sets, inputs, outputs), (sets, 1, outputs)):
            drawn = torch.rand(shape, generator=generator, device=generator.device).mul_(2 * bound).sub_(bound)
            parameters.append(drawn.to(pool).requires_grad_())
    optimiser = torch.optim.SGD(
        parameters,
        lr=config.learning_rate or 1.0,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        nesterov=config.momentum > 0,
        foreach=True,
    )

    def step(batch: Tensor) -> None:
        x = pool[rows.gather(1, batch)]
        p = targets.gather(1, batch.unsqueeze(2).expand(-1, -1, classes))
        # KL(p || q) but for a constant; summed over sets, which are independent.
        loss = -(p * _logits(x, parameters).log_softmax(2)).sum(2).mean(1).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    with torch.enable_grad():
        run = _captured(step, parameters, optimiser, sets, config.batch_size, pool.device)
        for _ in range(config.epochs):
            order = torch.rand(sets, count, generator=generator, device=generator.device).argsort(1).to(pool.device)
            for batch in order.split(config.batch_size, dim=1):
                (run if batch.shape[1] == config.batch_size else step)(batch)
    _doubt(pool, rows, targets, parameters)
    if similarity == "l2":  # a block reads features as they are
        parameters[0] = parameters[0] * scale
        parameters[1] = parameters[1] if centre is None else parameters[1] - (centre @ parameters[0]).unsqueeze(1)
    return [DeepKNNBlock(similarity, tuple(p.detach()[i] for p in parameters)) for i in range(sets)]


@torch.no_grad()
def _doubt(pool: Tensor, rows: Tensor, targets: Tensor, parameters: Sequence[Tensor]) -> None:
    """Warn of blocks that seldom have the votes' majority; arguments as :func:`fit_blocks`."""
    some = slice(None, None, -(-rows.shape[1] // _FEW))
    said = [_logits(pool[own[some]][None], [p[i : i + 1] for p in parameters]) for i, own in enumerate(rows)]
    agree = float((torch.cat(said).argmax(2) == targets[:, some].argmax(2)).float().mean())
    if agree < _LEAST_AGREEMENT:
        warnings.warn(
            f"deep kNN blocks have the neighbours' majority for {agree:.0%} of the references, so AdvKnn hardly follows"
            " it, and may look weaker than it is: leave block's learning_rate out, or give more epochs",
            RuntimeWarning,
            stacklevel=4,
        )


_FEW = 2000
"""References that fitted blocks are asked about, at most."""
_LEAST_AGREEMENT = 0.5


def _logits(x: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """(sets, batch, classes) from features (sets, batch, dimensions) and each layer's weight and bias."""
    for weight, bias in zip(parameters[:-2:2], parameters[1:-2:2], strict=True):
        x = torch.baddbmm(bias, x, weight).relu()
    return torch.baddbmm(parameters[-1], x, parameters[-2])


def _captured(
    step: Callable[[Tensor], None],
    parameters: Sequence[Tensor],
    optimiser: torch.optim.Optimizer,
    sets: int,
    batch_size: int,
    device: torch.device,
) -> Callable[[Tensor], None]:
    """``step`` as one CUDA graph, for a step of small products is all launch time; as it is on a CPU."""
    if device.type != "cuda":
        return step
    begin = [p.detach().clone() for p in parameters]
    batch = torch.zeros(sets, batch_size, dtype=torch.int64, device=device)
    again = cuda_graph(lambda: step(batch))
    # The warm-up has moved the parameters and their momentum.
    with torch.no_grad():
        for parameter, old in zip(parameters, begin, strict=True):
            parameter.copy_(old)
            for buffer in optimiser.state[parameter].values():  # none where momentum is 0
                buffer.zero_()

    def replay(wanted: Tensor) -> None:
        batch.copy_(wanted)
        again()

    return replay


def build(
    config: AdvKnnConfig, subject: Subject, *, blocks: Mapping[str, Sequence[Tensor]] | None = None, **draws: Any
) -> AdvKnn:
    """The attack of a cell; ``blocks`` are parameters by layer, None: fitted here."""
    references = subject.references
    made = {layer: DeepKNNBlock(references[layer].similarity, tuple(found)) for layer, found in (blocks or {}).items()}
    return AdvKnn(subject.features, references, config, blocks=made, **draws)
