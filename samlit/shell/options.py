"""The options of a command, read and explained: every help page in the same order, every refusal one line."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Callable
from typing import Any, ClassVar, NoReturn

from samlit.errors import UsageError

__all__ = ["EVERYWHERE", "ArgumentParser", "Page"]

EVERYWHERE = {
    "--quiet": "anywhere: no bars, notes and remarks; only what was asked for, and what went wrong",
    "--debug": "anywhere: tracebacks and the messages of libraries",
}
"""Options that every command understands at any place: `samlit.cli` takes them off the line."""


class Page(argparse.RawDescriptionHelpFormatter):
    """Text of several lines stays as it is, and a single line is wrapped."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if "\n" in text.strip():
            return super()._fill_text(text, width, indent)
        return textwrap.fill(text.strip(), width, initial_indent=indent, subsequent_indent=indent)


class ArgumentParser(argparse.ArgumentParser):
    """An argparse parser for one command, whose errors are one line, and which tells the shell what it takes.

    Attributes:
        asked: Called with the first parser that would read words, instead of reading them (`samlit.shell.completion`).
        reads: The group of what the command reads,
        writes: and of what it writes,
        runs: and of how it works.
        says: The group of what it tells, which ends a help page.
    """

    asked: ClassVar[Callable[[argparse.ArgumentParser], NoReturn] | None] = None

    def __init__(self, **keys: Any) -> None:
        """Examples keep their lines, and options are typed whole, unless said otherwise."""
        usual: dict[str, Any] = {"formatter_class": Page, "allow_abbrev": False}
        super().__init__(**(usual | keys))
        self.reads = self.add_argument_group("what it reads")
        self.writes = self.add_argument_group("what it writes")
        self.runs = self.add_argument_group("how it works")
        self.says = self._optionals
        self.says.title = "what it says"
        for option, told in EVERYWHERE.items():
            self.says.add_argument(option, action="store_true", default=argparse.SUPPRESS, help=told)

    def format_help(self) -> str:
        """The help page, with what is the same on every page at its end."""
        self._action_groups.sort(key=lambda group: group is self.says)
        self.says._group_actions.sort(key=lambda action: action.option_strings[0] in EVERYWHERE)
        self.usage = self.usage or self._brief()
        return super().format_help()

    def _brief(self) -> str:
        """A line of what must be given."""
        words = [self.prog]
        for action in sorted(self._actions, key=lambda action: bool(action.option_strings)):
            name = str(action.metavar or action.dest.upper())
            if action.option_strings and action.required:
                words.append(f"{action.option_strings[0]} {name}")
            elif not action.option_strings:
                words.append({"?": f"[{name}]", "+": f"{name} ..."}.get(str(action.nargs), name))
        return " ".join([*words, "[OPTION ...]"])

    def parse_known_args(self, *args: Any, **keys: Any) -> Any:
        """Read the words; where the shell asks what may come next, tell it and end."""
        if (asked := ArgumentParser.asked) is not None:
            ArgumentParser.asked = None  # what answers reads the words that are there with this parser
            asked(self)
        return super().parse_known_args(*args, **keys)

    def error(self, message: str) -> NoReturn:
        """Refuse the command line."""
        raise UsageError(f"{message} (see `{self.prog} --help`)")
