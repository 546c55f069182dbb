"""ASK-Atk end to end: features of clean images, search in each class, 20 steps; ours against a plain one."""

from collections.abc import Iterator

import torch
from torch import Tensor

from ask.attacks import ASKAttack, ASKAttackConfig
from ask.attacks.linf import random_start
from ask.knn import DkNN

from .measure import Case, Contender, Options, floor_peaks, product, take_turns
from .networks import FORWARD_GMAC, digits, prepared, untouched, vgg16
from .plain_ask import PlainASK

LAYER, K, STEPS = "conv4", 5, 20
FULL_EPS, NARROW_EPS = 2 / 255, 0.5 / 255
"""Far below the paper's: the networks are untrained, and robust accuracy shall lie between clean accuracy and zero."""


def cases(options: Options) -> Iterator[Case]:
    """The full network on few images, for seconds; a narrow one on many, for accuracies too."""
    if options.small:
        yield _case(options, 1 / 32, images=40, references=200, eps=FULL_EPS, steps=2)
        return
    few = 40 if options.device.type == "cpu" else 500
    yield _case(options, 1.0, images=options.count(few), references=500, eps=FULL_EPS)
    yield _case(options, 1 / 4, images=options.count(500), references=500, eps=NARROW_EPS)


def _case(options: Options, width: float, *, images: int, references: int, eps: float, steps: int = STEPS) -> Case:
    everything, classes = (tensor.to(options.device) for tensor in digits())
    x, y = everything[:images], classes[:images]
    pool, pool_labels = everything[-references:], classes[-references:]
    network = vgg16(width, pool[:500]).to(options.device)
    folded = prepared(network)
    dknn = DkNN(folded.features, layers=(LAYER,), n_neighbors=K).fit(pool, pool_labels)
    config = ASKAttackConfig(layers=(LAYER,), eps=eps, step_size=eps / 4, steps=steps, tau=0.03)
    plain = PlainASK(
        untouched(network),
        pool,
        pool_labels,
        layer=LAYER,
        k=K,
        tau=0.03,
        eps=eps,
        step_size=eps / 4,
        steps=steps,
    )
    start = random_start(x, eps, torch.Generator().manual_seed(0))

    def ours() -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return ASKAttack(folded.features, dknn.search_, config, generator=generator)(x, y)

    contenders = [
        Contender(name="ask", run=ours),
        Contender(name="plain implementation", run=lambda: plain(x, y, start)),
        Contender(name="ask, bfloat16 passes", run=ours, passes="bfloat16"),
    ]
    peaks = floor_peaks(options)
    gmac = FORWARD_GMAC[LAYER] * width**2  # but for the first convolution, which is a thousandth
    flop = 2e9 * gmac * images * (2 * steps + 1)
    rows = take_turns(contenders, options, flop=flop, peaks=peaks, warm_up=options.small)
    facts = {"floor": f"{flop / 1e9:.0f} GFLOP; {product(peaks)}"}
    facts["plain implementation over ask with bfloat16 passes"] = f"{rows[1].median / rows[2].median:.2f}"
    facts["clean accuracy of the DkNN"] = f"{dknn.score(x, y.cpu()):.3f}"
    for row in rows:
        facts[f"robust accuracy, {row.name}"] = f"{dknn.score(row.result, y.cpu()):.3f}"
        facts[f"ms an image, {row.name}"] = f"{1000 * row.median / images:.1f}"
    same = (rows[0].result - rows[1].result).abs().le(1e-6).float().mean()
    facts["pixels equal"] = f"{float(same):.1%}"
    shapes = {
        "images": images,
        "references": len(pool),
        "layer": LAYER,
        "K": K,
        "steps": steps,
        "eps": f"{255 * eps:g}/255",
    }
    return Case(title=f"ASK-Atk, VGG16 of width {width:g}, end to end", shapes=shapes, rows=rows, facts=facts)
