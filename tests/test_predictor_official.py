"""The predictor against the released one: with equal random weights, and with MobileSAM's on photographs."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from segment_anything import SamPredictor

from samlit.evaluation.evaluate import evaluate
from samlit.masks import clicks, rle
from samlit.metrics import mask_iou
from samlit.predictor import Predictor
from samlit_sources.coco import Coco
from samlit_tasks.boxes import Boxes as BoxTask
from samlit_tasks.points import Points as PointTask
from tests import official

SHARED = Path(os.environ.get("SAMLIT_SHARED") or Path(__file__).resolve().parents[2] / "shared" / "data")
MOBILE_SAM = SHARED.parent / "weights" / "mobile_sam.pt"
needs_mobile_sam = pytest.mark.skipif(
    not MOBILE_SAM.is_file(), reason=f"{MOBILE_SAM} is not here: SAMLIT_SHARED names the folder of real data beside it"
)
SIZES = [(40, 100), (100, 37), (64, 64), (20, 64), (31, 17), (333, 500)]


def picture(rows, columns, seed=0):
    small = np.random.default_rng(seed).integers(0, 256, (-(-rows // 5), -(-columns // 5), 3), np.uint8)
    return small.repeat(5, 0).repeat(5, 1)[:rows, :columns]


def asked(rows, columns):
    """Prompts at shares of an image's sides: samlit's, and the released predictor's for the same."""

    def at(x, y):
        return x * columns, y * rows

    one, two, box = at(0.3, 0.6), at(0.71, 0.2), (*at(0.1, 0.2), *at(0.8, 0.93))
    points = {"point_coords": np.array([one, two]), "point_labels": np.array([1, 0])}
    first = {"point_coords": np.array([two]), "point_labels": np.array([1])}
    return {
        "a point": ({"points": [(*two, 1)]}, first | {"multimask_output": True}),
        "points": ({"points": [(*one, 1), (*two, 0)]}, points | {"multimask_output": False}),
        "a box": ({"boxes": [box]}, {"box": np.array(box), "multimask_output": True}),
        "all": (
            {"points": [(*one, 1), (*two, 0)], "boxes": [box]},
            points | {"box": np.array(box), "multimask_output": False},
        ),
    }


def assert_equal(found, full, iou, logits):
    """An answer of ours, most confident first, against the released predictor's three arrays, masks as logits.

    Low-res logits may differ by rounding, which differs between processors, and so may pixels that are as near to zero.
    """
    order = np.argsort(-iou)
    near = 1e-5 * np.abs(logits).max()
    np.testing.assert_allclose(found.iou, iou[order], atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(found.low_res_logits, logits[order], atol=near, rtol=0)
    for mine, theirs in zip(found.masks.numpy(), full[order], strict=True):
        assert mine.shape == theirs.shape
        sure = np.abs(theirs) > near
        assert (~sure).sum() <= 1 + 1e-3 * sure.size
        assert np.array_equal(mine[sure], theirs[sure] > 0)


@pytest.fixture(scope="module")
def both():
    released, own = official.small()
    return SamPredictor(released), Predictor(own, 64)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_answers_are_those_of_the_released_predictor(both, size):
    released, own = both
    released.set_image(picture(*size))
    own.set_image(picture(*size))
    np.testing.assert_allclose(own.embedding.embedding.image, released.features, atol=2e-4, rtol=1e-3)
    given = asked(*size)
    several = list(own.predict_each([ours for ours, _ in given.values()]))
    filled = []
    for (ours, theirs), again in zip(given.values(), several, strict=True):
        full, iou, logits = released.predict(**theirs, return_logits=True)
        found = own.predict(ours)
        assert_equal(found, full, iou, logits)
        assert_equal(again, full, iou, logits)
        filled.append((full > 0).mean())
        # And on from there, with the best answer's logits as they are.
        best = int(iou.argmax())
        more = theirs | {"mask_input": logits[best][None], "multimask_output": False}
        wanted = released.predict(**more, return_logits=True)
        assert_equal(own.predict(ours | {"masks": [found.prompt()]}), *wanted)
    assert 0.02 < np.mean(filled) < 0.98


def test_boxes_of_one_image_are_answered_as_by_predict_torch(both):
    released, own = both
    size = (80, 120)
    released.set_image(picture(*size))
    own.set_image(picture(*size))
    boxes = torch.tensor([[3.0, 4, 30, 50], [20, 20, 90, 70], [0, 0, 119, 79], [60, 5, 70, 9]])
    moved = released.transform.apply_boxes_torch(boxes, size)
    answers = released.predict_torch(None, None, moved, multimask_output=True, return_logits=True)
    full, iou, logits = (x.numpy() for x in answers)
    found = own.predict_each([{"boxes": [box]} for box in boxes], at_once=3)
    for i, answer in enumerate(found):
        assert_equal(answer, full[i], iou[i], logits[i])
    assert i == 3


def measured(source, count, most, released, own):
    """Box and one-point mIoU, released and ours, checking answer by answer.

    Over images spread evenly over a source, and the largest masks of each.
    """
    ious = {"box": [], "point": []}
    for index in range(0, len(source), -(-len(source) // count)):
        sample = source[index]
        largest = sorted(sample.masks, key=rle.area, reverse=True)[:most]
        truth = torch.from_numpy(np.stack([rle.decode(mask) for mask in largest])).bool()
        own.set_image(sample.pixels())
        released.set_image(sample.pixels())
        np.testing.assert_allclose(own.embedding.embedding.image, released.features, atol=1e-4, rtol=1e-3)
        xy, label, _ = clicks.centre(truth, torch.zeros_like(truth))
        boxes = [[x0, y0, x1 - 1, y1 - 1] for x0, y0, x1, y1 in map(rle.box, largest)]
        prompts = [{"boxes": [box]} for box in boxes]
        prompts += [{"points": [(*p, 1)]} for p in xy.tolist()]
        assert label.all()
        for i, answer in enumerate(own.predict_each(prompts)):
            which, kind = i % len(truth), "box" if i < len(truth) else "point"
            if kind == "box":
                theirs = released.predict(box=np.array(boxes[which]))
            else:
                theirs = released.predict(point_coords=xy[which : which + 1].numpy(), point_labels=np.array([1]))
            masks = torch.from_numpy(theirs[0])[torch.from_numpy(theirs[1]).argsort(descending=True)]
            assert mask_iou(answer.masks, masks).min() > 0.999
            assert torch.allclose(answer.iou, torch.from_numpy(theirs[1]).sort(descending=True).values, atol=1e-3)
            pair = torch.stack([masks[0], answer.masks[0]])
            ious[kind].append(mask_iou(pair, truth[which].expand_as(pair)))
    return {kind: torch.stack(rows).mean(0).tolist() for kind, rows in ious.items()}


@pytest.fixture(scope="module")
def mobile():
    released, own = official.mobile(MOBILE_SAM)
    return SamPredictor(released), Predictor(own, 1024)


def photographs(name):
    file = SHARED / name / "annotations.json"
    if not file.is_file():
        pytest.skip(f"needs {name}, which is not here: set SAMLIT_SHARED")
    return Coco(str(file), empty=False)


def clicked(released, truth):
    """IoU of the released predictor's answers to a box and to three clicks, each where the last answer is wrong."""
    x0, y0, x1, y1 = rle.box(rle.encode(truth))
    masks, iou, _ = released.predict(box=np.array([x0, y0, x1 - 1, y1 - 1]))
    each = [(mask & truth).sum() / (mask | truth).sum() for mask in masks]
    found = {"box": each[iou.argmax()], "box_best": max(each)}
    only = released.predict(box=np.array([x0, y0, x1 - 1, y1 - 1]), multimask_output=False)[0][0]
    found["one"] = (only & truth).sum() / (only | truth).sum()
    predicted, points, logits = np.zeros_like(truth), [], None
    for count, name in enumerate(("1_click", "2_clicks", "3_clicks")):
        xy, label, wrong = clicks.centre(torch.from_numpy(truth)[None], torch.from_numpy(predicted)[None])
        if wrong[0]:
            points.append((*xy[0].tolist(), int(label)))
        given = np.array(points)
        masks, iou, low = released.predict(given[:, :2], given[:, 2], mask_input=logits, multimask_output=not count)
        each = [(mask & truth).sum() / (mask | truth).sum() for mask in masks]
        if not count:
            found["1_click_best"] = max(each)
        predicted, logits, found[name] = masks[iou.argmax()], low[iou.argmax()][None], each[iou.argmax()]
    return found


@needs_mobile_sam
def test_points_and_boxes_are_judged_as_with_the_released_predictor(mobile):
    released, own = mobile
    source = photographs("food/train")
    released.set_image(source[0].pixels())
    rows = [clicked(released, np.ascontiguousarray(rle.decode(mask))) for mask in source[0].masks]
    expected = {name: np.mean([row[name] for row in rows]) for name in rows[0]}
    found = {}
    for task in (PointTask((1, 2, 3)), BoxTask()):
        judged = evaluate(own.net, 1024, task, source, limit=1)
        assert judged.masks == len(rows) > 5
        found |= judged.numbers
    found["one"] = evaluate(own.net, 1024, BoxTask(multimask=False), source, limit=1).numbers["box"]
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-3)


@pytest.mark.slow
@needs_mobile_sam
@pytest.mark.parametrize(
    ("name", "count", "most", "box", "point"), [("food/train", 5, 8, 0.92, 0.74), ("nuclei/val", 3, 6, 0.88, 0.85)]
)
def test_mobile_sam_answers_as_released(mobile, name, count, most, box, point):
    found = measured(photographs(name), count, most, *mobile)
    for kind, floor in (("box", box), ("point", point)):
        theirs, ours = found[kind]
        assert abs(theirs - ours) < 0.005
        assert ours > floor


TRUCK = SHARED.parent / "weights" / "truck.jpg"


@pytest.mark.skipif(not TRUCK.is_file(), reason=f"{TRUCK} is not here: it is the photograph of the official notebooks")
@needs_mobile_sam
def test_the_truck_of_the_official_notebooks():
    """What the released code answers with MobileSAM's weights, encoder and all; measured with it, not with samlit."""
    predictor = Predictor.load(MOBILE_SAM)
    predictor.set_image(TRUCK)
    answer = predictor.predict({"points": [(500, 375, 1)]}, multimask=True)
    np.testing.assert_allclose(answer.iou, [0.99984, 0.98688, 0.90225], atol=1e-5)
    assert answer.masks.sum((1, 2)).tolist() == [23596, 48130, 614481]
