"""Who may import whom, checked over the syntax tree.

The kernel names no plug-in package. A plug-in imports the kernel's library, never its machine and never another kind.
Sources know nothing of models. The library is whatever of the kernel does not lead to the machine.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
KERNEL = {
    ".".join(["samlit", *file.relative_to(ROOT / "samlit").with_suffix("").parts]).removesuffix(".__init__"): file
    for file in sorted((ROOT / "samlit").rglob("*.py"))
}
PLUGINS = {f"{f.parent.name}.{f.stem}": f for root in ("registry", "data") for f in sorted(ROOT.glob(f"{root}/*/*.py"))}
MACHINE = {f"samlit.{name}" for name in ("cli", "engine", "module", "datamodule", "plugins", "recipe")}
MODEL = {f"samlit.{name}" for name in ("model", "layers", "losses", "training.optim")}
PLUGIN_PACKAGE = re.compile(r"\bsamlit_(encoders|prompts|decoders|tasks|sources)\b")


def imports(tree: ast.AST, at_runtime: bool = False) -> Iterator[str]:
    """Every module that is imported, "from a import b" as both a and a.b, since b may be a module."""
    for node in ast.iter_child_nodes(tree):
        if at_runtime and isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=module, level=level, names=names):
                origin = "." * level + (module or "")
                yield origin
                yield from (f"{origin}.{alias.name}" for alias in names)
        yield from imports(node, at_runtime)


@cache
def reached(module: str) -> frozenset[str]:
    """The kernel's modules that a module of the kernel leads to, itself among them."""
    found, waiting = {module}, [module]
    while waiting:
        tree = ast.parse(KERNEL[waiting.pop()].read_text())
        new = {name for name in imports(tree, at_runtime=True) if name in KERNEL} - found
        found |= new
        waiting += new
    return frozenset(found)


def faults(module: str, text: str) -> list[str]:
    """What a module imports and must not."""
    tree = ast.parse(text)
    package = module.partition(".")[0]
    found = [f"relative import {name!r}" for name in imports(tree) if name.startswith(".")]
    if package == "samlit":
        documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        strings = (
            node.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation
        )
        named = {name for name in (*imports(tree), *strings) if PLUGIN_PACKAGE.search(name)}
        return found + [f"the kernel names {name!r}" for name in sorted(named)]
    for name in dict.fromkeys(imports(tree)):
        if PLUGIN_PACKAGE.match(name) and name.partition(".")[0] != package:
            found.append(f"imports another kind: {name}")
        if name in KERNEL and (machine := MACHINE & reached(name)):
            found.append(f"{name} leads to the machine: {', '.join(sorted(machine))}")
        if package == "samlit_sources" and name in KERNEL and (model := MODEL & reached(name)):
            found.append(f"a source uses the model: {name} leads to {', '.join(sorted(model))}")
        if name.partition(".")[0] in {"lightning", "pytorch_lightning"}:
            found.append(f"a plug-in knows nothing of Lightning: {name}")
    return found


@pytest.mark.parametrize("module", [*KERNEL, *PLUGINS])
def test_a_module_imports_only_what_it_may(module: str) -> None:
    assert faults(module, (KERNEL | PLUGINS)[module].read_text()) == []


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("samlit.model", "def build():\n    from samlit_encoders.vit import Vit"),
        ("samlit.model", "import samlit_prompts"),
        ("samlit.model", 'PATH = "samlit_encoders.vit.Vit"'),
        ("samlit.model", "from . import layers"),
        ("samlit_prompts.lasso", "from samlit_tasks.interactive import Interactive"),
        ("samlit_prompts.lasso", "from samlit.module import SamModule"),
        ("samlit_prompts.lasso", "from samlit import cli"),
        ("samlit_prompts.lasso", "import samlit.engine"),
        ("samlit_prompts.lasso", "import lightning.pytorch as pl"),
        ("samlit_sources.folder", "from samlit.layers import MLP"),
        ("samlit_sources.folder", "from samlit.model import Sam"),
        ("samlit_sources.folder", "from samlit_prompts.points import Points"),
    ],
)
def test_a_planted_fault_is_found(module: str, text: str) -> None:
    assert faults(module, text)


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("samlit.model", '"""Like samlit_encoders.vit."""\nfrom samlit.layers import MLP'),
        ("samlit_prompts.lasso", "from samlit.masks import clicks\nfrom samlit.contracts import Prompt\nimport torch"),
        ("samlit_prompts.lasso", "from samlit_prompts.points import Points"),
        ("samlit_sources.folder", "from samlit.source import Source\nfrom samlit.masks.rle import encode"),
    ],
)
def test_what_is_allowed_is_no_fault(module: str, text: str) -> None:
    assert faults(module, text) == []


def test_sources_and_the_processes_that_write_shards_hold_no_torch() -> None:
    sources = [name for name in PLUGINS if name.startswith("samlit_sources.")]
    assert sources
    modules = [*sources, "samlit.shards.making", "samlit.shards.conversion", "samlit.shards.writing"]
    code = (
        f"import importlib, sys\nfor name in {modules}:\n"
        "    importlib.import_module(name)\n    assert 'torch' not in sys.modules, name"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr


def test_the_command_line_is_light() -> None:
    heavy = {"torch", "lightning", "numpy", "timm", "samlit.engine", "samlit.contracts", "samlit.structures"}
    light = reached("samlit.cli") - {"samlit.engine"}
    for module in ("samlit.cli", "samlit.recipe", "samlit.plugins", "samlit.outline", "samlit.errors"):
        assert module in light
        top = [node for node in ast.parse(KERNEL[module].read_text()).body if not isinstance(node, ast.FunctionDef)]
        assert not heavy & set(imports(ast.Module(top, [])))
