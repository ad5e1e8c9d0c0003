"""What a module's source says, read without importing it or the packages around it. Standard library only.

Importing a plug-in costs seconds of torch and may fail; its first docstring line and its arguments are in the text.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

__all__ = ["arguments", "definition", "locate", "missing_imports", "parse", "summary"]

Definition = ast.ClassDef | ast.FunctionDef


def locate(module: str) -> ModuleSpec | None:
    """Where a module is, or None.

    Unlike `importlib.util.find_spec`, this never runs the `__init__` of the packages above it.
    """
    name, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    folders: list[str] | None = list(spec.submodule_search_locations or []) if spec else None
    for part in rest:
        if not folders:
            return None
        name = f"{name}.{part}"
        try:
            spec = PathFinder.find_spec(name, folders)
            folders = list(spec.submodule_search_locations or []) if spec else None
        except KeyError:
            # A folder without an __init__ asks the package above it where it is, and that one is not imported.
            spec = ModuleSpec(name, None, is_package=True)
            folders = [str(Path(folder, part)) for folder in folders or [] if Path(folder, part).is_dir()]
    return spec


@cache
def parse(module: str) -> ast.Module | None:
    """A module's syntax tree; None where there is no Python text to read (a namespace, a compiled module).

    Raises:
        ModuleNotFoundError: There is no such module.
        SyntaxError: Its text is not Python.
    """
    spec = locate(module)
    if spec is None:
        raise ModuleNotFoundError(f"there is no module {module!r}", name=module)
    if spec.origin is None or not spec.origin.endswith(".py"):
        return None
    return ast.parse(Path(spec.origin).read_bytes(), spec.origin)


def definition(module: str, attribute: str) -> Definition | None:
    """The class or function that a module knows by a name, followed through re-exports.

    Returns:
        None where the text does not tell: a value that is computed, a star import, a compiled module.

    Raises:
        AttributeError: The module certainly has nothing of that name; its `obj` is what it has.
        ModuleNotFoundError: It, or a module it re-exports from, does not exist.
        SyntaxError: Its text is not Python.
    """
    return _trace(module, attribute)[1]


def _trace(module: str, attribute: str) -> tuple[str, Definition | None]:
    """The definition, and the module that it stands in."""
    tree = parse(module)
    if tree is None:
        return module, None
    names: set[str] = set()
    for statement in reversed(list(_statements(tree.body))):
        match statement:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name):
                if name == attribute:
                    return module, statement
                names.add(name)
            case ast.ImportFrom(names=aliases):
                for alias in aliases:
                    if (alias.asname or alias.name) == attribute:
                        origin = _origin(module, statement)
                        # "from package import module" gives a module, not a definition.
                        return (module, None) if locate(f"{origin}.{alias.name}") else _trace(origin, alias.name)
                    names.add(alias.asname or alias.name)
            case ast.Import(names=aliases):
                names.update(alias.asname or alias.name.partition(".")[0] for alias in aliases)
            case _:
                targets = (n for n in ast.walk(statement) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store))
                names.update(target.id for target in targets)
    if attribute in names or names & {"*", "__getattr__"}:
        return module, None
    raise AttributeError(f"module {module!r} has no {attribute!r}", name=attribute, obj=sorted(names))


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements that run at import, with the branches of `if` and `try` opened."""
    for statement in body:
        match statement:
            case ast.If(body=inner, orelse=other):
                yield from _statements(inner + other)
            case ast.Try(body=inner, handlers=handlers, orelse=other, finalbody=final):
                yield from _statements(inner + [s for h in handlers for s in h.body] + other + final)
            case _:
                yield statement


def _origin(module: str, statement: ast.ImportFrom) -> str:
    """The absolute name of the module that a `from ... import` reads."""
    if not statement.level:
        return statement.module or ""
    spec = locate(module)
    package = module if spec and spec.submodule_search_locations is not None else module.rpartition(".")[0]
    return importlib.util.resolve_name("." * statement.level + (statement.module or ""), package)


def summary(node: ast.Module | Definition | None) -> str:
    """The first line of a docstring, or nothing."""
    return (ast.get_docstring(node) or "").partition("\n")[0] if node is not None else ""


def arguments(module: str, attribute: str, method: str = "__init__") -> list[str] | None:
    """Names that a function, or a class, can be called with; None where the text does not tell.

    Args:
        module: The module.
        attribute: The function or class.
        method: What is called of a class.
    """
    try:
        home, node = _trace(module, attribute)
        if isinstance(node, ast.ClassDef):
            if node.decorator_list or node.keywords:  # dataclasses and metaclasses may make an __init__ of their own
                return None
            found = [s for s in node.body if isinstance(s, ast.FunctionDef) and s.name == method]
            if not found:
                return _inherited(home, node, method)
            node = found[-1]
    except (AttributeError, ImportError, OSError, SyntaxError, ValueError):
        return None
    if node is None or node.args.kwarg is not None:
        return None
    names = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
    return [name for name in names if name != "self"]


def _inherited(module: str, node: ast.ClassDef, method: str) -> list[str] | None:
    for base in node.bases:
        if isinstance(base, ast.Name) and base.id in {"ABC", "object", "Protocol"}:
            continue
        known = arguments(module, base.id, method) if isinstance(base, ast.Name) and base.id != node.name else None
        if known != []:
            return known
    return []


def missing_imports(module: str) -> list[str]:
    """Top-level modules that a module imports unconditionally and that are not installed."""
    tree = parse(module)
    wanted: dict[str, None] = {}
    for statement in tree.body if tree else ():
        match statement:
            case ast.Import(names=aliases):
                wanted |= dict.fromkeys(alias.name.partition(".")[0] for alias in aliases)
            case ast.ImportFrom(module=str(name), level=0):
                wanted[name.partition(".")[0]] = None
    return [name for name in wanted if locate(name) is None]
