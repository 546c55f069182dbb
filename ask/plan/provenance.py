"""What code a step depends on: a hash of the syntax tree of every module of this package that it imports.

Comments, docstrings (of attributes too) and layout are left out, so only a change of behaviour
changes the hash. Imports inside functions count; imports for type checkers only do not. A package's
``__init__`` counts when it is imported from, like any module. Settings' types (:mod:`ask.config`) do not count: a job's
settings are compared themselves.
"""

import ast
import hashlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parent.parent


@cache
def fingerprint(modules: tuple[str, ...], package: Path = PACKAGE) -> str:
    """Hash (16 hex digits) of the given modules, such as ``ask.knn.search``, and all that they import of ours."""
    digest = hashlib.sha256()
    for name in sorted(closure(modules, package)):
        path = _file(name, package)
        digest.update(f"{name}={_syntax(path)}\n".encode())
        if name.endswith(".site"):
            for template in sorted((path.parent / "templates").glob("*")):
                digest.update(template.read_bytes())
    return digest.hexdigest()[:16]


def closure(modules: Iterable[str], package: Path = PACKAGE) -> set[str]:
    """The given modules and all modules of the package that they import, directly or not."""
    found: set[str] = set()
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        if name in found or (name.startswith("ask.config.") and name != "ask.config.stored"):
            continue
        found.add(name)
        waiting.extend(_imports(name, package))
    return found


def _file(name: str, package: Path) -> Path:
    path = package.parent.joinpath(*name.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _is_module(name: str, package: Path) -> bool:
    return _file(name, package).is_file()


@cache
def _imports(name: str, package: Path) -> frozenset[str]:
    found: set[str] = set()
    is_package = _file(name, package).name == "__init__.py"
    parts = name.split(".")
    for node in _walk(ast.parse(_file(name, package).read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                keep = len(parts) - node.level + is_package
                base = ".".join(parts[:keep] + ([node.module] if node.module else []))
            else:
                base = node.module or ""
            for alias in node.names:
                # ``from .package import x``: x may be a module, or a name that base defines.
                found.add(f"{base}.{alias.name}" if _is_module(f"{base}.{alias.name}", package) else base)
    prefix = package.name
    return frozenset(n for n in found if (n == prefix or n.startswith(f"{prefix}.")) and _is_module(n, package))


def _walk(tree: ast.AST) -> Iterable[ast.AST]:
    """All nodes but those below ``if TYPE_CHECKING:``."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        yield node
        yield from _walk(node)


@cache
def _syntax(path: Path) -> str:
    return hashlib.sha256(ast.dump(without_documentation(path)).encode()).hexdigest()


def without_documentation(path: Path) -> ast.Module:
    """Syntax tree of a module without docstrings, of attributes too."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            # Bare strings are documentation wherever they stand.
            kept = [n for n in body if not (isinstance(n, ast.Expr) and _is_text(n.value))]
            node.body = kept or [ast.Pass()]  # type: ignore[attr-defined]  # every node with a body list
    return tree


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)
