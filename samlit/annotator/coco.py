"""Annotations of a folder as one COCO file, which `coco:FILE` and most other tools read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from samlit import atomic
from samlit.annotator.accepted import accepted
from samlit.annotator.store import Item, Store
from samlit.masks import rle

__all__ = ["write"]


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
    for one in accepted(store, only_done):
        if not keep(one.item):
            continue
        number = len(images) + 1
        height, width = one.size
        images.append({"id": number, "file_name": one.item.name, "width": width, "height": height})
        for mask, name in zip(one.masks, one.names, strict=True):
            x0, y0, x1, y1 = rle.box(mask)
            masks.append(
                {
                    "id": len(masks) + 1,
                    "image_id": number,
                    "category_id": categories.setdefault(name, len(categories) + 1),
                    "segmentation": {"size": [height, width], "counts": mask.counts},
                    "area": rle.area(mask),
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "iscrowd": 0,
                }
            )
    named = [{"id": number, "name": name} for name, number in categories.items()]
    atomic.write(file, json.dumps({"images": images, "annotations": masks, "categories": named}) + "\n")
    return len(images), len(masks)
