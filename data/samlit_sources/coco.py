"""COCO instance files (arXiv 1405.0312), and the many in their format: LVIS's and what annotation tools export."""

from __future__ import annotations

import json
import os
import pickle
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from faster_coco_eval.core import mask as official

from samlit import rle
from samlit.contracts import Source
from samlit.images import MAX_PIXELS, read
from samlit.rle import Rle
from samlit.structures import Sample

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


@dataclass(frozen=True)
class _Index:
    """A parsed file: one pickle an image, end to end.

    As one block of bytes it stays shared between forked workers, where a million Python objects would be copied page
    by page as their reference counts change, and it reaches spawned ones quickly.

    Attributes:
        records: All pickles of a `_Record`.
        ends: (number of images,) int64, where each ends.
    """

    records: bytes
    ends: npt.NDArray[np.int64]

    def record(self, index: int) -> _Record:
        """Image number `index`."""
        start = self.ends[index - 1] if index else 0
        record: _Record = pickle.loads(memoryview(self.records)[start : self.ends[index]])
        return record


class Coco(Source):
    """Images and masks of a COCO instance JSON, or an LVIS one.

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
        tile: int = 0,
    ) -> None:
        if tile < 0:
            raise ValueError(f"tile: a side in pixels, or 0 for whole images, not {tile}")
        self.annotations, self.images = annotations, images
        self.crowd, self.empty, self.min_area, self.tile = crowd, empty, max(min_area, 1), tile
        self._index: _Index | None = None
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
        images = len(self._opened().ends)
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
        record = self._opened().record(tile.image if tile else index)
        image = read(record.path, record.size)
        if tile:
            image = np.ascontiguousarray(image[tile.rows, tile.columns])
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
            raise ValueError(f"{self.annotations}: annotation {annotation.id} ({record.key}): {error}") from None

    def _cut(self, index: _Index, progress: Callable[[int, int, str], None]) -> list[_Tile]:
        """All tiles of all images, and which masks are whose."""
        tiles: list[_Tile] = []
        images = len(index.ends)
        for image in range(images):
            progress(image, images, "cutting tiles")
            record = index.record(image)
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

    def _opened(self) -> _Index:
        """The parsed file, read now if it was not."""
        self.prepare()
        assert self._index is not None
        return self._index

    def _read(self) -> _Index:
        """Parse and check the file."""
        path = Path(self.annotations).expanduser()
        document = _parse(path)
        for part in ("images", "annotations"):
            if not isinstance(document.get(part), list):
                raise ValueError(f"{path}: has no list '{part}', so it is no COCO instance file")
        if not document["images"]:
            raise ValueError(f"{path}: holds no images")
        try:
            sizes = _sizes(document["images"])
            of_image = self._annotations(document["annotations"], document.get("categories"), sizes)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        kept = [image for image in document["images"] if self.empty or of_image[image["id"]]]
        files = _locate(kept, path, self.images)
        twice = Counter(name for name, _ in files)
        pickles = [
            pickle.dumps(
                _Record(
                    key=name if twice[name] == 1 else f"{name}#{image['id']}",
                    path=file,
                    size=sizes[image["id"]],
                    annotations=of_image[image["id"]],
                ),
                protocol=pickle.HIGHEST_PROTOCOL,
            )
            for image, (name, file) in zip(kept, files, strict=True)
        ]
        return _Index(b"".join(pickles), np.cumsum([len(one) for one in pickles], dtype=np.int64))

    def _annotations(
        self, annotations: list[Any], categories: Any, sizes: Mapping[Any, tuple[int, int]]
    ) -> dict[Any, list[_Annotation]]:
        """The annotations of each image, checked, without the crowds that nobody asked for."""
        names = _names(categories)
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
    # The API crashes or guesses on what `_segmentation` has refused, and its memory grows with the outline's length:
    # a small file could ask for any amount.
    longest = 2 * size[0] * size[1] + 100 * (size[0] + size[1])
    for part in segmentation:
        points = np.asarray(part).reshape(-1, 2)
        if np.abs(points - np.roll(points, 1, 0)).sum() > longest:
            raise ValueError("its polygon runs to and fro, longer than any outline on an image of that size")
    merged = official.merge(official.frPyObjects(segmentation, *size))
    return Rle(size, merged["counts"].decode("ascii"))


def _starts(length: int, side: int) -> list[int]:
    """Where tiles of a side begin, so that as few as can be cover a length, evenly."""
    count = max(1, -(-length // side))
    return [round(i * (length - side) / (count - 1)) for i in range(count)] if count > 1 else [0]


def _nearest(starts: list[int], side: int, middle: float) -> int:
    """The tile whose middle is nearest to another."""
    return min(starts, key=lambda start: abs(start + side / 2 - middle))


def _parse(path: Path) -> dict[str, Any]:
    """A JSON object from a file, strictly.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no JSON object; one line that names the file and says why.
    """
    if path.is_dir():
        inside = ", ".join(sorted(file.name for file in path.glob("*.json"))[:5])
        raise ValueError(f"{path}: is a folder; name the JSON file in it" + (f" ({inside})" if inside else ""))
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: there is no such file") from None
    constants: list[str] = []

    def constant(name: str) -> float:
        constants.append(name)
        return float(name)

    try:
        document = json.loads(raw, parse_constant=constant)
    except json.JSONDecodeError as error:
        text = raw.strip()
        if text.startswith((b"{", b"[")) and (not text.endswith((b"}", b"]")) or error.pos >= len(error.doc.rstrip())):
            raise ValueError(
                f"{path}: is cut off, it ends at byte {len(raw)} in the middle of the JSON; copy or export it again"
            ) from None
        why = f"is not JSON ({error.msg}, line {error.lineno} column {error.colno})" if text else "is empty"
        raise ValueError(f"{path}: {why}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: is not JSON ({error})") from None
    if constants:  # Python's reader lets NaN and Infinity pass, JSON has neither
        entry = _not_finite(document)
        raise ValueError(f"{path}: {entry} holds {constants[0]}, which is no number; correct or remove it")
    if not isinstance(document, dict):
        raise ValueError(f"{path}: is a JSON {type(document).__name__}, not the object of a COCO instance file")
    return document


def _not_finite(document: Any) -> str:
    """In words, the first entry of a document that holds NaN or Infinity."""
    for kind in ("annotation", "image"):
        entries = document.get(f"{kind}s") if isinstance(document, dict) else None
        for position, entry in enumerate(entries if isinstance(entries, list) else ()):
            try:
                json.dumps(entry, allow_nan=False)
            except ValueError:
                return f"{kind} {entry.get('id', f'number {position}') if isinstance(entry, dict) else position}"
    return "the JSON"


def _sizes(images: list[Any]) -> dict[Any, tuple[int, int]]:
    """Rows and columns by image id.

    Raises:
        ValueError: An image has no usable id or size, or an id stands twice.
    """
    sizes: dict[Any, tuple[int, int]] = {}
    for position, image in enumerate(images):
        if not isinstance(image, dict) or not isinstance(image.get("id"), (int, str)):
            raise ValueError(f"entry {position} of 'images' has no id")
        if image["id"] in sizes:
            raise ValueError(f"image id {image['id']!r} stands twice in 'images'; give each image its own")
        sides: list[Any] = [image.get("height"), image.get("width")]
        if not all(isinstance(side, (int, float)) and side >= 1 and side % 1 == 0 for side in sides):
            raise ValueError(
                f"image {image['id']} has no usable height and width ({sides[0]!r}, {sides[1]!r}); add them"
            )
        height, width = (int(side) for side in sides)
        if height * width > MAX_PIXELS or max(height, width) > rle.MAX_SIDE:
            limit = f"more than {rle.MAX_SIDE} a side or {MAX_PIXELS} in all"
            raise ValueError(f"image {image['id']} is stated to have {height}x{width} pixels, {limit}")
        sizes[image["id"]] = height, width
    return sizes


def _names(categories: Any) -> dict[Any, str]:
    """Names of classes by id, as words of a phrase; none at all where one has no name."""
    if not isinstance(categories, list) or not all(
        isinstance(one, dict) and isinstance(one.get("id"), (int, str)) and isinstance(one.get("name"), str)
        for one in categories
    ):
        return {}
    return {one["id"]: one["name"].replace("_", " ").strip() for one in categories}  # LVIS: alarm_clock


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


def _locate(images: list[Any], path: Path, folder: str | None) -> list[tuple[str, str]]:
    """The name and the file of each image.

    Folders are listed once rather than asked for each file: on a network file system that is the difference between
    seconds and an hour.

    Raises:
        FileNotFoundError: The folder, or an image, is not there.
        ValueError: An image has neither file_name nor coco_url.
    """
    folders = _folders(path, folder)
    listed: dict[str, frozenset[str]] = {}
    found: list[tuple[str, str]] = []
    missing: list[str] = []
    for image in images:
        names = _file_names(image)
        if not names:
            raise ValueError(f"{path}: image {image['id']} has neither file_name nor coco_url; add its file_name")
        file = _first_of([os.path.join(one, name) for one in folders for name in names], listed)
        if file is None:
            missing.append(f"{names[-1]!r} of image {image['id']}")
        else:
            found.append((names[0], file))
    if missing:
        more = f" (nor {len(missing) - 1} others)" if len(missing) > 1 else ""
        raise FileNotFoundError(
            f"{path}: the file {missing[0]}{more} is not in {' or '.join(folders)}; name the folder with images"
        )
    return found


def _folders(path: Path, folder: str | None) -> list[str]:
    """Where images may be, as far as it exists, in the order to look."""
    if folder is not None:
        given = Path(folder).expanduser()
        if not given.is_dir():
            raise FileNotFoundError(f"{given}: there is no such folder of images")
        return [str(given)]
    here = path.parent
    places = [here, here / "images"]
    if here.resolve().name == "annotations":  # COCO's own: annotations/instances_val2017.json beside val2017/
        beside = here.resolve().parent
        split = path.stem.rpartition("_")[2]
        places += [beside, beside / "images", beside / split, beside / "images" / split]
    return [str(place) for place in places if place.is_dir()]


def _file_names(image: Mapping[str, Any]) -> list[str]:
    """Names that an image's file may have, the best first; LVIS has only the address, `.../val2017/139.jpg`."""
    name, url = image.get("file_name"), image.get("coco_url")
    if isinstance(name, str) and name:
        return [name, name.replace("\\", "/")] if "\\" in name else [name]
    if isinstance(url, str) and url.strip("/"):
        words = url.strip("/").split("/")
        return ["/".join(words[-2:]), words[-1]]
    return []


def _first_of(files: Sequence[str], listed: dict[str, frozenset[str]]) -> str | None:
    """The first file that exists; `listed` remembers what folders hold."""
    for file in files:
        folder, name = os.path.split(file)
        if folder not in listed:
            try:
                listed[folder] = frozenset(os.listdir(folder))
            except OSError:
                listed[folder] = frozenset()
        if name in listed[folder]:
            return file
    # A file system may find a name that is spelled otherwise (case, Unicode form).
    return next((file for file in files if listed[os.path.dirname(file)] and os.path.isfile(file)), None)
