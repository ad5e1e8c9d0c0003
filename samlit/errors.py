"""What went wrong, told to the person who typed: one line, and what to do about it."""

from __future__ import annotations

import argparse
import difflib
import textwrap
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, NoReturn

__all__ = ["ArgumentParser", "SamlitError", "UsageError", "did_you_mean", "one_line"]


class SamlitError(Exception):
    """Ends a command with its message as the only line that is shown.

    Attributes:
        status: Exit status of the command.
    """

    status = 1


class UsageError(SamlitError):
    """What was typed, or what a recipe says, cannot be done by anybody."""

    status = 2


class _Help(argparse.RawDescriptionHelpFormatter):
    """Text of several lines stays as it is, and a single line is wrapped."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if "\n" in text.strip():
            return super()._fill_text(text, width, indent)
        return textwrap.fill(text.strip(), width, initial_indent=indent, subsequent_indent=indent)


class ArgumentParser(argparse.ArgumentParser):
    """An argparse parser for one command, whose errors are one line, and which tells the shell what it takes.

    Attributes:
        asked: Called with the first parser that would read words, instead of reading them (`samlit.completion`).
    """

    def __init__(self, **keys: Any) -> None:
        """Examples keep their lines, and options are typed whole, unless said otherwise."""
        usual: dict[str, Any] = {"formatter_class": _Help, "allow_abbrev": False}
        super().__init__(**(usual | keys))

    asked: ClassVar[Callable[[argparse.ArgumentParser], NoReturn] | None] = None

    def parse_known_args(self, *args: Any, **keys: Any) -> Any:
        """Read the words; where the shell asks what may come next, tell it and end."""
        if (asked := ArgumentParser.asked) is not None:
            ArgumentParser.asked = None  # what answers reads the words that are there with this parser
            asked(self)
        return super().parse_known_args(*args, **keys)

    def error(self, message: str) -> NoReturn:
        """Refuse the command line."""
        raise UsageError(f"{message} (see `{self.prog} --help`)")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The nearest of the known words as the end of a sentence, or nothing where none is near."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def one_line(error: BaseException) -> str:
    """An exception's message without its line breaks; its type where it has no message."""
    # str() of a KeyError is the repr of its key, which would quote a whole sentence.
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return " ".join(text.split()) or type(error).__name__
