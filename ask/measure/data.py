"""The steps that make data sets."""

import os
from pathlib import Path

from ask.config.base import DataSpec
from ask.config.jobs import DownloadJob, PrepareJob
from ask.data.downloading import download
from ask.data.preparing import prepare
from ask.measure.place import Place
from ask.paths import prepared


def download_files(job: DownloadJob, place: Place) -> Path:
    """Fetch a data set's published files; returns their manifest."""
    spec = DataSpec.model_validate({"source": job.source})
    return download(spec, place.data, place.mirror or os.environ.get("ASK_DATA_MIRROR") or None)


def prepare_arrays(job: PrepareJob, place: Place) -> Path:
    """Make a data set's arrays; returns their folder."""
    if job.spec.source in ("digits", "images"):
        download(job.spec, place.data, None)  # nothing to fetch: notes what is there
    return prepare(job.spec, place.data, prepared(place.data, job).name)
