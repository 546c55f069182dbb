"""Tasks and what they need of each other.

The one graph of a run: Snakemake's rules, ``plan``, ``status``, ``why`` and slices all read it.
"""

import json
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

from ask import files
from ask.measure.journal import known
from ask.paths import Run
from ask.plan.provenance import fingerprint
from ask.steps import LAST, LONGEST, RENDERED, STEPS, Step, modules_of

ON_NETWORKS = ("training", "calibration", "attacks", "analyses")
"""Stages of which most is passes that may be in bfloat16."""
WIDE = " of wide networks"
JOBS = Path(".snakemake/ask-jobs")
"""Documents that are too long for a command line."""


@dataclass(frozen=True)
class Task:
    """One job: a step, its slice of the configuration, what it makes and what it reads."""

    name: str
    """Of its step."""
    job: Any
    """A :class:`ask.config.base.Spec`, or a plain document."""
    output: Path
    """Its main output."""
    needs: tuple[Path, ...] = ()
    """Files that it reads, most of them other tasks' main outputs."""
    after: Path | None = None
    """A task's main output that is best made before, if it is made at all: a cell whose ascent passes through this
    one's (:func:`ask.measure.journal.share`)."""

    @property
    def step(self) -> Step:
        """What kind of job it is."""
        return STEPS[self.name]

    @property
    def evidence(self) -> list[Path]:
        """A record, and the predictions beside it if it has any."""
        return [self.output, *(self.output.with_suffix(one) for one in self.step.suffixes if one == ".npz")]

    @property
    def outputs(self) -> list[Path]:
        """All files that it makes, the main one first."""
        found = [self.output, *(self.output.with_suffix(suffix) for suffix in self.step.suffixes)]
        return list(dict.fromkeys([*found, *(self.output.with_name(name) for name in self.step.also)]))

    @cached_property
    def text(self) -> str:
        """The job as one JSON document: what its command receives, and what decides whether it runs again."""
        if isinstance(self.job, dict):
            return json.dumps(self.job, separators=(",", ":"))
        return str(self.job.model_dump_json())

    @cached_property
    def argument(self) -> str:
        """What its command is given: the document, or ``@`` and the file that holds it, where it is too long for that.

        The file's name changes with the document, and the file is written if it is not there.
        """
        if len(whole := self.text.encode()) <= LONGEST:
            return self.text
        path = JOBS / f"{sha256(whole).hexdigest()[:20]}.json"
        return f"@{path if path.is_file() else files.write_text(path, self.text)}"

    @cached_property
    def document(self) -> dict[str, Any]:
        """The same, read."""
        return dict(json.loads(self.text))

    @cached_property
    def modules(self) -> tuple[str, ...]:
        """Modules whose code decides its results."""
        return modules_of(self.name, self.document)

    @property
    def code(self) -> str:
        """Fingerprint of that code; it changes when behaviour may change, not with a comment."""
        return fingerprint(self.modules)

    @property
    def group(self) -> str:
        """Its stage; apart on raw pixels, where the arithmetic of an ascent is not counted, and of wide networks.

        Their convolutions come nearer to what a processor can do: of half of the paper's channels, or more.
        """
        features, stage = getattr(self.job, "features", None), self.step.stage
        if features is not None and features.network is None:
            return f"{stage} on pixels"
        network = getattr(features or self.job, "network", None)
        wide = network is not None and network.name is not None and network.width >= 0.5
        return f"{stage}{WIDE}" if wide and stage in ON_NETWORKS else stage

    @property
    def memory(self) -> int:
        """MB that its attack takes: of a wide network's first layers the features are large."""
        layers = getattr(getattr(self.job, "attack", None), "layers", ())
        return 16_000 if WIDE in self.group and not {"conv1", "conv2"}.isdisjoint(layers) else 8000

    @property
    def done(self) -> bool:
        """Whether its output is there; nothing is said of whether it is up to date."""
        return self.output.is_file()

    @property
    def whole(self) -> bool:
        """Whether it is done and, if it shows what others made, all of that is there (`ask render` shows what is)."""
        return self.done and (self.step.stage not in (RENDERED, LAST) or all(need.is_file() for need in self.needs))

    @property
    def counts_trials(self) -> bool:
        """Whether it is measured trial by trial, and keeps what it has (:mod:`ask.measure.journal`)."""
        return self.name == "attack"

    def trials_left(self, made: Container[Path | None] = ()) -> int:
        """Trials that are still to be measured: all of them where its weights or parameters are ``made`` anew."""
        read = (need for need in self.needs if need.name == "weights.safetensors" or "calibration" in need.parts)
        kept = () if any(need in made for need in read) else known(self.output, self.document, self.code)
        return int(self.document["trials"]) - len(kept)

    def seconds(self, run: Run) -> float | None:
        """Wall-clock time that it took, if Snakemake noted it."""
        try:
            header, values = (
                line.split("\t") for line in run.benchmark(self.output).read_text(encoding="utf-8").splitlines()[:2]
            )
        except (OSError, ValueError):  # not noted, or no output of the run's own
            return None
        return float(dict(zip(header, values, strict=False)).get("s", "nan"))


Tasks = Mapping[Path, Task]
"""Tasks by their main outputs."""


def required(tasks: Tasks, targets: Iterable[Path], *, undone: bool = False) -> set[Path]:
    """Outputs of all jobs that targets need, themselves included; or of those still to do, and what only they need."""
    found: set[Path] = set()
    waiting = list(targets)
    while waiting:
        path = waiting.pop()
        if path in tasks and path not in found and not (undone and tasks[path].whole):
            found.add(path)
            waiting += tasks[path].needs
    return found


def in_order(tasks: Tasks) -> Iterator[Task]:
    """All tasks, each after those that it needs."""
    seen: set[Path] = set()

    def visit(task: Task) -> Iterator[Task]:
        if task.output not in seen:
            seen.add(task.output)
            for need in task.needs:
                if need in tasks:
                    yield from visit(tasks[need])
            yield task

    for task in tasks.values():
        yield from visit(task)
