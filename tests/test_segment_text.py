"""Text from the shell and through the predictor, with a tiny model that was fitted with it."""

import json

import pytest
import torch
from PIL import Image

from samlit import checkpoints, cli
from samlit.loading import images
from samlit.predictor import Predictor
from samlit.segment.text import find
from samlit.source import Sample
from samlit.text.clip import build
from tests.conftest import RECIPE
from tests.test_clip import SMALL
from tests.test_predictor import picture


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A checkpoint of two steps, of a model that takes text; its weights were stirred."""
    folder = tmp_path_factory.mktemp("worded")
    torch.manual_seed(0)
    own = {**SMALL, "text_cfg": {**SMALL["text_cfg"], "context_length": 12}}
    torch.save(build(own)[0].state_dict(), folder / "clip.pt")
    text = f"{{class_path: text, init_args: {{clip: {json.dumps(own)}, weights: {folder}/clip.pt}}}}"
    recipe = RECIPE.replace("[points, boxes, masks]", f"[points, boxes, masks, {text}]")
    recipe = recipe.replace("{corrections: 1}", "{corrections: 1, first: {text: 0.7, points: 0.3}}")
    (folder / "own.yaml").write_text(recipe)
    assert cli.main(["fit", "--recipe", str(folder / "own.yaml"), "--trainer.default_root_dir", str(folder)]) == 0
    (file,) = folder.rglob("last.ckpt")
    saved = torch.load(file, weights_only=True)
    assert not any("clip" in name for name in saved["state_dict"]), "a frozen CLIP is no part of a checkpoint"
    assert "prompts.text.project.weight" in "".join(saved["state_dict"])
    chance = torch.Generator().manual_seed(3)
    for name, value in saved["state_dict"].items():
        if value.is_floating_point():
            saved["state_dict"][name] = value + 0.4 * torch.randn(value.shape, generator=chance)
    torch.save(saved, folder / "worded.ckpt")
    return folder / "worded.ckpt"


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(picture()).save("a.png")
    return tmp_path


def test_words_on_the_command_line_are_what_the_predictor_takes(fitted, here, capsys):
    words = ["segment", "a.png", "--weights", str(fitted), "--text", "the striped wheel"]
    assert cli.main([*words, "--out", "a.json"]) == 0, capsys.readouterr().err
    predictor = Predictor.load(fitted)
    predictor.set_image("a.png")
    answer = predictor.predict({"text": ["the striped wheel"]})
    (row,) = json.loads((here / "a.json").read_text())
    assert row["score"] == pytest.approx(float(answer.iou[0]), abs=1e-3)
    other = predictor.predict({"text": ["a cat"]})
    assert not torch.allclose(answer.low_res_logits, other.low_res_logits)
    clicked = predictor.predict({"text": ["a cat"], "points": ["12,8"]})
    assert not torch.allclose(clicked.low_res_logits[0], other.low_res_logits[0])
    again = predictor.predict({"text": ["a cat"], "points": [(12, 8, 1)]})
    assert torch.equal(clicked.low_res_logits, again.low_res_logits)
    with pytest.raises(ValueError, match=r"text: a list of prompts is wanted, like \['a cat'\]"):
        predictor.predict({"text": "a cat"})
    assert cli.main([*words, "--out", "a.jpg"]) == 0
    assert images.read("a.jpg").shape == picture().shape


def test_all_that_is_called_so_is_found_or_nothing(fitted, here, capsys):
    words = ["segment", "a.png", "--weights", str(fitted), "--text", "a cat", "--find"]
    assert cli.main([*words, "2", "--out", "none.json"]) == 0
    assert "nothing found for 'a cat'" in capsys.readouterr().out
    assert json.loads((here / "none.json").read_text()) == []
    assert cli.main([*words, "-2", "--out", "all.json"]) == 0
    told = capsys.readouterr().out
    rows = json.loads((here / "all.json").read_text())
    assert rows
    assert f"{len(rows)} found for 'a cat'" in told
    scores = [row["score"] for row in rows]
    assert scores == sorted(scores, reverse=True)
    net, side = checkpoints.load(fitted)
    found = find(net.eval(), side, Sample("a", images.read("a.png"), ()), "a cat", scores[0] - 1e-3)
    assert len(found) <= len(rows)
    assert found[0][0].counts == rows[0]["segmentation"]["counts"]
    assert cli.main([*words, "-2", "--out", "all.png"]) == 0


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--text", ""], "this one is empty"),
        (["--text", "one two three four five six seven eight nine ten eleven"], "reads 12 at most"),
        (["--find", "0.3", "--point", "3,4"], "--find goes with one --text WORDS"),
        (["--text", "a", "--banana", "3"], "this model takes --point, --box, --mask, --text; --banana is none of them"),
    ],
)
def test_what_cannot_be_done_is_one_line(fitted, here, capsys, words, line):
    assert cli.main(["segment", "a.png", "--weights", str(fitted), "--out", "a.png", *words]) == 2
    err = capsys.readouterr().err
    assert line in err
    assert err.count("\n") == 1


def test_a_model_without_words_says_what_it_takes(checkpoint, here, capsys):
    assert cli.main(["segment", "a.png", "--weights", str(checkpoint), "--text", "a", "--out", "a.png"]) == 2
    assert "this model takes --point, --box, --mask; --text is none of them" in capsys.readouterr().err


def test_the_task_judges_any_phrases_of_a_source(fitted, here, capsys, monkeypatch):
    monkeypatch.setenv("SAMLIT_CACHE", str(here / "cache"))
    words = ["evaluate", "--task", "text_to_mask", "--task.side", "2", "--weights", str(fitted), "--data", "shapes:val"]
    words += ["--set", "count=4", "--set", "style=worded", "--set", "size=64", "--batch", "2"]
    assert cli.main([*words, "--out", "judged"]) == 0, capsys.readouterr().err
    numbers = json.loads((here / "judged" / "results.json").read_text())["data"][0]["numbers"]
    assert {"text", "other", "click", "text_click", "precision", "recall", "cgf1", "threshold"} <= numbers.keys()
