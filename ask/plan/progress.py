"""How far a run is and how long it still takes, said while it runs."""

import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from ask.config.training import TrainJob
from ask.plan.cost import cost_left, costs
from ask.plan.planner import Plan
from ask.plan.predict import finished, gain_of, predictor

EVERY = 300.0
"""Seconds between two lines."""


class Progress:
    """Work done of the jobs that run now; a job's work is the seconds that it is predicted to take.

    Args:
        plan: of the run.
        outputs: main outputs of the jobs; one is done when its output is newer than this object.
        cores: how many of them work at a time, until there is a pace to go by.
        clock: seconds since the epoch.
    """

    def __init__(self, plan: Plan, outputs: Iterable[Path], cores: int, clock: Callable[[], float] = time.time) -> None:
        self.plan, self.cores, self.clock, self.began = plan, cores, clock, clock()
        counted = costs(plan)
        known = predictor(finished(plan, counted), gain=gain_of(plan.run))
        self.work = {
            path: known.speed(plan.tasks[path].group).seconds(cost_left(plan.tasks[path], counted[path]).flop)
            for path in outputs
            if path in plan.tasks
        }
        self.before = self._done()

    def line(self) -> str:
        """Jobs, share of the work, and the time that what is left takes at the pace so far."""
        total, done, elapsed = sum(self.work.values()), self._done(), self.clock() - self.began
        gained = done - self.before
        pace = gained / elapsed if gained > 0 and elapsed > 0 else self.cores
        jobs = sum(self._share(path) == 1 for path in self.work)
        left = (total - done) / pace
        words = f"{max(1, left / 60):.0f} min" if left < 7200 else f"{left / 3600:.1f} h"
        return f"{jobs} of {len(self.work)} jobs, {done / max(total, 1e-9):.0%} of the work, about {words} left"

    def _done(self) -> float:
        return sum(work * self._share(path) for path, work in self.work.items())

    def _share(self, path: Path) -> float:
        """Of a job's work: all or nothing, but for the epochs that a training has finished."""
        if path.is_file() and path.stat().st_mtime >= self.began:
            return 1.0
        job = self.plan.tasks[path].job
        if not isinstance(job, TrainJob):
            return 0.0
        try:
            epochs = len(path.with_name("history.csv").read_text(encoding="utf-8").splitlines()) - 1
        except OSError:
            return 0.0
        return min(epochs / job.training.epochs, 0.99)


def watch(plan: Plan, outputs: Iterable[Path], cores: int) -> None:
    """Say so now and then on stderr, from a thread that ends with the process."""
    progress = Progress(plan, outputs, cores)

    def say() -> None:
        while True:
            time.sleep(EVERY)
            sys.stderr.write(f"ask: {progress.line()}\n")

    threading.Thread(target=say, daemon=True).start()
