"""The worked example of docs/adding_an_encoder.md: every weight learns, and its class path is enough to train it."""

import re
import sys
from pathlib import Path

import pytest
import torch

from samlit import cli
from samlit.structures import Embedding
from tests.conftest import RECIPE

TEXT = (Path(__file__).parents[1] / "docs" / "adding_an_encoder.md").read_text()
(CODE,) = re.findall(r"^```python\n(.*?)^```", TEXT, re.M | re.S)


@pytest.fixture
def pyramid():
    names = {}
    exec(CODE, names)
    return names["Pyramid"]


def test_the_example_is_short():
    start = CODE.index("class Pyramid")
    assert len(CODE[start:].splitlines()) <= 40


def test_it_keeps_the_contract(pyramid):
    net = pyramid(64, channels=32, width=4)
    made = net(torch.randn(2, 3, 64, 96))
    assert isinstance(made, Embedding)
    assert made.image.shape == (2, 32, 4, 6)
    assert [map_.shape for map_ in made.early] == [(2, 4, 16, 24), (2, 8, 8, 12)]
    sum(map_.sum() + map_.square().sum() for map_ in (made.image, *made.early)).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in net.parameters())
    plain = pyramid(64, detail=False)
    assert plain(torch.zeros(1, 3, 64, 64)).early == ()
    assert not [name for name, _ in plain.named_parameters() if "detail" in name]
    with pytest.raises(ValueError, match="image_size 40 is not a multiple of 16"):
        pyramid(40)


def test_it_trains_from_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "pyramid.py").write_text(CODE)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    words = ["--model.encoder", "pyramid.Pyramid", "--model.encoder.width", "4", "--model.encoder.channels", "32"]
    words += ["--model.decoder.high_res", "true", "--trainer.default_root_dir", "runs"]
    try:
        assert cli.main(["fit", "--recipe", "recipe.yaml", *words]) == 0
    finally:
        sys.modules.pop("pyramid", None)
    (file,) = tmp_path.rglob("last.ckpt")
    saved = torch.load(file, weights_only=True)["state_dict"]
    assert saved["net.encoder.stages.0.0.weight"].shape == (4, 3, 3, 3)
    assert saved["net.encoder.detail.1.weight"].shape == (8, 16, 1, 1)
