"""Run-length strings against the COCO tools, and against everything that a string can have wrong."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from faster_coco_eval.core import mask as coco
from torch.nn import functional as F

from samlit.masks import rle
from samlit.masks.rle import Rle

SHARED = Path(os.environ.get("SAMLIT_SHARED") or Path(__file__).resolve().parents[2] / "shared" / "data")


def masks() -> list[np.ndarray]:
    """Noise of all densities, empty, full, single pixels, thin and smooth masks."""
    rng = np.random.default_rng(0)
    found = []
    for height, width in ((1, 1), (1, 40), (37, 1), (4, 5), (33, 57), (64, 64), (130, 90)):
        found += [rng.random((height, width)) < share for share in (0.02, 0.5, 0.97)]
        found += [np.zeros((height, width), bool), np.ones((height, width), bool)]
        single = np.zeros((height, width), bool)
        single[rng.integers(height), rng.integers(width)] = True
        y, x = np.mgrid[:height, :width]
        found += [single, ~single, (y - height / 2) ** 2 + (x - width / 3) ** 2 < 90]
    return found


def official(mask: np.ndarray) -> str:
    counts = coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]
    return counts.decode() if isinstance(counts, bytes) else counts


def test_strings_are_those_of_the_coco_tools() -> None:
    for mask in masks():
        text = rle.encode(mask)
        assert text == Rle(mask.shape, official(mask))
        assert np.array_equal(rle.decode(text), mask)
        theirs = coco.decode({"size": list(text.size), "counts": text.counts})
        assert np.array_equal(theirs.astype(bool), mask)


def test_many_at_once_equal_one_by_one() -> None:
    rng = np.random.default_rng(1)
    stack = rng.random((9, 31, 44)) < rng.random((9, 1, 1))
    stack[3], stack[4] = False, True
    assert rle.encode_many(stack) == [rle.encode(mask) for mask in stack]
    assert rle.encode_many(np.zeros((0, 5, 5), bool)) == []
    assert rle.encode(stack[0].astype(np.uint8) * 7) == rle.encode(stack[0])


def test_long_runs_need_many_characters() -> None:
    mask = np.zeros((3000, 2000), bool)
    mask[:, 1200:] = True
    mask[5, 7] = mask[2999, 1999] = True
    text = rle.encode(mask)
    assert text.counts == official(mask)
    assert np.array_equal(rle.decode(text), mask)


def test_ready_made_strings() -> None:
    """The two checks of SAM_SPEC 4."""
    text = Rle((1500, 2000), "RXXl0U1b]17M100O10O100O2O0O10001N100O10000O2O000O10001N1000000O10000O2O000O1000001N10001N10000O100000000O2O00000O100O101N101K[Pcl1")  # fmt: skip # noqa: E501
    assert rle.area(text) == 1904
    assert rle.box(text) == (617, 447, 676, 493)
    mask = np.zeros((4, 5), bool)
    mask[1:3, 1:4] = True
    assert rle.encode(mask).counts == "5220003"
    assert np.diff(rle.runs(rle.encode(mask)), prepend=0).tolist() == [5, 2, 2, 2, 2, 2, 5]


def test_a_genuine_record() -> None:
    path = SHARED / "fixtures" / "sa1b" / "annotation_292014182.json"
    if not path.exists():
        pytest.skip(f"{path} is not here: set SAMLIT_SHARED to the folder of real data")
    record = json.loads(path.read_bytes())
    text = Rle(tuple(record["segmentation"]["size"]), record["segmentation"]["counts"])
    x0, y0, x1, y1 = rle.box(text)
    assert rle.area(text) == record["area"] == rle.decode(text).sum()
    assert [x0, y0, x1 - 1 - x0, y1 - 1 - y0] == record["bbox"]
    assert rle.encode(rle.decode(text)) == text


def test_area_and_box() -> None:
    for mask in masks():
        text = rle.encode(mask)
        assert rle.area(text) == mask.sum()
        ys, xs = np.nonzero(mask)
        expected = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) if len(xs) else (0, 0, 0, 0)
        assert rle.box(text) == expected


@pytest.mark.parametrize("size", [(1, 1), (17, 9), (64, 64), (100, 31), (31, 200), (257, 255)])
def test_drawn_is_decoded_and_resized(size: tuple[int, int]) -> None:
    for mask in masks():
        truth = F.interpolate(torch.from_numpy(mask)[None, None].float(), size, mode="nearest-exact")[0, 0] > 0
        assert np.array_equal(rle.draw(rle.encode(mask), size), truth.numpy())


@pytest.mark.parametrize("size", [(1, 1), (7, 9), (64, 64), (31, 100)])
def test_a_window_is_decoded_cut_and_resized(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(3)
    for mask in masks():
        (y0, y1), (x0, x1) = (sorted(rng.choice(side + 1, 2, replace=False).tolist()) for side in mask.shape)
        cut = torch.from_numpy(mask)[None, None, y0:y1, x0:x1].float()
        truth = F.interpolate(cut, size, mode="nearest-exact")[0, 0] > 0
        assert np.array_equal(rle.draw(rle.encode(mask), size, (slice(y0, y1), slice(x0, x1))), truth.numpy())


def test_drawing_at_sizes_of_real_images() -> None:
    rng = np.random.default_rng(2)
    for height, width in rng.integers(900, 2300, (6, 2)).tolist():
        mask = np.kron(rng.random((12, 14)) < 0.5, np.ones((height // 12 + 1, width // 14 + 1), bool))[:height, :width]
        for long in (256, 1024):
            size = round(height * long / max(height, width)), round(width * long / max(height, width))
            truth = F.interpolate(torch.from_numpy(mask)[None, None].float(), size, mode="nearest-exact")[0, 0] > 0
            assert np.array_equal(rle.draw(rle.encode(mask), size), truth.numpy())


def test_uncompressed() -> None:
    assert rle.from_uncompressed([4, 5], [5, 2, 2, 2, 2, 2, 5]) == Rle((4, 5), "5220003")
    assert rle.from_uncompressed((2, 2), [0, 4]) == rle.encode(np.ones((2, 2), bool))
    for mask in masks():
        text = rle.encode(mask)
        assert rle.from_uncompressed(text.size, np.diff(rle.runs(text), prepend=0).tolist()) == text
    for counts in ([], [3], [5], [-1, 5], [2, 2.0], [True, 3], [0, 0, 0, 0, 0, 4], [10**30]):
        with pytest.raises(ValueError, match="RLE"):
            rle.from_uncompressed((2, 2), counts)


BAD = {
    "size of one number": Rle((4,), "04"),  # type: ignore[arg-type]
    "size of three": Rle((2, 2, 1), "04"),  # type: ignore[arg-type]
    "size of strings": Rle(("2", "2"), "04"),  # type: ignore[arg-type]
    "size of floats": Rle((2.0, 2), "04"),  # type: ignore[arg-type]
    "size of truths": Rle((True, 4), "04"),
    "size zero": Rle((0, 4), "0"),
    "size negative": Rle((-2, -2), "04"),
    "size huge": Rle((100_000, 100_000), "0"),
    "size huge together": Rle((65_536, 65_536), "0"),
    "size not a sequence": Rle(4, "04"),  # type: ignore[arg-type]
    "counts empty": Rle((2, 2), ""),
    "counts bytes": Rle((2, 2), b"04"),  # type: ignore[arg-type]
    "counts none": Rle((2, 2), None),  # type: ignore[arg-type]
    "character below": Rle((2, 2), "0/"),
    "character above": Rle((2, 2), "0p"),
    "character far": Rle((2, 2), "0é"),
    "unfinished": Rle((2, 2), "0T"),
    "endless number": Rle((2, 2), "P" * 9 + "0"),
    "number too long": Rle((20, 20), "0" + "o" * 8 + "0"),
    "negative run": Rle((2, 2), "0O5"),
    "negative by difference": Rle((4, 4), "111L0"),
    "too short": Rle((2, 2), "03"),
    "too long": Rle((2, 2), "05"),
    "too many runs": Rle((2, 2), "0000004"),
    "string far too long": Rle((2, 2), "0" * 1000),
    "sums wrap around": Rle((2, 2), "ooooooO" * 2),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_bad_strings_are_refused_in_one_line(bad: Rle) -> None:
    for use in (rle.runs, rle.decode, rle.area, rle.box, lambda text: rle.draw(text, (3, 3))):
        with pytest.raises(ValueError, match=r"^RLE [^\n]+$"):
            use(bad)


def test_any_string_is_a_mask_or_refused() -> None:
    rng = np.random.default_rng(3)
    sound = 0
    for _ in range(4000):
        size = tuple(rng.integers(1, 6, 2).tolist())
        text = (
            "".join(map(chr, rng.integers(47, 113, rng.integers(1, 9))))
            if rng.random() < 0.5
            else "".join(map(chr, rng.integers(48, 54, rng.integers(1, 7))))
        )
        try:
            ends = rle.runs(Rle(size, text))
        except ValueError:
            continue
        sound += 1
        assert ends[-1] == size[0] * size[1]
        assert (np.diff(ends, prepend=0) >= 0).all()
        assert rle.decode(Rle(size, text)).shape == size
    assert sound > 20


def test_bad_masks_are_refused() -> None:
    for shape in ((3,), (2, 3, 4), (0, 3), (3, 0)):
        with pytest.raises(ValueError, match=r"mask|RLE size"):
            rle.encode(np.zeros(shape, bool))
    with pytest.raises(ValueError, match="grid"):
        rle.draw(Rle((2, 2), "04"), (0, 3))
