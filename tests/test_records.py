"""Records: the JSON is proved when it is read, masks and image when somebody wants them."""

import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from samlit.faults import Damaged
from samlit.loading import frames
from samlit.loading.augment import Augment
from samlit.masks import rle
from samlit.shards.records import Annotation, Record, parse
from samlit.source import Sample

SIZE = (40, 56)


def record(count=3):
    masks = np.zeros((count, *SIZE), bool)
    for number, mask in enumerate(masks):
        mask[5 : 20 + number, 7:30] = True
    stream = io.BytesIO()
    Image.fromarray(np.full((*SIZE, 3), 90, np.uint8)).save(stream, "JPEG")
    return Record(7, SIZE, stream.getvalue(), tuple(map(Annotation, rle.encode_many(masks))))


def broken(counts, which=1):
    whole = record()
    stored = json.loads(whole.text())
    stored["annotations"][which]["segmentation"]["counts"] = counts
    return parse(7, whole.jpeg, json.dumps(stored).encode())


def sample(found):
    return Sample(found.key, found.image, tuple(a.mask for a in found.annotations), shard="sa_000001.tar")


def test_a_record_comes_back():
    whole = record()
    found = parse(7, whole.jpeg, whole.text())
    assert [a.mask for a in found.annotations] == [a.mask for a in whole.annotations]
    assert found.flaws() == []


def test_a_row_that_is_marked_as_deleted_is_no_mask():
    whole = record()
    stored = json.loads(whole.text())
    stored["annotations"][0] |= {"deleted": True, "segmentation": None}
    stored["annotations"][1]["deleted"] = False
    found = parse(7, whole.jpeg, json.dumps(stored).encode())
    assert [a.mask for a in found.annotations] == [a.mask for a in whole.annotations[1:]]


@pytest.mark.parametrize(
    ("counts", "message"),
    [("05", "RLE runs sum to 5, not to 40x56"), ("", "RLE counts are empty"), ("0T", "RLE string ends in the middle")],
)
def test_a_bad_string_is_found_when_it_is_drawn(counts, message):
    found = broken(counts)
    (flaw,) = found.flaws()
    assert re.fullmatch(rf"annotation 1: {message}[^\n]*", str(flaw))
    assert flaw.cause == "rle"
    for draw in (
        lambda: frames.frame(sample(found), 16),
        lambda: Augment().frame(sample(found), 16, 3, np.random.default_rng(0)),
    ):
        with pytest.raises(Damaged, match=rf"^sa_000001\.tar: sa_7: mask 1: {message}[^\n]*$") as caught:
            draw()
        assert caught.value.cause == "rle"
    with pytest.raises(Damaged, match=rf"^sa_000001\.tar: sa_7: {message}[^\n]*$"):  # a window looks at all boxes
        Augment(zoom=(2, 2)).frame(sample(found), 16, 3, np.random.default_rng(0))


def test_a_bad_string_that_is_not_drawn_is_not_read():
    found = broken("05")
    assert frames.frame(sample(found), 16, [0, 2]).masks.any((1, 2)).all()
    drawn = 0
    for seed in range(20):
        try:
            drawn += len(Augment().frame(sample(found), 16, 1, np.random.default_rng(seed)).masks)
        except Damaged:
            continue
    assert 5 < drawn < 20


@pytest.mark.parametrize(
    ("change", "cause", "message"),
    [
        ({"image_id": 8}, "json", "its JSON is of image 8"),
        ({"height": 41}, "size", "annotation 0: the mask is of size"),
        ({"width": "56"}, "json", "width is str, not int"),
    ],
)
def test_what_is_wrong_has_its_cause(change, cause, message):
    stored = json.loads(record().text())
    stored["image"].update(change)
    with pytest.raises(Damaged, match=f"^{message}") as caught:
        parse(7, b"", json.dumps(stored).encode())
    assert caught.value.cause == cause


@pytest.mark.parametrize("text", [b"{", b"\xff", b"[" * 100_000, b'{"image": NaN}', b"[" + b"9" * 5000 + b"]"])
def test_what_is_no_json_has_its_cause(text):
    with pytest.raises(Damaged, match=r"^[^\n]*JSON[^\n]*$") as caught:
        parse(7, b"", text)
    assert caught.value.cause == "json"


def test_a_record_with_a_broken_image_is_not_sound():
    whole = record()
    (flaw,) = parse(7, whole.jpeg[:-2], whole.text()).flaws()
    assert re.fullmatch(r"the image cannot be decoded: [^\n]*", str(flaw))
    assert flaw.cause == "image"
    both = broken("05")
    assert [flaw.cause for flaw in replace(both, jpeg=both.jpeg[:-2]).flaws()] == ["image", "rle"]
