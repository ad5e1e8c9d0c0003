"""COCO and LVIS annotations and results: read, checked against each other, and judged by their official rules."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from samlit.errors import one_line
from samlit.masks import rle
from samlit.masks.rle import Rle

__all__ = ["AREAS", "LVIS_MOST", "Annotations", "average_precision", "average_recall", "read_boxes"]

Row = dict[str, Any]
AREAS = {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, math.inf)}
"""COCO's sizes of things, in pixels."""
FREQUENCIES = {"r": "rare", "c": "common", "f": "frequent"}
LVIS_MOST = 300
"""Results of an image, of all classes together, that count by LVIS's rules."""
THRESHOLDS = np.linspace(0.5, 0.95, 10)


class Annotations:
    """An annotation file of COCO's or LVIS's form.

    Args:
        path: The JSON.

    Raises:
        ValueError: It is none; one line.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            document = json.loads(Path(path).read_bytes())
        except FileNotFoundError:
            raise ValueError(f"{path}: there is no such file") from None
        except ValueError as error:
            raise ValueError(f"{path}: is not JSON ({one_line(error)})") from error
        parts = ("images", "annotations", "categories")
        if not isinstance(document, dict) or any(not isinstance(document.get(part), list) for part in parts):
            raise ValueError(f"{path}: needs lists of images, annotations and categories, as COCO's files have them")
        self.document: Row = document
        self.images: dict[Any, Row] = {image["id"]: image for image in document["images"]}
        self.categories: dict[Any, Row] = {one["id"]: one for one in document["categories"]}
        self.of_image: dict[Any, list[Row]] = defaultdict(list)
        for annotation in document["annotations"]:
            self.of_image[annotation.get("image_id")].append(annotation)

    @cached_property
    def ids(self) -> dict[str, Any]:
        """Image ids by what a sample of the image may be called."""
        found: dict[str, Any] = {}
        for number, image in self.images.items():
            # LVIS names no files, only addresses.
            name = str(image.get("file_name") or image.get("coco_url") or number)
            for key in (str(number), Path(name).stem, Path(name).name, name, f"{name}#{number}"):
                found.setdefault(key, number)
        return found

    def image(self, key: str) -> Any:
        """The id of a sample's image.

        Raises:
            ValueError: The file has no such image.
        """
        if key not in self.ids:
            raise ValueError(f"{self.path}: has no image {key!r}; give the annotations of the images that are judged")
        return self.ids[key]

    def only(self, images: Iterable[Any]) -> Row:
        """The document with some images alone."""
        some = set(images)
        kept = {part: value for part, value in self.document.items() if part not in ("images", "annotations")}
        kept["images"] = [image for image in self.document["images"] if image["id"] in some]
        kept["annotations"] = [a for number in self.images if number in some for a in self.of_image.get(number, ())]
        return kept

    def masks(self, image: Any, crowd: bool = False) -> list[tuple[Row, Rle]]:
        """Annotations of an image with their masks; those of crowds on demand."""
        from faster_coco_eval.core import mask as official

        size = (int(self.images[image]["height"]), int(self.images[image]["width"]))
        found = []
        for annotation in self.of_image.get(image, ()):
            if annotation.get("iscrowd") and not crowd:
                continue
            segmentation = annotation["segmentation"]
            if isinstance(segmentation, dict):
                counts = segmentation["counts"]
                mask = rle.from_uncompressed(size, counts) if isinstance(counts, list) else Rle(size, counts)
            else:
                merged = official.merge(official.frPyObjects(segmentation, *size))
                mask = Rle(size, merged["counts"].decode("ascii"))
            found.append((annotation, mask))
        return found


def read_boxes(path: str, annotations: Annotations) -> dict[Any, list[Row]]:
    """A detector's boxes by image, from COCO results: the best first.

    Args:
        path: A JSON list of image_id, category_id, bbox (x, y, width, height) and score.
        annotations: Of the same images.

    Raises:
        ValueError: The file is none, or does not belong to the annotations; one line that says which entry and why.
    """
    try:
        rows = json.loads(Path(path).read_bytes())
    except FileNotFoundError:
        raise ValueError(f"{path}: there is no such file") from None
    except ValueError as error:
        raise ValueError(f"{path}: is not JSON ({one_line(error)})") from error
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{path}: is no list of results, or an empty one; COCO results are a list of boxes")
    found: dict[Any, list[Row]] = defaultdict(list)
    for number, row in enumerate(rows):
        if not isinstance(row, dict) or not {"image_id", "category_id", "bbox", "score"} <= row.keys():
            raise ValueError(f"{path}: entry {number} needs image_id, category_id, bbox and score")
        if row["image_id"] not in annotations.images:
            raise ValueError(f"{path}: entry {number} is of image {row['image_id']}, which {annotations.path} has not")
        if row["category_id"] not in annotations.categories:
            raise ValueError(
                f"{path}: entry {number} is of category {row['category_id']}, which {annotations.path} has not"
            )
        box, image = row["bbox"], annotations.images[row["image_id"]]
        if not isinstance(box, list) or len(box) != 4 or not all(_finite(x) for x in (*box, row["score"])):
            raise ValueError(f"{path}: entry {number} needs a bbox of four numbers, and a score")
        x, y, width, height = box
        if min(width, height) < 0 or x >= image["width"] or y >= image["height"] or x + width < 0 or y + height < 0:
            raise ValueError(
                f"{path}: entry {number} has the box {box}, outside of image {row['image_id']}, which is "
                f"{image['width']} wide and {image['height']} high; boxes are x, y, width, height in pixels"
            )
        found[row["image_id"]].append(row)
    return {image: sorted(some, key=lambda row: -row["score"]) for image, some in found.items()}


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def average_precision(document: Row, results: Sequence[Row], lvis: bool = False) -> dict[str, float]:
    """AP of masks by COCO's official rules, or LVIS's (federated, 300 a picture); nan where nothing is of a kind.

    Args:
        document: Annotations of all judged images, and of no other.
        results: image_id, category_id, segmentation (a COCO string) and score of each mask.
        lvis: Which rules.

    Returns:
        By name: "ap", "ap_50", "ap_75", "ap_small", "ap_medium", "ap_large"; with LVIS's rules also "ap_rare",
        "ap_common" and "ap_frequent".
    """
    from faster_coco_eval import COCO, COCOeval_faster

    names = {"ap": "all", "ap_50": "50", "ap_75": "75", "ap_small": "small", "ap_medium": "medium", "ap_large": "large"}
    if lvis:
        names |= {"ap_rare": "r", "ap_common": "c", "ap_frequent": "f"}
    if not results:
        return dict.fromkeys(names, 0.0)
    # The official code takes a mask's area from its box where there is one.
    rows = [{key: value for key, value in row.items() if key != "bbox"} for row in results]
    rows = _surest(rows, LVIS_MOST) if lvis else rows
    truth = COCO(document)
    judge = COCOeval_faster(truth, truth.loadRes(rows), "segm", lvis_style=lvis)
    if lvis:
        judge.params.maxDets = [LVIS_MOST]  # of a class: no fewer than are left of all classes
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    found = {key.lower(): value for key, value in judge.stats_as_dict.items()}
    numbers = {}
    for name, end in names.items():
        value = next((found[key] for key in (f"ap_{end}", f"ap{end}") if key in found), math.nan)
        numbers[name] = float(value) if value >= 0 else math.nan
    return numbers


def _surest(rows: Sequence[Row], most: int) -> list[Row]:
    """The rows of the highest scores of each image; of equals the first."""
    of_image: dict[Any, list[Row]] = defaultdict(list)
    for row in rows:
        of_image[row["image_id"]].append(row)
    return [one for some in of_image.values() for one in sorted(some, key=lambda row: -row["score"])[:most]]


def average_recall(
    iou: Sequence[npt.NDArray[np.float64]], groups: Sequence[Sequence[Iterable[str]]], greedy: bool = True
) -> dict[str, float]:
    """Recall of true masks by proposals, the mean over IoU .50:.05:.95, in all and by group (SAM_SPEC 6.4).

    Args:
        iou: Of each image (true masks, proposals), proposals by rank.
        groups: Of each image's true masks, the groups that they are in, such as "small".
        greedy: COCO's matching, in which each proposal by rank takes the best mask that is free at a threshold, or
            else detectron2's, in which again and again the pair of the highest IoU is taken.

    Returns:
        Numbers by group, and "all"; nan where nothing is in a group.
    """
    hits: dict[str, list[float]] = defaultdict(list)
    names = ["all", *AREAS, *FREQUENCIES.values()]
    for values, mine in zip(iou, groups, strict=True):
        for name in names:
            some = [k for k, group in enumerate(mine) if name == "all" or name in group]
            if some:
                found = (_by_rank if greedy else _by_iou)(values[some])
                hits[name] += found.tolist()
    return {name: float(np.mean(hits[name])) if hits[name] else math.nan for name in names}


def _by_rank(iou: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The share of thresholds at which each true mask is found; (K, N) to (K,)."""
    found = np.zeros((len(THRESHOLDS), len(iou)), np.bool_)
    near = np.flatnonzero(iou.max(0, initial=0) >= THRESHOLDS[0])
    for t, least in enumerate(THRESHOLDS):
        free = np.ones(len(iou), np.bool_)
        for k in near:
            values = np.where(free, iou[:, k], -1.0)
            # Of equals COCO's code takes the last one.
            best = len(values) - 1 - int(values[::-1].argmax())
            if values[best] >= min(least, 1 - 1e-10):
                free[best], found[t, best] = False, True
    return np.asarray(found.mean(0))


def _by_iou(iou: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The same by the other matching."""
    left, best = iou.copy(), np.zeros(len(iou))
    for _ in range(min(iou.shape)):
        k, n = np.unravel_index(int(left.argmax()), left.shape)
        if left[k, n] < THRESHOLDS[0]:
            break
        best[k] = left[k, n]
        left[k], left[:, n] = -1, -1
    return np.asarray((best[:, None] >= THRESHOLDS).mean(1))


def groups(annotation: Mapping[str, Any], categories: Mapping[Any, Row]) -> list[str]:
    """The groups that an annotation is in: by its area, bounds included, and its category's frequency."""
    area = float(annotation["area"])
    mine = [name for name, (low, high) in AREAS.items() if low <= area <= high]
    frequency = categories.get(annotation.get("category_id"), {}).get("frequency")
    return mine + ([FREQUENCIES[frequency]] if frequency in FREQUENCIES else [])
