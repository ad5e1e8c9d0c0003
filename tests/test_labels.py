"""Label maps to masks in one pass: the same strings as mask by mask."""

from __future__ import annotations

import time

import numpy as np
import pytest
from faster_coco_eval.core import mask as official
from hypothesis import given
from hypothesis import strategies as st

from samlit.masks import rle


@given(
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    values=st.lists(st.integers(0, 255), min_size=1, max_size=5),
    dtype=st.sampled_from([np.uint8, np.uint16, np.int32, np.uint32, np.int64]),
    seed=st.integers(0, 2**16),
)
def test_a_label_map_is_the_mask_of_each_value(
    size: tuple[int, int], values: list[int], dtype: type, seed: int
) -> None:
    labels = np.random.default_rng(seed).choice(values, size).astype(dtype)
    found, masks = rle.encode_labels(labels)
    assert found.tolist() == [value for value in np.unique(labels).tolist() if value]
    assert masks == [rle.encode(labels == value) for value in found]
    assert [mask.counts for mask in masks] == [
        official.encode(np.asfortranarray(labels == value).astype(np.uint8))["counts"].decode() for value in found
    ]


def test_all_depths_and_nothing_at_all() -> None:
    for dtype, top in ((np.uint8, 255), (np.uint16, 65535), (np.int32, 2**31 - 1), (np.uint32, 2**32 - 1)):
        labels = np.zeros((4, 5), dtype)
        labels[1:3, 1:4] = top
        values, (mask,) = rle.encode_labels(labels)
        assert values.tolist() == [top]
        assert mask.counts == "5220003"
    assert rle.encode_labels(np.zeros((3, 3), np.uint8))[1] == []
    assert rle.encode_labels(np.full((3, 3), -1))[1] == [rle.encode(np.ones((3, 3), bool))]
    for wrong in (np.zeros((3, 3)), np.zeros((2, 3, 3), np.uint8), np.zeros((0, 3), np.uint8)):
        with pytest.raises(ValueError, match=r"label map|RLE size"):
            rle.encode_labels(wrong)


def test_hundreds_of_labels_take_one_pass() -> None:
    blocks = np.random.default_rng(4).permutation(25 * 40).reshape(25, 40)
    labels = np.kron(blocks, np.ones((16, 16), np.int64)).astype(np.uint16)
    before = time.perf_counter()
    values, masks = rle.encode_labels(labels)
    one_pass = time.perf_counter() - before
    before = time.perf_counter()
    some = [rle.encode(labels == value) for value in values[:100]]
    hundred = time.perf_counter() - before
    assert len(values) == 999
    assert masks[:100] == some
    assert one_pass < hundred  # all 999 in less than what 100 take one by one
