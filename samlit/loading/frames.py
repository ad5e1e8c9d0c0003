"""From an image of any size to the frame and back (SAM_SPEC 1.7), and from samples to a packed batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from samlit.faults import Damaged, blaming
from samlit.loading.images import fit
from samlit.masks import rle
from samlit.masks.strokes import Strokes
from samlit.source import Sample
from samlit.structures import Batch, Embedding

__all__ = ["Framed", "frame", "pack", "unframed"]

Bytes = npt.NDArray[np.uint8]
Window = tuple[slice, slice]

_SPARE = 1.5
"""Pixels that a JPEG is decoded to for each that is wanted, at least, along a side: of 20 sharp photographs the median
is then 41 dB to 49 dB from Pillow's resizing of all pixels, by size; with one for one it is 36 dB to 42 dB."""


@dataclass(frozen=True)
class Framed:
    """A sample that is ready to be written into a frame: nothing of it can fail any more, and it is small.

    Attributes:
        key: The sample's name.
        side: S, of the frame.
        picture: (h, w, 3) uint8, resized; not yet mirrored or turned. (h, w, 0) where nobody will look at it.
        original: Rows and columns of the picture in the frame, or of the window of it that is shown, before it was
            resized.
        strokes: K masks on the picture's grid.
        phrases: One a mask, or none.
        mirrored: Whether left and right are exchanged in the frame,
        quarters: and how often it is then turned by 90 degrees against the clock.
        embedding: What an encoder made of the frame, mirrored as it is: (C, h, w) and the finer maps; None where it is
            still to be embedded.
        numbers: Which mask of what is stored each one is.
    """

    key: str
    side: int
    picture: Bytes
    original: tuple[int, int]
    strokes: tuple[Strokes, ...]
    phrases: tuple[str, ...]
    mirrored: bool = False
    quarters: int = 0
    embedding: tuple[npt.NDArray[np.floating], ...] | None = None
    numbers: tuple[int, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of the frame that hold picture."""
        rows, columns = self.picture.shape[:2]
        return (columns, rows) if self.quarters % 2 else (rows, columns)

    @property
    def image(self) -> Bytes:
        """(S, S, 3) uint8, zero where padded."""
        image = np.zeros((self.side, self.side, 3), np.uint8)
        self.write(image.transpose(2, 0, 1), np.zeros((len(self.strokes), self.side, self.side), np.uint8))
        return image

    @property
    def masks(self) -> npt.NDArray[np.bool_]:
        """(K, S, S) bool."""
        masks = np.zeros((len(self.strokes), self.side, self.side), np.bool_)
        self.write(np.zeros((3, self.side, self.side), np.uint8), masks.view(np.uint8))
        return masks

    def write(self, image: Bytes, masks: Bytes) -> None:
        """Write picture and masks into (3, S, S) and (K, S, S), both uint8 and zero before; 1 where a mask is."""
        if self.picture.size:
            self._upright(image)[...] = self.picture.transpose(2, 0, 1)
        upright = self._upright(masks)
        for stroke, mask in zip(self.strokes, upright, strict=True):
            stroke.draw(mask)

    def _upright(self, frame: Bytes) -> Bytes:
        """The part of (..., S, S) that holds picture, seen as the picture lies: neither mirrored nor turned."""
        rows, columns = self.size
        upright = np.rot90(frame[..., :rows, :columns], -self.quarters, (-2, -1))
        return upright[..., ::-1] if self.mirrored else upright


def frame(
    sample: Sample,
    side: int,
    keep: Sequence[int] | None = None,
    window: Window | None = None,
    long_side: int | None = None,
    exact: bool = True,
    most: int | None = None,
    max_area: float = 1.0,
    pixels: bool = True,
) -> Framed:
    """Resize a sample so that its long side is `side`, to be padded right and below to a square.

    The image is resized as SAM does it (8-bit, bilinear, antialiased); masks are drawn from their strings straight at
    the size that is wanted, and only those strings are read that are drawn.

    Args:
        sample: With masks of any number.
        side: S, pixels.
        keep: Which masks to draw; all if not given.
        window: Rows and columns of the sample to show; all if not given.
        long_side: Of the picture in the frame, at most `side`; that if not given.
        exact: Whether the image is Pillow's, all of it decoded and then resized, to the bit. Otherwise a JPEG is
            decoded no finer than it will be seen, several times faster. An image that is not resized is the same.
        most: Draw the first so many of `keep`, and only those that have a pixel in the frame and do not cover more than
            `max_area`; in ascending order. All of them as they are if not given.
        max_area: Share of the picture.
        pixels: Whether the image is looked at. If not, it is not even decoded.

    Raises:
        Damaged: The image or the string of a mask that is drawn cannot be used; it names the sample.
    """
    rows, columns = window or (slice(0, sample.size[0]), slice(0, sample.size[1]))
    original = rows.stop - rows.start, columns.stop - columns.start
    size = fit(*original, long_side or side)
    order = list(range(len(sample.masks)) if keep is None else keep)
    with blaming(sample.key, sample.shard):
        if most is None:
            strokes = _sketched(sample, order, size, window)
        else:
            largest = max_area * size[0] * size[1]
            order, strokes = _first(sample, order, size, window, most, largest)
    picture = _picture(sample, (rows, columns), size, exact) if pixels else np.zeros((*size, 0), np.uint8)
    phrases = tuple(sample.phrases[k] for k in order) if sample.phrases else ()
    numbers = tuple(sample.numbers[k] for k in order) if sample.numbers else tuple(order)
    return Framed(sample.key, side, picture, original, tuple(strokes), phrases, numbers=numbers)


def pack(samples: Sequence[Framed], pinned: bool = False) -> Batch:
    """Pack B samples with all of their masks, each written straight into its place.

    Args:
        samples: At least one, all for frames of one size.
        pinned: Whether the place is page-locked memory, from which a GPU reads without a copy between.
    """
    side, counts = samples[0].side, [len(s.strokes) for s in samples]
    masks = _zeros(sum(counts), side, side, pinned=pinned)
    if any(sample.picture.size for sample in samples):
        image = _zeros(len(samples), 3, side, side, pinned=pinned)
    else:  # of the frame's shape, in a byte
        image = torch.zeros((), dtype=torch.uint8).expand(len(samples), 3, side, side)
    images, grids = image.numpy(), masks.numpy()
    at = 0
    for sample, count, place in zip(samples, counts, images, strict=True):
        sample.write(place, grids[at : at + count])
        at += count
    return Batch(
        image=image,
        sizes=torch.tensor([s.size for s in samples]),
        original=torch.tensor([s.original for s in samples]),
        masks=masks.view(torch.bool),
        image_index=torch.arange(len(samples)).repeat_interleave(torch.tensor(counts)),
        keys=[s.key for s in samples],
        phrases=[p for s in samples for p in (s.phrases or ("",) * len(s.strokes))],
        embedding=_stacked([s.embedding for s in samples], pinned),
        numbers=[n for s in samples for n in s.numbers],
    )


def unframed(batch: Batch) -> Batch:
    """A batch with samples made of what its frames show, for tasks that judge at the images' own sizes.

    For where the images themselves are not at hand, in a training's validation: pictures and masks are of their own
    sizes, and as coarse as they are in the frame. Images that come embedded, and are not looked at, are black.
    """
    index, images = batch.image_index.tolist(), []
    for image, ((rows, columns), (high, wide)) in enumerate(
        zip(batch.sizes.tolist(), batch.original.tolist(), strict=True)
    ):
        mine = [k for k, of in enumerate(index) if of == image]
        masks = [
            rle.encode(rle.draw(mask, (high, wide)))
            for mask in rle.encode_many(batch.masks[mine, :rows, :columns].cpu().numpy())
        ]
        if batch.embedding is None:
            shown = batch.image[image, :, :rows, :columns].permute(1, 2, 0).cpu().numpy()
            pixels = np.asarray(Image.fromarray(shown).resize((wide, high), Image.Resampling.BILINEAR))
        else:
            pixels = np.broadcast_to(np.zeros((), np.uint8), (high, wide, 3))
        phrases = tuple(batch.phrases[k] for k in mine) if batch.phrases else ()
        key = batch.keys[image] if batch.keys else ""
        images.append(Sample(key, pixels, tuple(masks), phrases if all(phrases) else ()))
    return replace(batch, samples=images)


def _stacked(embeddings: Sequence[tuple[npt.NDArray[np.floating], ...] | None], pinned: bool) -> Embedding | None:
    """The embeddings of a batch; None where one of them is missing."""
    known = [maps for maps in embeddings if maps is not None]
    if len(known) < len(embeddings):
        return None
    stacked = [torch.from_numpy(np.stack(maps)) for maps in zip(*known, strict=True)]
    image, *early = [maps.pin_memory() for maps in stacked] if pinned else stacked
    return Embedding(image, tuple(early))


def _sketched(sample: Sample, which: Sequence[int], size: tuple[int, int], window: Window | None) -> list[Strokes]:
    try:
        return rle.sketch([sample.masks[k] for k in which], size, window)
    except ValueError:
        for k in which:  # to say which one it is
            try:
                rle.sketch([sample.masks[k]], size, window)
            except Damaged as error:
                raise Damaged(error.cause, f"mask {k}: {error.message}") from error
        raise


def _first(
    sample: Sample, order: Sequence[int], size: tuple[int, int], window: Window | None, most: int, largest: float
) -> tuple[list[int], list[Strokes]]:
    """Walking down an order, the first so many masks of 1 to `largest` pixels; no further string is read."""
    found: dict[int, Strokes] = {}
    at = 0
    while at < len(order) and len(found) < most:
        portion = order[at : at + most - len(found)]
        at += len(portion)
        for k, strokes in zip(portion, _sketched(sample, portion, size, window), strict=True):
            if 0 < strokes.area <= largest:
                found[k] = strokes
    return sorted(found), [found[k] for k in sorted(found)]


def _picture(sample: Sample, window: Window, size: tuple[int, int], exact: bool) -> Bytes:
    """What a window shows, resized to (h, w, 3)."""
    rows, columns = window
    original = rows.stop - rows.start, columns.stop - columns.start
    if exact or size == original:
        shown = np.ascontiguousarray(sample.pixels()[window])
        if size == original:
            return shown
        return np.asarray(Image.fromarray(shown).resize(size[::-1], Image.Resampling.BILINEAR))
    zoom = [_SPARE * wanted / shown for wanted, shown in zip(size, original, strict=True)]
    whole = sample.size
    pixels = sample.pixels((math.ceil(whole[0] * zoom[0]), math.ceil(whole[1] * zoom[1])))
    step = next(step for step in (1, 2, 4, 8) if pixels.shape[:2] == (-(-whole[0] // step), -(-whole[1] // step)))
    if rows.start % step or columns.start % step:
        box = columns.start / step, rows.start / step, columns.stop / step, rows.stop / step
        picture = Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BILINEAR, box)
        return np.asarray(picture)
    cut = pixels[rows.start // step : -(-rows.stop // step), columns.start // step : -(-columns.stop // step)]
    tensor = torch.from_numpy(np.require(cut, requirements=["C", "W"])).permute(2, 0, 1)[None]
    # The same filter as Pillow's, several times faster. A size to resize to would stretch the picture by the part of
    # its last pixel that is beyond the edge, so it is told the scale; a little more of it, or the last pixel wanted
    # could be lost to rounding.
    scale = [step * wanted / shown * (1 + 1e-7) for wanted, shown in zip(size, original, strict=True)]
    resized = F.interpolate(tensor, scale_factor=scale, mode="bilinear", antialias=True)
    return resized[0].permute(1, 2, 0).numpy()


def _zeros(*shape: int, pinned: bool) -> Tensor:
    """uint8."""
    if pinned:
        return torch.zeros(shape, dtype=torch.uint8, pin_memory=True)
    # NumPy asks for large pages and for zeros from the system, torch writes them: 10 ms and 30 for 64 MB.
    return torch.from_numpy(np.zeros(shape, np.uint8))
