"""The paper's data sets as they are when unpacked, each with a few images of few pixels: what `--sets` has to read.

Every tree also has what lies beside images and masks in the original, which is to be left alone.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
from PIL import Image

from samlit.masks import rle

HEIGHT, WIDTH = 48, 64


def photo(path: Path, size: tuple[int, int] = (HEIGHT, WIDTH)) -> str:
    """An image file; its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(len(path.name)).integers(0, 256, (*size, 3), np.uint8)).save(path)
    return path.name


def bars(values: Iterable[int], dtype: Any = np.uint8, ground: int = 0) -> npt.NDArray[Any]:
    """A label map with a bar for each value."""
    drawn = np.full((HEIGHT, WIDTH), ground, dtype)
    for number, value in enumerate(values):
        drawn[8:40, 3 + 6 * number : 7 + 6 * number] = value
    return drawn


def save(path: Path, labels: npt.NDArray[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(labels).save(path)


def write(path: Path, document: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))


def square(at: int, side: int = 10) -> list[float]:
    """A polygon of COCO's."""
    return [at, 5, at + side, 5, at + side, 5 + side, at, 5 + side]


def coco(file: Path, images: Path, masks: dict[str, list[Any]], inside: str = "") -> None:
    """A COCO file and its images, each with polygons."""
    listed, annotations = [], []
    for number, (name, drawn) in enumerate(masks.items()):
        photo(images / name)
        listed.append({"id": number, "file_name": inside + name, "height": HEIGHT, "width": WIDTH})
        annotations += [
            {"id": 100 * number + i, "image_id": number, "category_id": 3, "iscrowd": 0, "segmentation": parts}
            for i, parts in enumerate(drawn)
        ]
    write(file, {"images": listed, "annotations": annotations, "categories": [{"id": 3, "name": "car"}]})


def ade20k(root: Path) -> None:
    place = root / "ADE20K_2021_17_01/images/ADE/validation/urban/street"
    photo(place / "ADE_val_00000001.jpg")
    for number in range(2):
        instance = bars([255])
        instance[:8] = 128  # hidden
        save(place / f"ADE_val_00000001/instance_00{2 * number}_ADE_val_00000001.png", instance)
    for other in ("seg", "parts_1"):
        photo(place / f"ADE_val_00000001_{other}.png")
    write(place / "ADE_val_00000001.json", {})


def bbbc038v1(root: Path) -> None:
    for name, count in (("00ae65", 2), ("0acd2c", 1)):
        photo(root / f"stage1_train/{name}/images/{name}.png")
        for number in range(count):
            save(root / f"stage1_train/{name}/masks/{number}f3{name}.png", bars([255]))


def cityscapes(root: Path) -> None:
    for city in ("frankfurt", "lindau"):
        stem = f"{city}/{city}_000000_000294"
        photo(root / f"leftImg8bit/val/{stem}_leftImg8bit.png")
        # Void, road, a group of cars, cars, a person.
        save(root / f"gtFine/val/{stem}_gtFine_instanceIds.png", bars([4, 7, 26, 26000, 26001, 24000], np.uint16))
        save(root / f"gtFine/val/{stem}_gtFine_labelIds.png", bars([4, 7, 26]))
        photo(root / f"gtFine/val/{stem}_gtFine_color.png")
        write(root / f"gtFine/val/{stem}_gtFine_polygons.json", {})


def doors(root: Path) -> None:
    place = root / "Segmentation/DS1/DS"
    for name in ("1.png", "2.png"):
        photo(place / "img" / name)
        mask = bars([255])
        mask[20] //= 2
        save(place / "mask" / name, np.repeat(mask[..., None], 3, 2))
    (place / "T.txt").write_text("1.png\n2.png\n")


def dram(root: Path) -> None:
    for name in ("realism/courbet/1", "unseen/rococo/morland/2"):
        photo(root / f"DRAM_processed/test/{name}.jpg")
        save(root / f"DRAM_processed/labels/{name}.png", bars([15, 12, 1, 255]))
    photo(root / "DRAM_processed/train/realism/courbet/3.jpg")
    (root / "DRAM_processed/test/dram.txt").write_text("realism/courbet/1\n")


def egohos(root: Path) -> None:
    for name in ("ego4d_0a02_11700", "20210619_2"):
        photo(root / f"train/image/{name}.jpg")
        save(root / f"train/label/{name}.png", bars([1, 2, 5]))
        save(root / f"train/contact/{name}.png", bars([1]))


def hypersim(root: Path) -> None:
    images = root / "ai_001_001/images"
    for camera, frame in (("00", "0000"), ("01", "0000"), ("01", "0001")):
        photo(images / f"scene_cam_{camera}_final_preview/frame.{frame}.tonemap.jpg")
        photo(images / f"scene_cam_{camera}_final_preview/frame.{frame}.gamma.jpg")
        for kind in ("semantic_instance", "semantic"):
            file = images / f"scene_cam_{camera}_geometry_hdf5/frame.{frame}.{kind}.hdf5"
            file.parent.mkdir(parents=True, exist_ok=True)
            with h5py.File(file, "w") as out:
                out.create_dataset("dataset", data=bars([7, 300], np.int16, -1), compression="gzip")
    (images / "scene_cam_01_final_preview/frame.0001.tonemap.jpg").unlink()


def ishape(root: Path) -> None:
    for kind, ending in (("antenna", "jpg"), ("wire", "png")):
        for split in ("train", "val"):
            place = root / "ishape_dataset" / kind / split
            photo(place / f"image/99.{ending}")
            save(place / "instance_map/99.png", bars([1, 1000, 1001], np.uint16))
            write(place / "coco_format-mask_encoding=rle-instances_2017.json", {})


def lvis(root: Path) -> None:
    coco(root / "lvis_v0.5_val.json", root / "val2017", {"000000000139.jpg": [[square(5)]], "000000000285.jpg": []})
    document = json.loads((root / "lvis_v0.5_val.json").read_text())
    for image in document["images"]:
        image["file_name"] = f"COCO_val2014_{image['file_name']}"
    write(root / "lvis_v0.5_val.json", document)


def via(file: Path, images: Path, shapes: dict[str, list[dict[str, Any]]], numbered: bool) -> None:
    """A file of the VGG Image Annotator's."""
    document = {}
    for name, drawn in shapes.items():
        photo(images / name)
        regions = [{"shape_attributes": shape, "region_attributes": {"kind": "car"}} for shape in drawn]
        told = {str(number): region for number, region in enumerate(regions)} if numbered else regions
        document[f"{name}1234"] = {"filename": name, "size": 1234, "regions": told, "file_attributes": {}}
    write(file, document)


def outline(kind: str, *points: tuple[float, float]) -> dict[str, Any]:
    """A region of theirs."""
    xs, ys = zip(*points, strict=True)
    return {"name": kind, "all_points_x": xs, "all_points_y": ys}


def ndd20(root: Path) -> None:
    dolphin = outline("polyline", (2, 2), (30, 4), (20, 30))
    for kind in ("ABOVE", "BELOW"):
        drawn = {"1.jpg": [dolphin, outline("polyline", (1, 1), (2, 2))], "2.jpg": [dolphin]}
        via(root / "NDD20" / f"{kind}_LABELS.json", root / "NDD20" / kind, drawn, numbered=False)


def ndispark(root: Path) -> None:
    place = root / "ndis_park/train"
    drawn = {"64_1.jpg": [[square(5)], [square(20), square(40)]], "69_2.jpg": []}
    coco(place / "train_coco_annotations.json", place / "imgs", drawn)


def ovis(root: Path) -> None:
    names = [f"5d24e4ea/img_000000{number}.jpg" for number in (1, 2, 4)]
    for name in names:
        photo(root / "train" / name)
    mask = rle.encode(bars([1]) > 0)
    seen = {"size": list(mask.size), "counts": mask.counts}
    video = {"id": 1, "width": WIDTH, "height": HEIGHT, "length": 3, "file_names": names}
    thing = {"video_id": 1, "category_id": 1, "iscrowd": 0, "height": HEIGHT, "width": WIDTH}
    drawn = [[seen, seen, None], [None, seen, None]]
    things = [thing | {"id": number, "segmentations": masks} for number, masks in enumerate(drawn)]
    document = {"videos": [video], "annotations": things, "categories": [{"id": 1, "name": "Person"}]}
    write(root / "annotations_train.json", document)


def pidray(root: Path) -> None:
    coco(root / "annotations/xray_test_hard.json", root / "hard", {"xray_1.png": [[square(5)], [square(30)]]})


def plittersdorf(root: Path) -> None:
    place = root / "plittersdorf_instance_segmentation_coco"
    for number, split in enumerate(("train", "val", "test")):
        coco(place / f"{split}.json", place / "images", {f"{number}_7.jpg": [[square(5)]]})
    photo(place / "images/0_7.png")


def ppdls(root: Path) -> None:
    for plant, stem in (("Ara2012", "ara2012"), ("Tobacco", "tobacco"), ("Ara2013-Canon", "ara2013")):
        place = root / "Plant_Phenotyping_Datasets/Plant" / plant
        photo(place / f"{stem}_plant001_rgb.png")
        label = Image.fromarray(bars([1, 2, 3])).convert("P")
        label.putpalette([0, 0, 0, *range(3 * 9)])
        label.save(place / f"{stem}_plant001_label.png")
        for other in ("centers", "boundaries"):
            save(place / f"{stem}_plant001_{other}.png", bars([255]))


def streets(root: Path) -> None:
    car, line = outline("polygon", (-3, 2), (30, 4), (20, 30)), outline("polygon", (1, 1), (2, 2))
    names = {"Delany at Ryan (North)-5.jpg": [car, line, car], "Delany-6.jpg": []}
    place = root / "vehicleannotations"
    via(place / "annotations/vehicle-annotations.json", place / "images", names, numbered=True)


def timberseg(root: Path) -> None:
    for copy in ("original", "prescaled"):
        place = root / "y5npsm3gkj-2" / copy
        coco(place / "coco_annotation.json", place / "images", {"1.png": [[square(5), square(20)]]}, "images/")


def trashcan(root: Path) -> None:
    place = root / "dataset/instance_version"
    drawn = {"vid_1_frame1.jpg": [[square(5), [1, 1, 2, 2]], [[3, 3, 4, 4]]], "vid_1_frame2.jpg": []}
    coco(place / "instances_train_trashcan.json", place / "train", drawn)
    coco(root / "dataset/material_version/instances_train_trashcan.json", place / "other", drawn)


def visor(root: Path) -> None:
    place = root / "GroundTruth-SparseAnnotations"
    loop = [[100, 100], [900, 100], [900, 700], [100, 700]]
    hole = [[300, 300], [500, 300], [500, 500], [300, 500]]
    for video in ("P01_107", "P02_3"):
        name = f"{video}_frame_0000000298.jpg"
        things = [
            {"id": "a", "name": "left hand", "segments": [loop, hole]},
            {"id": "b", "name": "tap", "segments": []},
            {"id": "c", "name": "pan", "segments": [hole, []]},
        ]
        entries = [{"image": {"image_path": f"old/{name}", "name": name, "video": video}, "annotations": things}]
        write(place / f"annotations/val/{video}.json", {"video_annotations": entries})
        frame = root / "frame.jpg"
        photo(frame, (1080, 1920))
        archive = place / f"rgb_frames/val/{video.partition('_')[0]}/{video}.zip"
        archive.parent.mkdir(parents=True)
        if video == "P01_107":
            with zipfile.ZipFile(archive, "w") as out:
                out.write(frame, name)
        else:
            archive.with_suffix("").mkdir()
            frame.rename(archive.with_suffix("") / name)


def woodscape(root: Path) -> None:
    place = root / "WoodScape_ICCV19"
    for name in ("00000_FV", "00001_MVL"):
        photo(place / f"rgb_images/{name}.png")
        things = [
            {"id": "a", "tags": ["car"], "segmentation": [[2, 2], [30, 4], [20, 30]], "z_order": 1},
            {"id": "b", "tags": ["road_surface"], "segmentation": [[2, 2], [60, 4], [60, 40], [2, 40]], "z_order": 0},
            {"id": "c", "tags": ["void"], "segmentation": [[2, 2], [60, 4]], "z_order": 0},
        ]
        entry = {"annotation": things, "image_width": WIDTH, "image_height": HEIGHT, "status": "finished"}
        write(place / f"instance_annotations/instance_annotations/{name}.json", {f"{name}.json": entry})
    write(place / "instance_annotations/instance_annotations/class_info.json", {})


def zerowaste(root: Path) -> None:
    place = root / "splits_final_deblurred/train"
    coco(place / "labels.json", place / "data", {"01_frame_1.PNG": [[square(5)]], "01_frame_2.PNG": []})
    photo(place / "sem_seg/01_frame_1.PNG")


UNPACKED: dict[str, tuple[Callable[[Path], None], list[int]]] = {
    "ade20k": (ade20k, [2]),
    "bbbc038v1": (bbbc038v1, [2, 1]),
    "cityscapes": (cityscapes, [4, 4]),
    "doors": (doors, [1, 1]),
    "dram": (dram, [2, 2]),
    "egohos": (egohos, [3, 3]),
    "hypersim": (hypersim, [2, 2]),
    "ishape": (ishape, [2, 2]),
    "lvis": (lvis, [1]),
    "ndd20": (ndd20, [1, 1, 1, 1]),
    "ndispark": (ndispark, [2]),
    "ovis": (ovis, [1, 2]),
    "pidray": (pidray, [2]),
    "plittersdorf": (plittersdorf, [1, 1, 1]),
    "ppdls": (ppdls, [3, 3]),
    "streets": (streets, [2]),
    "timberseg": (timberseg, [1]),
    "trashcan": (trashcan, [1]),
    "visor": (visor, [2, 2]),
    "woodscape": (woodscape, [2, 2]),
    "zerowaste": (zerowaste, [1]),
}
"""What makes each, and how many masks each of its images has."""
