"""Data sets as they are typed: a source by name or class path, its arguments with their types, mistakes in one line."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from samlit.errors import UsageError
from samlit.faults import Damaged
from samlit.loading import specs
from samlit.loading.joined import Joined
from samlit.source import Source
from tests import fitting

Install = Callable[..., Path]
Shell = Callable[..., "subprocess.CompletedProcess[str]"]


def built(*texts: str, settings: tuple[str, ...] = ()) -> tuple[Any, list[dict[str, Any]]]:
    return specs.build(specs.read(texts, settings))


def refused(words: str, *texts: str, settings: tuple[str, ...] = ()) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        built(*texts, settings=settings)
    assert "\n" not in str(caught.value)


def test_the_path_is_the_first_argument_and_set_gives_the_others() -> None:
    source, (arguments,) = built("coco:own/train.json", settings=("crowd=true", "tile=512", "images=photos"))
    assert (source.annotations, source.images, source.crowd, source.tile) == ("own/train.json", "photos", True, 512)
    assert arguments["empty"] is True
    assert list(arguments)[:2] == ["annotations", "images"]
    source, _ = built("folder:123", settings=("background=[0, 255]",))
    assert source.root == "123"
    assert source.background == (0, 255)
    source, _ = built("sa1b:s3://bucket/shards")
    assert source.root == "s3://bucket/shards"


def test_a_class_path_and_a_source_without_arguments() -> None:
    source, (arguments,) = built("tests.fitting.Discs:5", settings=("side=16",))
    assert type(source).__name__ == "Discs"
    assert len(source) == 5  # the constructor says no types: a number is read as one
    assert arguments == {"count": 5, "side": 16}
    assert len(built("tests.fitting.Discs")[0]) == 3


def test_several_are_one_in_order() -> None:
    for words in (("tests.fitting.Discs:2", "tests.fitting.Discs:3"), ("tests.fitting.Discs:2,tests.fitting.Discs:3",)):
        source, arguments = built(*words, settings=("2.side=24",))
        assert isinstance(source, Joined)
        assert [one["count"] for one in arguments] == [2, 3]
        assert len(source) == 5
        assert [sample.key for sample in source] == ["disc 0", "disc 1", "disc 0", "disc 1", "disc 2"]
        assert [sample.size[1] for sample in source] == [32, 32, 24, 24, 24]
        assert source.shards() == [2, 3]
        with pytest.raises(IndexError):
            source[5]
        with pytest.raises(IndexError):
            source[-1]


def test_a_comma_in_a_path_is_no_other_source() -> None:
    (one,) = specs.read(["coco:a,b.json"])
    assert one.first == "a,b.json"
    assert [spec.first for spec in specs.read(["coco:a,b.json,folder:c"])] == ["a,b.json", "c"]


def test_hints_reach_the_sources_of_several() -> None:
    class Told(fitting.Discs):
        def __init__(self, count: int) -> None:
            super().__init__(count)
            self.hints: list[int] = []

        def prefetch(self, indices: Any) -> None:
            self.hints += indices

    parts = [Told(3), Told(2)]
    Joined(parts).prefetch([4, 0, 3, 2])
    assert [part.hints for part in parts] == [[0, 2], [1, 0]]
    fault = Damaged("cut", "it ends too early")
    parts[1].faults = lambda: [fault]  # type: ignore[attr-defined]
    assert Joined(parts).faults() == [fault]


def test_a_strangers_source(install: Install) -> None:
    module = "from tests.fitting import Discs\n\n\ndef plates(count: int) -> Discs:\n    return Discs(count)\n"
    install("plates", "[samlit.sources]\nplates = plates:plates\n", {"plates.py": module})
    assert len(built("plates:4")[0]) == 4
    refused("plates:x: count: expected int, got 'x'", "plates:x")


@pytest.mark.parametrize(
    ("words", "texts", "settings"),
    [
        ("cocoo:a: no source is called 'cocoo'; did you mean 'coco'", ("cocoo:a",), ()),
        (r"write SOURCE:PATH, as in coco:a/b\.json", ("a/b.json",), ()),
        ("there is no path behind the colon", ("coco:",), ()),
        ("no source is called 'points'; there is a prompt of that name", ("points:a",), ()),
        (r"'nowhere\.Own': there is no module", ("nowhere.Own:a",), ()),
        ("coco: annotations is missing; give it with --set annotations=VALUE", ("coco",), ()),
        ("bsds:a: split is missing", ("bsds:a",), ()),
        ("--set crwd=1: coco:a has no 'crwd'; did you mean 'crowd'", ("coco:a",), ("crwd=1",)),
        ("--set x=1: none of the sources has no 'x'|has no 'x'", ("coco:a", "folder:b"), ("x=1",)),
        ("--set crowd: write KEY=VALUE", ("coco:a",), ("crowd",)),
        ("number of a source, 1 to 1", ("coco:a",), ("2.crowd=true",)),
        ("coco:a says its annotations already", ("coco:a",), ("annotations=b",)),
        ("coco:a: crowd: expected bool, got 'maybe'", ("coco:a",), ("crowd=maybe",)),
        ("coco:a: tile: a side in pixels", ("coco:a",), ("tile=-3",)),
        ("bsds:a: split: expected 'train' or 'val' or 'test', got 'tset'", ("bsds:a",), ("split=tset",)),
        ("is no Source", ("samlit.faults.Damaged:other",), ("message=a",)),
    ],
)
def test_mistakes_are_one_line(words: str, texts: tuple[str, ...], settings: tuple[str, ...]) -> None:
    refused(words, *texts, settings=settings)


def test_a_file_alone_says_how_to_write_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.json").write_text("{}")
    refused(r"'train\.json' says no source: write SOURCE:PATH, as in coco:train\.json", "train.json")
    (tmp_path / "coco").mkdir()  # a folder of a source's name hides it not
    assert isinstance(built("coco", settings=("annotations=a",))[0], Source)


def test_nothing_heavy_is_imported_to_find_a_mistake(shell: Shell) -> None:
    code = "import sys; from samlit.cli import main\ntry:\n    main(sys.argv[1:])\nfinally:\n    "
    code += "print([m for m in ('torch', 'numpy', 'jsonargparse') if m in sys.modules], file=sys.stderr)"
    for words in (
        "shards",
        "shards make --help",
        "shards make cocoo:a --out b",
        "shards make coco:a --out b --set c=1",
    ):
        done = shell("-c", code, *words.split())
        assert done.stderr.splitlines()[-1] == "[]", words
