"""Images cut into segments: of masks, brought to a number of them, and judged by true segments."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from samlit.masks import rle
from samlit.masks.rle import Rle

__all__ = ["accuracy", "boundaries", "boundary_recall", "of_masks", "to_number", "undersegmentation"]

Labels = npt.NDArray[np.int32]


def of_masks(masks: Sequence[Rle], size: tuple[int, int], connected: bool = True) -> Labels:
    """The segments that masks cut an image into: (H, W), numbered from 0.

    Each pixel belongs to the smallest mask that it is in, or to what is left.

    Args:
        masks: Of the image's size.
        size: Rows and columns.
        connected: Whether parts that do not touch (by an edge) are segments of their own.
    """
    labels = np.zeros(size, np.int32)
    order = sorted(range(len(masks)), key=lambda k: -rle.area(masks[k]))
    for number, k in enumerate(order, 1):
        x0, y0, x1, y1 = rle.box(masks[k])
        if x0 == x1:
            continue
        part = labels[y0:y1, x0:x1]
        part[rle.draw(masks[k], part.shape, (slice(y0, y1), slice(x0, x1)))] = number
    if connected:
        labels = _pieces(labels)
    found: Labels = np.unique(labels, return_inverse=True)[1].reshape(size).astype(np.int32)
    return found


def _pieces(labels: Labels) -> Labels:
    """Every connected part of every label with a number of its own."""
    found = np.zeros_like(labels)
    first = 0
    for pixels in _members(labels):
        y, x = np.divmod(pixels, labels.shape[1])
        y0, x0 = int(y.min()), int(x.min())
        part = np.zeros((int(y.max()) - y0 + 1, int(x.max()) - x0 + 1), np.uint8)
        part[y - y0, x - x0] = 1
        count, piece = cv2.connectedComponents(part, connectivity=4)
        found[y, x] = piece[y - y0, x - x0] + first
        first += count
    return found


def _members(labels: Labels) -> list[npt.NDArray[np.int64]]:
    """The pixels of each label, ascending."""
    flat = np.unique(labels, return_inverse=True)[1].ravel()
    return np.split(np.argsort(flat, kind="stable"), np.cumsum(np.bincount(flat))[:-1])


def to_number(labels: Labels, count: int) -> Labels:
    """The same segments brought to a number of them.

    Too many: the smallest is joined with the neighbour that it has the longest border with, again and again. Too few:
    the largest is cut in halves across its longer side, again and again.

    Args:
        labels: (H, W).
        count: One at least, and at most as many as there are pixels.

    Returns:
        (H, W), numbered from 0.
    """
    if not 1 <= count <= labels.size:
        raise ValueError(f"{count} segments of {labels.size} pixels: one at least, and no more than pixels")
    labels = np.unique(labels, return_inverse=True)[1].reshape(labels.shape).astype(np.int32)
    number = int(labels.max()) + 1
    if number > count:
        return _joined(labels, number, count)
    return _cut(labels, number, count) if number < count else labels


def _joined(labels: Labels, number: int, count: int) -> Labels:
    """Smallest segments joined with neighbours until few enough are left."""
    borders: dict[int, dict[int, int]] = defaultdict(lambda: defaultdict(int))
    for a, b in ((labels[:, :-1], labels[:, 1:]), (labels[:-1], labels[1:])):
        apart = a != b
        pairs, lengths = np.unique(np.stack([a[apart], b[apart]], 1), axis=0, return_counts=True)
        for (one, other), length in zip(pairs.tolist(), lengths.tolist(), strict=True):
            borders[one][other] += length
            borders[other][one] += length
    area = np.bincount(labels.ravel(), minlength=number).tolist()
    into = list(range(number))
    waiting = [(size, label) for label, size in enumerate(area)]
    heapq.heapify(waiting)
    while number > count:
        size, label = heapq.heappop(waiting)
        if into[label] != label or size != area[label]:
            continue  # joined before, or grown since
        near = max(borders[label], key=lambda other: (borders[label][other], -area[other], -other))
        into[label] = near
        area[near] += area[label]
        for other, length in borders.pop(label).items():
            del borders[other][label]
            if other != near:
                borders[near][other] += length
                borders[other][near] += length
        heapq.heappush(waiting, (area[near], near))
        number -= 1
    for label in range(len(into)):
        last = label
        while into[last] != last:
            last = into[last]
        into[label] = last
    found: Labels = np.unique(np.array(into)[labels], return_inverse=True)[1].reshape(labels.shape).astype(np.int32)
    return found


def _cut(labels: Labels, number: int, count: int) -> Labels:
    """Largest segments cut in halves until there are enough."""
    found = labels.copy()
    flat = found.ravel()
    waiting = [(-len(part), label, part) for label, part in enumerate(_members(labels))]
    heapq.heapify(waiting)
    while number < count:
        _, label, part = heapq.heappop(waiting)
        y, x = np.divmod(part, labels.shape[1])
        across = x if np.ptp(x) >= np.ptp(y) else y
        halves = np.split(part[np.argsort(across, kind="stable")], [len(part) // 2])
        for half, name in zip(halves, (label, number), strict=True):
            flat[half] = name
            heapq.heappush(waiting, (-len(half), name, np.sort(half)))
        number += 1
    return found


def boundaries(labels: Labels) -> npt.NDArray[np.bool_]:
    """Pixels whose right or lower neighbour is of another segment: (H, W) to (H, W) bool."""
    found = np.zeros(labels.shape, np.bool_)
    found[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    found[:-1] |= labels[:-1] != labels[1:]
    return found


def boundary_recall(truth: Labels, segments: Labels, within: int = 2) -> float:
    """Share of the true boundary that has a segment's boundary near it; 1 where there is no true boundary.

    Args:
        truth: (H, W).
        segments: (H, W).
        within: Pixels to the right and left, above and below, and diagonally.
    """
    edges = boundaries(truth)
    if not edges.any():
        return 1.0
    near = cv2.dilate(boundaries(segments).astype(np.uint8), np.ones((2 * within + 1, 2 * within + 1), np.uint8))
    return float(near[edges].mean())


def undersegmentation(truth: Labels, segments: Labels) -> float:
    """The share of pixels that leak over true borders, by Neubert and Protzel (2012).

    Of each segment on a true segment's border the smaller part counts, the one inside or the one outside.
    """
    shared = _shared(truth, segments)
    outside = shared.sum(0, keepdims=True) - shared
    return float(np.minimum(shared, outside).sum()) / truth.size


def accuracy(truth: Labels, segments: Labels) -> float:
    """The achievable accuracy: the share of pixels that are right if each segment gets its most frequent true label."""
    return float(_shared(truth, segments).max(0).sum()) / truth.size


def _shared(truth: Labels, segments: Labels) -> npt.NDArray[np.int64]:
    """Pixels that each true segment and each segment share, (T, S)."""
    rows, columns = (np.unique(labels, return_inverse=True)[1].ravel() for labels in (truth, segments))
    height, width = int(rows.max()) + 1, int(columns.max()) + 1
    return np.bincount(rows * width + columns, minlength=height * width).reshape(height, width)
