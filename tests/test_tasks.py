"""Tasks: what the interactive one asks, round by round, what evaluation makes of a perfect model, and the loop."""

import functools
from collections import Counter
from itertools import pairwise
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from torch.nn import functional as F

from samlit.contracts import Prompt, Sparse, Task
from samlit.loop import drive
from samlit.structures import Batch, Prediction, PromptSet, Ragged, Scene
from samlit_prompts.boxes import Boxes
from samlit_prompts.masks import Masks
from samlit_prompts.points import Points
from samlit_tasks.boxes import Boxes as BoxTask
from samlit_tasks.interactive import Interactive
from samlit_tasks.interactive_sam2 import InteractiveSam2
from samlit_tasks.points import Points as PointTask
from tests import fitting

SIDE = 32


def some_masks(count, seed=0):
    """Discs of many sizes, and no two alike."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.arange(SIDE)[:, None], torch.arange(SIDE)[None, :]
    cy, cx, r = (torch.randint(lo, hi, (count, 1, 1), generator=generator) for lo, hi in ((6, 26), (6, 26), (3, 9)))
    return (y - cy) ** 2 + (x - cx) ** 2 <= r**2


def scene(masks, seed=0, training=True, prompts=(Points, Boxes, Masks), images=2):
    count = len(masks)
    index = torch.arange(count) * images // max(count, 1)
    image = torch.zeros(images, 3, *masks.shape[-2:], dtype=torch.uint8)
    sizes = torch.tensor([masks.shape[-2:]] * images)
    batch = Batch(image, sizes, sizes, masks, index)
    return Scene(batch, {p.name: p(8) for p in prompts}, seed, training, common=seed)


class Noisy:
    """Answers at random, remembers what it was asked and what it said."""

    def __init__(self, seed=0):
        self.generator, self.asked, self.said = torch.Generator().manual_seed(seed), [], []

    def __call__(self, prompts):
        rows, masks = len(prompts), 1 if prompts.multimask is False else 3
        logits = 4 * F.interpolate(torch.randn(rows, masks, 3, 3, generator=self.generator), (SIDE // 2, SIDE // 2))
        iou = torch.rand(rows, masks, generator=self.generator)
        given = dict(prompts.given)
        self.asked.append(PromptSet(prompts.image_index, given, prompts.multimask, prompts.target))
        self.said.append(Prediction(logits, iou, torch.ones_like(iou, dtype=torch.bool), (SIDE, SIDE)))
        return self.said[-1]


class Oracle(Noisy):
    """Answers with the truth, at the frame's own resolution."""

    def __init__(self, masks):
        super().__init__()
        self.masks = masks

    def __call__(self, prompts):
        target = torch.arange(len(prompts)) if prompts.target is None else prompts.target
        outputs = 1 if prompts.multimask is False else 3
        logits = (self.masks[target].float() * 20 - 10)[:, None].expand(-1, outputs, -1, -1)
        self.asked.append(prompts)
        self.said.append(
            Prediction(
                logits, torch.ones(logits.shape[:2]), torch.ones(logits.shape[:2], dtype=torch.bool), (SIDE, SIDE)
            )
        )
        return self.said[-1]


def has_new_points(asked):
    counts = [a.given["points"].values.shape[1] if "points" in a.given else 0 for a in asked]
    return [b > a for a, b in pairwise(counts)]


# Interactive training.


def test_eleven_passes_and_three_masks_only_in_the_first():
    view, model = scene(some_masks(6)), Noisy()
    result = drive(Interactive(), view, model)
    assert [a.multimask for a in model.asked] == [None] + [False] * 10  # None: three for the one prompt that it is
    assert result["iou"].shape == (11, 6)
    assert all(torch.equal(a.image_index, view.image_index) for a in model.asked)
    assert all(a.target is None for a in model.asked)
    assert "masks" not in model.asked[0].given
    assert all("masks" in a.given for a in model.asked[1:])


def test_every_mask_has_one_prompt_first_of_either_type_about_as_often():
    model = Noisy()
    drive(Interactive(corrections=0, mask_only=False), scene(some_masks(400)), model)
    given = model.asked[0].given
    points, boxes = given["points"].valid.sum(1), given["boxes"].valid.sum(1)
    assert ((points + boxes) == 1).all()
    assert 160 < int(points.sum()) < 240  # four standard deviations
    model = Noisy()
    drive(Interactive({"points": 1, "boxes": 0}, corrections=0), scene(some_masks(50)), model)
    assert model.asked[0].given["points"].valid.all()
    assert not model.asked[0].given["boxes"].valid.any()


def test_the_first_click_is_in_the_mask_and_anywhere_in_it():
    masks = some_masks(1).expand(300, -1, -1)
    model = Noisy()
    drive(Interactive({"points": 1.0}, corrections=0), scene(masks), model)
    x, y, label = model.asked[0].given["points"].values[:, 0].unbind(1)
    assert (label == 1).all()
    assert masks[0, y.long(), x.long()].all()
    assert len(set(zip(x.tolist(), y.tolist(), strict=True))) > 0.8 * min(int(masks[0].sum()), 300) * (1 - 1 / 2.718)


def test_prompts_accumulate_and_clicks_fall_into_the_error_of_what_was_fed_forward():
    masks, model = some_masks(7), Noisy()
    result = drive(Interactive(), scene(masks), model)
    labels = set()
    for before, said, asked, shown in zip(model.asked, model.said, model.asked[1:], result["iou"], strict=False):
        which = said.iou.argmax(1)  # the most confident one, which chance made the best one seldom
        fed = said.logits[torch.arange(7), which]
        assert torch.equal(asked.given["masks"].values[:, -1], fed)
        assert asked.given["masks"].values.shape[1] == 1
        assert asked.given["masks"].valid.all()
        predicted = F.interpolate(fed[:, None], (SIDE, SIDE), mode="bilinear", align_corners=False)[:, 0] > 0
        both, either = (predicted & masks).sum((1, 2)), (predicted | masks).sum((1, 2))
        torch.testing.assert_close(shown, both / either)
        old, new = before.given["points"], asked.given["points"]
        kept = old.values.shape[1]
        assert torch.equal(new.values[:, :kept], old.values)
        assert torch.equal(new.valid[:, :kept], old.valid)
        assert torch.equal(asked.given["boxes"].values, before.given["boxes"].values)
        assert torch.equal(asked.given["boxes"].valid, before.given["boxes"].valid)
        assert new.values.shape[1] - kept in (0, 1)
        if new.values.shape[1] > kept:
            assert new.valid[:, -1].all()
            for i, (x, y, label) in enumerate(new.values[:, -1].tolist()):
                assert predicted[i, int(y), int(x)] != masks[i, int(y), int(x)]
                assert bool(label) == bool(masks[i, int(y), int(x)])
                labels.add(label)
    assert labels == {0.0, 1.0}
    assert model.asked[-1].given["points"].values.shape[1] == 9


def test_the_most_confident_mask_goes_on_and_not_the_best():
    masks = some_masks(3)

    class Liar(Oracle):
        def __call__(self, prompts):
            said = super().__call__(prompts)
            if prompts.multimask is not False:
                said.logits = torch.stack([said.logits[:, 0], -said.logits[:, 0], -said.logits[:, 0]], 1)
                said.iou = torch.tensor([[0.1, 0.2, 0.9]]).expand(3, -1)
            return said

    model = Liar(masks)
    result = drive(Interactive(), scene(masks), model)
    assert torch.equal(model.asked[1].given["masks"].values[:, 0], model.said[0].logits[:, 2])
    assert result["iou"][0].max() == 0
    assert result["iou"][1:].min() == 1


def test_two_passes_have_no_new_prompt_one_last_and_one_anywhere_between():
    where = Counter()
    one = some_masks(1)
    for seed in range(140):
        plan = Interactive()._plan(scene(one, seed))
        assert plan.count(False) == 2
        assert plan.count(True) == 8
        assert plan[0]
        assert not plan[-1]
        where[plan.index(False)] += 1
    assert set(where) == set(range(1, 8))
    assert max(where.values()) < 3 * min(where.values()) + 10
    model = Noisy()
    view = scene(some_masks(2), 3)
    drive(Interactive(), view, model)
    assert has_new_points(model.asked) == Interactive()._plan(scene(one, 3))


@pytest.mark.parametrize(
    ("corrections", "mask_only", "passes"), [(0, True, 3), (0, False, 1), (1, True, 4), (3, False, 4)]
)
def test_other_numbers_of_passes(corrections, mask_only, passes):
    model = Noisy()
    result = drive(Interactive(corrections=corrections, mask_only=mask_only), scene(some_masks(2)), model)
    assert len(model.asked) == passes == len(result["iou"])
    assert sum(has_new_points(model.asked)) == corrections


def test_chance_is_the_seeds():
    def clicks(seed):
        model = Noisy()
        drive(Interactive(), scene(some_masks(3), seed), model)
        return model.asked[-1].given["points"].values

    assert torch.equal(clicks(1), clicks(1))
    assert clicks(1).shape != clicks(2).shape or not torch.equal(clicks(1), clicks(2))


@pytest.mark.parametrize(("detach", "flows"), [(True, False), (False, True)])
def test_gradients_pass_the_fed_back_logits_only_if_asked(detach, flows):
    asked = []

    def answer(prompts):
        asked.append(dict(prompts.given))
        logits = torch.zeros(len(prompts), 1 if prompts.multimask is False else 3, 8, 8, requires_grad=True) * 1.0
        return Prediction(logits, torch.zeros(logits.shape[:2]), torch.ones(logits.shape[:2]).bool(), (SIDE, SIDE))

    result = drive(Interactive(corrections=1, detach=detach), scene(some_masks(2)), answer)
    assert asked[1]["masks"].values.requires_grad == flows
    assert not result["iou"].requires_grad


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("full", [False, True])
def test_a_perfect_answer_neither_stops_nor_crashes(training, full):
    masks = some_masks(3)
    if full:
        masks[1] = True  # not even a pixel of background to confirm
        masks[2] = False  # nothing to click on at all
    model = Oracle(masks)
    result = drive(Interactive(), scene(masks, training=training), model)
    assert result["iou"].shape == (11, 3)
    assert result["iou"].min() == 1
    points = model.asked[-1].given["points"]
    assert points.values.isfinite().all()
    for row, (values, valid) in enumerate(zip(points.values, points.valid, strict=True)):
        for x, y, label in values[valid].tolist():
            assert bool(label) == bool(masks[row, int(y), int(x)])
    if full and training:
        assert points.valid[:, 1:].sum(1).tolist() == [8, 0, 8]


def test_no_masks_are_no_rounds():
    for task in (Interactive(), PointTask(), BoxTask()):
        model = Noisy()
        assert drive(task, scene(some_masks(0)), model) == {}
        assert model.asked == []


@pytest.mark.parametrize("first", [{"points": -0.5, "boxes": 1.0}, {"points": 0.0}])
def test_shares_that_are_none_are_refused(first):
    with pytest.raises(ValueError, match="shares of prompt types"):
        Interactive(first)


class Corner(Prompt):
    """A prompt type of somebody else's: the first pixel of the mask."""

    name, option = "corner", "corner"

    def __init__(self, channels=8):
        super().__init__()
        self.channels = channels

    def encode(self, given, frame):
        return Sparse(frame.position(given.values, frame.size), given.valid)

    def simulate(self, truth, predicted, scene):
        first = truth.flatten(1).to(torch.uint8).argmax(1)
        return Ragged.of(torch.stack([first % SIDE, first // SIDE], 1)[:, None].float())

    def parse(self, text):
        return torch.zeros(2)

    def draw(self, picture, value):
        pass


def test_a_strangers_prompt_type_is_simulated_first_and_as_a_correction():
    masks, model = some_masks(40), Noisy()
    view = scene(masks, prompts=(Points, Boxes, Masks, Corner))
    drive(Interactive({"corner": 3, "points": 1}, correct_with="corner", corrections=2), view, model)
    given = model.asked[0].given
    assert ((given["corner"].valid.sum(1) + given["points"].valid.sum(1)) == 1).all()
    assert 20 < int(given["corner"].valid.sum()) < 39
    x, y = given["corner"].values[:, 0].long().unbind(1)
    assert masks[torch.arange(40), y, x].all()
    assert model.asked[-1].given["corner"].values.shape == (40, 3, 2)
    assert model.asked[-1].given["points"].values.shape[1] == 1


# Simulated boxes.


def box_scene(masks, training):
    sizes = torch.tensor([masks.shape[-2:]])
    image = torch.zeros(1, 3, *masks.shape[-2:], dtype=torch.uint8)
    batch = Batch(image, sizes, sizes, masks, torch.zeros(len(masks), dtype=torch.int64))
    return Scene(batch, {}, 5, training)


def test_a_box_is_tight_outside_training():
    masks = torch.zeros(3, 20, 40, dtype=torch.bool)
    masks[0, 4:10, 7:31] = True
    masks[1, 19, 39] = True
    given = Boxes(8).simulate(masks, None, box_scene(masks, False))
    assert given.values[:2, 0].tolist() == [[7, 4, 30, 9], [39, 19, 39, 19]]
    assert given.valid.tolist() == [[True], [True], [False]]


def test_noise_is_a_tenth_of_the_side_up_to_a_cap():
    small = torch.zeros(1, 256, 256, dtype=torch.bool)
    small[0, 110:130, 100:150] = True  # 50 wide, 20 high: deviations 5 and 2
    prompt = Boxes(8, max_noise=1e9)
    rows = small.expand(3000, -1, -1)
    values = prompt.simulate(rows, None, box_scene(rows, True)).values[:, 0]
    off = values - torch.tensor([100.0, 110, 149, 129])
    torch.testing.assert_close(off.std(0), torch.tensor([5.0, 2, 5, 2]), rtol=0.06, atol=0)
    assert off.mean(0).abs().max() < 0.4
    assert abs(float(torch.corrcoef(off.T)[0, 2])) < 0.1
    capped = Boxes(8).simulate(rows, None, box_scene(rows, True)).values[:, 0] - torch.tensor([100.0, 110, 149, 129])
    assert capped.abs().max() == 5  # 20 pixels of a frame of 1024 are 5 of 256
    assert 0.25 < float((capped[:, 0].abs() == 5).float().mean()) < 0.39  # beyond one deviation


def test_noisy_boxes_stay_on_the_frame_in_order():
    masks = torch.zeros(300, 24, 40, dtype=torch.bool)
    masks[:100, 0, 0] = masks[100:200, 23, 39] = True
    masks[200:] = True
    boxes = Boxes(8, noise=2.0, max_noise=1e9).simulate(masks, None, box_scene(masks, True)).values[:, 0]
    assert (boxes[:, :2] <= boxes[:, 2:]).all()
    assert (boxes >= 0).all()
    assert (boxes <= torch.tensor([39.0, 23, 39, 23])).all()
    assert len(boxes.unique(dim=0)) > 50


# Evaluation.


@pytest.mark.parametrize("clicks", [(1,), (1, 3, 5), (2,)])
def test_clicks_of_a_perfect_model_are_one(clicks):
    masks = some_masks(5)
    model, task = Oracle(masks), PointTask(clicks)
    result = drive(task, scene(masks, training=False), model)
    metric = task.metric()
    assert set(result) == set(metric.names)
    assert len(result) == 2 * len(clicks)
    metric.update(result)
    assert {float(value) for value in metric.compute().values()} == {1.0}
    assert len(model.asked) == clicks[-1]
    assert not any(a.given["points"].valid[:, 1:].any() for a in model.asked)  # nothing is wrong after the first


def test_the_two_persons_each_go_on_from_their_own_mask():
    masks, model = some_masks(4), Noisy()
    result = drive(PointTask((1, 2)), scene(masks, training=False), model)
    first, asked = model.said[0], model.asked[1]
    assert asked.image_index.tolist() == [0, 0, 1, 1] * 2
    assert asked.target.tolist() == [0, 1, 2, 3] * 2
    full = F.interpolate(first.logits, (SIDE, SIDE), mode="bilinear", align_corners=False) > 0
    iou = (full & masks[:, None]).sum((2, 3)) / (full | masks[:, None]).sum((2, 3))
    confident, best = first.iou.argmax(1), iou.argmax(1)
    assert (confident != best).any()
    fed = asked.given["masks"].values[:, 0]
    assert torch.equal(fed[:4], first.pick(confident))
    assert torch.equal(fed[4:], first.pick(best))
    torch.testing.assert_close(result["1_click"], iou.gather(1, confident[:, None])[:, 0])
    torch.testing.assert_close(result["1_click_best"], iou.amax(1))
    x, y, label = asked.given["points"].values[:, 1].long().unbind(1)
    predicted = torch.cat([full[torch.arange(4), confident], full[torch.arange(4), best]])
    truth = masks.repeat(2, 1, 1)
    here = torch.arange(8)
    assert (predicted[here, y, x] != truth[here, y, x]).all()
    assert torch.equal(label.bool(), truth[here, y, x])


@pytest.mark.parametrize("clicks", [(), (0, 1), (3, 1), (2, 2)])
def test_clicks_that_are_no_numbers_of_clicks_are_refused(clicks):
    with pytest.raises(ValueError, match="ascending numbers from 1"):
        PointTask(clicks)


def test_boxes_of_a_perfect_model_are_one_and_of_an_unsure_one_not():
    masks = some_masks(5)
    model = Oracle(masks)
    result = drive(BoxTask(), scene(masks, training=False), model)
    assert {name: value.tolist() for name, value in result.items()} == {"box": [1.0] * 5, "box_best": [1.0] * 5}
    (asked,) = model.asked
    for mask, box in zip(masks, asked.given["boxes"].values[:, 0].long().tolist(), strict=True):
        y, x = mask.nonzero().unbind(1)
        assert box == [int(x.min()), int(y.min()), int(x.max()), int(y.max())]
    noisy = drive(BoxTask(), scene(masks, training=False), Noisy())
    assert (noisy["box"] <= noisy["box_best"]).all()
    assert (noisy["box"] < noisy["box_best"]).any()


def test_a_box_is_judged_by_the_masks_that_answer_it_only():
    class Sure(Oracle):
        """The truth in the masks that are no answer, the frame's other half in the one that is."""

        def __call__(self, prompts):
            right = super().__call__(prompts)
            logits = torch.cat([-right.logits[:, :1], right.logits[:, :1].expand(-1, 3, -1, -1)], 1)
            allowed = torch.tensor([True, False, False, False]).expand(len(logits), 4)
            return Prediction(logits, torch.tensor([0.0, 1.0, 1.0, 1.0]).expand(len(logits), 4), allowed, right.frame)

    masks = some_masks(5)
    result = drive(BoxTask(), scene(masks, training=False), Sure(masks))
    assert {name: value.tolist() for name, value in result.items()} == {"box": [0.0] * 5, "box_best": [0.0] * 5}


# The loop, and training without a mask.


class Silent(Task):
    """Yields nothing, returns nothing."""

    def rounds(self, scene):
        return
        yield


class Talker(Task):
    """Yields what it is told to and returns what it received."""

    def __init__(self, count):
        self.count = count

    def rounds(self, scene):
        received = []
        for number in range(self.count):
            received.append((yield number))
        return {"received": received}


def test_a_task_that_yields_nothing_has_an_empty_result():
    assert drive(Silent(), None, lambda prompts: pytest.fail("asked")) == {}


def test_answers_go_back_in_order_and_every_round_is_told_before_the_task_sees_it():
    told = []
    result = drive(Talker(3), None, lambda number: number * 10, told.append)
    assert result == {"received": [0, 10, 20]}
    assert [(turn.prompts, turn.prediction) for turn in told] == [(0, 0), (1, 10), (2, 20)]


def test_a_step_without_a_mask_is_zero_loss_and_zero_gradients_everywhere():
    module = fitting.module()
    module._trainer = SimpleNamespace(world_size=1, global_step=0, global_rank=0, accumulate_grad_batches=1)
    batch = scene(some_masks(0)).batch
    loss = type(module).training_step(module, batch, 0)
    loss.backward()
    assert loss.item() == 0
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() == 0, name


def test_what_the_tasks_need_is_in_a_scene():
    view = functools.partial(scene, some_masks(2))
    assert torch.equal(torch.rand(3, generator=view(1).generator), torch.rand(3, generator=view(1).generator))
    assert view(1).chance.random() == view(1).chance.random() != view(2).chance.random()
    assert view().frame == (SIDE, SIDE)


def test_an_error_of_the_model_is_not_the_end_of_the_task():
    def broken(prompts):
        raise StopIteration

    with pytest.raises(StopIteration):
        drive(Interactive(), scene(some_masks(2)), broken)


def test_a_training_step_may_end_after_any_answer():
    one = some_masks(1)
    task = Interactive(stop=0.5)
    lengths = torch.tensor([len(task._plan(scene(one, seed))) for seed in range(800)]).bincount(minlength=11)
    assert len(lengths) == 11
    for length in range(4):  # 400, 200, 100, 50 expected; six deviations
        share = 0.5 ** (length + 1)
        assert abs(float(lengths[length]) - 800 * share) < 6 * (800 * share * (1 - share)) ** 0.5
    plans = [task._plan(scene(one, seed, training=False)) for seed in range(9)]
    assert {len(plan) for plan in plans} == {10}, "an answer that is not learned from is always corrected"
    assert {len(Interactive()._plan(scene(one, seed))) for seed in range(9)} == {10}
    assert {len(Interactive(stop=1.0)._plan(scene(one, seed))) for seed in range(9)} == {0}
    for stop in (-0.1, 1.1):
        with pytest.raises(ValueError, match="stop: a chance from 0 to 1"):
            Interactive(stop=stop)


# SAM 2's rules.


def test_sam2_has_eight_passes_each_with_a_new_prompt_and_never_one_without():
    view, model = scene(some_masks(6)), Noisy()
    result = drive(InteractiveSam2(), view, model)
    assert result["iou"].shape == (8, 6)
    assert has_new_points(model.asked) == [True] * 7
    assert [a.multimask for a in model.asked[1:]] == [False] * 7
    assert all("masks" in a.given for a in model.asked[1:])


def test_sam2_draws_one_type_for_all_and_answers_a_box_with_one_mask():
    drawn = Counter()
    for seed in range(200):
        model = Noisy()
        drive(InteractiveSam2(corrections=0), scene(some_masks(5), seed), model)
        (asked,) = model.asked
        (name,) = asked.given
        assert asked.given[name].valid.all()
        assert asked.multimask is (name == "points")
        drawn[name] += 1
    assert 70 < drawn["points"] < 130  # four standard deviations
    # Which one it is does not depend on the rank's own seed: all ranks run the same parts of the model.
    masks = some_masks(5)
    for common in range(5):
        names = set()
        for rank_seed in range(4):
            view, model = scene(masks, rank_seed), Noisy()
            view.common = common
            drive(InteractiveSam2(corrections=0), view, model)
            names |= set(model.asked[0].given)
        assert len(names) == 1


@pytest.mark.parametrize(("from_truth", "training"), [(0.0, True), (1.0, True), (1.0, False)])
def test_sam2_clicks_into_the_error_or_anywhere_into_the_mask(from_truth, training):
    masks, model = some_masks(40), Noisy()
    task = InteractiveSam2({"points": 1}, from_truth=from_truth)
    drive(task, scene(masks, training=training), model)
    rows, inside, wrong, labels = torch.arange(40), [], [], []
    for said, asked in zip(model.said, model.asked[1:], strict=False):
        x, y, label = asked.given["points"].values[:, -1].unbind(1)
        valid = asked.given["points"].valid[:, -1]
        fed = said.pick(said.iou.argmax(1))
        error = ((F.interpolate(fed[:, None], (SIDE, SIDE), mode="bilinear")[:, 0] > 0) ^ masks)[
            rows, y.long(), x.long()
        ]
        truth = masks[rows, y.long(), x.long()]
        inside.append(truth[valid])
        wrong.append(error[valid])
        labels.append((label.bool() == truth)[valid])
    assert torch.cat(labels).all()
    if from_truth and training:
        assert torch.cat(inside).all()
        assert not torch.cat(wrong).all()
    else:  # a person who judges clicks where it is wrong
        assert torch.cat(wrong).all()
        assert not torch.cat(inside).all()


def test_sam2_takes_a_tenth_of_the_corrections_from_the_mask():
    class Counting(Points):
        asked: ClassVar = []

        def simulate(self, truth, predicted, scene):
            self.asked.append(predicted is None)
            return super().simulate(truth, predicted, scene)

    for seed in range(200):
        drive(InteractiveSam2({"points": 1}), scene(some_masks(1), seed, prompts=(Counting, Boxes, Masks)), Noisy())
    corrections = [asked for i, asked in enumerate(Counting.asked) if i % 8]
    assert len(corrections) == 1400
    assert 95 < sum(corrections) < 190  # 140, four standard deviations


def test_sam2_lets_gradients_pass_through_what_is_fed_back():
    weight = torch.ones((), requires_grad=True)
    first = []

    def answer(prompts):
        outputs = 1 if prompts.multimask is False else 3
        logits = weight * torch.ones(len(prompts), outputs, 8, 8)
        if "masks" in prompts.given:
            logits = logits + prompts.given["masks"].values.mean((1, 2, 3))[:, None, None, None]
        first.append(logits)
        ones = torch.ones(logits.shape[:2])
        return Prediction(logits, ones, ones.bool(), (SIDE, SIDE))

    for detach, expected in ((False, 2.0), (True, 1.0)):
        first.clear()
        drive(InteractiveSam2(corrections=1, detach=detach), scene(some_masks(2)), answer)
        (slope,) = torch.autograd.grad(first[-1].mean(), weight)
        assert float(slope) == expected


def test_sam2_refuses_a_chance_that_is_none():
    with pytest.raises(ValueError, match=r"^from_truth: a chance from 0 to 1, not 2$"):
        InteractiveSam2(from_truth=2)


def test_sam2_boxes_move_evenly_up_to_a_tenth_of_their_side():
    masks = torch.zeros(4000, 64, 64, dtype=torch.bool)
    masks[:, 20:40, 10:50] = True
    boxes = Boxes(8, spread="uniform", max_noise=1e9).simulate(masks, None, box_scene(masks, True)).values[:, 0]
    move = (boxes - torch.tensor([10.0, 20, 49, 39])) / torch.tensor([4.0, 2, 4, 2])
    assert move.abs().max() <= 1 + 1e-5
    for column in move.unbind(1):  # even: a quarter in each quarter
        assert torch.histc(column, 4, -1, 1).sub(1000).abs().max() < 140
    capped = Boxes(8, spread="uniform", max_noise=16).simulate(masks, None, box_scene(masks, True)).values[:, 0]
    most = (capped - torch.tensor([10.0, 20, 49, 39])).abs().max()
    assert 0.9 < most <= 1 + 1e-5  # 16 pixels of a frame of 1024 are one of 64
