"""Precision and recall by phrase, counted by hand."""

import pytest

from samlit.evaluation.finding import Found, best_threshold, judge


def test_several_one_and_none():
    found = [
        Found(2, [0.9, 0.8, 0.4], [[0.9, 0.0], [0.8, 0.1], [0.0, 0.7]]),  # the second is the first one's thing again
        Found(1, [0.2], [[0.9]]),
        Found(0, [0.6], [[]]),
        Found(0, [0.1], [[]]),
        Found(0, [], []),
    ]
    judged = judge(found, 0.5)
    assert (judged.precision, judged.recall) == (1 / 2, 1 / 3)
    assert judged.f1 == pytest.approx(2 / 5)
    # There and found 1, there and not found 1, not there and found 1, neither 2.
    assert judged.mcc == pytest.approx((1 * 2 - 1 * 1) / (2 * 2 * 3 * 3) ** 0.5)
    assert judged.cgf1 == pytest.approx(judged.f1 * judged.mcc)
    lower = judge(found, 0.15)
    assert (lower.precision, lower.recall) == (3 / 4, 1.0)


def test_whoever_finds_something_for_every_phrase_knows_nothing_of_presence():
    found = [Found(1, [0.9], [[1.0]]), Found(0, [0.9], [[]])]
    assert judge(found, 0.5).f1 == 1.0
    assert judge(found, 0.5).cgf1 == 0.0
    assert judge([], 0.5).f1 == 0.0


def test_a_true_mask_is_taken_once_and_by_the_surer():
    found = [Found(2, [0.9, 0.8], [[0.6, 0.7], [0.9, 0.6]])]
    assert judge(found, 0.5).recall == 1.0, "the first takes its better one and leaves the other"
    assert judge(found, 0.5, iou=0.75).recall == 0.5


def test_the_threshold_lies_where_phrases_are_told_apart():
    found = [Found(1, [0.7], [[0.9]]), Found(1, [0.6], [[0.9]]), Found(0, [0.3], [[]]), Found(0, [0.2], [[]])]
    cut = best_threshold(found)
    assert 0.3 < cut < 0.6
    assert judge(found, cut).cgf1 == 1.0
    assert best_threshold([Found(0, [], [])]) == 0.0
