"""A source of photos of which some are damaged; light, for other processes have to import it."""

from __future__ import annotations

import io
import os
import time
from typing import Any

import numpy as np
from PIL import Image

from samlit.faults import Damaged
from samlit.loading.images import Encoded
from samlit.masks import rle
from samlit.masks.rle import Rle
from samlit.source import Sample, Source

SIZE = (24, 32)


def encoded(mode: str = "RGB", kind: str = "JPEG", size: tuple[int, int] = SIZE, **others: Any) -> bytes:
    noise = np.random.default_rng(7).integers(0, 255, (*size, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(stream, kind, **others)
    return stream.getvalue()


def mask(columns: int = 9, size: tuple[int, int] = SIZE) -> Rle:
    drawn = np.zeros(size, bool)
    drawn[5:20, 3 : 3 + columns] = True
    return rle.encode(drawn)


class Broken(Source):
    """Discs, of which some are damaged: 2 by its image, 3 by its mask, 5 by its size, 6 by nothing that has a name."""

    def __init__(self, count: int = 8, sound: bool = False, sleep: float = 0.0, end: bool = False) -> None:
        self.count, self.sound, self.sleep, self.end = count, sound, sleep, end

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        time.sleep(self.sleep)
        good = Sample(f"photo {index}", Encoded(encoded(), SIZE), (mask(),), ("a bar",), "photos")
        if self.end and index == 5:
            os._exit(9)
        if self.sound:
            return good
        match index:
            case 2:
                return Sample(good.key, Encoded(encoded()[:-90], SIZE), good.masks)
            case 3:
                return Sample(good.key, good.image, (Rle(SIZE, "o"),))
            case 4:
                raise Damaged("empty", "it has no mask", f"photo {index}")
            case 5:
                return Sample(good.key, good.image, (mask(size=(25, 32)),))
            case 6:
                raise ValueError("no such\nphoto")
        return good
