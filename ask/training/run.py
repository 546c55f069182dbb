"""A training run in progress: one step, the end of an epoch, and its checkpoint.

A step never waits for the device: losses stay there, and are looked at every ``CHECK_STEPS`` steps.
"""

import copy
import math
import time

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ask.config.training import TrainingSpec, TrainJob
from ask.errors import AskError
from ask.models.networks import build, fold_batchnorm, refold
from ask.precision import Passes, network_passes, trainable
from ask.seeds import derive_seed
from ask.training.images import Arrays, ResidentImages, seeded, split_holdout
from ask.training.methods import Batch, Crafting, as_it_comes, make_method
from ask.training.record import Checkpoint, State, count_passes
from ask.training.selection import Judge, judged_by, pick_test_images

CHECK_STEPS = 50
"""Steps between two looks at the losses."""
RISE, START, END = 0.3, 1 / 25, 1 / 25 * 1e-4
"""The one-cycle schedule, as torch's OneCycleLR: share of steps that rise, first and last rate over the largest."""


class TrainingDivergedError(AskError):
    """A loss or weight is no longer finite."""


class Run:
    """Network, optimiser, data and position of one training run."""

    def __init__(
        self,
        job: TrainJob,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64],
        device: torch.device,
        checkpoint: Checkpoint,
        test: Arrays | None = None,
        peak: float | None = None,
        crafting: Crafting = as_it_comes,
        passes: Passes = "float32",
    ) -> None:
        self.job, self.training, self.device, self.checkpoint = job, job.training, device, checkpoint
        self.peak, self.crafting = peak, crafting
        self.data, self.judge = self._split((images, labels), test)
        network = build(
            job.network,
            in_channels=images.shape[1],
            image_size=images.shape[2],
            num_classes=int(labels.max()) + 1,
            seed=derive_seed(job.seed, "network"),
        )
        self.network = network.to(device, memory_format=network.memory_format)  # type: ignore[call-overload]  # stubs lack it
        # What is judged and kept: the network itself, or the average of its weights and statistics.
        self.kept = self.network if job.training.ema is None else copy.deepcopy(self.network)
        self.folded = fold_batchnorm(self.network)
        self.base, self.regulariser = make_method(job.method, job.training)
        self.learned = self.regulariser.state if self.regulariser else {}  # beside the network's weights
        self.optimiser = torch.optim.SGD(
            self.network.parameters(),
            lr=job.training.learning_rate,
            momentum=job.training.momentum,
            weight_decay=job.training.weight_decay,
            nesterov=job.training.momentum > 0,
            fused=device.type == "cuda",
        )
        # Momentum starts at zero here rather than inside the first step: fresh and resumed runs then lay it out alike,
        # and rounding does not depend on which it was.
        for parameter in self.network.parameters():
            self.optimiser.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        self.batch_size = min(job.training.batch_size, len(self.data))
        # A last batch of one image is left out: batch norm has no variance there.
        self.steps = math.ceil(len(self.data) / self.batch_size) - (len(self.data) % self.batch_size == 1)
        self.losses = torch.zeros(self.steps, device=device)
        self.correct = torch.zeros((), dtype=torch.int64, device=device)
        self.best: dict[str, Tensor] = {}
        if passes == "bfloat16" and not trainable(self.network, torch.zeros(images.shape[1:], device=device)):
            passes = "float32"
        self.state = State(passes=passes)
        self._order: Tensor | None = None
        self._started = time.monotonic()

    def _split(self, train: Arrays, test: Arrays | None) -> tuple[ResidentImages, Judge | None]:
        """Images to train on, and what judges an epoch by others, if any are set aside."""
        training, seed, (images, labels) = self.training, self.job.seed, train
        by_test = training.selection == "test"
        kept, held = split_holdout(labels, 0 if by_test else training.holdout, derive_seed(seed, "holdout"))
        judged = images[held], labels[held]
        if by_test:
            if test is None:
                raise ValueError("training.selection is 'test': pass test_images and test_labels, or set it to holdout")
            chosen = pick_test_images(len(test[1]), training.batch_size)
            judged = test[0][chosen], test[1][chosen]
        data = ResidentImages(images[kept], labels[kept], device=self.device, kind=training.augment, pad=training.pad)
        judge = Judge(ResidentImages(*judged, device=self.device), data, training, seed) if len(judged[1]) else None
        return data, judge

    @property
    def position(self) -> int:
        """Steps done since the start of training."""
        return self.state.epoch * self.steps + self.state.step

    def advance(self) -> None:
        """One step, without waiting for the device; the very first counts its passes, and refuses unsaved state."""
        if self.state.step == 0:
            self._started = time.monotonic()
        if self.position == 0:
            saved, before = self.network.state_dict(), {n: b.clone() for n, b in self.network.named_buffers()}
            with count_passes(self.network, self.folded) as passes:
                self._step()
            for name, buffer in self.network.named_buffers():
                if name not in saved and not torch.equal(buffer, before.get(name, buffer)):
                    raise AskError(
                        f"{self.job.dataset}/{self.job.model}: training changes the buffer "
                        f"{name.removeprefix('module.')}, which no file keeps: register it with persistent=True"
                    )
            gmac = round(passes.pop("macs") / 1e9, 6)
            self.state.passes_per_step = {"images": self.batch_size, **passes, "gmac": gmac}
        else:
            self._step()
        self.state.step += 1
        if self.state.step % CHECK_STEPS == 0:
            self._check()

    def _step(self) -> None:
        epoch, step = self.state.epoch, self.state.step
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.training, epoch, step, self.steps)
        torch.manual_seed(derive_seed(self.job.seed, "dropout", epoch, step))
        draws = seeded(self.device, self.job.seed, "step", epoch, step)
        if self._order is None:  # drawn on the CPU, so that every device sees the images in one order
            generator = seeded(torch.device("cpu"), self.job.seed, "order", epoch)
            self._order = torch.randperm(len(self.data), generator=generator).to(self.device)
        images, labels = self.data.draw(self._order[step * self.batch_size : (step + 1) * self.batch_size], draws)
        refold(self.folded, self.network)
        crafting = self.crafting if self.position else as_it_comes  # the first step is counted pass by pass
        batch = Batch(
            images=images, labels=labels, generator=draws, target=self.folded, source=self.data, crafting=crafting
        )
        self.network.train()
        with network_passes(self.state.passes):
            output = self.base(self.network, batch, self.regulariser.layers if self.regulariser else ())
            loss = output.loss
            if self.regulariser:
                term = self.regulariser(self.network, batch, output)
                # Addition would hide it: features that left autocast in bf16.
                assert term.dtype == torch.float32, f"the regulariser's term is {term.dtype}"
                loss = loss + term
        assert loss.dtype == torch.float32, f"the loss is {loss.dtype}"
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        if self.training.ema is not None:
            self._average(min(self.training.ema, (1 + self.position) / (10 + self.position)))
        self.losses[step] = loss.detach()
        self.correct += output.correct

    def _average(self, decay: float) -> None:
        """Move what is kept towards the network, as far as ``decay`` leaves; tied weights once."""
        kept, network = self.kept.state_dict(keep_vars=True), self.network.state_dict()
        for mean, now in dict(zip(kept.values(), network.values(), strict=True)).items():
            if mean.is_floating_point():
                mean.detach().mul_(decay).add_(now, alpha=1 - decay)  # not lerp_: -inf of a mask would be NaN
            else:  # the number of batches
                mean.copy_(now)

    def _check(self) -> None:
        """Stop at a loss that is not finite, or at such a weight when an epoch ends."""
        epoch, step, what = self.state.epoch, self.steps - 1, ""
        weights = self.network.parameters() if self.state.step == self.steps else ()
        bad = (~torch.isfinite(self.losses)).nonzero()
        if len(bad):
            step = int(bad[0])
            what = f"loss is {float(self.losses[step])}"
        elif not all(bool(torch.isfinite(p).all()) for p in weights):
            what = f"a weight is not finite (loss {float(self.losses[-1]):g})"
        if what:
            raise TrainingDivergedError(
                f"{self.job.dataset}/{self.job.model}: {what} at epoch {epoch + 1}, step {step + 1} of {self.steps} "
                f"(learning rate {learning_rate(self.training, epoch, step, self.steps):g}): "
                f"lower training.learning_rate (now {self.training.learning_rate:g})"
            )

    def end_epoch(self) -> None:
        """Judge the epoch, and begin the next one."""
        self._check()
        trained = time.monotonic() - self._started  # the look at the weights has waited for the device
        epoch, state = self.state.epoch, self.state
        clean = robust = None
        if self.judge:
            refold(self.folded, self.kept)
            clean, robust = self.judge(self.folded, self.state.passes)
            if clean > self.training.min_clean_accuracy and robust > state.best_accuracy:
                state.best_epoch, state.best_accuracy = epoch + 1, robust
                self.best = {name: tensor.detach().clone() for name, tensor in self.kept.state_dict().items()}
        seen = min(len(self.data), self.steps * self.batch_size)
        gflops = round(2 * state.passes_per_step["gmac"] * seen / self.batch_size / max(trained, 1e-6), 1)
        row = {
            "epoch": epoch + 1,
            "train_loss": float(self.losses.mean()),
            "train_robust_accuracy": int(self.correct) / seen,
            "learning_rate": learning_rate(self.training, epoch, self.steps - 1, self.steps),
            "val_clean_accuracy": clean,
            "val_robust_accuracy": robust,
            "val_attack": judged_by(self.training) if self.judge else None,
            "train_seconds": round(trained, 3),
            "seconds": round(time.monotonic() - self._started, 3),
            "gflops": gflops,
            "mfu": round(1e9 * gflops / self.peak, 4) if self.peak else None,
        }
        state.rows.append(row)
        state.epoch, state.step, state.epoch_seconds, self._order = epoch + 1, 0, 0.0, None
        self.losses.zero_()
        self.correct.zero_()

    def line(self) -> str:
        """The last epoch in one line of a log."""
        row = self.state.rows[-1]
        judged = ""
        if self.judge:
            where = "test" if self.training.selection == "test" else "held-out"
            clean, robust = row["val_clean_accuracy"], row["val_robust_accuracy"]
            judged = f", {where} clean {clean:.3f} robust {robust:.3f} ({judged_by(self.training)})"
        return (
            f"{self.job.model}: epoch {row['epoch']}/{self.training.epochs}, loss {row['train_loss']:.4f}, "
            f"robust {row['train_robust_accuracy']:.3f}{judged}, {row['seconds']:.1f} s, "
            f"{len(self.data) / max(row['seconds'], 1e-3):.0f} images/s, {row['gflops']:.0f} GFLOP/s"
            + (f" (MFU {row['mfu']:.0%})" if row["mfu"] is not None else "")
        )

    def save(self) -> None:
        """Write the checkpoint, unless the losses since the last look are bad."""
        self._check()
        if self.state.step:
            self.state.epoch_seconds = time.monotonic() - self._started
        self.checkpoint.save(self.state, best=self.best, method=self.learned, **self._tensors())

    def restore(self) -> None:
        """Continue from the checkpoint, if there is one."""
        found = self.checkpoint.load()
        if found is None:
            return
        self.state, groups = found
        for group, tensors in self._tensors().items():
            for name, tensor in tensors.items():
                tensor.copy_(groups[group][name])
        self.best = {name: tensor.to(self.device) for name, tensor in groups.get("best", {}).items()}
        self.learned.update({name: tensor.to(self.device) for name, tensor in groups.get("method", {}).items()})
        self._started = time.monotonic() - self.state.epoch_seconds

    def _tensors(self) -> dict[str, dict[str, Tensor]]:
        """What steps change in place."""
        momentum = {name: self.optimiser.state[p]["momentum_buffer"] for name, p in self.network.named_parameters()}
        so_far = {"losses": self.losses, "correct": self.correct}
        found = {"network": self.network.state_dict(), "momentum": momentum, "epoch": so_far}
        return found if self.training.ema is None else found | {"kept": self.kept.state_dict()}


def learning_rate(spec: TrainingSpec, epoch: int, step: int, steps_per_epoch: int) -> float:
    """Rate of step ``step`` in epoch ``epoch`` (both from 0): no scheduler's state, so that resuming needs none.

    ``step``: constant within an epoch, times ``gamma`` from each milestone on (torch's MultiStepLR).
    ``onecycle``: cosine rise from 1/25 of ``learning_rate`` over the first 30 % of all steps, then cosine fall to 4e-6
    of it (torch's OneCycleLR without momentum cycling; Smith and Topin, 2018).
    """
    if spec.schedule.name == "step":
        return spec.learning_rate * spec.schedule.gamma ** sum(epoch >= m for m in spec.schedule.milestones)
    total = spec.epochs * steps_per_epoch
    position, peak = epoch * steps_per_epoch + step, RISE * total - 1
    first, last, share = START, 1.0, position / peak if peak else 1.0
    if position > peak:
        first, last, share = 1.0, END, (position - peak) / (total - 1 - peak)
    return spec.learning_rate * (last + (first - last) / 2 * (1 + math.cos(math.pi * share)))
