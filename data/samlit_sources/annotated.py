"""A folder that `samlit annotate` works on: its images, with the masks that people have accepted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from samlit.annotator.accepted import Accepted, accepted
from samlit.annotator.store import Store
from samlit.errors import SamlitError
from samlit.faults import blaming
from samlit.loading.images import encoded
from samlit.source import Sample, Source

__all__ = ["Annotated"]


class Annotated(Source):
    """Images that were annotated in the browser, with the masks that were accepted.

    Images that nobody has begun are left out, as deleted masks are. What is there is read once, at `prepare` or the
    first use: masks that are accepted while a training runs are for the next one.

    Args:
        images: The folder of the images, as `samlit annotate --images` was given it.
        annotations: The folder of the annotations; `annotations` in that of the images if not given.
        split: `val` for about every `hold_out`-th image, by its name and so for ever the same ones, which are those of
            `samlit annotate --hold-out`; `train` for the others; `all`.
        hold_out: Of how many images one is in `val`, at least 2.
        only_done: Whether images that nobody has called done are left out.
    """

    def __init__(
        self,
        images: str,
        annotations: str | None = None,
        split: Literal["train", "val", "all"] = "all",
        hold_out: int = 5,
        only_done: bool = False,
    ) -> None:
        if hold_out < 2:
            raise ValueError(f"hold_out is at least 2, not {hold_out}")
        self.images, self.annotations = images, annotations
        self.split, self.hold_out, self.only_done = split, hold_out, only_done
        self._found: list[Accepted] | None = None

    def prepare(self, progress: Callable[[int, int, str], None] = lambda done, total, what: None) -> None:
        """Read all annotations.

        Raises:
            FileNotFoundError: There is no such folder of images.
            ValueError: There is no image in it, a file is damaged, or there is nothing of this split yet.
        """
        if self._found is not None:
            return
        progress(0, 1, "reading annotations")
        folder = Path(self.images)
        out = Path(self.annotations) if self.annotations else folder / "annotations"
        try:
            found = list(accepted(Store(folder, out), self.only_done))
        except SamlitError as error:
            raise ValueError(str(error)) from error
        if not found:
            told = "has no mask yet" if not self.only_done else "has no image yet that was called done"
            raise ValueError(f"{out} {told}: accept some with `samlit annotate --images {folder} --weights W`")
        if self.split != "all":
            mine = [one for one in found if one.item.held(self.hold_out) == (self.split == "val")]
            if not mine:
                told = f"hold_out {self.hold_out} leaves none of the {len(found)} annotated images to {self.split}"
                raise ValueError(f"{out}: {told}; annotate more, or take another number")
            found = mine
        self._found = found
        progress(1, 1, "reading annotations")

    def __len__(self) -> int:
        """How many images there are."""
        return len(self._opened())

    def __getitem__(self, index: int) -> Sample:
        """Image number `index`, by name, and its masks.

        Raises:
            Damaged: The image is, or has another size than its masks; one line that names it and says how.
            IndexError: There is no such number.
        """
        found = self._opened()
        if not 0 <= index < len(found):
            raise IndexError(f"{self.images}: no sample {index}, there are {len(found)}")
        one = found[index]
        with blaming(one.item.name):
            image = encoded(str(Path(self.images).expanduser() / one.item.name), one.size)
        return Sample(one.item.name, image, one.masks, one.names)

    def _opened(self) -> list[Accepted]:
        self.prepare()
        assert self._found is not None
        return self._found
