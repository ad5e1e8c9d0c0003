"""Samples in the frame: pixel for pixel what whole masks and whole images would give, or as near as is promised."""

import io
import pickle
from dataclasses import dataclass, field

import cv2
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional as F

from samlit.loading import frames, images
from samlit.loading.augment import Augment
from samlit.loading.images import Encoded
from samlit.masks import rle
from samlit.source import Sample


def scenery(rows, columns, seed=0):
    """As much detail in each octave as photographs have, and edges."""
    chance = np.random.default_rng(seed)
    image = np.full((rows, columns, 3), 120, np.float32)
    for octave in range(1, 8):
        scale = 2**octave
        noise = chance.normal(0, 1, (rows // scale + 2, columns // scale + 2, 3)).astype(np.float32)
        image += 2 * octave * cv2.resize(noise, (columns, rows), interpolation=cv2.INTER_CUBIC)
    image[rows // 4 : rows // 2, columns // 5 : columns // 2] += 40
    return (image + chance.normal(0, 2, image.shape)).clip(0, 255).astype(np.uint8)


def jpeg(image, **options):
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=90, **options)
    return Encoded(stream.getvalue(), image.shape[:2])


def psnr(found, expected):
    error = np.square(found.astype(float) - expected).mean()
    return 10 * np.log10(255**2 / max(error, 1e-9))


def nearest(mask, size, window):
    """Torch's; None where a pixel's centre lies between two pixels and torch's own ways to compute it differ."""
    cut = torch.from_numpy(mask[window].copy()).float()[None, None].expand(1, 4, -1, -1)
    one, other = (
        F.interpolate(cut.contiguous(memory_format=order), size, mode="nearest-exact")[0, 0].numpy() > 0
        for order in (torch.contiguous_format, torch.channels_last)
    )
    return one if np.array_equal(one, other) else None


@dataclass
class Case:
    names: list
    masks: list = field(repr=False)
    size: tuple
    window: tuple
    grid: tuple


@st.composite
def masks_and_grids(draw):
    """Masks of one size, of noise, smooth, full, empty and striped, a window of them, and a grid."""
    rows, columns = draw(st.integers(1, 90)), draw(st.integers(1, 90))
    chance = np.random.default_rng(draw(st.integers(0, 2**32)))
    y, x = np.mgrid[:rows, :columns]
    kinds = {
        "noise": chance.random((rows, columns)) < draw(st.sampled_from([0.02, 0.5, 0.98])),
        "disc": (y - chance.uniform(0, rows)) ** 2 + (x - chance.uniform(0, columns)) ** 2 < (rows / 3) ** 2,
        "ring": abs(np.hypot(y - rows / 2, x - columns / 2) - min(rows, columns) / 3) < 2,
        "full": np.ones((rows, columns), bool),
        "empty": np.zeros((rows, columns), bool),
        "columns": np.broadcast_to(x % 3 == 1, (rows, columns)),
        "rows": np.broadcast_to(y % 2 == 0, (rows, columns)),
        "left": x < columns // 2,
    }
    names = draw(st.lists(st.sampled_from(sorted(kinds)), max_size=6))
    y0, x0 = draw(st.integers(0, rows - 1)), draw(st.integers(0, columns - 1))
    window = slice(y0, draw(st.integers(y0 + 1, rows))), slice(x0, draw(st.integers(x0 + 1, columns)))
    grid = draw(st.integers(1, 130)), draw(st.integers(1, 130))
    return Case(names, [kinds[name] for name in names], (rows, columns), window, grid)


@settings(max_examples=250, deadline=None)
@given(masks_and_grids())
def test_masks_are_decoded_cut_and_resized_pixel_for_pixel(case):
    strings = list(map(rle.encode, case.masks))
    for found, mask in zip(rle.sketch(strings, case.grid, case.window), case.masks, strict=True):
        expected = nearest(mask, case.grid, case.window)
        assume(expected is not None)
        grid = np.zeros(case.grid, np.uint8)
        found.draw(grid)
        assert np.array_equal(grid, expected)
        assert found.area == expected.sum()


@settings(max_examples=60, deadline=None)
@given(masks_and_grids(), st.integers(0, 3), st.booleans())
def test_any_view_can_be_drawn_into(case, quarters, mirrored):
    strings = list(map(rle.encode, case.masks))
    for found, mask in zip(rle.sketch(strings, case.size), case.masks, strict=True):
        moved = np.rot90(mask[:, ::-1] if mirrored else mask, quarters)
        rows, columns = moved.shape
        frame = np.zeros((200, 210), np.uint8)
        view = np.rot90(frame[:rows, :columns], -quarters)
        found.draw(view[:, ::-1] if mirrored else view)
        assert np.array_equal(frame, np.pad(moved, [(0, 200 - rows), (0, 210 - columns)]))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(st.sampled_from("0123456789:;?@NOPQTo"), min_size=1, max_size=6), min_size=1, max_size=4))
def test_strings_read_together_are_those_read_alone(texts):
    alone = []
    for text in texts:
        try:
            alone.append(rle.decode(rle.Rle((3, 4), text)))
        except ValueError:
            with pytest.raises(ValueError, match=r"^RLE "):
                rle.sketch([rle.Rle((3, 4), t) for t in texts], (3, 4))
            return
    for found, mask in zip(rle.sketch([rle.Rle((3, 4), t) for t in texts], (3, 4)), alone, strict=True):
        grid = np.zeros((3, 4), np.uint8)
        found.draw(grid)
        assert np.array_equal(grid, mask)


def test_boxes_together_are_those_alone():
    chance = np.random.default_rng(0)
    masks = [chance.random((31, 44)) < share for share in (0, 0.001, 0.01, 0.6, 1)]
    masks[1][:, 3] = True
    strings = list(map(rle.encode, masks))
    for box, string, mask in zip(rle.boxes(strings).tolist(), strings, masks, strict=True):
        ys, xs = np.nonzero(mask)
        expected = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1] if len(xs) else [0, 0, 0, 0]
        assert box == list(rle.box(string)) == expected
    assert rle.boxes([]).shape == (0, 4)
    with pytest.raises(ValueError, match="several sizes"):
        rle.boxes([strings[0], rle.encode(np.ones((2, 2)))])


@pytest.mark.parametrize(("rows", "columns"), [(600, 900), (601, 899), (512, 640)])
@pytest.mark.parametrize("side", [400, 320, 256, 128, 96, 1024])
def test_a_training_picture_is_near_pillows_of_all_pixels(rows, columns, side):
    sample = Sample("a", jpeg(scenery(rows, columns)), ())
    exact = frames.frame(sample, side)
    pixels = Image.fromarray(sample.pixels())
    h, w = images.fit(rows, columns, side)
    assert np.array_equal(exact.picture, pixels.resize((w, h), Image.Resampling.BILINEAR))
    fast = frames.frame(sample, side, exact=False)
    assert fast.size == exact.size
    assert psnr(fast.picture, exact.picture) > 41


@pytest.mark.parametrize("window", [(3, 403, 5, 505), (100, 611, 211, 722), (0, 607, 0, 607), (8, 408, 16, 816)])
@pytest.mark.parametrize("side", [100, 48, 300])
def test_a_window_is_that_part_of_the_whole(window, side):
    y0, y1, x0, x1 = window
    sample, seen = Sample("a", jpeg(scenery(611, 905)), ()), (slice(y0, y1), slice(x0, x1))
    exact, fast = (frames.frame(sample, side, window=seen, exact=exact) for exact in (True, False))
    h, w = images.fit(y1 - y0, x1 - x0, side)
    cut = Image.fromarray(np.ascontiguousarray(sample.pixels()[seen]))
    assert np.array_equal(exact.picture, cut.resize((w, h), Image.Resampling.BILINEAR))
    assert fast.original == exact.original == (y1 - y0, x1 - x0)
    assert psnr(fast.picture, exact.picture) > 38


@pytest.mark.parametrize("window", [None, (slice(3, 90), slice(10, 138))])
def test_what_is_not_resized_is_the_same_to_the_bit(window):
    sample = Sample("a", jpeg(scenery(90, 160)), ())
    side = 160 if window is None else 128
    exact, fast = (frames.frame(sample, side, window=window, exact=exact) for exact in (True, False))
    assert np.array_equal(exact.picture, sample.pixels()[window or ...])
    assert np.array_equal(fast.picture, exact.picture)


def discs(count=9, rows=60, columns=80, seed=0):
    chance = np.random.default_rng(seed)
    y, x = np.mgrid[:rows, :columns]
    at = chance.integers((0, 0, 5), (rows, columns, 30), (count, 3)).tolist()
    masks = [(y - a) ** 2 + (x - b) ** 2 < r * r for a, b, r in at]
    return Sample(f"{seed}", scenery(rows, columns, seed), tuple(map(rle.encode, masks)), tuple(map(str, range(count))))


def test_masks_of_no_use_take_no_others_place():
    sample = discs(20)
    tiny = np.zeros((60, 80), bool)
    tiny[1, 1] = True
    strings = [rle.encode(m) for m in (tiny, np.ones((60, 80), bool), np.zeros((60, 80), bool))]
    good = sample.masks
    sample = Sample("a", sample.image, tuple(strings * 10) + good, tuple(map(str, range(50))))
    seen = set()
    for seed in range(30):
        framed = Augment().frame(sample, 16, 6, np.random.default_rng(seed), 0.9)
        numbers = [int(phrase) for phrase in framed.phrases]
        assert len(numbers) == 6
        assert numbers == sorted(numbers)
        assert min(numbers) >= 30
        seen.update(numbers)
        area = framed.masks.sum((1, 2))
        assert ((area > 0) & (area <= 0.9 * 12 * 16)).all()
        for k, mask in zip(numbers, framed.masks, strict=True):
            assert np.array_equal(mask[:12], rle.draw(sample.masks[k], (12, 16)))
    assert seen == set(range(30, 50))
    assert len(Augment().frame(sample, 16, 64, np.random.default_rng(0), 0.9).strokes) == 20
    assert len(Augment().frame(sample, 16, 64, np.random.default_rng(0)).strokes) == 30


def test_where_no_mask_is_of_no_use_the_drawn_ones_are_the_first_of_a_permutation():
    sample = discs(20)
    for seed in range(10):
        framed = Augment().frame(sample, 32, 6, np.random.default_rng(seed), 0.9)
        expected = sorted(np.random.default_rng(seed).permutation(np.arange(20))[:6].tolist())
        assert [int(phrase) for phrase in framed.phrases] == expected


def test_a_batch_is_its_samples():
    augment = Augment(flip=0.5, turn=True, color=0.3)
    framed = [augment.frame(discs(k, seed=k), 33, 5, np.random.default_rng(k)) for k in (3, 0, 9, 7)]
    assert {f.quarters % 2 for f in framed} == {0, 1}
    framed = pickle.loads(pickle.dumps(framed))
    batch = frames.pack(framed)
    assert batch.image.shape == (4, 3, 33, 33)
    assert batch.masks.shape == (sum(len(f.strokes) for f in framed), 33, 33)
    assert batch.masks.dtype == torch.bool
    assert batch.image.is_contiguous()
    assert batch.masks.is_contiguous()
    for number, one in enumerate(framed):
        assert np.array_equal(batch.image[number].permute(1, 2, 0), one.image)
        assert np.array_equal(batch.masks[batch.image_index == number], one.masks)
        assert batch.sizes[number].tolist() == list(one.size)
        assert batch.original[number].tolist() == list(one.original)
        assert [p for p, i in zip(batch.phrases, batch.image_index, strict=True) if i == number] == list(one.phrases)


def test_what_crosses_from_a_worker_is_a_fraction_of_the_batch():
    chance = np.random.default_rng(0)
    y, x = np.mgrid[:600, :900]
    discs = [(x - a) ** 2 + (y - b) ** 2 < 90**2 for a, b in chance.integers(0, 600, (32, 2))]
    sample = Sample("a", chance.integers(0, 255, (600, 900, 3), np.uint8), tuple(rle.encode_many(np.stack(discs))))
    framed = frames.frame(sample, 512)
    batch = frames.pack([framed])
    assert len(pickle.dumps(framed)) < (batch.image.nbytes + batch.masks.nbytes) / 6


def test_a_pinned_batch_is_packed_into_pinned_memory(monkeypatch):
    asked = []
    zeros = torch.zeros

    def recorded(*shape, pin_memory=False, **others):
        asked.append(pin_memory)
        return zeros(*shape, **others)  # a machine without a GPU has none

    monkeypatch.setattr(torch, "zeros", recorded)
    framed = [frames.frame(discs(k, seed=k), 32) for k in (0, 3)]
    pinned = frames.pack(framed, pinned=True)
    assert asked == [True, True]
    plain = frames.pack(framed)
    assert asked == [True, True]
    assert torch.equal(pinned.image, plain.image)
    assert torch.equal(pinned.masks, plain.masks)


def test_light_changes_as_one_map_of_colours():
    image = np.random.default_rng(0).integers(90, 150, (40, 60, 3), np.uint8)
    seen = []
    for seed in range(20):
        plain, lit = (
            Augment(color=c).frame(Sample("a", image, ()), 60, 1, np.random.default_rng(seed)) for c in (0, 0.3)
        )
        chance = np.random.default_rng(seed)
        chance.permutation(np.arange(0))
        brightness, contrast, saturation = (1 + 0.3 * chance.uniform(-1, 1) for _ in range(3))
        x = plain.picture.astype(float) * brightness
        weights = np.array([0.299, 0.587, 0.114])
        x = contrast * x + (1 - contrast) * (x @ weights).mean()
        x = saturation * x + (1 - saturation) * (x @ weights)[..., None]
        assert np.abs(lit.picture - x.clip(0, 255)).max() <= 1
        seen.append(lit.picture.mean())
    assert np.std(seen) > 5
