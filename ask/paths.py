"""Where every file of a run lies: the one place that knows the layout.

Everything is relative to the project folder, so that commands and metadata hold no machine's paths.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


def raw(root: Path, source: str) -> Path:
    """Folder of a publisher's files, as downloaded."""
    return root / "raw" / source


class OfData(Protocol):
    """A job that reads or makes a data set's arrays."""

    @property
    def dataset(self) -> str:
        """The data set's name."""

    @property
    def data(self) -> str:
        """Key of what its arrays are made from; empty for a published data set as it is, under its own name."""


def prepared(root: Path, job: OfData) -> Path:
    """Folder of ``{train,test}_{images,labels}.npy`` and ``facts.json``."""
    return root / "prepared" / "-".join(filter(None, [job.dataset, job.data]))


@dataclass(frozen=True)
class Run:
    """Files of one run below ``results/<run>``."""

    root: Path

    def model(self, dataset: str, model: str) -> Path:
        """Folder of ``weights.safetensors``, ``last.safetensors``, ``history.csv`` and ``config.yaml``."""
        return self.root / "models" / dataset / model

    def weights(self, dataset: str, model: str) -> Path:
        """Weights of a model, of the epoch that was kept."""
        return self.model(dataset, model) / "weights.safetensors"

    def index(self, dataset: str, model: str, layer: str) -> Path:
        """Features of the training set at one layer: float32, shape (images, dimensions)."""
        return self.root / "index" / dataset / model / f"{layer}.npy"

    def calibration(self, dataset: str, model: str, name: str) -> Path:
        """Picked tau or omega and the grid it was picked from."""
        return self.root / "calibration" / dataset / model / f"{name}.json"

    def blocks(self, dataset: str, model: str, name: str) -> Path:
        """AdvKnn's deep kNN blocks of one layer: ``weight``, ``bias``, … (trials, …)."""
        return self.root / "blocks" / dataset / model / f"{name}.safetensors"

    def example(self, name: str) -> Path:
        """One image with its nearest references, for a figure (JSON); the pictures lie beside it (``.npz``)."""
        return self.root / "examples" / f"{name}.json"

    def cell(self, dataset: str, model: str, name: str) -> Path:
        """Measurements of one cell (JSON); predictions lie beside it (``.npz``)."""
        return self.root / "cells" / dataset / model / f"{name}.json"

    def table(self, name: str) -> Path:
        """Tidy CSV of a table; its trials (``.json``), ``.md``, ``.tex`` and ``.html`` lie beside it."""
        return self.root / "tables" / f"{name}.csv"

    def figure(self, name: str) -> Path:
        """Drawn values of a figure (CSV); their trials (``.json``), ``.svg``, ``.png`` and ``.pdf`` lie beside it."""
        return self.root / "figures" / f"{name}.csv"

    @property
    def claims(self) -> Path:
        """The ledger: every claim of the paper with what was measured (CSV)."""
        return self.root / "claims.csv"

    @property
    def report(self) -> Path:
        """The self-contained report page."""
        return self.root / "report" / "index.html"

    def log(self, output: Path) -> Path:
        """What a job printed: the path of its output, under ``logs``."""
        return self._beside("logs", output).with_suffix(".log")

    def benchmark(self, output: Path) -> Path:
        """Time of a job as Snakemake noted it: the path of its output, under ``benchmarks``."""
        return self._beside("benchmarks", output).with_suffix(".tsv")

    def _beside(self, folder: str, output: Path) -> Path:
        if not output.is_relative_to(self.root):
            return output.parent / folder / output.name  # of data, which runs share
        path = self.root / folder / output.relative_to(self.root)
        return path.with_name("train") if path.name == "weights.safetensors" else path
