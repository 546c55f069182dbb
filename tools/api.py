"""``python -m tools.api``: docs/api.md, the library's reference as plain Markdown, from its docstrings.

What it documents is what docs/library.md links to. Nothing is imported: the sources are parsed.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import griffe

from ask import files

PAGE, SUBJECTS = Path("docs/api.md"), Path("docs/library.md")
INTRODUCTION = """\
# Library reference

<!-- Made by `python -m tools.api` from the docstrings of what library.md links to; do not edit. -->

What holds for all of it, and the parts in their order: [library](library.md).
"""
TITLES = {"parameters": "Arguments", "attributes": "Attributes", "returns": "Returns", "yields": "Yields"}


def page() -> str:
    """The whole page; raises KeyError for a link to something that the package does not have."""
    package = griffe.load("ask", search_paths=["."], docstring_parser="google")
    return INTRODUCTION + "".join(f"\n{part}\n" for name in subjects() for part in _subject(package, name))


def subjects() -> list[str]:
    """Full names of what is documented, each once."""
    links = re.findall(r"\[(ask\.[\w.]+)\]\(api\.md#\w+\)", SUBJECTS.read_text(encoding="utf-8"))
    return list(dict.fromkeys(links))


def _subject(package: Any, name: str) -> Iterator[str]:
    found = package[name.removeprefix("ask.")]
    if found.is_module:
        yield from (f"## {name}", *_words(found))
        for member in _public(found):
            yield from _object(member, f"### {member.name}")
    else:
        yield from _object(found, f"## {name}")


def _object(of: Any, heading: str) -> Iterator[str]:
    """A function, or a class with its fields and methods."""
    yield heading
    if (of.is_class and of.parameters) or of.is_function:
        yield f"```python\n{_signature(of)}\n```"
    if of.is_class and of.bases:
        yield f"Extends {', '.join(f'`{base}`' for base in of.bases)}."
    yield from _words(of)
    if of.is_class:
        inherited = [one for one in of.inherited_members.values() if one.docstring and not one.name.startswith("_")]
        fields = [member for member in (*_public(of), *inherited) if member.is_attribute]
        if fields:
            yield "\n".join(_field(field) for field in fields)
        for member in _public(of):
            if member.is_function:
                yield from _object(member, f"{heading[: heading.index(' ')]}# {of.name}.{member.name}")


def _public(of: Any) -> list[Any]:
    """Members with a docstring, in the order of the source; a call counts as public."""
    members = [one for one in of.members.values() if not one.is_alias and one.docstring]
    return [one for one in members if not one.name.startswith("_") or one.name == "__call__"]


def _signature(of: Any) -> str:
    text = str(of.signature()).replace("(self, ", "(").replace("(self)", "()")
    if len(text) <= 100:
        return text
    name, _, rest = text.partition("(")
    arguments, arrow, result = rest.rpartition(") -> ") if ") -> " in rest else (rest.rpartition(")")[0], ")", "")
    parts = "".join(f"    {part},\n" for part in _split(arguments))
    return f"{name}(\n{parts}{arrow}{result}"


def _split(arguments: str) -> list[str]:
    """Arguments, cut at commas outside brackets."""
    parts, depth = [""], 0
    for letter in arguments:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def _field(field: Any) -> str:
    known = (f"`{field.annotation}`" if field.annotation else "", f"default `{field.value}`" if field.value else "")
    about = ", ".join(filter(None, known))
    return f"* `{field.name}`{f' ({about})' if about else ''}: {_flat(field.docstring.value)}"


def _words(of: Any) -> Iterator[str]:
    """A docstring's sections."""
    for section in of.docstring.parsed if of.docstring else ():
        kind = section.kind.value
        if kind == "text":
            yield _text(section.value)
        elif kind == "raises":
            yield "**Raises**\n\n" + "\n".join(
                f"* `{one.annotation}`: {_flat(one.description)}" for one in section.value
            )
        elif kind in TITLES:
            yield f"**{TITLES[kind]}**\n\n" + "\n".join(_entry(one) for one in section.value)
        else:
            raise ValueError(f"{of.path}: a docstring's section {kind!r}, which this page does not know")


def _entry(one: Any) -> str:
    name = f"`{one.name}`: " if one.name else ""
    return f"* {name}{_flat(one.description)}"


def _text(text: str) -> str:
    """Paragraphs as they are, and examples in fences."""
    parts = re.split(r"\n\n+", _roles(text))
    return "\n\n".join(f"```pycon\n{part}\n```" if part.startswith(">>>") else part for part in parts)


def _flat(text: str) -> str:
    return " ".join(_roles(text).split())


def _roles(text: str) -> str:
    """Cross-references of Sphinx as code."""
    return re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text)


if __name__ == "__main__":
    files.write_text(PAGE, page())
