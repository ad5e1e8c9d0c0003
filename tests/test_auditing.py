"""`samlit shards audit`: masks drawn by chance, and their IoU with what became of them."""

import json
import shutil
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from samlit import cli
from samlit.annotator import changes
from samlit.annotator.store import Store as Annotations
from samlit.masks import rle
from samlit.masks.rle import Rle
from samlit.shards import auditing
from samlit.shards.records import Annotation, Record
from samlit.shards.store import Store
from samlit.shards.writing import write
from tests.photos import encoded


def square(y, x, side, size=(200, 300)):
    mask = np.zeros(size, bool)
    mask[y : y + side, x : x + side] = True
    return mask


@pytest.fixture
def shards(tmp_path):
    folder = tmp_path / "shards"
    folder.mkdir()
    jpeg = encoded(size=(200, 300))
    for shard in range(2):
        records = [
            Record(
                shard * 4 + n, (200, 300), jpeg,
                tuple(Annotation(rle.encode(square(10 + 3 * n, 20 * k, 10 + k)), predicted_iou=0.9) for k in range(5)),
            )
            for n in range(4)
        ]  # fmt: skip
        write(folder / f"sa_{shard:06d}.tar", records)
    return folder


def audit(*words):
    return cli.main(["shards", "audit", *map(str, words)])


def test_drawn_masks_are_those_of_the_shards_with_their_surroundings(shards, tmp_path, capsys):
    out = tmp_path / "audit"
    assert audit(shards, "--out", out, "--sample", "12", "--seed", "3") == 0
    assert "12 masks" in capsys.readouterr().out
    rows = json.loads((out / "audit.json").read_text())["masks"]
    assert len({(row["image"], row["mask"]) for row in rows}) == 12
    for row in rows:
        number, k = int(row["image"].removeprefix("sa_")) % 4, row["mask"]
        left, top, wide, high = row["window"]
        assert (left, top) == (max(20 * k - 32, 0), 0)
        told = json.loads((out / "masks" / f"{row['name']}.json").read_text())
        (one,) = told["annotations"]
        mask = rle.decode(Rle(tuple(one["segmentation"]["size"]), one["segmentation"]["counts"]))
        assert mask.shape == (high, wide)
        whole = np.zeros((200, 300), bool)
        whole[top : top + high, left : left + wide] = mask
        assert (whole == square(10 + 3 * number, 20 * k, 10 + k)).all()
        with Image.open(out / "masks" / f"{row['name']}.jpg") as crop:
            assert crop.size == (wide, high)
        assert f"masks/{row['name']}.jpg" in (out / "index.html").read_text()
        assert (out / "shown" / f"{row['name']}.jpg").exists()
    again = tmp_path / "again"
    assert audit(shards, "--out", again, "--sample", "12", "--seed", "3") == 0
    assert json.loads((again / "audit.json").read_text())["masks"] == rows, "by the seed"
    assert audit(shards, "--out", out) == 1
    assert "has an audit already" in capsys.readouterr().err


def test_every_mask_is_as_likely(shards):
    store = Store(str(shards))
    store.open()
    times = Counter(one for seed in range(400) for one in auditing.chosen(store, 10, seed))
    assert len(times) == 40
    # Each 100 times in the mean, with a deviation of 8.7.
    assert all(60 < count < 140 for count in times.values())
    assert len(auditing.chosen(store, 1000, 0)) == 40, "all that there are"


def test_corrected_masks_are_compared(shards, tmp_path, capsys):
    out, theirs = tmp_path / "audit", tmp_path / "theirs"
    assert audit(shards, "--out", out, "--sample", "5") == 0
    shutil.copytree(out / "masks", theirs)
    rows = json.loads((out / "audit.json").read_text())["masks"]

    def change(number, how):
        file = theirs / f"{rows[number]['name']}.json"
        told = json.loads(file.read_text())
        how(told)
        file.write_text(json.dumps(told))

    def smaller(told):
        old = told["annotations"][0]["segmentation"]
        mask = rle.decode(Rle(tuple(old["size"]), old["counts"]))
        y, _ = np.nonzero(mask)
        mask[y.min() : y.min() + 2] = False
        told["annotations"][0]["segmentation"]["counts"] = rle.encode(mask).counts

    change(0, smaller)
    change(1, lambda told: told["annotations"].clear())
    change(2, lambda told: told["annotations"][0].update(deleted=True))
    (theirs / f"{rows[3]['name']}.json").unlink()
    assert audit("--out", out, "--corrected", theirs) == 0
    said = capsys.readouterr().out
    told = json.loads((out / "report.json").read_text())
    side = 10 + rows[0]["mask"]
    assert list(told["iou"].values()) == pytest.approx([(side - 2) / side, 0, 0, 1])
    assert (told["masks"], told["judged"], told["removed"]) == (5, 4, 2)
    assert told["above"] == {"0.90": 0.25, "0.75": 0.5}
    assert sum(told["histogram"]) == 4
    assert "IoU above 0.90: 25.0% (SA-1B, as published: 94%)" in said
    assert (out / "report.png").exists()


def test_masks_are_corrected_by_the_annotator(shards, tmp_path):
    """As in docs/data-engine.md: `samlit annotate --images AUDIT/masks --out AUDIT/masks`, edit, delete, draw anew."""
    out = tmp_path / "audit"
    assert audit(shards, "--out", out, "--sample", "4") == 0
    rows = json.loads((out / "audit.json").read_text())["masks"]
    store = Annotations(out / "masks", out / "masks")
    assert {item.name.removesuffix(".jpg") for item in store.items} == {row["name"] for row in rows}

    def apply(row, op, mask=None, **more):
        item = next(one for one in store.items if one.name == f"{row['name']}.jpg")
        size = tuple(row["size"])
        if mask is not None:
            how = {"prompts": {"points": [[1, 1, 1]]}, "seconds": 2.0, "person": "ada"}
            more |= {"size": list(size), "counts": rle.encode(mask).counts, "predicted_iou": 0.9, "provenance": how}
        if op != "add":
            (old,) = [one for one in store.read(item)["annotations"] if not one.get("deleted")]
            more |= {"id": old["id"], "revision": old.get("revision", 0)}
        return store.apply(item, changes.parse({"op": op, "id": 99} | more, size), size, {"name": "m", "weights": "0"})

    def less(row):
        mask = rle.decode(Rle(tuple(row["size"]), row["counts"]))
        y, _ = np.nonzero(mask)
        mask[y.min() : y.min() + 2] = False
        return mask

    edited, deleted, drawn_anew, _ = rows
    apply(edited, "replace", less(edited))
    apply(deleted, "delete")
    apply(drawn_anew, "delete")
    apply(drawn_anew, "add", less(drawn_anew))
    assert audit("--out", out, "--corrected", out / "masks") == 0
    told = json.loads((out / "report.json").read_text())
    side = [10 + row["mask"] for row in rows]
    expected = [(side[0] - 2) / side[0], 0, (side[2] - 2) / side[2], 1]
    assert [told["iou"][row["name"]] for row in rows] == pytest.approx(expected)
    assert (told["judged"], told["removed"]) == (4, 1)


def test_what_is_wrong_is_one_line(shards, tmp_path, capsys):
    out, theirs = tmp_path / "audit", tmp_path / "theirs"
    theirs.mkdir()
    assert audit("--out", out, "--corrected", theirs) == 1
    assert "has no audit" in capsys.readouterr().err
    assert audit("--out", out) == 2
    assert "give ROOT" in capsys.readouterr().err
    assert audit(shards, "--out", out, "--sample", "0") == 2
    assert audit(shards, "--out", out, "--sample", "1") == 0
    capsys.readouterr()
    assert audit("--out", out, "--corrected", theirs) == 1
    assert "nothing to compare" in capsys.readouterr().err
    for text, says in (('{"annotations": [{}]}', "not in SA-1B's layout"), ("[", "not in SA-1B's layout")):
        (theirs / "sa_1.json").write_text(text)
        assert audit("--out", out, "--corrected", theirs) == 1
        error = capsys.readouterr().err
        assert says in error
        assert error.count("\n") == 1
