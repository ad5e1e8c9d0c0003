"""Panoptic annotations, and how well segments agree with them: PQ, SQ, RQ and mIoU (arXiv 1801.00868)."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from samlit.errors import one_line

__all__ = ["Panoptic", "Segments", "compare", "mean_iou", "quality", "shares"]

Map = npt.NDArray[np.int64]
Counts = dict[Any, list[float]]
"""Of each class the sum of IoU, and how many segments are found rightly, wrongly, and not at all."""


@dataclass(frozen=True)
class Segments:
    """An image cut into segments.

    Attributes:
        map: (H, W) int64, the number of the segment that each pixel is in; 0 for none.
        classes: The class of each segment, by number.
        crowd: Numbers of segments that are many things at once.
    """

    map: Map
    classes: Mapping[int, Any]
    crowd: frozenset[int] = frozenset()


def _in_words(name: str) -> str:
    """`wall-other-merged` is a wall, `door-stuff` a door."""
    for mark in ("-merged", "-stuff", "-other"):
        name = name.removesuffix(mark)
    return name.replace("-", " ").replace("_", " ")


class Panoptic:
    """A COCO panoptic JSON, and its folder of PNG files.

    Args:
        path: The JSON.
        folder: Of the PNG files; the one of the JSON's name beside it if not given, as COCO's are.

    Raises:
        ValueError: It is none; one line.
    """

    def __init__(self, path: str, folder: str | None = None) -> None:
        self.path, file = path, Path(path)
        self.folder = Path(folder) if folder else file.with_suffix("")
        try:
            document = json.loads(file.read_bytes())
        except FileNotFoundError:
            raise ValueError(f"{path}: there is no such file") from None
        except ValueError as error:
            raise ValueError(f"{path}: is not JSON ({one_line(error)})") from error
        parts = ("images", "annotations", "categories")
        if not isinstance(document, dict) or any(not isinstance(document.get(part), list) for part in parts):
            raise ValueError(f"{path}: needs lists of images, annotations and categories, as panoptic files have them")
        if not all("segments_info" in one for one in document["annotations"]):
            raise ValueError(f"{path}: has annotations without segments_info, so it is no panoptic file")
        if not self.folder.is_dir():
            raise ValueError(f"{path}: there is no folder {self.folder} of its PNG files")
        self.categories: dict[Any, dict[str, Any]] = {one["id"]: one for one in document["categories"]}
        self._annotations = document["annotations"]
        self._names = {one["id"]: one["file_name"] for one in document["images"]}

    @property
    def things(self) -> set[Any]:
        """The classes of things that can be counted."""
        return {number for number, one in self.categories.items() if one.get("isthing", 1)}

    @property
    def names(self) -> dict[Any, str]:
        """The classes in words: as they are called, without the marks that COCO puts into names of stuff."""
        return {number: _in_words(str(one.get("name", number))) for number, one in self.categories.items()}

    @cached_property
    def _of(self) -> dict[str, dict[str, Any]]:
        """Annotations by what a sample of the image may be called."""
        found: dict[str, dict[str, Any]] = {}
        for one in self._annotations:
            name = str(self._names.get(one["image_id"], one["file_name"]))
            for key in (str(one["image_id"]), name, Path(name).name, Path(name).stem, f"{name}#{one['image_id']}"):
                found.setdefault(key, one)
        return found

    def segments(self, key: str, size: tuple[int, int] | None = None) -> Segments:
        """The true segments of a sample's image.

        Args:
            key: Of the sample.
            size: Rows and columns of its image, which the PNG must have; any if not given.

        Raises:
            ValueError: The file has no such image, its PNG cannot be read, or does not belong to it; one line.
        """
        if key not in self._of:
            raise ValueError(f"{self.path}: has no image {key!r}; give the annotations of the images that are judged")
        one = self._of[key]
        file = self.folder / one["file_name"]
        if not file.is_file():
            raise ValueError(f"{self.path}: there is no {file}")
        try:
            with Image.open(file) as picture:
                colours = np.asarray(picture.convert("RGB"), np.int64)
        except OSError as error:
            raise ValueError(f"{file} cannot be read ({one_line(error)})") from error
        rows, columns = colours.shape[:2]
        if size is not None and (rows, columns) != size:
            raise ValueError(
                f"{file} is {rows} x {columns}, and {key} is {size[0]} x {size[1]}: they do not belong together"
            )
        map_, info = colours @ np.array([1, 256, 65536]), one["segments_info"]
        if stray := set(np.unique(map_).tolist()) - {0} - {segment["id"] for segment in info}:
            raise ValueError(f"{file} has a segment {min(stray)} that {self.path} has not")
        return Segments(
            map_,
            {segment["id"]: segment["category_id"] for segment in info},
            frozenset(segment["id"] for segment in info if segment.get("iscrowd")),
        )


def _areas(map_: Map) -> dict[int, int]:
    values, counts = np.unique(map_, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def compare(truth: Segments, found: Segments) -> Counts:
    """One image: segments of a class match where their IoU exceeds one half, pixels of no true segment left out.

    What is found mostly where there is no true segment, or a crowd of its class, counts neither as right nor as wrong.
    """
    told: Counts = defaultdict(lambda: [0.0, 0, 0, 0])
    areas, own = _areas(truth.map), _areas(found.map)
    width = int(found.map.max()) + 1
    pairs, counts = np.unique(truth.map * width + found.map, return_counts=True)
    shared = {divmod(pair, width): count for pair, count in zip(pairs.tolist(), counts.tolist(), strict=True)}
    matched, hit = set(), set()
    for (true, mine), both in shared.items():
        if true not in truth.classes or mine not in found.classes or true in truth.crowd:
            continue
        if truth.classes[true] != found.classes[mine]:
            continue
        iou = both / (areas[true] + own[mine] - both - shared.get((0, mine), 0))
        if iou > 0.5:
            told[truth.classes[true]][0] += iou
            told[truth.classes[true]][1] += 1
            matched.add(true)
            hit.add(mine)
    crowds = {truth.classes[number]: number for number in truth.crowd if number in truth.classes}
    for number, kind in truth.classes.items():
        if number not in truth.crowd and number not in matched:
            told[kind][3] += 1
    for number, kind in found.classes.items():
        if number in hit or not own.get(number):
            continue
        nobodys = shared.get((0, number), 0)
        if kind in crowds:
            nobodys += shared.get((crowds[kind], number), 0)
        if nobodys / own[number] <= 0.5:
            told[kind][2] += 1
    return dict(told)


def quality(images: Iterable[Counts], things: set[Any]) -> dict[str, float]:
    """PQ, SQ and RQ, the means over classes that there are, in all, of things and of stuff; 0 where there are none."""
    total: Counts = defaultdict(lambda: [0.0, 0, 0, 0])
    for one in images:
        for kind, counts in one.items():
            total[kind] = [a + b for a, b in zip(total[kind], counts, strict=True)]
    groups = {"": set(total), "_things": set(total) & things, "_stuff": set(total) - things}
    numbers = {}
    for end, kinds in groups.items():
        rows = []
        for kind in kinds:
            iou, right, wrong, missed = total[kind]
            if right + wrong + missed:
                found = right / (right + (wrong + missed) / 2)
                each = iou / right if right else 0.0
                rows.append((each * found, each, found))
        for k, name in enumerate(("pq", "sq", "rq")):
            numbers[name + end] = sum(row[k] for row in rows) / len(rows) if rows else 0.0
    return numbers


def shares(truth: Segments, found: Segments) -> dict[Any, tuple[int, int]]:
    """Of each class the pixels that both have and that either has; pixels of no true segment, and crowds, left out."""
    looked = ~np.isin(truth.map, [0, *truth.crowd])
    kinds = set(truth.classes.values()) | set(found.classes.values())
    told = {}
    for kind in kinds:
        masks = [
            np.isin(one.map, [number for number, other in one.classes.items() if other == kind]) & looked
            for one in (truth, found)
        ]
        both, either = (int(np.count_nonzero(mask)) for mask in (masks[0] & masks[1], masks[0] | masks[1]))
        if either:
            told[kind] = (both, either)
    return told


def mean_iou(images: Iterable[Mapping[Any, tuple[int, int]]]) -> float:
    """The mean over classes of their IoU over all images; nan where there is no class."""
    total: dict[Any, list[int]] = defaultdict(lambda: [0, 0])
    for one in images:
        for kind, (both, either) in one.items():
            total[kind][0] += both
            total[kind][1] += either
    return float(np.mean([both / either for both, either in total.values()])) if total else math.nan
