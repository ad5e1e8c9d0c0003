"""Outlines that annotation tools and data sets keep in JSON files of their own: which are masks, and what is wrong."""

from __future__ import annotations

import json
import math
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image

from samlit.faults import Damaged
from samlit.loading.images import Encoded
from samlit.masks import rle
from samlit.source import Source
from samlit_sources._outlines import Outlines
from samlit_sources.coco import Coco
from samlit_sources.folder import Folder
from samlit_sources.via import Via
from samlit_sources.visor import Visor
from samlit_sources.woodscape import WoodScape
from tests.unpacked import HEIGHT, UNPACKED, WIDTH, bars, outline, photo, save, via, write

TRIANGLE = outline("polygon", (2, 2), (30, 4), (20, 30))


def says(source: Source, words: str, kind: type[Exception] = ValueError) -> None:
    with pytest.raises(kind, match=words) as caught:
        len(source)
    assert "\n" not in str(caught.value)


# VGG Image Annotator


@pytest.mark.parametrize("numbered", [False, True], ids=["VIA 2", "VIA 1"])
def test_regions_that_surround_something_are_masks(tmp_path: Path, numbered: bool) -> None:
    drawn = [
        TRIANGLE,
        {"name": "rect", "x": 3, "y": 3, "width": 9, "height": 9},
        {"name": "circle", "cx": 30, "cy": 24, "r": 10},
        {"name": "point", "cx": 3, "cy": 3},
        {"name": "ellipse", "cx": 30, "cy": 24, "rx": 20, "ry": 5, "theta": math.pi / 2},
    ]
    via(tmp_path / "via.json", tmp_path, {"a.jpg": drawn, "b.jpg": []}, numbered)
    source = Via(str(tmp_path / "via.json"))
    assert isinstance(source, Outlines)
    one, two = source
    assert (one.key, one.size, two.masks, one.phrases) == ("a.jpg", (HEIGHT, WIDTH), (), ())
    assert isinstance(one.image, Encoded)
    triangle, circle, ellipse = one.masks
    assert rle.area(triangle) == pytest.approx(0.5 * abs(28 * 28 - 18 * 2), rel=0.03)
    assert rle.area(circle) == pytest.approx(math.pi * 100, rel=0.03)
    assert rle.area(ellipse) == pytest.approx(math.pi * 100, rel=0.03)
    assert rle.box(ellipse) == pytest.approx((25, 4, 35, 44), abs=1)
    assert Via(str(tmp_path / "via.json"), phrase="kind", empty=False)[0].phrases == ("car",) * 3
    assert len(Via(str(tmp_path / "via.json"), empty=False)) == 1
    assert [len(sample.masks) for sample in Via(str(tmp_path / "via.json"), min_area=350)] == [1, 0]


def test_a_whole_project_is_read_and_images_may_be_elsewhere(tmp_path: Path) -> None:
    via(tmp_path / "made.json", tmp_path / "photos", {"a.jpg": [TRIANGLE]}, numbered=False)
    write(tmp_path / "project.json", {"_via_img_metadata": json.loads((tmp_path / "made.json").read_text())})
    assert len(Via(str(tmp_path / "project.json"), str(tmp_path / "photos"))[0].masks) == 1
    says(Via(str(tmp_path / "project.json")), r"'a\.jpg' of image a\.jpg.* is not in", FileNotFoundError)


def test_an_image_that_is_turned_has_its_outlines_as_it_is_seen(tmp_path: Path) -> None:
    via(tmp_path / "via.json", tmp_path, {"a.jpg": [outline("polygon", (2, 50), (30, 50), (30, 60))]}, numbered=False)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).save(tmp_path / "a.jpg", exif=exif)
    (sample,) = Via(str(tmp_path / "via.json"))
    assert sample.size == sample.pixels().shape[:2] == sample.masks[0].size == (WIDTH, HEIGHT)
    assert rle.area(sample.masks[0]) == pytest.approx(140, rel=0.1)


def test_mistakes_in_a_via_file_are_one_line(tmp_path: Path) -> None:
    file = tmp_path / "via.json"
    source = Via(str(file))
    says(source, "there is no such file", FileNotFoundError)
    write(file, {"images": [], "annotations": []})
    says(source, r"via\.json: is no JSON of VIA's")
    shapes: list[tuple[dict[str, Any], str]] = [
        (
            {"name": "polygon", "all_points_x": [1, 2, 3], "all_points_y": [1, 2]},
            "region 0 of a.jpg has an outline of not",
        ),
        (
            {"name": "polygon", "all_points_x": [1, 2, "x"], "all_points_y": [1, 2, 3]},
            "points are not all an x and a y",
        ),
        ({"name": "circle", "cx": 3}, "a circle or an ellipse without"),
        ({"name": "rect"}, "holds no masks"),
    ]
    for shape, words in shapes:
        via(file, tmp_path, {"a.jpg": [shape]}, numbered=False)
        says(source, words)
    write(file, {"a": {"filename": "a.jpg", "regions": [3]}})
    says(source, "region 0 of a.jpg has no shape_attributes")
    via(file, tmp_path, {"a.jpg": [outline("polygon", *[(0, 0), (1e9, 0)] * 9)]}, numbered=False)
    with pytest.raises(Damaged, match=r"a\.jpg: its polygon runs to and fro"):
        source[0]
    (tmp_path / "a.jpg").write_bytes(b"hello")
    with pytest.raises(Damaged, match="not an image") as caught:
        source[0]
    assert caught.value.key == "a.jpg"
    with pytest.raises(IndexError):
        source[1]


# VISOR and WoodScape


def test_mistakes_in_visor_are_one_line(tmp_path: Path) -> None:
    says(Visor(str(tmp_path)), "there is no folder .*annotations/val", FileNotFoundError)
    UNPACKED["visor"][0](tmp_path)
    root = tmp_path / "GroundTruth-SparseAnnotations"
    source = Visor(str(root))
    assert [sample.key for sample in source] == [f"{video}_frame_0000000298.jpg" for video in ("P01_107", "P02_3")]
    archive = root / "rgb_frames/val/P01/P01_107.zip"
    with zipfile.ZipFile(archive, "w") as out:
        out.write(photo_file(tmp_path / "small.jpg"), "P01_107_frame_0000000298.jpg")
    with pytest.raises(Damaged, match="is 64 wide and 48 high, VISOR's outlines are for 1920 and 1080"):
        source[0]
    with zipfile.ZipFile(archive, "w") as out:
        out.writestr("other.jpg", b"")
    with pytest.raises(Damaged, match=r"P01_107\.zip does not hold P01_107_frame"):
        source[0]
    archive.write_bytes(b"PK")
    with pytest.raises(Damaged, match="cannot be read"):
        source[0]
    archive.unlink()
    says(Visor(str(root)), "holds no frames of P01_107", FileNotFoundError)
    write(root / "annotations/val/P02_3.json", {"video_annotations": [{}]})
    (root / "annotations/val/P01_107.json").unlink()
    says(Visor(str(root)), r"P02_3\.json: is no annotation of VISOR's")


def photo_file(path: Path) -> Path:
    photo(path)
    return path


def test_mistakes_in_woodscape_are_one_line(tmp_path: Path) -> None:
    says(WoodScape(str(tmp_path)), "there is no folder .*rgb_images", FileNotFoundError)
    UNPACKED["woodscape"][0](tmp_path)
    root = tmp_path / "WoodScape_ICCV19"
    assert [sample.phrases for sample in WoodScape(str(root), ("car",))] == [("road surface",)] * 2
    file = root / "instance_annotations/instance_annotations/00000_FV.json"
    write(file, {"00000_FV.json": {"annotation": [{"tags": ["car"], "segmentation": [[1, 2], [3, "x"], [4, 5]]}]}})
    says(WoodScape(str(root)), r"00000_FV\.json: has an outline whose points are not all an x and a y")
    write(file, {"00000_FV.json": {"annotation": [{"tags": ["car"], "segmentation": [[1, 2], [3], [4, 5]]}]}})
    says(WoodScape(str(root)), r"00000_FV\.json: has an outline whose points are not all an x and a y")
    write(file, {"00000_FV.json": {}})
    says(WoodScape(str(root)), r"00000_FV\.json: is no annotation of WoodScape's")
    (root / "rgb_images/00000_FV.png").unlink()
    says(WoodScape(str(root)), r"00000_FV\.png: there is no such image", FileNotFoundError)


# Videos, polygons without an inside, and arrays


def test_mistakes_in_a_file_of_videos_are_one_line(tmp_path: Path) -> None:
    UNPACKED["ovis"][0](tmp_path)
    file = tmp_path / "annotations_train.json"
    whole = json.loads(file.read_text())
    source = Coco(str(file), str(tmp_path / "train"))
    assert [sample.key for sample in source][2] == "5d24e4ea/img_0000004.jpg"
    assert source[1].phrases == ("Person", "Person")
    for change, words in (
        ({"videos": [{"id": 1}]}, "video number 0 has no list 'file_names'"),
        ({"videos": [{"file_names": []}]}, "video number 0 has no id"),
        ({"annotations": [{"video_id": 1, "segmentations": [None]}]}, "an entry for each frame of its video"),
        ({"annotations": [{"video_id": [], "segmentations": [None]}]}, "an entry for each frame of its video"),
    ):
        write(file, whole | change)
        says(Coco(str(file), str(tmp_path / "train")), words)


def test_polygons_without_an_inside_are_left_out_where_that_is_said(tmp_path: Path) -> None:
    UNPACKED["trashcan"][0](tmp_path)
    folder = tmp_path / "dataset/instance_version"
    file, images = str(folder / "instances_train_trashcan.json"), str(folder / "train")
    says(Coco(file, images), "annotation 0 has a polygon of 4 numbers")
    assert [len(sample.masks) for sample in Coco(file, images, strict=False)] == [1, 0]


def test_arrays_that_are_no_label_maps_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photo(tmp_path / "images/a.jpg")
    file = tmp_path / "masks/a.h5"
    file.parent.mkdir()
    with h5py.File(file, "w") as out:
        out["labels"] = bars([3, 5], np.int32, -1)
    source = Folder(str(tmp_path), background=(-1,))
    assert [mask.size for mask in source[0].masks] == [(HEIGHT, WIDTH)] * 2
    with h5py.File(file, "a") as out:
        out["more"] = bars([1])
    with pytest.raises(Damaged, match=r"a\.h5 is not one array"):
        source[0]
    file.write_bytes(b"hello")
    with pytest.raises(Damaged, match=r"a\.h5 is damaged or cut off"):
        source[0]
    file.unlink()
    with pytest.raises(Damaged, match="not there any more"):
        source[0]
    save(tmp_path / "masks/a.png", bars([1]))
    file.write_bytes(b"hello")
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    says(Folder(str(tmp_path)), r"HDF5, which need h5py: pip install 'samlit\[eval\]'")


def test_masks_without_an_image_are_left_alone_where_that_is_said(tmp_path: Path) -> None:
    photo(tmp_path / "images/a.jpg")
    for name in "ab":
        save(tmp_path / f"masks/{name}.png", bars([1]))
    says(Folder(str(tmp_path)), r"b\.png has no image of that name .*stray: true")
    assert len(Folder(str(tmp_path), stray=True)) == 1
