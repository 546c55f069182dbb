"""The configuration's JSON schema and reference page, made from its types (``python -m ask reference``)."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ask import files
from ask.config.artifacts import ArtifactConfig
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
_WORDS = {"string": "text", "boolean": "true or false"}
_BOUNDS = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}


def schema() -> str:
    """JSON schema of a run's configuration."""
    return json.dumps(RunConfig.model_json_schema(), indent=1, sort_keys=True) + "\n"


def page() -> str:
    """Markdown page of every option with type, default and description (which names unit and source)."""
    parts = [INTRODUCTION]
    for kind, title in ((RunConfig, "A run"), (ArtifactConfig, "An artifact: `config/artifacts/<id>.yaml`")):
        whole = kind.model_json_schema()
        parts.append(f"\n## {title}\n")
        for name in _sections(whole):
            section = whole if name == kind.__name__ else whole["$defs"][name]
            parts.append(f"\n### {name}\n" if section is not whole else "")
            parts.append(
                f"{_line(section['description'])}\n\n| option | type | default | meaning |\n|---|---|---|---|\n"
            )
            required = section.get("required", ())
            parts.extend(_row(name, of, name in required, whole["$defs"]) for name, of in section["properties"].items())
    return "".join(parts)


def write() -> list[Path]:
    """Write both files; returns their paths."""
    return [files.write_text(SCHEMA, schema()), files.write_text(PAGE, page())]


def _sections(whole: dict[str, Any]) -> list[str]:
    """Names of a type and of those inside it, outermost first."""
    found = [whole["title"]]
    for name in found:
        found += [inner for inner in _references(whole["$defs"].get(name, whole["properties"])) if inner not in found]
    return list(dict.fromkeys(found))


def _references(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        if "$ref" in part:
            yield part["$ref"].rpartition("/")[2]
        for inner in part.values():
            yield from _references(inner)
    elif isinstance(part, list):
        for inner in part:
            yield from _references(inner)


def _row(name: str, of: dict[str, Any], required: bool, types: dict[str, Any]) -> str:
    default = of.get("default", {})
    words = "see below" if isinstance(default, dict) else f"`{json.dumps(default)}`"
    words = "required" if required else "empty" if default in ([], {}, "") else words
    # The schema leaves out what only repeats the type's own description.
    meaning = _line(of.get("description") or types[next(_references(of))]["description"]).replace("|", "\\|")
    return f"| `{name}` | {_type(of)} | {words} | {meaning} |\n"


def _type(of: dict[str, Any]) -> str:
    if "$ref" in of:
        name = of["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if values := of.get("enum") or ([of["const"]] if "const" in of else []):
        return ", ".join(f"`{value}`" for value in values)
    if "anyOf" in of:
        return " or ".join(_type(one) for one in of["anyOf"])
    if of["type"] == "array":
        return f"list of {_type(of['items'])}"
    if of["type"] == "object":
        values = of.get("additionalProperties") or next(iter(of["patternProperties"].values()))
        return f"mapping of names to {_type(values) if isinstance(values, dict) else 'any values'}"
    bounds = ", ".join(f"{sign} {of[name]:g}" for name, sign in _BOUNDS.items() if name in of)
    return _WORDS.get(of["type"], str(of["type"])) + (f" ({bounds})" if bounds else "")


def _line(text: str) -> str:
    return " ".join(text.split())
