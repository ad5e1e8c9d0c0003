"""`samlit shards`: what can be done with shards. Nothing heavy is imported before one of them needs it."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from samlit.errors import UsageError, did_you_mean
from samlit.shell.options import EVERYWHERE

__all__ = ["COMMANDS", "main"]

COMMANDS = {
    "make": ("samlit.shards.making:main", "shards of any source: SOURCE:PATH ... --out DIR"),
    "check": ("samlit.shards.checking:main", "read all of them and list what is damaged"),
    "index": ("samlit.shards.indexing:main", "note where every record lies, once, so that reading begins at once"),
    "embed": ("samlit.shards.embedding:main", "what CLIP sees in cut-outs of masks, once for all trainings"),
    "audit": ("samlit.shards.auditing:main", "draw masks for a person to correct, and tell how good they were"),
    "get": ("samlit.shards.getting:main", "fetch SA-1B's archives from its list of links"),
}

EXAMPLES = """
examples:
  samlit shards make coco:train.json --set images=photos --out shards
  samlit shards check shards
"""


def main(argv: list[str]) -> int:
    """Run the command with the words after `samlit shards`."""
    match argv:
        case [] | ["-h" | "--help" | "help", *_]:
            print(_usage(), end="")
            return 0
        case [command, *rest] if command in COMMANDS:
            module, _, name = COMMANDS[command][0].partition(":")
            function: Callable[[list[str]], int] = getattr(importlib.import_module(module), name)
            return function(rest)
    known = ", ".join(COMMANDS)
    raise UsageError(f"there is no `shards {argv[0]}`{did_you_mean(argv[0], COMMANDS)} (known: {known})")


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {summary}" for name, (_, summary) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: samlit shards COMMAND [OPTION ...]",
            "",
            "Shards are tar files in SA-1B's layout: a JPEG and a JSON an image.",
            "",
            *lines,
            "",
            "  samlit shards COMMAND --help   the options of a command, with examples",
            *(f"  {option:29}  {told}" for option, told in EVERYWHERE.items()),
            EXAMPLES,
        ]
    )
