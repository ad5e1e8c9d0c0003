"""The words after `samlit fit`, made into words that Lightning's parser understands. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from samlit import recipe
from samlit.errors import UsageError

__all__ = ["CommandLine", "read"]

ONLY_TYPED = ("recipe", "help", "print_config")
WITHOUT_VALUE = ("help", "print_config")


@dataclass
class CommandLine:
    """A command line whose names are resolved.

    Attributes:
        words: Options with their values, recipes as `--config` and class paths for names.
        plugins: By place ("model.encoder", "model.prompts[1]"), the class paths that it and its recipes ask for.
    """

    words: list[str] = field(default_factory=list)
    plugins: dict[str, str] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether it can be run as far as can be seen: it has a recipe or an encoder, or only asks for help."""
        starts = ("--config=", "--model.encoder=", "--model=", "--help", "--print_config")
        return any(word.startswith(starts) or ".help" in word for word in self.words)

    def ask(self, tree: dict[str, Any]) -> None:
        """Note the plug-ins of a resolved tree, in place of those that it overrides."""
        new = dict(recipe.class_paths(tree))
        for slot in {place.partition("[")[0] for place in new}:
            for place in [p for p in self.plugins if p == slot or p.startswith((f"{slot}[", f"{slot}."))]:
                del self.plugins[place]
        self.plugins |= new


def read(typed: list[str]) -> CommandLine:
    """Resolve what was typed: `--recipe NAME` to `--config FILE`, names to class paths.

    Raises:
        UsageError: It, or a recipe of it, has an unknown key or name.
    """
    line, words = CommandLine(), list(typed)
    trees: dict[str, dict[str, Any]] = {}
    while words:
        flag, value = _next(words)
        name = flag.removeprefix("--")
        slot = name.removesuffix(".help").removesuffix("+").removesuffix(".class_path")
        if name in {"recipe", "config"}:
            if not value:
                raise UsageError(f"{flag} needs a value (known: {', '.join(recipe.names())})")
            file = recipe.path(value) if name == "recipe" else _file(value)
            tree = recipe.resolve(recipe.read(file), f"recipe {value}" if name == "recipe" else value)
            line.ask(tree)
            line.words.append(f"--config={file}")
            trees[line.words[-1]] = tree
        elif value is not None and name == "trainer.logger":
            line.words.append(f"{flag}={_flow(recipe.resolve_logger(_tree(value, flag), flag))}")
        elif value is not None and (slot in recipe.SLOTS or slot in recipe.SECTIONS):
            new = _resolve(slot, value, flag)
            if name.endswith("+"):  # one more in a list: the others stay
                line.plugins |= dict(recipe.class_paths(new, f"{slot}[{value}]"))
            else:
                before = line.plugins.get(slot)
                line.ask({slot: new})
                if before and line.plugins.get(slot, before) != before:
                    line.words = [_without(slot, word, trees) for word in line.words]
            line.words.append(f"{flag}={new if isinstance(new, str) else _flow(new)}")
        else:
            parent, _, argument = name.replace(".init_args.", ".").removesuffix("+").rpartition(".")
            chosen = line.plugins.get(parent)
            if chosen and argument != "help" and (fault := recipe.unknown_argument(chosen, argument)):
                raise UsageError(f"{flag}: {fault}")
            line.words.append(flag if value is None else f"{flag}={value}")
    return line


def _without(slot: str, word: str, trees: dict[str, dict[str, Any]]) -> str:
    """A word without what a recipe says in a slot, for the parser would hand its arguments on to another class."""
    section, _, key = slot.partition(".")
    if key not in trees.get(word, {}).get(section, {}):
        return word
    tree = trees[word]
    tree[section] = {name: value for name, value in tree[section].items() if name != key}
    text = f"--config={_flow(tree)}"
    trees[text] = tree
    return text


def _next(words: list[str]) -> tuple[str, str | None]:
    """Take the next option off the words, and its value if it is given one."""
    word = words.pop(0)
    flag, equals, value = word.partition("=")
    flag = {"-c": "--config", "-h": "--help"}.get(flag, flag)
    if not flag.startswith("--"):
        hint = f"; did you mean --recipe {word}?" if word in recipe.names() else ""
        raise UsageError(f"{word!r} belongs to no option{hint}")
    name = flag.removeprefix("--")
    if fault := recipe.unknown_key(name, (*recipe.OPTIONS, *ONLY_TYPED)):
        told = fault.replace("there is no key '", "there is no option '--")
        raise UsageError(told.replace("did you mean '", "did you mean '--"))
    if equals:
        return flag, value
    if name not in WITHOUT_VALUE and words and not words[0].startswith("--"):
        return flag, words.pop(0)
    return flag, None


def _resolve(slot: str, value: str, flag: str) -> Any:
    """What was typed after an option: a name, a YAML list or mapping, or a file with one."""
    tree = _tree(value, flag)
    if slot in recipe.SLOTS:
        return recipe.resolve_slot(slot, tree, slot)
    return recipe.resolve(tree, section=slot) if isinstance(tree, dict) else tree


def _tree(value: str, flag: str) -> Any:
    if Path(value).suffix in {".yaml", ".yml"}:
        return recipe.read(_file(value))
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError:
        raise UsageError(f"{flag}: cannot read {value!r}: a bracket or a quote may be missing") from None


def _file(name: str) -> Path:
    if not Path(name).is_file():
        raise UsageError(f"there is no file {name!r}")
    return Path(name).absolute()


def _flow(tree: Any) -> str:
    return yaml.safe_dump(tree, default_flow_style=True, width=10**6, sort_keys=False).strip().removesuffix("\n...")
