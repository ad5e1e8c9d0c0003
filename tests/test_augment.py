"""What chance does to a training image: its masks follow it, its padding stays, and what is off changes nothing."""

from dataclasses import replace

import numpy as np
import pytest

from samlit.loading import frames, images
from samlit.loading.augment import Augment
from samlit.masks import rle
from samlit.source import Sample

SIDE = 32


def scene(rows=48, columns=64, discs=((12, 12, 6), (34, 44, 9), (10, 52, 4))):
    """White discs on black, a mask and a phrase each."""
    y, x = np.mgrid[:rows, :columns]
    masks = [(y - cy) ** 2 + (x - cx) ** 2 <= r * r for cy, cx, r in discs]
    image = np.zeros((rows, columns, 3), np.uint8)
    image[np.any(masks, 0) if masks else np.zeros((rows, columns), bool)] = 250
    return Sample("discs", image, tuple(map(rle.encode, masks)), tuple(f"disc {i}" for i in range(len(masks))))


def drawn(augment, count=60, sample=None, max_masks=64):
    sample = sample or scene()
    return [augment.frame(sample, SIDE, max_masks, np.random.default_rng(i)) for i in range(count)]


def picture(framed):
    h, w = framed.size
    return framed.image[:h, :w]


def agree(framed):
    """Share of the picture's pixels where the union of the masks is what is bright."""
    h, w = framed.size
    return ((picture(framed)[..., 0] > 125) == framed.masks.any(0)[:h, :w]).mean()


def padding_is_black(framed):
    h, w = framed.size
    return not (framed.image[h:].any() or framed.image[:, w:].any() or framed.masks[:, h:].any()) and not (
        framed.masks[:, :, w:].any()
    )


def test_by_default_nothing_changes():
    sample = scene()
    plain = frames.frame(sample, SIDE)
    for framed in drawn(Augment(), 5, sample):
        assert np.array_equal(framed.image, plain.image)
        assert np.array_equal(framed.masks, plain.masks)
        assert (framed.size, framed.original, framed.phrases) == (plain.size, plain.original, plain.phrases)


@pytest.mark.parametrize(("chance", "low", "high"), [(0.0, 0, 0), (0.5, 15, 45), (1.0, 60, 60)])
def test_flips_mirror_the_picture_and_its_masks(chance, low, high):
    plain, flipped = frames.frame(scene(), SIDE), 0
    for framed in drawn(Augment(flip=chance)):
        is_plain = np.array_equal(framed.image, plain.image)
        assert is_plain or np.array_equal(picture(framed), picture(plain)[:, ::-1])
        assert agree(framed) > 0.95
        assert padding_is_black(framed)
        flipped += not is_plain
    assert low <= flipped <= high


def test_turns_are_quarters_and_the_padding_stays_right_and_below():
    plain, seen = frames.frame(scene(), SIDE), set()
    for framed in drawn(Augment(turn=True)):
        (quarters,) = (k for k in range(4) if np.array_equal(picture(framed), np.rot90(picture(plain), k)))
        assert framed.size == (plain.size if quarters % 2 == 0 else plain.size[::-1])
        assert framed.original == (plain.original if quarters % 2 == 0 else plain.original[::-1])
        assert agree(framed) > 0.95
        assert padding_is_black(framed)
        seen.add(quarters)
    assert seen == {0, 1, 2, 3}


def test_zooming_in_shows_a_square_around_a_mask_and_the_masks_in_it():
    sides, counts = [], set()
    for framed in drawn(Augment(zoom=(2, 4))):
        bright = framed.image[..., 0] > 125  # also where a disc is whose middle is outside
        assert bright[framed.masks.any(0)].mean() > 0.95
        assert framed.masks.any((1, 2)).all()
        assert framed.size == (SIDE, SIDE)
        assert framed.phrases
        assert len(framed.phrases) == len(framed.masks)
        sides.append(framed.original[0])
        counts.add(len(framed.masks))
    assert min(sides) >= 16
    assert max(sides) <= 32
    assert 20 < np.exp(np.log(sides).mean()) < 25  # even on a logarithmic scale: the middle is 64 / sqrt(8)
    assert counts >= {1, 2}


def test_one_disc_is_the_same_in_the_zoomed_picture_and_its_mask():
    for framed in drawn(Augment(zoom=(1, 3), flip=0.5, turn=True), sample=scene(discs=[(20, 30, 9)])):
        assert agree(framed) > 0.96
        assert len(framed.masks) == 1


def test_every_mask_has_its_turn_and_a_mask_whose_middle_is_outside_has_none():
    seen = set()
    for framed in drawn(Augment(zoom=(8, 8))):
        assert framed.original == (8, 8)
        seen.update(framed.phrases)
        for phrase, mask in zip(framed.phrases, framed.masks, strict=True):
            assert (phrase, bool(mask.any())) in {(f"disc {i}", True) for i in range(3)}
    assert seen == {"disc 0", "disc 1", "disc 2"}


def test_zooming_out_fills_a_part_of_the_frame():
    longest = set()
    for framed in drawn(Augment(zoom=(0.25, 0.5))):
        h, w = framed.size
        assert (h, w) == images.fit(48, 64, w)
        assert padding_is_black(framed)
        assert framed.original == (48, 64)
        assert len(framed.masks) == 3
        longest.add(w)
    assert min(longest) >= 8
    assert max(longest) <= 16
    assert len(longest) > 4


def test_an_image_without_masks_is_zoomed_too():
    for framed in drawn(Augment(zoom=(2, 2)), 5, scene(discs=[])):
        assert framed.original == (32, 32)
        assert framed.masks.shape == (0, SIDE, SIDE)


def test_a_window_higher_than_the_image_shows_all_its_rows():
    for framed in drawn(Augment(zoom=(1.5, 1.5)), 10, scene(rows=20, discs=[(10, 30, 5)])):
        assert framed.original == (20, 43)
        assert padding_is_black(framed)


def test_at_most_so_many_masks_are_drawn():
    assert {len(framed.masks) for framed in drawn(Augment(zoom=(1, 2)), max_masks=1)} == {1}


def test_colours_change_and_masks_and_padding_do_not():
    sample = scene()
    chance = np.random.default_rng(0)
    sample = replace(sample, image=chance.integers(100, 140, sample.image.shape, np.uint8))
    plain = frames.frame(sample, SIDE)
    means = []
    for framed in drawn(Augment(color=0.4), sample=sample):
        assert np.array_equal(framed.masks, plain.masks)
        assert padding_is_black(framed)
        means.append(picture(framed).mean() / picture(plain).mean())
    assert 0.59 < min(means) < 0.75
    assert 1.25 < max(means) < 1.41


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"zoom": (4, 1)}, "zoom"), ({"zoom": (0, 1)}, "zoom"), ({"zoom": (1, float("inf"))}, "zoom"),
     ({"flip": 1.5}, "flip"), ({"flip": -0.1}, "flip"), ({"color": 2.0}, "color")],
)  # fmt: skip
def test_what_is_no_range_is_refused(wrong, said):
    with pytest.raises(ValueError, match=f"^{said}: "):
        Augment(**wrong)
