"""Every shipped recipe is read by the parser that will run it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from samlit import recipe
from samlit.cli import main

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "recipes"
RECIPES = sorted(file.relative_to(FOLDER).with_suffix("").as_posix() for file in FOLDER.rglob("*.yaml"))


def test_the_shipped_recipes_are_these_files() -> None:
    assert recipe.names() == RECIPES
    assert not list(FOLDER.rglob("*.yml")), "recipes end in .yaml"
    assert "tiny" in RECIPES


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_parses(name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["fit", "--recipe", name, "--print_config"]) == 0, capsys.readouterr().err
    said = yaml.safe_load(recipe.path(name).read_text())
    parsed = yaml.safe_load(capsys.readouterr().out)
    assert parsed["data"]["image_size"] == said["data"].get("image_size", 1024)
    assert len(parsed["model"]["prompts"]) == len(said["model"]["prompts"])
    for slot in ("encoder", "decoder", "task"):
        assert "." in parsed["model"][slot]["class_path"], f"{slot} is a class path once it is parsed"
    # What is printed is itself a recipe.
    (tmp_path / "printed.yaml").write_text(yaml.safe_dump(parsed))
    assert main(["fit", "--recipe", str(tmp_path / "printed.yaml"), "--print_config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == parsed


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_a_page_with_a_header(name: str) -> None:
    text = recipe.path(name).read_text()
    header = text.partition("\n\n")[0] if text.startswith("#") else ""
    assert len(recipe.summary(name)) > 20, "the first line says what it trains: `samlit list recipes` prints it"
    assert f"samlit fit --recipe {name}" in text, "the header gives the command"
    assert header
    assert len(text.splitlines()) <= 80
    sections = [key for key in yaml.safe_load(text) if key in ("model", "data", "trainer")]
    assert sections == ["model", "data", "trainer"]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_picks_by_name(name: str) -> None:
    assert "class_path: samlit" not in recipe.path(name).read_text(), "registered names, not class paths"


def test_another_source_takes_over_nothing_of_the_recipes_own(capsys: pytest.CaptureFixture[str]) -> None:
    """An argument of the same name (the scenes' smallest mask, say) would drop a person's masks in silence."""
    words = ["--data.source", "coco", "--data.source.annotations", "a.json"]
    assert main(["fit", "--recipe", "tiny", *words, "--print_config"]) == 0, capsys.readouterr().err
    source = yaml.safe_load(capsys.readouterr().out)["data"]["source"]
    assert source["class_path"] == "samlit_sources.coco.Coco"
    given = source["init_args"]
    assert {k: v for k, v in given.items() if k != "annotations"} == {
        "images": None, "crowd": False, "empty": True, "min_area": 1, "strict": True, "tile": 0
    }  # fmt: skip


def test_another_class_takes_over_no_argument_of_the_one_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = yaml.safe_load(recipe.path("tiny").read_text())
    tree["data"]["source"]["init_args"]["min_area"] = 300
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(tree))
    words = ["fit", "--recipe", str(tmp_path / "own.yaml"), "--print_config"]

    def source(*more: str) -> dict[str, object]:
        assert main([*words, *more]) == 0, capsys.readouterr().err
        printed: dict[str, object] = yaml.safe_load(capsys.readouterr().out)["data"]["source"]["init_args"]
        return printed

    coco = source("--data.source", "coco", "--data.source.annotations", "a.json")
    assert coco["min_area"] == 1
    assert source("--data.source", "{class_path: coco, init_args: {annotations: a.json}}")["min_area"] == 1
    # The same class again is the same plug-in with another argument.
    assert source("--data.source", "shapes", "--data.source.count", "5")["min_area"] == 300
    assert source("--data.source.count", "5")["min_area"] == 300
