"""The source `annotated`: what people accepted in the browser, without a file in between."""

import json
import pickle

import numpy as np
import pytest
from PIL import Image

from samlit.annotator import changes
from samlit.annotator.store import Store
from samlit.faults import Damaged
from samlit.masks import rle
from samlit_sources.annotated import Annotated
from samlit_sources.coco import Coco

SIZE = (20, 30)


def mask(side):
    drawn = np.zeros(SIZE, bool)
    drawn[2 : 2 + side, 3 : 3 + side] = True
    return rle.encode(drawn)


def apply(store, item, op, side=None, **given):
    if side is not None:
        given |= {"size": list(SIZE), "counts": mask(side).counts}
    store.apply(store.items[item], changes.parse({"op": op, **given}, SIZE), SIZE, {"name": "m", "weights": "0"})


@pytest.fixture
def folder(tmp_path):
    """Eight images: six with a mask, of which the first has a second and a deleted one; one done without; one bare."""
    photos = tmp_path / "photos"
    (photos / "sub").mkdir(parents=True)
    for n in range(8):
        pixels = np.full((*SIZE, 3), 10 * n, np.uint8)
        Image.fromarray(pixels).save(photos / ("sub" if n > 3 else "") / f"{n}.{'png' if n % 2 else 'jpg'}")
    store = Store(photos, photos / "annotations")
    for n in range(6):
        apply(store, n, "add", 4 + n, id=1, phrase="cart" if n % 2 else "")
    apply(store, 0, "add", 15, id=2)
    apply(store, 0, "add", 16, id=3)
    apply(store, 0, "delete", id=3, revision=1)
    for n in (1, 6):
        apply(store, n, "done")
    return photos


def test_samples_are_the_accepted_masks(folder):
    source = Annotated(str(folder))
    samples = [source[n] for n in range(len(source))]
    assert [one.key for one in samples] == ["0.jpg", "1.png", "2.jpg", "3.png", "sub/4.jpg", "sub/5.png", "sub/6.jpg"]
    assert samples[0].masks == (mask(4), mask(15))
    assert [one.phrases for one in samples[:2]] == [("object", "object"), ("cart",)]
    assert samples[6].masks == ()
    for n, one in enumerate(samples):
        assert one.size == SIZE
        assert np.abs(one.pixels().astype(int) - 10 * n).max() <= 1
    with pytest.raises(IndexError, match="no sample 7, there are 7"):
        source[7]
    done = Annotated(str(folder), only_done=True)
    assert [done[n].key for n in range(len(done))] == ["1.png", "sub/6.jpg"]


def test_what_is_set_aside_is_what_the_export_sets_aside(folder, tmp_path):
    from samlit import cli

    words = ["annotate", "--images", str(folder), "--export", "coco", str(tmp_path / "all.json"), "--hold-out", "3"]
    assert cli.main(words) == 0
    for split, file in (("train", "all.json"), ("val", "all_val.json")):
        own, theirs = Annotated(str(folder), split=split, hold_out=3), Coco(str(tmp_path / file), str(folder))
        assert 0 < len(own) == len(theirs) < 7
        for n in range(len(own)):
            assert (own[n].masks, own[n].phrases) == (theirs[n].masks, theirs[n].phrases)


def test_masks_that_come_later_are_for_the_next_training(folder):
    source = Annotated(str(folder))
    source.prepare()
    apply(Store(folder, folder / "annotations"), 7, "add", 5, id=9)
    assert len(source) == len(pickle.loads(pickle.dumps(source))) == 7  # a loader's process has a copy
    assert len(Annotated(str(folder))) == 8


def test_an_image_that_is_another_by_now_is_damaged(folder):
    source = Annotated(str(folder))
    source.prepare()
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(folder / "1.png")
    with pytest.raises(Damaged, match=r"1\.png: .*its annotations are for 30 wide and 20 high"):
        source[1]


def test_what_is_wrong_is_one_line(folder, tmp_path):
    (tmp_path / "bare").mkdir()
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / "bare" / "a.png")
    for source, line in (
        (Annotated(str(tmp_path / "bare")), "bare/annotations has no mask yet: accept some with `samlit annotate"),
        (Annotated(str(folder), split="val", hold_out=10**9), "leaves none of the 7 annotated images to val"),
        (Annotated(str(tmp_path / "none")), "is no folder of images"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=line) as told:
            len(source)
        assert "\n" not in str(told.value)
    with pytest.raises(ValueError, match="hold_out is at least 2, not 1"):
        Annotated(str(folder), hold_out=1)
    (folder / "annotations" / "2.json").write_text(json.dumps({"annotations": 3}))
    with pytest.raises(ValueError, match=r"2\.json is damaged or not in SA-1B's layout"):
        len(Annotated(str(folder)))
