"""BSDS500: what each annotator drew, as masks and as boundaries."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat, savemat

from samlit.faults import Damaged
from samlit.masks import rle
from samlit.source import Source
from samlit_sources.bsds import Bsds

SHARED = Path(os.environ.get("SAMLIT_SHARED") or Path(__file__).resolve().parents[2] / "shared" / "data")
SIZE = (24, 36)


def halves(at: int) -> np.ndarray:
    """A segment to the left of a column, and one from it on."""
    drawn = np.ones(SIZE, np.uint16)
    drawn[:, at:] = 2
    return drawn


def cells(maps: list[np.ndarray]) -> np.ndarray:
    """The cell array of the published files."""
    found = np.empty((1, len(maps)), object)
    for number, one in enumerate(maps):
        edges = np.zeros(one.shape, np.uint8)
        edges[:, 1:] = one[:, 1:] != one[:, :-1]
        found[0, number] = {"Segmentation": one, "Boundaries": edges}
    return found


def write(root: Path, name: str = "100", maps: list[np.ndarray] | None = None, inner: str = "") -> str:
    for part in ("images/val", "groundTruth/val"):
        (root / inner / part).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", SIZE[::-1]).save(root / inner / "images" / "val" / f"{name}.jpg")
    (root / inner / "images" / "val" / "Thumbs.db").write_text("as in the published folders")
    drawn = [halves(9), halves(20), halves(9)] if maps is None else maps
    savemat(root / inner / "groundTruth" / "val" / f"{name}.mat", {"groundTruth": cells(drawn)})
    return str(root)


@pytest.mark.parametrize("inner", ["", "data", "BSDS500/data", "BSDS500"])
def test_segments_of_all_annotators_each_once(tmp_path: Path, inner: str) -> None:
    source = Bsds(write(tmp_path, inner=inner), "val")
    assert isinstance(source, Source)
    (sample,) = source
    assert sample.key == "val/100"
    assert sample.masks == tuple(rle.encode(halves(at) == value) for at in (9, 20) for value in (1, 2))
    assert sample.pixels().shape == (*SIZE, 3)
    assert len(pickle.loads(pickle.dumps(source))) == 1
    with pytest.raises(IndexError):
        source[1]


def test_segments_of_one_annotator(tmp_path: Path) -> None:
    root = write(tmp_path)
    assert Bsds(root, "val", 2)[0].masks == tuple(rle.encode(halves(20) == value) for value in (1, 2))
    assert len(Bsds(root, "val", 2, min_area=400)[0].masks) == 1
    with pytest.raises(Damaged, match="3 annotators, there is no number 4"):
        Bsds(root, "val", 4)[0]
    with pytest.raises(ValueError, match="from 1 on"):
        Bsds(root, "val", 0)
    with pytest.raises(ValueError, match="train, val or test"):
        Bsds(root, "vall")  # type: ignore[arg-type]


def test_boundaries_of_each_annotator(tmp_path: Path) -> None:
    edges = Bsds(write(tmp_path), "val", 1).boundaries(0)  # of all, whatever the masks are
    assert edges.shape == (3, *SIZE)
    assert edges.dtype == bool
    assert [np.flatnonzero(one.any(0)).tolist() for one in edges] == [[9], [20], [9]]


def test_what_is_missing_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"root is the one with images/ and groundTruth/"):
        len(Bsds(str(tmp_path), "val"))
    root = write(tmp_path)
    (tmp_path / "groundTruth" / "val" / "100.mat").unlink()
    with pytest.raises(FileNotFoundError, match=r"100\.mat in"):
        len(Bsds(root, "val"))
    (tmp_path / "images" / "val" / "100.jpg").unlink()
    with pytest.raises(ValueError, match=r"there is no \.jpg"):
        len(Bsds(root, "val"))


@pytest.mark.parametrize("data", [b"", b"MATLAB 5.0 MAT-file", b"\0" * 300, None])
def test_a_damaged_ground_truth_is_one_line(tmp_path: Path, data: bytes | None) -> None:
    source = Bsds(write(tmp_path), "val")
    file = tmp_path / "groundTruth" / "val" / "100.mat"
    file.write_bytes(file.read_bytes()[:-100] if data is None else data)
    with pytest.raises(Damaged) as caught:
        source[0]
    assert caught.value.key == "val/100"
    assert "\n" not in str(caught.value)
    write(tmp_path, maps=[halves(9), halves(9)[:-1]])
    with pytest.raises(Damaged, match="different sizes"):
        source[0]
    write(tmp_path, maps=[halves(9)[:-1]])
    with pytest.raises(Damaged, match="36 wide and 24 high"):
        source[0]


def test_the_real_images_and_their_annotators() -> None:
    root = SHARED / "bsds500"
    if not root.exists():
        pytest.skip(f"{root} is not here: set SAMLIT_SHARED to the folder of real data")
    counts = {split: len(Bsds(str(root), split)) for split in ("train", "val", "test")}  # type: ignore[arg-type]
    assert counts == {"train": 200, "val": 100, "test": 200}
    source = Bsds(str(root), "test")
    for index in range(0, 200, 40):
        sample, name = source[index], source[index].key.partition("/")[2]
        truth = loadmat(root / "groundTruth" / "test" / f"{name}.mat")["groundTruth"].ravel()
        edges = source.boundaries(index)
        assert len(edges) == len(truth) >= 4
        maps = [one["Segmentation"][0, 0] for one in truth]
        for number, (one, drawn) in enumerate(zip(truth, maps, strict=True)):
            assert np.array_equal(edges[number], one["Boundaries"][0, 0] > 0)
            own = Bsds(str(root), "test", number + 1)[index].masks
            assert sum(rle.area(mask) for mask in own) == drawn.size  # segments cover the image, once
            assert own == tuple(rle.encode(drawn == value) for value in np.unique(drawn))
            assert set(own) <= set(sample.masks)
        assert sample.pixels().shape[:2] == maps[0].shape
