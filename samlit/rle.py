"""Masks as COCO run-length strings, read and written with NumPy, every string checked before it is believed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rle:
    """A mask as a string, as in COCO and SA-1B (SAM_SPEC 4).

    Attributes:
        size: Rows and columns.
        counts: COCO's compressed string: column-major runs, zeros first.
    """

    size: tuple[int, int]
    counts: str
