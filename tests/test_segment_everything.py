"""`samlit segment --everything`: records, pictures and folders of masks of all there is."""

import json

import numpy as np
import pytest
from PIL import Image

from samlit import cli
from samlit.masks import rle
from samlit.masks.rle import Rle
from tests.test_predictor_official import picture

KEYS = ["--everything.points_per_side", "5", "--everything.points_per_batch", "10"]
KEYS += ["--everything.pred_iou_thresh", "null", "--everything.stability_score_thresh=null"]
KEYS += ["--everything.box_nms_thresh", "0.9"]


@pytest.fixture
def images(tmp_path):
    for name, size in (("one", (40, 70)), ("two", (61, 30))):
        Image.fromarray(picture(*size)).save(tmp_path / f"{name}.png")
    return [str(tmp_path / "one.png"), str(tmp_path / "two.png")]


def test_records_are_those_of_the_released_generator(checkpoint, images, tmp_path, capsys):
    words = ["segment", *images, "--weights", str(checkpoint), "--everything", *KEYS]
    assert cli.main([*words, "--out", str(tmp_path / "found.json")]) == 0
    said = capsys.readouterr()
    rows = json.loads((tmp_path / "found.json").read_text())
    assert {row["file_name"] for row in rows} == set(images)
    for row in rows:
        mask = rle.decode(Rle(tuple(row["segmentation"]["size"]), row["segmentation"]["counts"]))
        y, x = np.nonzero(mask)
        assert row["area"] == mask.sum()
        assert row["bbox"] == [x.min(), y.min(), np.ptp(x), np.ptp(y)]
        assert row["crop_box"] == [0, 0, mask.shape[1], mask.shape[0]]
        assert set(row) - {"file_name"} == {
            "segmentation", "area", "bbox", "predicted_iou", "point_coords", "stability_score", "crop_box"
        }  # fmt: skip
    first = sum(row["file_name"] == images[0] for row in rows)
    assert f"{images[0]}: {first} masks" in said.out
    assert "3/3" in said.err, "how far it is, in batches of points"


def test_a_picture_and_a_folder(checkpoint, images, tmp_path, capsys):
    words = ["--weights", str(checkpoint), "--everything", *KEYS]
    assert cli.main(["segment", images[0], *words, "--out", str(tmp_path / "out.png")]) == 0
    drawn = np.asarray(Image.open(tmp_path / "out.png"))
    assert drawn.shape == (40, 70, 3)
    assert (drawn != picture(40, 70)).any()
    assert cli.main(["segment", *images, *words, "--out", str(tmp_path / "masks")]) == 0
    said = capsys.readouterr().out.splitlines()
    count = [int(line.split()[-2]) for line in said if line.endswith("masks") and "saved" not in line][-2:]
    assert len(list((tmp_path / "masks").glob("one_*.png"))) == count[0]
    assert len(list((tmp_path / "masks").glob("two_*.png"))) == count[1]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--everything", "--point", "3,4"], "--everything takes no prompts, and --point is one"),
        (["--everything.points_per_side", "3"], "--everything.points_per_side is for --everything"),
        (["--everything", "--everything.point_per_side", "3"], "did you mean '--everything.points_per_side'?"),
        (["--everything", "--everything.points_per_side", "0"], "points_per_side: one at least, not 0"),
        (["--everything", "--everything.points_per_side", "some"], "points_per_side"),
    ],
)
def test_what_is_wrong_is_one_line(words, says, checkpoint, images, tmp_path, capsys):
    assert cli.main(["segment", images[0], "--weights", str(checkpoint), "--out", str(tmp_path / "o.png"), *words]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
