"""Masks of everything, against the released generator with the same weights, and their recall."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from segment_anything import SamAutomaticMaskGenerator
from segment_anything.utils.amg import remove_small_regions

from samlit import cli, everything
from samlit.evaluation.answers import Answers
from samlit.loading import frames
from samlit.loop import drive
from samlit.masks import rle
from samlit.predictor import Predictor
from samlit.structures import PromptSet, Ragged, Scene
from samlit_tasks._automatic import Automatic, _without_small
from samlit_tasks.everything import Everything, _best_iou
from tests import conftest, official
from tests.clicking import Noisy, samples, scene
from tests.test_predictor_official import MOBILE_SAM, needs_mobile_sam, photographs, picture


@pytest.fixture(scope="module")
def both():
    return official.small(11)  # of these random weights masks differ from point to point


def found_in(net, side, pixels, **keys):
    """What samlit finds in an image."""
    return everything.find(net, side, pixels, Everything(Automatic(**keys)))


def assert_same(found, theirs, iou=0.99):
    """Every mask is matched by one and only one of the others, with the same scores."""
    assert len(found) == len(theirs)
    others = [rle.encode(one["segmentation"]) for one in theirs]
    mine = [one.rle for one in found]
    if not mine:
        return
    shared = rle.intersections(mine, others)
    areas, sizes = (np.array([rle.area(mask) for mask in masks]) for masks in (mine, others))
    alike = shared / (areas[:, None] + sizes - shared)
    # The same point and the same predicted IoU: which of them it is, if masks are much alike.
    points = np.array([one.point for one in found])[:, None] - np.array([one["point_coords"][0] for one in theirs])
    scores = np.array([one.predicted_iou for one in found])[:, None] - [one["predicted_iou"] for one in theirs]
    pairs = (np.abs(points).max(2) < 1e-3) & (np.abs(scores) < 1e-4) & (alike >= iou)
    assert (pairs.sum(0) == 1).all()
    assert (pairs.sum(1) == 1).all()
    for one, k in zip(found, pairs.argmax(1), strict=True):
        record, expected = one.record(), theirs[k]
        assert abs(record["stability_score"] - expected["stability_score"]) < 1e-3
        assert abs(record["area"] - expected["area"]) <= 2
        np.testing.assert_allclose(record["bbox"], expected["bbox"], atol=1)
        assert record["crop_box"] == [int(side) for side in expected["crop_box"]]


KEYS = {"points_per_side": 6, "points_per_batch": 10, "pred_iou_thresh": 0.0, "box_nms_thresh": 0.97}
KEYS |= {"stability_score_thresh": 0.3, "stability_score_offset": 0.1, "crop_nms_thresh": 0.97}


@pytest.mark.parametrize("size", [(40, 100), (64, 64), (133, 100)], ids=str)
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"crop_n_layers": 1},
        {"crop_n_layers": 2, "crop_n_points_downscale_factor": 2, "crop_overlap_ratio": 0.2, "crop_nms_thresh": 0.5},
        {"min_mask_region_area": 12},
        {"stability_score_offset": 0.05, "stability_score_thresh": 0.6, "pred_iou_thresh": 0.6},
    ],
    ids=str,
)
def test_masks_are_those_of_the_released_generator(both, size, more):
    released, own = both
    keys = {**KEYS, **more}
    found = found_in(own, 64, picture(*size), **keys)
    theirs = SamAutomaticMaskGenerator(released, **keys).generate(picture(*size))
    assert_same(found, theirs)
    assert len(found) >= 5, "there is nothing to compare"


def test_batches_and_quality_first_change_nothing(both):
    _, own = both
    reference = found_in(own, 64, picture(90, 70), **KEYS)
    drawn = []
    original = type(own.decoder)._draw
    try:
        type(own.decoder)._draw = lambda self, *a: drawn.append(len(a[2])) or original(self, *a)
        iou = sorted(one.predicted_iou for one in reference)
        some = found_in(own, 64, picture(90, 70), **KEYS | {"points_per_batch": 36, "pred_iou_thresh": iou[-2]})
    finally:
        type(own.decoder)._draw = original
    assert sum(drawn) < 36, "rows that are rejected are not drawn"
    assert [one.rle for one in some] == [one.rle for one in reference if one.predicted_iou > iou[-2]]


@torch.no_grad()
def test_rows_below_the_least_quality_are_empty_and_others_as_ever(both):
    _, own = both
    embedding = own.embed(torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8), torch.tensor([[64, 64], [64, 64]]))
    index = torch.tensor([0, 1, 1, 0, 1])
    given = {"points": Ragged.of(torch.tensor([[[x, 30.0, 1.0]] for x in (3, 20, 33, 47, 60)]))}
    every = own.answer(embedding, PromptSet(index, given, True), (64, 64))
    least = float(every.iou.max(1).values.median())
    some = own.answer(embedding, PromptSet(index, given, True, min_iou=least), (64, 64))
    good = every.iou.max(1).values > least
    assert 0 < good.sum() < 5
    torch.testing.assert_close(some.iou, every.iou)
    torch.testing.assert_close(some.logits[good], every.logits[good])
    assert (some.logits[~good] < -50).all()


def test_many_images_a_batch_of_several_sizes(both):
    _, own = both
    made = samples(sizes=((50, 90), (130, 61)))
    batch = frames.pack([frames.frame(sample, 64) for sample in made])
    batch.samples = made
    asked, answers = [], Answers(own, batch)
    task, view = Everything(Automatic(**KEYS, crop_n_layers=1)), Scene(batch, own.prompt_types)
    with torch.no_grad():
        found = drive(task, view, lambda prompts: asked.append(prompts) or answers(prompts))["found"]
    whole = [prompts for prompts in asked if prompts.window is None]
    assert [len(prompts) for prompts in whole] == [10] * 7 + [2], "whole images are asked about together"
    assert any(len(set(prompts.image_index.tolist())) == 2 for prompts in whole)
    assert task.questions(view) == len(asked) == 8 + 2 * 4 * 4
    for sample, masks in zip(made, found, strict=True):
        alone = found_in(own, 64, sample.image, **KEYS, crop_n_layers=1)
        assert {one.rle.size for one in masks} <= {sample.size}
        assert len(masks) == len(alone)
        for one, other in zip(masks, alone, strict=True):
            assert rle.intersections([one.rle], [other.rle])[0, 0] >= 0.99 * max(one.area, other.area)


def test_small_regions_are_those_of_the_released_code():
    """Though only a part of the image is looked at, also at its edges, and where a mask is nearly all of it."""
    chance, changed = np.random.default_rng(5), 0
    for _ in range(400):
        rows, columns = chance.integers(1, 26, 2)
        coarse = chance.random((-(-rows // 3), -(-columns // 3))) < chance.choice([0.1, 0.5, 0.9, 0.99])
        mask = coarse.repeat(3, 0).repeat(3, 1)[:rows, :columns] ^ (chance.random((rows, columns)) < 0.04)
        if chance.random() < 0.5:  # an object with background around it, on some sides
            y, x = np.mgrid[:rows, :columns]
            mask &= (y >= chance.integers(0, 9)) & (y < rows - chance.integers(0, 9)) & (x >= chance.integers(0, 4))
        if not mask.any():
            continue
        least = int(chance.integers(1, 40))
        expected, filled = remove_small_regions(mask, least, "holes")
        expected, removed = remove_small_regions(expected, least, "islands")
        string = rle.encode(mask)
        x0, y0, x1, y1 = rle.box(string)
        found = _without_small(string, (x0, y0, x1 - 1, y1 - 1), least)
        assert (found is not None) == (filled or removed)
        assert (found or string) == rle.encode(expected)
        changed += found is not None
    assert 50 < changed < 350


def test_recall_is_counted_over_true_masks():
    y, x = np.mgrid[:40, :50]
    truths = np.stack([x < 20, (x >= 20) & (y < 10), (x > 40) & (y > 30), x > 99])
    found = np.stack([x < 15, (x >= 20) & (y < 9)])
    best = _best_iou(rle.encode_many(truths), rle.encode_many(found))
    assert best == pytest.approx([0.75, 0.9, 0.0])
    assert _best_iou(rle.encode_many(truths), []) == [0.0] * 3
    assert _best_iou([], rle.encode_many(found)) == []


@pytest.mark.parametrize("own", [True, False])
def test_the_task_judges_at_the_images_size_and_in_the_frame(own, tmp_path):
    made = samples(sizes=((50, 90), (128, 64)), count=2)
    view = scene(made)
    if not own:
        view.batch.samples = []
    task = Everything(Automatic(points_per_side=4, pred_iou_thresh=None, stability_score_thresh=None))
    # The grid asks for no true mask; here each of its points is answered with one that is nearly right.
    noisy = Noisy(view, noise=0.5)

    def answer(prompts):
        prompts.target = prompts.image_index * 2 + torch.arange(len(prompts)) % 2
        return noisy(prompts)

    result = drive(task, view, answer)
    metric = task.metric()
    metric.update(result)
    numbers = {name: float(value) for name, value in metric.compute().items()}
    assert len(result["average_recall"]) == 4
    assert 0.5 <= numbers["recall_50"] <= 1
    assert numbers["recall_75"] <= numbers["recall_50"]
    assert 0.2 < numbers["average_recall"] < numbers["recall_50"] + 1e-9
    assert numbers["masks"] == np.mean([len(masks) for masks in result["found"]])
    if own:
        pictures = task.show(view, result)
        assert [one.size for one in pictures] == [(90, 50), (64, 128)]


def test_windows_are_refused_while_training():
    view = scene(samples())
    view.batch.samples = []
    with pytest.raises(ValueError, match="crop_n_layers: parts of images are not at hand while training"):
        drive(Everything(Automatic(crop_n_layers=1)), view, Noisy(view))


@pytest.mark.parametrize(
    "keys", [{"points_per_side": 0}, {"crop_n_layers": -1}, {"stability_score_offset": -1.0}, {"points_per_batch": 0}]
)
def test_parameters_that_make_no_sense_are_refused(keys):
    with pytest.raises(ValueError, match=next(iter(keys))):
        Automatic(**keys)


@pytest.mark.slow
@needs_mobile_sam
def test_mobile_sam_finds_in_a_photograph_and_its_crops_what_it_finds_with_the_released_code():
    released, own = official.mobile(MOBILE_SAM)
    pixels = photographs("food/train")[0].pixels()
    keys = {"points_per_side": 3, "crop_n_layers": 1}
    found = found_in(own, 1024, pixels, **keys)
    assert_same(found, SamAutomaticMaskGenerator(released, **keys).generate(pixels))
    assert len(found) >= 5


def test_it_validates_a_training_and_watches_what_it_forgets(tmp_path, capsys):
    grid = "{points_per_side: 4, pred_iou_thresh: null, stability_score_thresh: null}"
    task = f"{{class_path: everything, init_args: {{options: {grid}}}}}"
    text = conftest.RECIPE.replace("data:\n", f"  validation: [points, {task}]\ndata:\n")
    text = text.replace("  image_size", "  validation: {class_path: tests.fitting.Discs}\n  image_size")
    (tmp_path / "recipe.yaml").write_text(text)
    words = ["--recipe", str(tmp_path / "recipe.yaml"), "--trainer.default_root_dir", str(tmp_path / "runs")]
    assert cli.main(["validate", *words, "--data.forgetting", "tests.fitting.Discs"]) == 0
    out = capsys.readouterr().out
    numbers = dict(re.findall(r"\b((?:val|forgetting)/\w+)[^\d\n]+(\d[\d.]*)", out))
    assert {"val/average_recall", "val/masks", "forgetting/recall_50"} <= numbers.keys(), out
    assert 0 <= float(numbers["val/miou"]) <= 1, "a number of masks is no share"


def test_python_is_given_what_the_command_finds(checkpoint, tmp_path):
    Image.fromarray(picture(40, 70)).save(tmp_path / "one.png")
    words = ["segment", str(tmp_path / "one.png"), "--weights", str(checkpoint), "--everything"]
    keys = {"points_per_side": 5, "pred_iou_thresh": None, "stability_score_thresh": None, "box_nms_thresh": 0.9}
    words += [f"--everything.{key}={json.dumps(value)}" for key, value in keys.items()]
    assert cli.main([*words, "--out", str(tmp_path / "found.json")]) == 0
    rows = json.loads((tmp_path / "found.json").read_text())
    found = Predictor.load(checkpoint).everything(tmp_path / "one.png", **keys)
    assert found
    assert [json.loads(json.dumps(one.record())) for one in found] == [
        {key: value for key, value in row.items() if key != "file_name"} for row in rows
    ]
    assert found[0].mask.shape == (40, 70)
    assert found[0].mask.sum() == found[0].area


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"points_per_sides": 4}, "no option 'points_per_sides'; did you mean 'points_per_side'"),
        ({"points_per_side": 0}, "points_per_side: one at least, not 0"),
    ],
)
def test_an_option_that_is_none_is_said_in_python_too(options, says, checkpoint):
    with pytest.raises(ValueError, match=says):
        Predictor.load(checkpoint).everything(picture(40, 70), **options)
