"""A recipe by name, and registered names to class paths, in files and on the command line. No torch.

Everything that a person can mistype in a name is found here, in milliseconds, before anything heavy is imported.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from samlit import outline, plugins
from samlit.errors import UsageError, did_you_mean, one_line

__all__ = ["CommandLine", "folder", "names", "path", "read", "resolve", "resolve_arguments", "summary"]

SLOTS = {
    "model.encoder": "encoders",
    "model.prompts": "prompts",
    "model.decoder": "decoders",
    "model.task": "tasks",
    "model.validation": "tasks",
    "data.source": "sources",
    "data.validation": "sources",
}

# Inside a plug-in's own arguments a key of one of these words is a slot too: a task of tasks, a source of sources.
NESTED = {word: kind for kind in plugins.KINDS for word in (kind, kind[:-1])}

# What the words before the first dot stand for, to know their keys without importing them.
SECTIONS = {
    "model": ("samlit.module", "SamModule"),
    "data": ("samlit.datamodule", "SamData"),
    "trainer": ("lightning.pytorch.trainer.trainer", "Trainer"),
}
OPTIONS = ("config", "seed_everything", "ckpt_path", "weights_only", "verbose", "return_predictions")
ONLY_TYPED = ("recipe", "help", "print_config")
WITHOUT_VALUE = ("help", "print_config")


def folder() -> Path:
    """Where the shipped recipes are: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).parent
    return next(f for f in (package / "recipes", package.parent / "recipes") if f.is_dir() or f.parent != package)


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


def resolve(tree: dict[str, Any], where: str = "") -> dict[str, Any]:
    """A recipe's tree with class paths where it names registered plug-ins.

    Args:
        tree: What a file says.
        where: Begins every error: the file.

    Raises:
        UsageError: It has an unknown key, or names what nobody registered; one line that says where.
    """
    before = f"{where}: " if where else ""
    new = {}
    for key, value in tree.items():
        if fault := _unknown_key(str(key), allowed=OPTIONS):
            raise UsageError(f"{before}{fault}")
        new[key] = _resolve_section(str(key), value, before)
    return new


def _resolve_section(key: str, value: Any, before: str) -> Any:
    if key not in SECTIONS or not isinstance(value, dict):
        return value
    new = {}
    for name, inner in value.items():
        if fault := _unknown_key(f"{key}.{name}"):
            raise UsageError(f"{before}{fault}")
        # "encoder.size: b" in a file is what "--model.encoder.size b" is on the command line.
        slot, keyed = f"{key}.{name}".removesuffix("+"), isinstance(name, str)
        new[name] = _resolve_slot(SLOTS[slot], inner, f"{before}{slot}") if keyed and slot in SLOTS else inner
    return new


def _resolve_slot(kind: str, value: Any, where: str) -> Any:
    match value:
        case str():
            return _class_path(kind, value, where)
        case list():
            return [_resolve_slot(kind, item, f"{where}[{i}]") for i, item in enumerate(value)]
        case {"class_path": str(name), **rest}:
            found = _class_path(kind, name, where)
            given = rest.get("init_args")
            for key in given if isinstance(given, dict) else ():
                if fault := _unknown_argument(found, str(key)):
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
                new[key] = _resolve_slot(NESTED[key], inner, f"{where}.{key}")
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


def _unknown_argument(class_path: str, argument: str) -> str:
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


def _unknown_key(key: str, allowed: Iterable[str] = OPTIONS) -> str:
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


@dataclass
class CommandLine:
    """A command line that Lightning's parser understands.

    Attributes:
        arguments: Options, with recipes as `--config` and class paths for names.
        plugins: The class paths that it and its recipes ask for, with the place that asks.
    """

    arguments: list[str] = field(default_factory=list)
    plugins: dict[str, str] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether it can be run as far as can be seen: it has a recipe or an encoder, or only asks for help."""
        starts = ("--config=", "--model.encoder=", "--model=", "--help", "--print_config")
        return any(word.startswith(starts) or ".help" in word for word in self.arguments)


def resolve_arguments(arguments: list[str]) -> CommandLine:
    """Read a command line: `--recipe NAME` to `--config FILE`, names to class paths.

    Raises:
        UsageError: It, or a recipe of it, has an unknown key or name.
    """
    line = CommandLine()
    words = list(arguments)
    while words:
        word = words.pop(0)
        flag, equals, value = word.partition("=")
        flag = {"-c": "--config", "-h": "--help"}.get(flag, flag)
        if not flag.startswith("--"):
            hint = f"; did you mean --recipe {word}?" if word in names() else ""
            raise UsageError(f"{word!r} belongs to no option{hint}")
        name = flag.removeprefix("--")
        if fault := _unknown_key(name, allowed=(*OPTIONS, *ONLY_TYPED)):
            raise UsageError(_as_option(fault))
        given = bool(equals)
        if not given and name not in WITHOUT_VALUE and words and not words[0].startswith("--"):
            given, value = True, words.pop(0)
        slot = name.removesuffix(".help").removesuffix("+").removesuffix(".class_path")
        if name in {"recipe", "config"}:
            if not value:
                raise UsageError(f"{flag} needs a value (known: {', '.join(names())})")
            file = path(value) if name == "recipe" else _file(value)
            tree = resolve(read(file), f"recipe {value}" if name == "recipe" else value)
            line.plugins |= dict(_class_paths(tree))
            line.arguments.append(f"--config={file}")
        elif given and (slot in SLOTS or slot in SECTIONS):
            new = _resolve_value(slot, value, flag)
            line.plugins |= dict(_class_paths({slot: new}))
            line.arguments.append(f"{flag}={new if isinstance(new, str) else _flow(new)}")
        else:
            parent, _, argument = name.replace(".init_args.", ".").rpartition(".")
            chosen = [class_path for class_path, where in line.plugins.items() if where == parent]
            if chosen and argument != "help" and (fault := _unknown_argument(chosen[-1], argument.removesuffix("+"))):
                raise UsageError(f"{flag}: {fault}")
            line.arguments.append(f"{flag}={value}" if given else flag)
    return line


def _resolve_value(slot: str, value: str, flag: str) -> Any:
    """What was typed after an option: a name, a YAML list or mapping, or a file with one."""
    if Path(value).suffix in {".yaml", ".yml"}:
        tree: Any = read(_file(value))
    else:
        try:
            tree = yaml.safe_load(value)
        except yaml.YAMLError:
            raise UsageError(f"{flag}: cannot read {value!r}: a bracket or a quote may be missing") from None
    if slot in SLOTS:
        return _resolve_slot(SLOTS[slot], tree, slot)
    return _resolve_section(slot, tree, "")


def _file(name: str) -> Path:
    if not Path(name).is_file():
        raise UsageError(f"there is no file {name!r}")
    return Path(name).absolute()


def _class_paths(tree: Any, where: str = "") -> Iterator[tuple[str, str]]:
    """Every class path in the slots of a resolved tree, with where it stands."""
    match tree:
        case dict():
            for key, value in tree.items():
                yield from _class_paths(value, f"{where}.{key}" if where else str(key))
        case list():
            for number, value in enumerate(tree):
                yield from _class_paths(value, f"{where}[{number}]")
        case str():
            place = where.removesuffix(".class_path")
            in_slot = place.partition("[")[0] in SLOTS or (place != where and place.startswith(tuple(SLOTS)))
            if in_slot and "." in tree:
                yield tree, place


def _as_option(fault: str) -> str:
    """A complaint about a key, in the words of the command line."""
    return fault.replace("there is no key '", "there is no option '--").replace("did you mean '", "did you mean '--")


def _flow(tree: Any) -> str:
    return yaml.safe_dump(tree, default_flow_style=True, width=10**6, sort_keys=False).strip().removesuffix("\n...")


def _kind_of(tree: Any) -> str:
    return "empty" if tree is None else f"a {type(tree).__name__}"
