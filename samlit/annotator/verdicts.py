"""What people made of a model's proposals: taken as they were, edited, or rejected."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

__all__ = ["ACCEPTED", "EDITED", "REJECTED", "Model", "provenance", "verdicts"]

ACCEPTED, EDITED, REJECTED = "accepted", "edited", "rejected"


class Model(NamedTuple):
    """A model that annotates: two trainings write files of one name, and only the weights tell these apart.

    Attributes:
        name: As it was typed.
        weights: Their fingerprint; empty where nobody noted it.
    """

    name: str
    weights: str

    @classmethod
    def of(cls, told: dict[str, Any]) -> Model:
        """The one of a mask's `provenance`."""
        return cls(str(told["model"].get("name", "")), str(told["model"].get("weights", "")))


def provenance(row: dict[str, Any]) -> dict[str, Any]:
    """How a mask came to be; empty where it was no annotator that wrote it."""
    told = row.get("provenance")
    return told if isinstance(told, dict) and isinstance(told.get("model"), dict) else {}


def verdicts(document: dict[str, Any]) -> Iterator[tuple[Model, str]]:
    """Each proposal of an image that was decided on: whose it is, and what became of it.

    Args:
        document: Of the image, as `Store.read` gives it.
    """
    for one in document["samlit"]["rejected"]:
        yield Model(one["model"], one["weights"]), REJECTED
    for row in document["annotations"]:
        told = provenance(row)
        if not isinstance(proposal := told.get("proposal"), dict):
            continue
        taken = EDITED if proposal.get("edited") else ACCEPTED
        yield Model.of(told), REJECTED if row.get("deleted") else taken
