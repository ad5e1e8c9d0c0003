"""Check what is in a wheel: the packages, each typed, and the recipes; no test, no document, no stray top level."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path
from zipfile import ZipFile

root = Path(__file__).parents[1]
packages = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["mypy"]["packages"]
names = ZipFile(sys.argv[1]).namelist()
top = {name.partition("/")[0] for name in names if ".dist-info/" not in name}
recipes = [name for name in names if name.startswith("samlit/recipes/")]
shipped = sorted(f"samlit/recipes/{file.relative_to(root / 'recipes')}" for file in (root / "recipes").rglob("*.yaml"))

assert top == set(packages), f"top-level names of the wheel are {sorted(top)}"
assert all(f"{package}/py.typed" in names for package in packages)
assert sorted(name for name in recipes if name.endswith(".yaml")) == shipped
assert any(name.endswith("licenses/LICENSE") for name in names)
print(f"{len(names)} files, {len(recipes)} recipes, {len(top)} packages")
