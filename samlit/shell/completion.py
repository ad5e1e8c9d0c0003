"""What the shell offers when a person presses tab: commands, options, names, keys of a recipe (argcomplete)."""

from __future__ import annotations

import argparse
import importlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, NoReturn

import argcomplete
from argcomplete.completers import FilesCompleter
from argcomplete.lexers import split_line

from samlit.shell.options import EVERYWHERE, ArgumentParser

__all__ = ["WORD", "complete", "offer"]

WORD = "_ARGCOMPLETE"
"""Set by the shell's function: how many words of the line belong to the program's name."""


def complete(commands: Mapping[str, str]) -> NoReturn:
    """Tell the shell what may come next, and end.

    Args:
        commands: Each command's "module:function".
    """
    skipped = int(os.environ[WORD])
    line = os.environ["COMP_LINE"][: int(os.environ["COMP_POINT"])]
    words = split_line(line, len(line))[3][skipped:]  # those that are typed to their end
    if not words or words[0] not in commands:
        offer(_choice([*commands], "--version", "--help", *EVERYWHERE))
    os.environ[WORD] = str(skipped + 1)
    if words[0] in ("fit", "validate", "test"):
        offer(_keys_parser(words))
    module, _, name = commands[words[0]].partition(":")
    home = importlib.import_module(module)
    below = [word for word in words[1:2] if word in getattr(home, "COMMANDS", ())]
    if hasattr(home, "COMMANDS") and not below:
        offer(_choice([*home.COMMANDS], "--help", *EVERYWHERE))
    os.environ[WORD] = str(skipped + 1 + len(below))
    ArgumentParser.asked = offer
    getattr(home, name)(below)
    os._exit(0)


def _choice(names: list[str], *options: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("name", choices=names)
    for option in options:
        parser.add_argument(option, action="store_true")
    return parser


def offer(parser: argparse.ArgumentParser) -> NoReturn:
    """Tell the shell of a parser's options and their values, and end."""
    for action in parser._actions:
        for option in action.option_strings:
            if option in NAMES:
                action.completer = NAMES[option]  # type: ignore[attr-defined]
    argcomplete.autocomplete(parser, always_complete_options=False)
    os._exit(0)


def _keys_parser(words: list[str]) -> argparse.ArgumentParser:
    """`fit`, `validate` and `test`, with the keys of the recipe that was named."""
    from samlit import recipe

    parser = argparse.ArgumentParser("samlit fit", add_help=False, allow_abbrev=False)
    parser.add_argument("--recipe")
    parser.add_argument("--ckpt_path")
    parser.add_argument("--print_config", action="store_true")
    for option in ("--help", *EVERYWHERE):
        parser.add_argument(option, action="store_true")
    with suppress(Exception):
        named = words[words.index("--recipe") + 1]
        for key, slot in _keys(recipe.read(recipe.path(named))):
            kind = SLOTS.get(slot)
            given = parser.add_argument(f"--{key}")
            if kind:
                given.completer = _plugins(kind)  # type: ignore[attr-defined]
    return parser


def _keys(tree: Any, before: str = "") -> Iterator[tuple[str, str]]:
    """A recipe's keys as options, each with its slot."""
    for name, value in tree.items():
        key = f"{before}{name}"
        if isinstance(value, dict) and "class_path" in value:
            yield key, key
            yield from _keys(value.get("init_args", {}), f"{key}.")
        elif isinstance(value, dict) and value:
            yield from _keys(value, f"{key}.")
        else:
            yield key, key


def _plugins(kind: str) -> Callable[..., list[str]]:
    def names(**_: Any) -> list[str]:
        from samlit import plugins

        return [plugin.name for plugin in plugins.catalogue(kind)]

    return names


def _recipes(**_: Any) -> list[str]:
    from samlit import recipe

    return recipe.names()


def _weights(prefix: str = "", **_: Any) -> list[str]:
    from samlit.weights import catalogue

    return [*catalogue.PUBLISHED, *FilesCompleter()(prefix)]


def _data(prefix: str = "", **_: Any) -> list[str]:
    source, colon, path = prefix.partition(":")
    if colon:
        return [f"{source}:{found}" for found in FilesCompleter()(path)]
    return [f"{name}:" for name in _plugins("sources")()]


NAMES: dict[str, Callable[..., list[str]]] = {
    "--recipe": _recipes,
    "--task": _plugins("tasks"),
    "--weights": _weights,
    "--data": _data,
}
SLOTS = {
    "model.encoder": "encoders",
    "model.decoder": "decoders",
    "model.task": "tasks",
    "data.source": "sources",
    "data.validation": "sources",
    "data.test": "sources",
}
