"""A recipe by name, and the names of plug-ins in it to class paths. No torch.

Everything that a person can mistype in a name is found here, in milliseconds, before anything heavy is imported.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from samlit import outline, plugins
from samlit.errors import UsageError, did_you_mean, one_line

__all__ = [
    "LOGGERS",
    "SECTIONS",
    "SLOTS",
    "class_paths",
    "folder",
    "names",
    "path",
    "read",
    "resolve",
    "resolve_logger",
    "resolve_slot",
    "summary",
    "unknown_argument",
    "unknown_key",
]

SLOTS = {
    "model.encoder": "encoders",
    "model.prompts": "prompts",
    "model.decoder": "decoders",
    "model.task": "tasks",
    "model.validation": "tasks",
    "data.source": "sources",
    "data.validation": "sources",
    "data.forgetting": "sources",
    "data.test": "sources",
}

# What `trainer.logger` may be called, one or a list of them, and the package that it needs where samlit does not.
LOGGERS = {
    "csv": ("samlit.run.loggers.Csv", ""),
    "tensorboard": ("samlit.run.loggers.Tensorboard", "tensorboard"),
    "wandb": ("samlit.tracking.Wandb", ""),
}

# Inside a plug-in's own arguments a key of one of these words is a slot too: a task of tasks, a source of sources.
NESTED = {word: kind for kind in plugins.KINDS for word in (kind, kind[:-1])}

# What the words before the first dot stand for, to know their keys without importing them.
SECTIONS = {
    "model": ("samlit.module", "SamModule"),
    "data": ("samlit.datamodule", "SamData"),
    "trainer": ("lightning.pytorch.trainer.trainer", "Trainer"),
    "speed": ("samlit.run.speed", "Speed"),
    "report": ("samlit.run.report", "Report"),
    "tracking": ("samlit.tracking", "Tracking"),
    "checkpoints": ("samlit.run.checkpointing", "Checkpoints"),
    "signals": ("samlit.run.signals", "Signals"),
    "progress": ("samlit.run.progress", "ProgressBar"),
}
OPTIONS = ("config", "seed_everything", "ckpt_path", "weights_only", "verbose", "return_predictions")


def folder() -> Path:
    """Where the shipped recipes are: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).parent
    inside, beside = package / "recipes", package.parent / "recipes"
    return inside if inside.is_dir() else beside


def names() -> list[str]:
    """The shipped recipes."""
    return sorted(file.relative_to(folder()).with_suffix("").as_posix() for file in folder().rglob("*.yaml"))


def summary(name: str) -> str:
    """The first line of a recipe's header comment."""
    with path(name).open(encoding="utf-8") as file:
        first = file.readline()
    return first.lstrip("#").strip() if first.startswith("#") else ""


def path(name: str) -> Path:
    """The file of a shipped recipe, or the file itself where one is given.

    Raises:
        UsageError: There is neither.
    """
    if name in names():
        return folder() / f"{name}.yaml"
    file = Path(name)
    if file.is_file():
        return file.absolute()
    if file.suffix in {".yaml", ".yml", ".json"}:
        raise UsageError(f"there is no recipe file {name!r}{did_you_mean(file.stem, names())}")
    raise UsageError(f"no recipe is called {name!r}{did_you_mean(name, names())} (known: {', '.join(names())})")


def read(file: Path) -> dict[str, Any]:
    """What a recipe file says, as it stands there.

    Raises:
        UsageError: It is not YAML, or says something else than keys and values.
    """
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UsageError(f"{file}{place}: not YAML: {getattr(error, 'problem', None) or one_line(error)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file}: cannot be read: {one_line(error)}") from None
    if not isinstance(tree, dict):
        raise UsageError(f"{file}: a recipe is keys and values (model, data, trainer), this is {_kind_of(tree)}")
    return tree


def resolve(tree: dict[str, Any], where: str = "", section: str = "") -> dict[str, Any]:
    """A recipe's tree with class paths where it names registered plug-ins.

    Args:
        tree: What a file says.
        where: Begins every error: the file.
        section: The section that the tree is, where it is not a whole recipe.

    Raises:
        UsageError: It has an unknown key, or names what nobody registered; one line that says where.
    """
    before = f"{where}: " if where else ""
    new: dict[str, Any] = {}
    for name, value in tree.items():
        key = f"{section}.{name}" if section else str(name)
        if fault := unknown_key(key):
            raise UsageError(f"{before}{fault}")
        if key in SLOTS:
            new[name] = resolve_slot(key, value, f"{before}{key}")
        elif key == "trainer.logger":
            new[name] = resolve_logger(value, f"{before}{key}")
        elif key in SECTIONS and isinstance(value, dict):
            new[name] = resolve(value, where, key)
        else:
            new[name] = value
    return new


def resolve_slot(slot: str, value: Any, where: str) -> Any:
    """What stands in a slot, with class paths for names.

    Args:
        slot: One of `SLOTS`.
        value: A name or a class path, a mapping with `class_path`, a list of those, or null.
        where: Begins every error.

    Raises:
        UsageError: As for `resolve`.
    """
    return _resolve_kind(SLOTS[slot], value, where)


def resolve_logger(value: Any, where: str) -> Any:
    """What stands in `trainer.logger`, with class paths for samlit's short names.

    Args:
        value: A name or a class path, a mapping with `class_path`, a list of those, or true, false or null.
        where: Begins every error.

    Raises:
        UsageError: No logger is called so, or its package is not installed.
    """
    match value:
        case str() if "." not in value:
            if value not in LOGGERS:
                near, known = did_you_mean(value, LOGGERS), ", ".join([*LOGGERS, "false"])
                raise UsageError(f"{where}: no logger is called {value!r}{near} (known: {known})")
            class_path, needs = LOGGERS[value]
            if needs and find_spec(needs) is None:
                raise UsageError(
                    f"{where}: {value} needs the package {needs!r}, which is not installed: pip install {needs}"
                )
            return {"class_path": class_path}
        case str():
            return {"class_path": value}
        case list():
            return [resolve_logger(item, f"{where}[{i}]") for i, item in enumerate(value)]
        case {"class_path": str(name), **rest}:
            return {**rest, **resolve_logger(name, where)}
    return value


def _resolve_kind(kind: str, value: Any, where: str) -> Any:
    match value:
        case str():
            return _class_path(kind, value, where)
        case list():
            return [_resolve_kind(kind, item, f"{where}[{i}]") for i, item in enumerate(value)]
        case {"class_path": str(name), **rest}:
            found = _class_path(kind, name, where)
            given = rest.get("init_args")
            for key in given if isinstance(given, dict) else ():
                if fault := unknown_argument(found, str(key)):
                    raise UsageError(f"{where}: {fault}")
            return {"class_path": found, **_resolve_nested(rest, where)}
        case dict():
            return _resolve_nested(value, where)
    return value


def _resolve_nested(value: dict[Any, Any], where: str) -> dict[Any, Any]:
    new = dict(value)
    for key, inner in value.items():
        if key == "init_args" and isinstance(inner, dict):
            new[key] = _resolve_nested(inner, where)
        elif key in NESTED and (isinstance(inner, dict | list) or _is_registered(NESTED[key], inner)):
            # A string that is no name may be anything to a plug-in of which we know nothing.
            items = inner if isinstance(inner, list) else [inner]
            if all(isinstance(item, dict) or _is_registered(NESTED[key], item) for item in items):
                new[key] = _resolve_kind(NESTED[key], inner, f"{where}.{key}")
    return new


def _is_registered(kind: str, name: Any) -> bool:
    return any(plugin.name == name for plugin in plugins.catalogue(kind))


def _class_path(kind: str, name: str, where: str) -> str:
    if "." not in name:
        try:
            return plugins.find(kind, name).class_path
        except UsageError as error:
            raise UsageError(f"{where}: {error}") from None
    module, _, attribute = name.rpartition(".")
    try:
        # A class inside a class has no module of its own; the import will tell.
        if outline.locate(module) or not outline.locate(module.rpartition(".")[0] or module):
            outline.definition(module, attribute)
    except ModuleNotFoundError as error:
        place = "neither the working directory nor an installed package has it"
        raise UsageError(f"{where}: {name!r}: {error} ({place})") from None
    except AttributeError as error:
        known = error.obj if isinstance(error.obj, list) else []
        raise UsageError(f"{where}: {name!r}: {error}{did_you_mean(attribute, known)}") from None
    except SyntaxError as error:
        raise UsageError(f"{where}: {error.filename}, line {error.lineno}: {error.msg}") from None
    return name


def unknown_argument(class_path: str, argument: str) -> str:
    """What is wrong with an argument for a plug-in, from the plug-in's source; empty where nothing is."""
    module, _, attribute = class_path.rpartition(".")
    known = outline.arguments(module, attribute)
    if known is None or argument in known:
        return ""
    hint = did_you_mean(argument, known) or f" (known: {', '.join(known) or 'none'})"
    return f"{attribute} has no {argument!r}{hint}"


@cache
def _keys_of(section: str) -> tuple[str, ...]:
    """The keys of a section, from the source of its class; empty where that does not tell."""
    return tuple(outline.arguments(*SECTIONS[section]) or ())


def unknown_key(key: str, allowed: Iterable[str] = OPTIONS) -> str:
    """What is wrong with a key as far as its first two words tell; empty where nothing is."""
    first, _, rest = key.partition(".")
    first = first.removesuffix("+")
    if first not in SECTIONS:
        if first in allowed:
            return ""
        known = [*SECTIONS, *allowed]
        return f"there is no key {key!r}{_nearest(first, first, known)} (known: {', '.join(known)})"
    second = rest.partition(".")[0].removesuffix("+")
    known = list(_keys_of(first))
    if not second or second == "help" or not known or second in known:
        return ""
    return f"there is no key {key!r}{_nearest(second, f'{first}.{second}', [f'{first}.{name}' for name in known])}"


def _nearest(word: str, key: str, known: Iterable[str]) -> str:
    """The section that has this very word, or else the nearest key."""
    homes = [f"{section}.{word}" for section in SECTIONS if word in _keys_of(section)]
    return f"; did you mean {homes[0]!r}?" if homes else did_you_mean(key, known)


def class_paths(tree: Any, where: str = "") -> Iterator[tuple[str, str]]:
    """Where a resolved tree has the class path of a plug-in, and that class path."""
    match tree:
        case dict():
            for key, value in tree.items():
                yield from class_paths(value, f"{where}.{key}" if where else str(key))
        case list():
            for number, value in enumerate(tree):
                yield from class_paths(value, f"{where}[{number}]")
        case str():
            place = where.removesuffix(".class_path")
            item = place.partition("[")[0] if place.endswith("]") else place  # one of a list, not an argument of one
            in_slot = item in SLOTS or (place != where and place.startswith(tuple(SLOTS)))
            if in_slot and "." in tree:
                yield place, tree


def _kind_of(tree: Any) -> str:
    return "empty" if tree is None else f"a {type(tree).__name__}"
