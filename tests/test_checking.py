"""`samlit shards index`, `check` and `get`: what they say, what they write, how they end."""

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
from pathlib import Path

import cv2
import numpy as np
import pytest

from samlit.errors import SamlitError, UsageError
from samlit.masks import rle
from samlit.masks.rle import Rle
from samlit.shards import blobs, checking, getting, indexing, manifest, writing
from samlit.shards.records import Annotation, Record
from samlit.shards.store import Store
from samlit.weights import download
from tests.serving import Server, serving


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAMLIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(blobs, "PAUSE", 0.01)
    monkeypatch.setattr(getting, "PAUSE", 0.01)


def record(number: int) -> Record:
    image = np.random.default_rng(number).integers(0, 255, (24, 32, 3), np.uint8)
    _, encoded = cv2.imencode(".jpg", image)
    mask = np.zeros((24, 32), bool)
    mask[:5, 3:9] = True
    return Record(number, (24, 32), encoded.tobytes(), (Annotation(rle.encode(mask)),))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "shards"
    place.mkdir()
    writing.write(place / "sa_000000.tar", map(record, range(3)))
    writing.write(place / "sa_000001.tar", map(record, range(3, 7)))
    return place


def repack(path: Path, change: Callable[[str, bytes], bytes | None]) -> None:
    """A shard with each file as `change(name, data)` says, dropped where None."""
    with tarfile.open(path) as tar:
        members = [(member.name, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members:
            if (new := change(name, data)) is not None:
                member = tarfile.TarInfo(name)
                member.size = len(new)
                tar.addfile(member, io.BytesIO(new))


def damaged(name: str, data: bytes) -> bytes | None:
    """One of each: an image that is cut, one that is none, one of another size; a JSON that is cut, one that lacks."""
    if name == "sa_3.jpg":
        return data[:300]
    if name == "sa_4.jpg":
        return record(4).jpeg.replace(b"\x00\x18\x00\x20", b"\x00\x19\x00\x20", 1)
    if name == "sa_5.json":
        return data[:-9]
    if name == "sa_6.json":
        return None
    return data


# index


def test_index_says_what_there_is(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert indexing.main([str(folder), "--hash", "--jobs", "1"]) == 0
    said = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert said["shards"] == "2"
    assert said["records"] == "7"
    assert said["sha256"] == "of 2 noted"
    assert said["faults"] == "none in the headers"
    rows = manifest.parse((folder / "manifest.json").read_bytes())
    for name, row in rows.items():
        assert row.sha256 == hashlib.sha256((folder / name).read_bytes()).hexdigest()
    (folder / "sa_000001.tar").write_bytes((folder / "sa_000001.tar").read_bytes()[:3000])
    assert indexing.main([str(folder)]) == 0
    said_now = capsys.readouterr().out
    assert "in 1 shards (cut 1" in said_now
    assert "  sa_000001.tar  " in said_now
    assert "samlit shards check" in said_now


def test_index_refuses(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--jobs is at least 1"):
        indexing.main([str(tmp_path), "--jobs", "0"])
    with pytest.raises(FileNotFoundError, match="no folder or tar"):
        indexing.main([str(tmp_path / "nowhere")])


# check


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_sound_shards(folder: Path, capsys: pytest.CaptureFixture[str], jobs: str) -> None:
    assert checking.main([str(folder), "--jobs", jobs, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told.pop("bytes") == sum(path.stat().st_size for path in folder.glob("*.tar"))
    assert told == {"shards": 2, "records": 7, "faults": {}, "damaged": 0, "whole": True}
    assert checking.main([str(folder), "--jobs", jobs]) == 0
    assert "no fault" in capsys.readouterr().out


def test_every_fault_is_a_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    repack(folder / "sa_000001.tar", damaged)
    whole = (folder / "sa_000000.tar").read_bytes()
    empty = Record(8, (24, 32), record(8).jpeg, ())
    broken = Record(9, (24, 32), record(9).jpeg, (Annotation(Rle((24, 32), rle.encode(np.ones((24, 32))).counts)),))
    writing.write(folder / "sa_000002.tar", [empty, broken])
    counts = broken.annotations[0].mask.counts.encode()
    repack(folder / "sa_000002.tar", lambda name, data: data.replace(b'"counts":"' + counts, b'"counts":"05'))
    (folder / "sa_000003.tar").write_bytes(whole[: len(whole) // 2])
    out = tmp_path / "quarantine.jsonl"
    assert checking.main([str(folder), "--out", str(out), "--json", "--jobs", "2"]) == 1
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert all(sorted(row) == ["cause", "key", "message", "shard"] for row in rows)
    found = {(row["shard"], row["key"]): row for row in rows}
    assert found["sa_000001.tar", "sa_3"]["cause"] == "image"
    assert found["sa_000001.tar", "sa_4"]["cause"] == "size"
    assert "not JSON" in found["sa_000001.tar", "sa_5"]["message"]
    assert found["sa_000001.tar", "sa_6"]["cause"] == "pair"
    assert found["sa_000002.tar", "sa_8"]["cause"] == "empty"
    assert "annotation 0: RLE" in found["sa_000002.tar", "sa_9"]["message"]
    assert "cut" in {row["cause"] for row in rows if row["shard"] == "sa_000003.tar"}
    assert not [row for row in rows if row["shard"] == "sa_000000.tar"]
    told = json.loads(capsys.readouterr().out)
    assert sum(told["faults"].values()) == len(rows)
    assert told["damaged"] == len(rows) - 1  # an image without a mask is no damage
    assert checking.main([str(folder)]) == 1
    said = capsys.readouterr().out
    assert "sa_000001.tar: sa_3: the image cannot be decoded" in said
    assert "an image that cannot be decoded" in said


def test_images_without_masks_are_no_damage(tmp_path: Path) -> None:
    writing.write(tmp_path / "sa_000000.tar", [Record(8, (24, 32), record(8).jpeg, ())])
    assert checking.main([str(tmp_path)]) == 0


def test_a_flipped_bit_that_nothing_else_shows(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    indexing.main([str(folder), "--hash"])
    path = folder / "sa_000000.tar"
    stamp, data = path.stat(), bytearray(path.read_bytes())
    position = data.index(b'"predicted_iou":1.0') + len('"predicted_iou":')
    data[position : position + 3] = b"0.5"
    path.write_bytes(data)
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert checking.main([str(folder), "--json"]) == 1
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["faults"] == {"changed": 1}


def test_a_remote_root_is_checked_too(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving({f"/{path.name}": path.read_bytes() for path in folder.glob("*.tar")}) as server:
        assert checking.main([server.url, "--json", "--jobs", "1"]) == 0
        server.files["/sa_000001.tar"] = server.files["/sa_000001.tar"][:4000]
        assert checking.main([server.url, "--json", "--jobs", "1"]) == 1
    assert "cut" in json.loads(capsys.readouterr().out.splitlines()[-1])["faults"]


def test_what_was_found_before_an_interrupt_is_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    repack(folder / "sa_000000.tar", lambda name, data: data[:300] if name == "sa_1.jpg" else data)
    monkeypatch.setattr(checking, "GROUP", 1)
    real, calls = checking._walked, []

    def interrupted(pair: object) -> object:
        calls.append(pair)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(pair)  # type: ignore[arg-type]

    monkeypatch.setattr(checking, "_walked", interrupted)
    out = tmp_path / "quarantine.jsonl"
    with pytest.raises(KeyboardInterrupt):
        checking.main([str(folder), "--jobs", "1", "--out", str(out)])
    assert json.loads(out.read_text())["key"] == "sa_1"
    assert "stopped before its end" in capsys.readouterr().out


def test_ctrl_c_ends_a_check_of_many_processes(tmp_path: Path) -> None:
    writing.write(tmp_path / "sa_000000.tar", map(record, range(300)))
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, time\n"
        "from samlit.loading import images\nfrom samlit.shards import checking\n"
        "def slow(self):\n"
        "    open(sys.argv[1] + '/begun', 'w').close()\n"
        "    time.sleep(0.5)\n"
        "images.Encoded.pixels = slow\n"  # in all processes, for they read this file, too
        "if __name__ == '__main__':\n"
        "    checking.main(sys.argv[1:])\n"
    )
    words = [sys.executable, script, tmp_path, "--jobs", "2", "--out", tmp_path / "out.jsonl"]
    pipe = subprocess.PIPE
    running = subprocess.Popen(words, stderr=pipe, stdout=pipe, text=True, start_new_session=True)
    deadline = time.monotonic() + 60
    while not (tmp_path / "begun").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(running.pid, signal.SIGINT)  # as a terminal does
    begun = time.monotonic()
    said, errors = running.communicate(timeout=60)
    assert time.monotonic() - begun < 5
    assert running.returncode != 0
    assert errors.strip().endswith("KeyboardInterrupt")
    assert "stopped before its end" in said
    assert (tmp_path / "out.jsonl").exists()


# get


def links(server: Server, count: int) -> str:
    rows = [f"sa_00000{n}.tar\t{server.url}/m1/An8{n}.bin?signed=secret{n}" for n in range(count)]
    return "\n".join(["file_name\tcdn_link", *rows]) + "\n"


def serve(folder: Path, size: int = 2) -> dict[str, bytes]:
    return {f"/m1/An8{n}.bin": (folder / f"sa_00000{n}.tar").read_bytes() for n in range(size)}


def test_get_downloads_what_is_missing_and_indexes_it(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(serve(folder)) as server:
        (tmp_path / "links.txt").write_text(links(server, 2))
        words = [str(tmp_path / "links.txt"), "--out", str(tmp_path / "got"), "--jobs", "2"]
        assert getting.main([*words, "--only", "sa_000001"]) == 0
        assert [path.name for path in (tmp_path / "got").glob("*.tar")] == ["sa_000001.tar"]
        server.troubles = ["cut", 503]
        assert getting.main(words) == 0
        assert "2 of 2 archives" in capsys.readouterr().out
        assert not [path for path, _ in server.asked[1:] if path == "/m1/An81.bin"]  # it was there
        assert any(wanted for _, wanted in server.asked)  # what had come was not fetched again
    for path in folder.glob("*.tar"):
        assert (tmp_path / "got" / path.name).read_bytes() == path.read_bytes()
    there = Store(str(tmp_path / "got"))
    there.open()
    assert [row.records for row in there.rows] == [3, 4]


def test_get_with_links_that_have_expired(folder: Path, tmp_path: Path) -> None:
    with serving(serve(folder)) as server:
        (tmp_path / "links.txt").write_text(links(server, 2))
        server.always = 403
        with pytest.raises(SamlitError, match=r"^sa_00000\d\.tar: .*\(403\): links of SA-1B expire") as caught:
            getting.main([str(tmp_path / "links.txt"), "--out", str(tmp_path / "got")])
        assert "\n" not in str(caught.value)
        assert "secret" not in str(caught.value)
        # With a new list it goes on where it was.
        server.always = "cut"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(download, "TRIES", 1)
            assert getting.main([str(tmp_path / "links.txt"), "--out", str(tmp_path / "got")]) == 1
        server.always = ""
        (tmp_path / "links.txt").write_text(links(server, 2).replace("secret", "new"))
        server.asked.clear()
        assert getting.main([str(tmp_path / "links.txt"), "--out", str(tmp_path / "got")]) == 0
        assert all(wanted for _, wanted in server.asked)


def test_get_goes_on_past_an_archive_that_is_gone(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(serve(folder)) as server:
        (tmp_path / "links.txt").write_text(links(server, 3))
        assert getting.main([str(tmp_path / "links.txt"), "--out", str(tmp_path / "got")]) == 1
    out, err = capsys.readouterr()
    assert "2 of 3 archives" in out
    assert re.search("^samlit: .*sa_000002.tar cannot be downloaded", err, re.M)
    assert "secret" not in out + err


def test_get_tells_of_an_archive_that_arrived_damaged(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = serve(folder)
    files["/m1/An81.bin"] = files["/m1/An81.bin"][:3000]
    with serving(files) as server:
        (tmp_path / "links.txt").write_text(links(server, 2))
        assert getting.main([str(tmp_path / "links.txt"), "--out", str(tmp_path / "got")]) == 1
    assert "samlit: sa_000001.tar is damaged (cut" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere.txt"], "there is no list of links"),
        (["links.txt", "--jobs", "0"], "--jobs is at least 1"),
        (["links.txt", "--only", "sa_000009"], r"there is no sa_000009\.tar"),
        (["links.txt", "--only", "5..7"], "neither a file nor shards"),
        (["none.txt"], "does not begin with"),
    ],
)
def test_get_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("links.txt").write_text("file_name\tcdn_link\nsa_000000.tar\thttp://127.0.0.1:9/x\n")
    Path("none.txt").write_text("<html>")
    with pytest.raises(UsageError, match=message):
        getting.main([*words, "--out", "got"])
