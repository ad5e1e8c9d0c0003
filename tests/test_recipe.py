"""Recipes by name, names to class paths: in files and on the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from samlit import recipe
from samlit.errors import UsageError
from samlit.shell import arguments

Install = Callable[..., Path]
MODEL = {"encoder": "vit_b", "prompts": ["points", "boxes"], "decoder": "mask", "task": "interactive"}


def write(folder: Path, tree: Any, name: str = "own.yaml") -> str:
    (folder / name).write_text(tree if isinstance(tree, str) else yaml.safe_dump(tree))
    return str(folder / name)


def refused(*words: str) -> str:
    with pytest.raises(UsageError) as error:
        arguments.read(list(words))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_names_become_class_paths_in_every_slot() -> None:
    tree = {
        "model": {**MODEL, "validation": ["points", {"class_path": "boxes"}]},
        "data": {"source": {"class_path": "coco", "init_args": {"annotations": "a.json"}}, "validation": "shapes"},
    }
    new = recipe.resolve(tree)
    assert new["model"] == {
        "encoder": "samlit_encoders.vit.VitB",
        "prompts": ["samlit_prompts.points.Points", "samlit_prompts.boxes.Boxes"],
        "decoder": "samlit_decoders.mask.Mask",
        "task": "samlit_tasks.interactive.Interactive",
        "validation": ["samlit_tasks.points.Points", {"class_path": "samlit_tasks.boxes.Boxes"}],
    }
    assert new["data"]["source"]["class_path"] == "samlit_sources.coco.Coco"
    assert new["data"]["validation"] == "samlit_sources.shapes.Shapes"


def test_what_is_said_already_stays_as_it_is() -> None:
    tree = {
        "seed_everything": 3,
        "model": {"encoder": {"class_path": "samlit_encoders.vit.Vit", "init_args": {"depth": 2}}, "image_size": 64},
        "data": {"source": None, "workers": 0},
        "trainer": {"callbacks": [{"class_path": "lightning.pytorch.callbacks.ModelCheckpoint"}], "max_steps": 8},
    }
    assert recipe.resolve(tree) == tree


def test_plugins_inside_plugins_go_by_name_too(install: Install) -> None:
    text = "class Mix:\n    def __init__(self, sources: list, source: str = '', name: str = ''): ..."
    install("blend-tools", "[samlit.sources]\nblend = mixed:Mix\n", {"mixed.py": text})
    given = {"sources": ["shapes", {"class_path": "coco"}], "source": "any text", "name": "shapes"}
    new = recipe.resolve({"data": {"source": {"class_path": "blend", "init_args": given}}})
    assert new["data"]["source"]["init_args"] == {
        "sources": ["samlit_sources.shapes.Shapes", {"class_path": "samlit_sources.coco.Coco"}],
        "source": "any text",
        "name": "shapes",
    }


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        ({"modle": {}}, "there is no key 'modle'; did you mean 'model'?"),
        ({"max_steps": 3}, "there is no key 'max_steps'; did you mean 'trainer.max_steps'?"),
        ({"trainer": {"max_stps": 3}}, "there is no key 'trainer.max_stps'; did you mean 'trainer.max_steps'?"),
        ({"model": {"encodr": 3}}, "there is no key 'model.encodr'; did you mean 'model.encoder'?"),
        ({"model": {"batch_size": 3}}, "there is no key 'model.batch_size'; did you mean 'data.batch_size'?"),
        ({"model": {"encoder": "vit_q"}}, "model.encoder: no encoder is called 'vit_q'"),
        ({"model": {"prompts": ["points", "ponts"]}}, "model.prompts[1]: no prompt is called 'ponts'; did you mean"),
        ({"model": {"task": {"class_path": "interactiv"}}}, "model.task: no task is called 'interactiv'; did you"),
        ({"model": {"encoder": {"class_path": "vit", "init_args": {"dpth": 1}}}}, "Vit has no 'dpth'; did you mean"),
        ({"model": {"encoder": "nowhere.Vit"}}, "model.encoder: 'nowhere.Vit': there is no module 'nowhere'"),
        ({"model": {"encoder": "samlit_encoders.vit.Vitt"}}, "has no 'Vitt'; did you mean 'Vit'?"),
        ([1], "a recipe is keys and values (model, data, trainer), this is a list"),
        ("", "this is empty"),
        ("model: [", "line 1, column 9: not YAML"),
    ],
)
def test_a_recipes_fault_is_named_with_its_place(tmp_path: Path, tree: Any, says: str) -> None:
    file = write(tmp_path, tree)
    assert says in refused("--recipe", file)
    assert "own.yaml" in refused("--config", file)


def test_a_recipe_is_found_by_name_and_by_file(tmp_path: Path) -> None:
    assert recipe.path("tiny") == recipe.folder() / "tiny.yaml"
    assert recipe.path(write(tmp_path, {})) == tmp_path / "own.yaml"
    assert recipe.summary("tiny")
    assert "no recipe is called 'tny'; did you mean 'tiny'? (known: " in refused("--recipe", "tny")
    assert "there is no recipe file 'tinny.yaml'; did you mean 'tiny'?" in refused("--recipe", "tinny.yaml")
    assert "--recipe needs a value" in refused("--recipe")


@pytest.mark.parametrize(
    ("given", "becomes"),
    [
        (["--model.encoder", "vit_b"], ["--model.encoder=samlit_encoders.vit.VitB"]),
        (["--model.encoder=vit_b"], ["--model.encoder=samlit_encoders.vit.VitB"]),
        (["--model.prompts+", "points"], ["--model.prompts+=samlit_prompts.points.Points"]),
        (["--model.prompts+=points"], ["--model.prompts+=samlit_prompts.points.Points"]),
        (["--model.encoder.help", "vit"], ["--model.encoder.help=samlit_encoders.vit.Vit"]),
        (["--model.encoder.help"], ["--model.encoder.help"]),
        (["--data.source", "null"], ["--data.source=null"]),
        (["--trainer.max_steps", "-1", "--print_config"], ["--trainer.max_steps=-1", "--print_config"]),
        (["--seed_everything=3", "-h"], ["--seed_everything=3", "--help"]),
        (["--trainer.callbacks+=ModelCheckpoint"], ["--trainer.callbacks+=ModelCheckpoint"]),
    ],
)
def test_the_command_line_is_resolved(given: list[str], becomes: list[str]) -> None:
    assert arguments.read(given).words == becomes


def test_lists_mappings_and_files_are_resolved_as_values(tmp_path: Path) -> None:
    (listed,) = arguments.read(["--model.prompts", "[points, {class_path: boxes}]"]).words
    value = yaml.safe_load(listed.partition("=")[2])
    assert value == ["samlit_prompts.points.Points", {"class_path": "samlit_prompts.boxes.Boxes"}]
    file = write(tmp_path, {"class_path": "vit", "init_args": {"depth": 2}})
    (read,) = arguments.read(["--model.encoder", file]).words
    assert yaml.safe_load(read.partition("=")[2])["class_path"] == "samlit_encoders.vit.Vit"
    (whole,) = arguments.read(["--model", "{encoder: vit_b}"]).words
    assert yaml.safe_load(whole.partition("=")[2]) == {"encoder": "samlit_encoders.vit.VitB"}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--devices", "2"], "there is no option '--devices'; did you mean '--trainer.devices'?"),
        (["--max_steps=2"], "there is no option '--max_steps'; did you mean '--trainer.max_steps'?"),
        (["--trainer.devces", "2"], "there is no option '--trainer.devces'; did you mean '--trainer.devices'?"),
        (["--recpe", "tiny"], "there is no option '--recpe'; did you mean '--recipe'?"),
        (["tiny"], "'tiny' belongs to no option; did you mean --recipe tiny?"),
        (["--model.encoder", "points"], "no encoder is called 'points'; there is a prompt of that name"),
        (["--model.prompts", "[points"], "--model.prompts: cannot read '[points'"),
        (["--model.prompts", "[points, ponts]"], "model.prompts[1]: no prompt is called 'ponts'"),
        (["--model.encoder", "vit", "--model.encoder.dpth", "3"], "--model.encoder.dpth: Vit has no 'dpth'; did you"),
        (["--model.encoder", "own.yaml"], "there is no file 'own.yaml'"),
        (["--config", "own.yaml"], "there is no file 'own.yaml'"),
    ],
)
def test_a_fault_of_the_command_line_is_told(given: list[str], says: str) -> None:
    assert says in refused(*given)


def test_what_is_asked_for_is_known_before_anything_is_imported(tmp_path: Path) -> None:
    file = write(tmp_path, {"model": MODEL, "data": {"source": "shapes"}})
    line = arguments.read(["--recipe", file, "--model.prompts+=masks"])
    assert line.complete
    assert line.plugins["model.encoder"] == "samlit_encoders.vit.VitB"
    assert line.plugins["model.prompts[1]"] == "samlit_prompts.boxes.Boxes"
    assert "samlit_prompts.masks.Masks" in line.plugins.values()
    line = arguments.read(["--recipe", file, "--model.encoder", "vit", "--model.prompts", "[masks]"])
    assert line.plugins["model.encoder"] == "samlit_encoders.vit.Vit"
    assert "samlit_prompts.boxes.Boxes" not in line.plugins.values(), "it was overridden"
    assert not arguments.read(["--trainer.max_steps", "1"]).complete


def test_an_argument_of_a_listed_plugin_is_no_class_path() -> None:
    """A file named in a list's item has a dot too, and nobody imports it."""
    tree = {"model": {"prompts": ["a.B", {"class_path": "c.D", "init_args": {"weights": "runs/clip.pt"}}]}}
    assert list(recipe.class_paths(tree)) == [("model.prompts[0]", "a.B"), ("model.prompts[1]", "c.D")]
    one = {"data": {"source": {"class_path": "e.F", "init_args": {"root": "some.where"}}}}
    assert list(recipe.class_paths(one)) == [("data.source", "e.F")]
