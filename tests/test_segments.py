"""Panoptic quality and mIoU against plain computations, and the tasks that name masks of everything."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchmetrics.classification import MulticlassJaccardIndex
from torchmetrics.detection import PanopticQuality

from samlit.evaluation import segments
from samlit.evaluation.segments import Segments
from samlit.loop import drive
from samlit.masks import rle
from samlit.structures import Ragged
from samlit_tasks._automatic import Automatic
from samlit_tasks._labelled import _true, joined
from samlit_tasks.panoptic import Panoptic
from samlit_tasks.semantic import Semantic
from tests.clicking import Noisy, samples, scene
from tests.test_predictor_official import SHARED

SAMPLE = SHARED / "panoptic_sample"
UNFILTERED = Automatic(points_per_side=4, pred_iou_thresh=None, stability_score_thresh=None)


def cut(chance, classes=4, crowd=False, size=(24, 30), seams=5):
    """An image cut at random, some of it nobody's."""
    y, x = np.mgrid[: size[0], : size[1]]
    points = chance.random((seams, 2)) * size
    map_ = ((y[..., None] - points[:, 0]) ** 2 + (x[..., None] - points[:, 1]) ** 2).argmin(-1) + 1
    map_[chance.random(size) < 0.05] = 0
    kinds = {number: int(chance.integers(1, classes + 1)) for number in range(1, seams + 1)}
    many = frozenset(number for number in kinds if crowd and chance.random() < 0.3)
    # Of a class there is at most one crowd.
    seen: set = set()
    many = frozenset(n for n in sorted(many) if kinds[n] not in seen and not seen.add(kinds[n]))
    return Segments(map_.astype(np.int64), kinds, many)


def moved(chance, of, shift=3):
    """Nearly the same segments, under other numbers."""
    map_ = np.roll(of.map, tuple(chance.integers(-shift, shift + 1, 2)), (0, 1))
    kinds = {n + 10: (k if chance.random() < 0.8 else k % 4 + 1) for n, k in of.classes.items()}
    return Segments(np.where(map_ > 0, map_ + 10, 0), kinds)


def plain(truth, found):
    """The rules as they are written down, segment by segment."""
    told = {}
    void = ~np.isin(truth.map, list(truth.classes))

    def add(kind, place, value=1.0):
        told.setdefault(kind, [0.0, 0, 0, 0])[place] += value

    left = set(found.classes)
    for number, kind in truth.classes.items():
        if number in truth.crowd:
            continue
        mask = truth.map == number
        for other in sorted(left):
            mine = (found.map == other) & ~void
            either = (mask | mine).sum()
            iou = (mask & mine).sum() / either if either else 0
            if found.classes[other] == kind and iou > 0.5:
                add(kind, 0, iou)
                add(kind, 1)
                left.discard(other)
                break
        else:
            add(kind, 3)
    for other in left:
        mine, kind = found.map == other, found.classes[other]
        crowds = [number for number in truth.crowd if truth.classes[number] == kind]
        nobodys = void | np.isin(truth.map, crowds)
        if mine.any() and (mine & nobodys).sum() / mine.sum() <= 0.5:
            add(kind, 2)
    return told


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), crowd=st.booleans())
def test_segments_are_compared_by_the_rules(seed, crowd):
    chance = np.random.default_rng(seed)
    truth = cut(chance, crowd=crowd)
    found = moved(chance, truth, 6)
    told, expected = segments.compare(truth, found), plain(truth, found)
    assert told.keys() == expected.keys()
    for kind, counts in expected.items():
        assert told[kind] == pytest.approx(counts)


def test_quality_is_torchmetrics():
    chance = np.random.default_rng(3)
    pairs = [(truth, moved(chance, truth)) for truth in (cut(chance, size=(40, 40)) for _ in range(6))]
    pairs = [(Segments(np.where(a.map == 0, 1, a.map), a.classes), b) for a, b in pairs]
    pairs = [(a, Segments(np.where(b.map == 0, 11, b.map), b.classes)) for a, b in pairs]
    found = segments.quality([segments.compare(*pair) for pair in pairs], {1, 2})
    # torchmetrics takes instances of stuff together: all classes are things here.
    judge = PanopticQuality(things={1, 2, 3, 4}, stuffs=set())
    for truth, mine in pairs:
        maps = [
            torch.tensor(np.stack([np.vectorize(one.classes.get)(one.map), one.map], -1))[None] for one in (mine, truth)
        ]
        judge.update(*maps)
    assert found["pq"] == pytest.approx(float(judge.compute()), abs=1e-6)
    assert found["pq"] <= found["rq"] <= 1
    assert segments.quality([], {1})["pq"] == 0


def test_mean_iou_is_torchmetrics():
    chance = np.random.default_rng(4)
    told, judge = [], MulticlassJaccardIndex(5, average=None, ignore_index=0)
    for _ in range(5):
        truth = cut(chance)
        found = moved(chance, truth)
        told.append(segments.shares(truth, found))
        maps = [torch.tensor(np.vectorize({**one.classes, 0: 0}.get)(one.map)) for one in (found, truth)]
        judge.update(*maps)
    # Class 0 is nobody's; its index is left out of the mean.
    expected = judge.compute()[1:]
    assert segments.mean_iou(told) == pytest.approx(float(expected.mean()), abs=1e-6)
    assert np.isnan(segments.mean_iou([]))


def test_masks_are_joined_smallest_first_and_stuff_is_one():
    y, x = np.mgrid[:20, :30]
    masks = rle.encode_many(np.stack([x < 20, (x < 8) & (y < 8), x > 24, (x > 10) & (x < 14) & (y < 5), y > 17]))
    made = joined(masks, [1, 2, 1, 2, None], (20, 30), things={2})
    assert made.map[0, 0] == 2
    assert made.map[10, 0] == made.map[10, 29] == 1, "stuff of a class is one segment"
    assert made.map[0, 12] == 4
    assert made.map[0, 22] == made.map[19, 22] == 0
    assert made.classes == {1: 1, 2: 2, 4: 2}
    assert joined(masks, [None] * 5, (20, 30), {2}).classes == {}


def written(folder, made):
    """A panoptic file of samples."""
    images, annotations = [], []
    (folder / "panoptic").mkdir()
    for number, sample in enumerate(made, 5):
        map_ = np.zeros((*sample.size, 3), np.uint8)
        info = []
        for k, mask in enumerate(sample.masks, 1):
            map_[rle.decode(mask)] = (k, 1, 0)
            info.append({"id": k + 256, "category_id": 1 + k % 2, "iscrowd": 0})
        Image.fromarray(map_).save(folder / "panoptic" / f"{number}.png")
        height, width = sample.size
        images.append({"id": number, "file_name": f"{sample.key}.jpg", "height": height, "width": width})
        annotations.append({"image_id": number, "file_name": f"{number}.png", "segments_info": info})
    categories = [{"id": 1, "name": "cat", "isthing": 1}, {"id": 2, "name": "sky", "isthing": 0}]
    document = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "panoptic.json").write_text(json.dumps(document))
    return str(folder / "panoptic.json")


def everywhere(view):
    """Answers each of a grid's points with one of two true masks, nearly."""
    noisy = Noisy(view, noise=0.2)

    def answer(prompts):
        prompts.target = prompts.image_index * 2 + torch.arange(len(prompts)) % 2
        return noisy(prompts)

    return answer


def test_the_tasks_name_masks_by_the_truth_or_by_whom_they_are_told(tmp_path, monkeypatch):
    made = samples(sizes=((50, 90), (64, 61)), count=2)
    file = written(tmp_path, made)
    view = scene(made)
    numbers = {}
    (tmp_path / "naming.py").write_text(
        "class Nothing:\n    def __call__(self, sample, masks):\n        return [None] * len(masks)\n"
        "def cats(sample, masks):\n    return [1] * len(masks)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for labels in (None, "naming.Nothing", "naming.cats"):
        numbers[labels] = {}
        for kind in (Panoptic, Semantic):
            task = kind(file, labels=labels, options=UNFILTERED)
            result = drive(task, view, everywhere(view))
            metric = task.metric()
            metric.update(result)
            numbers[labels] |= {name: float(value) for name, value in metric.compute().items()}
    assert numbers[None]["pq"] > 0.3
    assert numbers[None]["miou"] > 0.5
    assert numbers["naming.Nothing"]["pq"] == numbers["naming.Nothing"]["miou"] == 0
    assert numbers[None]["miou"] > numbers["naming.cats"]["miou"] > 0
    assert numbers["naming.cats"]["pq_stuff"] == 0
    for kind in (Panoptic, Semantic):
        task = kind(file, options=UNFILTERED)
        shown = task.show(view, drive(task, view, everywhere(view)))
        assert [one.size for one in shown] == [(90, 50), (61, 64)]
        assert all((np.asarray(one) != sample.pixels()).any() for one, sample in zip(shown, made, strict=True))


class Words:
    """A prompt type that sees in a mask which of a scene's true masks it overlaps most, and so its class."""

    name = "text"

    def __init__(self, view):
        self.truth = view.batch.masks.flatten(1).float()
        image = view.image_index.tolist()
        self.kinds = torch.tensor([(k - image.index(of) + 1) % 2 for k, of in enumerate(image)])
        self.asked = []

    def told(self, phrases, device):
        self.asked.append(phrases)
        return Ragged.of(torch.tensor([{"cat": [1.0, 0.0], "sky": [0.0, 1.0]}[one] for one in phrases])[:, None])

    def likeness(self, masks, scene, image_index):
        assert len(masks) <= 64
        assert masks.shape[1:] == scene.batch.image.shape[2:], "masks are the frame's, as CLIP's cut-outs are"
        assert scene.batch.image.float().std() > 0
        nearest = (masks.flatten(1).float() @ self.truth.T).argmax(1)
        return torch.nn.functional.one_hot(self.kinds[nearest], 2).float()


def test_the_tasks_name_masks_by_the_models_own_words(tmp_path):
    made = samples(sizes=((50, 90),), count=2)
    file = written(tmp_path, made)
    view = scene(made)
    words = Words(view)
    view = replace(view, prompts={**view.prompts, "text": words})
    for kind in (Panoptic, Semantic):
        told = {}
        for labels in (None, "text"):
            task = kind(file, labels=labels, options=UNFILTERED)
            assert ("text" in task.prompts) == (labels == "text")
            metric = task.metric()
            metric.update(drive(task, view, everywhere(view)))
            told[labels] = {name: float(value) for name, value in metric.compute().items()}
        assert words.asked.pop() == ["cat", "sky"]
        name = "pq" if kind is Panoptic else "miou"
        assert told["text"][name] > 0.8 * told[None][name] > 0.2
    called = ["wall-other-merged", "door-stuff", "fire_hydrant", "paper-merged"]
    assert [segments._in_words(name) for name in called] == ["wall", "door", "fire hydrant", "paper"]


def test_a_part_of_a_thing_is_not_named_and_a_part_of_stuff_is():
    map_ = np.ones((10, 10), np.int64)
    map_[:, 5:] = 2
    truth = Segments(map_, {1: 7, 2: 8})

    def mask(rows, columns):
        drawn = np.zeros((10, 10), bool)
        drawn[rows, columns] = True
        return rle.encode(drawn)

    half, more, wide = mask(slice(5), slice(5)), mask(slice(6), slice(5)), mask(slice(10), slice(10))
    other = mask(slice(5), slice(5, 10))
    # IoU .5 with the thing is not above .5; of two classes with the same share the first counts.
    assert _true(truth, [half, more, other, wide], {7}) == [None, 7, 8, None]
    assert _true(truth, [half, more, other, wide], set()) == [7, 7, 8, 7]
    nobody = Segments(np.zeros((10, 10), np.int64), {})
    assert _true(nobody, [half, rle.encode(np.zeros((10, 10), bool))], {7}) == [None, None]


@pytest.mark.skipif(not SAMPLE.is_dir(), reason=f"{SAMPLE} is not here: SAMLIT_SHARED names the folder of real data")
def test_the_panoptic_sample_agrees_with_itself():
    known = segments.Panoptic(str(SAMPLE / "panoptic_examples.json"), str(SAMPLE / "panoptic_examples"))
    told, things = [], known.things
    for key in ("000000142238", "000000439180"):
        truth = known.segments(key)
        assert set(np.unique(truth.map)) - {0} == set(truth.classes)
        own = Segments(truth.map, {n: k for n, k in truth.classes.items() if n not in truth.crowd})
        told.append(segments.compare(truth, own))
        expected = plain(truth, own)
        assert told[-1].keys() == expected.keys()
        assert all(told[-1][kind] == pytest.approx(counts) for kind, counts in expected.items())
        masks = [rle.encode(truth.map == number) for number in truth.classes]
        assert _true(truth, masks, things) == list(truth.classes.values())
    found = segments.quality(told, things)
    assert found["pq"] == found["pq_things"] == found["pq_stuff"] == 1


def test_what_is_no_panoptic_file_is_one_line(tmp_path):
    file = written(tmp_path, samples(sizes=((50, 90),), count=2))
    known = segments.Panoptic(file)
    with pytest.raises(ValueError, match="has no image 'picture 9'"):
        known.segments("picture 9")
    (tmp_path / "panoptic" / "5.png").unlink()
    with pytest.raises(ValueError, match=r"there is no .*5\.png"):
        known.segments("picture 0")
    (tmp_path / "cut.json").write_text("{")
    (tmp_path / "other.json").write_text('{"images": [], "annotations": [{}], "categories": []}')
    for name, says in (("gone", "no such file"), ("cut", "is not JSON"), ("other", "is no panoptic file")):
        with pytest.raises(ValueError, match=says):
            segments.Panoptic(str(tmp_path / f"{name}.json"))
    with pytest.raises(ValueError, match="there is no folder"):
        segments.Panoptic(file, str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"labels: there is no function or class nobody\.Names"):
        Semantic(file, labels="nobody.Names")


def disturbed(truth):
    """Segments moved, cut in two, taken for another class and lost; the same each time."""
    map_, known = np.zeros_like(truth.map), {}
    for i, (number, kind) in enumerate(truth.classes.items()):
        if i % 7 == 5:
            continue
        mask = np.roll(truth.map == number, (i % 5 - 2, 3 * (i % 3) - 3), (0, 1))
        other = [1, 184, kind][min(i % 6, 2)]
        halves = [mask] if i % 4 else [mask & (np.arange(mask.shape[1]) % 640 < 330), mask]
        for part in reversed(halves):
            map_[part] = len(known) + 1
            known[len(known) + 1] = other
    there = set(np.unique(map_).tolist())
    return Segments(map_, {number: kind for number, kind in known.items() if number in there})


@pytest.mark.skipif(not SAMPLE.is_dir(), reason=f"{SAMPLE} is not here: SAMLIT_SHARED names the folder of real data")
@pytest.mark.parametrize(
    ("crowds", "expected"),
    [
        (False, [0.581034467, 0.834201759, 0.716858483, 0.626839595, 0.747064169, 0.850383632,
                 0.53522934, 0.921339348, 0.583333333]),
        (True, [0.510699563, 0.674927367, 0.661654135, 0.584424623, 0.713829496, 0.824561404,
                0.412399483, 0.623057863, 0.444444444]),
    ],
)  # fmt: skip
def test_the_disturbed_samples_numbers_are_those_of_the_released_code(crowds, expected):
    # What panopticapi (1ad5afa) said of the same segments, written as PNG and JSON; with every third one a crowd too.
    known = segments.Panoptic(str(SAMPLE / "panoptic_examples.json"))
    told = []
    for key in ("000000142238", "000000439180"):
        truth = known.segments(key)
        many = frozenset(list(truth.classes)[1::3]) if crowds else truth.crowd
        told.append(segments.compare(Segments(truth.map, truth.classes, many), disturbed(truth)))
    found = segments.quality(told, known.things)
    assert [name + end for end in ("", "_things", "_stuff") for name in ("pq", "sq", "rq")] == list(found)
    assert list(found.values()) == pytest.approx(expected, abs=1e-9)


def test_pictures_that_do_not_belong_are_one_line(tmp_path):
    made = samples(sizes=((50, 90),), count=2)
    file = written(tmp_path, made)
    view = scene(samples(sizes=((50, 80),), count=2))
    for kind in (Panoptic, Semantic):
        with pytest.raises(
            ValueError, match=r"5\.png is 50 x 90, and picture 0 is 50 x 80: they do not belong together"
        ):
            drive(kind(file, options=UNFILTERED), view, everywhere(view))
    known = segments.Panoptic(file)
    Image.new("RGB", (90, 50), (1, 2, 3)).save(tmp_path / "panoptic" / "5.png")
    with pytest.raises(ValueError, match=r"5\.png has a segment 197121 that .*panoptic\.json has not"):
        known.segments("picture 0")
    (tmp_path / "panoptic" / "5.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"^.*5\.png cannot be read \([^\n]*\)$"):
        known.segments("picture 0")


@pytest.mark.parametrize("task", [Panoptic, Semantic])
def test_annotations_of_other_images_are_told_before_anything_is_asked(tmp_path, task):
    made = samples(sizes=((50, 90), (60, 90)), count=2)
    file = written(tmp_path, made[:1])
    with pytest.raises(ValueError, match="has no image 'picture 1'"):
        next(task(str(file), labels=None, options=UNFILTERED).rounds(scene(made)))
