"""Masks judged at their images' own size: clicks by RITM's rule, points, boxes; and every such task from the shell."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from samlit import cli
from samlit.evaluation.originals import Truths
from samlit.loop import drive
from samlit.masks import rle, tracing
from samlit.source import Sample
from samlit.structures import Prediction
from samlit_tasks.boxes import Boxes as BoxTask
from samlit_tasks.points import Points as PointTask
from tests.clicking import SIDE, Noisy, samples, scene

# RITM's rule.


def plain(truth, predicted, clicked):
    """The rule of the paper's code as it is described, step by step, over the whole image; (x, y), label."""
    depths = []
    for wrong in (truth & ~predicted, predicted & ~truth):
        padded = np.pad(wrong, 1)
        squared = np.rint(ndimage.distance_transform_edt(padded) ** 2).astype(int)[1:-1, 1:-1]
        depths.append(squared * ~clicked)
    missed, extra = depths
    label = int(missed.max() > extra.max())
    depth = missed if label else extra
    rows, columns = np.where(depth == depth.max())
    return (int(columns[0]), int(rows[0])), label


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.tuples(st.integers(1, 24), st.integers(1, 31)), st.sampled_from([0.05, 0.4, 0.9]))
def test_clicks_are_those_of_ritms_rule(seed, size, share):
    chance = np.random.default_rng(seed)
    blobs = [ndimage.uniform_filter(chance.random(size), 1 + 2 * (seed % 3)) for _ in range(2)]
    truth, predicted = (blob > np.quantile(blob, 1 - share) for blob in blobs)
    sample = Sample("one", np.zeros((*size, 3), np.uint8), (rle.encode(truth),))
    truths = Truths(scene([sample]))
    clicked, given_ = np.zeros(size, bool), []
    for _ in range(6):
        (x, y), label = plain(truth, predicted, clicked)
        found = truths.click(0, rle.encode(predicted), given_)
        wrong_left = ((truth ^ predicted) & ~clicked).any()
        assert found == ((x, y, label) if wrong_left else None)
        if not wrong_left:
            assert (x, y, label) == (0, 0, 0)  # where RITM's rule clicks then, and so does the task
        clicked[y, x] = True
        given_.append((x, y, label))


def test_an_error_at_the_border_is_as_deep_as_its_distance_to_it():
    truth = np.zeros((9, 20), bool)
    truth[:, :4] = True  # 4 wide at the border: 2 deep, and no deeper
    predicted = np.zeros_like(truth)
    predicted[2:7, 10:15] = True  # 3 deep
    sample = Sample("one", np.zeros((9, 20, 3), np.uint8), (rle.encode(truth),))
    truths = Truths(scene([sample]))
    assert truths.click(0) == (1, 1, 1)
    assert truths.click(0, rle.encode(predicted)) == (12, 4, 0)
    assert truths.click(0, rle.encode(predicted), [(12, 4, 0)]) == (11, 3, 0)  # now both are 2 deep
    assert truths.click(0, rle.encode(truth)) is None


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.tuples(st.integers(1, 20), st.integers(1, 20)))
def test_iou_is_that_of_pixels(seed, size):
    chance = np.random.default_rng(seed)
    truth, answer = (chance.random(size) < chance.choice([0, 0.1, 0.6]) for _ in range(2))
    truths = Truths(scene([Sample("one", np.zeros((*size, 3), np.uint8), (rle.encode(truth),))]))
    either = (truth | answer).sum()
    assert truths.iou(0, rle.encode(answer)) == ((truth & answer).sum() / either if either else 1.0)


def test_random_first_clicks_are_anywhere_in_the_mask_and_do_not_depend_on_the_batch():
    first, second = samples()
    both, alone = Truths(scene([first, second])), Truths(scene([second]))
    assert [both.anywhere(k, 3) for k in (3, 4, 5)] == [alone.anywhere(k, 3) for k in (0, 1, 2)]
    mask = rle.decode(second.masks[0])
    seen = {alone.anywhere(0, seed) for seed in range(60)}
    assert len(seen) > 40
    assert all(mask[y, x] and label == 1 for x, y, label in seen)


# Points and boxes.


def at_own_size(view, logits, k):
    """The mask of low-res logits at the size of mask k's image."""
    image = view.batch.samples[int(view.image_index[k])]
    return (tracing.enlarge(logits[None], SIDE, image.size)[0] > 0).numpy()


def iou(a, b):
    return (a & b).sum() / (a | b).sum()


@pytest.mark.parametrize("feed", [True, False])
def test_points_are_judged_and_clicked_at_the_images_own_size(feed):
    view = scene(samples())
    model = Noisy(view)
    result = drive(PointTask((1, 2, 3), feed=feed), view, model)
    truths = [rle.decode(mask) for sample in view.batch.samples for mask in sample.masks]
    first = model.said[0]
    given_points = model.asked[0].given["points"].values
    for k, truth in enumerate(truths):
        rows, columns = truth.shape
        (x, y), _ = plain(truth, np.zeros_like(truth), np.zeros_like(truth))
        high, wide = view.batch.sizes[view.image_index[k]].tolist()
        assert given_points[k, 0].tolist() == pytest.approx([x * wide / columns, y * high / rows, 1])
        each = [iou(at_own_size(view, first.logits[k, m], k), truth) for m in range(3)]
        assert float(result["1_click"][k]) == pytest.approx(each[int(first.iou[k].argmax())])
        assert float(result["1_click_best"][k]) == pytest.approx(max(each))
    # A person's chain, followed by hand: the row of the second round that goes on from the confident mask.
    second = model.asked[1]
    assert ("masks" in second.given) is feed
    for k, truth in enumerate(truths):
        rows = [r for r, target in enumerate(second.target.tolist()) if target == k]
        assert 1 <= len(rows) <= 2  # one where both persons choose the same mask
        predicted = at_own_size(view, first.logits[k, int(first.iou[k].argmax())], k)
        (x, y), label = plain(truth, predicted, np.zeros_like(truth))
        high, wide = view.batch.sizes[view.image_index[k]].tolist()
        clicked = [x * wide / truth.shape[1], y * high / truth.shape[0], label]
        assert any(second.given["points"].values[r, 1].tolist() == pytest.approx(clicked) for r in rows)
        last = [iou(at_own_size(view, model.said[1].logits[r, 0], k), truth) for r in rows]
        assert any(float(result["2_clicks"][k]) == pytest.approx(value) for value in last)
    assert {len(values) for values in result.values()} == {6}


def test_a_perfect_answer_is_clicked_no_more_and_empty_masks_are_not_judged():
    made = samples(count=2)
    empty = rle.encode(np.zeros(made[0].size, bool))
    made[0] = Sample("picture 0", made[0].image, (empty, *made[0].masks))
    view = scene(made)

    class Right(Noisy):
        def __call__(self, prompts):
            said = super().__call__(prompts)
            truth = self.view.masks[prompts.target].float() * 20 - 10
            return Prediction(truth[:, None].expand(-1, said.iou.shape[1], -1, -1), said.iou, said.allowed, said.frame)

    big = scene([Sample(s.key, np.zeros((SIDE, SIDE, 3), np.uint8), ()) for s in made])
    assert drive(PointTask(), big, Right(big)) == {}
    result = drive(PointTask((1, 2)), view, Noisy(view, 0.0))
    assert len(result["1_click"]) == 4
    square = np.zeros((SIDE, SIDE), bool)
    square[10:30, 20:50] = True
    exact = scene([Sample("square", np.zeros((SIDE, SIDE, 3), np.uint8), (rle.encode(square),))])
    model = Right(exact)
    result = drive(PointTask((1, 3)), exact, model)
    assert {float(value) for values in result.values() for value in values} == {1.0}
    assert [asked.given["points"].values.shape[1] for asked in model.asked] == [1, 1, 1]


def test_boxes_are_the_masks_own_and_judged_at_the_images_own_size():
    view = scene(samples())
    model = Noisy(view)
    result = drive(BoxTask(), view, model)
    (asked,), (said,) = model.asked, model.said
    for k, mask in enumerate(mask for sample in view.batch.samples for mask in sample.masks):
        truth = rle.decode(mask)
        y, x = np.nonzero(truth)
        high, wide = view.batch.sizes[view.image_index[k]].tolist()
        scale = np.array([wide / truth.shape[1], high / truth.shape[0]] * 2)
        box = np.array([x.min(), y.min(), x.max(), y.max()]) * scale
        assert asked.given["boxes"].values[k, 0].tolist() == pytest.approx(box.tolist(), rel=1e-5)
        each = [iou(at_own_size(view, said.logits[k, m], k), truth) for m in range(3)]
        assert float(result["box"][k]) == pytest.approx(each[int(said.iou[k].argmax())])
        assert float(result["box_best"][k]) == pytest.approx(max(each))


def test_in_the_frame_the_first_click_may_be_anywhere_and_logits_need_not_be_fed_back():
    view = scene(samples())
    view.batch.samples = []
    model = Noisy(view)
    drive(PointTask((1, 2), first="random", feed=False), view, model)
    x, y, label = model.asked[0].given["points"].values[:, 0].long().unbind(1)
    assert view.masks[torch.arange(6), y, x].all()
    assert (label == 1).all()
    centres = view.prompts["points"].simulate(view.masks, None, view)
    assert not torch.equal(model.asked[0].given["points"].values, centres.values)
    assert list(model.asked[1].given) == ["points"]
    assert len(model.asked[1]) == 12


def test_at_their_own_size_first_clicks_are_random_where_that_is_wanted():
    view = scene(samples())
    model = Noisy(view)
    drive(PointTask((1,), first="random", seed=4), view, model)
    expected = Truths(view)
    given_points = expected.given("points", list(range(6)), [[expected.anywhere(k, 4)] for k in range(6)])
    assert torch.equal(model.asked[0].given["points"].values, given_points.values)


def test_many_masks_are_asked_about_in_portions(monkeypatch):
    view = scene(samples(count=5))
    whole = drive(PointTask((1, 2)), view, Noisy(view, 0.0))
    monkeypatch.setattr("samlit.evaluation.originals.AT_ONCE", 3)
    model = Noisy(view, 0.0)
    again = drive(PointTask((1, 2)), view, model)
    assert max(len(asked) for asked in model.asked) <= 6
    assert all(torch.equal(whole[name], again[name]) for name in whole)


@pytest.mark.parametrize("keys", [{"first": "middle"}, {"clicks": (3, 1)}])
def test_keys_that_make_no_sense_are_refused(keys):
    with pytest.raises(ValueError, match=next(iter(keys))):
        PointTask(**keys)


# From the shell.


@pytest.mark.parametrize(
    ("task", "keys", "names", "file"),
    [
        ("points", ["--task.first", "random", "--task.clicks", "[1, 2]"], {"1_click", "2_clicks_best"}, ""),
        ("clicks", ["--task.most", "3", "--task.targets", "[0.5]"], {"noc_50", "3_clicks"}, "clicks.png"),
        ("robustness", ["--task.disturb", "{blur: [2], jpeg: [9]}"], {"blur_2", "jpeg_9"}, "robustness.png"),
        ("robustness", ["--task.prompt", "boxes"], {"jitter_0.4", "blur_8"}, "robustness.png"),
        ("foreground", ["--task.points_per_side", "2"], {"max_f", "mae", "s_measure"}, "pictures/00000.png"),
        (
            "superpixels",
            ["--task.segments", "9", "--task.options.points_per_side", "3"],
            {"boundary_recall", "achievable_accuracy"},
            "pictures/00001.png",
        ),
    ],
)
def test_a_task_is_evaluated_from_the_shell(task, keys, names, file, tmp_path, checkpoint):
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for number, sample in enumerate(samples(sizes=((40, 60), (60, 40)), count=2)):
        labels = sum(rle.decode(mask).astype(np.uint8) * (n + 1) for n, mask in enumerate(sample.masks))
        Image.fromarray(sample.image).save(tmp_path / "images" / f"{number}.png")
        Image.fromarray(labels).save(tmp_path / "masks" / f"{number}.png")
    words = ["--task", task, *keys, "--weights", str(checkpoint), "--data", f"folder:{tmp_path}"]
    assert cli.main(["evaluate", *words, "--out", str(tmp_path / "out"), "--batch", "2"]) == 0
    told = json.loads((tmp_path / "out" / "results.json").read_text())
    assert names <= told["data"][0]["numbers"].keys()
    assert (tmp_path / "out" / file).exists()
    assert cli.main(["evaluate", *words, "--json", str(tmp_path / "one.json"), "--batch", "1"]) == 0
    one = json.loads((tmp_path / "one.json").read_text())["data"][0]["numbers"]
    for name in one.keys() - {"seconds_per_click"}:  # what else is in a batch changes nothing
        assert one[name] == pytest.approx(told["data"][0]["numbers"][name], abs=1e-5)
