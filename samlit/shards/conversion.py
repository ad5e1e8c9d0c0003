"""Samples of any source as records of SA-1B's layout, and a shard of them at a time, in a process of its own."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from samlit.faults import Damaged
from samlit.loading import images
from samlit.loading.images import Encoded
from samlit.masks import rle
from samlit.masks.rle import Rle
from samlit.shards.records import Annotation, Record
from samlit.shards.writing import write
from samlit.source import Sample, Source

__all__ = ["Converted", "Maker", "Stopped", "convert", "encode", "is_plain", "made", "ready"]

LONGEST = 65500
"""Rows or columns of a JPEG at most."""
_ORIENTATION = 0x0112  # the EXIF tag; 1 is upright


class Stopped(Exception):
    """The work was called off."""


class Converted(NamedTuple):
    """A sample in SA-1B's layout.

    Attributes:
        record: With its image and masks.
        copied: Whether the image is the very file that the source has.
        lost: How many masks have no pixel left at the size that was asked for.
    """

    record: Record
    copied: bool
    lost: int


def convert(sample: Sample, image_id: int, quality: int = 95, long_side: int | None = None) -> Converted:
    """A sample as a record; a JPEG of three colours that no EXIF turns keeps its bytes, so nothing is lost twice.

    Args:
        sample: Of any source.
        image_id: The record's.
        quality: Of the JPEG, where one has to be encoded; its colours are not subsampled (4:4:4).
        long_side: Of the image at most, in pixels; as it is if not given.

    Raises:
        Damaged: The image cannot be decoded or is no RGB, or a mask is malformed or of another size.
    """
    pixels = sample.pixels()
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise Damaged("image", f"the image is {pixels.dtype} of shape {pixels.shape}, not RGB in 8 bits")
    size = sample.size
    for mask in sample.masks:
        if mask.size != size:
            told = f"{mask.size[0]}x{mask.size[1]}, the image {size[0]}x{size[1]}"
            raise Damaged("size", f"a mask is {told}")
        try:
            rle.runs(mask)
        except ValueError as error:
            raise Damaged("rle", str(error)) from None
    if sample.phrases and len(sample.phrases) != len(sample.masks):
        raise Damaged("other", f"it has {len(sample.phrases)} phrases for {len(sample.masks)} masks")
    phrases = sample.phrases or ("",) * len(sample.masks)
    told_masks = list(zip(sample.masks, phrases, strict=True))
    lost = 0
    if long_side is not None and max(size) > long_side:
        size = images.fit(*size, long_side)
        picture = Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BILINEAR)
        told_masks = [(_drawn(mask, size), phrase) for mask, phrase in told_masks]
        seen = [(mask, phrase) for mask, phrase in told_masks if rle.area(mask)]
        lost, told_masks = len(told_masks) - len(seen), seen
        copied = False
    else:
        picture = Image.fromarray(pixels)
        copied = isinstance(sample.image, Encoded) and is_plain(sample.image.data)
    jpeg = sample.image.data if copied and isinstance(sample.image, Encoded) else encode(picture, quality)
    annotations = tuple(Annotation(mask, phrase) for mask, phrase in told_masks)
    return Converted(Record(image_id, size, jpeg, annotations, sample.key), copied, lost)


def _drawn(mask: Rle, size: tuple[int, int]) -> Rle:
    return rle.encode(rle.draw(mask, size))


def is_plain(data: bytes) -> bool:
    """Whether a file shows the same to whoever reads it: a JPEG of three colours that no EXIF turns."""
    with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
        return image.format == "JPEG" and image.mode == "RGB" and image.getexif().get(_ORIENTATION, 1) in (0, 1)


def encode(picture: Image.Image, quality: int) -> bytes:
    """A picture as a JPEG whose colours are not subsampled (4:4:4).

    Raises:
        Damaged: It has a longer side than a JPEG can have.
    """
    if max(picture.size) > LONGEST:
        raise Damaged("size", f"the image is {picture.height}x{picture.width}, a JPEG at most {LONGEST} a side")
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=quality, subsampling=0)
    return stream.getvalue()


@dataclass(frozen=True)
class Maker:
    """Makes the shards of a source, any of them at any time, always the same.

    Attributes:
        source: Prepared.
        folder: Where the shards go.
        per_shard: Samples a shard; shard n has those from n times that on, and their numbers are the image ids.
        quality: As `convert`.
        long_side: As `convert`.
    """

    source: Source
    folder: Path
    per_shard: int
    quality: int
    long_side: int | None

    def make(self, number: int, step: Callable[[], None] = lambda: None) -> dict[str, Any]:
        """Write shard `number`, whole or not at all; none where no sample of it is sound.

        Args:
            number: From 0.
            step: Called before each sample; what it raises ends the work.

        Returns:
            The shard's `name`, how many `images` and `masks` it has, how many images have no mask (`bare`) or were
            `copied`, how many masks were `lost`, its `bytes` and `sha256`, and what was `left_out`: shard, key, cause
            and message of each sample.
        """
        path = self.folder / f"sa_{number:06d}.tar"
        about: dict[str, Any] = {"name": path.name, "images": 0, "bare": 0, "masks": 0, "copied": 0, "lost": 0}
        left_out: list[dict[str, str]] = []

        def records() -> Iterator[Record]:
            for image_id in range(number * self.per_shard, min((number + 1) * self.per_shard, len(self.source))):
                step()
                key, shard = f"number {image_id}", ""
                try:
                    sample = self.source[image_id]
                    key, shard = sample.key, sample.shard
                    record, copied, lost = convert(sample, image_id, self.quality, self.long_side)
                except ValueError as error:
                    left_out.append(_told(error, key, shard))
                    continue
                about["images"] += 1
                about["bare"] += not record.annotations
                about["masks"] += len(record.annotations)
                about["copied"] += copied
                about["lost"] += lost
                yield record

        count = write(path, records())
        if not count:
            path.unlink()
            return about | {"bytes": 0, "sha256": "", "left_out": left_out}
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return about | {"bytes": path.stat().st_size, "sha256": digest, "left_out": left_out}


def _told(error: ValueError, key: str, shard: str) -> dict[str, str]:
    """What is wrong with a sample, as the list of what was left out has it."""
    if not isinstance(error, Damaged):
        error = Damaged("other", str(error))
    return {
        "shard": error.shard or shard,
        "key": error.key or key,
        "cause": error.cause,
        "message": " ".join(error.message.split()),
    }


# What a process of a pool keeps from one shard to the next: a source is sent to it once.
_kept: dict[str, Any] = {}


def ready(maker: Maker, done: Any, stop: Any) -> None:
    """Begin in a process of a pool.

    Args:
        maker: Makes the shards.
        done: A shared number, of samples begun in all processes.
        stop: A shared event that calls the work off.
    """
    import torch

    torch.set_num_threads(1)
    _kept.update(maker=maker, done=done, stop=stop, parent=os.getppid())


def made(number: int) -> dict[str, Any]:
    """Make a shard in a process of a pool; ends when the work is called off, or the process that asked is gone."""

    def step() -> None:
        if _kept["stop"].is_set() or os.getppid() != _kept["parent"]:
            raise Stopped
        with _kept["done"].get_lock():
            _kept["done"].value += 1

    maker: Maker = _kept["maker"]
    return maker.make(number, step)
