"""What a page may ask to be changed in an image's annotations, read from JSON that nobody vouches for."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any, NoReturn

from samlit.errors import one_line
from samlit.masks import rle
from samlit.masks.rle import Rle

__all__ = ["LISTED", "OPERATIONS", "Change", "numbers", "parse", "read"]

OPERATIONS = ("add", "replace", "delete", "restore", "reject", "unreject", "done", "undone")
LARGEST_ID = 2**53 - 1
"""The last whole number that JavaScript can tell from its neighbours."""
WORDS = 200
"""Characters of a name at most."""
LISTED = 20_000
"""Entries of a list of prompts at most."""


@dataclass(frozen=True)
class Change:
    """One operation on one image.

    Attributes:
        op: One of OPERATIONS: the first four are about the mask `id`, `reject` and `unreject` about the proposal
            `proposal`.
        id: Of the mask, chosen at random by whoever adds it, so that adding it twice is adding it once.
        revision: Of the mask that a replace, delete or restore was made on; it is refused on any other.
        mask: Of an add or replace, of the image's size, with a pixel at least.
        phrase: What the mask shows; empty where nobody said.
        predicted_iou: The model's own estimate of the mask.
        provenance: How the mask came to be: prompts, seconds, whether it was edited by hand, which proposal it was.
        proposal: The proposal that a reject or unreject is about.
    """

    op: str
    id: int = 0
    revision: int = 0
    mask: Rle | None = None
    phrase: str = ""
    predicted_iou: float = 1.0
    provenance: dict[str, Any] | None = None
    proposal: str = ""


def read(body: bytes) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ValueError: It is none; one line.
    """
    try:
        found = json.loads(body, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("the JSON is nested too deep") from None
    except UnicodeDecodeError:
        raise ValueError("the JSON is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"a JSON object is wanted, not {type(found).__name__}")
    return found


def parse(given: dict[str, Any], size: tuple[int, int]) -> Change:
    """A change, checked.

    Args:
        given: As the page sends it.
        size: Rows and columns of the image.

    Raises:
        ValueError: It makes no sense on this image; one line.
    """
    op = given.get("op")
    if op not in OPERATIONS:
        raise ValueError(f"op is one of {', '.join(OPERATIONS)}, not {str(op)[:40]!r}")
    if op in ("done", "undone"):
        return Change(op)
    if op in ("reject", "unreject"):
        return Change(op, proposal=_word(given, "proposal", needed=True))
    id_ = _whole(given, "id", 1, LARGEST_ID)
    if op in ("delete", "restore"):
        return Change(op, id_, _whole(given, "revision", 0, LARGEST_ID))
    revision = _whole(given, "revision", 0, LARGEST_ID) if op == "replace" else 0
    sides, counts = given.get("size"), given.get("counts")
    if sides != list(size):
        raise ValueError(f"the mask is of size {str(sides)[:40]}, the image {size[0]}x{size[1]} (rows x columns)")
    if not isinstance(counts, str):
        raise ValueError("counts is the COCO string of the mask")
    mask = Rle(size, counts)
    try:
        area = rle.area(mask)
    except ValueError as error:
        raise ValueError(f"counts: {one_line(error)}") from None
    if not area:
        raise ValueError("the mask has no pixel")
    provenance = _provenance(given.get("provenance", {}))
    iou = _number(given.get("predicted_iou", 1.0), "predicted_iou")
    return Change(op, id_, revision, mask, _word(given, "phrase"), min(max(iou, 0.0), 1.0), provenance)


def _provenance(given: Any) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise ValueError("provenance is an object")
    prompts = given.get("prompts", {})
    if not isinstance(prompts, dict):
        raise ValueError("prompts is an object")
    points = [numbers(one, 3, "a point: x, y, label") for one in _listed(prompts, "points")]
    box = prompts.get("box")
    strokes = []
    for stroke in _listed(prompts, "strokes"):
        if not isinstance(stroke, dict):
            raise ValueError("a stroke is an object")
        path = [numbers(one, 2, "a place of a stroke: x, y") for one in _listed(stroke, "path")]
        radius = _number(stroke.get("radius", 1), "radius")
        strokes.append({"erase": bool(stroke.get("erase")), "radius": radius, "path": path})
    proposal = given.get("proposal")
    if proposal is not None:
        if not isinstance(proposal, dict):
            raise ValueError("proposal is an object")
        proposal = {"id": _word(proposal, "id", needed=True), "edited": bool(proposal.get("edited"))}
    return {
        "prompts": {
            "points": points,
            "box": None if box is None else numbers(box, 4, "a box: x0, y0, x1, y1"),
            "strokes": strokes,
        },
        "seconds": round(min(max(_number(given.get("seconds", 0), "seconds"), 0.0), 86_400.0), 2),
        "person": _word(given, "person"),
        "edited_by_hand": bool(strokes),
        "proposal": proposal,
    }


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"the JSON has {constant}, which is not a number")


def _whole(given: dict[str, Any], name: str, least: int, most: int) -> int:
    value = given.get(name)
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{name} is a whole number of at least {least}, not {str(value)[:40]}")
    return value


def _number(value: Any, name: str) -> float:
    if type(value) not in (int, float) or not -1e9 < value < 1e9 or not math.isfinite(value):
        raise ValueError(f"{name} is a number, not {str(value)[:40]}")
    return float(value)


def numbers(value: Any, count: int, name: str) -> list[float]:
    """So many numbers, to a hundredth.

    Raises:
        ValueError: It is something else.
    """
    if not isinstance(value, list) or len(value) != count:
        raise ValueError(f"{name}, not {str(value)[:40]}")
    return [round(_number(one, name), 2) for one in value]


def _listed(given: dict[str, Any], name: str) -> list[Any]:
    value = given.get(name, [])
    if not isinstance(value, list) or len(value) > LISTED:
        raise ValueError(f"{name} is a list of at most {LISTED}")
    return value


def _word(given: dict[str, Any], name: str, needed: bool = False) -> str:
    value = given.get(name, "")
    if not isinstance(value, str) or len(value) > WORDS or any(ord(letter) < 32 for letter in value):
        raise ValueError(f"{name} is a line of at most {WORDS} characters")
    if needed and not value:
        raise ValueError(f"{name} is missing")
    return value.strip()
