"""GrabCut: a plain object is found, the same every time, and impossible boxes answer with themselves."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from samlit.evaluation.grabcut import grabcut, iou_from_boxes
from samlit.masks import rle
from samlit.structures import Batch
from samlit_sources.coco import Coco

SHARED = Path(os.environ.get("SAMLIT_SHARED") or Path(__file__).resolve().parents[2] / "shared" / "data")


@pytest.fixture
def disc():
    """A noisy yellow disc on noisy blue, and its mask."""
    y, x = np.mgrid[:60, :80]
    mask = (x - 38) ** 2 + (y - 30) ** 2 <= 15**2
    image = np.where(mask[..., None], (210, 190, 60), (40, 60, 150))
    image = image + np.random.default_rng(0).normal(0, 12, image.shape)
    return image.clip(0, 255).astype(np.uint8), mask


def iou(a, b):
    return (a & b).sum() / (a | b).sum()


@pytest.mark.parametrize("around", [None, 1.0])
def test_it_finds_the_disc_and_not_the_box(disc, around):
    image, truth = disc
    mask = grabcut(image, (23, 15, 53, 45), around)
    assert mask.shape == truth.shape
    assert mask.dtype == np.bool_
    assert iou(mask, truth) > 0.98
    assert not mask[:15].any()
    assert not mask[:, 54:].any()


def test_the_same_input_gives_the_same_mask(disc):
    image, _ = disc
    first = grabcut(image, (20.4, 12.0, 55.0, 47.6))
    cv2.setRNGSeed(99)
    cv2.randu(np.zeros((5, 5)), 0, 1)
    np.testing.assert_array_equal(first, grabcut(image, (20, 12, 55, 48)))


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((0, 0, 79, 59), (0, 0, 79, 59)),  # nothing outside
        ((-50, -50, 500, 500), (0, 0, 79, 59)),
    ],
)
def test_a_box_of_the_whole_image_is_its_own_answer(disc, box, expected):
    mask = grabcut(disc[0], box)
    x0, y0, x1, y1 = expected
    assert mask[y0 : y1 + 1, x0 : x1 + 1].all()
    assert mask.sum() == (x1 - x0 + 1) * (y1 - y0 + 1)


@pytest.mark.parametrize("around", [None, 0.5])
@pytest.mark.parametrize("box", [(5, 7, 5, 7), (0, 0, 0, 0), (79, 59, 79, 59), (0, 0, 79, 0), (10, 10, 11, 10)])
def test_tiny_boxes_answer_something_within_themselves(disc, box, around):
    mask = grabcut(disc[0], box, around)
    assert mask.any()
    x0, y0, x1, y1 = box
    mask[y0 : y1 + 1, x0 : x1 + 1] = False
    assert not mask.any()


def test_images_of_one_colour_or_one_pixel():
    flat = np.full((20, 30, 3), 77, np.uint8)
    assert grabcut(flat, (5, 5, 9, 9)).any()
    assert grabcut(flat[:1, :1], (0, 0, 0, 0)).all()


def test_what_opencv_refuses_or_empties_is_the_box(disc, monkeypatch):
    def refuse(*given):
        raise cv2.error("no")

    def empty(image, state, *given):
        state[:] = cv2.GC_BGD

    for behaviour in (refuse, empty):
        monkeypatch.setattr(cv2, "grabCut", behaviour)
        mask = grabcut(disc[0], (5, 6, 9, 8))
        assert mask.sum() == 15
        assert mask[6:9, 5:10].all()


@pytest.mark.parametrize("box", [(80, 0, 90, 5), (-9, 0, -5, 5), (9, 9, 5, 5), (0, 0, 5, np.nan), (1, 2, 3)])
def test_boxes_that_are_none_are_refused(disc, box):
    with pytest.raises(ValueError, match="box"):
        grabcut(disc[0], box)


def test_images_that_are_none_are_refused(disc):
    for image in (disc[0][..., 0], disc[0].astype(np.float32), disc[0][:0]):
        with pytest.raises(ValueError, match="uint8"):
            grabcut(image, (0, 0, 5, 5))


def test_iou_of_a_batch_ignores_padding_and_says_nan_for_no_pixel(disc):
    image, truth = disc
    frame = torch.zeros(2, 3, 96, 96, dtype=torch.uint8)
    frame[0, :, :60, :80] = frame[1, :, :60, :80] = torch.from_numpy(image).permute(2, 0, 1)
    frame[1, :, 60:] = 255  # what lies in the padding changes nothing
    masks = torch.zeros(3, 96, 96, dtype=torch.bool)
    masks[0, :60, :80] = masks[1, :60, :80] = torch.from_numpy(truth)
    sizes = torch.tensor([[60, 80], [60, 80]])
    batch = Batch(frame, sizes, sizes, masks, torch.tensor([0, 1, 1]))
    out = iou_from_boxes(batch)
    assert out.shape == (3,)
    assert out.dtype == torch.float32
    assert out[0] == out[1]
    assert out[0] == pytest.approx(iou(grabcut(image, (23, 15, 53, 45)), truth))
    assert out[2].isnan()
    none = Batch(frame, sizes, sizes, masks[:0], torch.zeros(0, dtype=torch.int64))
    assert iou_from_boxes(none).shape == (0,)


def test_on_real_nuclei_it_beats_the_box():
    file = SHARED / "nuclei" / "val" / "annotations.json"
    if not file.exists():
        pytest.skip(f"{file} is not here: set SAMLIT_SHARED to the folder of real data")
    sample = Coco(str(file))[0]
    ours, boxes = [], []
    for string in sample.masks[:12]:
        truth = rle.decode(string)
        x0, y0, x1, y1 = rle.box(string)
        box = np.zeros_like(truth)
        box[y0:y1, x0:x1] = True
        ours.append(iou(grabcut(sample.pixels(), (x0, y0, x1 - 1, y1 - 1), 1.0), truth))
        boxes.append(iou(box, truth))
    assert np.mean(ours) > np.mean(boxes)
