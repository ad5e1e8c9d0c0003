"""One image and the masks of everything in it, as a record of SA-1B's layout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from PIL import Image

from samlit import everything
from samlit.contracts import Task
from samlit.loading.images import Encoded
from samlit.masks import rle
from samlit.masks.rle import Rle
from samlit.model import Sam
from samlit.shards.conversion import encode, is_plain
from samlit.shards.records import Annotation, Record
from samlit.source import Sample

__all__ = ["Finder", "stored"]


def stored(sample: Sample, short_side: int | None, quality: int) -> tuple[bytes, tuple[int, int], bool]:
    """An image as it goes into a shard.

    Args:
        sample: With the image.
        short_side: In pixels at most; as it is if not given.
        quality: Of the JPEG, where one has to be encoded.

    Returns:
        The JPEG, its rows and columns, and whether it is the very file that the source has.

    Raises:
        Damaged: The image cannot be decoded.
    """
    rows, columns = size = sample.size
    if short_side is not None and min(size) > short_side:
        scale = short_side / min(size)
        size = max(round(rows * scale), 1), max(round(columns * scale), 1)
    elif isinstance(sample.image, Encoded) and is_plain(sample.image.data):
        return sample.image.data, size, True
    picture = Image.fromarray(sample.pixels())
    if size != (rows, columns):
        picture = picture.resize(size[::-1], Image.Resampling.LANCZOS)
    return encode(picture, quality), size, False


@dataclass(frozen=True)
class Finder:
    """Finds everything in images: in the whole image, whatever it is stored as (paper section 5.1, SAM_SPEC 3.2).

    Attributes:
        net: The model, on its device.
        side: Of its frame, pixels.
        task: `everything`, with its options.
        short_side: Of images that are stored, at most; masks, points and crops are stored at the same scale.
        quality: Of JPEG files that have to be encoded.
    """

    net: Sam
    side: int
    task: Task
    short_side: int | None = None
    quality: int = 95

    def record(self, sample: Sample, image_id: int) -> Record:
        """What is found in an image.

        Raises:
            Damaged: The image cannot be decoded.
        """
        found = everything.find(self.net, self.side, sample.pixels(), self.task)
        jpeg, size, _ = stored(sample, self.short_side, self.quality)
        annotations = [_annotation(one.record(), sample.size, size) for one in found]
        return Record(image_id, size, jpeg, tuple(a for a in annotations if a is not None), sample.key)


def _annotation(row: dict[str, Any], found: tuple[int, int], size: tuple[int, int]) -> Annotation | None:
    """One of the released generator's records at the size that is stored; None where it has no pixel there."""
    mask = Rle(found, row["segmentation"]["counts"])
    high, wide = size[0] / found[0], size[1] / found[1]
    if size != found:
        mask = rle.encode(rle.draw(mask, size))
    if not rle.area(mask):
        return None
    (x, y), (x0, y0, w, h) = row["point_coords"][0], row["crop_box"]
    return Annotation(
        mask,
        predicted_iou=row["predicted_iou"],
        stability_score=row["stability_score"],
        crop_box=(x0, y0, w, h) if size == found else (x0 * wide, y0 * high, w * wide, h * high),
        point=(x * wide, y * high),
    )
