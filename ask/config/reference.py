"""The configuration's JSON schema and reference page, made from its types (``python -m ask reference``)."""

import json
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from ask.config.artifacts import ArtifactConfig
from ask.config.base import Spec
from ask.config.run import RunConfig

SCHEMA = Path("config/schema.json")
PAGE = Path("docs/configuration.md")
INTRODUCTION = """\
# Configuration

<!-- Made by `python -m ask reference` from the types in ask/config/; do not edit. -->

A run is `config/config.yaml` (the paper run), or that file overlaid by another one, such as `config/demo.yaml`:
mappings merge, everything else is replaced. An artifact (a table or a figure) is one file in `config/artifacts/`.
eps and step sizes are n of 255, as in the paper; inside the library they are fractions of 1.
"""


def schema() -> str:
    """JSON schema of a run's configuration."""
    return json.dumps(RunConfig.model_json_schema(), indent=1, sort_keys=True) + "\n"


def page() -> str:
    """Markdown page of every option with type, default and description (which names unit and source)."""
    parts = [INTRODUCTION]
    for kind, title in ((RunConfig, "A run"), (ArtifactConfig, "An artifact: `config/artifacts/<id>.yaml`")):
        parts.append(f"\n## {title}\n")
        for section in _sections(kind):
            if section is not kind:
                parts.append(f"\n### {section.__name__}\n")
            parts.append(f"{_sentence(section)}\n\n| option | type | default | meaning |\n|---|---|---|---|\n")
            parts.extend(_row(name, field) for name, field in section.model_fields.items())
    return "".join(parts)


def write() -> list[Path]:
    """Write both files; returns their paths."""
    SCHEMA.write_text(schema())
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page())
    return [SCHEMA, PAGE]


def _sections(kind: type[Spec]) -> list[type[Spec]]:
    """A configuration type and those inside it, outermost first."""
    found = [kind]
    for section in found:
        for field in section.model_fields.values():
            found.extend(inner for inner in _specs_in(field.annotation) if inner not in found)
    return found


def _specs_in(annotation: Any) -> list[type[Spec]]:
    if isinstance(annotation, type) and issubclass(annotation, Spec):
        return [annotation]
    return [spec for argument in get_args(annotation) for spec in _specs_in(argument)]


def _row(name: str, field: FieldInfo) -> str:
    kind = _type_name(field.annotation, field)
    text = " ".join((field.description or "").split()).replace("|", "\\|")
    return f"| `{name}` | {kind} | {_default(field)} | {text} |\n"


def _default(field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True)
    if default is PydanticUndefined:
        return "required"
    if isinstance(default, Spec):
        return "see below"
    if default in ((), {}, ""):
        return "empty"
    return "`" + json.dumps(default) + "`"


def _type_name(annotation: Any, field: FieldInfo | None = None) -> str:
    origin = get_origin(annotation)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in get_args(annotation))
    if origin in (Union, UnionType):
        return " or ".join(_type_name(argument) for argument in get_args(annotation))
    if origin is tuple:
        return f"list of {_type_name(get_args(annotation)[0])}"
    if origin is dict:
        return f"mapping of names to {_type_name(get_args(annotation)[1])}"
    if isinstance(annotation, type) and issubclass(annotation, Spec):
        return f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    if hasattr(annotation, "__metadata__"):
        return _type_name(get_args(annotation)[0])
    names = {str: "text", int: "integer", float: "number", bool: "true or false", type(None): "null"}
    return names.get(annotation, str(annotation)) + (_bounds(field) if field else "")


def _bounds(field: FieldInfo) -> str:
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
    bounds = [
        f"{sign} {getattr(limit, name):g}"
        for limit in field.metadata
        for name, sign in signs.items()
        if getattr(limit, name, None) is not None
    ]
    return f" ({', '.join(bounds)})" if bounds else ""


def _sentence(section: type[Spec]) -> str:
    return " ".join((section.__doc__ or "").split())
