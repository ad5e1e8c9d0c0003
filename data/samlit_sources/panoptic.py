"""COCO panoptic files (arXiv 1801.00868): a JSON of segments, and a PNG for each image whose colours number them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from samlit.faults import Damaged, blaming
from samlit.loading.images import encoded
from samlit.masks import rle
from samlit.source import Sample, Source
from samlit_sources import _documents as documents
from samlit_sources._documents import Index

__all__ = ["Panoptic"]

MAX_ID = (1 << 24) - 1


class _Segment(NamedTuple):
    """One segment of an image: its number in the PNG, its phrase, and whether it is a sample's mask."""

    id: int
    phrase: str | None
    wanted: bool


class _Record(NamedTuple):
    """One image of the file and its segments; `size` is rows and columns."""

    key: str
    path: str
    png: str
    size: tuple[int, int]
    segments: list[_Segment]


class Panoptic(Source):
    """Images and segments of a COCO panoptic JSON and its folder of PNG files.

    Segments are masks, things and stuff alike, and the names of their classes are the phrases. What belongs to no
    segment (black) is no mask.

    The JSON is read and checked once, at `prepare` or the first use; images are opened when asked for.

    Args:
        annotations: The JSON file.
        images: Folder of the images; looked for as `coco` does if not given.
        masks: Folder of the PNG files; the one of the JSON's name beside it if not given, as COCO's are.
        things: Whether segments of countable things are masks.
        stuff: Whether segments of stuff (sky, grass) are masks.
        crowd: Whether segments marked as crowds (`iscrowd`) are masks too.
        empty: Whether images without a mask are samples too.
        min_area: Masks of fewer pixels are left out.
    """

    def __init__(
        self,
        annotations: str,
        images: str | None = None,
        masks: str | None = None,
        things: bool = True,
        stuff: bool = True,
        crowd: bool = False,
        empty: bool = True,
        min_area: int = 1,
    ) -> None:
        if not things and not stuff:
            raise ValueError("things and stuff are both false, which leaves no masks; let one be true")
        self.annotations, self.images, self.masks = annotations, images, masks
        self.things, self.stuff, self.crowd, self.empty = things, stuff, crowd, empty
        self.min_area = max(min_area, 1)
        self._index: Index | None = None

    def prepare(self, progress: Callable[[int, int, str], None] = lambda done, total, what: None) -> None:
        """Read the JSON and check all that can be checked without opening images.

        Raises:
            FileNotFoundError: The JSON, a folder or an image is not there.
            ValueError: The JSON is not usable; one line that names the annotation or image and says why.
        """
        if self._index is None:
            what = f"reading {Path(self.annotations).name}"
            progress(0, 1, what)
            self._index = self._read()
            progress(1, 1, what)

    def __len__(self) -> int:
        """How many images there are."""
        return len(self._opened())

    def __getitem__(self, index: int) -> Sample:
        """Image number `index` in the file's order, and its masks in the order of its segments.

        Raises:
            Damaged: The image or its PNG is, or PNG and JSON differ; one line that names it and says how.
            IndexError: There is no such number.
        """
        opened = self._opened()
        if not 0 <= index < len(opened):
            raise IndexError(f"{self.annotations}: no sample {index}, there are {len(opened)}")
        record: _Record = opened[index]
        with blaming(record.key, self.annotations):
            values, drawn = rle.encode_labels(_numbers(record.png, record.size))
            of_id = dict(zip(values.tolist(), drawn, strict=True))
            stray = of_id.keys() - {segment.id for segment in record.segments}
            if stray:
                raise Damaged("other", f"the PNG has a segment {min(stray)} that the JSON has not")
            masks, phrases = [], []
            for segment in record.segments:
                if segment.id not in of_id:
                    raise Damaged("other", f"the JSON has a segment {segment.id} that the PNG has not")
                mask = of_id[segment.id]
                if segment.wanted and rle.area(mask) >= self.min_area:
                    masks.append(mask)
                    phrases.append(segment.phrase)
            image = encoded(record.path, record.size)
        named = tuple(phrase for phrase in phrases if phrase is not None)
        return Sample(record.key, image, tuple(masks), named if len(named) == len(masks) else ())

    def _opened(self) -> Index:
        """The parsed file, read now if it was not."""
        self.prepare()
        assert self._index is not None
        return self._index

    def _read(self) -> Index:
        """Parse and check the file."""
        path = Path(self.annotations).expanduser()
        document = documents.parse(path, "COCO panoptic")
        try:
            sizes = documents.sizes(document["images"])
            of_image = self._segments(document["annotations"], document.get("categories"), sizes)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        kept = []
        for image in document["images"]:
            if image["id"] not in of_image:
                raise ValueError(f"{path}: image {image['id']} has no annotation; add it or remove the image")
            if self.empty or any(segment.wanted for segment in of_image[image["id"]][1]):
                kept.append(image)
        files = documents.locate(kept, path, self.images)
        folder = self._folder(path)
        there = frozenset(os.listdir(folder))
        for image in kept:
            if (name := of_image[image["id"]][0]) not in there:
                raise FileNotFoundError(f"{path}: the PNG {name!r} is not in {folder}; masks: names their folder")
        return Index.of(
            _Record(key, file, str(folder / of_image[image["id"]][0]), sizes[image["id"]], of_image[image["id"]][1])
            for key, image, (_, file) in zip(documents.keys(kept, files), kept, files, strict=True)
        )

    def _folder(self, path: Path) -> Path:
        """Where the PNG files are."""
        folder = path.with_suffix("") if self.masks is None else Path(self.masks).expanduser()
        if not folder.is_dir():
            raise FileNotFoundError(f"there is no folder {folder} of panoptic PNG files; masks: names it")
        return folder

    def _segments(
        self, annotations: list[Any], categories: Any, sizes: Mapping[Any, tuple[int, int]]
    ) -> dict[Any, tuple[str, list[_Segment]]]:
        """By image id, its PNG and its segments, checked."""
        names = documents.names(categories)
        stuff = {one["id"] for one in categories if one.get("isthing") == 0} if names else set()
        of_image: dict[Any, tuple[str, list[_Segment]]] = {}
        for position, annotation in enumerate(annotations):
            if not isinstance(annotation, dict):
                raise ValueError(f"entry {position} of 'annotations' is no JSON object")
            image_id, segments = annotation.get("image_id"), annotation.get("segments_info")
            if not isinstance(image_id, (int, str)) or image_id not in sizes:
                raise ValueError(f"entry {position} of 'annotations' is for image id {image_id!r}, not in 'images'")
            if not isinstance(segments, list) or not isinstance(annotation.get("file_name"), str):
                hint = "; it is an instance one, which the source coco reads" if "segmentation" in annotation else ""
                raise ValueError(f"the annotation of image {image_id} has no segments_info and file_name{hint}")
            if image_id in of_image:
                raise ValueError(f"image {image_id} has two annotations")
            found: list[_Segment] = []
            for segment in segments:
                number = segment.get("id") if isinstance(segment, dict) else None
                if type(number) is not int or not 0 < number <= MAX_ID:
                    raise ValueError(
                        f"image {image_id} has a segment of id {number!r}, not a number from 1 to {MAX_ID}"
                    )
                category = segment.get("category_id")
                if not isinstance(category, (int, str)) or (names and category not in names):
                    raise ValueError(
                        f"segment {number} of image {image_id} has category_id {category!r}, not in the file"
                    )
                kind = self.stuff if category in stuff else self.things
                wanted = kind and (self.crowd or not segment.get("iscrowd"))
                found.append(_Segment(number, names.get(category), wanted))
            if len({segment.id for segment in found}) < len(found):
                raise ValueError(f"image {image_id} has two segments of one id")
            of_image[image_id] = annotation["file_name"], found
        if not any(segment.wanted for _, found in of_image.values() for segment in found):
            raise ValueError("holds no masks of the kinds that are asked for (things, stuff, crowd)")
        return of_image


def _numbers(path: str, size: tuple[int, int]) -> npt.NDArray[np.int32]:
    """Which segment each pixel belongs to, (H, W): R + 256 G + 256 * 256 B.

    Raises:
        Damaged: The PNG cannot be read, is of another size, or not of three colours.
    """
    try:
        with Image.open(path) as image:
            columns, rows = image.size
            if (rows, columns) != size:  # the JSON's size is one that may be decoded
                raise Damaged("size", f"the PNG is {rows}x{columns}, the JSON says {size[0]}x{size[1]}")
            if image.mode != "RGB":
                raise Damaged("image", f"the PNG is of mode {image.mode}, panoptic ones are RGB")
            red, green, blue = np.moveaxis(np.array(image).astype(np.int32), -1, 0)
    except (FileNotFoundError, UnidentifiedImageError):
        raise Damaged("image", f"{path} is not an image, or not there any more") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Damaged("bomb", f"the PNG cannot be decoded: {error}") from None
    except (OSError, SyntaxError) as error:
        raise Damaged("image", f"the PNG is damaged or cut off ({error})") from None
    return np.asarray(red + 256 * green + 65536 * blue)
