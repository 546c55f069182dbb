"""What code a step depends on: a hash of the syntax tree of every module of this package that it imports.

Comments, docstrings (of attributes too) and layout are left out, so only a change of behaviour
changes the hash. Imports inside functions count; imports for type checkers only do not. A package's
``__init__`` counts when it is imported from, like any module. Settings' types (:mod:`ask.config`) do not count: a job's
settings are compared themselves. Nor does :mod:`ask.hardware`, which says what a result was made with.
"""

import ast
import hashlib
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parent.parent
ASIDE = ("ask.config.", "ask.hardware")
COUNTED = ("ask.config.claims", "ask.config.stored")
"""Which stand in no job: how claims are judged, and what stored settings mean."""


@dataclass(frozen=True)
class Module:
    """A module of the package, as read from its source."""

    imports: frozenset[str]
    """Modules of the package that it imports."""
    syntax: str
    """Hash of its syntax tree."""
    parts: Mapping[str, str]
    """A hash of each function and class; the rest in one."""


@cache
def fingerprint(modules: tuple[str, ...], package: Path = PACKAGE) -> str:
    """Hash (16 hex digits) of the given modules, such as ``ask.knn.search``, and all that they import of ours."""
    digest = hashlib.sha256()
    for name in sorted(closure(modules, package)):
        digest.update(f"{name}={read(name, package).syntax}\n".encode())
        if name.endswith(".site"):
            for template in sorted((_file(name, package).parent / "templates").glob("*")):
                digest.update(template.read_bytes())
    return digest.hexdigest()[:16]


def own_code(factory: str) -> str | None:
    """Fingerprint of the module of ``module:function`` and what it imports of its own package, without importing it.

    None for what is installed, whose versions change nothing either. Raises ImportError if there is no such module.
    """
    name = factory.partition(":")[0]
    top = PathFinder.find_spec(name.partition(".")[0], [str(Path.cwd()), *sys.path])
    if top is None:
        raise ImportError(f"no module {name!r}; put its file into the project's folder, or install its package")
    home = Path(next(iter(top.submodule_search_locations or ()), top.origin or "")).with_suffix("")
    if not {"site-packages", "dist-packages"}.isdisjoint(home.parts):
        return None
    if not _file(name, home).is_file():
        raise ImportError(f"no module {name!r} in {home}; mend its spelling")
    return fingerprint((name,), home)


def closure(modules: Iterable[str], package: Path = PACKAGE) -> set[str]:
    """The given modules and all modules of the package that they import, directly or not."""
    found: set[str] = set()
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        if name in found or (name.startswith(ASIDE) and name not in COUNTED):
            continue
        found.add(name)
        waiting.extend(read(name, package).imports)
    return found


@cache
def read(name: str, package: Path = PACKAGE) -> Module:
    """Imports and hashes of a module; raises ImportError, which names the file, if that is no Python."""
    path = _file(name, package)
    try:
        tree = ast.parse(path.read_bytes(), path)
    except (SyntaxError, ValueError) as error:
        raise ImportError(f"{path}: {error}; mend it") from error
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [part for part in body if _behaves(part)]  # type: ignore[attr-defined]  # it has a body
    whole, parts = hashlib.sha256(), defaultdict[str, Any](hashlib.sha256)
    for node in tree.body:
        text = ast.dump(node).encode()
        whole.update(text)
        parts[getattr(node, "name", "the module's own level")].update(text)
    hashes = {part: digest.hexdigest()[:12] for part, digest in parts.items()}
    return Module(frozenset(_imports(tree, name, package)), whole.hexdigest()[:16], hashes)


def _behaves(node: ast.AST) -> bool:
    """Whether a statement does anything: documentation (bare strings) and imports for type checkers do not."""
    match node:
        case ast.Expr(value=ast.Constant(value=str())) | ast.If(test=ast.Name(id="TYPE_CHECKING"), orelse=[]):
            return False
    return True


def _imports(tree: ast.AST, name: str, package: Path) -> Iterator[str]:
    for node in ast.walk(tree):
        found = []
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            # ``from package import x``: x may be a module, or a name that the package defines.
            inside = name.split(".") if _file(name, package).name == "__init__.py" else name.split(".")[:-1]
            above = inside[: len(inside) + 1 - node.level] if node.level else []
            home = ".".join([*above, *filter(None, [node.module])])
            members = [f"{home}.{alias.name}" for alias in node.names]
            found = [member if _file(member, package).is_file() else home for member in members]
        for one in found:
            if one.split(".")[0] == package.name and _file(one, package).is_file():
                yield one


def _file(name: str, package: Path) -> Path:
    path = package.parent.joinpath(*name.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
