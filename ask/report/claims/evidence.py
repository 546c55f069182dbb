"""What claims are judged from: the numbers of a run's tables and figures, with their trials.

A claim asks for settings in the paper's words; on stand-in data sets it gets the stand-in's numbers. What it reads is
noted, and so is what it asks for in vain.
"""

import contextlib
import csv
import functools
import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ask.errors import AskError
from ask.paths import Run
from ask.report.numbers import Json
from ask.statistics import summarise

WORDS = {
    **{f"conv{i}": f"Conv {i}" for i in range(1, 6)},
    "conv3+conv4": "Conv 3, 4",
    "l2": "l2 distance",
    "at": "AT",
    "at-snn": "AT+SNN",
    "ask-def": "ASK-Def",
    "advknn": "AdvKnn",
    "dknn": "DkNN-Atk",
    "table01": "Table 1",
    "table02": "Table 2",
}
"""How a setting reads in a sentence, where not as it is."""


class MissingEvidenceError(AskError):
    """The run holds no such number; the message says which."""


@dataclass(frozen=True)
class Measure:
    """A quantity, trial by trial. Trial t of two measures shares reference set and random start, so they are paired."""

    trials: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over trials."""
        return statistics.fmean(self.trials)

    @property
    def ci95(self) -> float | None:
        """Half width of the 95 % t-interval; None with one trial."""
        half_width: float | None = summarise(self.trials)["ci95"]
        return half_width

    @property
    def surely_positive(self) -> bool:
        """Whether the interval lies above zero."""
        return self.ci95 is not None and self.mean > self.ci95

    def __sub__(self, other: "Measure") -> "Measure":
        """Difference by trial; of measures with different numbers of trials, the common first ones."""
        return Measure(tuple(a - b for a, b in zip(self.trials, other.trials, strict=False)))

    def __neg__(self) -> "Measure":
        return Measure(tuple(-a for a in self.trials))


class Numbers(dict[Any, Measure]):
    """Measures by setting; asking for a setting that was not measured is a lack of evidence."""

    def __missing__(self, setting: object) -> Measure:
        raise MissingEvidenceError(f"no number of {worded(setting)}")


def across(measures: Iterable[Measure], combine: Callable[[Sequence[float]], float] = statistics.fmean) -> Measure:
    """One measure from several, trial by trial: their mean, or what ``combine`` makes of them."""
    return Measure(tuple(combine(trial) for trial in zip(*(m.trials for m in measures), strict=False)))


def lowest(measures: Mapping[Any, Measure]) -> tuple[Any, Measure]:
    """Setting and measure of the lowest mean. The interval is that setting's own: it leaves the choice out."""
    return min(measures.items(), key=lambda item: item[1].mean)


def highest(measures: Mapping[Any, Measure]) -> tuple[Any, Measure]:
    """Setting and measure of the highest mean."""
    return max(measures.items(), key=lambda item: item[1].mean)


def worded(setting: object) -> str:
    """A setting in a sentence: ``("cosine", "conv3+conv4", 8.0)`` reads "cosine, Conv 3, 4, eps = 8/255"."""
    if isinstance(setting, tuple):
        return ", ".join(worded(part) for part in setting if part != "")
    if isinstance(setting, float):
        return f"eps = {setting:g}/255"
    return WORDS.get(str(setting), str(setting))


@dataclass
class Evidence:
    """The numbers of a run, and what one claim has read of them."""

    run: Run
    kinds: Mapping[str, str]
    """Kinds of the run's artifacts, by id."""
    stand_ins: Mapping[str, Json]
    """``{"dataset", "eps_scale"}`` in place of the paper's data sets, where it has some."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Data sets as the reader knows them."""
    stored: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Numbers by artifact, shared by all claims."""
    artifacts: dict[str, None] = field(default_factory=dict)
    """Artifacts that were asked for."""
    read: dict[str, None] = field(default_factory=dict)
    """References of the numbers that were read."""
    absent: dict[str, None] = field(default_factory=dict)
    """What was asked for in vain, in words."""

    def fresh(self) -> "Evidence":
        """The same numbers, for another claim."""
        return Evidence(self.run, self.kinds, self.stand_ins, self.labels, self.stored)

    def by(self, artifact: str, *columns: str, **wanted: object) -> Numbers:
        """Numbers of an artifact with the wanted settings, by the values of ``columns`` (a tuple if several).

        Args:
            artifact: id of a table or figure.
            columns: what tells the numbers apart.
            wanted: settings; ``dataset`` and ``eps`` as the paper has them, everything else as in the tidy CSV.

        Raises:
            MissingEvidenceError: there is none.
        """
        scale = 1.0
        if "dataset" in wanted:
            stand_in = self.stand_ins.get(str(wanted["dataset"]), {})
            label = self.labels.get(str(wanted["dataset"]), str(wanted["dataset"]))
            scale = stand_in.get("eps_scale", 1.0)
            wanted["dataset"] = stand_in.get("dataset", wanted["dataset"])
        else:
            label = ""
        if "eps" in wanted:
            wanted["eps"] = round(float(str(wanted["eps"])) * scale, 6)
        found = Numbers()
        for row in self._numbers(artifact):
            values = row["columns"] | {key: row[key] for key in ("line", "x") if key in row}
            if all(values.get(name) == value for name, value in wanted.items()):
                key = tuple(values[name] for name in columns)
                found[key[0] if len(columns) == 1 else key] = Measure(tuple(row["trials"]))
                self.read |= dict.fromkeys(filter(None, [row["reference"], row.get("baseline")]))
        if not found:
            rest = [worded(value) for name, value in wanted.items() if name != "dataset"]
            self.absent[f"{artifact} has no number of {', '.join(filter(None, [label, *rest]))}"] = None
            raise MissingEvidenceError(next(reversed(self.absent)))
        return found

    def get(self, artifact: str, **wanted: object) -> Measure:
        """The one number with these settings; raises MissingEvidenceError."""
        return next(iter(self.by(artifact, **wanted).values()))

    def together(self, *parts: Callable[[], dict[Any, Measure]]) -> Numbers:
        """Numbers of several parts; those that the run lacks are noted.

        Raises:
            MissingEvidenceError: it lacks all.
        """
        found = Numbers()
        for part in parts:
            with contextlib.suppress(MissingEvidenceError):
                found |= part()
        if not found:
            raise MissingEvidenceError("; ".join(self.absent))
        return found

    def over(self, datasets: Iterable[str], numbers: Callable[[str], dict[Any, Measure]]) -> Numbers:
        """Numbers of several data sets together, keyed by the data set's label and their own key."""

        def part(dataset: str) -> dict[Any, Measure]:
            label = self.labels.get(dataset, dataset)
            return {(label, *(key if isinstance(key, tuple) else (key,))): m for key, m in numbers(dataset).items()}

        return self.together(*(functools.partial(part, dataset) for dataset in datasets))

    def rows(self, artifact: str) -> list[dict[str, str]]:
        """The tidy CSV of an artifact, for what is no number."""
        self._ask(artifact)
        with self._file(artifact, ".csv").open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    def _numbers(self, artifact: str) -> list[dict[str, Any]]:
        self._ask(artifact)
        if artifact not in self.stored:
            self.stored[artifact] = json.loads(self._file(artifact, ".json").read_text(encoding="utf-8"))
        return self.stored[artifact]

    def _ask(self, artifact: str) -> None:
        self.artifacts[artifact] = None
        if artifact not in self.kinds:
            reason = f"{artifact} is not part of run {self.run.root.name}"
        elif not self._file(artifact, ".csv").is_file():
            reason = f"{artifact} has not been made yet"
        else:
            return
        self.absent[reason] = None
        raise MissingEvidenceError(reason)

    def _file(self, artifact: str, suffix: str) -> Any:
        path = self.run.table(artifact) if self.kinds[artifact] == "table" else self.run.figure(artifact)
        return path.with_suffix(suffix)
