"""Tasks that judge at the images' own sizes, in a training's validation, where only frames are at hand."""

import json

import numpy as np
import pytest
import torch

from samlit.contracts import Task
from samlit.evaluation.answers import Answers
from samlit.loading import frames
from samlit.masks import rle
from samlit.metrics import mask_iou
from samlit.source import Sample
from samlit.structures import Embedding, PromptSet, Ragged, Window
from samlit_tasks._automatic import Automatic
from samlit_tasks.clicks import Clicks
from samlit_tasks.edges import Edges
from samlit_tasks.everything import Everything
from samlit_tasks.foreground import Foreground
from samlit_tasks.instances import Instances
from samlit_tasks.panoptic import Panoptic
from samlit_tasks.proposals import Proposals
from samlit_tasks.robustness import Robustness
from samlit_tasks.semantic import Semantic
from samlit_tasks.superpixels import Superpixels
from tests import fitting
from tests.clicking import samples
from tests.test_detection import annotated
from tests.test_segments import written

GRID = Automatic(points_per_side=2, pred_iou_thresh=None, stability_score_thresh=None)
SIZES = ((50, 90), (130, 61))


def framed(made, side=32):
    return frames.pack([frames.frame(sample, side) for sample in made])


def test_samples_are_what_the_frame_shows():
    made = [Sample(s.key, s.image, s.masks, ("a", "b", "c")) for s in samples(sizes=(*SIZES, (64, 64)))]
    made[1] = Sample(made[1].key, made[1].image, ())
    batch = framed(made, 64)
    batch.phrases = ["a", "b", "c"] * 2
    back = frames.unframed(batch)
    assert not batch.samples, "the batch itself stays as it was"
    for sample, own in zip(back.samples, made, strict=True):
        assert (sample.key, sample.size, sample.phrases) == (own.key, own.size, own.phrases)
        assert sample.pixels().shape == own.pixels().shape
        assert [mask.size for mask in sample.masks] == [own.size] * len(own.masks)
        for one, other in zip(sample.masks, own.masks, strict=True):  # whose specks are lost in the frame
            assert mask_iou(*(torch.from_numpy(rle.decode(mask)) for mask in (one, other))) > 0.6
    assert torch.equal(framed(back.samples, 64).masks, batch.masks), "nothing is lost or moved on the way back"
    assert back.samples[2].masks == made[2].masks, "a frame of the image's size loses nothing"
    assert np.array_equal(back.samples[2].pixels(), made[2].pixels())


def test_images_that_come_embedded_are_not_asked_about_in_part():
    batch = framed(samples(sizes=SIZES))
    batch.embedding = Embedding(torch.zeros(2, 16, 4, 4))
    back = frames.unframed(batch)
    assert back.samples[0].pixels().shape == (50, 90, 3)
    prompts = PromptSet(torch.zeros(1, dtype=torch.int64), {"points": Ragged.of(torch.ones(1, 1, 3))})
    prompts.window = Window(0, 0, 0, 20, 20)
    with pytest.raises(ValueError, match="need it, and it comes embedded"):
        Answers(fitting.module().net, back)(prompts)


def tasks(folder, made) -> dict[str, Task]:
    known, seen = written(folder, made), annotated(folder, made)
    return {
        "clicks": Clicks(most=2),
        "everything": Everything(GRID),
        "foreground": Foreground(),
        "instances": Instances(str(seen)),
        "panoptic": Panoptic(known, options=GRID),
        "proposals": Proposals(str(seen), options=GRID),
        "robustness": Robustness(),
        "semantic": Semantic(known, options=GRID),
        "superpixels": Superpixels(segments=4, options=GRID),
    }


@pytest.mark.parametrize(
    "name",
    [
        "clicks",
        "everything",
        "foreground",
        "instances",
        "panoptic",
        "proposals",
        "robustness",
        "semantic",
        "superpixels",
    ],
)
def test_a_training_is_judged_by_every_task(tmp_path, name):
    made = samples(sizes=SIZES, count=2)
    task = tasks(tmp_path, made)[name]
    module, batch = fitting.module().eval(), framed(made)
    batch.keys = [f"{sample.key}.png" for sample in made] if name == "instances" else [s.key for s in made]
    metric = task.metric()
    with torch.no_grad():
        result = module.run(task, batch, common=0)
    if name == "clicks":
        assert len(result["ious"]) == 4
    if name == "instances":
        assert {len(image["results"]) for image in result["instances"]} == {2}
    metric.update(result)
    numbers = {key: float(value) for key, value in metric.compute().items()}
    if name in ("panoptic", "semantic"):  # the model knows nothing: what counts is that the truth was compared with
        assert [len(row) > 0 for row in result[name]] == [True, True]
    else:
        assert any(value for value in numbers.values())
    # What is averaged to val/miou are shares of 1.
    counts = getattr(metric, "counts", ())
    assert set(counts) < numbers.keys()
    shares = [value for key, value in numbers.items() if key not in counts and value == value]
    assert all(0 <= value <= 1 for value in shares)
    json.dumps(numbers)


def test_edges_say_what_they_need():
    with pytest.raises(ValueError, match=r"picture 0 has no boundaries to judge edges by; the source `bsds` has them"):
        fitting.module().eval().run(Edges(options=GRID), framed(samples(sizes=SIZES)), common=0)
