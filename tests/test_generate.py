"""`samlit generate`: what is in the shards, and that workers may die, come and go."""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from samlit import cli
from samlit.generation import command
from samlit.generation.claims import claimed
from samlit.generation.finding import Finder
from samlit.generation.folder import Images
from samlit.masks import rle
from samlit.masks.rle import Rle
from samlit_sources.sa1b import Sa1b
from tests import forks
from tests.test_predictor_official import MOBILE_SAM, SHARED, needs_mobile_sam, picture

KEYS = ["--everything.points_per_side", "5", "--everything.pred_iou_thresh", "null"]
KEYS += ["--everything.stability_score_thresh=null", "--everything.box_nms_thresh", "0.9"]
FEW = ["--preset", "released", *KEYS]


# Says what it begins, so that a test knows which images were looked at, and how often.
def worker(log, *words):
    """`samlit generate` in a process of its own."""
    torch.set_num_threads(1)
    found = Finder.record

    def record(self, sample, image_id):
        with open(log, "a") as file:
            file.write(f"{image_id}\n")
        return found(self, sample, image_id)

    Finder.record = record
    sys.exit(cli.main(["generate", *words]))


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    Image.fromarray(picture(40, 70)).save(folder / "a.jpg", quality=90)
    Image.fromarray(picture(61, 30, 1)).save(folder / "more" / "b.png")
    Image.fromarray(picture(80, 50, 2)).save(folder / "c.JPG", quality=90)
    (folder / "d.jpg").write_bytes((folder / "a.jpg").read_bytes()[:400])
    (folder / "e.txt").write_text("no image")
    return folder


def generate(photos, checkpoint, out, *words):
    return cli.main(["generate", "--images", str(photos), "--weights", str(checkpoint), "--out", str(out), *words])


def members(out):
    found = {}
    for shard in sorted(out.glob("sa_*.tar")):
        with tarfile.open(shard) as tar:
            found |= {one.name: tar.extractfile(one).read() for one in tar}
    return found


def test_shards_are_in_the_layout_of_sa1b(photos, checkpoint, tmp_path, capsys):
    out = tmp_path / "out"
    assert generate(photos, checkpoint, out, *FEW, "--per-shard", "2") == 0
    found = members(out)
    assert list(found) == ["sa_0.jpg", "sa_0.json", "sa_1.jpg", "sa_1.json", "sa_3.jpg", "sa_3.json"]
    assert found["sa_0.jpg"] == (photos / "a.jpg").read_bytes(), "a JPEG keeps its bytes"
    told = json.loads(found["sa_3.json"])
    assert told["image"] == {
        "image_id": 3, "width": 30, "height": 61, "file_name": "sa_3.jpg", "source_key": "more/b.png"
    }  # fmt: skip
    assert told["annotations"]
    for row in told["annotations"]:
        y, x = np.nonzero(rle.decode(Rle(tuple(row["segmentation"]["size"]), row["segmentation"]["counts"])))
        assert row["bbox"] == [x.min(), y.min(), np.ptp(x), np.ptp(y)], "one less than elsewhere, as in SA-1B"
        assert row["area"] == len(x)
        assert row["crop_box"] == [0, 0, 30, 61]
        (point,) = row["point_coords"]
        assert point[0] in (3, 9, 15, 21, 27), "the middle of a fifth of 30 pixels"
        assert {"predicted_iou", "stability_score", "id"} < row.keys()
    source = Sa1b(str(out), min_predicted_iou=-100)
    source.prepare()
    assert [len(source[i].masks) for i in range(3)] == [
        len(json.loads(found[f"sa_{i}.json"])["annotations"]) for i in (0, 1, 3)
    ]
    (lost,) = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    assert lost["key"] == "d.jpg"
    assert lost["cause"] == "image"
    numbers = json.loads((out / "statistics.json").read_text())
    masks = [len(json.loads(found[f"sa_{i}.json"])["annotations"]) for i in (0, 1, 3)]
    assert (numbers["images"], numbers["masks"]) == (3, sum(masks))
    assert numbers["masks_per_image"]["mean"] == pytest.approx(np.mean(masks))
    every = [row for i in (0, 1, 3) for row in json.loads(found[f"sa_{i}.json"])["annotations"]]
    assert numbers["predicted_iou"]["mean"] == pytest.approx(np.mean([row["predicted_iou"] for row in every]))
    assert sum(numbers["area"]["histogram"]) == sum(masks)
    with Image.open(out / "sheet.jpg") as sheet:
        assert sheet.size == (3 * 408 + 8, 316)
    assert (out / "statistics.png").exists()
    assert "3 images" in capsys.readouterr().out
    assert sorted(p.name for p in (out / ".work").glob("sa_*")) == ["sa_000000.json", "sa_000001.json"]


def test_the_masks_are_those_of_segment_everything(photos, checkpoint, tmp_path):
    assert generate(photos, checkpoint, tmp_path / "out", *FEW) == 0
    words = ["segment", str(photos / "a.jpg"), "--weights", str(checkpoint), "--everything", *KEYS]
    assert cli.main([*words, "--out", str(tmp_path / "rows.json")]) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())
    kept = json.loads(members(tmp_path / "out")["sa_0.json"])["annotations"]
    names = ("segmentation", "bbox", "area", "predicted_iou", "stability_score", "point_coords")
    assert [[one[name] for name in names] for one in kept] == [
        [one[name] for name in names] for one in rows if one["area"]
    ]


def test_a_short_side_makes_images_and_masks_smaller(photos, checkpoint, tmp_path):
    out = tmp_path / "out"
    assert generate(photos, checkpoint, out, *FEW, "--short-side", "20") == 0
    found = members(out)
    assert Image.open(io.BytesIO(found["sa_0.jpg"])).size == (35, 20)
    big = tmp_path / "big"
    assert generate(photos, checkpoint, big, *FEW) == 0
    before = {one["id"]: one for one in json.loads(members(big)["sa_0.json"])["annotations"]}
    rows = json.loads(found["sa_0.json"])["annotations"]
    assert rows
    points = {tuple(one["point_coords"][0]) for one in before.values()}
    for row in rows:
        assert row["segmentation"]["size"] == [20, 35]
        assert row["crop_box"] == [0, 0, 35, 20]
        x, y = row["point_coords"][0]
        assert (2 * x, 2 * y) in points


def test_what_is_done_is_not_done_again_and_other_keys_are_refused(photos, checkpoint, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    assert generate(photos, checkpoint, out, *FEW) == 0
    before = members(out), (out / "sa_000000.tar").stat().st_mtime_ns
    monkeypatch.setattr("samlit.generation.finding.Finder.record", None)
    assert generate(photos, checkpoint, out, *FEW) == 0
    assert (members(out), (out / "sa_000000.tar").stat().st_mtime_ns) == before
    capsys.readouterr()
    for words, says in (
        ([*FEW, "--everything.points_per_side", "6"], "begun with everything.points_per_side 5, not 6"),
        ([*FEW, "--short-side", "20"], "begun with short_side null, not 20"),
    ):
        assert generate(photos, checkpoint, out, *words) == 1
        error = capsys.readouterr().err
        assert says in error
        assert error.count("\n") == 1
    (photos / "f.png").write_bytes((photos / "more" / "b.png").read_bytes())
    assert generate(photos, checkpoint, out, *FEW) == 1
    assert "begun with source.files" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--preset", "papr"], "did you mean 'paper'?"),
        (["--everything.point_per_side", "3"], "did you mean '--everything.points_per_side'?"),
        (["--everything.max_mask_share", "1.5"], "max_mask_share: a share"),
        (["--shortside", "3"], "there is no option '--shortside'; did you mean '--short-side'?"),
        (["--short-side", "0"], "--short-side is at least 1, not 0"),
        (["--set", "a=b"], "--set is for the sources of --data"),
    ],
)
def test_what_is_wrong_is_one_line(words, says, photos, checkpoint, tmp_path, capsys):
    assert generate(photos, checkpoint, tmp_path / "out", *words) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_folders_without_images(checkpoint, tmp_path, capsys):
    assert generate(tmp_path / "none", checkpoint, tmp_path / "out") == 1
    assert "is no folder of images" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="has no image in it"):
        Images(str(tmp_path / "empty")).prepare()


def test_a_claim_ends_with_its_process(tmp_path):
    file = tmp_path / "share.lock"
    code = (
        "import sys, time, pathlib; from samlit.generation.claims import claimed\n"
        "with claimed(pathlib.Path(sys.argv[1])) as mine:\n print(mine, flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(file)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "True\n"
        with claimed(file) as mine:
            assert not mine
    finally:
        other.kill()
        other.communicate()
    with claimed(file) as mine:
        assert mine


def test_workers_are_killed_and_nothing_is_lost_or_done_twice(checkpoint, tmp_path):
    photos, out, log = tmp_path / "photos", tmp_path / "out", tmp_path / "log"
    photos.mkdir()
    count, killed = 40, 0
    for number in range(count):
        Image.fromarray(picture(40 + number % 7, 70, number)).save(photos / f"{number:03}.png")
    keys = [*FEW, "--everything.points_per_side", "12", "--per-shard", "16"]
    words = ["--images", str(photos), "--weights", str(checkpoint), "--out", str(out), *keys]

    def start(workers):
        array = [{**os.environ, "SLURM_ARRAY_TASK_ID": str(number)} for number in range(workers)]
        return [forks.start(worker, log, *words, env=env, cwd=tmp_path, out=tmp_path / "said") for env in array]

    def begun():
        return [int(line) for line in log.read_text().split()] if log.exists() else []

    def kill_when(images, workers, victims):
        until = time.monotonic() + 120
        while len(begun()) < images and time.monotonic() < until:
            assert any(one.is_alive() for one in workers), (tmp_path / "said").read_text()
            time.sleep(0.02)
        for one in victims:
            one.kill()
            one.join()
            assert one.exitcode == -signal.SIGKILL, "it was not done yet"

    first = start(2)
    kill_when(9, first, first)
    assert len(begun()) < count
    killed += 2
    again = start(2)
    kill_when(22, again, again[:1])
    killed += 1
    for one in again[1:]:
        one.join(200)
        assert one.exitcode == 0, (tmp_path / "said").read_text()
    times = Counter(begun())
    assert set(times) == set(range(count)), "none is lost"
    twice = [image for image, number in times.items() if number > 1]
    assert len(twice) <= killed, "only what was being looked at when a worker died"
    alone = tmp_path / "alone"
    assert generate(photos, checkpoint, alone, *keys) == 0
    assert len(list(out.glob("sa_*.tar"))) == 3
    for shard in alone.glob("sa_*.tar"):
        assert (out / shard.name).read_bytes() == shard.read_bytes(), "as one that nobody stopped"
    assert json.loads((out / "statistics.json").read_text()) == json.loads((alone / "statistics.json").read_text())


def test_rays_tasks_are_workers(photos, checkpoint, tmp_path):
    """The example of docs/data-engine.md as it stands, but for what it is about."""
    ray = pytest.importorskip("ray", reason="needs Ray, which samlit does without")
    text = (Path(__file__).parents[1] / "docs" / "data-engine.md").read_text()
    example = next(block for block in text.split("```python\n")[1:] if "import ray" in block).partition("```")[0]
    out = tmp_path / "out"
    words = ["--images", photos, "--weights", checkpoint, "--out", out, *FEW, "--per-shard", "2"]
    told = f"{sys.executable} -m samlit generate {' '.join(map(str, words))}"
    for old, new in (
        ("samlit generate --images photos --weights sam_vit_h --out shards --device cuda", told),
        ("num_gpus=1", "num_cpus=1"),
        ('"GPU"', '"CPU"'),
        ("ray.init()", "ray.init(num_cpus=2, include_dashboard=False)"),
    ):
        assert example.count(old) == 1
        example = example.replace(old, new)
    try:
        exec(compile(example, "data-engine.md", "exec"), {})
    finally:
        ray.shutdown()
    assert generate(photos, checkpoint, tmp_path / "alone", *FEW, "--per-shard", "2") == 0
    assert members(out) == members(tmp_path / "alone")


@needs_mobile_sam
def test_the_papers_rules_on_a_photograph(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    photo = sorted((SHARED / "coco_sample" / "images").glob("*.jpg"))[0]
    (photos / "one.jpg").write_bytes(photo.read_bytes())
    points = ["--everything.points_per_side", "4", "--everything.crop_n_layers", "0"]
    loose = ["--everything.pred_iou_thresh", "0.5", "--everything.stability_score_thresh", "0.5"]
    rows = {}
    for name, words in (("paper", []), ("released", ["--preset", "released"])):
        assert generate(photos, MOBILE_SAM, tmp_path / name, *words, *points, *loose) == 0
        rows[name] = json.loads(members(tmp_path / name)["sa_0.json"])["annotations"]
    with Image.open(photo) as image:
        pixels = image.width * image.height
    for row in rows["paper"]:
        mask = rle.decode(Rle(tuple(row["segmentation"]["size"]), row["segmentation"]["counts"]))
        assert 100 <= row["area"] < 0.95 * pixels
        for side in (mask, ~mask):
            sizes = cv2.connectedComponentsWithStats(side.astype(np.uint8), connectivity=8)[2][1:, cv2.CC_STAT_AREA]
            assert (sizes >= 100).all(), "islands and holes"
    assert len(rows["paper"]) >= 5
    assert any(row not in rows["paper"] for row in rows["released"])


def test_the_rules_of_the_paper_each_drop_what_they_say():
    from samlit.everything import Found
    from samlit_tasks._automatic import Automatic, _cleaned

    def found(*squares):
        mask = np.zeros((100, 100), bool)
        for y, x, side in squares:
            mask[y : y + side, x : x + side] = True
        drawn = rle.encode(mask)
        x0, y0, x1, y1 = rle.box(drawn)
        return Found(drawn, int(mask.sum()), (x0, y0, x1 - 1, y1 - 1), 0.9, 0.96, (1.0, 1.0), (0, 0, 100, 100))

    masks = [found((2, 2, 9), (30, 30, 8)), found((50, 50, 20), (80, 80, 4)), found((2, 40, 5))]
    kept = _cleaned(masks, Automatic(min_mask_region_area=100))
    assert sorted(one.area for one in kept) == [25, 81, 400], "the released generator's: the largest island stays"
    kept = _cleaned(masks, Automatic(min_mask_region_area=100, drop_small=True))
    assert [one.area for one in kept] == [400]


@pytest.mark.parametrize(
    ("place", "first"),
    [
        ({}, 0),
        ({"RANK": "3", "WORLD_SIZE": "4"}, 75),
        ({"SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_TASK_COUNT": "10"}, 20),
        ({"SLURM_ARRAY_TASK_ID": "7"}, 7),
        ({"RANK": "1", "WORLD_SIZE": "2", "SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_TASK_COUNT": "10"}, 25),
    ],
)
def test_workers_begin_far_from_each_other(place, first, monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    assert command._first(100) == first
