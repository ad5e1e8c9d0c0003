"""A folder of images and their annotations: a JSON an image in SA-1B's layout, which nobody overwrites for another."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from samlit import atomic
from samlit.annotator.changes import Change
from samlit.annotator.verdicts import verdicts
from samlit.errors import SamlitError, one_line
from samlit.faults import Damaged
from samlit.generation.claims import claimed
from samlit.generation.folder import Images
from samlit.loading import images
from samlit.masks import rle

__all__ = ["Conflict", "Item", "Store"]

Document = dict[str, Any]
ORIENTATION = 0x0112
"""The EXIF tag; 1 is upright."""
OWN = "samlit"
"""The key of a document under which lies what SA-1B's layout has no place for."""


class Conflict(ValueError):
    """A change that was made on what is not there any more: somebody else was faster."""


@dataclass(frozen=True)
class Item:
    """One image of the folder.

    Attributes:
        id: 16 hexadecimal digits that stand for it in addresses: no address has a path in it.
        name: Its path in the folder.
        number: Its `image_id`: as its name says (`sa_12.jpg`), or made from it.
    """

    id: str
    name: str
    number: int

    def held(self, share: int) -> bool:
        """Whether it is set aside to judge by where about one image of `share` is."""
        return int(self.id, 16) % share == 0


class Store:
    """Reads and changes annotations; any number of stores, processes and machines may share the folders.

    A change is applied to what the file holds at that moment, under a lock on the image, and the file is replaced
    whole. So nothing depends on who else is at work or on when a process dies: a change is on the disk, or it is not.

    Args:
        folder: Of the images, with its folders.
        out: Folder of the annotations; made with the first one. `a/b.jpg` is annotated in `a/b.json`. An image without
            a file there begins with the annotations that lie beside it, if there are any.

    Raises:
        FileNotFoundError: There is no such folder of images.
        ValueError: There is no image in it, or two would have one file of annotations.
    """

    def __init__(self, folder: Path, out: Path) -> None:
        self.images, self.out = folder.expanduser(), out.expanduser()
        self._root = self.images.resolve()
        self.id = hashlib.blake2b(str(self.out.resolve()).encode(errors="surrogateescape"), digest_size=8).hexdigest()
        listed = Images(str(self.images))
        listed.prepare()
        inside = self.out.resolve()
        names = [
            name for name in listed.names if not (self._root / name).is_relative_to(inside) or inside == self._root
        ]
        # A link to a file elsewhere would show, to whoever may open the page, what is not in the folder.
        names = [name for name in names if (self._root / name).resolve().is_relative_to(self._root)]
        if not names:
            raise ValueError(f"{folder} has no image in it that is not a link to elsewhere")
        stems: dict[str, str] = {}
        for name in names:
            if (first := stems.setdefault(name.rpartition(".")[0], name)) != name:
                raise ValueError(f"{folder}: {first} and {name} would have one file of annotations; rename one")
        self.items: Sequence[Item] = [_item(name) for name in names]
        self._by_id = {item.id: number for number, item in enumerate(self.items)}
        self._sizes: dict[str, tuple[object, tuple[int, int]]] = {}
        self._counted: dict[str, tuple[int, dict[str, Any]]] = {}

    def place(self, id_: str) -> int:
        """The number of an image in the folder's order.

        Raises:
            KeyError: There is no such image.
        """
        if id_ not in self._by_id:
            raise KeyError(f"there is no image {id_[:40]!r}")
        return self._by_id[id_]

    def path(self, item: Item) -> Path:
        """An image's file.

        Raises:
            ValueError: It became a link to elsewhere.
        """
        return _within(self._root, item.name)

    def stamp(self, number: int) -> object:
        """What tells an image from another that took its place."""
        try:
            told = self.path(self.items[number]).stat()
        except (OSError, ValueError):  # who reads it says what is wrong
            return None
        return told.st_mtime_ns, told.st_size, told.st_ino

    def size(self, item: Item) -> tuple[int, int]:
        """Rows and columns of an image as a person sees it, from its header.

        Raises:
            Damaged: It is no image, or too large.
        """
        stamp = self.stamp(self.place(item.id))
        if item.id not in self._sizes or self._sizes[item.id][0] != stamp:
            path = self.path(item)
            try:
                with Image.open(path) as image:
                    columns, rows = image.size
                    if image.getexif().get(ORIENTATION, 1) >= 5:
                        rows, columns = columns, rows
            except Image.DecompressionBombError:
                rows = columns = images.MAX_PIXELS
            except Exception as error:  # a damaged file makes Pillow's readers raise what they like
                raise Damaged("image", f"the image cannot be read ({one_line(error)})", item.name) from error
            if rows * columns > images.MAX_PIXELS:
                raise Damaged("bomb", f"the image has more than {images.MAX_PIXELS} pixels", item.name)
            self._sizes[item.id] = stamp, (rows, columns)
        return self._sizes[item.id][1]

    def read(self, item: Item) -> Document:
        """An image's annotations, of which some may be marked as deleted; with its revision, which every change raises.

        Raises:
            SamlitError: The file is damaged; it is never written over then.
        """
        file = self._file(item)
        beside = self.path(item).with_suffix(".json")
        for place in (file, beside):
            try:
                text = place.read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                continue
            if place is file or place.resolve().is_relative_to(self._root):
                return _document(text, place)
        return _document(b'{"annotations": []}', file)

    def apply(
        self, item: Item, change: Change, size: tuple[int, int], about: dict[str, Any], offered: int | None = None
    ) -> Document:
        """Make one change, on the disk when this returns.

        Args:
            item: The image.
            change: What to do.
            size: Rows and columns of the image.
            about: The model that masks are made with: its name and its weights' fingerprint.
            offered: How many proposals of that model the image was shown with; None for an image without.

        Returns:
            All annotations of the image.

        Raises:
            Conflict: What was to be changed is not as whoever asks has seen it; the file stays as it is.
            SamlitError: The file is damaged.
        """
        file = self._file(item)
        with claimed(self.out / ".locks" / f"{item.id}.lock", patient=True):
            document = self.read(item)
            own = document[OWN]
            if not _changed(document, change, about, size):
                return document
            own["revision"] += 1
            if offered is not None:
                own["offered"][about["weights"]] = offered
            height, width = size
            document["image"] = {
                "image_id": item.number, "width": width, "height": height, "file_name": item.name
            } | document["image"]  # fmt: skip
            atomic.write(file, json.dumps(document, separators=(",", ":"), allow_nan=False))
            return document

    def summary(self, item: Item) -> dict[str, Any]:
        """How many masks an image has, whether it is done, the names in it, verdicts; quick when nothing changed."""
        try:
            stamp = self._file(item).stat().st_mtime_ns
        except FileNotFoundError:
            stamp = 0
        if (known := self._counted.get(item.id)) and known[0] == stamp:
            return known[1]
        try:
            document = self.read(item)
        except SamlitError as error:
            told: dict[str, Any] = {
                "masks": 0,
                "done": False,
                "names": [],
                "verdicts": Counter(),
                "damaged": one_line(error),
            }
        else:
            rows = [row for row in document["annotations"] if not row.get("deleted")]
            names = sorted({str(row["phrase"]) for row in rows if row.get("phrase")})
            told = {"masks": len(rows), "done": bool(document[OWN].get("done")), "names": names}
            told["verdicts"] = Counter(verdicts(document))
        self._counted[item.id] = stamp, told
        return told

    def _file(self, item: Item) -> Path:
        return _within(self.out.resolve(), f"{item.name.rpartition('.')[0]}.json")


def _item(name: str) -> Item:
    digest = hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=8)
    match = re.fullmatch(r"(?:.*/)?sa_(\d{1,12})\.\w+", name)
    number = int(match[1]) if match else int.from_bytes(digest.digest()[:6], "big")
    return Item(digest.hexdigest(), name, number)


def _within(root: Path, name: str) -> Path:
    """A path in a folder, that no link leads out of it."""
    path = root / name
    if not path.resolve().is_relative_to(root):
        raise ValueError(f"{name} is a link to outside of its folder")
    return path


def _document(text: bytes, file: Path) -> Document:
    """A file's content, checked as far as changing it needs."""
    try:
        document = json.loads(text)
        for row in document["annotations"]:
            row["id"] = int(row["id"])
            rows, columns = row["segmentation"]["size"]
            rle.area(rle.Rle((int(rows), int(columns)), row["segmentation"]["counts"]))
        document["image"] = dict(document.get("image", {}))
        own = document[OWN] = {"revision": 0, **document.get(OWN, {})}
        own["revision"] = int(own["revision"])
        own["offered"] = dict(own.get("offered", {}).items())
        own["rejected"] = [
            {"id": str(one["id"]), "model": str(one["model"]), "weights": str(one.get("weights", ""))}
            for one in own.get("rejected", [])
        ]
    except (LookupError, TypeError, AttributeError, ValueError, RecursionError) as error:
        told = f"{file} is damaged or not in SA-1B's layout ({one_line(error)}); repair it, or take it away"
        raise SamlitError(told) from error
    found: Document = document
    return found


def _changed(document: Document, change: Change, about: dict[str, Any], size: tuple[int, int]) -> bool:
    """Change a document in place; False where it is so already.

    Raises:
        Conflict: As `Store.apply`.
    """
    own, rows = document[OWN], document["annotations"]
    if change.op in ("done", "undone"):
        own["done"] = change.op == "done"
        return True
    if change.op == "reject":
        rejected = own["rejected"]
        if any(one["id"] == change.proposal for one in rejected):
            return False
        rejected.append({"id": change.proposal, "model": about["name"], "weights": about["weights"]})
        return True
    if change.op == "unreject":
        left = [one for one in own["rejected"] if one["id"] != change.proposal]
        changed = len(left) < len(own["rejected"])
        own["rejected"] = left
        return changed
    at = next((n for n, row in enumerate(rows) if row["id"] == change.id), None)
    if change.op == "add":
        if at is not None:  # told twice, for the first answer was lost
            return False
        rows.append(_row(change, about, size, 1))
        return True
    if at is None:
        raise Conflict(f"there is no mask {change.id} any more")
    row = rows[at]
    deleted = bool(row.get("deleted"))
    if change.op in ("delete", "restore") and deleted == (change.op == "delete"):
        return False
    revision = int(row.get("revision", 0))
    if change.op == "replace" and not deleted and revision == change.revision + 1 and _same(row, change):
        return False  # told twice
    if revision != change.revision:
        raise Conflict(f"mask {change.id} was changed by somebody else meanwhile")
    if change.op == "replace":
        if deleted:
            raise Conflict(f"mask {change.id} was deleted by somebody else meanwhile")
        before = {key: row[key] for key in ("segmentation", "provenance") if key in row}
        kept = {key: value for key, value in row.items() if key not in _MADE}
        rows[at] = kept | _row(change, about, size, revision + 1)
        rows[at]["before"] = before
        return True
    row["revision"] = revision + 1
    row["deleted"] = change.op == "delete"
    return True


def _same(row: dict[str, Any], change: Change) -> bool:
    """Whether a mask is what a change would make it."""
    assert change.mask is not None
    return bool(row["segmentation"]["counts"] == change.mask.counts and row.get("phrase", "") == change.phrase)


def _row(change: Change, about: dict[str, Any], size: tuple[int, int], revision: int) -> dict[str, Any]:
    """A mask as SA-1B stores one (SAM_SPEC 4), and how it came to be."""
    assert change.mask is not None
    assert change.provenance is not None
    x0, y0, x1, y1 = rle.box(change.mask)
    positive = [point for point in change.provenance["prompts"]["points"] if point[2] > 0]
    point = positive[0][:2] if positive else [(x0 + x1) / 2, (y0 + y1) / 2]
    row: dict[str, Any] = {
        "id": change.id,
        "segmentation": {"size": list(size), "counts": change.mask.counts},
        # Largest minus smallest coordinate, one less than elsewhere (SAM_SPEC 0.9).
        "bbox": [float(x0), float(y0), float(x1 - 1 - x0), float(y1 - 1 - y0)],
        "area": rle.area(change.mask),
        "predicted_iou": change.predicted_iou,
        "stability_score": 1.0,
        "crop_box": [0.0, 0.0, float(size[1]), float(size[0])],
        "point_coords": [point],
        "revision": revision,
        "provenance": {
            **change.provenance,
            "model": about,
            "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        },
    }
    if change.phrase:
        row["phrase"] = change.phrase
    return row


_MADE = {"segmentation", "bbox", "area", "predicted_iou", "stability_score", "crop_box", "point_coords", "phrase"}
