"""AP and AR of masks against the official code, and the tasks that are judged by them."""

import contextlib
import io
import json
import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from samlit.evaluation.detection import Annotations, average_precision, average_recall, groups, read_boxes
from samlit.loop import drive
from samlit.masks import rle
from samlit_tasks._automatic import Automatic
from samlit_tasks.instances import Instances
from samlit_tasks.proposals import Proposals
from tests.clicking import Noisy, samples, scene
from tests.test_predictor_official import SHARED

FIXTURE = SHARED / "fixtures" / "coco_eval"


def official(document, results, use_classes=True, most=None):
    """pycocotools' twelve numbers."""
    truth = COCO()
    truth.dataset = document
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        judge = COCOeval(truth, truth.loadRes(results), "segm")
        judge.params.useCats = use_classes
        if most:
            judge.params.maxDets = [1, 10, most]
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return judge


@pytest.mark.skipif(not FIXTURE.is_dir(), reason=f"{FIXTURE} is not here: SAMLIT_SHARED names the folder of real data")
def test_the_fixtures_official_numbers():
    document = json.loads((FIXTURE / "instances_val2014_100.json").read_text())
    results = json.loads((FIXTURE / "instances_val2014_fakesegm100_results.json").read_text())
    lines = (FIXTURE / "official_results.txt").read_text().split("type=bbox")[0].splitlines()
    expected = [float(line.rpartition("=")[2]) for line in lines if "Average Precision" in line]
    found = average_precision(document, results)
    assert [round(value, 3) for value in found.values()] == expected
    exact = official(document, results).stats[:6]
    assert list(found.values()) == pytest.approx(exact, abs=1e-9)


def drawn(chance, size, num):
    """Rectangles, as masks."""
    found = np.zeros((num, *size), bool)
    for mask in found:
        y, x = chance.integers(0, size[0] - 4), chance.integers(0, size[1] - 4)
        mask[y : y + chance.integers(2, 120), x : x + chance.integers(2, 120)] = True
    return rle.encode_many(found)


def problem(seed, classes=3):
    """Annotations and results that have something to do with each other."""
    chance = np.random.default_rng(seed)
    images, annotations, results = [], [], []
    for image in range(1, 5):
        size = (int(chance.integers(40, 200)), int(chance.integers(40, 200)))
        images.append({"id": image, "height": size[0], "width": size[1], "file_name": f"{image}.jpg"})
        for mask in drawn(chance, size, int(chance.integers(0, 7))):
            category, crowd = int(chance.integers(1, classes + 1)), int(chance.random() < 0.1)
            entry = {"size": list(size), "counts": mask.counts}
            annotations.append(
                {
                    "id": len(annotations) + 1, "image_id": image, "category_id": category, "iscrowd": crowd,
                    "area": rle.area(mask), "segmentation": entry, "bbox": [0, 0, 1, 1],
                }
            )  # fmt: skip
            moved = np.roll(rle.decode(mask), tuple(chance.integers(-4, 5, 2)), (0, 1))
            for other in (rle.encode(moved), *drawn(chance, size, int(chance.integers(0, 2)))):
                results.append(
                    {
                        "image_id": image, "category_id": int(chance.integers(1, classes + 1)),
                        "segmentation": {"size": list(size), "counts": other.counts}, "score": float(chance.random()),
                    }
                )  # fmt: skip
    categories = [{"id": number, "name": str(number)} for number in range(1, classes + 1)]
    return {"images": images, "annotations": annotations, "categories": categories, "info": {}}, results


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_ap_is_pycocotools(seed):
    document, results = problem(seed)
    if not results:
        return
    expected = [value if value >= 0 else math.nan for value in official(document, [dict(r) for r in results]).stats]
    found = average_precision(document, results)
    assert list(found.values()) == pytest.approx(expected[:6], abs=1e-9, nan_ok=True)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_recall_is_pycocotools_without_classes(seed):
    document, results = problem(seed, classes=1)
    document["annotations"] = [one for one in document["annotations"] if not one["iscrowd"]]
    if not results or not document["annotations"]:
        return
    stats = official(document, [dict(r) for r in results], use_classes=False, most=1000)
    expected = float(stats.eval["recall"][:, 0, 0, 2].mean())
    iou, kinds = [], []
    for image in document["images"]:
        truths = [one for one in document["annotations"] if one["image_id"] == image["id"]]
        ranked = sorted((r for r in results if r["image_id"] == image["id"]), key=lambda row: -row["score"])
        size = (image["height"], image["width"])
        some, others = (
            [rle.Rle(size, one["segmentation"]["counts"]) for one in entries] for entries in (truths, ranked)
        )
        shared = rle.intersections(some, others)
        areas, sizes = (np.array([rle.area(mask) for mask in masks]) for masks in (some, others))
        iou.append(shared / (areas.reshape(-1, 1) + sizes - shared) if shared.size else np.zeros(shared.shape))
        kinds.append([groups(one, {}) for one in truths])
    assert average_recall(iou, kinds)["all"] == pytest.approx(expected, abs=1e-9)


def test_both_matchings_by_hand():
    # The first proposal is best with the second thing, and good enough for the first one too.
    iou = [np.array([[0.7, 0.6], [0.8, 0.9]])]
    kinds = [[["small", "rare"], ["large"]]]
    by_rank = average_recall(iou, kinds)
    # .50 to .60: the first takes thing 2, the second thing 1. Above, the second finds thing 1 too far off.
    assert by_rank["all"] == pytest.approx((3 / 10 + 9 / 10) / 2)
    by_iou = average_recall(iou, kinds, greedy=False)
    assert by_iou["all"] == pytest.approx((5 / 10 + 9 / 10) / 2)
    assert by_iou["small"] == by_iou["rare"] == pytest.approx(7 / 10 - 2 / 10)
    assert math.isnan(by_iou["medium"])
    assert average_recall([np.zeros((2, 0))], kinds)["all"] == 0, "an image without proposals counts"


def annotated(folder, made, **more):
    """Annotations of samples, as a file."""
    images, annotations = [], []
    for number, sample in enumerate(made, 7):
        height, width = sample.size
        images.append({"id": number, "height": height, "width": width, "file_name": f"{sample.key}.png"} | more)
        for mask in sample.masks:
            x0, y0, x1, y1 = rle.box(mask)
            annotations.append(
                {
                    "id": len(annotations) + 1, "image_id": number, "category_id": 2 - len(annotations) % 2,
                    "iscrowd": 0, "area": rle.area(mask), "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "segmentation": {"size": [height, width], "counts": mask.counts},
                }
            )  # fmt: skip
    categories = [{"id": 1, "name": "a", "frequency": "r"}, {"id": 2, "name": "b", "frequency": "f"}]
    file = folder / "annotations.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return file


def boxes_of(file, path, shift=0.0):
    """True boxes as a detector's."""
    rows = [
        {"image_id": a["image_id"], "category_id": a["category_id"], "score": 0.5 + 0.01 * a["id"],
         "bbox": [a["bbox"][0] + shift, *a["bbox"][1:]]}
        for a in json.loads(file.read_text())["annotations"]
    ]  # fmt: skip
    path.write_text(json.dumps(rows))
    return path


class Nearly(Noisy):
    """Answers a box with what is nearly the true mask in it."""

    def __call__(self, prompts):
        x0, y0, x1, y1 = prompts.given["boxes"].values[:, 0].T
        centre = torch.stack([(x0 + x1) / 2, (y0 + y1) / 2], 1)
        truth = self.view.masks
        boxes = self.view.prompts["boxes"].simulate(truth, None, self.view).values[:, 0]
        middle = torch.stack([(boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2], 1)
        far = torch.cdist(centre, middle) + 1e6 * (prompts.image_index[:, None] != self.view.image_index)
        self.prompts = prompts
        plain = type(prompts)(prompts.image_index, prompts.given, prompts.multimask, far.argmin(1))
        return super().__call__(plain)


@pytest.mark.parametrize("refine", [True, False])
def test_instances_asks_with_boxes_and_keeps_the_detectors_classes(tmp_path, refine):
    made = samples(sizes=((50, 90), (64, 61)))
    file = annotated(tmp_path, made)
    boxes = boxes_of(file, tmp_path / "boxes.json")
    view = scene(made)
    model = Nearly(view, noise=0.2)
    task = Instances(str(file), str(boxes), refine=refine)
    result = drive(task, view, model)
    assert len(model.asked) == 2 * (1 + refine)
    if refine:
        first, second = model.asked[:2]
        assert torch.equal(first.given["boxes"].values, second.given["boxes"].values)
        assert torch.equal(second.given["masks"].values[:, 0], model.said[0].pick(model.said[0].best()))
        assert second.multimask is False
    scores = {row["score"] for image in result["instances"] for row in image["results"]}
    assert scores == {row["score"] for row in json.loads(boxes.read_text())}
    shown = task.show(view, result)
    for picture, sample, image in zip(shown, made, result["instances"], strict=True):
        changed = (np.asarray(picture) != sample.pixels()).any(2)
        sure = [row["segmentation"] for row in image["results"] if row["score"] >= 0.5]
        drawn = [rle.decode(rle.Rle(sample.size, told["counts"])) for told in sure]
        assert not changed[~np.any([np.zeros(sample.size, bool), *drawn], 0)].any(), "unsure ones are not drawn"
        assert changed.any() == bool(np.any(drawn))
    metric = task.metric()
    metric.update(result)
    numbers = {name: float(value) for name, value in metric.compute().items()}
    document = json.loads(file.read_text()) | {"info": {}}
    rows = [row for image in result["instances"] for row in image["results"]]
    assert numbers["ap"] == pytest.approx(official(document, rows).stats[0], abs=1e-6)
    assert numbers["ap_50"] > 0.2
    # The upper bound: true boxes, which are the same here.
    bound = drive(Instances(str(file), refine=refine), view, Nearly(view, noise=0.2))
    assert [len(image["results"]) for image in bound["instances"]] == [3, 3]


def test_lvis_leaves_out_what_nobody_looked_for(tmp_path):
    made = samples(sizes=((50, 90),))
    file = annotated(tmp_path, made, neg_category_ids=[], not_exhaustive_category_ids=[])
    task = Instances(str(file), lvis=True, refine=False)
    view = scene(made)
    result = drive(task, view, Nearly(view, noise=0.2))
    metric = task.metric()
    metric.update(result)
    numbers = {name: float(value) for name, value in metric.compute().items()}
    assert {"ap_rare", "ap_common", "ap_frequent"} < numbers.keys()
    assert numbers["ap"] == pytest.approx((numbers["ap_rare"] + numbers["ap_frequent"]) / 2, abs=1e-6)
    # Only what is in the image, or known not to be, counts against a detector.
    document = json.loads(file.read_text())
    document["categories"].append({"id": 3, "name": "c", "frequency": "c"})
    wrong = [dict(row, category_id=3, score=0.99) for row in result["instances"][0]["results"]]
    found = average_precision(document | {"info": {}}, result["instances"][0]["results"] + wrong, lvis=True)
    assert found["ap"] == pytest.approx(numbers["ap"], abs=1e-6)


def federated(seed, more):
    """The same as LVIS has it, and `more` results an image that are of something else or of nothing."""
    document, results = problem(seed, classes=6)
    chance = np.random.default_rng(seed)
    document["annotations"] = [one for one in document["annotations"] if not one["iscrowd"]]
    for image in document["images"]:
        there = {one["category_id"] for one in document["annotations"] if one["image_id"] == image["id"]}
        image["neg_category_ids"] = [k for k in range(1, 7) if k not in there and chance.random() < 0.5]
        image["not_exhaustive_category_ids"] = [k for k in sorted(there) if chance.random() < 0.4]
        size = (image["height"], image["width"])
        for mask in drawn(chance, size, more):
            told = {"size": list(size), "counts": mask.counts}
            kind, score = int(chance.integers(1, 7)), float(chance.random())
            results.append({"image_id": image["id"], "category_id": kind, "segmentation": told, "score": score})
    for one, frequency in zip(document["categories"], "rccffr", strict=True):
        one["frequency"] = frequency
    return document, results


@pytest.mark.parametrize(
    ("seed", "more", "expected"),
    [
        (3, 0, [0.075907590759, 0.119636963696, 0.056105610561, 0.192574257426, 0.0, -1.0, 0.20198019802, 0.0,
                0.025742574257]),
        (7, 0, [0.193316831683, 0.376237623762, 0.168316831683, 0.126485148515, 0.418151815182, -1.0, 0.167821782178,
                0.134653465347, 0.30297029703]),
        (5, 340, [0.006860436044, 0.017674267427, 0.005738073807, 0.009523809524, 0.021688668867, 0.0, 0.001287128713,
                  0.024867486749, 0.0]),
    ],
)  # fmt: skip
def test_lvis_numbers_are_those_of_its_own_package(seed, more, expected):
    # What lvis 0.5.3 said of the same; -1 is its nan. More than 300 results of an image do not count, of all classes.
    document, results = federated(seed, more)
    assert (max(Counter(row["image_id"] for row in results).values()) > 300) == (more > 300)
    found = average_precision(document, results, lvis=True)
    told = [-1 if math.isnan(value) else value for value in found.values()]
    assert told == pytest.approx(expected, abs=1e-9)


def _overlap(one, other):
    one, other = rle.decode(one), rle.decode(other)
    return (one & other).sum() / (one | other).sum()


def test_proposals_count_what_is_among_them(tmp_path):
    made = samples(sizes=((50, 90), (64, 61)), count=2)
    file = annotated(tmp_path, made)
    view = scene(made)
    options = Automatic(points_per_side=4, pred_iou_thresh=None, stability_score_thresh=None, box_nms_thresh=0.9)
    noisy = Noisy(view, noise=0.3)

    def answer(prompts):
        prompts.target = prompts.image_index * 2 + torch.arange(len(prompts)) % 2
        return noisy(prompts)

    numbers = {}
    for task in (Proposals(options=options), Proposals(str(file), "detectron2", options=options)):
        metric = task.metric()
        metric.update(drive(task, view, answer))
        numbers[task.matching] = {name: float(value) for name, value in metric.compute().items()}
    assert "ar_rare" in numbers["detectron2"]
    assert "ar_rare" not in numbers["coco"]
    for found in numbers.values():
        assert 0.2 < found["ar"] <= 1
        assert found["masks"] > 1
    # Pictures show the proposal that is nearest to each true mask, and nothing else.
    task = Proposals(options=options)
    result = drive(task, view, answer)
    hit = sum(len({k for k, _, _ in row["pairs"]}) for row in result["proposals"])
    assert sum(map(len, result["hits"])) == hit > 0
    for row, masks, truths in zip(result["proposals"], result["hits"], (sample.masks for sample in made), strict=True):
        best = [
            max(value for k, _, value in row["pairs"] if k == key) for key in sorted({k for k, _, _ in row["pairs"]})
        ]
        shown = [max(_overlap(mask, truth) for truth in truths) for mask in masks]
        assert sorted(shown) == pytest.approx(sorted(best))
    assert [one.size for one in task.show(view, result)] == [(90, 50), (61, 64)]
    few = Proposals(most=1, options=options)
    metric = few.metric()
    metric.update(drive(few, view, answer))
    assert float(metric.compute()["masks"]) == 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"image_id": 99}, "entry 1 is of image 99, which"),
        ({"category_id": 99}, "entry 1 is of category 99, which"),
        ({"bbox": [1000, 2, 3, 4]}, "entry 1 has the box [1000, 2, 3, 4], outside of image 7, which is 90 wide"),
        ({"bbox": [1, 2, -3, 4]}, "entry 1 has the box"),
        ({"bbox": [1, 2, 3]}, "entry 1 needs a bbox of four numbers"),
        ({"score": None}, "entry 1 needs a bbox of four numbers, and a score"),
        ({"score": "high"}, "entry 1 needs a bbox of four numbers, and a score"),
    ],
)
def test_boxes_that_do_not_belong_are_one_line(tmp_path, change, says):
    file = annotated(tmp_path, samples(sizes=((50, 90),)))
    boxes = boxes_of(file, tmp_path / "boxes.json")
    rows = json.loads(boxes.read_text())
    rows[1] |= change
    boxes.write_text(json.dumps(rows))
    with pytest.raises(ValueError, match=r"^[^\n]*$") as error:
        read_boxes(str(boxes), Annotations(str(file)))
    assert says in str(error.value)


def test_files_that_are_none_are_one_line(tmp_path):
    file = annotated(tmp_path, samples(sizes=((50, 90),)))
    known = Annotations(str(file))
    (tmp_path / "empty.json").write_text("[]")
    (tmp_path / "cut.json").write_text('[{"image_id"')
    for path, says in (("empty", "empty one"), ("cut", "is not JSON"), ("gone", "there is no such file")):
        with pytest.raises(ValueError, match=says):
            read_boxes(str(tmp_path / f"{path}.json"), known)
    for path, says in (("empty", "needs lists of images"), ("cut", "is not JSON"), ("gone", "there is no such file")):
        with pytest.raises(ValueError, match=says):
            Annotations(str(tmp_path / f"{path}.json"))
    with pytest.raises(ValueError, match="has no image 'picture 5'"):
        known.image("picture 5")


def test_images_of_another_size_do_not_belong(tmp_path):
    file = annotated(tmp_path, samples(sizes=((50, 90),)))
    other = scene(samples(sizes=((60, 90),)))
    with pytest.raises(ValueError, match="image 7 is 50 x 90 there, and picture 0 is 60 x 90: they do not belong"):
        drive(Instances(str(file)), other, Noisy(other))


def test_annotations_of_other_images_are_told_before_anything_is_asked(tmp_path):
    made = samples(sizes=((50, 90), (60, 90)), count=2)
    file = annotated(tmp_path, made[:1])
    with pytest.raises(ValueError, match="has no image 'picture 1'"):
        next(Proposals(str(file)).rounds(scene(made)))
