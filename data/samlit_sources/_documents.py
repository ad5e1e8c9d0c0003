"""What JSON files of images share: they are read strictly, and the files that they name are looked for."""

from __future__ import annotations

import json
import os
import pickle
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from samlit.loading.images import MAX_PIXELS
from samlit.masks import rle

__all__ = ["Index", "keys", "load", "locate", "names", "parse", "sizes"]


@dataclass(frozen=True)
class Index:
    """A parsed file: one pickle an image, end to end.

    As one block of bytes it stays shared between forked workers, where a million Python objects would be copied page
    by page as their reference counts change, and it reaches spawned ones quickly.

    Attributes:
        records: All pickles.
        ends: (number of images,) int64, where each ends.
    """

    records: bytes
    ends: npt.NDArray[np.int64]

    @classmethod
    def of(cls, records: Iterable[Any]) -> Index:
        """Of one record an image, anything that can be pickled."""
        pickles = [pickle.dumps(record, protocol=pickle.HIGHEST_PROTOCOL) for record in records]
        return cls(b"".join(pickles), np.cumsum([len(one) for one in pickles], dtype=np.int64))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> Any:
        """The record of image number `index`."""
        start = self.ends[index - 1] if index else 0
        return pickle.loads(memoryview(self.records)[start : self.ends[index]])


def load(path: Path) -> dict[str, Any]:
    """A JSON object from a file, strictly.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is none; one line that names the file and says why.
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
        raise ValueError(f"{path}: is a JSON {type(document).__name__}, not an object")
    return document


def parse(path: Path, kind: str) -> dict[str, Any]:
    """A JSON of images and annotations from a file, strictly; of videos the frames are the images.

    Args:
        path: The file.
        kind: "COCO instance" or what else it should be, for the errors.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not of that kind; one line that names the file and says why.
    """
    document = load(path)
    if "images" not in document and isinstance(document.get("videos"), list):
        document = _frames(document, path)
    for part in ("images", "annotations"):
        if not isinstance(document.get(part), list):
            raise ValueError(f"{path}: has no list '{part}', so it is no {kind} file")
    if not document["images"]:
        raise ValueError(f"{path}: holds no images")
    return document


def _frames(document: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The frames of a YouTube-VIS file (arXiv 1905.04804) as images, and what each thing is in them as annotations.

    Raises:
        ValueError: A video or an annotation has not what it must have.
    """
    images: list[dict[str, Any]] = []
    lengths: dict[str, int] = {}
    for position, video in enumerate(document["videos"]):
        if not isinstance(video, dict) or not isinstance(video.get("file_names"), list):
            raise ValueError(f"{path}: video number {position} has no list 'file_names'")
        if not isinstance(video.get("id"), (int, str)):
            raise ValueError(f"{path}: video number {position} has no id")
        lengths[str(video["id"])] = len(video["file_names"])
        size = {side: video.get(side) for side in ("height", "width")}
        images += [
            {"id": f"{video.get('id')}/{number}", "file_name": name} | size
            for number, name in enumerate(video["file_names"])
        ]
    annotations: list[dict[str, Any]] = []
    for position, thing in enumerate(document.get("annotations") or ()):
        drawn = thing.get("segmentations") if isinstance(thing, dict) else None
        if not isinstance(drawn, list) or len(drawn) != lengths.get(str(thing.get("video_id"))):
            raise ValueError(
                f"{path}: annotation number {position} has no list 'segmentations' with an entry for each frame of its "
                "video"
            )
        rest = {key: thing[key] for key in ("category_id", "iscrowd") if key in thing}
        annotations += [
            {"id": f"{thing.get('id')}/{number}", "image_id": f"{thing['video_id']}/{number}", "segmentation": mask}
            | rest
            for number, mask in enumerate(drawn)
            if mask  # where it is not seen there is nothing
        ]
    return {**document, "images": images, "annotations": annotations}


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


def sizes(images: list[Any]) -> dict[Any, tuple[int, int]]:
    """Rows and columns by image id.

    Raises:
        ValueError: An image has no usable id or size, or an id stands twice.
    """
    found: dict[Any, tuple[int, int]] = {}
    for position, image in enumerate(images):
        if not isinstance(image, dict) or not isinstance(image.get("id"), (int, str)):
            raise ValueError(f"entry {position} of 'images' has no id")
        if image["id"] in found:
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
        found[image["id"]] = height, width
    return found


def names(categories: Any) -> dict[Any, str]:
    """Names of classes by id, as words of a phrase; none at all where one has no name."""
    if not isinstance(categories, list) or not all(
        isinstance(one, dict) and isinstance(one.get("id"), (int, str)) and isinstance(one.get("name"), str)
        for one in categories
    ):
        return {}
    return {one["id"]: one["name"].replace("_", " ").strip() for one in categories}  # LVIS: alarm_clock


def locate(images: list[Any], path: Path, folder: str | None) -> list[tuple[str, str]]:
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
    """Names that an image's file may have, the best first.

    LVIS 1 has only the address, `.../val2017/139.jpg`; LVIS 0.5 the name before 2017, `COCO_val2014_000000000139.jpg`.
    """
    name, url = image.get("file_name"), image.get("coco_url")
    if isinstance(name, str) and name:
        renamed = re.fullmatch(r"COCO_\w+_(\d{12}\.jpg)", name)
        others = [name.replace("\\", "/")] if "\\" in name else [renamed[1]] if renamed else []
        return [name, *others]
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


def keys(images: Sequence[Any], files: Sequence[tuple[str, str]]) -> list[str]:
    """What the sample of each image is called: its name, and its id where several share a name."""
    twice = Counter(name for name, _ in files)
    return [
        name if twice[name] == 1 else f"{name}#{image['id']}" for image, (name, _) in zip(images, files, strict=True)
    ]
