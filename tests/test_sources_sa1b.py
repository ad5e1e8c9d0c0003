"""The source of SA-1B's layout: records in order, and one clear line where there are none."""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from torch.utils.data import DataLoader

from samlit.faults import Damaged
from samlit.masks import rle
from samlit.shards import writing
from samlit.shards.records import Annotation, Record
from samlit.source import Source
from samlit_sources.sa1b import Sa1b
from tests.serving import serving

SHARED = Path(os.environ.get("SAMLIT_SHARED") or Path(__file__).resolve().parents[2] / "shared" / "data")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAMLIT_CACHE", str(tmp_path / "cache"))


def record(number: int, phrase: str = "") -> Record:
    image = np.full((24, 32, 3), number, np.uint8)
    _, encoded = cv2.imencode(".png", image)  # PNG, for its pixels come back as they were
    masks = np.zeros((2, 24, 32), bool)
    masks[0, : 1 + number % 20, 3:9] = True
    annotations = (Annotation(rle.encode(masks[0]), phrase), Annotation(rle.encode(masks[1])))
    return Record(number, (24, 32), encoded.tobytes(), annotations)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "shards"
    place.mkdir()
    writing.write(place / "sa_000001.tar", [record(30), record(7)])
    writing.write(place / "sa_000000.tar", [record(5), record(3), record(4)])
    writing.write(place / "sa_000002.tar", [])
    writing.write(place / "sa_000003.tar", [record(9)])
    return place


def test_records_in_order(folder: Path) -> None:
    source = Sa1b(str(folder))
    assert isinstance(source, Source)
    assert len(source) == 6
    samples = [source[index] for index in range(6)]
    assert [sample.key for sample in samples] == ["sa_5", "sa_3", "sa_4", "sa_30", "sa_7", "sa_9"]
    assert [int(sample.pixels()[0, 0, 0]) for sample in samples] == [5, 3, 4, 30, 7, 9]
    assert samples[0].pixels().shape == (24, 32, 3)
    assert samples[0].pixels().dtype == np.uint8
    assert rle.area(samples[1].masks[0]) == 4 * 6
    assert samples[0].phrases == ()
    for index in (6, -1):
        with pytest.raises(IndexError, match="has 6 records"):
            source[index]


def test_one_tar(folder: Path) -> None:
    source = Sa1b(str(folder / "sa_000001.tar"))
    assert [source[index].key for index in range(len(source))] == ["sa_30", "sa_7"]


def test_phrases_are_all_or_none(tmp_path: Path) -> None:
    writing.write(tmp_path / "sa_000000.tar", [record(1, "the red cart"), record(2)])
    source = Sa1b(str(tmp_path))
    assert source[0].phrases == ("the red cart", "")
    assert source[1].phrases == ()


def test_it_travels_before_and_after_it_is_prepared(folder: Path) -> None:
    source = Sa1b(str(folder))
    fresh = pickle.loads(pickle.dumps(source))
    source.prepare()
    prepared = pickle.loads(pickle.dumps(source))
    assert fresh[4].key == prepared[4].key == "sa_7"


def test_progress(folder: Path) -> None:
    told: list[tuple[int, int]] = []
    Sa1b(str(folder)).prepare(lambda done, total, what: told.append((done, total)))
    assert told == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]
    Sa1b(str(folder)).prepare(lambda done, total, what: told.append((done, total)))
    assert len(told) == 5  # all of it is known


def test_what_is_not_there(tmp_path: Path) -> None:
    says = r"^there are no shards at /.*nowhere: .*data.source.root.*shards get.*data.source"
    with pytest.raises(FileNotFoundError, match=says):
        Sa1b(str(tmp_path / "nowhere")).prepare()
    (tmp_path / "other.tar").touch()
    with pytest.raises(ValueError, match=r"^there is no sa_\*\.tar in [^\n]*$"):
        Sa1b(str(tmp_path)).prepare()


def test_a_damaged_shard_is_told_and_the_others_are_read(folder: Path) -> None:
    path = folder / "sa_000001.tar"
    path.write_bytes(path.read_bytes()[:2048])
    source = Sa1b(str(folder))
    source.prepare()
    assert [source[index].key for index in range(len(source))] == ["sa_5", "sa_3", "sa_4", "sa_30", "sa_9"]
    (fault,) = source.faults()
    assert (fault.cause, fault.shard) == ("cut", "sa_000001.tar")


def test_where_no_record_is_left_it_says_why(tmp_path: Path) -> None:
    (tmp_path / "sa_000000.tar").write_bytes(b"")
    (tmp_path / "sa_000001.tar").write_bytes(b"nonsense" * 100)
    with pytest.raises(
        ValueError, match=r"no record that can be read \(cut 1, header 1\): sa_000000\.tar: [^\n]*cut off"
    ):
        Sa1b(str(tmp_path)).prepare()


def test_a_damaged_image_is_named(folder: Path) -> None:
    broken = Record(8, (24, 32), record(8).jpeg[:60], record(8).annotations)
    writing.write(folder / "sa_000004.tar", [broken])
    source = Sa1b(str(folder))
    with pytest.raises(ValueError, match=r"^sa_000004\.tar: sa_8: the image cannot be decoded: [^\n]+$"):
        source[6].pixels()


def test_how_many_lie_together(folder: Path) -> None:
    assert list(Sa1b(str(folder)).shards()) == [3, 2, 0, 1]


# Some of it


@pytest.mark.parametrize(
    ("subset", "keys"),
    [
        ("sa_000000..sa_000001", ["sa_5", "sa_3", "sa_4", "sa_30", "sa_7"]),
        ("sa_000001", ["sa_30", "sa_7"]),
        ("sa_000003.tar, sa_000001 .. sa_000002", ["sa_30", "sa_7", "sa_9"]),
    ],
)
def test_some_shards(folder: Path, subset: str, keys: list[str]) -> None:
    source = Sa1b(str(folder), subset)
    assert [source[index].key for index in range(len(source))] == keys


@pytest.mark.parametrize(
    ("subset", "message"),
    [
        ("sa_000000..sa_000009", "there is no sa_000009.tar"),
        ("sa_000000..sa_000001..sa_000002", "is neither a file nor shards like"),
        ("sa_000003..sa_000001", "is neither a file nor shards like"),
        ("ids.txt", "is neither a file nor shards like"),
        ("../sa_000000", "is neither a file nor shards like"),
    ],
)
def test_shards_that_are_not_there(folder: Path, subset: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sa1b(str(folder), subset).prepare()


def test_a_gap_in_a_range_is_told(folder: Path) -> None:
    (folder / "sa_000002.tar").unlink()
    with pytest.raises(ValueError, match=r"of sa_000000\.\.sa_000003 only 3 shards are in"):
        Sa1b(str(folder), "sa_000000..sa_000003").prepare()


def test_some_images(folder: Path, tmp_path: Path) -> None:
    ids = tmp_path / "sa_images_ids.txt"
    ids.write_text("7\nsa_4\n\nsa_9.jpg\n123456\n4\n")
    source = Sa1b(str(folder), str(ids))
    source.prepare()
    assert [source[index].key for index in range(len(source))] == ["sa_4", "sa_7", "sa_9"]
    assert list(source.shards()) == [1, 1, 0, 1]
    assert pickle.loads(pickle.dumps(source))[2].key == "sa_9"
    ids.write_text("4\ncat\n")
    with pytest.raises(ValueError, match="line 2 is no image id: 'cat'"):
        Sa1b(str(folder), str(ids)).prepare()
    ids.write_text("123456\n")
    with pytest.raises(ValueError, match="none of the images of"):
        Sa1b(str(folder), str(ids)).prepare()


def scored(number: int, *rows: dict[str, Any]) -> Record:
    """A record whose masks have these areas (as stated, and in truth), scores and phrases."""
    annotations = []
    for row in rows:
        mask = np.zeros((24, 32), bool)
        mask.reshape(-1)[: row.pop("pixels")] = True
        annotations.append(Annotation(rle.encode(mask), **row))
    return Record(number, (24, 32), record(number).jpeg, tuple(annotations))


def test_masks_are_chosen_by_what_is_stated_of_them(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"pixels": 10, "predicted_iou": 0.9, "stability_score": 0.97, "phrase": "a"},
        {"pixels": 100, "predicted_iou": 0.99, "stability_score": 0.95, "phrase": "b"},
        {"pixels": 700, "predicted_iou": 0.88, "stability_score": 0.99, "phrase": "c"},
    ]
    writing.write(tmp_path / "sa_000000.tar", [scored(1, *rows)])

    def kept(**limits: float) -> str:
        sample = Sa1b(str(tmp_path), **limits)[0]  # type: ignore[arg-type]
        assert len(sample.phrases) == len(sample.masks)
        return "".join(sample.phrases)

    assert kept() == "abc"
    assert kept(min_predicted_iou=0.9) == "ab"
    assert kept(min_stability=0.96) == "ac"
    assert kept(min_area=11) == "bc"
    assert kept(min_area=10, max_area=100) == "ab"
    assert kept(max_area=0.9) == "ab"  # 700 of 768 pixels are more
    assert kept(min_area=0.5) == "c"
    assert kept(min_predicted_iou=0.95, max_area=99) == ""  # no mask is left, and it is a sample all the same
    for wrong in ({"min_area": -1.0}, {"max_area": 0.0}):
        with pytest.raises(ValueError, match="min_area is at least 0"):
            Sa1b(str(tmp_path), **wrong)  # type: ignore[arg-type]


def test_filters_read_no_string(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writing.write(tmp_path / "sa_000000.tar", [record(1)])
    source = Sa1b(str(tmp_path), min_area=5, max_area=0.9, min_stability=0.1)
    monkeypatch.setattr(rle, "area", None)
    assert len(source[0].masks) == 1  # the second one is stated to have no pixel


def test_images_without_a_mask(tmp_path: Path) -> None:
    writing.write(tmp_path / "sa_000000.tar", [Record(1, (24, 32), record(1).jpeg, ()), record(2)])
    with pytest.raises(Damaged, match=r"^sa_000000\.tar: sa_1: the image has no mask$") as caught:
        Sa1b(str(tmp_path))[0]
    assert caught.value.cause == "empty"
    source = Sa1b(str(tmp_path), empty=True)
    assert source[0].masks == ()
    assert len(source) == 2


# SA-1B itself


def test_a_mask_of_sa1b_itself(tmp_path: Path) -> None:
    file = SHARED / "fixtures" / "sa1b" / "annotation_292014182.json"
    if not file.exists():
        pytest.skip(f"no shared data in {SHARED}")
    stated = json.loads(file.read_bytes())
    rows, columns = stated["segmentation"]["size"]
    about = {"image_id": 5, "width": columns, "height": rows, "file_name": "sa_5.jpg"}
    _, jpeg = cv2.imencode(".jpg", np.zeros((rows, columns, 3), np.uint8))
    with tarfile.open(tmp_path / "sa_000000.tar", "w") as tar:
        for name, data in (
            ("sa_5.jpg", jpeg.tobytes()),
            ("sa_5.json", json.dumps({"image": about, "annotations": [stated]}).encode()),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    sample = Sa1b(str(tmp_path), min_predicted_iou=0.95, min_area=2381, max_area=2381)[0]
    (mask,) = sample.masks
    assert rle.area(mask) == stated["area"] == rle.decode(mask).sum()
    x0, y0, x1, y1 = rle.box(mask)
    assert [x0, y0, x1 - 1 - x0, y1 - 1 - y0] == stated["bbox"]  # largest minus smallest (SAM_SPEC 0.9)
    assert sample.pixels().shape == (rows, columns, 3)
    assert Sa1b(str(tmp_path), min_predicted_iou=0.96)[0].masks == ()


# Remote


def test_it_streams_ahead_of_itself_from_a_server(folder: Path, tmp_path: Path) -> None:
    with serving({f"/{path.name}": path.read_bytes() for path in folder.glob("*.tar")}) as server:
        source = Sa1b(server.url + "/", subset="sa_000000..sa_000001", cache=str(tmp_path / "chunks"), cache_size="1GB")
        source.prepare()
        source = pickle.loads(pickle.dumps(source))
        source.prefetch(range(5))
        assert [source[index].key for index in range(5)] == ["sa_5", "sa_3", "sa_4", "sa_30", "sa_7"]
        for wrong in ("pipe:cat x", "ftp://x/y"):
            with pytest.raises(ValueError, match=r"would run a program|no address"):
                Sa1b(wrong)


def test_workers_that_are_spawned_read_it(folder: Path) -> None:
    source = Sa1b(str(folder))
    source.prepare()
    loaded = DataLoader(source, batch_size=None, num_workers=2, multiprocessing_context="spawn")  # type: ignore[arg-type]
    assert [sample.key for sample in loaded] == ["sa_5", "sa_3", "sa_4", "sa_30", "sa_7", "sa_9"]
