"""BSDS500 (Arbelaez et al., PAMI 2011): photographs that several people each cut into segments."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.io import loadmat

from samlit.faults import Damaged, blaming
from samlit.loading.images import encoded
from samlit.masks import rle
from samlit.source import Sample, Source

__all__ = ["Bsds"]


class Bsds(Source):
    """BSDS500: photographs, and the segments that four to nine people drew.

    An image is one sample. Its masks are the segments of all annotators together, one after the other, those that
    several drew alike once: people disagree on how fine to cut, and that is what masks to choose from are for. Edges
    are judged against each annotator's boundaries, which samples have beside them.

    Args:
        root: The folder with `images/` and `groundTruth/`, or one that holds it as `data`, `BSDS500/data` or `BSDS500`.
        split: Which images: 200 to train on, 100 to validate and 200 to test.
        annotator: Masks of this one only, from 1 on; every image has at least four. Of all if not given.
        min_area: Masks of fewer pixels are left out.
    """

    def __init__(
        self, root: str, split: Literal["train", "val", "test"], annotator: int | None = None, min_area: int = 1
    ) -> None:
        if split not in ("train", "val", "test"):
            raise ValueError(f"split is train, val or test, not {split!r}")
        if annotator is not None and annotator < 1:
            raise ValueError(f"annotator is a number from 1 on, not {annotator}")
        self.root, self.split, self.annotator, self.min_area = root, split, annotator, max(min_area, 1)
        self._names: list[str] | None = None
        self._folder = Path()

    def prepare(self, progress: Callable[[int, int, str], None] = lambda done, total, what: None) -> None:
        """List the images.

        Raises:
            FileNotFoundError: A folder, or what was drawn on an image, is not there.
            ValueError: There are no images.
        """
        if self._names is not None:
            return
        root = Path(self.root).expanduser()
        places = [root, root / "data", root / "BSDS500" / "data", root / "BSDS500"]
        inner = Path("images", self.split)
        folder = next((place for place in places if (place / inner).is_dir()), None)
        if folder is None:
            raise FileNotFoundError(f"there is no folder {root / inner}: root is the one with images/ and groundTruth/")
        names = sorted(file.stem for file in (folder / inner).glob("[!.]*.jpg"))  # a stray Thumbs.db is there too
        if not names:
            raise ValueError(f"there is no .jpg in {folder / inner}")
        drawn = {file.stem for file in (folder / "groundTruth" / self.split).glob("[!.]*.mat")}
        if missing := [name for name in names if name not in drawn]:
            what = f"{missing[0]}.mat" + (f" (nor {len(missing) - 1} others)" if len(missing) > 1 else "")
            raise FileNotFoundError(f"there is no {what} in {folder / 'groundTruth' / self.split}")
        self._folder, self._names = folder, names

    def __len__(self) -> int:
        """How many images there are."""
        return len(self._opened())

    def __getitem__(self, index: int) -> Sample:
        """Image number `index`, by name, and its masks.

        Raises:
            Damaged: The image or its ground truth is; one line that names it and says how.
            IndexError: There is no such number.
        """
        name = self._name(index)
        key = f"{self.split}/{name}"
        with blaming(key):
            maps, lines = self._drawn(name, "Segmentation", "Boundaries")
            if self.annotator is not None:
                if self.annotator > len(maps):
                    raise Damaged("other", f"it has {len(maps)} annotators, there is no number {self.annotator}")
                maps, lines = ([one[self.annotator - 1]] for one in (maps, lines))
            masks = dict.fromkeys(mask for one in maps for mask in rle.encode_labels(one)[1])
            image = encoded(str(self._folder / "images" / self.split / f"{name}.jpg"), maps[0].shape)
            boundaries = tuple(rle.encode_many(np.stack(lines)))
        kept = tuple(mask for mask in masks if rle.area(mask) >= self.min_area)
        return Sample(key, image, kept, boundaries=boundaries)

    def boundaries(self, index: int) -> npt.NDArray[np.bool_]:
        """The boundaries that each annotator drew on image number `index`.

        Returns:
            (number of annotators, H, W) bool.

        Raises:
            Damaged: The ground truth is; one line that names it and says how.
            IndexError: There is no such number.
        """
        name = self._name(index)
        with blaming(f"{self.split}/{name}"):
            return np.stack(self._drawn(name, "Boundaries")[0]) > 0

    def _name(self, index: int) -> str:
        names = self._opened()
        if not 0 <= index < len(names):
            raise IndexError(f"{self.root}: no sample {index}, there are {len(names)}")
        return names[index]

    def _opened(self) -> list[str]:
        self.prepare()
        assert self._names is not None
        return self._names

    def _drawn(self, name: str, *fields: str) -> list[list[npt.NDArray[Any]]]:
        """Of each field one map of each annotator, (H, W) of integers, all of one size."""
        path = self._folder / "groundTruth" / self.split / f"{name}.mat"
        try:
            cells = loadmat(path, variable_names=["groundTruth"])["groundTruth"]
            found = [[np.asarray(cell[field][0, 0]) for cell in cells.ravel()] for field in fields]
        except MemoryError:
            raise
        except Exception as error:  # a damaged file makes the reader raise what it likes
            raise Damaged("other", f"{path} cannot be read: {type(error).__name__}: {error}") from None
        maps = [one for some in found for one in some]
        if not maps or any(one.ndim != 2 or one.dtype.kind not in "iub" for one in maps):
            raise Damaged("other", f"{path} holds no maps of whole numbers")
        if len({one.shape for one in maps}) > 1:
            raise Damaged("size", f"{path} holds maps of different sizes")
        return found
