"""The common base of all configuration types, and value types they share."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, get_args

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


def explain(kind: type[Spec], mistake: Mapping[str, Any]) -> str:
    """One mistake as `where: what; allowed; fix`."""
    path = [str(part) for part in mistake["loc"] if "[" not in str(part)]  # but for which of several types
    place = ".".join(path)
    if mistake["type"] == "extra_forbidden":
        allowed = _options_at(kind, path[:-1])
        return f"{place}: unknown option; allowed here: {', '.join(allowed)}; remove it or mend its spelling"
    if mistake["type"] == "missing":
        return f"{place}: missing; add it"
    if mistake["type"] == "value_error":  # of our own
        return ": ".join(filter(None, (place, str(mistake["ctx"]["error"]))))
    given = mistake["input"]
    shown = f" (got {given!r})" if not isinstance(given, Mapping) else ""
    said = (mistake["msg"][0].lower() + mistake["msg"][1:]).replace("tuple", "list")
    one = mistake["type"] == "tuple_type" and isinstance(given, str | float | int)
    return f"{place}: {said}{shown}; {f'write [{given}]' if one else 'change it to an allowed value'}"


def _options_at(kind: type[Spec], path: Sequence[str]) -> list[str]:
    """Names of the options at a place of the configuration."""
    options: Any = kind
    for part in path:
        if isinstance(options, type) and issubclass(options, Spec) and part in options.model_fields:
            options = options.model_fields[part].annotation
        options = _spec_in(options) or options
    found = _spec_in(options)
    return sorted(found.model_fields) if found else []


def _spec_in(annotation: Any) -> type[Spec] | None:
    """The first configuration type inside an annotation such as ``dict[str, X]`` or ``X | None``."""
    if isinstance(annotation, type) and issubclass(annotation, Spec):
        return annotation
    for argument in get_args(annotation):
        if found := _spec_in(argument):
            return found
    return None


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
