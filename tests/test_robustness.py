"""Disturbed prompts and images: how far they are moved and changed, and that changed images are embedded once each."""

from itertools import combinations

import cv2
import numpy as np
import pytest
import torch

from samlit.evaluation.answers import Answers
from samlit.loading import frames
from samlit.loop import drive
from samlit.masks import rle
from samlit.source import Sample
from samlit.structures import Change, PromptSet, Ragged, Scene, Window
from samlit_tasks.robustness import Robustness, blur, jpeg
from tests import fitting
from tests.clicking import SIDE, Noisy, samples, scene


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
