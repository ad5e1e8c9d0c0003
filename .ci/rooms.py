"""Print the house: lines and files of each room, and the rooms that it imports (tests/test_layers.py: what it may)."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
KERNEL = ROOT / "samlit"
ROOMS = [KERNEL, *sorted(file.parent for file in KERNEL.glob("*/__init__.py"))]
ROOMS += sorted(file.parent for file in ROOT.glob("*/samlit_*/__init__.py"))


def name(room: Path) -> str:
    """`samlit/masks` for a room of the kernel, `samlit_tasks` for a package of plug-ins."""
    return room.relative_to(ROOT if room.is_relative_to(KERNEL) else room.parent).as_posix()


def imported(tree: ast.AST) -> set[str]:
    """The rooms that a file takes something from."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                package, *inner = f"{node.module}.{alias.name}".split(".")
                found.add(f"{package}/{inner[0]}" if (ROOT / package / inner[0]).is_dir() else package)
    return found & {name(room) for room in ROOMS}


for room in ROOMS:
    texts = [file.read_text() for file in room.glob("*.py")]
    others = set().union(*(imported(ast.parse(text)) for text in texts)) - {name(room)}
    lines = sum(len(text.splitlines()) for text in texts)
    arrows = " ".join(sorted(other.removeprefix("samlit/") for other in others))
    print(f"{lines:6d} lines {len(texts):3d} files  {name(room):18} imports {arrows}")
for folder in ("tests", "benchmarks"):
    texts = [file.read_text() for file in (ROOT / folder).rglob("*.py")]
    print(f"{sum(len(text.splitlines()) for text in texts):6d} lines {len(texts):3d} files  {folder}")
