"""The command lines of the documents: found, and brought to what samlit and the benchmarks are started with."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(file for file in ROOT.glob("**/*.md") if not any(part.startswith(".") for part in file.parts))
SHELLS = ("sh", "bash", "console", "shell")
LAUNCHERS = ("torchrun", "srun", "sbatch")


def lines(document: Path) -> Iterator[list[str]]:
    """The words of every command of a Markdown file: of its shell blocks and, where it is a row of a table, in a line.

    Of a ``console`` block the lines after a dollar sign count: the others are what is printed.
    """
    text = document.read_text()
    for shell, block in re.findall(r"^```(\w+)\n(.*?)^```", text, re.M | re.S):
        if shell in SHELLS:
            typed = re.sub(r"\\\n", " ", block).splitlines()
            if shell == "console":
                typed = [line.removeprefix("$ ") for line in typed if line.startswith("$ ")]
            for line in typed:
                for part in re.split(r"\s&&\s", line):
                    if words := shlex.split(part, comments=True):
                        yield plain(words)
    rows = "\n".join(line for line in text.splitlines() if line.startswith("|"))
    for span in re.findall(r"`((?:samlit|python -m samlit|python benchmarks/)[^`|]* --[^`]*)`", rows):
        yield plain(shlex.split(span))


def plain(words: list[str]) -> list[str]:
    """A command without what starts it on many machines, and without the dots that stand for words said before."""
    words = [word for word in words if word != "..."]
    if words[0] == "sbatch" and "--wrap" in words:
        return plain(shlex.split(words[words.index("--wrap") + 1]))
    if words[0] in LAUNCHERS and (start := {"samlit"} & set(words)):
        return words[words.index(start.pop()) :]
    return words[2:] if words[:3] == ["python", "-m", "samlit"] else words
