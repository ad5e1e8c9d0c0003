"""Masks judged at their images' own size: clicks by RITM's rule, points, boxes, clicks until good, disturbances."""

import json
from itertools import combinations

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage
from torch.nn import functional as F

from samlit import cli, frames, rle, tracing
from samlit.answers import Answers
from samlit.loop import drive
from samlit.originals import Truths
from samlit.structures import Change, Prediction, PromptSet, Ragged, Sample, Scene, Window
from samlit_prompts.boxes import Boxes
from samlit_prompts.masks import Masks
from samlit_prompts.points import Points
from samlit_tasks.boxes import Boxes as BoxTask
from samlit_tasks.clicks import Clicks, Counted
from samlit_tasks.points import Points as PointTask
from samlit_tasks.robustness import Robustness, blur, jpeg
from tests import fitting

SIDE = 64


def samples(seed=0, sizes=((50, 90), (130, 61)), count=3):
    """Pictures of several sizes, with masks that are ragged at their edges."""
    chance = np.random.default_rng(seed)
    made = []
    for number, (rows, columns) in enumerate(sizes):
        y, x = np.mgrid[:rows, :columns]
        masks = []
        for _ in range(count):
            cy, cx, r = chance.integers(8, rows - 8), chance.integers(8, columns - 8), chance.integers(5, 20)
            masks.append(((y - cy) ** 2 + (x - cx) ** 2 <= r * r) ^ (chance.random(y.shape) < 0.02))
        image = chance.integers(0, 256, (rows, columns, 3), np.uint8)
        made.append(Sample(f"picture {number}", image, tuple(rle.encode_many(np.stack(masks)))))
    return made


def scene(made, side=SIDE):
    batch = frames.pack([frames.frame(sample, side) for sample in made])
    batch.samples = list(made)
    return Scene(batch, {kind.name: kind(8) for kind in (Points, Boxes, Masks)})


class Noisy:
    """Answers with blobs that have to do with the truth, and remembers what it was asked and what it said."""

    def __init__(self, view, noise=6.0, seed=0):
        self.view, self.noise, self.asked, self.said = view, noise, [], []
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, prompts):
        rows, num = len(prompts), 1 if prompts.multimask is False else 3
        target = torch.arange(rows) if prompts.target is None else prompts.target
        truth = F.interpolate(self.view.masks[target][:, None].float(), scale_factor=0.25)
        coarse = torch.randn(rows, num, 5, 5, generator=self.generator)
        noise = F.interpolate(coarse, truth.shape[-2:], mode="bilinear")
        logits = 8 * truth - 4 + self.noise * noise
        iou = torch.rand(rows, num, generator=self.generator)
        said = Prediction(logits, iou, torch.ones_like(iou, dtype=torch.bool), (SIDE, SIDE))
        self.asked.append(prompts)
        self.said.append(said)
        return said


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
    monkeypatch.setattr("samlit.originals.AT_ONCE", 3)
    model = Noisy(view, 0.0)
    again = drive(PointTask((1, 2)), view, model)
    assert max(len(asked) for asked in model.asked) <= 6
    assert all(torch.equal(whole[name], again[name]) for name in whole)


@pytest.mark.parametrize("keys", [{"first": "middle"}, {"clicks": (3, 1)}])
def test_keys_that_make_no_sense_are_refused(keys):
    with pytest.raises(ValueError, match=next(iter(keys))):
        PointTask(**keys)


# Clicks until a mask is good.


def test_clicks_end_where_a_mask_is_good_and_their_numbers_are_counted():
    view = scene(samples(count=4))
    model = Noisy(view, 3.0)
    task = Clicks((0.5, 0.7), most=6)
    result = drive(task, view, model)
    ious = result["ious"]
    assert len(ious) == 8
    assert all(max(one[:-1], default=0) < 0.7 for one in ious)
    assert all(one[-1] >= 0.7 or len(one) == 6 for one in ious)
    assert {len(one) for one in ious} > {6} or len({len(one) for one in ious}) > 1, "masks of several lengths"
    assert [len(asked) for asked in model.asked] == [sum(len(one) > n for one in ious) for n in range(len(model.asked))]
    # Each mask's own answers are fed back to it, though others have left.
    for before, said, asked in zip(model.asked, model.said, model.asked[1:], strict=False):
        fed = {int(k): said.pick(said.best())[r] for r, k in enumerate(before.target)}
        for r, k in enumerate(asked.target.tolist()):
            assert torch.equal(asked.given["masks"].values[r, 0], fed[k])
            assert torch.equal(
                asked.given["points"].values[r, :-1], before.given["points"].values[list(before.target).index(k)]
            )
    assert [asked.multimask for asked in model.asked] == [True] + [False] * (len(model.asked) - 1)


def test_the_metric_of_clicks_against_counting_by_hand(tmp_path):
    metric = Counted((0.8, 0.9), 4)
    metric.update({"ious": [[0.5, 0.85, 0.95], [0.1, 0.2, 0.3, 0.4]], "seconds": 3.5})
    metric.update({"ious": [[0.9]], "seconds": 0.5})
    metric.update({"ious": [], "seconds": 9.0})
    found = {name: float(value) for name, value in metric.compute().items()}
    assert found["noc_80"] == pytest.approx((2 + 4 + 1) / 3)
    assert found["noc_90"] == pytest.approx((3 + 4 + 1) / 3)
    assert found["failures_80"] == found["failures_90"] == 1
    curve = [found[name] for name in ("1_click", "2_clicks", "3_clicks", "4_clicks")]
    assert curve == pytest.approx([(0.5 + 0.1 + 0.9) / 3, (0.85 + 0.2 + 0.9) / 3, (0.95 + 0.3 + 0.9) / 3, 2.25 / 3])
    assert found["seconds_per_click"] == pytest.approx(4.0 / 8)
    task = Clicks((0.8, 0.9), most=4)
    task.plot(found, metric, tmp_path)
    assert (tmp_path / "clicks.png").stat().st_size > 5000
    nothing = Counted((0.8,), 2).judge([])
    assert nothing["noc_80"] == nothing["seconds_per_click"] == 0


def test_a_target_reached_by_the_last_click_is_a_failure_as_ritm_counts():
    assert Counted((0.5,), 3).judge([{"ious": [[0.1, 0.2, 0.9]], "seconds": 1}])["failures_50"] == 1


@pytest.mark.parametrize(
    "keys", [{"targets": ()}, {"targets": (0.9, 0.8)}, {"targets": (1.2,)}, {"most": 0}, {"until": 0.5}]
)
def test_clicks_refuses_what_makes_no_sense(keys):
    with pytest.raises(ValueError, match=next(iter(keys))):
        Clicks(**keys)


# Disturbances.


def test_disturbed_points_move_with_the_strength_and_stay_on_the_image():
    view = scene(samples())
    model = Noisy(view)
    task = Robustness({"jitter_pixels": [1.0, 2.0, 500.0], "jitter": [0.0]})
    result = drive(task, view, model)
    assert list(result) == ["undisturbed", "jitter_pixels_1", "jitter_pixels_2", "jitter_pixels_500", "jitter_0"]
    still, one, two, far, none = (asked.given["points"].values[:, 0, :2] for asked in model.asked)
    assert torch.equal(still, none)
    assert not torch.equal(still, one)
    near = ((two - still).abs() > 1e-4).all(1)  # those that no edge has stopped
    torch.testing.assert_close((two - still)[near], 2 * (one - still)[near], atol=1e-3, rtol=1e-3)
    sizes = view.batch.sizes[view.image_index].flip(1)
    assert (far >= 0).all()
    assert (far < sizes).all()
    assert {asked.change for asked in model.asked} == {None}


def test_points_on_the_wrong_side_are_as_many_as_asked_for():
    made = samples(count=40, sizes=((90, 120),))
    view = scene(made)
    model = Noisy(view)
    drive(Robustness({"wrong": [0.3, 1.0]}), view, model)
    share = []
    masks = [rle.decode(mask) for mask in made[0].masks]
    for asked in model.asked[1:]:
        values = asked.given["points"].values
        assert values.shape[1:] == (5, 3)
        assert (values[..., 2] == 1).all()
        x = (values[..., 0] * 120 / SIDE).round().long()
        y = (values[..., 1] * 120 / SIDE).round().long()
        share.append(np.mean([~masks[k][y[k], x[k]] for k in range(40)]))
    assert share[0] == 0
    assert 0.2 < share[1] < 0.4
    assert share[2] == 1


def test_changed_images_are_embedded_once_each_and_answered_otherwise():
    view = scene(samples(), 32)
    net = fitting.module().net.eval()
    view = Scene(view.batch, net.prompt_types)
    embedded = []
    embed = net.embed
    net.embed = lambda image, sizes: embedded.append(image) or embed(image, sizes)
    with torch.no_grad():
        drive(Robustness({"jpeg": [5, 90], "blur": [4]}), view, Answers(net, view.batch))
    assert len(embedded) == 4
    assert not any(torch.equal(a, b) for a, b in combinations(embedded, 2))
    for image, sizes in zip(embedded[3], view.batch.sizes.tolist(), strict=True):  # padding stays padding
        assert not image[:, sizes[0] :].any()
        assert not image[:, :, sizes[1] :].any()


def test_the_changes_of_images_grow_with_their_strength():
    image = cv2.GaussianBlur(samples()[0].image, (0, 0), 2)

    def off(changed):
        return np.abs(changed.astype(int) - image).mean()

    assert 0 < off(jpeg(image, 95)) < off(jpeg(image, 30)) < off(jpeg(image, 5))
    assert 0 < off(blur(image, 1)) < off(blur(image, 4)) < off(blur(image, 16))
    assert off(blur(image, 0)) == 0
    assert jpeg(image, 5).shape == blur(image, 3).shape == image.shape


def test_a_window_of_a_changed_image_is_the_changed_images_window():
    made = samples()
    view = scene(made, 32)
    net = fitting.module().net.eval()
    answers, ask = Answers(net, view.batch), {"points": Ragged.of(torch.tensor([[[5.0, 6.0, 1.0]]]))}
    change = Change("dark", lambda image: image // 2)
    window = Window(1, 3, 10, 40, 70)
    with torch.no_grad():
        found = answers(PromptSet(torch.tensor([1]), ask, window=window, change=change))
        dark = Sample("dark", made[1].image[10:70, 3:40] // 2, ())
        shown = frames.pack([frames.frame(dark, 32)])
        expected = Answers(net, shown)(PromptSet(torch.tensor([0]), ask))
        other = answers(PromptSet(torch.tensor([1]), ask, window=window))
    torch.testing.assert_close(found.logits, expected.logits)
    assert not torch.equal(found.logits, other.logits)
    view.batch.samples = []
    with pytest.raises(ValueError, match=r"Task\.originals"):
        Answers(net, view.batch)(PromptSet(torch.tensor([0]), ask, change=change))


def test_the_plot_of_disturbances(tmp_path):
    task = Robustness({"wrong": [0.5], "jpeg": [50, 5]})
    metric = task.metric()
    assert list(metric.names) == ["undisturbed", "wrong_0", "wrong_0.5", "jpeg_50", "jpeg_5"]
    task.plot(dict.fromkeys(metric.names, 0.5), metric, tmp_path)
    assert (tmp_path / "robustness.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"disturb": {"fog": [1.0]}}, "'fog' is no disturbance"),
        ({"disturb": {"blur": []}}, "blur needs strengths"),
        ({"disturb": {"jpeg": [0]}}, "quality from 1 to 100"),
        ({"disturb": {"wrong": [0.5]}, "prompt": "boxes"}, "of points"),
        ({"prompt": "text"}, "points or boxes"),
    ],
)
def test_robustness_refuses_what_makes_no_sense(keys, says):
    with pytest.raises(ValueError, match=says):
        Robustness(**keys)


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
