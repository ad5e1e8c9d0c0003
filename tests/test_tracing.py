"""Masks of low-res logits at an image's own size, against enlarging them in two steps and looking at every pixel."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from samlit.masks import rle, tracing
from samlit.masks.tracer import Tracer, axis
from tests import conftest


def logits(seed, num, low, coarse, scale=6.0):
    """Smooth maps, some with little in them, one with nothing and one full."""
    chance = torch.Generator().manual_seed(seed)
    found = F.interpolate(torch.randn(num, 1, coarse, coarse, generator=chance), (low, low), mode="bicubic")[:, 0]
    found = scale * found - torch.linspace(-3, 12, num)[:, None, None]
    found[0] += 100
    found[-1] -= 100
    return found


def plain(one, side, size, threshold=0.0, offset=1.0):
    """Two enlargements, then every pixel."""
    up = tracing.enlarge(one[None], side, size)[0]
    inside = up > threshold
    y, x = (found.tolist() for found in inside.nonzero(as_tuple=True))
    box = (min(x), min(y), max(x), max(y)) if x else (0, 0, 0, 0)
    inner, outer = (int((up > threshold + sign * offset).sum()) for sign in (1, -1))
    return up, inside.numpy(), box, inner / outer if outer else float("nan")


def agree(found, one, side, size, threshold=0.0, offset=1.0):
    up, inside, box, stability = plain(one, side, size, threshold, offset)
    mask = rle.decode(tracing.strings([found])[0])
    # Where a logit is within rounding of the threshold either answer is right.
    differ = mask != inside
    assert (up.sub(threshold).abs().numpy()[differ] < 1e-4).all()
    assert found.area == mask.sum()
    assert abs(found.area - int(inside.sum())) <= differ.sum()
    if not differ.any():
        assert found.box == box
    assert found.stability == pytest.approx(stability, abs=2e-3, nan_ok=True)
    assert found.size == size
    return int(differ.sum())


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    low=st.sampled_from([4, 16, 24, 64]),
    zoom=st.sampled_from([1, 2, 4]),
    height=st.integers(1, 130),
    width=st.integers(1, 130),
    coarse=st.integers(2, 16),
    offset=st.sampled_from([0.0, 1.0, 3.0]),
    threshold=st.sampled_from([0.0, -1.5]),
)
def test_masks_are_those_of_two_enlargements(seed, low, zoom, height, width, coarse, offset, threshold):
    maps, side, size = logits(seed, 6, low, coarse), low * zoom, (height, width)
    traced = list(tracing.trace(maps, side, size, threshold, offset))
    assert len(traced) == 6
    for found, one in zip(traced, maps, strict=True):
        agree(found, one, side, size, threshold, offset)


@pytest.mark.parametrize("size", [(1500, 2250), (1024, 1024), (333, 500), (90, 1100)])
def test_at_sams_own_sizes(size):
    maps = logits(3, 4, 256, 12)
    differ = [agree(found, one, 1024, size) for found, one in zip(tracing.trace(maps, 1024, size), maps, strict=True)]
    assert sum(differ) <= 4, "a few pixels of millions at most are within rounding of the threshold"


def test_other_devices_find_the_same(monkeypatch):
    monkeypatch.setattr(tracing, "PIXELS", 3 * 120 * 90)  # three at a time
    maps = logits(5, 8, 16, 5)
    for size in ((60, 90), (120, 35)):
        here = list(tracing.trace(maps, 64, size))
        there = list(tracing._on_device(maps, 64, size, 0.0, 1.0))
        for found, other, one in zip(here, there, maps, strict=True):
            agree(other, one, 64, size)
            assert abs(found.area - other.area) <= 2
        assert [a == b for a, b in zip(tracing.strings(here), tracing.strings(there), strict=True)].count(False) <= 1


def test_more_runs_than_there_was_room_for():
    tracer = Tracer((64, 64), 256, (256, 256), (256, 256))
    tracer._ends = np.empty(300, np.int64)
    checks = torch.ones(64, 64)
    checks[::2, ::2] = checks[1::2, 1::2] = -1.0
    found = tracer(checks.numpy(), 0.0, 1.0)
    assert len(found.ends) > 10_000
    assert found.ends[-1] == 256 * 256
    assert (np.diff(found.ends) > 0).all()


@pytest.mark.parametrize(("low", "zoom"), [(16, 1), (64, 4), (256, 4)])
@pytest.mark.parametrize("size", [(2, 2), (1, 9), (9, 1), (5, 12), (40, 31)], ids=str)
def test_images_much_smaller_than_the_logits(low, zoom, size):
    maps = torch.cat([logits(seed, 5, low, 2 + seed % 3) for seed in range(6)])
    for found, one in zip(tracing.trace(maps, low * zoom, size, -1.5, 0.5), maps, strict=True):
        agree(found, one, low * zoom, size, -1.5, 0.5)
        ends = found.ends[1:] if not found.ends[0] else found.ends
        assert (np.diff(ends, prepend=0) > 0).all()


def test_threads_do_not_write_into_each_others_masks():
    maps = logits(7, 8, 64, 9)
    alone = tracing.strings(list(tracing.trace(maps, 256, (700, 500))))
    with ThreadPoolExecutor(4) as pool:
        several = list(pool.map(lambda _: tracing.strings(list(tracing.trace(maps, 256, (700, 500)))), range(24)))
    assert all(found == alone for found in several)


def test_weights_of_an_axis_are_those_of_both_enlargements():
    for low, side, part, size in ((16, 64, 40, 33), (256, 1024, 683, 1500), (4, 16, 16, 3), (8, 8, 5, 9)):
        made = axis(low, side, part, size)
        matrix = np.zeros((size, low))
        for tap in range(4):
            np.add.at(matrix, (np.arange(size), made.first + tap), made.weight[:, tap])
        unit = torch.eye(low)[:, None]
        up = F.interpolate(unit, side, mode="linear", align_corners=False)[..., :part]
        expected = F.interpolate(up, size, mode="linear", align_corners=False)[:, 0].T
        np.testing.assert_allclose(matrix, expected.numpy(), atol=1e-5)
        assert made.weight.min() >= 0


def test_a_mask_of_a_window_is_placed_in_its_image():
    chance = np.random.default_rng(0)
    for _ in range(60):
        height, width = chance.integers(1, 9, 2)
        at = tuple(int(x) for x in chance.integers(0, 4, 2) * chance.integers(0, 2, 2))
        into = (int(at[0] + height + chance.integers(0, 3)), int(at[1] + width + chance.integers(0, 3)))
        mask = chance.random((height, width)) < chance.choice([0.0, 0.3, 0.7, 1.0])
        whole = np.zeros(into, bool)
        whole[at[0] : at[0] + height, at[1] : at[1] + width] = mask
        ends = rle.moved(rle.runs(rle.encode(mask)), (int(height), int(width)), at, into)
        assert rle.from_ends([ends], into) == [rle.encode(whole)]


def test_shared_pixels_are_those_of_the_drawn_masks():
    chance = np.random.default_rng(1)
    some, others = (chance.random((n, 13, 17)) < chance.random((n, 1, 1)) * 1.2 for n in (7, 5))
    some[0], others[1], others[2] = False, False, True
    found = rle.intersections(rle.encode_many(some), rle.encode_many(others))
    np.testing.assert_array_equal(found, np.einsum("ahw,bhw->ab", some.astype(int), others.astype(int)))
    assert rle.intersections([], rle.encode_many(others)).shape == (0, 5)
    with pytest.raises(ValueError, match="several sizes"):
        rle.intersections([rle.encode(np.ones((2, 3)))], [rle.encode(np.ones((3, 2)))])


def test_where_nothing_can_be_written_it_is_compiled_all_the_same(tmp_path):
    (tmp_path / "tracer.py").write_bytes((conftest.ROOT / "samlit" / "masks" / "tracer.py").read_bytes())
    code = """
import numba.core.caching as caching
def nowhere(*_): raise RuntimeError("cannot cache function: no locator available")
caching.CacheImpl.__init__ = nowhere
import numpy as np, tracer
found = tracer.Tracer((4, 4), 16, (16, 16), (16, 16))(np.ones((4, 4), np.float32), 0.0, 0.5)
print(found.area, found.ends.tolist())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout == "256 [0, 256]\n", done.stderr
