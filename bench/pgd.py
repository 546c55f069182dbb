"""PGD on a network's own output; ours against three libraries."""

from collections.abc import Iterator

import torch
from torch import Tensor

from ask.attacks import PGD, PGDConfig

from .measure import Case, Contender, Options, floor_peaks, product, take_turns
from .networks import FORWARD_GMAC, digits, prepared, untouched, vgg16
from .peers_pgd import peers

EPS, STEP = 8 / 255, 2 / 255


def cases(options: Options) -> Iterator[Case]:
    """The full network and a narrow one."""
    if options.small:
        yield _case(options, 1 / 32, images=20, steps=2)
        return
    few = 40 if options.device.type == "cpu" else 2000
    yield _case(options, 1.0, images=options.count(few), steps=10)
    yield _case(options, 1 / 4, images=options.count(500), steps=10)


def _case(options: Options, width: float, *, images: int, steps: int) -> Case:
    everything = digits()[0].to(options.device)
    network = vgg16(width, everything[-500:]).to(options.device)
    x = everything[:images]
    with torch.no_grad():
        y = network(x).argmax(1)  # untrained: what it says of clean images is what attacks shall change
    folded, as_given = prepared(network), untouched(network)
    config = PGDConfig(eps=EPS, step_size=STEP, steps=steps)

    def ours(subject: torch.nn.Module) -> Tensor:
        return PGD(subject, config, generator=torch.Generator().manual_seed(0))(x, y)

    contenders = [
        Contender(name="ask, network prepared as the workflow does", run=lambda: ours(folded)),
        Contender(name="ask, network as given", run=lambda: ours(as_given)),
        Contender(name="ask, prepared, bfloat16 passes", run=lambda: ours(folded), passes="bfloat16"),
    ]
    for name, attack in peers(untouched(network), eps=EPS, step_size=STEP, steps=steps, device=options.device):
        contenders.append(Contender(name=name, run=lambda attack=attack: attack(x, y)))
    peaks = floor_peaks(options)
    flop = 2e9 * FORWARD_GMAC[""] * width**2 * images * 2 * steps
    rows = take_turns(contenders, options, flop=flop, peaks=peaks, warm_up=options.small or width < 1)
    facts = {"floor": f"{flop / 1e9:.0f} GFLOP; {product(peaks)}"}
    for row in rows:
        with torch.no_grad():
            kept = float((network(row.result).argmax(1) == y).float().mean())
        largest = float((row.result - x).abs().max()) * 255
        facts[f"outputs that withstand, {row.name}"] = f"{kept:.3f} (moved by {largest:.2f}/255)"
    shapes = {"images": images, "steps": steps, "eps": "8/255", "step": "2/255"}
    return Case(title=f"PGD, VGG16 of width {width:g}", shapes=shapes, rows=rows, facts=facts)
