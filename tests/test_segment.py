"""`samlit segment`: what it writes, and one clear line for everything that is wrong."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from samlit import cli
from samlit.masks import rle
from samlit.predictor import Predictor
from tests.test_predictor import bad_checkpoints, picture


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with two pictures, a mask, and something that is neither."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    Image.fromarray(picture()).save("a.png")
    Image.fromarray(picture(30, 20, 1)).save("b.png")
    mask = np.zeros((20, 50), np.uint8)
    mask[3:15, 5:30] = 255
    Image.fromarray(mask).save("mask.png")
    (folder / "notes.txt").write_text("no image")
    (folder / "sub").mkdir()
    Image.fromarray(picture(20, 50, 2)).save("sub/a.png")
    return folder


def expected(checkpoint, image="a.png", **given):
    predictor = Predictor.load(checkpoint)
    predictor.set_image(image)
    return predictor.predict(given)


def test_masks_of_two_images_in_a_folder(here, checkpoint, capsys):
    status = cli.main(
        [
            "segment",
            "a.png",
            "b.png",
            "--weights",
            str(checkpoint),
            "--point",
            "12,8",
            "--point",
            "3,4,0",
            "--out",
            "o/p",
        ]
    )
    assert status == 0
    assert sorted(str(f.relative_to(here)) for f in (here / "o").rglob("*.*")) == ["o/p/a_1.png", "o/p/b_1.png"]
    for name in "ab":
        answer = expected(checkpoint, f"{name}.png", points=[(12, 8, 1), (3, 4, 0)])
        assert np.array_equal(np.asarray(Image.open(f"o/p/{name}_1.png")) > 0, answer.masks[0].numpy())
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == f"b.png: mask 1, {int(answer.masks.sum())} pixels, predicted IoU {float(answer.iou[0]):.2f}"
    assert lines[-1] == "saved to o/p"


def test_coco_results_decode_to_the_same_masks(here, checkpoint):
    words = ["a.png", "b.png", "--box", "2,3,18,17", "--weights", str(checkpoint), "--all", "--out", "o.json"]
    assert cli.main(["segment", *words]) == 0
    rows = json.loads((here / "o.json").read_text())
    assert [row["file_name"] for row in rows] == ["a.png"] * 3 + ["b.png"] * 3
    for name, start in (("a.png", 0), ("b.png", 3)):
        answer = expected(checkpoint, name, boxes=[(2, 3, 18, 17)])
        for row, mask, iou in zip(rows[start : start + 3], answer.masks, answer.iou, strict=True):
            drawn = rle.decode(rle.Rle(tuple(row["segmentation"]["size"]), row["segmentation"]["counts"]))
            assert np.array_equal(drawn, mask.numpy())
            assert row["score"] == pytest.approx(float(iou), abs=1e-4)
            y, x = mask.nonzero().unbind(1) if mask.any() else (torch.zeros(1),) * 2
            box = [int(x.min()), int(y.min()), int(x.max() - x.min()) + 1, int(y.max() - y.min()) + 1]
            assert row["bbox"] == (box if mask.any() else [0, 0, 0, 0])


@pytest.mark.parametrize("out", ["o.png", "o.jpg"])
def test_one_picture_shows_the_image_and_the_mask(here, checkpoint, out):
    assert cli.main(["segment", "a.png", "--weights", str(checkpoint), "--point", "12,8", "--out", out]) == 0
    shown = np.asarray(Image.open(out)).astype(int)
    assert shown.shape == (20, 50, 3)
    if out == "o.png":
        mask = expected(checkpoint, points=[(12, 8, 1)]).masks[0].numpy()
        changed = (shown != picture()).any(2)
        assert changed[mask].mean() > 0.9
        assert (~changed).any()
    assert [f.name for f in here.iterdir() if f.name.startswith((".", "o"))] == [out]


def test_a_mask_file_is_a_prompt(here, checkpoint):
    mask = torch.from_numpy(np.asarray(Image.open("mask.png")) > 0).float()
    words = ["--mask", "mask.png", "--weights", str(checkpoint), "--out", "o.json", "a.png"]
    assert cli.main(["segment", *words]) == 0
    (row,) = json.loads((here / "o.json").read_text())
    answer = expected(checkpoint, masks=[mask])
    assert row["score"] == pytest.approx(float(answer.iou[0]), abs=1e-4)


def test_prompts_may_come_before_the_images_and_with_an_equals_sign(here, checkpoint):
    weights = ["--weights", str(checkpoint)]
    assert cli.main(["segment", "--point", "12,8", "a.png", *weights, "--out", "1.json"]) == 0
    assert cli.main(["segment", "--point=12,8", *weights, "--out=2.json", "a.png"]) == 0
    assert (here / "1.json").read_text() == (here / "2.json").read_text()
    # A corner may lie outside, and a number begin with a minus.
    assert cli.main(["segment", "--box", "-5,-3,20,15", *weights, "--out", "3.json", "a.png"]) == 0


WRONG = {
    "no prompt": (["a.png"], 2, "give at least one prompt (this model takes --point, --box, --mask)"),
    "outside": (
        ["a.png", "--point", "60,3"],
        1,
        "the point (60, 3) is outside the image, which is 50 wide and 20 high",
    ),
    "outside, negative": (["a.png", "--point", "-1,3"], 1, "the point (-1, 3) is outside the image"),
    "outside one of two": (["a.png", "b.png", "--point", "40,3", "--out", "o.json"], 1, "is outside the image"),
    "no number": (["a.png", "--point", "x,3"], 2, "a point is X,Y or X,Y,LABEL"),
    "label": (["a.png", "--point", "1,3,7"], 2, "a point is X,Y or X,Y,LABEL"),
    "half a box": (["a.png", "--box", "1,2,3"], 2, "a box is X0,Y0,X1,Y1"),
    "endless box": (["a.png", "--box", "1,2,inf,9"], 1, "outside the image"),
    "no value": (["a.png", "--point"], 2, "--point: expected one argument"),
    "unknown prompt": (["a.png", "--pont", "1,2"], 2, "--pont is none of them"),
    "two in one": (["a.png", "b.png", "--point", "1,2", "--out", "o.png"], 2, "one picture cannot show 2 images"),
    "two names": (["a.png", "sub/a.png", "--point", "1,2", "--out", "o"], 2, "two of the images have the same name"),
    "no image": (["c.png", "--point", "1,2"], 1, "c.png: there is no such image"),
    "text": (["notes.txt", "--point", "1,2"], 1, "notes.txt: is not an image"),
    "second is text": (["a.png", "notes.txt", "--point", "1,2", "--out", "o"], 1, "notes.txt: is not an image"),
    "mask missing": (["a.png", "--mask", "none.png"], 2, "none.png: there is no such image"),
    "mask is text": (["a.png", "--mask", "notes.txt"], 2, "notes.txt: is not an image"),
    "mask of another": (["b.png", "--mask", "mask.png"], 1, "they must be equal"),
    "no images": (["--point", "1,2"], 2, "IMAGE"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_wrong_is_said_in_one_line_and_nothing_is_written(here, checkpoint, capsys, kind):
    words, status, message = WRONG[kind]
    out = [] if "--out" in words else ["--out", "o.png"]
    before = sorted(here.rglob("*"))
    assert cli.main(["segment", *words, "--weights", str(checkpoint), *out]) == status
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("samlit: ")
    assert message in line
    assert sorted(here.rglob("*")) == before


def test_checkpoints_that_are_none_end_in_one_line(here, checkpoint, capsys, tmp_path):
    files = bad_checkpoints(checkpoint, tmp_path)
    for file in [*files, tmp_path / "missing", here]:
        words = ["segment", "a.png", "--weights", str(file), "--point", "1,2", "--out", "o.png"]
        assert cli.main(words) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert str(file) in line
        assert not (here / "o.png").exists()
    assert not (tmp_path / "sprung").exists()


def test_help_needs_no_model(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["segment", "--help"])
    assert end.value.code == 0
    assert "--point X,Y[,LABEL]" in capsys.readouterr().out
