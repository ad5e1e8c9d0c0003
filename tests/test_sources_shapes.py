"""The procedural scenes: the same everywhere, true to their words, and too hard for methods that learn nothing."""

from __future__ import annotations

import importlib.util
import itertools
import pickle
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from samlit.masks import rle
from samlit.shards.records import Record
from samlit.source import Source
from samlit_sources import _patterns, _phrases, _scenes, _worded, shapes
from samlit_sources._phrases import Seen
from samlit_sources._scenes import Lot
from samlit_sources.sa1b import Sa1b
from samlit_sources.shapes import Shapes

TRAIN, VAL = 0, 1


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAMLIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def scenes() -> list[_scenes.Drawing]:
    return [_scenes.render(0, VAL, index, 128) for index in range(30)]


def tars(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.tar"))}


# What a scene is


def test_a_scene_depends_on_its_numbers_alone(scenes: list[_scenes.Drawing]) -> None:
    again = _scenes.render(0, VAL, 7, 128)
    assert np.array_equal(again.image, scenes[7].image)
    assert np.array_equal(again.masks, scenes[7].masks)
    assert again.phrases == scenes[7].phrases
    others = [_scenes.render(0, TRAIN, 7, 128), _scenes.render(1, VAL, 7, 128), _scenes.render(0, VAL, 8, 128)]
    for other in others:
        assert other.phrases != again.phrases
        assert other.image.shape != again.image.shape or (other.image != again.image).mean() > 0.9


def test_sizes_and_counts(scenes: list[_scenes.Drawing]) -> None:
    shapes_ = {scene.image.shape for scene in scenes}
    assert {128} == {max(shape) for shape in shapes_}
    assert len(shapes_) > 3
    counts = [len(scene.masks) for scene in scenes]
    assert 10 < np.mean(counts) < 22
    assert min(counts) > 3
    for scene in scenes:
        assert scene.image.dtype == np.uint8
        assert scene.masks.dtype == np.bool_
        assert scene.masks.shape == (len(scene.phrases), *scene.image.shape[:2])
        assert scene.masks.sum((1, 2)).min() >= 32


@pytest.mark.parametrize("size", [64, 256, 600])
def test_other_sizes(size: int) -> None:
    scene = _scenes.render(0, VAL, 3, size)
    assert max(scene.image.shape) == size
    assert len(scene.masks) > 3
    assert scene.masks.sum((1, 2)).min() >= 32 * (size / 128) ** 2


def test_phrases_single_out_their_masks(scenes: list[_scenes.Drawing]) -> None:
    for scene in scenes:
        assert len(set(scene.phrases)) == len(scene.phrases)
        assert all(phrase.startswith("the ") and "  " not in phrase for phrase in scene.phrases)


def test_parts_lie_in_their_wholes(scenes: list[_scenes.Drawing]) -> None:
    depths = []
    for scene in scenes:
        masks = dict(zip(scene.phrases, scene.masks, strict=True))
        for phrase, mask in masks.items():
            pieces = phrase.split(" of ")
            depths.append(len(pieces))
            for start in range(1, len(pieces)):
                whole = masks.get(" of ".join(pieces[start:]))
                if whole is not None:
                    assert not (mask & ~whole).any()
                    assert start > 1 or mask.sum() <= _scenes.MAX_SHARED * whole.sum()
        tops = [mask for phrase, mask in masks.items() if " of " not in phrase]
        assert all(not (a & b).any() for a, b in itertools.combinations(tops, 2))
    assert {1, 2, 3} <= set(depths)
    assert depths.count(3) > len(depths) / 10


def test_masks_are_distinct(scenes: list[_scenes.Drawing]) -> None:
    for scene in scenes:
        flat = scene.masks.reshape(len(scene.masks), -1).astype(np.float32)
        shared = flat @ flat.T
        either = flat.sum(1)[:, None] + flat.sum(1)[None] - shared
        assert (shared / either)[~np.eye(len(flat), dtype=bool)].max() <= _scenes.MAX_SHARED


def test_words_for_things_that_look_alike() -> None:
    class Never:
        def random(self) -> float:
            return 1.0

    def named(*seen: Seen, whole: bool = False) -> list[str]:
        return _phrases.name(Never(), seen, whole)  # type: ignore[arg-type]

    wheel = Seen("wheel", "red", "", 100, (10, 50))
    there = Seen("wheel", "red", "", 110, (60, 50))
    assert named(wheel) == ["the wheel"]
    assert named(wheel, whole=True) == ["the red wheel"]
    assert named(there, wheel) == ["the right wheel", "the left wheel"]
    assert named(wheel, Seen("wheel", "red", "", 300, (60, 50))) == ["the small wheel", "the large wheel"]
    assert named(wheel, Seen("wheel", "red", "", 110, (12, 90))) == ["the upper wheel", "the lower wheel"]
    assert named(wheel, Seen("wheel", "blue", "", 110, (60, 50))) == ["the red wheel", "the blue wheel"]
    assert named(wheel, Seen("wheel", "red", "striped", 110, (60, 50))) == ["the wheel", "the striped wheel"]
    three = [Seen("spot", "red", "", 9, (x, 0.0)) for x in (5, 1, 9)]
    assert named(*three, whole=True) == ["the middle red spot", "the left red spot", "the right red spot"]
    many = named(*[Seen("spot", "red", "", 9, (x, 0.0)) for x in range(12)])
    assert many[1] == "the second spot from the left"
    assert len(set(many)) == 12


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    path = Path(__file__).resolve().parents[1] / "benchmarks" / "scenes.py"
    spec = importlib.util.spec_from_file_location("benchmark_scenes", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_too_hard_for_what_learns_nothing(scenes: list[_scenes.Drawing], benchmark: ModuleType) -> None:
    results = benchmark.baselines(scenes[:20], every=4)
    assert results["threshold"] < 0.4
    assert max(value for name, value in results.items() if name.startswith("flood fill")) < 0.5
    assert 0.4 < results["GrabCut"] < 0.7


def test_baselines_work_on_what_is_easy(benchmark: ModuleType) -> None:
    """So that the bars above say something of the scenes, and not of a broken baseline."""
    mask = np.zeros((64, 64), bool)
    mask[20:44, 16:50] = True
    noise = np.random.default_rng(0).integers(0, 12, (64, 64, 3))
    image = (np.where(mask[..., None], (200, 60, 40), (40, 90, 200)) + noise).astype(np.uint8)
    easy = _scenes.Drawing(image, mask[None], ("the red brick",))
    results = benchmark.baselines([easy])
    assert results["threshold"] > 0.95
    assert results["flood fill, step 24"] > 0.95
    assert results["GrabCut"] > 0.95


def test_the_picture(scenes: list[_scenes.Drawing], benchmark: ModuleType) -> None:
    picture = benchmark.picture(scenes[:6], columns=3, zoom=1)
    assert picture.shape == (2 * 132, 3 * 132, 3)


# The source


def test_written_and_read_back() -> None:
    source = Shapes("val", 5)
    assert isinstance(source, Source)
    assert len(source) == 5
    told: list[tuple[int, int]] = []
    source.prepare(lambda done, total, what: told.append((done, total)))
    assert told == [(0, 5), (5, 5)]
    for index in range(5):
        sample, scene = source[index], _scenes.render(0, VAL, index, 128)
        assert sample.key == f"sa_{index}"
        assert sample.phrases == scene.phrases
        assert np.array_equal([rle.decode(mask) for mask in sample.masks], scene.masks)
        assert np.abs(sample.pixels().astype(int) - scene.image).mean() < 4  # JPEG
    with pytest.raises(IndexError):
        source[5]
    assert len(Sa1b(str(source.folder))) == 5
    assert np.array_equal(pickle.loads(pickle.dumps(source))[2].pixels(), source[2].pixels())


def test_prepared_twice_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    Shapes("train", 3).prepare()
    monkeypatch.setattr(_scenes, "render", None)
    source = Shapes("train", 3)
    source.prepare()
    assert source[2].phrases


def test_any_number_of_workers_writes_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "SHARD", 5)
    monkeypatch.setattr(shapes, "LOT", 2)
    written = []
    for workers in (1, 2):
        monkeypatch.setattr("os.cpu_count", lambda workers=workers: workers)
        source = Shapes("train", 8, seed=4, root=str(tmp_path / str(workers)))
        told: list[tuple[int, int]] = []
        source.prepare(lambda done, total, what, told=told: told.append((done, total)))
        assert [done for done, _ in told] == [0, 2, 4, 5, 7, 8]
        written.append(tars(tmp_path / str(workers)))
    assert list(written[0]) == ["sa_000000.tar", "sa_000001.tar"]
    assert written[0] == written[1]


def test_where_no_process_can_be_started_this_one_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a script without `if __name__ == "__main__"`, which ends every process that is spawned from it."""

    class Broken:
        def __init__(self, *_: object, **__: object) -> None: ...

        def map(self, draw: Callable[[Lot], list[Record]], lots: list[Lot]) -> Iterator[list[Record]]:
            yield draw(lots[0])
            raise BrokenProcessPool

        def shutdown(self, **_: object) -> None: ...

    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.setattr(shapes, "LOT", 2)
    monkeypatch.setattr(shapes, "ProcessPoolExecutor", Broken)
    source = Shapes("train", 5)
    source.prepare()
    assert [source[index].key for index in range(5)] == [f"sa_{index}" for index in range(5)]


def test_train_and_val_share_no_scene() -> None:
    sources = [Shapes("train", 6), Shapes("val", 6)]
    for source in sources:
        source.prepare()
    images = {source[index].pixels().tobytes() for source in sources for index in range(6)}
    assert len(images) == 12


def test_an_error_in_mid_write_leaves_nothing_usable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "SHARD", 3)
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    real = _scenes.render

    def failing(seed: int, split: int, index: int, size: int, *rest: Any) -> _scenes.Drawing:
        if index == 4:
            raise KeyboardInterrupt
        return real(seed, split, index, size, *rest)

    monkeypatch.setattr(_scenes, "render", failing)
    source = Shapes("train", 6, root=str(tmp_path / "set"))
    with pytest.raises(KeyboardInterrupt):
        source.prepare()
    assert list(tars(tmp_path / "set")) == ["sa_000000.tar"]
    with pytest.raises(FileNotFoundError, match=r"sa_000001\.tar.*call prepare"):
        source[0]
    monkeypatch.setattr(_scenes, "render", real)
    source.prepare()
    fresh = Shapes("train", 6, root=str(tmp_path / "fresh"))
    fresh.prepare()
    assert tars(tmp_path / "set") == tars(tmp_path / "fresh")


def test_a_killed_writer_leaves_nothing_usable(tmp_path: Path) -> None:
    code = (
        "import os, sys; from samlit_sources import _scenes; from samlit_sources.shapes import Shapes\n"
        "real = _scenes.render\n"
        "_scenes.render = lambda s, p, i, z, *rest: os.kill(os.getpid(), 9) if i == 2 else real(s, p, i, z, *rest)\n"
        "Shapes('train', 4, root=sys.argv[1]).prepare()\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path / "set")], check=False, timeout=120)
    assert killed.returncode == -9
    assert tars(tmp_path / "set") == {}
    source = Shapes("train", 4, root=str(tmp_path / "set"))
    with pytest.raises(FileNotFoundError, match="call prepare"):
        source[0]
    source.prepare()
    assert [source[index].key for index in range(4)] == ["sa_0", "sa_1", "sa_2", "sa_3"]


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    Shapes("train", 2, root=str(tmp_path)).prepare()
    before = tars(tmp_path)
    for other in (Shapes("val", 2, root=str(tmp_path)), Shapes("train", 3, root=str(tmp_path))):
        with pytest.raises(ValueError, match="holds other scenes"):
            other.prepare()
        with pytest.raises((ValueError, FileNotFoundError)):
            other[0]
    (tmp_path / "shapes.json").unlink()
    with pytest.raises(ValueError, match="not scenes"):
        Shapes("train", 2, root=str(tmp_path)).prepare()
    assert tars(tmp_path) == before


def test_each_set_has_a_folder_of_its_own() -> None:
    sets = [
        Shapes("train", 9),
        Shapes("val", 9),
        Shapes("train", 8),
        Shapes("train", 9, 64),
        Shapes("train", 9, seed=1),
    ]
    assert len({source.folder for source in sets}) == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "test", "count": 3}, "split is train or val"),
        ({"split": "val", "count": 0}, "count is at least 1"),
        ({"split": "val", "count": 3, "size": 100}, "multiple of 8"),
        ({"split": "val", "count": 3, "size": 16}, "multiple of 8"),
    ],
)
def test_bad_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Shapes(**arguments)  # type: ignore[arg-type]


# Worded scenes


def worded(combinations: str, count: int = 60) -> list[_scenes.Drawing]:
    return [_scenes.render(0, VAL, index, 128, 60, "worded", combinations) for index in range(count)]


def apart(phrase: str) -> bool:
    *_, color, noun = phrase.split()
    return _worded.held_out(noun, color)


def test_worded_phrases_mean_one_thing_each_and_say_all_of_it() -> None:
    phrases = [drawing.phrases for drawing in worded("all")]
    seen = Counter(phrase for some in phrases for phrase in some)
    for some in phrases:
        assert len(set(some)) == len(some)
        wholes = [phrase.removeprefix("the ").split() for phrase in some if " of " not in phrase]
        for words in wholes:
            assert words[-1] in _worded.NOUNS
            assert words[-2] in _worded.COLORS
            assert words[:-2] in ([], ["striped"], ["dotted"])
        # A plain thing has no textured twin, of which its phrase would be true as well.
        assert all(len(a) == len(b) or a[-2:] != b[-2:] for a, b in itertools.combinations(wholes, 2))
        for part, _, whole in (phrase.partition(" of ") for phrase in some if " of " in phrase):
            assert whole in some
            assert part.split()[1] in set(_worded.COLORS) - set(whole.split())
    assert len(seen) > 60
    assert sum(" of " in phrase for phrase in seen.elements()) > 20
    assert any(" the striped " in f" {phrase} " for phrase in seen)


def test_one_word_seldom_tells_worded_things_apart() -> None:
    alike = 0
    for drawing in worded("all"):
        wholes = [phrase.split()[-2:] for phrase in drawing.phrases if " of " not in phrase]
        alike += any(a[0] == b[0] or a[1] == b[1] for a, b in itertools.combinations(wholes, 2))
    assert alike > 0.7 * 60


def test_held_out_combinations_are_seen_nowhere_but_in_held_out_scenes() -> None:
    known, held_out = worded("known"), worded("held_out")
    assert not any(apart(phrase) for drawing in known for phrase in drawing.phrases)
    assert all(apart(phrase) for drawing in held_out for phrase in drawing.phrases)
    nouns = {phrase.split()[-1] for drawing in held_out for phrase in drawing.phrases}
    assert nouns == set(_worded.NOUNS)
    assert sum(len(drawing.masks) for drawing in held_out) >= 60
    colors = {phrase.split()[-2] for drawing in known for phrase in drawing.phrases}
    assert colors == set(_worded.COLORS), "each word is known, it is the combination that is not"


def test_a_worded_thing_is_of_the_colour_that_is_said() -> None:
    right = total = 0
    for drawing in worded("all", 30):
        for mask, phrase in zip(drawing.masks, drawing.phrases, strict=True):
            words = phrase.split()
            if " of " in phrase or len(words) != 3 or any(other.endswith(f" of {phrase}") for other in drawing.phrases):
                continue
            seen = np.median(drawing.image[mask].astype(float), 0)
            near = min(_worded.COLORS, key=lambda name: np.abs(np.array(_patterns.COLORS[name]) - seen).sum())
            right, total = right + (near == words[1]), total + 1
    assert total > 15
    assert right / total > 0.8


def test_worded_scenes_are_read_as_they_were_drawn(tmp_path: Path) -> None:
    source = Shapes(count=3, size=64, style="worded", combinations="held_out", root=str(tmp_path / "scenes"))
    source.prepare()
    for index in range(3):
        drawing = _scenes.render(0, TRAIN, index, 64, 60, "worded", "held_out")
        assert source[index].phrases == drawing.phrases
    with pytest.raises(ValueError, match="holds other scenes"):
        Shapes(count=3, size=64, style="worded", root=str(tmp_path / "scenes")).prepare()
    assert Shapes(style="worded").folder != Shapes(style="worded", combinations="known").folder
    with pytest.raises(ValueError, match="combinations are of worded scenes, and style is rich"):
        Shapes(combinations="known")
    with pytest.raises(ValueError, match="known, held_out or all, not 'some'"):
        Shapes(style="worded", combinations="some")  # type: ignore[arg-type]
