"""Annotations of a folder: what two people, a kill, a link and a foreign file can do to them, which is nothing."""

import json
import multiprocessing
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from samlit.annotator import changes
from samlit.annotator.ahead import Ahead
from samlit.annotator.store import Conflict, Store
from samlit.errors import SamlitError
from samlit.faults import Damaged
from samlit.masks import rle

ROOT = Path(__file__).parents[1]
SIZE = (20, 30)
ABOUT = {"name": "small", "weights": "0123"}


def square(y=2, x=3, side=5, size=SIZE):
    mask = np.zeros(size, bool)
    mask[y : y + side, x : x + side] = True
    return rle.encode(mask)


def change(op, id_=7, **more):
    given = {"op": op, "id": id_}
    if op in ("add", "replace"):
        mask = more.pop("mask", square())
        given |= {"size": list(mask.size), "counts": mask.counts, "predicted_iou": 0.8}
        given["provenance"] = {"prompts": {"points": [[5, 4, 1]]}, "seconds": 2.5, "person": "ada"}
    return changes.parse(given | more, SIZE)


@pytest.fixture
def folder(tmp_path):
    for name in ("a.jpg", "sub/b.png"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((*SIZE, 3), 90, np.uint8)).save(tmp_path / "photos" / name)
    return tmp_path / "photos"


@pytest.fixture
def store(folder):
    return Store(folder, folder / "annotations")


def apply(store, op, id_=7, item=0, **more):
    return store.apply(store.items[item], change(op, id_, **more), SIZE, ABOUT)


def live(document):
    return [row for row in document["annotations"] if not row.get("deleted")]


def test_a_mask_is_on_the_disk_as_sa_1b_stores_one(store, folder):
    apply(store, "add", phrase="a cart", item=1)
    told = json.loads((folder / "annotations" / "sub" / "b.json").read_text())
    (row,) = told["annotations"]
    assert told["image"] == {"image_id": store.items[1].number, "width": 30, "height": 20, "file_name": "sub/b.png"}
    assert rle.decode(rle.Rle(tuple(row["segmentation"]["size"]), row["segmentation"]["counts"])).sum() == 25
    assert (row["area"], row["bbox"], row["point_coords"]) == (25, [3.0, 2.0, 4.0, 4.0], [[5.0, 4.0]])
    assert (row["phrase"], row["predicted_iou"], row["crop_box"]) == ("a cart", 0.8, [0.0, 0.0, 30.0, 20.0])
    how = row["provenance"]
    assert (how["model"], how["person"], how["seconds"], how["edited_by_hand"]) == (ABOUT, "ada", 2.5, False)
    assert how["prompts"]["points"] == [[5.0, 4.0, 1.0]]


def test_a_change_that_is_told_twice_is_made_once(store):
    assert apply(store, "add") == apply(store, "add")
    apply(store, "replace", revision=1, mask=square(side=6))
    again = apply(store, "replace", revision=1, mask=square(side=6))
    assert [row["revision"] for row in again["annotations"]] == [2]
    apply(store, "delete", revision=2)
    assert apply(store, "delete", revision=2)["samlit"]["revision"] == 3
    assert live(store.read(store.items[0])) == []


def test_who_is_slower_is_told_and_changes_nothing(store, folder):
    other = Store(folder, folder / "annotations")
    apply(store, "add")
    apply(other, "replace", revision=1, mask=square(side=6))
    before = (folder / "annotations" / "a.json").read_bytes()
    with pytest.raises(Conflict, match="mask 7 was changed by somebody else"):
        apply(store, "replace", revision=1, mask=square(side=9))
    with pytest.raises(Conflict, match="mask 7 was changed by somebody else"):
        apply(store, "delete", revision=1)
    with pytest.raises(Conflict, match="there is no mask 8 any more"):
        apply(store, "delete", 8, revision=1)
    assert (folder / "annotations" / "a.json").read_bytes() == before
    apply(other, "delete", revision=2)
    with pytest.raises(Conflict, match="mask 7 was"):
        apply(store, "replace", revision=2)


def test_a_deleted_mask_is_marked_and_comes_back_whole(store):
    first = apply(store, "add", phrase="a cart")["annotations"][0]
    gone = apply(store, "delete", revision=1)["annotations"]
    assert [row["deleted"] for row in gone] == [True]
    (back,) = live(apply(store, "restore", revision=2))
    assert {k: back[k] for k in ("segmentation", "phrase", "provenance")} == {
        k: first[k] for k in ("segmentation", "phrase", "provenance")
    }


def test_an_edited_mask_keeps_what_it_was(store):
    first = apply(store, "add")["annotations"][0]
    row = apply(store, "replace", revision=1, mask=square(side=8), phrase="new")["annotations"][0]
    assert row["before"]["segmentation"] == first["segmentation"]
    assert (row["area"], row["phrase"]) == (64, "new")


def test_a_reject_is_undone(store):
    for op, left in (("reject", ["p"]), ("reject", ["p"]), ("unreject", []), ("unreject", [])):
        told = apply(store, op, proposal="p")
        assert [one["id"] for one in told["samlit"]["rejected"]] == left


def add_many(folder, first, count):
    store = Store(folder, folder / "annotations")
    for n in range(first, first + count):
        apply(store, "add", n)


def test_processes_that_write_at_once_lose_nothing(folder):
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=add_many, args=(folder, 1 + 40 * n, 40)) for n in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    store = Store(folder, folder / "annotations")
    assert sorted(row["id"] for row in store.read(store.items[0])["annotations"]) == list(range(1, 121))


WRITER = """
import sys
from pathlib import Path
from tests.test_annotate_store import Store, apply
folder = Path(sys.argv[1])
store = Store(folder, folder / "annotations")
for n in range(1, 10**6):
    apply(store, "add", n)
    print(n, flush=True)
"""


def test_what_was_told_to_be_saved_outlives_a_kill(folder):
    for turn in range(2):
        words = [sys.executable, "-c", WRITER, str(folder)]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=ROOT) as writer:
            told = [int(writer.stdout.readline()) for _ in range(20 + 7 * turn)]
            writer.kill()
            told += [int(line) for line in writer.stdout.read().split()]
        store = Store(folder, folder / "annotations")
        assert set(told) <= {row["id"] for row in store.read(store.items[0])["annotations"]}
        assert [item.name for item in store.items] == ["a.jpg", "sub/b.png"]  # what is half written is no image


def test_a_file_of_somebody_else_is_begun_with_and_never_written_over(store, folder):
    mask = {"size": [20, 30], "counts": square().counts}
    foreign = {"annotations": [{"id": 3, "segmentation": mask}], "note": "mine"}
    (folder / "a.json").write_text(json.dumps(foreign))
    told = apply(store, "add")
    assert sorted(row["id"] for row in told["annotations"]) == [3, 7]
    assert told["note"] == "mine"
    assert json.loads((folder / "a.json").read_text()) == foreign


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "null", '{"annotations": 3}', '{"annotations": [{"id": 1}]}', "[" * 100_000,
     '{"annotations": [], "image": 3}',
     '{"annotations": [{"id": 1, "segmentation": {"size": [2, 2], "counts": "zz"}}]}',
     '{"annotations": [], "samlit": 3}', '{"annotations": [], "samlit": {"rejected": [3]}}',
     '{"annotations": [], "samlit": {"offered": []}}'],
)  # fmt: skip
def test_a_damaged_file_is_said_in_one_line_and_left(store, folder, text):
    file = folder / "annotations" / "a.json"
    file.parent.mkdir()
    file.write_text(text)
    with pytest.raises(SamlitError, match=r"a\.json is damaged or not in SA-1B's layout") as told:
        apply(store, "add")
    assert "\n" not in str(told.value)
    assert file.read_text() == text
    assert "damaged" in store.summary(store.items[0])


def test_links_lead_nowhere_else(folder, tmp_path):
    secret = tmp_path / "secret"
    secret.mkdir()
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(secret / "private.png")
    (folder / "link.png").symlink_to(secret / "private.png")
    (folder / "deep").symlink_to(secret)
    store = Store(folder, folder / "annotations")
    assert [item.name for item in store.items] == ["a.jpg", "sub/b.png"]
    (folder / "annotations").mkdir()
    (folder / "annotations" / "sub").symlink_to(secret)
    with pytest.raises(ValueError, match="is a link to outside"):
        apply(store, "add", item=1)
    (folder / "a.jpg").unlink()
    (folder / "a.jpg").symlink_to(secret / "private.png")
    with pytest.raises(ValueError, match="is a link to outside"):
        store.path(store.items[0])
    assert [file.name for file in secret.iterdir()] == ["private.png"]


def test_what_is_no_folder_of_images_is_said(tmp_path, folder):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Store(tmp_path / "nowhere", tmp_path / "out")
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(folder / "a.png")
    with pytest.raises(ValueError, match=r"a\.jpg and a\.png would have one file of annotations"):
        Store(folder, tmp_path / "out")


def test_sizes_are_those_that_a_person_sees_and_follow_the_file(store, folder):
    assert store.size(store.items[0]) == (20, 30)
    turned = Image.fromarray(np.zeros((40, 10, 3), np.uint8))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(folder / "a.jpg", exif=exif)
    assert store.size(store.items[0]) == (10, 40)
    (folder / "a.jpg").write_bytes(b"no picture")
    with pytest.raises(Damaged, match="cannot be read"):
        store.size(store.items[0])


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"op": "drop"}, "op is one of"),
        ({"op": "delete", "id": True, "revision": 1}, "id is a whole number"),
        ({"op": "delete", "id": 2**53, "revision": 1}, "id is a whole number"),
        ({"op": "add", "id": 1, "size": [20, 31], "counts": "a"}, "the image 20x30"),
        ({"op": "add", "id": 1, "size": [20, 30], "counts": 3}, "counts is the COCO string"),
        ({"op": "add", "id": 1, "size": [20, 30], "counts": "zzz"}, "counts:"),
        ({"op": "add", "id": 1, "size": [20, 30], "counts": rle.encode(np.zeros(SIZE, bool)).counts}, "no pixel"),
        ({"op": "reject"}, "proposal is missing"),
        ({"op": "reject", "proposal": "x\ny"}, "proposal is a line"),
    ],
)
def test_a_change_that_makes_no_sense_is_one_line(given, line):
    with pytest.raises(ValueError, match=line) as told:
        changes.parse(given, SIZE)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    "provenance",
    [3, {"prompts": 3}, {"prompts": {"points": 3}}, {"prompts": {"points": [[1, 2]]}}, {"prompts": {"box": [1, 2, 3]}},
     {"prompts": {"strokes": [3]}}, {"seconds": "long"}, {"seconds": float("inf")}, {"person": "a\nb"}, {"proposal": 3},
     {"person": "a" * 201}],
)  # fmt: skip
def test_how_a_mask_came_to_be_is_checked(provenance):
    with pytest.raises(ValueError, match=r"is|a point|a box"):
        change("add", provenance=provenance)


@pytest.mark.parametrize("body", [b"", b"3", b"{", b"[" * 200_000, b"\xff", b'{"a": NaN}', b'{"a": Infinity}'])
def test_a_body_that_is_no_json_object_is_one_line(body):
    with pytest.raises(ValueError, match="JSON") as told:
        changes.read(body)
    assert "\n" not in str(told.value)


def test_what_is_made_ahead_begins_with_who_waits_and_follows_the_image():
    order, stamps, begun, going = [], dict.fromkeys(range(6), 0), threading.Event(), threading.Event()

    def make(number):
        begun.set()
        going.wait(60)
        order.append(number)
        if number == 5:
            raise ValueError("number five")
        return number, stamps[number]

    ahead = Ahead(make, 6, stamps.__getitem__, ahead=2)
    ahead.look(0)
    assert begun.wait(60)  # 0 is being made
    waiting = threading.Thread(target=lambda: ahead.ask(4))
    waiting.start()
    while ahead._wanted != [4]:
        time.sleep(0.01)
    assert ahead.ask(0, 0.01) is None
    going.set()
    waiting.join(60)
    assert ahead.ask(2, 60) == (2, 0)
    assert order == [0, 4, 1, 2]
    stamps[2] = 1
    assert ahead.ask(2, 60) == (2, 1)
    for _ in range(2):
        with pytest.raises(ValueError, match="number five"):
            ahead.ask(5, 60)
    ahead.close()
