"""Masks of everything with classes: labelled by somebody, and joined to one map of segments."""

from __future__ import annotations

import pydoc
from collections.abc import Callable, Sequence, Set
from typing import Any

import numpy as np

from samlit import rle
from samlit.errors import one_line
from samlit.rle import Rle
from samlit.segments import Panoptic, Segments
from samlit.structures import Sample

__all__ = ["Labels", "joined", "labeller"]

Labels = Callable[[Sample, Sequence[Rle]], Sequence[Any]]
"""An image and masks of it to the class of each mask, an id of the annotations' categories; None for none."""


def labeller(labels: str | None, annotations: Panoptic, things: Set[Any] = frozenset()) -> Labels:
    """What says the classes: a class path of a function or a class without arguments, or the truth.

    Args:
        labels: The class path; the truth if None.
        annotations: The truth.
        things: Classes of which the truth names whole things only, not their parts.

    Raises:
        ValueError: There is no such thing.
    """
    if labels is None:
        return lambda sample, masks: _true(annotations.segments(sample.key, sample.size), masks, things)
    try:
        found = pydoc.locate(labels)
    except pydoc.ErrorDuringImport as error:
        raise ValueError(f"labels: {labels} cannot be imported ({one_line(error)})") from error
    if not callable(found):
        raise ValueError(f"labels: there is no function or class {labels}")
    made: Labels = found() if isinstance(found, type) else found
    return made


def _true(truth: Segments, masks: Sequence[Rle], things: Set[Any]) -> list[Any]:
    """The class of the true segment that most of each mask is in, if half of it is; of things, only whole ones."""
    areas = dict(zip(*(found.tolist() for found in np.unique(truth.map, return_counts=True)), strict=True))
    classes: list[Any] = []
    for mask in masks:
        inside = truth.map[rle.decode(mask)]
        numbers, counts = np.unique(inside, return_counts=True)
        k = int(counts.argmax()) if len(counts) else 0
        enough = len(counts) > 0 and 2 * counts[k] >= len(inside)
        kind = truth.classes.get(int(numbers[k])) if enough else None
        if kind in things and 2 * counts[k] <= len(inside) + areas[int(numbers[k])] - counts[k]:
            kind = None  # A part of a thing is no thing: by COCO's rules nothing below an IoU of .5 is found.
        classes.append(kind)
    return classes


def joined(masks: Sequence[Rle], classes: Sequence[Any], size: tuple[int, int], things: set[Any]) -> Segments:
    """One map: a pixel belongs to the smallest mask that it is in; stuff of a class is one segment."""
    some = [k for k, kind in enumerate(classes) if kind is not None]
    if not some:
        return Segments(np.zeros(size, np.int64), {})
    order = sorted(some, key=lambda k: rle.area(masks[k]))
    labels = np.zeros(size, np.int64)
    for k in reversed(order):
        x0, y0, x1, y1 = rle.box(masks[k])
        if x0 < x1:
            part = labels[y0:y1, x0:x1]
            part[rle.draw(masks[k], part.shape, (slice(y0, y1), slice(x0, x1)))] = k + 1
    first: dict[Any, int] = {}
    kinds: dict[int, Any] = {}
    for k in some:
        number = k + 1 if classes[k] in things else first.setdefault(classes[k], k + 1)
        if number != k + 1:
            labels[labels == k + 1] = number
        kinds[number] = classes[k]
    there = set(np.unique(labels).tolist())
    return Segments(labels, {number: kind for number, kind in kinds.items() if number in there})
