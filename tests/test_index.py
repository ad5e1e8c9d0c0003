"""The index in pyproject.toml, the tree and the installed metadata say the same."""

from __future__ import annotations

import inspect
import tomllib
import typing
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from samlit import contracts, plugins, source

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
INDEX = {
    (group.removeprefix("samlit."), name): target
    for group, entries in PYPROJECT["project"]["entry-points"].items()
    for name, target in entries.items()
}
CONTRACTS = {
    "encoders": contracts.Encoder,
    "prompts": contracts.Prompt,
    "decoders": contracts.Decoder,
    "tasks": contracts.Task,
    "sources": source.Source,
}
FOLDERS = sorted(ROOT.glob("registry/samlit_*")) + sorted(ROOT.glob("data/samlit_*"))


def test_the_installed_index_is_that_of_pyproject() -> None:
    installed = {
        (kind, entry.name): entry.value
        for kind in plugins.KINDS
        for entry in entry_points(group=f"samlit.{kind}")
        if entry.dist is not None and entry.dist.name == "samlit"
    }
    assert installed == INDEX, "the index is read from installed metadata: run `pip install -e .` again"


def test_a_kind_is_a_folder_and_a_group() -> None:
    assert {folder.name for folder in FOLDERS} == {f"samlit_{kind}" for kind in plugins.KINDS}
    assert set(PYPROJECT["project"]["entry-points"]) == {f"samlit.{kind}" for kind in plugins.KINDS}


def test_every_public_plugin_file_is_named() -> None:
    files = {f"{file.parent.name}.{file.stem}" for folder in FOLDERS for file in folder.glob("[!_]*.py")}
    assert files == {target.partition(":")[0] for target in INDEX.values()}


@pytest.mark.parametrize("kind", sorted(plugins.KINDS))
def test_every_plugin_has_its_place_on_the_site(kind: str) -> None:
    page = (ROOT / "docs" / "api" / f"{kind}.md").read_text()
    shown = [line.removeprefix("::: ") for line in page.splitlines() if line.startswith("::: ")]
    targets = PYPROJECT["project"]["entry-points"][f"samlit.{kind}"].values()
    assert shown == sorted({target.partition(":")[0] for target in targets})


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_folder_is_typed_and_its_init_runs_nothing(folder: Path) -> None:
    assert (folder / "py.typed").is_file()
    assert "import " not in (folder / "__init__.py").read_text()


def test_the_wheel_holds_every_package() -> None:
    shipped = set(PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"])
    assert {str(folder.relative_to(ROOT)) for folder in FOLDERS} | {"samlit", "recipes"} == shipped
    assert {"samlit", *(folder.name for folder in FOLDERS)} == set(PYPROJECT["tool"]["mypy"]["packages"])


@pytest.mark.parametrize(("kind", "name"), INDEX)
def test_a_target_keeps_the_contract_of_its_kind(kind: str, name: str) -> None:
    plugin = plugins.find(kind, name)
    target = plugins.load(plugin.class_path, name)
    made = target if inspect.isclass(target) else typing.get_type_hints(target)["return"]
    assert issubclass(made, CONTRACTS[kind])
    if kind == "prompts":
        assert made.name == name, "a prompt type's registered name is its word in prompt sets"


@pytest.mark.parametrize(("kind", "name"), INDEX)
def test_a_plugin_says_in_one_line_what_it_is(kind: str, name: str) -> None:
    plugin = plugins.find(kind, name)
    assert plugin.problem() == ""
    assert plugin.summary().endswith(".")
    assert len(plugin.summary()) <= 100
