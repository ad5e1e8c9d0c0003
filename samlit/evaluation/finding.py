"""Precision and recall of what phrases find: several things, one, or none (as SAM 3's cgF1)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

__all__ = ["Found", "Judgement", "best_threshold", "judge"]


class Found(NamedTuple):
    """What a phrase found in an image.

    Attributes:
        truths: How many masks it truly means; 0 where nothing there is called so.
        scores: How sure each found mask is, in any order.
        ious: Of each found mask, its IoU with each true one.
    """

    truths: int
    scores: Sequence[float]
    ious: Sequence[Sequence[float]]


class Judgement(NamedTuple):
    """What finding has come to.

    Attributes:
        precision: Of the found masks the share that is right, over phrases that mean something.
        recall: Of the true masks the share that is found.
        f1: Of these two.
        mcc: Matthews's correlation of whether something is found with whether something is there, over all phrases.
        cgf1: `f1` times `mcc`, which a model that finds something for every phrase cannot raise.
    """

    precision: float
    recall: float
    f1: float
    mcc: float
    cgf1: float


def judge(found: Sequence[Found], threshold: float, iou: float = 0.5) -> Judgement:
    """Judge phrases together; masks of a lower score are not found.

    A found mask is right if its IoU with a true one, that no surer one has taken, is `iou` or more.
    """
    right = wrong = missed = 0
    table = [[0, 0], [0, 0]]  # there or not, found or not
    for one in found:
        kept = sorted((k for k, score in enumerate(one.scores) if score >= threshold), key=lambda k: -one.scores[k])
        table[bool(one.truths)][bool(kept)] += 1
        if not one.truths:
            continue
        taken: set[int] = set()
        for k in kept:
            free = [(value, t) for t, value in enumerate(one.ious[k]) if t not in taken and value >= iou]
            if free:
                taken.add(max(free)[1])
        right += len(taken)
        wrong += len(kept) - len(taken)
        missed += one.truths - len(taken)
    precision, recall = right / max(right + wrong, 1), right / max(right + missed, 1)
    f1 = 2 * right / max(2 * right + wrong + missed, 1)
    (nothing, invented), (overlooked, seen) = table
    below = (seen + invented) * (seen + overlooked) * (nothing + invented) * (nothing + overlooked)
    mcc = (seen * nothing - invented * overlooked) / math.sqrt(below) if below else 0.0
    return Judgement(precision, recall, f1, mcc, f1 * mcc)


def best_threshold(found: Sequence[Found], iou: float = 0.5) -> float:
    """The score from which on masks are to be believed: of highest cgF1, then of highest F1, on these phrases."""
    scores = sorted({score for one in found for score in one.scores})
    if not scores:
        return 0.0
    some = scores[:: max(1, len(scores) // 200)]
    # In the middle between neighbours, so that a hair's breadth decides nothing.
    cuts = [some[0], *((a + b) / 2 for a, b in pairwise(some))]

    def worth(cut: float) -> tuple[float, float]:
        judged = judge(found, cut, iou)
        return judged.cgf1, judged.f1

    return max(cuts, key=worth)
