"""Masks for a detector's boxes, to be proposed: the paper's stage 2 had one learn from the first masks (section 4)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from samlit.annotator.changes import numbers
from samlit.annotator.proposals import Proposal
from samlit.annotator.store import Store
from samlit.embeddings import fingerprint
from samlit.errors import SamlitError, one_line
from samlit.loading import images
from samlit.masks import rle
from samlit.predictor import Predictor

__all__ = ["SURE", "Boxes"]

SURE = 0.8
"""Predicted IoU below which the mask of a box is not proposed."""


class Boxes:
    """Proposes what the model answers to boxes that were found elsewhere.

    The file is what detectors write for COCO's evaluation, a list of {"image_id", "bbox", "score"}, or a COCO file with
    its `images`. Without these an `image_id` is an image's name in the folder, the name without folder or ending, or
    the number that this is. Boxes of other images are not looked at.

    Args:
        predictor: Of the model; its image is changed.
        store: Of the images.
        file: The JSON.
        score: Boxes of which the detector thought less are left out; all have 1 that state none.

    Raises:
        SamlitError: The file is not of this form, or has no box of any image here; one line.
    """

    def __init__(self, predictor: Predictor, store: Store, file: Path, score: float) -> None:
        self._predictor = predictor
        self._boxes: dict[str, list[list[float]]] = {}
        try:
            text = file.read_bytes()
            for name, box, sure in _read(json.loads(text), store):
                if sure >= score:
                    self._boxes.setdefault(str(store.images.resolve() / name), []).append(box)
        except (LookupError, TypeError, AttributeError, ValueError, OSError) as error:
            raise SamlitError(f"{file} has no boxes as COCO's results do: {one_line(error)}") from error
        if not self._boxes:
            raise SamlitError(f"{file} has no box of score {score:g} or more of any image in {store.images}")
        told = f"{fingerprint(predictor.net)} {score} {hashlib.blake2b(text).hexdigest()}"
        self.key = hashlib.blake2b(told.encode(), digest_size=16).hexdigest()

    def __call__(self, path: str) -> list[Proposal]:
        """The masks of an image file's boxes, the surest first.

        Raises:
            Damaged: The image cannot be read, or is too large.
        """
        if path not in self._boxes:
            return []
        self._predictor.set_image(images.read(path))
        found: dict[str, Proposal] = {}
        for answer in self._predictor.predict_each([{"boxes": [box]} for box in self._boxes[path]], multimask=False):
            if float(answer.iou[0]) >= SURE and answer.masks[0].any():
                one = Proposal.of(rle.encode(answer.masks[0].cpu().numpy()), float(answer.iou[0]))
                found.setdefault(one.id, one)  # of two boxes that mean one thing
        return sorted(found.values(), key=lambda one: -one.predicted_iou)


def _read(told: Any, store: Store) -> Iterator[tuple[str, list[float], float]]:
    """Name of the image in the store, corners and score of each box."""
    ids = {one["id"]: one["file_name"] for one in told["images"]} if isinstance(told, dict) else None
    known: dict[str, set[str]] = {}
    for item in store.items:
        stem = Path(item.name).stem
        for name in {item.name, item.name.rpartition(".")[0], Path(item.name).name, stem, stem.lstrip("0")}:
            known.setdefault(name, set()).add(item.name)
    for row in told if ids is None else told["annotations"]:
        image = str(row["image_id"] if ids is None else ids[row["image_id"]])
        names = known.get(image, set())
        if len(names) > 1 and image not in names:
            raise ValueError(f"{image} may be any of {len(names)} images: name it with its folder")
        x, y, wide, high = numbers(row["bbox"], 4, "bbox is x, y, width, height")
        if names and wide > 0 and high > 0:
            yield image if image in names else next(iter(names)), [x, y, x + wide, y + high], float(row.get("score", 1))
