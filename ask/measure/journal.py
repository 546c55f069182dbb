"""What is measured of a cell and not yet, or no longer, in its record: a killed cell goes on, a finished one grows.

Snakemake deletes a job's outputs before it runs and when it fails, so trials are kept where it does not look, in
``results/<run>/scratch``. An entry is a pair of files in the form of a record and its predictions, of one or more
trials; its ``key`` stands for all that decides them but their number. :func:`tend` keeps finished cells, and AdvKnn's
blocks, of which more or fewer trials are wanted, before Snakemake deletes them.
"""

import json
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from shutil import copyfile, rmtree
from typing import TYPE_CHECKING, Any

from ask import files
from ask.paths import OfData, prepared

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

COMMON = ("labels", "network_clean")
"""Predictions of a cell that are the same in all trials."""


@dataclass(frozen=True)
class Trial:
    """What was measured in one trial."""

    about: dict[str, Any]
    """Its number (``trial``), seconds, validity, and what it was measured on (JSON-able)."""
    predictions: "Mapping[str, NDArray[np.int64]]"
    """``clean`` and ``robust`` (classifiers, images), ``network_robust`` (images,); :data:`COMMON` (images,)."""


class Journal:
    """Trials of one cell.

    Args:
        output: the cell's record.
        key: what an entry must bear to be read (:func:`key_of`).
    """

    def __init__(self, output: Path, key: str) -> None:
        self.folder, self.key = folder_of(output), key

    def read(self, record: Path | None = None) -> dict[int, Trial]:
        """Whole trials by number, of the journal's entries and of a finished record."""
        import numpy as np

        found: dict[int, Trial] = {}
        for path in (*sorted(self.folder.glob("*.json")), *([record] if record else [])):
            # What is not whole is measured again.
            with suppress(OSError, ValueError, KeyError, zipfile.BadZipFile):
                entry = json.loads(path.read_text(encoding="utf-8"))
                if entry.get("key") != self.key:
                    continue
                with np.load(path.with_suffix(".npz")) as stored:
                    arrays = {name: stored[name].astype(np.int64) for name in stored}
                for place, about in enumerate(entry["by_trial"]):
                    own = {
                        name: array if name in COMMON else array[..., place, :]  # the trials' axis is the last but one
                        for name, array in arrays.items()
                    }
                    found[about["trial"]] = Trial(about, own)
        return found

    def add(self, trials: Sequence[Trial], job: Mapping[str, Any], code: str) -> None:
        """Keep trials that were measured together, of a job (a JSON document) by some code."""
        import numpy as np

        path = self.folder / f"{trials[0].about['trial']:04}-{len(trials)}.json"
        arrays = together(trials)
        path.unlink(missing_ok=True)  # one of other settings must not vouch for these
        files.write(path.with_suffix(".npz"), lambda part: np.savez_compressed(part, allow_pickle=False, **arrays))
        rows = [trial.about for trial in trials]
        files.write_json(path, {"key": self.key, "code": code, "job": job, "by_trial": rows})


def together(trials: Sequence[Trial]) -> "dict[str, NDArray[np.int64]]":
    """Predictions of several trials as a cell keeps them: (classifiers, trials, images) and (trials, images)."""
    import numpy as np

    return {
        name: array if name in COMMON else np.stack([trial.predictions[name] for trial in trials], axis=-2)
        for name, array in trials[0].predictions.items()
    }


def key_of(job: Mapping[str, Any], *read: object) -> str:
    """Digest of a job (a JSON document) but for its number of trials, and of what it reads (JSON-able)."""
    document = json.dumps([without_trials(job), read], sort_keys=True)
    return sha256(document.encode()).hexdigest()[:16]


def data_read(data: Path, job: OfData) -> str | None:
    """Digest of a data set's ``facts.json``, which holds those of its arrays; None where there is none."""
    facts = prepared(data, job) / "facts.json"
    return files.digest(facts) if facts.is_file() else None


def without_trials(job: Mapping[str, Any]) -> dict[str, Any]:
    """A job but for its number of trials."""
    return {name: value for name, value in job.items() if name != "trials"}


def ascent_of(cell: Mapping[str, Any]) -> str:
    """What cells have in common whose ascents pass through the same images (of a job, a JSON document): all but their
    number of steps, and who looks at what trials of it.
    """
    attack = {name: value for name, value in cell["attack"].items() if name != "steps"}
    return json.dumps({**cell, "attack": attack} | dict.fromkeys(("id", "trials", "classifiers")), sort_keys=True)


def share(root: Path, cells: Iterable[tuple[Path, Mapping[str, Any]]]) -> None:
    """Before a run: write down below its folder which cells are passed through, each behind the one that does so.

    Args:
        root: folder of the run.
        cells: main output of the cell of most steps, and the job of one of fewer (a JSON document).
    """
    found: dict[str, list[Any]] = {}
    for longest, job in cells:
        found.setdefault(str(longest.relative_to(root)), []).append(job)
    path = root / _ASCENTS
    if found or path.is_file():
        files.write_json(path, found)


def passed(root: Path, output: Path, cell: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Jobs of the cells that the ascent of one passes through (JSON documents): what :func:`share` has written down."""
    with suppress(OSError, ValueError):  # where no run has been, each cell is measured on its own
        found = json.loads((root / _ASCENTS).read_text(encoding="utf-8")).get(str(output.relative_to(root)), [])
        alike = [one for one in found if ascent_of(one) == ascent_of(cell)]
        return [one for one in alike if one["attack"]["steps"] < cell["attack"]["steps"]]
    return []


_ASCENTS = Path("scratch/ascents.json")


def folder_of(output: Path) -> Path:
    """Where the trials of a cell, or blocks, are kept: the path of its output below the run's ``scratch``."""
    root = output.parents[3]
    return (root / "scratch" / output.relative_to(root)).with_suffix("")


def known(output: Path, job: Mapping[str, Any], code: str) -> set[int]:
    """Numbers of the trials of a job, at most as many as it wants, that a record or the journal holds by this code.

    What the job reads is not looked at: of other weights or parameters, trials are measured again.
    """
    numbers = set()
    for path in (*folder_of(output).glob("*.json"), output):
        with suppress(OSError, ValueError, KeyError):
            entry = json.loads(path.read_text(encoding="utf-8"))
            if entry["code"] == code and without_trials(entry["job"]) == without_trials(job):
                numbers |= {about["trial"] for about in entry["by_trial"]}
    return {number for number in numbers if number < job["trials"]}


def tend(jobs: Iterable[tuple[Path, Mapping[str, Any]]]) -> None:
    """Before and after a run: keep what is about to be replaced by more or fewer trials, forget what records hold.

    Args:
        jobs: main outputs of cells and of AdvKnn's blocks, and what they shall hold (JSON documents).
    """
    for output, job in jobs:
        folder = folder_of(output)
        with suppress(OSError, ValueError, KeyError):  # not measured yet, or before trials could be told apart
            held = _header(output)
            if without_trials(held["job"]) != without_trials(job) or "key" not in held:
                continue
            count, wanted = held["job"]["trials"], job["trials"]
            if count != wanted:
                # The record vouches for the predictions, and comes last.
                for path in [output] if output.suffix == ".safetensors" else [output.with_suffix(".npz"), output]:
                    files.write(folder / f"held-{count}{path.suffix}", partial(copyfile, path))
            elif all(_lies_in(held, _header(path)) for path in folder.iterdir() if path.suffix != ".npz"):
                rmtree(folder, ignore_errors=True)


def held_blocks(output: Path, key: str) -> Iterator[Path]:
    """Whole files of AdvKnn's blocks with this key, those of most trials first."""
    found = {}
    for path in (*folder_of(output).glob("*.safetensors"), output):
        with suppress(OSError, ValueError, KeyError):
            header = _header(path)
            if header["key"] == key:
                found[path] = header["job"]["trials"]
    return iter(sorted(found, key=lambda path: -found[path]))


def _lies_in(record: Mapping[str, Any], entry: Mapping[str, Any]) -> bool:
    """Whether an entry's trials are in a record; those of another key, as of weights of today, are not yet."""
    rows, count = entry.get("by_trial", ({"trial": entry["job"]["trials"] - 1},)), record["job"]["trials"]
    return entry.get("key") == record["key"] and all(about["trial"] < count for about in rows)


def _header(path: Path) -> dict[str, Any]:
    """A record, or what :func:`ask.tensorfile.save_tensors` wrote beside tensors; jobs are documents."""
    if path.suffix == ".json":
        return dict(json.loads(path.read_text(encoding="utf-8")))
    with path.open("rb") as stream:
        head = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    found = json.loads(head["__metadata__"]["metadata"])
    return {**found, "job": json.loads(found["job"])}
