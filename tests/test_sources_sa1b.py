"""The source of SA-1B's layout: records in order, and one clear line where there are none."""

from __future__ import annotations

import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest

from samlit import rle, shards
from samlit.contracts import Source
from samlit.records import Annotation, Record
from samlit_sources.sa1b import Sa1b


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
    shards.write(place / "sa_000001.tar", [record(30), record(7)])
    shards.write(place / "sa_000000.tar", [record(5), record(3), record(4)])
    shards.write(place / "sa_000002.tar", [])
    shards.write(place / "sa_000003.tar", [record(9)])
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
    shards.write(tmp_path / "sa_000000.tar", [record(1, "the red cart"), record(2)])
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


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"^there is no folder or tar .*nowhere$"):
        Sa1b(str(tmp_path / "nowhere")).prepare()
    (tmp_path / "other.tar").touch()
    with pytest.raises(ValueError, match=r"^there is no sa_\*\.tar in [^\n]*$"):
        Sa1b(str(tmp_path)).prepare()


def test_a_cut_shard_is_found_when_it_is_prepared(folder: Path) -> None:
    path = folder / "sa_000001.tar"
    path.write_bytes(path.read_bytes()[:2048])
    source = Sa1b(str(folder))
    source.prepare()
    assert len(source) == 5  # what stands before the cut is sound
    faults = [(fault.cause, fault.shard) for fault in source.faults()]
    assert ("cut", "sa_000001.tar") in faults


def test_a_damaged_image_is_named(folder: Path) -> None:
    broken = Record(8, (24, 32), record(8).jpeg[:60], record(8).annotations)
    shards.write(folder / "sa_000004.tar", [broken])
    source = Sa1b(str(folder))
    with pytest.raises(ValueError, match=r"^sa_000004\.tar: sa_8: the image cannot be decoded: [^\n]+$"):
        source[6].pixels()
