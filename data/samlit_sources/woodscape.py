"""WoodScape (arXiv 1905.01489): driving by fisheye, with the outlines of things and of stuff."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from samlit_sources import _documents as documents
from samlit_sources._outlines import Drawn, Outline, Outlines, ring

__all__ = ["WoodScape"]


class WoodScape(Outlines):
    """WoodScape's images and the outlines of its `instance_annotations`; the class is the phrase.

    Outlines are whole, also where another thing hides them.

    Args:
        root: The folder with `rgb_images` and `instance_annotations`, which may be doubled, as unpacking leaves them.
        without: Classes that are left out, as `void` and `ego_vehicle`.
        empty: Whether images without a mask are samples too.
        min_area: Masks of fewer pixels are left out.
    """

    def __init__(self, root: str, without: tuple[str, ...] = (), empty: bool = True, min_area: int = 1) -> None:
        super().__init__(root, empty, min_area)
        self.root, self.without = root, tuple(without)

    def drawn(self) -> Iterator[Drawn]:
        """Every annotated image, by name."""
        images, annotations = (
            _inner(Path(self.root).expanduser(), name) for name in ("rgb_images", "instance_annotations")
        )
        files = sorted(annotations.glob("[0-9]*_*.json"))
        if not files:
            raise ValueError(f"{annotations}: holds no annotations (00000_FV.json)")
        for file in files:
            name = f"{file.stem}.png"
            if not (images / name).is_file():
                raise FileNotFoundError(f"{images / name}: there is no such image, and {file.name} is for it")
            try:
                (entry,) = documents.load(file).values()
                things = entry["annotation"]
                outlines = [_outline(thing) for thing in things]
            except (AttributeError, KeyError, TypeError):
                raise ValueError(f"{file}: is no annotation of WoodScape's") from None
            except ValueError as error:
                raise ValueError(str(error) if str(file) in str(error) else f"{file}: {error}") from None
            yield Drawn(name, str(images / name), [one for one in outlines if one and one.phrase not in self.without])


def _outline(thing: Mapping[str, Any]) -> Outline | None:
    """What is drawn of a thing; None where it surrounds nothing."""
    tags = thing.get("tags") or [None]
    surrounding = ring(thing["segmentation"])
    return Outline([surrounding], tags[0].replace("_", " ") if tags[0] else None) if surrounding else None


def _inner(root: Path, name: str) -> Path:
    """A folder in the root, or in the one of its own name."""
    for place in (root / name / name, root / name):
        if place.is_dir():
            return place
    raise FileNotFoundError(f"there is no folder {root / name}")
