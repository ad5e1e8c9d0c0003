"""One image with its masks, as SA-1B stores it: a JPEG and a JSON (SAM_SPEC 4).

Nothing here trusts what it reads: a picture larger than it says or a mask that is none ends in one line that says so.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any, NoReturn

from samlit.faults import Damaged
from samlit.loading.images import Encoded
from samlit.masks import rle
from samlit.masks.rle import Rle

__all__ = ["Annotation", "Record", "parse"]

_NUMBERS = int, float  # and no truth values


@dataclass(frozen=True, slots=True)
class Annotation:
    """One mask of a record.

    Attributes:
        mask: Of the image's own size.
        phrase: What the mask shows, in words; empty where nobody said. An addition to SA-1B's layout.
        predicted_iou: The model's own estimate.
        stability_score: IoU of the mask at two thresholds.
        crop_box: (x, y, w, h) of the crop that it was found in; None for the whole image.
        point: (x, y) of the prompt in pixels of the image; None for the middle of the mask's box.
        id: Unique in the whole data set; None to make one from the image's.
        area: Pixels of the mask, as somebody states them; None where nobody does, and the mask tells.
    """

    mask: Rle
    phrase: str = ""
    predicted_iou: float = 1.0
    stability_score: float = 1.0
    crop_box: tuple[float, float, float, float] | None = None
    point: tuple[float, float] | None = None
    id: int | None = None
    area: float | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Record:
    """One image with its masks, the image still encoded.

    Attributes:
        image_id: A number; the record's key is `sa_<image_id>`.
        size: Rows and columns.
        jpeg: The image's file.
        annotations: Its masks.
        source_key: What the source that it was made from calls it; empty where nobody said. An addition to SA-1B's
            layout.
    """

    image_id: int
    size: tuple[int, int]
    jpeg: bytes
    annotations: tuple[Annotation, ...]
    source_key: str = ""

    @property
    def key(self) -> str:
        """The name of the record's files, without their endings."""
        return f"sa_{self.image_id}"

    @property
    def image(self) -> Encoded:
        """The image, to be decoded when it is known how large it is wanted."""
        return Encoded(self.jpeg, self.size)

    def flaws(self) -> list[Damaged]:
        """What is wrong with the image and with the masks, which reading a record leaves to whoever needs them.

        Of several damaged masks the first is told.
        """
        found: list[Damaged] = []
        try:
            self.image.pixels()
        except Damaged as error:
            found.append(error)
        for number, annotation in enumerate(self.annotations):
            try:
                rle.runs(annotation.mask)
            except Damaged as error:
                return [*found, Damaged(error.cause, f"annotation {number}: {error.message}")]
        return found

    def text(self) -> bytes:
        """The annotations as SA-1B writes them (SAM_SPEC 4)."""
        height, width = self.size
        image: dict[str, Any] = {"image_id": self.image_id, "width": width, "height": height}
        image["file_name"] = f"{self.key}.jpg"
        if self.source_key:
            image["source_key"] = self.source_key
        rows = [self._row(number, annotation) for number, annotation in enumerate(self.annotations)]
        return json.dumps({"image": image, "annotations": rows}, separators=(",", ":"), allow_nan=False).encode()

    def _row(self, number: int, a: Annotation) -> dict[str, Any]:
        height, width = self.size
        x0, y0, x1, y1 = rle.box(a.mask)
        x, y = a.point or ((x0 + x1) / 2, (y0 + y1) / 2)
        row: dict[str, Any] = {
            "id": self.image_id * 10_000 + number if a.id is None else a.id,
            "segmentation": {"size": list(a.mask.size), "counts": a.mask.counts},
            # SA-1B's width and height are largest minus smallest coordinate, one less than elsewhere (SAM_SPEC 0.9).
            "bbox": [float(x0), float(y0), float(max(0, x1 - 1 - x0)), float(max(0, y1 - 1 - y0))],
            "area": rle.area(a.mask),
            "predicted_iou": float(a.predicted_iou),
            "stability_score": float(a.stability_score),
            "crop_box": [float(v) for v in a.crop_box or (0, 0, width, height)],
            "point_coords": [[float(x), float(y)]],
        }
        if a.phrase:
            row["phrase"] = a.phrase
        return row


def _refuse(constant: str) -> NoReturn:
    raise Damaged("json", f"the JSON has {constant}, which is not a number")


def parse(image_id: int, jpeg: bytes, text: bytes) -> Record:
    """A record from its two files, the JSON checked.

    The strings of the masks are proved when they are drawn, the image when it is decoded: `Record.flaws` does both. A
    row that is marked as `deleted`, as the annotator marks them, is no mask.

    Raises:
        Damaged: The JSON is damaged, or not of this image; one line that says how.
    """
    try:
        stored = json.loads(text, parse_constant=_refuse)
    except RecursionError:
        raise Damaged("json", "the JSON is nested too deep") from None
    except UnicodeDecodeError:
        raise Damaged("json", "the JSON is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise Damaged("json", f"not JSON: {error}") from error
    except Damaged:
        raise
    except ValueError as error:  # a number of more digits than Python reads
        raise Damaged("json", f"the JSON cannot be read: {error}") from error
    image = _want(stored, "image", dict)
    size = _want(image, "height", int), _want(image, "width", int)
    rows = _want(stored, "annotations", list)
    annotations = []
    for number, row in enumerate(rows):
        if isinstance(row, dict) and row.get("deleted") is True:
            continue
        try:
            annotations.append(_annotation(row, size))
        except Damaged as error:
            raise Damaged(error.cause, f"annotation {number}: {error.message}") from error
    if _want(image, "image_id", int) != image_id:
        raise Damaged("json", f"its JSON is of image {str(image['image_id'])[:40]}")
    return Record(image_id, size, jpeg, tuple(annotations))


def _annotation(row: Any, size: tuple[int, int]) -> Annotation:
    segmentation = _want(row, "segmentation", dict)
    sides = _want(segmentation, "size", list)
    if sides != list(size):
        raise Damaged("size", f"the mask is of size {str(sides)[:40]}, the image {size[0]}x{size[1]}")
    mask = Rle(size, _want(segmentation, "counts", str))
    crop, area = _numbers(row.get("crop_box"), 4), row.get("area")
    points = row.get("point_coords")
    point = _numbers(points[0], 2) if isinstance(points, list) and points else None
    return Annotation(
        mask,
        phrase=_want(row, "phrase", str) if "phrase" in row else "",
        predicted_iou=float(_want(row, "predicted_iou", float)) if "predicted_iou" in row else 1.0,
        stability_score=float(_want(row, "stability_score", float)) if "stability_score" in row else 1.0,
        crop_box=None if crop is None else (crop[0], crop[1], crop[2], crop[3]),
        point=None if point is None else (point[0], point[1]),
        id=_want(row, "id", int) if "id" in row else None,
        area=area if type(area) in (int, float) and math.isfinite(area) else None,
    )


def _numbers(value: Any, count: int) -> list[float] | None:
    """That many numbers, or None where there are none; they are told to others and decide nothing here."""
    if not isinstance(value, list) or len(value) != count:
        return None
    for v in value:
        if type(v) not in _NUMBERS or not -1e9 < v < 1e9:
            return None
    return list(map(float, value))


def _want(row: Any, name: str, kind: type) -> Any:
    """A field that must be there and of a type; whole numbers do for floats, and truth values for nothing."""
    try:
        value = row[name]
    except (LookupError, TypeError):
        raise Damaged("json", f"the JSON has no {name}") from None
    if type(value) is float and not math.isfinite(value):  # as of 1e999
        raise Damaged("json", f"{name} is {value}")
    if type(value) is kind or (kind is float and type(value) is int):
        return value
    raise Damaged("json", f"{name} is {type(value).__name__}, not {kind.__name__}")
