"""COCO panoptic files: the segments of real ones have the areas that their JSON states."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from samlit.faults import Damaged
from samlit.masks import rle
from samlit.source import Source
from samlit_sources.panoptic import Panoptic

SHARED = Path(os.environ.get("SAMLIT_SHARED") or Path(__file__).resolve().parents[2] / "shared" / "data")
SIZE = (30, 40)
BIG = 200 + 256 * 100 + 65536 * 7


def numbers() -> np.ndarray:
    """Three segments: a person (5), a crowd of them (300) and sky (BIG); the rest is nobody's."""
    drawn = np.zeros(SIZE, np.int64)
    drawn[:6] = BIG
    drawn[10:20, 5:15] = 5
    drawn[10:20, 20:39] = 300
    return drawn


def png(path: Path, drawn: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.stack([drawn % 256, drawn // 256 % 256, drawn // 65536], -1).astype(np.uint8)).save(path)


def write(folder: Path, **changes: Any) -> str:
    """The smallest data set that is right, laid out as COCO's, and its JSON's path."""
    document: dict[str, Any] = {
        "images": [{"id": 139, "file_name": "139.jpg", "height": SIZE[0], "width": SIZE[1]}],
        "annotations": [
            {
                "image_id": 139,
                "file_name": "139.png",
                "segments_info": [
                    {"id": BIG, "category_id": 187, "iscrowd": 0, "area": 240, "bbox": [0, 0, 40, 6]},
                    {"id": 5, "category_id": 1, "iscrowd": 0, "area": 100},
                    {"id": 300, "category_id": 1, "iscrowd": 1, "area": 190},
                ],
            }
        ],
        "categories": [
            {"id": 1, "name": "person", "isthing": 1},
            {"id": 187, "name": "sky-other-merged", "isthing": 0},
        ],
    }
    (folder / "annotations").mkdir(exist_ok=True)
    (folder / "val2017").mkdir(exist_ok=True)
    Image.new("RGB", SIZE[::-1]).save(folder / "val2017" / "139.jpg")
    png(folder / "annotations" / "panoptic_val2017" / "139.png", numbers())
    file = folder / "annotations" / "panoptic_val2017.json"
    file.write_text(json.dumps(document | changes))
    return str(file)


def test_segments_are_masks_in_their_order(tmp_path: Path) -> None:
    source = Panoptic(write(tmp_path))
    assert isinstance(source, Source)
    (sample,) = source
    assert sample.key == "139.jpg"
    assert sample.phrases == ("sky-other-merged", "person")
    assert sample.masks == (rle.encode(numbers() == BIG), rle.encode(numbers() == 5))
    assert sample.pixels().shape == (*SIZE, 3)
    assert len(pickle.loads(pickle.dumps(source))) == 1
    with pytest.raises(IndexError):
        source[1]


def test_kinds_by_choice(tmp_path: Path) -> None:
    file = write(tmp_path)
    assert Panoptic(file, things=False)[0].phrases == ("sky-other-merged",)
    assert Panoptic(file, stuff=False)[0].phrases == ("person",)
    assert Panoptic(file, stuff=False, crowd=True)[0].phrases == ("person", "person")
    assert Panoptic(file, min_area=101)[0].phrases == ("sky-other-merged",)
    with pytest.raises(ValueError, match="both false"):
        Panoptic(file, things=False, stuff=False)


def test_images_without_a_mask_by_choice(tmp_path: Path) -> None:
    document = json.loads(Path(write(tmp_path)).read_text())
    images = [*document["images"], document["images"][0] | {"id": 140}]
    only_crowd = {"image_id": 140, "file_name": "139.png", "segments_info": document["annotations"][0]["segments_info"]}
    file = write(tmp_path, images=images, annotations=[*document["annotations"], only_crowd | {"segments_info": []}])
    png(tmp_path / "annotations" / "panoptic_val2017" / "139.png", numbers())
    assert len(Panoptic(file)) == 2
    assert len(Panoptic(file, empty=False)) == 1


@pytest.mark.parametrize("folder", [None, "pngs"])
def test_its_folders_may_be_named(tmp_path: Path, folder: str | None) -> None:
    file = write(tmp_path)
    if folder:
        (tmp_path / "annotations" / "panoptic_val2017").rename(tmp_path / folder)
        (tmp_path / "val2017").rename(tmp_path / "photos")
        with pytest.raises(FileNotFoundError):
            len(Panoptic(file))
        source = Panoptic(file, images=str(tmp_path / "photos"), masks=str(tmp_path / folder))
    else:
        source = Panoptic(file)
    assert len(source[0].masks) == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image_id": 7}, "image id 7"),
        ({"segments_info": None}, "has no segments_info"),
        ({"segments_info": None, "segmentation": []}, "the source coco reads"),
        ({"file_name": 3}, "no segments_info and file_name"),
        ({"segments_info": [{"id": 0, "category_id": 1}]}, "id 0"),
        ({"segments_info": [{"id": 1 << 24, "category_id": 1}]}, "16777216"),
        ({"segments_info": [{"id": True, "category_id": 1}]}, "id True"),
        ({"segments_info": [{"id": 5, "category_id": 9}]}, "category_id 9"),
        ({"segments_info": [{"id": 5, "category_id": 1}] * 2}, "two segments of one id"),
        ({"segments_info": []}, "holds no masks"),
    ],
)
def test_a_wrong_json_is_one_line(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    document = json.loads(Path(write(tmp_path)).read_text())
    file = write(tmp_path, annotations=[document["annotations"][0] | change])
    with pytest.raises(ValueError, match=words) as caught:
        len(Panoptic(file))
    assert "\n" not in str(caught.value)
    assert "panoptic_val2017.json" in str(caught.value)


def test_json_without_its_png_or_annotation(tmp_path: Path) -> None:
    file = write(tmp_path)
    (tmp_path / "annotations" / "panoptic_val2017" / "139.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"139\.png"):
        len(Panoptic(file))
    with pytest.raises(ValueError, match="no list 'annotations', so it is no COCO panoptic file"):
        len(Panoptic(write(tmp_path, annotations=None)))
    images = [{"id": number, "file_name": "139.jpg", "height": SIZE[0], "width": SIZE[1]} for number in (139, 140)]
    with pytest.raises(ValueError, match="image 140 has no annotation"):
        len(Panoptic(write(tmp_path, images=images)))


def test_a_wrong_png_is_one_line_and_has_its_cause(tmp_path: Path) -> None:
    source = Panoptic(write(tmp_path))
    source.prepare()
    file = tmp_path / "annotations" / "panoptic_val2017" / "139.png"

    def says(cause: str, words: str) -> None:
        with pytest.raises(Damaged, match=words) as caught:
            source[0]
        assert (caught.value.cause, caught.value.key) == (cause, "139.jpg")
        assert "\n" not in str(caught.value)

    drawn = numbers()
    drawn[drawn == 5] = 6
    png(file, drawn)
    says("other", "the PNG has a segment 6")
    drawn[drawn == 6] = 0
    png(file, drawn)
    says("other", "the JSON has a segment 5")
    png(file, numbers()[:29])
    says("size", "29x40")
    Image.new("L", SIZE[::-1]).save(file)
    says("image", "of mode L")
    png(file, numbers())
    file.write_bytes(file.read_bytes()[:-40])
    says("image", "cut off")
    file.write_bytes(b"")
    says("image", "not an image")


def test_areas_of_real_segments_are_as_stated() -> None:
    folder = SHARED / "panoptic_sample"
    if not folder.exists():
        pytest.skip(f"{folder} is not here: set SAMLIT_SHARED to the folder of real data")
    file = folder / "panoptic_examples.json"
    source = Panoptic(str(file), images=str(folder / "input_images"), crowd=True)
    document = json.loads(file.read_text())
    names = {one["id"]: one["name"] for one in document["categories"]}
    assert len(source) == len(document["annotations"]) == 2
    for sample, annotation in zip(source, document["annotations"], strict=True):
        stated = annotation["segments_info"]
        assert [rle.area(mask) for mask in sample.masks] == [segment["area"] for segment in stated]
        boxes = [(x0, y0, x1 - x0, y1 - y0) for x0, y0, x1, y1 in map(rle.box, sample.masks)]
        assert boxes == [tuple(segment["bbox"]) for segment in stated]
        assert sample.phrases == tuple(names[segment["category_id"]].replace("_", " ") for segment in stated)
        assert sample.pixels().shape[:2] == sample.masks[0].size
    crowds = sum(
        segment["iscrowd"] for annotation in document["annotations"] for segment in annotation["segments_info"]
    )
    assert crowds
    without = Panoptic(str(file), images=str(folder / "input_images"))
    assert sum(len(s.masks) for s in source) - sum(len(s.masks) for s in without) == crowds
