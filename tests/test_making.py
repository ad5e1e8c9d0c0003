"""`samlit shards make`: nothing lost, nothing twice, gone on with, and the same bytes whoever writes them."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from samlit import cli
from samlit.errors import SamlitError
from samlit.faults import Damaged
from samlit.loading.images import Encoded
from samlit.masks import rle
from samlit.masks.rle import Rle
from samlit.shards import command, conversion, making, manifest
from samlit.source import Sample, Source
from samlit_sources.bsds import Bsds
from samlit_sources.coco import Coco
from samlit_sources.folder import Folder
from samlit_sources.panoptic import Panoptic
from samlit_sources.sa1b import Sa1b
from tests import test_sources_bsds, test_sources_coco, test_sources_panoptic
from tests.fitting import Discs
from tests.photos import SIZE, Broken, encoded, mask

SHARED = Path(os.environ.get("SAMLIT_SHARED") or Path(__file__).resolve().parents[2] / "shared" / "data")


def make(source: Source, folder: Path, **options: Any) -> list[dict[str, Any]]:
    return making.make(source, [{"source": type(source).__name__, "arguments": {}}], folder, **options)


def hashes(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.glob("*.tar"))}


def records(folder: Path) -> dict[str, Any]:
    """Every member of every shard, JSON parsed."""
    found: dict[str, Any] = {}
    for file in sorted(folder.glob("*.tar")):
        with tarfile.open(file) as tar:
            for member in tar:
                data = tar.extractfile(member).read()  # type: ignore[union-attr]
                found[member.name] = json.loads(data) if member.name.endswith("json") else data
    return found


def quarantined(folder: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / making.QUARANTINE).read_text().splitlines()]


# One sample


def test_a_plain_jpeg_keeps_its_bytes() -> None:
    sample = Sample("a", Encoded(encoded(quality=60), SIZE), (mask(),), ("a bar",))
    made = conversion.convert(sample, 17)
    assert made.record.jpeg == encoded(quality=60)
    assert (made.copied, made.lost) == (True, 0)
    stored = json.loads(made.record.text())
    assert stored["image"] == {
        "image_id": 17,
        "width": 32,
        "height": 24,
        "file_name": "sa_17.jpg",
        "source_key": "a",
    }
    assert stored["annotations"][0]["phrase"] == "a bar"
    assert stored["annotations"][0]["segmentation"] == {"size": [24, 32], "counts": mask().counts}


@pytest.mark.parametrize("orientation", [1, 6])
def test_what_an_exif_turns_is_encoded_as_it_is_stored(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(exif=exif)
    made = conversion.convert(Sample("a", Encoded(data, SIZE), (mask(),)), 0)
    assert made.copied == (orientation == 1)
    with Image.open(io.BytesIO(made.record.jpeg)) as image:
        assert image.size == SIZE[::-1]
        assert image.getexif().get(0x0112, 1) == 1


@pytest.mark.parametrize(
    "image",
    [
        Encoded(encoded("L"), SIZE),
        Encoded(encoded("CMYK"), SIZE),
        Encoded(encoded(kind="PNG"), SIZE),
        np.random.default_rng(7).integers(0, 255, (*SIZE, 3), np.uint8),
    ],
    ids=["grey", "cmyk", "png", "pixels"],
)
def test_everything_else_is_encoded_once_with_whole_colours(image: Any) -> None:
    sample = Sample("a", image, (mask(),))
    made = conversion.convert(sample, 0, quality=95)
    assert not made.copied
    with Image.open(io.BytesIO(made.record.jpeg)) as picture:
        assert (picture.format, picture.mode, picture.size) == ("JPEG", "RGB", SIZE[::-1])
        assert [layer[1:3] for layer in picture.layer] == [(1, 1)] * 3  # 4:4:4
        near = np.abs(np.asarray(picture).astype(int) - sample.pixels())
    assert near.mean() < 4  # of noise, which is the worst to encode
    assert len(conversion.convert(sample, 0, quality=30).record.jpeg) < len(made.record.jpeg)


def test_a_long_side_makes_images_and_masks_smaller() -> None:
    thin = np.zeros((240, 320), bool)
    thin[7, 7] = True
    big = mask(90, (240, 320))
    sample = Sample("a", Encoded(encoded(size=(240, 320)), (240, 320)), (big, rle.encode(thin)), ("bar", "dot"))
    made = conversion.convert(sample, 0, long_side=32)
    assert made.record.size == SIZE
    assert (made.copied, made.lost) == (False, 1)
    (kept,) = made.record.annotations
    assert kept.phrase == "bar"
    assert kept.mask == rle.encode(rle.draw(big, SIZE))
    assert made.record.image.pixels().shape == (*SIZE, 3)
    assert conversion.convert(sample, 0, long_side=320).copied  # it is no longer than that


@pytest.mark.parametrize(
    ("sample", "cause"),
    [
        (Sample("a", Encoded(encoded()[:-90], SIZE), ()), "image"),
        (Sample("a", Encoded(b"", SIZE), ()), "image"),
        (Sample("a", Encoded(encoded(), (24, 33)), ()), "size"),
        (Sample("a", Encoded(encoded(), SIZE), (mask(size=(32, 24)),)), "size"),
        (Sample("a", Encoded(encoded(), SIZE), (Rle(SIZE, "1"),)), "rle"),
        (Sample("a", np.zeros((4, 4), np.uint8), ()), "image"),
        (Sample("a", np.zeros((4, 4, 3), np.float32), ()), "image"),
        (Sample("a", np.zeros((1, 65_501, 3), np.uint8), ()), "size"),
        (Sample("a", Encoded(encoded(), SIZE), (mask(), mask()), ("one",)), "other"),
    ],
)
def test_damage_has_its_cause(sample: Sample, cause: str) -> None:
    with pytest.raises(Damaged) as caught:
        conversion.convert(sample, 0)
    assert caught.value.cause == cause


# A folder of shards


def test_the_same_bytes_however_many_processes_write_them(tmp_path: Path) -> None:
    source = Broken(9)
    one = make(source, tmp_path / "one", per_shard=2, max_damaged=1)
    told: list[tuple[int, int, str]] = []
    many = make(source, tmp_path / "many", per_shard=2, jobs=3, max_damaged=1, progress=lambda *step: told.append(step))
    assert hashes(tmp_path / "one") == hashes(tmp_path / "many")
    assert one == many
    assert quarantined(tmp_path / "one") == quarantined(tmp_path / "many")
    assert told[0] == (0, 9, "making shards")
    assert told[-1] == (9, 9, "making shards")
    assert {shard["name"]: shard["sha256"] for shard in one if shard["images"]} == hashes(tmp_path / "one")
    assert not list((tmp_path / "many").glob(".sa_*"))


def test_what_is_damaged_is_left_out_counted_and_listed(tmp_path: Path) -> None:
    shards = make(Broken(), tmp_path, per_shard=2, max_damaged=0.5)
    assert [shard["images"] for shard in shards] == [2, 0, 0, 1]
    assert sorted(hashes(tmp_path)) == ["sa_000000.tar", "sa_000003.tar"]  # no shard without a record
    assert {name for name in records(tmp_path) if name.endswith("json")} == {"sa_0.json", "sa_1.json", "sa_7.json"}
    rows = quarantined(tmp_path)
    assert [(row["key"], row["cause"]) for row in rows] == [
        ("photo 2", "image"),
        ("photo 3", "rle"),
        ("photo 4", "empty"),
        ("photo 5", "size"),
        ("number 6", "other"),
    ]
    assert all(list(row) == ["shard", "key", "cause", "message"] and "\n" not in row["message"] for row in rows)
    assert len(Sa1b(str(tmp_path))) == 3


def test_too_much_damage_stops_it_and_more_may_be_allowed(tmp_path: Path) -> None:
    with pytest.raises(SamlitError, match=r"4 of 8 images are damaged .*--max-damaged 0\.4.*quarantine") as caught:
        make(Broken(), tmp_path, max_damaged=0.4)
    assert "\n" not in str(caught.value)
    assert len(quarantined(tmp_path)) == 5  # what has no mask is left out, and is no damage
    before = hashes(tmp_path)
    assert make(Broken(), tmp_path, max_damaged=0.5)[0]["images"] == 3
    assert hashes(tmp_path) == before
    with pytest.raises(SamlitError, match="4 of 8"):
        make(Broken(), tmp_path)  # what is known of shards that are there counts again


def test_faults_that_a_source_knows_of_are_counted(tmp_path: Path) -> None:
    source = Broken(sound=True)
    source.faults = lambda: [Damaged("cut", "it ends too early", "", "sa_3.tar")]  # type: ignore[attr-defined]
    with pytest.raises(SamlitError, match="1 of 9 images are damaged"):
        make(source, tmp_path / "a")
    make(source, tmp_path / "b", max_damaged=0.2)
    assert quarantined(tmp_path / "b") == [
        {"shard": "sa_3.tar", "key": "", "cause": "cut", "message": "it ends too early"}
    ]


def test_it_goes_on_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = make(Discs(7), tmp_path / "whole", per_shard=2)
    folder = tmp_path / "own"
    made: list[int] = []
    real = conversion.Maker.make

    def counting(self: conversion.Maker, number: int, step: Callable[[], None]) -> dict[str, Any]:
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(number)
        return real(self, number, step)

    monkeypatch.setattr(conversion.Maker, "make", counting)
    with pytest.raises(KeyboardInterrupt):
        make(Discs(7), folder, per_shard=2)
    assert sorted(hashes(folder)) == ["sa_000000.tar", "sa_000001.tar"]
    with (folder / making.JOURNAL).open("ab") as stream:
        stream.write(b'{"name": "sa_000002.tar", "ima')  # the machine went down
    (folder / ".sa_000002.tar.0123.tmp").write_bytes(b"half")
    (folder / "sa_000000.tar").unlink()  # and somebody removed one
    (folder / "sa_000003.tar").write_bytes(b"not noted as whole")
    monkeypatch.setattr(conversion.Maker, "make", real)
    told: list[int] = []
    assert make(Discs(7), folder, per_shard=2, progress=lambda done, *_: told.append(done)) == whole
    assert told[0] == 2
    assert hashes(folder) == hashes(tmp_path / "whole")
    assert not list(folder.glob(".sa_*"))
    monkeypatch.setattr(conversion.Maker, "make", None)  # nothing is made again
    assert make(Discs(7), folder, per_shard=2) == whole


def test_a_folder_is_for_one_plan(tmp_path: Path) -> None:
    def says(words: str, source: Source, about: Any = None, **options: Any) -> None:
        with pytest.raises(SamlitError, match=words) as caught:
            making.make(source, about or [{"source": "Discs", "arguments": {}}], tmp_path, **options)
        assert "\n" not in str(caught.value)
        assert "--out" in str(caught.value)

    making.make(Discs(3), [{"source": "Discs", "arguments": {}}], tmp_path)
    says("made with samples 3, not 4", Discs(4))
    says("made with per_shard 1000, not 2", Discs(3), per_shard=2)
    says("made with quality 95, not 90", Discs(3), quality=90)
    says("made with long_side None, not 16", Discs(3), long_side=16)
    says("made from Discs, not from Other", Discs(3), [{"source": "Other", "arguments": {}}])
    (tmp_path / making.PLAN).write_text("[]")
    says("is no plan", Discs(3))
    (tmp_path / making.PLAN).unlink()
    says("no `shards make` made", Discs(3))


def test_a_file_that_has_changed_is_another_source(tmp_path: Path) -> None:
    file = tmp_path / "own.json"
    file.write_text("one")
    about = [{"source": "Own", "arguments": {"annotations": str(file), "crowd": False}}]
    making.make(Discs(3), about, tmp_path / "out")
    making.make(Discs(3), about, tmp_path / "out")
    other = [{"source": "Own", "arguments": {"annotations": str(file), "crowd": True}}]
    with pytest.raises(SamlitError, match="made with crowd false, not true"):
        making.make(Discs(3), other, tmp_path / "out")
    file.write_text("two")
    with pytest.raises(SamlitError, match="made from a file that has changed since"):
        making.make(Discs(3), about, tmp_path / "out")


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    tmp_path.mkdir(exist_ok=True)
    with making._alone(tmp_path), pytest.raises(SamlitError, match="another process is making shards there"):
        make(Discs(3), tmp_path)


def test_a_process_that_dies_is_told(tmp_path: Path) -> None:
    with pytest.raises(SamlitError, match="run the same command again to go on, with fewer --jobs than 2"):
        make(Broken(sound=True, end=True), tmp_path, per_shard=4, jobs=2)
    shards = make(Broken(sound=True), tmp_path, per_shard=4)
    assert [shard["images"] for shard in shards] == [4, 4]
    assert not list(tmp_path.glob(".sa_*"))


def test_an_error_that_is_no_damage_ends_it(tmp_path: Path) -> None:
    class Odd(Discs):
        def __getitem__(self, index: int) -> Sample:
            raise RuntimeError("odd")

    with pytest.raises(RuntimeError, match="odd"):
        make(Odd(), tmp_path)
    assert not list(tmp_path.glob("*.tar")) + list(tmp_path.glob(".sa_*"))


def test_shards_are_entered_in_the_manifest(tmp_path: Path) -> None:
    make(Broken(), tmp_path, per_shard=2, max_damaged=1)
    rows = manifest.parse((tmp_path / manifest.FILE).read_bytes())
    assert {name: row.sha256 for name, row in rows.items()} == hashes(tmp_path)


# There and back


@pytest.mark.parametrize("kind", ["coco", "lvis", "folder", "panoptic", "bsds", "discs", "sa1b"])
def test_every_source_comes_back_as_it_went(tmp_path: Path, kind: str) -> None:
    own = tmp_path / "own"
    own.mkdir()
    source: Source
    match kind:
        case "coco" | "lvis":
            source = Coco(test_sources_coco.write(own, test_sources_coco.drawing()))
        case "folder":
            source = Folder(str(own))
            for name in ("images/a.png", "masks/a.png"):
                (own / name).parent.mkdir()
                Image.fromarray(np.eye(24, dtype=np.uint8) * 3).save(own / name)
        case "panoptic":
            source = Panoptic(test_sources_panoptic.write(own))
        case "bsds":
            source = Bsds(test_sources_bsds.write(own), "val")
        case "discs":
            source = Discs(3)
        case "sa1b":
            make(Discs(3), own)
            source = Sa1b(str(own))
    make(source, tmp_path / "shards", per_shard=2)
    back = Sa1b(str(tmp_path / "shards"), empty=True)
    assert len(back) == len(source) > 0
    stored = records(tmp_path / "shards")
    for index in range(len(source)):
        there, here = source[index], back[index]
        assert here.key == f"sa_{index}"
        assert stored[f"{here.key}.json"]["image"]["source_key"] == there.key
        assert here.masks == there.masks
        assert len(here.masks) > 0
        assert here.phrases == there.phrases
        assert here.size == there.size
        assert np.abs(here.pixels().astype(int) - there.pixels()).mean() < 4
        if isinstance(there.image, Encoded):
            assert here.image == there.image


def test_real_files_come_back_as_they_went(tmp_path: Path) -> None:
    file = SHARED / "coco_sample" / "annotations.json"
    if not file.exists():
        pytest.skip(f"{file} is not here: set SAMLIT_SHARED to the folder of real data")
    source = Coco(str(file))
    (shard,) = make(source, tmp_path)
    assert (shard["images"], shard["copied"], shard["masks"]) == (6, 6, sum(len(s.masks) for s in source))
    back = Sa1b(str(tmp_path), empty=True)
    for there, here in zip(source, back, strict=True):
        assert (here.masks, here.phrases, here.image) == (there.masks, there.phrases, there.image)


# The command


def test_the_command_ends_with_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["tests.photos.Broken:8", "tests.fitting.Discs:2", "--out", str(tmp_path / "out")]
    assert cli.main(["shards", "make", *words, "--max-damaged", "0.5", "--jobs", "1", "--per-shard", "4"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^images +5 \(3 JPEG files as they are, 2 encoded at quality 95, 4:4:4\)$", out, re.M)
    assert re.search(r"^masks +7$", out, re.M)
    assert re.search(r"^shards +3 in ", out, re.M)
    assert re.search(r"^left out +5 \(.*rle 1.*quarantine\.jsonl$", out, re.M)
    assert cli.main(["shards", "make", *words, "--jobs", "1", "--per-shard", "4"]) == 1
    assert re.fullmatch(r"samlit: 4 of 10 images are damaged [^\n]*\n", capsys.readouterr().err.splitlines(True)[-1])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("", "the following arguments are required: SOURCE:PATH, --out"),
        ("coco:a", "required: --out"),
        ("coco:a --out b --per-shard 0", "--per-shard is at least 1, not 0"),
        ("coco:a --out b --jobs 0", "--jobs is at least 1"),
        ("coco:a --out b --long-side 0", "--long-side is at least 1"),
        ("coco:a --out b --quality 101", "--quality is 1 to 100"),
        ("coco:a --out b --max-damaged 2", "--max-damaged is a share"),
        ("coco:a --out b --crowd true", "unrecognized arguments: --crowd true"),
    ],
)
def test_usage_errors_are_one_line(words: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["shards", "make", *words.split()]) == 2
    err = capsys.readouterr().err
    assert re.fullmatch(r"samlit: [^\n]+\n", err)
    assert says in err


def test_the_commands_of_shards(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["shards"]) == 0
    out = capsys.readouterr().out
    assert all(f"\n  {name} " in out for name in command.COMMANDS)
    assert cli.main(["shards", "mke"]) == 2
    assert "did you mean 'make'" in capsys.readouterr().err


@pytest.mark.parametrize("name", command.COMMANDS)
def test_a_command_of_shards_is_there(name: str) -> None:
    module, _, function = command.COMMANDS[name][0].partition(":")
    assert callable(getattr(import_module(module), function))


@pytest.mark.skipif(os.name != "posix", reason="signals are sent to a group of processes")
def test_ctrl_c_leaves_whole_shards_and_no_processes(tmp_path: Path) -> None:
    root = Path(__file__).parents[1]
    words = ["shards", "make", "tests.photos.Broken:40", "--set", "sound=true", "--set", "sleep=0.1"]
    words += ["--out", str(tmp_path), "--per-shard", "4", "--jobs", "2"]
    command = [sys.executable, "-m", "samlit", *words]
    quiet = os.environ | {"OMP_NUM_THREADS": "1"}
    running = subprocess.Popen(
        command, cwd=root, env=quiet, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("sa_*.tar")) and time.monotonic() < deadline:
            time.sleep(0.05)
        os.killpg(running.pid, signal.SIGINT)  # a terminal sends it to all of them
        _, err = running.communicate(timeout=60)
    finally:
        running.poll() is None and running.kill()
    assert running.returncode == 130
    assert err.splitlines()[-1] == "samlit: interrupted"
    assert "Traceback" not in err
    with suppress(ProcessLookupError):
        for _ in range(100):  # multiprocessing's own helper ends a moment after the rest
            os.killpg(running.pid, 0)
            time.sleep(0.1)
        pytest.fail("a process is left")
    assert not list(tmp_path.glob(".sa_*"))
    shards = sorted(tmp_path.glob("sa_*.tar"))
    assert 0 < len(shards) < 10
    assert {name.partition(".")[0] for name in records(tmp_path)}
    Sa1b(str(tmp_path)).prepare()  # each of them is whole
