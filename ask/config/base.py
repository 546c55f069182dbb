"""The common base of all configuration types, and value types they share."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Similarity = Literal["cosine", "l2"]
Precision = Literal["auto", "float32", "bfloat16"]
"""Of a network's passes in training and in attacks (:mod:`ask.precision`)."""
Layer = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$")]
"""Name of a layer: one of :data:`LAYERS`, or what the configuration of a network of one's own calls it."""
LAYERS: tuple[Layer, ...] = ("input", "conv1", "conv2", "conv3", "conv4", "conv5")
"""Layers of the paper's networks; ``input`` is the identity feature (raw pixels)."""


class Spec(BaseModel):
    """Immutable, complete (unknown keys are errors), finite, documented by attribute docstrings."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


Pixels = Annotated[float, Field(ge=0, le=255)]
"""A perturbation size or step as n of 255, the unit of the paper."""
Key = Annotated[str, Field(exclude_if=lambda key: not key)]
"""A data set's key: what its arrays are made from, in 8 hex digits. Empty, and not said in a job's document, for a
published data set as it is, under its own name."""

Source = Literal["cifar10", "imagenette", "mnist", "fashion_mnist", "digits", "images"]


class DataSpec(Spec):
    """One data set: where it comes from and how its arrays are made."""

    source: Source
    """Publisher's data set, scikit-learn's embedded `digits`, or `images`: your own folder or zip of
    `<split>/<class>/<file>`, with splits `train` and `test` (or `val`)."""
    path: str | None = None
    """Folder or zip of a user's own images; needed by source `images` only."""
    image_size: int | None = Field(default=None, ge=4, le=1024)
    """Side in pixels to which images are resized, aspect not kept (paper, App. D-a); null keeps the published size."""
