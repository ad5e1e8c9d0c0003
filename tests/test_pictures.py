"""Pictures: tints stay where the mask is, errors have their colours, the sheet holds all, labels stay apart."""

import io
import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from samlit.drawing import curves, pictures
from samlit.evaluation.calibration import Reliability
from samlit.run.examples import Answer, Example, Examples, answered, chosen
from samlit.structures import Batch
from tests import fitting


@pytest.fixture
def square():
    mask = np.zeros((40, 60), bool)
    mask[10:30, 20:40] = True
    return np.full((40, 60, 3), 100, np.uint8), mask


def test_an_overlay_changes_the_mask_and_its_outline_only(square):
    image, mask = square
    out = pictures.overlay(image, mask, (255, 0, 0))
    assert (out[20, 30] == (170, 55, 55)).all()
    changed = (out != image).any(2)
    assert changed[mask].all()
    rim = np.zeros_like(mask)
    rim[8:32, 18:42] = True
    assert not changed[~rim].any()
    assert (image == 100).all()


def test_an_empty_mask_is_no_overlay(square):
    image, mask = square
    np.testing.assert_array_equal(pictures.overlay(image, ~mask & mask, (255, 0, 0)), image)


def test_too_much_is_red_and_missing_is_blue(square):
    image, truth = square
    mask = np.roll(truth, 10, 1)
    r, _, b = np.moveaxis(pictures.errors(image, mask, truth).astype(int), 2, 0)
    assert (r - b)[mask & ~truth].min() > 100
    assert (b - r)[truth & ~mask].min() > 100
    assert (abs(r - b)[(truth & mask) | (~truth & ~mask)] < 20).all()


def test_the_sheet_has_a_band_for_each_example_and_a_column_for_each_round(square):
    image, mask = square
    rounds = {f"{n} point{'s' * (n > 1)}": Answer((), mask, 1.0, 0.9) for n in range(1, 9)} | {
        "1 box": Answer((), ~mask, 0.0, 0.9)
    }
    one = Example(
        image, mask, (60, 60), phrase="a very long phrase that certainly does not fit below a picture", answers=rounds
    )
    sheet, more = pictures.contact_sheet([one]), pictures.contact_sheet([one, one], "title")
    assert pictures.rounds_to_show([one]) == ["1 point", "2 points", "3 points", "5 points", "8 points", "1 box"]
    assert more.width == sheet.width > 7 * pictures.CELL
    assert more.height > sheet.height + 2 * round(pictures.CELL * 40 / 60)
    assert pictures.contact_sheet([]).height > 0


def test_examples_of_few_rounds_stand_beside_each_other(square):
    image, mask = square
    one = Example(image, mask, (60, 60), answers={"1 box": Answer((), mask, 1.0, 0.9)})
    sheets = [pictures.contact_sheet([one] * count) for count in (1, 3, 4)]
    single, three, four = sheets
    assert single.width < 2.6 * pictures.CELL, "no room is kept for a legend of one row"
    assert three.width > 2.8 * single.width
    assert four.width == three.width
    assert three.height <= single.height < four.height
    grey = np.asarray(four.convert("L"))
    assert (grey[-20:] < 250).any(), "the legend is there"
    right = grey[single.height : -60, single.width :]
    assert (right == 255).all(), "the fourth stands alone in its row"


def test_examples_are_answered_in_every_round_of_every_task():
    loader = fitting.data()._loader(fitting.Discs(3), False)
    batch = next(iter(loader))
    module = fitting.module().eval()
    with torch.no_grad():
        examples = answered(module, chosen(batch, 3))
    assert [list(example.answers) for example in examples] == [["1 point", "2 points", "1 box"]] * 3
    one = examples[0]
    assert one.image.shape == (24, 32, 3)
    assert one.truth.shape == one.answers["1 box"].mask.shape == (24, 32)
    assert [prompt.name for prompt, _ in one.answers["2 points"].prompts] == ["points", "points"]
    assert {example.phrase for example in examples} == {"the round one", "the bar"}
    picture = Image.new("RGB", (320, 240))
    pictures.prompted(picture, one, one.answers["1 box"])
    assert np.asarray(picture).any()


def test_one_mask_of_each_image_is_chosen_before_a_second_of_any():
    masks = torch.zeros(5, 8, 8, dtype=torch.bool)
    for k, side in enumerate((4, 2, 0, 3, 1)):
        masks[k, :side, :side] = True
    index = torch.tensor([0, 0, 0, 1, 1])
    batch = Batch(
        torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.full((2, 2), 8), torch.full((2, 2), 8), masks, index
    )
    assert chosen(batch, 2).image_index.tolist() == [0, 1]
    assert chosen(batch, 9).masks.flatten(1).any(1).tolist() == [True] * 4
    assert chosen(batch, 0).masks.shape[0] == chosen(batch, 0).image.shape[0] == 0


def test_the_learning_curve_takes_any_history():
    history = [{"step": i, "train/loss": 3 - i / 20, "train/miou": i / 40} for i in range(1, 40)]
    scores = [
        {"step": i, "val/1_click": i / 50, "val/1_click_best": i / 45, "val/other": float("nan")} for i in (0, 20)
    ]
    for rows in ([], history, scores, history + scores):
        curve = Image.open(io.BytesIO(pictures.learning_curve(rows, {"GrabCut": 0.6})))
        assert curve.width > 1000
        assert np.asarray(curve.convert("L")).min() < 128


@pytest.mark.parametrize("values", [[], [0.5], [0.1, 0.1, 0.1, 0.9], [0.98, 0.99, 1.0]])
def test_labels_stay_apart_and_in_order(values):
    placed = pictures.apart(values, 0.06, 1.0)
    assert all(b - a > 0.0599 for a, b in itertools.pairwise(placed))
    assert max(placed, default=0) <= 1
    assert all(abs(a - b) < 0.13 for a, b in zip(placed, values, strict=True))


def batch_of(*keys, masks=2):
    """Images by name with masks of the same square, whose numbers tell them apart."""
    drawn = torch.zeros(len(keys) * masks, 8, 8, dtype=torch.bool)
    drawn[:, 2:6, 2:6] = True
    index = torch.arange(len(keys)).repeat_interleave(masks)
    sizes = torch.full((len(keys), 2), 8)
    return Batch(torch.zeros(len(keys), 3, 8, 8, dtype=torch.uint8), sizes, sizes, drawn, index, list(keys))


def extremes(examples):
    return [[(e.batch.keys[0], round(abs(e.order[0]), 2), len(e.batch.masks)) for e in kept] for kept in
            (examples._best, examples._worst)]  # fmt: skip


def test_the_best_and_worst_are_few_of_different_images_and_the_same_in_any_batches():
    scores = {"a": (0.5, 0.9), "b": (0.9, 0.2), "c": (0.1, 0.1), "d": (0.7, 0.3), "e": (0.95, 0.94)}
    found = []
    for parts in (["abcde"], ["ab", "cd", "e"], ["e", "d", "c", "b", "a"]):
        examples = Examples(0, 2)
        for number, keys in enumerate(parts):
            iou = torch.tensor([score for key in keys for score in scores[key]])
            examples.see(batch_of(*keys), number, {"iou": iou})
        found.append(extremes(examples))
    best, worst = [("e", 0.95, 1), ("a", 0.9, 1)], [("c", 0.1, 1), ("b", 0.2, 1)]
    assert found == [[best, worst]] * 3  # of equals, b and a, the first by name
    examples.see(batch_of("z"), 0, {"iou": torch.tensor([0.4, 0.6])})  # the next validation
    assert extremes(examples) == [[("z", 0.6, 1)], [("z", 0.4, 1)]]
    empty = batch_of("y")
    empty.masks[:] = False
    examples.see(empty, 1, {"iou": torch.ones(2)})  # nothing to see
    examples.see(batch_of("y"), 2, {})
    examples.see(batch_of("y", masks=0), 3, {"iou": torch.ones(0)})
    assert extremes(examples)[0] == [("z", 0.6, 1)]


def test_an_answer_in_four_pictures():
    image, mask = np.full((20, 40, 3), 100, np.uint8), np.zeros((20, 40), bool)
    mask[5:15, 10:30] = True
    answer = Answer((), np.roll(mask, 5, 1), 0.6, 0.9)
    drawn = pictures.panels(Example(image, mask, (40, 40)), answer)
    assert tuple(drawn) == pictures.PANELS
    assert {picture.size for picture in drawn.values()} == {(pictures.CELL, pictures.CELL // 2)}
    prompt, prediction, truth, error = (np.asarray(picture).astype(int) for picture in drawn.values())
    assert (prompt == 100).all()
    assert (prediction[56, 190] - 100).tolist() != [0, 0, 0]
    assert (truth[56, 190] == 100).all()
    assert error[56, 185, 0] - error[56, 185, 2] > 100  # too much
    assert error[56, 65, 2] - error[56, 65, 0] > 100  # missing


def test_curves_take_any_history_and_any_answers():
    rows = [
        {"step": i, **{f"train/pass_{n:02}/{name}": i / 99 for n in range(1, 12) for name in ("loss", "miou")}}
        for i in range(1, 60)
    ]
    rows[30].pop("train/pass_11/loss")
    found = Reliability([0.05, 0.15, 0.95], [0.2, 0.1, 0.95], [4, 3, 1])
    none = Reliability([0.0], [0.0], [0])
    assert (curves.passes([]), curves.passes(rows)) == (0, 11)
    for drawn in (
        curves.by_pass([]),
        curves.by_pass(rows, "title"),
        curves.reliability(found),
        curves.reliability(none),
    ):
        picture = Image.open(io.BytesIO(drawn))
        assert picture.width > 1000
        assert np.asarray(picture.convert("L")).min() < 128
