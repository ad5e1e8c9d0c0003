"""What `import samlit` promises: its names, what they cost, and that each says what it is."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import samlit

PAGES = Path(__file__).parents[1] / "docs" / "api"
NAMES = [name for name in samlit.__all__ if not name.startswith("__")]


def test_importing_samlit_imports_nothing_else() -> None:
    code = "import sys; before = set(sys.modules); import samlit; dir(samlit); "
    code += "print(*[m for m in set(sys.modules) - before if m.startswith(('samlit.', 'torch', 'numpy', 'lightning'))])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_is_the_module_s_own_and_says_what_it_is(name: str) -> None:
    value = getattr(samlit, name)
    assert inspect.isclass(value)
    assert value.__module__.startswith("samlit.")
    assert name in sys.modules[value.__module__].__all__
    assert len((value.__doc__ or "").splitlines()[0]) > 10
    assert name in dir(samlit)


def test_type_checkers_are_told_the_same_names() -> None:
    tree = ast.parse(Path(samlit.__file__).read_text())
    (typing_only,) = (node for node in tree.body if isinstance(node, ast.If))
    told = {
        (node.module, alias.name)
        for node in typing_only.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert told == {(getattr(samlit, name).__module__, name) for name in NAMES}
    assert Path(samlit.__file__).with_name("py.typed").is_file()


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Predicter'"):
        samlit.Predicter  # noqa: B018


def test_every_public_name_is_on_an_api_page_and_in_their_list() -> None:
    shown = set(re.findall(r"^::: (\S+)$", "\n".join(page.read_text() for page in PAGES.glob("*.md")), re.M))
    homes = {name: getattr(samlit, name).__module__ for name in NAMES}
    assert not {name for name, home in homes.items() if not shown & {home, f"{home}.{name}"}}
    rows = re.findall(r"^\| (`.*?) \|", (PAGES / "README.md").read_text(), re.M)
    assert sorted(re.findall(r"\w+", " ".join(rows))) == sorted(NAMES)
