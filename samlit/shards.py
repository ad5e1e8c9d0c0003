"""Shards in SA-1B's own layout: tar files of sa_<id>.jpg and sa_<id>.json, written whole and read by number.

Nothing here trusts what it reads: a shard that is cut, a header that is damaged, a picture larger than it says or a
mask that is none ends in one line that names the shard and the key, never in less data than there should be.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from samlit import cache, rle
from samlit.atomic import writing
from samlit.rle import Rle

__all__ = ["MAX_PIXELS", "Annotation", "Index", "Record", "Shard", "write"]

MAX_PIXELS = 1 << 26
"""Pixels of an image beyond which it is refused before it is decoded."""

_BLOCK = tarfile.BLOCKSIZE
_FORMAT = 2  # of the index file
_NAME = re.compile(r"sa_(0|[1-9]\d{0,17})\.(jpg|json)")


@dataclass(frozen=True)
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
    """

    mask: Rle
    phrase: str = ""
    predicted_iou: float = 1.0
    stability_score: float = 1.0
    crop_box: tuple[float, float, float, float] | None = None
    point: tuple[float, float] | None = None
    id: int | None = None


@dataclass(frozen=True)
class Record:
    """One image with its masks, the image still encoded.

    Attributes:
        image_id: A number; the record's key is `sa_<image_id>`.
        size: Rows and columns.
        jpeg: The image's file.
        annotations: Its masks.
    """

    image_id: int
    size: tuple[int, int]
    jpeg: bytes
    annotations: tuple[Annotation, ...]

    @property
    def key(self) -> str:
        """The name of the record's files, without their endings."""
        return f"sa_{self.image_id}"

    def pixels(self) -> npt.NDArray[np.uint8]:
        """The image, (H, W, 3) uint8 RGB, as it is stored: an EXIF orientation is not applied.

        Raises:
            ValueError: The image cannot be decoded, is too large, or is not of the record's size.
        """
        return _decoded(self.jpeg, self.size)

    def text(self) -> bytes:
        """The annotations as SA-1B writes them (SAM_SPEC 4)."""
        height, width = self.size
        image = {"image_id": self.image_id, "width": width, "height": height, "file_name": f"{self.key}.jpg"}
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


def write(path: Path, records: Iterable[Record]) -> int:
    """Write a shard: all of it under its name, or nothing; the same records give the same bytes.

    Args:
        path: Of the tar; its folder must exist.
        records: In order.

    Returns:
        How many records were written.

    Raises:
        ValueError: A key comes twice, or a mask is not of its image's size.
    """
    # Late, for it is slow to import and readers do without it.
    from webdataset import TarWriter

    seen: set[str] = set()
    with writing(path) as stream, TarWriter(stream, encoder=False, mtime=0, user="samlit", group="samlit") as tar:
        for record in records:
            if record.key in seen:
                raise ValueError(f"{path.name}: {record.key} comes twice")
            if any(a.mask.size != record.size for a in record.annotations):
                raise ValueError(f"{path.name}: {record.key} has a mask that is not of the image's size")
            seen.add(record.key)
            tar.write({"__key__": record.key, "jpg": record.jpeg, "json": record.text()})
    return len(seen)


@dataclass(frozen=True)
class Index:
    """Where the records of a shard lie.

    Attributes:
        ids: (number of records,) int64, their image ids in the shard's order.
        spans: (number of records, 4) int64: offset and size in bytes of the image, then of the JSON.
    """

    ids: npt.NDArray[np.int64]
    spans: npt.NDArray[np.int64]


class Shard:
    """A shard to read by number; it holds no open file, so it may be pickled and read by many threads.

    Args:
        path: Of the tar.

    Raises:
        FileNotFoundError: There is no such file.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise FileNotFoundError(f"there is no shard {path}")
        self.path = path
        self._index: Index | None = None

    @property
    def index(self) -> Index:
        """Where everything lies, read from the index file, which is written where it is missing or out of date.

        Raises:
            ValueError: The shard is damaged; one line that names it and says how.
        """
        if self._index is None:
            self._index = _indexed(self.path)
        return self._index

    def __len__(self) -> int:
        return len(self.index.ids)

    def __getitem__(self, number: int) -> Record:
        """The record, its JSON and masks checked; its image is checked when it is decoded.

        Raises:
            ValueError: The record is damaged; one line that names shard and key and says how.
        """
        at, size, text_at, text_size = self.index.spans[number].tolist()
        with self.path.open("rb") as stream:
            stream.seek(at)
            jpeg = stream.read(size)
            stream.seek(text_at)
            text = stream.read(text_size)
        with self.blaming(number):
            if len(jpeg) != size or len(text) != text_size:
                raise ValueError("the shard is shorter than its index says")
            return _parsed(int(self.index.ids[number]), jpeg, text)

    @contextmanager
    def blaming(self, number: int) -> Iterator[None]:
        """Put the shard's and the record's name before the message of a ValueError."""
        try:
            yield
        except ValueError as error:
            raise ValueError(f"{self.path.name}: sa_{self.index.ids[number]}: {error}") from error


# The index


def _indexed(path: Path) -> Index:
    """The index of a shard, from its file if that is of this very shard."""
    state = path.stat()
    stamp = [_FORMAT, state.st_size, state.st_mtime_ns]
    beside = path.with_name(path.name + ".index.json")
    named = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:24]
    cached = cache.folder() / "indexes" / f"{named}.json"
    for place in (beside, cached):
        with suppress(OSError, ValueError, KeyError, TypeError):
            stored = json.loads(place.read_bytes())
            if stored["stamp"] == stamp:
                ids, spans = np.array(stored["ids"], np.int64), np.array(stored["spans"], np.int64).reshape(-1, 4)
                if ids.shape == spans.shape[:1] and ((spans >= 0) & (spans <= state.st_size)).all():
                    return Index(ids, spans)
    index = _walk(path)
    text = json.dumps({"stamp": stamp, "ids": index.ids.tolist(), "spans": index.spans.tolist()})
    for place in (beside, cached):
        with suppress(OSError):  # a folder that may only be read; the next is tried, or there is no index file
            place.parent.mkdir(parents=True, exist_ok=True)
            with writing(place) as stream:
                stream.write(text.encode())
            break
    return index


def _walk(path: Path) -> Index:
    """Index a tar by its headers, all of them.

    The standard library's reader takes a damaged header for the end of the archive, and the rest would be lost in
    silence: hence this one, which wants every header whole and the end marked.
    """
    parts: dict[int, dict[str, tuple[int, int]]] = {}
    total = path.stat().st_size
    with path.open("rb") as stream:
        at = 0
        while True:
            stream.seek(at)
            block = stream.read(_BLOCK)
            if len(block) < _BLOCK:
                raise ValueError(f"{path.name}: the shard is cut off after {at} bytes, its end is not marked")
            if not block.strip(b"\0"):
                break
            try:
                header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            except tarfile.HeaderError as error:
                raise ValueError(f"{path.name}: damaged header at byte {at}: {error}") from error
            begin = at + _BLOCK
            at = begin + -(-header.size // _BLOCK) * _BLOCK
            if header.size < 0 or at > total:
                raise ValueError(f"{path.name}: the shard is cut off in {header.name!r}")
            if header.type == tarfile.XHDTYPE:
                stream.seek(begin)
                fields = stream.read(min(header.size, 1 << 20))
                if header.size > len(fields) or b" path=" in fields or b" size=" in fields:
                    raise ValueError(f"{path.name}: names or sizes in extended headers are not supported; use USTAR")
            elif header.isreg():
                name = header.name.rpartition("/")[2]
                if name.endswith((".jpg", ".json")) and not name.startswith("."):
                    match = _NAME.fullmatch(name)
                    if match is None:
                        raise ValueError(f"{path.name}: {name!r} is not called sa_<id>.jpg or sa_<id>.json")
                    files = parts.setdefault(int(match[1]), {})
                    if match[2] in files:
                        raise ValueError(f"{path.name}: {name} comes twice")
                    files[match[2]] = begin, header.size
            elif header.type not in (tarfile.DIRTYPE, tarfile.XGLTYPE):
                raise ValueError(f"{path.name}: {header.name!r} is neither a file nor a folder")
        while rest := stream.read(1 << 20):
            if rest.strip(b"\0"):
                raise ValueError(f"{path.name}: there is more after the end that is marked at byte {at}")
    for number, files in parts.items():
        if len(files) < 2:
            raise ValueError(f"{path.name}: sa_{number} has no {'json' if 'jpg' in files else 'jpg'}")
    spans = np.array([[*files["jpg"], *files["json"]] for files in parts.values()], np.int64).reshape(-1, 4)
    return Index(np.array(list(parts), np.int64), spans)


# A record


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"the JSON has {constant}, which is not a number")


def _parsed(image_id: int, jpeg: bytes, text: bytes) -> Record:
    try:
        stored = json.loads(text, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("the JSON is nested too deep") from None
    except UnicodeDecodeError:
        raise ValueError("the JSON is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from error
    image = _want(stored, "image", dict)
    size = _want(image, "height", int), _want(image, "width", int)
    rows = _want(stored, "annotations", list)
    annotations = []
    for number, row in enumerate(rows):
        try:
            annotations.append(_annotation(row, size))
        except ValueError as error:
            raise ValueError(f"annotation {number}: {error}") from error
    if _want(image, "image_id", int) != image_id:
        raise ValueError(f"its JSON is of image {str(image['image_id'])[:40]}")
    return Record(image_id, size, jpeg, tuple(annotations))


def _annotation(row: Any, size: tuple[int, int]) -> Annotation:
    segmentation = _want(row, "segmentation", dict)
    sides = _want(segmentation, "size", list)
    if sides != list(size):
        raise ValueError(f"the mask is of size {str(sides)[:40]}, the image {size[0]}x{size[1]}")
    mask = Rle(size, _want(segmentation, "counts", str))
    rle.runs(mask)
    crop = _numbers(row.get("crop_box"), 4)
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
    )


def _numbers(value: Any, count: int) -> list[float] | None:
    """That many numbers, or None where there are none; they are told to others and decide nothing here."""
    if not isinstance(value, list) or len(value) != count:
        return None
    if not all(type(v) in (int, float) and -1e9 < v < 1e9 for v in value):
        return None
    return [float(v) for v in value]


def _want(row: Any, name: str, kind: type) -> Any:
    """A field that must be there and of a type; whole numbers do for floats, and truth values for nothing."""
    if not isinstance(row, dict) or name not in row:
        raise ValueError(f"the JSON has no {name}")
    value = row[name]
    if type(value) is float and not math.isfinite(value):  # as of 1e999
        raise ValueError(f"{name} is {value}")
    if type(value) is kind or (kind is float and type(value) is int):
        return value
    raise ValueError(f"{name} is {type(value).__name__}, not {kind.__name__}")


def _decoded(data: bytes, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise ValueError(f"the image is {height}x{width}, more than {MAX_PIXELS} pixels")
            if (height, width) != size:
                raise ValueError(f"the image is {height}x{width}, its JSON says {size[0]}x{size[1]}")
            return np.array(image.convert("RGB"))
    except UnidentifiedImageError:
        raise ValueError("the image is neither JPEG nor PNG") from None
    except (OSError, SyntaxError, Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ValueError(f"the image cannot be decoded: {error}") from error
