"""Masks that a model proposes before a person begins: the paper's semi-automatic stage (section 4)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from samlit import atomic, everything
from samlit.annotator.store import Store
from samlit.annotator.verdicts import provenance
from samlit.contracts import Task
from samlit.embeddings import fingerprint
from samlit.loading import images
from samlit.masks import rle
from samlit.masks.rle import Rle
from samlit.model import Sam

__all__ = ["COVERED", "Everything", "Proposal", "Proposals", "Proposer", "open_ones"]

COVERED = 0.8
"""IoU with a mask from which on a proposal says nothing new."""


@dataclass(frozen=True)
class Proposal:
    """One mask that may be accepted, edited or rejected.

    Attributes:
        id: Made from the mask, so that the same one has the same id in each run.
        mask: Of the image's own size.
        predicted_iou: What the model expects.
    """

    id: str
    mask: Rle
    predicted_iou: float

    @classmethod
    def of(cls, mask: Rle, predicted_iou: float) -> Proposal:
        """A proposal of a mask."""
        return cls(hashlib.blake2b(mask.counts.encode(), digest_size=8).hexdigest(), mask, predicted_iou)


class Proposer(Protocol):
    """Proposes masks for an image file.

    Attributes:
        key: Tells its masks from another's, and from its own with other weights.
    """

    key: str

    def __call__(self, path: str) -> Sequence[Proposal]:
        """The masks, the surest first."""
        ...


class Everything:
    """Proposes the confident masks of everything-mode.

    Args:
        net: The model, on its device.
        side: Of its frame, pixels.
        task: `everything`, with its thresholds.
        options: Of the task, in plain values.
    """

    def __init__(self, net: Sam, side: int, task: Task, options: dict[str, Any]) -> None:
        self.net, self.side, self.task = net, side, task
        told = json.dumps([fingerprint(net), options], sort_keys=True, default=str)
        self.key = hashlib.blake2b(told.encode(), digest_size=16).hexdigest()

    def __call__(self, path: str) -> list[Proposal]:
        """The masks of an image file, the surest first.

        Raises:
            Damaged: The image cannot be read, or is too large.
        """
        found = everything.find(self.net, self.side, images.read(path), self.task)
        return sorted((Proposal.of(one.rle, one.predicted_iou) for one in found), key=lambda p: -p.predicted_iou)


class Proposals:
    """Proposals for the images of a store, kept in files.

    Args:
        proposer: Makes them.
        store: Of the images.
        folder: Where they are kept.
    """

    def __init__(self, proposer: Proposer, store: Store, folder: Path) -> None:
        self._proposer, self._store = proposer, store
        self.folder = folder / proposer.key

    def __call__(self, number: int) -> list[Proposal]:
        """An image's proposals, by the image's number.

        Raises:
            Damaged: The image cannot be read, or is too large.
        """
        path = self._store.path(self._store.items[number])
        try:
            digest = hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
        except OSError:
            return list(self._proposer(str(path)))
        file = self.folder / f"{digest}.json"
        with suppress(FileNotFoundError, ValueError, LookupError, TypeError):
            rows = json.loads(file.read_bytes())
            return [Proposal.of(Rle((r["size"][0], r["size"][1]), r["counts"]), r["predicted_iou"]) for r in rows]
        found = list(self._proposer(str(path)))
        rows = [{"size": p.mask.size, "counts": p.mask.counts, "predicted_iou": p.predicted_iou} for p in found]
        with suppress(OSError):
            atomic.write(file, json.dumps(rows))
        return found


def open_ones(proposals: Sequence[Proposal], document: dict[str, Any]) -> list[Proposal]:
    """The proposals that nobody has decided on, and that no mask of the image covers already."""
    rows = document["annotations"]
    decided = {one["id"] for one in document["samlit"]["rejected"]}
    decided |= {(provenance(row).get("proposal") or {}).get("id") for row in rows}
    left = [one for one in proposals if one.id not in decided]
    if not left:
        return []
    size = left[0].mask.size
    there = [row["segmentation"] for row in rows if not row.get("deleted")]
    masks = [Rle(size, one["counts"]) for one in there if tuple(one["size"]) == size]
    if not masks:
        return left
    shared = rle.intersections([one.mask for one in left], masks)
    areas = [rle.area(mask) for mask in masks]
    return [
        one
        for one, row in zip(left, shared, strict=True)
        if all(both < COVERED * (rle.area(one.mask) + area - both) for both, area in zip(row, areas, strict=True))
    ]
