"""The masks that people have accepted, image by image: for files of other forms, and to learn from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from samlit.annotator.store import Item, Store
from samlit.errors import SamlitError
from samlit.masks.rle import Rle

__all__ = ["NAMELESS", "Accepted", "accepted"]

NAMELESS = "object"
"""What a mask shows that nobody has named."""


@dataclass(frozen=True)
class Accepted:
    """An image that somebody has worked on.

    Attributes:
        item: The image.
        size: Its rows and columns, as a person sees it.
        masks: All that are not deleted; of an image that was called done there may be none.
        names: What each of them shows.
    """

    item: Item
    size: tuple[int, int]
    masks: tuple[Rle, ...]
    names: tuple[str, ...]


def accepted(store: Store, only_done: bool = False) -> Iterator[Accepted]:
    """The images of a store that have masks, or were called done.

    Args:
        store: Of the annotations.
        only_done: Whether images that nobody has called done are left out.

    Raises:
        SamlitError: A file of annotations is damaged, or has masks of several sizes.
        Damaged: An image without masks cannot be read.
    """
    for item in store.items:
        document = store.read(item)
        rows = [row for row in document["annotations"] if not row.get("deleted")]
        done = bool(document["samlit"].get("done"))
        if not done and (only_done or not rows):
            continue
        height, width = rows[0]["segmentation"]["size"] if rows else store.size(item)
        if any(row["segmentation"]["size"] != [height, width] for row in rows):
            raise SamlitError(f"{item.name} has masks of several sizes: its annotations were made of another image")
        masks = tuple(Rle((height, width), row["segmentation"]["counts"]) for row in rows)
        yield Accepted(item, (height, width), masks, tuple(str(row.get("phrase") or NAMELESS) for row in rows))
