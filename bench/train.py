"""A step of adversarial training: ours against a plain loop; then all methods of the paper beside AT."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from ask.config.training import ModelSpec, NetworkSpec, TrainingSpec, TrainJob
from ask.training.methods import Replayed
from ask.training.record import Checkpoint
from ask.training.run import Run

from .measure import Case, Contender, Options, Peaks, floor_peaks, product, take_turns
from .networks import untouched
from .plain_training import PlainTraining

METHODS = {
    "AT": ModelSpec(label="AT", base="at"),
    "AT+SNN": ModelSpec(label="AT+SNN", base="at", regulariser="snn"),
    "ASK-Def": ModelSpec(label="ASK-Def", base="at", regulariser="ask"),
    "TRADES": ModelSpec(label="TRADES", base="trades"),
    "ASK-Def(TRADES)": ModelSpec(label="ASK-Def(TRADES)", base="trades", regulariser="ask"),
}


def cases(options: Options) -> Iterator[Case]:
    """Ours and the plain loop at full width; the methods on a narrow network, where a CPU takes seconds a step."""
    gpu = options.device.type == "cuda"
    peaks = floor_peaks(options)
    with TemporaryDirectory() as folder:
        where = Path(folder)
        if options.small:
            yield _against_plain(options, where, peaks, 1 / 32, 8)
            yield _methods(options, where, peaks, 1 / 32, 8)
            return
        yield _against_plain(options, where, peaks, 1.0, 128 if gpu else options.count(32))
        yield _methods(options, where, peaks, 1.0 if gpu else 1 / 4, 128 if gpu else options.count(64))


def _run(options: Options, folder: Path, name: str, width: float, batch: int, **how: Any) -> Run:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (8 * batch, 3, 32, 32), np.uint8)
    labels = np.arange(len(images)) % 10
    training = TrainingSpec(epochs=10_000, batch_size=batch, holdout=0, steps=2 if options.small else 10)
    job = TrainJob(
        dataset="noise",
        model="bench",
        network=NetworkSpec(name="vgg16", width=width),
        method=METHODS[name],
        training=training,
        seed=0,
    )
    run = Run(job, images, labels, options.device, Checkpoint(folder, job, "", ""), **how)
    run.advance()  # the first step counts its passes
    return run


def _step(run: Run) -> None:
    run.advance()
    if run.state.step == run.steps:
        run.end_epoch()


def _against_plain(options: Options, folder: Path, peaks: Peaks, width: float, batch: int) -> Case:
    run = _run(options, folder, "AT", width, batch)
    half = _run(options, folder, "AT", width, batch, passes="bfloat16")
    spec = run.training
    network = untouched(run.network).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # as in ask.training.run
    settings = {"eps": spec.eps / 255, "step_size": spec.step_size / 255, "steps": spec.steps}
    plain = PlainTraining(network, **settings, learning_rate=spec.learning_rate)
    images = torch.rand((batch, 3, 32, 32), device=options.device)
    labels = torch.arange(batch, device=options.device) % 10
    contenders = [
        Contender(name="ask", run=lambda: _step(run)),
        Contender(name="plain eager fp32 loop", run=lambda: plain.step(images, labels)),
        Contender(name="ask, bfloat16 passes", run=lambda: _step(half), passes="bfloat16"),
    ]
    if options.device.type == "cuda":
        graphs = _run(options, folder, "AT", width, batch, crafting=Replayed())
        contenders.append(Contender(name="ask, CUDA graphs", run=lambda: _step(graphs)))
    flop = 2e9 * run.state.passes_per_step["gmac"]
    rows = take_turns(contenders, options, flop=flop, peaks=peaks)
    facts = {
        "floor": f"{flop / 1e9:.0f} GFLOP a step; {product(peaks)}; fraction: MFU",
        "images a second": ", ".join(f"{row.name} {batch / row.median:.2f}" for row in rows),
    }
    shapes = {"batch": batch, "side": 32, "PGD steps": spec.steps}
    return Case(title=f"A step of AT, VGG16 of width {width:g}", shapes=shapes, rows=rows, facts=facts)


def _methods(options: Options, folder: Path, peaks: Peaks, width: float, batch: int) -> Case:
    runs = {name: _run(options, folder, name, width, batch) for name in METHODS}
    contenders = [Contender(name=name, run=lambda run=run: _step(run)) for name, run in runs.items()]
    rows = take_turns(contenders, options)
    macs = {name: run.state.passes_per_step["gmac"] for name, run in runs.items()}
    for row in rows:
        row.floor = round(2e9 * macs[row.name] / peaks["float32"] / row.median, 3)
    relative = {name: f"{value / macs['AT']:.2f}" for name, value in macs.items()}
    facts = {"multiply-adds of a step over AT's": ", ".join(f"{name} {value}" for name, value in relative.items())}
    shapes = {"batch": batch, "side": 32, "PGD steps": next(iter(runs.values())).training.steps}
    return Case(title=f"A step of each method, VGG16 of width {width:g}", shapes=shapes, rows=rows, facts=facts)
