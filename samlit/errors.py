"""What went wrong, told to the person who typed: one line, and what to do about it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["SamlitError", "UsageError", "did_you_mean", "one_line"]


class SamlitError(Exception):
    """Ends a command with its message as the only line that is shown.

    Attributes:
        status: Exit status of the command.
    """

    status = 1


class UsageError(SamlitError):
    """What was typed, or what a recipe says, cannot be done by anybody."""

    status = 2


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The nearest of the known words as the end of a sentence, or nothing where none is near."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def one_line(error: BaseException) -> str:
    """An exception's message without its line breaks; its type where it has no message."""
    # str() of a KeyError is the repr of its key, which would quote a whole sentence.
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return " ".join(text.split()) or type(error).__name__
