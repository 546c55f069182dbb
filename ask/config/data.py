"""What the data step reads."""

from typing import Literal

from pydantic import Field

from ask.config.base import Spec

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
