"""Shards: SA-1B's layout, whole or not at all, and one clear line for each damage."""

from __future__ import annotations

import gc
import io
import json
import os
import pickle
import struct
import tarfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from webdataset import TarWriter, WebDataset

from samlit.masks import rle
from samlit.masks.rle import Rle
from samlit.shards import writing
from samlit.shards.records import Annotation, Record
from samlit.shards.store import Store

SIZE = (40, 56)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAMLIT_CACHE", str(tmp_path / "cache"))


def jpeg(size: tuple[int, int] = SIZE, seed: int = 0) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 255, (*size, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def record(number: int, **about: Any) -> Record:
    mask = np.zeros(SIZE, bool)
    mask[10:20, 5 : 6 + number % 30] = True
    annotations = (Annotation(rle.encode(mask), **about), Annotation(rle.encode(~mask)))
    return Record(number, SIZE, jpeg(seed=number), annotations)


def shard(path: Path, numbers: range = range(5)) -> Path:
    writing.write(path, map(record, numbers))
    return path


def opened(path: Path) -> Store:
    store = Store(str(path))
    store.open()
    return store


def repack(path: Path, **files: bytes | None) -> Path:
    """A shard with the files of record 2 (`jpg=`, `json=`) replaced, or dropped where None."""
    with tarfile.open(path) as tar:
        members = [(member, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for member, data in members:
            stem, _, ending = member.name.rpartition(".")
            data_ = files.get(ending, data) if stem == "sa_2" else data
            if data_ is not None:
                member.size = len(data_)
                tar.addfile(member, io.BytesIO(data_))
    return path


def changed(path: Path, **changes: Any) -> Path:
    """A shard with fields of the first annotation of record 2 changed (`image` for those of the image)."""
    stored = json.loads(record(2).text())
    stored["image"].update(changes.pop("image", {}))
    stored["annotations"][0].update(changes)
    return repack(path, json=json.dumps(stored).replace('"1e999"', "1e999").encode())


# Writing


def test_layout_is_that_of_sa1b(tmp_path: Path) -> None:
    about = {"phrase": "the red cart", "predicted_iou": 0.9, "stability_score": 0.97, "point": (7.25, 11.5), "id": 99}
    writing.write(tmp_path / "sa_000000.tar", [record(17, crop_box=(1, 2, 30, 20), **about)])
    with tarfile.open(tmp_path / "sa_000000.tar") as tar:
        assert tar.getnames() == ["sa_17.jpg", "sa_17.json"]
        stored = json.load(tar.extractfile("sa_17.json"))  # type: ignore[arg-type]
    assert stored["image"] == {"image_id": 17, "width": 56, "height": 40, "file_name": "sa_17.jpg"}
    first, second = stored["annotations"]
    assert first["segmentation"]["size"] == [40, 56]
    first.pop("segmentation")
    assert first == {
        "id": 99,
        "bbox": [5.0, 10.0, 17.0, 9.0],  # columns 5 to 22, rows 10 to 19: largest minus smallest (SAM_SPEC 0.9)
        "area": 180,
        "predicted_iou": 0.9,
        "stability_score": 0.97,
        "crop_box": [1.0, 2.0, 30.0, 20.0],
        "point_coords": [[7.25, 11.5]],
        "phrase": "the red cart",
    }
    assert second["crop_box"] == [0.0, 0.0, 56.0, 40.0]
    assert second["id"] == 170_001
    assert "phrase" not in second


def test_what_is_written_is_read(tmp_path: Path) -> None:
    whole = {"phrase": "a thing", "predicted_iou": 0.5, "stability_score": 0.25, "crop_box": (0, 1, 5, 6), "id": 3}
    written = record(8, point=(1.5, 2.5), **whole)
    writing.write(tmp_path / "sa_000000.tar", [written])
    read = opened(tmp_path / "sa_000000.tar").record(0, 0)
    assert read.key == "sa_8"
    assert read.jpeg == written.jpeg
    assert read.annotations[0] == written.annotations[0]
    assert np.array_equal(read.image.pixels(), np.array(Image.open(io.BytesIO(written.jpeg))))


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset 1.0.2 leaves the shard open
def test_webdataset_reads_it_too(tmp_path: Path) -> None:
    path = shard(tmp_path / "sa_000000.tar")
    samples = list(WebDataset(str(path), shardshuffle=False))
    gc.collect()
    assert [sample["__key__"] for sample in samples] == [f"sa_{number}" for number in range(5)]
    assert all(json.loads(sample["json"])["annotations"] for sample in samples)


def test_the_bytes_are_those_of_webdatasets_writer(tmp_path: Path) -> None:
    records = [record(number) for number in (1, 2, 10**12)]
    writing.write(tmp_path / "own.tar", records)
    with TarWriter(str(tmp_path / "its.tar"), encoder=False, mtime=0, user="samlit", group="samlit") as tar:
        for one in records:
            tar.write({"__key__": one.key, "jpg": one.jpeg, "json": one.text()})
    assert (tmp_path / "own.tar").read_bytes() == (tmp_path / "its.tar").read_bytes()


def test_same_records_same_bytes(tmp_path: Path) -> None:
    one, two = shard(tmp_path / "a.tar"), shard(tmp_path / "b.tar")
    assert one.read_bytes() == two.read_bytes()


def test_error_in_mid_write_leaves_nothing(tmp_path: Path) -> None:
    def records() -> Any:
        yield record(1)
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        writing.write(tmp_path / "sa_000000.tar", records())
    assert list(tmp_path.iterdir()) == []
    old = shard(tmp_path / "sa_000000.tar").read_bytes()
    with pytest.raises(RuntimeError, match="power cut"):
        writing.write(tmp_path / "sa_000000.tar", records())
    assert (tmp_path / "sa_000000.tar").read_bytes() == old


def test_writer_refuses(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="sa_1 comes twice"):
        writing.write(tmp_path / "a.tar", [record(1), record(1)])
    wrong = Record(1, (9, 9), jpeg((9, 9)), record(1).annotations)
    with pytest.raises(ValueError, match="not of the image's size"):
        writing.write(tmp_path / "a.tar", [wrong])


# Reading


def test_a_store_travels_and_is_read_by_many(tmp_path: Path) -> None:
    there = pickle.loads(pickle.dumps(opened(shard(tmp_path / "sa_000000.tar", range(20)))))
    found: list[str] = []

    def read() -> None:
        found.extend(there.record(0, number).key for number in range(20))

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == sorted([f"sa_{number}" for number in range(20)] * 4)


def _deep(text: str) -> bytes:
    return (text * 100_000).encode()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe{", "not UTF-8"),
        (_deep("["), "nested too deep"),
        (b"[]", "has no image"),
        (b"null", "has no image"),
        (b'{"image": 3}', "image is int, not dict"),
        (b'{"image": {"height": 40}}', "has no width"),
        (b'{"image": {"height": 40.0, "width": 56}}', "height is float, not int"),
        (b'{"image": {"height": true, "width": 56}}', "height is bool, not int"),
        (b'{"image": {"height": 40, "width": 56, "image_id": 2}}', "has no annotations"),
        (b'{"image": {"height": 40, "width": 56, "image_id": 3}, "annotations": []}', "its JSON is of image 3"),
        (
            b'{"image": {"height": 40, "width": 56, "image_id": 2}, "annotations": [3]}',
            "annotation 0: .*no segmentation",
        ),
        (b'{"image": NaN}', "has NaN"),
        (b'{"image": {"height": -Infinity}}', "has -Infinity"),
        (b'{"image": ' + b"9" * 5000 + b"}", "digits"),
    ],
)
def test_bad_json(tmp_path: Path, text: bytes, message: str) -> None:
    path = repack(shard(tmp_path / "sa_000000.tar"), json=text)
    with pytest.raises(ValueError, match=rf"^sa_000000\.tar: sa_2: [^\n]*{message}[^\n]*$"):
        opened(path).record(0, 2)
    assert opened(path).record(0, 3).key == "sa_3"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"segmentation": {"size": [40, 56], "counts": [2240]}}, "counts is list, not str"),
        ({"segmentation": {"size": [56, 40], "counts": "PV2"}}, "the mask is of size .56, 40., the image 40x56"),
        ({"segmentation": {"size": [1e9, 1], "counts": "0"}}, "the mask is of size"),
        ({"segmentation": [[1, 2, 3, 4]]}, "segmentation is list, not dict"),
        ({"phrase": 3}, "phrase is int, not str"),
        ({"predicted_iou": "high"}, "predicted_iou is str, not float"),
        ({"stability_score": "1e999"}, "stability_score is inf"),
        ({"id": 2.5}, "id is float, not int"),
        ({"image": {"width": 10**9, "height": 10**9}}, "the mask is of size"),
    ],
)
def test_bad_annotations(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = changed(shard(tmp_path / "sa_000000.tar"), **changes)
    with pytest.raises(ValueError, match=rf"^sa_000000\.tar: sa_2: [^\n]*{message}[^\n]*$"):
        opened(path).record(0, 2)


def _claiming(height: int, width: int) -> bytes:
    """A small JPEG whose header says that it is of another size."""
    data = bytearray(jpeg())
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


@pytest.mark.parametrize(
    ("image", "size", "message"),
    [
        (jpeg((41, 56)), SIZE, "the image is 41x56, its JSON says 40x56"),
        (_claiming(60_000, 60_000), SIZE, "cannot be decoded: Image size .* exceeds"),
        (_claiming(9_500, 9_500), (9_500, 9_500), "cannot be decoded: Image size .* exceeds|more than 89478485 pixels"),
        (jpeg()[:700], SIZE, "cannot be decoded: .*truncated"),
        (b"", SIZE, "neither JPEG nor PNG"),
        (os.urandom(1000), SIZE, "neither JPEG nor PNG"),
        (b"GIF89a" + bytes(100), SIZE, "neither JPEG nor PNG"),
    ],
    ids=["size", "bomb", "too large", "cut", "empty", "noise", "gif"],
)
def test_bad_images(image: bytes, size: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        Record(2, size, image, ()).image.pixels()
    assert "\n" not in str(caught.value)


def test_grey_images_become_rgb() -> None:
    stream = io.BytesIO()
    Image.fromarray(np.full(SIZE, 90, np.uint8)).save(stream, "PNG")
    pixels = Record(1, SIZE, stream.getvalue(), ()).image.pixels()
    assert pixels.shape == (*SIZE, 3)
    assert pixels.dtype == np.uint8
    assert (pixels == 90).all()


def test_a_shard_cut_after_it_was_indexed(tmp_path: Path) -> None:
    path = shard(tmp_path / "sa_000000.tar")
    stored = opened(path)
    assert stored.record(0, 0).key == "sa_0"
    os.truncate(path, 9000)
    with pytest.raises(ValueError, match=r"^sa_000000\.tar: sa_4: the shard is shorter than its index says$"):
        stored.record(0, 4)


def test_empty_masks_have_a_box(tmp_path: Path) -> None:
    nothing = Record(1, SIZE, jpeg(), (Annotation(Rle(SIZE, rle.encode(np.zeros(SIZE)).counts)),))
    row = json.loads(nothing.text())["annotations"][0]
    assert row["bbox"] == [0.0, 0.0, 0.0, 0.0]
    assert row["area"] == 0
