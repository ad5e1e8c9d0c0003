"""Annotations of a folder as one COCO file, which `coco:FILE` and most other tools read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from samlit import atomic, rle
from samlit.annotator.store import Item, Store
from samlit.errors import SamlitError
from samlit.rle import Rle

__all__ = ["NAMELESS", "write"]

NAMELESS = "object"
"""The category of masks that nobody has named."""


def write(
    store: Store, file: Path, only_done: bool = False, keep: Callable[[Item], bool] = lambda item: True
) -> tuple[int, int]:
    """Write all masks that are not deleted.

    Args:
        store: Of the annotations.
        file: The COCO JSON.
        only_done: Whether images that nobody has called done are left out.
        keep: Which images are in it.

    Returns:
        Images and masks in it; images without a mask are in it if they are done.

    Raises:
        SamlitError: A file of annotations is damaged, or has masks of several sizes.
        Damaged: An image without masks cannot be read.
    """
    images: list[dict[str, Any]] = []
    masks: list[dict[str, Any]] = []
    categories: dict[str, int] = {}
    for item in filter(keep, store.items):
        document = store.read(item)
        rows = [row for row in document["annotations"] if not row.get("deleted")]
        done = bool(document["samlit"].get("done"))
        if not done and (only_done or not rows):
            continue
        number = len(images) + 1
        height, width = rows[0]["segmentation"]["size"] if rows else store.size(item)
        images.append({"id": number, "file_name": item.name, "width": width, "height": height})
        if any(row["segmentation"]["size"] != [height, width] for row in rows):
            raise SamlitError(f"{item.name} has masks of several sizes: its annotations were made of another image")
        for row in rows:
            mask = Rle((height, width), row["segmentation"]["counts"])
            x0, y0, x1, y1 = rle.box(mask)
            name = str(row.get("phrase") or NAMELESS)
            masks.append(
                {
                    "id": len(masks) + 1,
                    "image_id": number,
                    "category_id": categories.setdefault(name, len(categories) + 1),
                    "segmentation": row["segmentation"],
                    "area": rle.area(mask),
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "iscrowd": 0,
                }
            )
    named = [{"id": number, "name": name} for name, number in categories.items()]
    atomic.write(file, json.dumps({"images": images, "annotations": masks, "categories": named}) + "\n")
    return len(images), len(masks)
