"""A training run in progress: one step, the end of an epoch, and its checkpoint.

A step never waits for the device: losses stay there, and are looked at every ``CHECK_STEPS`` steps.
"""

import math
import time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ask.config.training import TrainJob
from ask.errors import AskError
from ask.models.networks import build, fold_batchnorm, refold
from ask.seeds import derive_seed
from ask.training.checkpoint import Checkpoint, State
from ask.training.crafting import Crafting, as_it_comes
from ask.training.images import ResidentImages, seeded, split_holdout
from ask.training.methods import Batch, make_method
from ask.training.passes import count_passes
from ask.training.schedule import learning_rate
from ask.training.selection import Judge, pick_test_images

CHECK_STEPS = 50
"""Steps between two looks at the losses."""


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
        test: tuple[NDArray[np.uint8], NDArray[np.int64]] | None = None,
        peak: float | None = None,
        crafting: Crafting = as_it_comes,
    ) -> None:
        self.peak, self.crafting = peak, crafting
        self.job, self.training, self.device, self.checkpoint = job, job.training, device, checkpoint
        by_test = job.training.selection == "test"
        kept, held = split_holdout(labels, 0 if by_test else job.training.holdout, derive_seed(job.seed, "holdout"))
        self.data = ResidentImages(images[kept], labels[kept], device=device, kind=job.training.augment)
        judged = images[held], labels[held]
        if by_test:
            if test is None:
                raise ValueError("training.selection is 'test': pass test_images and test_labels, or set it to holdout")
            chosen = pick_test_images(len(test[1]), job.training.batch_size)
            judged = test[0][chosen], test[1][chosen]
        self.judge: Judge | None = None
        if len(judged[1]):
            self.judge = Judge(ResidentImages(*judged, device=device), self.data, job.training, job.seed)
        network = build(
            job.network,
            in_channels=images.shape[1],
            image_size=images.shape[2],
            num_classes=int(labels.max()) + 1,
            seed=derive_seed(job.seed, "network"),
        )
        self.network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # stubs lack it
        self.folded = fold_batchnorm(self.network)
        self.base, self.regulariser = make_method(job.method, job.training)
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
        self.state = State()
        self._order: tuple[int, Tensor] | None = None
        self._started = time.monotonic()

    @property
    def position(self) -> int:
        """Steps done since the start of training."""
        return self.state.epoch * self.steps + self.state.step

    def advance(self) -> None:
        """One step of the optimiser, without waiting for the device; the very first one counts its passes."""
        if self.state.step == 0:
            self._started = time.monotonic() - self.state.epoch_seconds
        if self.position == 0:
            with count_passes(self.network, self.folded) as passes:
                self._step()
            counts = {"images": self.batch_size, "forward": passes.forward, "backward": passes.backward}
            self.state.passes_per_step = {**counts, "gmac": round(passes.macs / 1e9, 6)}
        else:
            self._step()
        self.state.step += 1
        if self.state.step % CHECK_STEPS == 0:
            self._check_losses()

    def _step(self) -> None:
        epoch, step = self.state.epoch, self.state.step
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.training, epoch, step, self.steps)
        torch.manual_seed(derive_seed(self.job.seed, "dropout", epoch, step))
        draws = seeded(self.device, self.job.seed, "step", epoch, step)
        images, labels = self.data.draw(self._indices(epoch, step), draws)
        refold(self.folded, self.network)
        batch = Batch(
            images=images,
            labels=labels,
            generator=draws,
            target=self.folded,
            source=self.data,
            crafting=self.crafting if self.position else as_it_comes,  # the first step is counted pass by pass
        )
        self.network.train()
        layers = self.regulariser.layers if self.regulariser else ()
        output = self.base(self.network, batch, layers)
        loss = output.loss
        if self.regulariser:
            loss = loss + self.regulariser(self.network, batch, output)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        self.losses[step] = loss.detach()
        self.correct += output.correct

    def _indices(self, epoch: int, step: int) -> Tensor:
        if self._order is None or self._order[0] != epoch:
            # Drawn on the CPU, so that every device sees the images in one order.
            order = torch.randperm(len(self.data), generator=seeded(torch.device("cpu"), self.job.seed, "order", epoch))
            self._order = epoch, order.to(self.device)
        return self._order[1][step * self.batch_size : (step + 1) * self.batch_size]

    def _check_losses(self) -> None:
        bad = (~torch.isfinite(self.losses)).nonzero()
        if len(bad):
            step = int(bad[0])
            self._diverged(f"loss is {float(self.losses[step])}", step)

    def _diverged(self, what: str, step: int) -> None:
        epoch = self.state.epoch
        rate = learning_rate(self.training, epoch, step, self.steps)
        raise TrainingDivergedError(
            f"{self.job.dataset}/{self.job.model}: {what} at epoch {epoch + 1}, step {step + 1} of {self.steps} "
            f"(learning rate {rate:g}): lower training.learning_rate (now {self.training.learning_rate:g})"
        )

    def end_epoch(self) -> None:
        """Judge the epoch, and begin the next one."""
        self._check_losses()
        if not all(bool(torch.isfinite(p).all()) for p in self.network.parameters()):
            self._diverged(f"a weight is not finite (loss {float(self.losses[-1]):g})", self.steps - 1)
        trained = time.monotonic() - self._started  # the look at the weights has waited for the device
        epoch, state = self.state.epoch, self.state
        seen = min(len(self.data), self.steps * self.batch_size)
        row: dict[str, Any] = {
            "epoch": epoch + 1,
            "train_loss": float(self.losses.mean()),
            "train_robust_accuracy": int(self.correct) / seen,
            "learning_rate": learning_rate(self.training, epoch, self.steps - 1, self.steps),
        }
        if self.judge:
            refold(self.folded, self.network)
            clean, robust = self.judge(self.folded)
            row |= {"val_clean_accuracy": clean, "val_robust_accuracy": robust}
            if clean > self.training.min_clean_accuracy and robust > state.best_accuracy:
                state.best_epoch, state.best_accuracy = epoch + 1, robust
                self.best = {name: tensor.detach().clone() for name, tensor in self.network.state_dict().items()}
        row["train_seconds"] = round(trained, 3)
        row["seconds"] = round(time.monotonic() - self._started, 3)
        gmac = state.passes_per_step["gmac"] * seen / self.batch_size
        row["gflops"] = round(2 * gmac / max(trained, 1e-6), 1)
        if self.peak:
            row["mfu"] = round(1e9 * row["gflops"] / self.peak, 4)
        state.rows.append(row)
        state.seconds += row["seconds"]
        state.epoch, state.step, state.epoch_seconds = epoch + 1, 0, 0.0
        self.losses.zero_()
        self.correct.zero_()

    def line(self) -> str:
        """The last epoch in one line of a log."""
        row = self.state.rows[-1]
        judged = ""
        if self.judge:
            where = "test" if self.training.selection == "test" else "held-out"
            judged = f", {where} clean {row['val_clean_accuracy']:.3f} robust {row['val_robust_accuracy']:.3f}"
        return (
            f"{self.job.model}: epoch {row['epoch']}/{self.training.epochs}, loss {row['train_loss']:.4f}, "
            f"robust {row['train_robust_accuracy']:.3f}{judged}, {row['seconds']:.1f} s, "
            f"{len(self.data) / max(row['seconds'], 1e-3):.0f} images/s, {row['gflops']:.0f} GFLOP/s"
            + (f" (MFU {row['mfu']:.0%})" if "mfu" in row else "")
        )

    def save(self) -> None:
        """Write the checkpoint, unless the losses since the last look are bad."""
        self._check_losses()
        if self.state.step:
            self.state.epoch_seconds = time.monotonic() - self._started
        self.checkpoint.save(
            self.state,
            network=self.network.state_dict(),
            best=self.best,
            momentum=self._momentum(),
            method=self.learned,
            epoch={"losses": self.losses, "correct": self.correct},
        )

    def restore(self) -> None:
        """Continue from the checkpoint, if there is one."""
        found = self.checkpoint.load()
        if found is None:
            return
        self.state, groups = found
        self.network.load_state_dict(groups["network"])
        for name, buffer in self._momentum().items():
            buffer.copy_(groups["momentum"][name])
        self.best = {name: tensor.to(self.device) for name, tensor in groups.get("best", {}).items()}
        self.learned.update({name: tensor.to(self.device) for name, tensor in groups.get("method", {}).items()})
        self.losses.copy_(groups["epoch"]["losses"])
        self.correct.copy_(groups["epoch"]["correct"])
        self._started = time.monotonic() - self.state.epoch_seconds

    @property
    def learned(self) -> dict[str, Tensor]:
        """What the regulariser has learned beside the network's weights."""
        return self.regulariser.state if self.regulariser else {}

    def _momentum(self) -> dict[str, Tensor]:
        return {name: self.optimiser.state[p]["momentum_buffer"] for name, p in self.network.named_parameters()}
