"""COCO instance files (arXiv 1405.0312), and the many in their format: LVIS's, OVIS's, what annotation tools export."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from samlit.faults import Damaged, blaming
from samlit.loading.images import Encoded, encoded, read
from samlit.masks import rle
from samlit.masks.rle import Rle
from samlit.source import Sample, Source
from samlit_sources import _documents as documents
from samlit_sources._documents import Index
from samlit_sources._outlines import filled

__all__ = ["Coco"]


class _Annotation(NamedTuple):
    """One mask of the file, as short as it can be kept.

    Attributes:
        id: As in the file.
        segmentation: A compressed string (str), uncompressed runs (tuple), or a polygon's parts (list).
        phrase: Name of the class; None where it has none.
    """

    id: Any
    segmentation: str | tuple[int, ...] | list[list[float]]
    phrase: str | None


class _Record(NamedTuple):
    """One image of the file and its annotations; `size` is rows and columns."""

    key: str
    path: str
    size: tuple[int, int]
    annotations: list[_Annotation]


class _Tile(NamedTuple):
    """A square of an image: the image's number, the square's place in it, and the numbers of its annotations."""

    image: int
    rows: slice
    columns: slice
    masks: tuple[int, ...]


class Coco(Source):
    """Images and masks of a COCO instance JSON, or an LVIS one; or frames of a YouTube-VIS one, as OVIS's.

    Polygons of any number of parts are rasterised by the official API, compressed and uncompressed RLE are kept as
    they are, and the names of the classes are the phrases. Masks of no pixel are left out.

    The whole JSON is read and checked once, at `prepare` or the first use; images are opened when asked for.

    Args:
        annotations: The JSON file.
        images: Folder of the images. Without one they are looked for beside the JSON, in `images/` beside it, and, if
            the JSON is in a folder `annotations`, as COCO's are, in that folder's neighbours (`../images`, `../val2017`
            for `instances_val2017.json`).
        crowd: Whether regions marked as crowds (`iscrowd`) are masks too.
        empty: Whether images without a mask are samples too.
        min_area: Masks of fewer pixels are left out.
        strict: Whether a polygon of fewer than three points is an error; otherwise it is left out, as is an annotation
            that draws nothing else.
        tile: Cut images into squares of this side, in pixels, each of which is a sample; for things that are small in
            large images. Tiles cover the image and overlap where the side does not divide it. A mask belongs to the
            one tile whose middle is nearest to its own, and ends where that tile does. 0 leaves images whole.
    """

    def __init__(
        self,
        annotations: str,
        images: str | None = None,
        crowd: bool = False,
        empty: bool = True,
        min_area: int = 1,
        strict: bool = True,
        tile: int = 0,
    ) -> None:
        if tile < 0:
            raise ValueError(f"tile: a side in pixels, or 0 for whole images, not {tile}")
        self.annotations, self.images = annotations, images
        self.crowd, self.empty, self.min_area, self.tile = crowd, empty, max(min_area, 1), tile
        self.strict = strict
        self._index: Index | None = None
        self._tiles: list[_Tile] = []

    def prepare(self, progress: Callable[[int, int, str], None] = lambda done, total, what: None) -> None:
        """Read the JSON and check all that can be checked without opening images or decoding masks.

        For tiles masks are decoded, to see where they are.

        Raises:
            FileNotFoundError: The JSON, the folder or an image is not there.
            ValueError: The JSON is not usable; one line that names the annotation or image and says why.
        """
        if self._index is None:
            what = f"reading {Path(self.annotations).name}"
            progress(0, 1, what)
            index = self._read()
            progress(1, 1, what)
            if self.tile:  # before anything is kept: a damaged mask is an error every time, not an empty source
                self._tiles = self._cut(index, progress)
            self._index = index

    def __len__(self) -> int:
        """How many images there are, or tiles."""
        images = len(self._opened())
        return len(self._tiles) if self.tile else images

    def __getitem__(self, index: int) -> Sample:
        """Image number `index` in the file's order, or tile, and its masks.

        Raises:
            ValueError: The image or a mask is damaged; one line that names it and says how.
            IndexError: There is no such number.
        """
        count = len(self)
        if not 0 <= index < count:
            raise IndexError(f"{self.annotations}: no sample {index}, there are {count}")
        tile = self._tiles[index] if self.tile else None
        record: _Record = self._opened()[tile.image if tile else index]
        image: np.ndarray | Encoded
        with blaming(record.key):
            if tile:
                image = np.ascontiguousarray(read(record.path, record.size)[tile.rows, tile.columns])
            else:
                image = encoded(record.path, record.size)
        masks, phrases = [], []
        for number in tile.masks if tile else range(len(record.annotations)):
            mask, area = self._mask(record, number)
            if tile:
                here = rle.decode(mask)[tile.rows, tile.columns]
                mask, area = rle.encode(here), int(here.sum())
            if area >= self.min_area:
                masks.append(mask)
                phrases.append(record.annotations[number].phrase)
        named = tuple(phrase for phrase in phrases if phrase is not None)
        return Sample(
            key=f"{record.key} at {tile.columns.start},{tile.rows.start}" if tile else record.key,
            image=image,
            masks=tuple(masks),
            phrases=named if len(named) == len(masks) else (),
        )

    def _mask(self, record: _Record, number: int) -> tuple[Rle, int]:
        """A mask of an image, whole, and its pixels; what is wrong with it is said with its name."""
        annotation = record.annotations[number]
        try:
            mask = _mask(annotation.segmentation, record.size)
            return mask, rle.area(mask)
        except ValueError as error:
            message = f"annotation {annotation.id}: {error}"
            raise Damaged("rle", message, record.key, self.annotations) from None

    def _cut(self, index: Index, progress: Callable[[int, int, str], None]) -> list[_Tile]:
        """All tiles of all images, and which masks are whose."""
        tiles: list[_Tile] = []
        images = len(index)
        for image in range(images):
            progress(image, images, "cutting tiles")
            record: _Record = index[image]
            rows, columns = (_starts(length, self.tile) for length in record.size)
            of_tile: dict[tuple[int, int], list[int]] = {(y, x): [] for y in rows for x in columns}
            for number in range(len(record.annotations)):
                x0, y0, x1, y1 = rle.box(self._mask(record, number)[0])
                if x1 > x0:
                    place = _nearest(rows, self.tile, (y0 + y1) / 2), _nearest(columns, self.tile, (x0 + x1) / 2)
                    of_tile[place].append(number)
            for (y, x), masks in of_tile.items():
                if masks or self.empty:
                    tiles.append(_Tile(image, slice(y, y + self.tile), slice(x, x + self.tile), tuple(masks)))
        progress(images, images, "cutting tiles")
        return tiles

    def _opened(self) -> Index:
        """The parsed file, read now if it was not."""
        self.prepare()
        assert self._index is not None
        return self._index

    def _read(self) -> Index:
        """Parse and check the file."""
        path = Path(self.annotations).expanduser()
        document = documents.parse(path, "COCO instance")
        try:
            sizes = documents.sizes(document["images"])
            of_image = self._annotations(document["annotations"], document.get("categories"), sizes)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        kept = [image for image in document["images"] if self.empty or of_image[image["id"]]]
        files = documents.locate(kept, path, self.images)
        keys = documents.keys(kept, files)
        return Index.of(
            _Record(key, file, sizes[image["id"]], of_image[image["id"]])
            for key, image, (_, file) in zip(keys, kept, files, strict=True)
        )

    def _annotations(
        self, annotations: list[Any], categories: Any, sizes: Mapping[Any, tuple[int, int]]
    ) -> dict[Any, list[_Annotation]]:
        """The annotations of each image, checked, without the crowds that nobody asked for."""
        names = documents.names(categories)
        of_image: dict[Any, list[_Annotation]] = {image_id: [] for image_id in sizes}
        num_crowds = num_masks = 0
        for position, annotation in enumerate(annotations):
            if not isinstance(annotation, dict):
                raise ValueError(f"entry {position} of 'annotations' is no JSON object")
            if not self.crowd and annotation.get("iscrowd"):
                num_crowds += 1
                continue
            label = annotation.get("id", f"number {position}")
            image_id = annotation.get("image_id")
            if not isinstance(image_id, (int, str)) or image_id not in sizes:
                raise ValueError(
                    f"annotation {label} is for image id {image_id!r}, which is not in 'images'; "
                    "remove the annotation or add its image"
                )
            if not self.strict and not _draws(annotation):
                continue
            category = annotation.get("category_id")
            if category is not None and (not isinstance(category, (int, str)) or (names and category not in names)):
                raise ValueError(
                    f"annotation {label} has category_id {category!r}, which is not in 'categories'; add it there"
                )
            try:
                segmentation = _segmentation(annotation, sizes[image_id])
            except ValueError as error:
                raise ValueError(f"annotation {label} {error}") from None
            of_image[image_id].append(_Annotation(label, segmentation, names.get(category)))
            num_masks += 1
        if not num_masks:
            only = f" but {num_crowds} crowd regions (crowd: true keeps them)" if num_crowds else ""
            raise ValueError(f"holds no masks{only}")
        return of_image


def _mask(segmentation: str | tuple[int, ...] | list[list[float]], size: tuple[int, int]) -> Rle:
    """The mask as a string; polygons by the official API, several parts united.

    Raises:
        ValueError: It is none of that size.
    """
    if isinstance(segmentation, str):
        return Rle(size, segmentation)
    if isinstance(segmentation, tuple):
        return rle.from_uncompressed(size, segmentation)
    return filled(segmentation, size)


def _starts(length: int, side: int) -> list[int]:
    """Where tiles of a side begin, so that as few as can be cover a length, evenly."""
    count = max(1, -(-length // side))
    return [round(i * (length - side) / (count - 1)) for i in range(count)] if count > 1 else [0]


def _nearest(starts: list[int], side: int, middle: float) -> int:
    """The tile whose middle is nearest to another."""
    return min(starts, key=lambda start: abs(start + side / 2 - middle))


def _segmentation(annotation: Mapping[str, Any], size: tuple[int, int]) -> str | tuple[int, ...] | list[list[float]]:
    """What an annotation draws, checked as far as that is quick: runs and strings are proved when they are read.

    Raises:
        ValueError: The end of a sentence that begins with the annotation's name.
    """
    drawn = annotation.get("segmentation")
    if not drawn:
        if "segments_info" in annotation:
            raise ValueError("is a panoptic one (segments_info); convert the file to COCO instance format")
        raise ValueError("has no segmentation; draw its mask or remove it, a box alone is none")
    if isinstance(drawn, list):
        return _polygon(drawn, size)
    if not isinstance(drawn, dict):
        raise ValueError(f"has a segmentation that is a {type(drawn).__name__}, neither polygons nor RLE")
    if drawn.get("size") != list(size):
        raise ValueError(
            f"has an RLE of size {str(drawn.get('size'))[:40]} on an image of {list(size)} (rows, columns); "
            "correct the one that is wrong"
        )
    counts = drawn.get("counts")
    if isinstance(counts, str):
        return counts
    if isinstance(counts, list):
        return tuple(counts)
    raise ValueError("has an RLE without counts; they are a string or a list of runs")


def _draws(annotation: dict[str, Any]) -> bool:
    """Whether an annotation draws anything once polygons of fewer than three points are gone from it."""
    drawn = annotation.get("segmentation")
    if isinstance(drawn, list):
        drawn = annotation["segmentation"] = [part for part in drawn if not isinstance(part, list) or len(part) >= 6]
    return bool(drawn)


def _polygon(parts: list[Any], size: tuple[int, int]) -> list[list[float]]:
    """A polygon's parts, checked: the official API takes four numbers for a box and crashes on huge ones."""
    reach = max(size)  # what lies outside is cut at the border; very far outside is another scale, or nonsense
    for part in parts:
        if not isinstance(part, list):
            raise ValueError("has a polygon that is no list of x, y, x, y, ...; each part is one list in the list")
        if len(part) < 6 or len(part) % 2:
            raise ValueError(f"has a polygon of {len(part)} numbers; three or more points need x and y each")
        try:
            within = -reach <= min(part) and max(part) <= 2 * reach
        except TypeError:
            raise ValueError("has a polygon that does not hold numbers only") from None
        if not within:
            raise ValueError(
                f"has a polygon from {min(part):g} to {max(part):g}, far outside its image of {size[1]} x {size[0]}"
            )
    return parts
