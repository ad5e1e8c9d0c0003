"""The blocks of README and docs: what a document shows a reader to type, in order."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(file for file in ROOT.glob("**/*.md") if not any(part.startswith(".") for part in file.parts))

BLOCK = re.compile(r"^( *)```(\w+)\n(.*?)^ *```", re.M | re.S)
FILE = re.compile(r"`([\w./-]+\.\w+)`")


@dataclass(frozen=True)
class Line:
    """A command of a shell block.

    Attributes:
        number: The document's line that it begins in.
        text: All of it, in one line.
        printed: What the document shows that it prints; empty where it shows nothing.
    """

    number: int
    text: str
    printed: str = ""


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        number: The document's line that it begins in.
        language: What its fence says: sh, console, python, yaml, ...
        text: What is in it.
        file: The file that it is, where the paragraph before it is nothing but a file's name.
    """

    number: int
    language: str
    text: str
    file: str = ""

    @property
    def lines(self) -> list[Line]:
        """The commands of a shell block; in one with prompts, what comes after a command is what it prints."""
        start = 0
        whole: list[tuple[int, str]] = []
        begun = ""
        for number, row in enumerate(self.text.splitlines(), self.number + 1):
            start = start if begun else number
            begun += row.strip() if begun else row
            if begun.endswith("\\"):
                begun = begun[:-1]
            else:
                whole.append((start, begun))
                begun = ""
        if not any(row.startswith("$ ") for _, row in whole):
            return [Line(number, row.strip()) for number, row in whole if row.strip() and row.strip()[0] != "#"]
        starts = [at for at, (_, row) in enumerate(whole) if row.startswith("$ ")]
        ends = [*starts[1:], len(whole)]
        return [
            Line(whole[at][0], whole[at][1][2:], "\n".join(row for _, row in whole[at + 1 : end]))
            for at, end in zip(starts, ends, strict=True)
        ]


def blocks(text: str) -> list[Block]:
    """All fenced blocks of a document."""
    found = []
    for match in BLOCK.finditer(text):
        before = text[: match.start()].rstrip().rpartition("\n\n")[2]
        named = FILE.fullmatch(before)
        number = text.count("\n", 0, match.start()) + 1
        found.append(Block(number, match[2], match[3], named[1] if named else ""))
    return found


def outside(text: str) -> str:
    """A document without its blocks."""
    return BLOCK.sub("", text)
