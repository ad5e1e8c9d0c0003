"""What readers of annotation tools' outlines share: images that state no size, and masks that are rings of points."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from faster_coco_eval.core import mask as official

from samlit.faults import Damaged, blaming
from samlit.loading.images import Encoded, encoded, size_of
from samlit.masks import rle
from samlit.masks.rle import Rle
from samlit.source import Sample, Source
from samlit_sources._documents import Index

__all__ = ["Drawn", "Outline", "Outlines", "filled", "ring"]


class Outline(NamedTuple):
    """One mask.

    Attributes:
        rings: Of each ring x, y, x, y, ... in pixels; three points at least.
        phrase: What it is; None where nobody said.
    """

    rings: list[list[float]]
    phrase: str | None


class Drawn(NamedTuple):
    """One image.

    Attributes:
        key: What the sample is called.
        path: The image's file.
        outlines: What is drawn on it.
    """

    key: str
    path: str
    outlines: list[Outline]


class Outlines(Source):
    """Images with outlines; a reader says which there are."""

    holes = False
    """Whether what lies in an even number of an outline's rings is outside of it."""

    def __init__(self, what: str, empty: bool, min_area: int) -> None:
        self.what, self.empty, self.min_area = what, empty, max(min_area, 1)
        self._index: Index | None = None

    @abstractmethod
    def drawn(self) -> Iterable[Drawn]:
        """All images, in order.

        Raises:
            FileNotFoundError: A file or folder is not there.
            ValueError: A file is not usable; one line that names it and says why.
        """

    def prepare(self, progress: Callable[[int, int, str], None] = lambda done, total, what: None) -> None:
        """Read all annotations and see that their images are there.

        Raises:
            FileNotFoundError: A file or folder is not there.
            ValueError: A file is not usable, or there is no mask; one line that says which and why.
        """
        if self._index is None:
            progress(0, 1, "reading annotations")
            records = [record for record in self.drawn() if self.empty or record.outlines]
            if not any(record.outlines for record in records):
                raise ValueError(f"{self.what}: holds no masks")
            self._index = Index.of(records)
            progress(1, 1, "reading annotations")

    def __len__(self) -> int:
        """How many images there are."""
        return len(self._opened())

    def __getitem__(self, index: int) -> Sample:
        """Image number `index` and its masks.

        Raises:
            Damaged: The image is; one line that names it and says how.
            IndexError: There is no such number.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"{self.what}: no sample {index}, there are {len(self)}")
        record: Drawn = self._opened()[index]
        with blaming(record.key, self.what):
            image, size = self.image(record)
        masks, phrases = [], []
        for outline in record.outlines:
            try:
                mask = filled(outline.rings, size, self.holes)
            except ValueError as error:
                raise Damaged("other", str(error), record.key, self.what) from None
            if rle.area(mask) >= self.min_area:
                masks.append(mask)
                phrases.append(outline.phrase)
        named = tuple(phrase for phrase in phrases if phrase is not None)
        return Sample(record.key, image, tuple(masks), named if len(named) == len(masks) else ())

    def image(self, record: Drawn) -> tuple[npt.NDArray[np.uint8] | Encoded, tuple[int, int]]:
        """An image, and its rows and columns."""
        size = size_of(record.path)
        return encoded(record.path, size), size

    def _opened(self) -> Index:
        self.prepare()
        assert self._index is not None
        return self._index


def ring(points: Any) -> list[float] | None:
    """A ring's points, each x and y, in a row; None where there are fewer than three, which surround nothing.

    Raises:
        ValueError: They are something else; the end of a sentence.
    """
    if not points:
        return None
    try:
        pairs = np.array(points, np.float64)
    except (TypeError, ValueError):
        raise ValueError("has an outline whose points are not all an x and a y, in numbers") from None
    if pairs.shape != (len(points), 2):
        raise ValueError("has an outline whose points are not all an x and a y, in numbers")
    return pairs.ravel().tolist() if len(pairs) >= 3 else None


def filled(rings: Sequence[Sequence[float]], size: tuple[int, int], holes: bool = False) -> Rle:
    """The mask of an outline, by the official API; what lies outside of the image is cut off.

    Args:
        rings: Of each x, y, x, y, ...
        size: Rows and columns of the image.
        holes: Whether what lies in an even number of them is outside; otherwise they are united.

    Raises:
        ValueError: It cannot be of an image of that size; the end of a sentence.
    """
    # The API's memory grows with the outline's length: a small file could ask for any amount.
    longest = 2 * size[0] * size[1] + 100 * (size[0] + size[1])
    for one in rings:
        points = np.asarray(one).reshape(-1, 2)
        if np.abs(points - np.roll(points, 1, 0)).sum() > longest:
            raise ValueError("its polygon runs to and fro, longer than any outline on an image of that size")
    parts = official.frPyObjects(rings, *size)
    if holes and len(rings) > 1:
        return rle.encode(np.bitwise_xor.reduce(official.decode(parts).astype(bool), axis=2))
    return Rle(size, official.merge(parts)["counts"].decode("ascii"))
