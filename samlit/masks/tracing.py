"""Low-res logits to masks at an image's own size, as run-length strings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from samlit.loading import images
from samlit.masks import rle
from samlit.masks.rle import Rle
from samlit.structures import Scene, Window

__all__ = ["Traced", "enlarge", "masks", "strings", "trace"]

PIXELS = 1 << 26
"""Logits of full size that are held at once, on devices where masks are not traced from low-res logits."""


@dataclass(frozen=True)
class Traced:
    """One mask at its image's own size.

    Attributes:
        size: Rows and columns; of the window where the prompt was about a window.
        ends: Where its runs end, as of `rle.runs`.
        area: Pixels.
        box: x0, y0, x1, y1, the last pixel included, as SAM writes it; zeros where the mask is empty.
        stability: IoU of the masks at logits of +offset and -offset; nan where the latter is empty.
    """

    size: tuple[int, int]
    ends: npt.NDArray[np.int64]
    area: int
    box: tuple[int, int, int, int]
    stability: float

    def within(self, at: tuple[int, int], size: tuple[int, int]) -> Traced:
        """A window's mask in its image.

        Args:
            at: Row and column of the image at which the window begins.
            size: Rows and columns of the image.
        """
        x0, y0, x1, y1 = self.box
        box = (x0 + at[1], y0 + at[0], x1 + at[1], y1 + at[0])
        return replace(self, size=size, ends=rle.moved(self.ends, self.size, at, size), box=box)


def enlarge(logits: Tensor, side: int, original: tuple[int, int]) -> Tensor:
    """Low-res logits over the frame, (P, 4h, 4w), at an image's own size, (P, rows, columns), as SAM does it.

    Args:
        logits: Of masks.
        side: Of the frame, pixels.
        original: Rows and columns of the image that the frame shows.
    """
    rows, columns = images.fit(*original, side)
    up = F.interpolate(logits[:, None].float(), (side, side), mode="bilinear", align_corners=False)
    up = up[:, :, :rows, :columns]
    return F.interpolate(up, original, mode="bilinear", align_corners=False)[:, 0]


def trace(
    logits: Tensor, side: int, original: tuple[int, int], threshold: float = 0.0, offset: float = 1.0
) -> Iterator[Traced]:
    """Masks of low-res logits, one after the other; memory does not grow with their number.

    On a processor logits of full size are never written (`tracer`); elsewhere they are, a few masks at a time, and
    only runs come back.

    Args:
        logits: (P, 4h, 4w).
        side: Of the frame, pixels.
        original: Rows and columns of the image, or of the window, that the frame shows.
        threshold: A pixel is in the mask where its logit exceeds it.
        offset: For the stability, SAM_SPEC 3.3; 0 or more.
    """
    if logits.device.type != "cpu":
        yield from _on_device(logits, side, original, threshold, offset)
        return
    from samlit.masks.tracer import Tracer  # numba takes a second

    if not len(logits):
        return
    follow = Tracer((logits.shape[1], logits.shape[2]), side, images.fit(*original, side), original)
    for one in logits.float().numpy():
        found = follow(one, threshold, offset)
        yield Traced(original, found.ends, found.area, found.box, _ratio(found.inner, found.outer))


def _on_device(
    logits: Tensor, side: int, original: tuple[int, int], threshold: float, offset: float
) -> Iterator[Traced]:
    rows, columns = original
    some = max(PIXELS // max(rows * columns, side * side), 1)
    for part in torch.split(logits, some):
        up = enlarge(part, side, original)
        inside = up > threshold
        sums = [x.flatten(1).sum(1) for x in (inside, up > threshold + offset, up > threshold - offset)]
        across, down = (inside.any(axis).to(torch.uint8) for axis in (1, 2))
        corners = [x.argmax(1) for x in (across, down, across.flip(1), down.flip(1))]
        flat = inside.transpose(1, 2).flatten(1)
        edge = torch.cat([flat[:, :1], flat[:, 1:] != flat[:, :-1], torch.ones_like(flat[:, :1])], 1)
        # All masks of the part at once: two copies to the host.
        numbers = torch.stack(sums + corners, 1).cpu().tolist()
        which, ends = edge.nonzero().cpu().numpy().T
        begins = np.searchsorted(which, np.arange(len(part) + 1))
        for i, (area, inner, outer, left, top, right, bottom) in enumerate(numbers):
            box = (left, top, columns - 1 - right, rows - 1 - bottom) if area else (0, 0, 0, 0)
            yield Traced(original, ends[begins[i] : begins[i + 1]].copy(), area, box, _ratio(inner, outer))


def _ratio(inner: int, outer: int) -> float:
    return inner / outer if outer else float("nan")


def strings(traced: Sequence[Traced]) -> list[Rle]:
    """The strings of masks, those of a size all at once."""
    found: list[Rle | None] = [None] * len(traced)
    for size in dict.fromkeys(one.size for one in traced):
        some = [i for i, one in enumerate(traced) if one.size == size]
        for i, string in zip(some, rle.from_ends([traced[i].ends for i in some], size), strict=True):
            found[i] = string
    return [one for one in found if one is not None]


def masks(scene: Scene, logits: Tensor, image_index: Tensor | Sequence[int], window: Window | None = None) -> list[Rle]:
    """The masks of P low-res logits, each of its own image's size; (P, 4h, 4w) and (P,)."""
    found: list[Traced] = []
    index = torch.as_tensor(image_index).tolist()
    for one, image in zip(logits, index, strict=True):
        rows, columns = scene.batch.original[image].tolist()
        original = (rows, columns) if window is None else (window.y1 - window.y0, window.x1 - window.x0)
        found += trace(one[None], scene.frame[0], original)
    return strings(found)
