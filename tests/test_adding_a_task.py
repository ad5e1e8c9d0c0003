"""The worked example of docs/adding_a_task.md: it counts, and runs by its class path from the working directory."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from samlit import cli
from samlit.loading import frames
from samlit.loop import drive
from samlit.masks import rle
from samlit.source import Sample
from samlit.structures import Prediction, Scene
from samlit_prompts.points import Points

TEXT = (Path(__file__).parents[1] / "docs" / "adding_a_task.md").read_text()
(CODE,) = re.findall(r"^```python\n(.*?)^```", TEXT, re.M | re.S)


def test_the_example_is_as_short_as_it_is_called():
    start = CODE.index("class Counting")
    assert len(CODE[start:].splitlines()) <= 42


def test_it_counts_what_points_find_once_each():
    names = {}
    exec(CODE, names)
    masks = np.zeros((3, 48, 64), bool)
    masks[0, 4:20, 4:20], masks[1, 4:20, 30:60], masks[2, 30:32, 1:3] = True, True, True  # no point is on the third
    made = [Sample("a", np.zeros((48, 64, 3), np.uint8), tuple(rle.encode_many(masks)))]
    made.append(Sample("b", np.zeros((64, 64, 3), np.uint8), ()))
    scene = Scene(frames.pack([frames.frame(sample, 64) for sample in made]), {"points": Points(8)})
    asked = []

    def answer(prompts):
        """The thing under a point, surely, all of the image, surely, and something of which nothing is sure."""
        asked.append(prompts)
        x, y = prompts.given["points"].values[:, 0, :2].long().unbind(1)
        logits = torch.full((len(prompts), 3, 16, 16), -5.0)
        iou = torch.tensor([0.0, 0.1, 0.3]).repeat(len(prompts), 1)
        for row, image in enumerate(prompts.image_index.tolist()):
            for mask in scene.masks[scene.image_index == image]:
                if mask[y[row], x[row]]:
                    logits[row, 0][mask[::4, ::4]] = 5.0
                    iou[row, 0] = 0.95 - row / 1000
        return Prediction(logits, iou, torch.ones_like(iou, dtype=torch.bool), (64, 64))

    task = names["Counting"](side=6)
    result = drive(task, scene, answer)
    assert {name: values.tolist() for name, values in result.items()} == {
        "found": [2, 0],
        "there": [3, 0],
        "error": [1, 0],
    }
    assert [len(prompts) for prompts in asked] == [36, 36]
    metric = task.metric()
    metric.update(result)
    assert float(metric.compute()["error"]) == pytest.approx(0.5)


def test_it_runs_from_the_working_directory(tmp_path, monkeypatch, checkpoint, capsys):
    (tmp_path / "counting.py").write_text(CODE)
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(tmp_path / "images" / "a.png")
    Image.fromarray(np.eye(30, 40, dtype=np.uint8)).save(tmp_path / "masks" / "a.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    words = ["--task", "counting.Counting", "--task.side", "2", "--task.sure", "-9", "--weights", str(checkpoint)]
    try:
        assert cli.main(["evaluate", *words, "--data", f"folder:{tmp_path}", "--json", "found.json"]) == 0
        assert cli.main(["evaluate", "--task", "counting.Counting", "--help"]) == 0
    finally:
        sys.modules.pop("counting", None)
    assert "Points along a side of the grid." in capsys.readouterr().out
    found = json.loads((tmp_path / "found.json").read_text())
    (one,) = found["data"]
    assert one["numbers"]["there"] == 1
    assert found["keys"]["side"] == 2
