"""The store: indexed once, opened at once, the same records from a folder, a server, a bucket and a list of links."""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import numpy as np
import pytest

from samlit.faults import Damaged
from samlit.masks import rle
from samlit.shards import blobs, chunks, manifest, noting, store, tars, writing
from samlit.shards.ahead import Ahead
from samlit.shards.chunks import parse_size
from samlit.shards.manifest import Row
from samlit.shards.records import Annotation, Record
from samlit.shards.store import Store
from tests.serving import Server, serving


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAMLIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(blobs, "PAUSE", 0.01)
    monkeypatch.setattr(blobs, "TIMEOUT", 2.0)


def record(number: int) -> Record:
    mask = np.zeros((24, 32), bool)
    mask[: 1 + number % 20, 3:9] = True
    return Record(number, (24, 32), f"jpeg {number} ".encode() * 300, (Annotation(rle.encode(mask)),))


KEYS = [["sa_5", "sa_3", "sa_4"], ["sa_30", "sa_7"], []]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "shards"
    place.mkdir()
    for number, keys in enumerate(KEYS):
        writing.write(place / f"sa_00000{number}.tar", [record(int(key[3:])) for key in keys])
    return place


@pytest.fixture
def server(folder: Path) -> Iterator[Server]:
    with serving({f"/set/{path.name}": path.read_bytes() for path in folder.iterdir()}) as found:
        yield found


def opened(root: object, **options: Any) -> Store:
    found = Store(str(root), **options)
    found.open()
    return found


def keys(there: Store) -> list[list[str]]:
    return [[there.record(which, n).key for n in range(row.records)] for which, row in enumerate(there.rows)]


def refuse_to_walk(*args: Any) -> Any:
    raise AssertionError("this shard is known")


# The index and the manifest


def test_a_shard_is_indexed_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert keys(opened(folder)) == KEYS
    beside = sorted(path.name for path in folder.iterdir() if path.suffix != ".tar")
    assert beside == ["manifest.json", *(f"sa_00000{n}.tar.index" for n in range(3))]
    monkeypatch.setattr(tars, "walk", refuse_to_walk)
    assert keys(opened(folder)) == KEYS


def test_what_has_changed_is_indexed_again_and_nothing_else(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(folder)
    walked: list[str] = []
    real = tars.walk
    monkeypatch.setattr(tars, "walk", lambda read, size, name: walked.append(name) or real(read, size, name))
    writing.write(folder / "sa_000001.tar", [record(8)])
    writing.write(folder / "sa_000003.tar", [record(9)])
    (folder / "sa_000002.tar").unlink()
    assert keys(opened(folder)) == [KEYS[0], ["sa_8"], ["sa_9"]]
    assert walked == ["sa_000001.tar", "sa_000003.tar"]
    assert sorted(manifest.parse((folder / "manifest.json").read_bytes())) == [f"sa_00000{n}.tar" for n in (0, 1, 3)]


def test_files_that_are_damaged_are_made_anew(folder: Path) -> None:
    opened(folder)
    whole = (folder / "sa_000000.tar.index").read_bytes()
    for nonsense in (b"", b"[]", b"nonsense\n", whole[:-8], whole[:-1] + b"?"):
        (folder / "sa_000000.tar.index").write_bytes(nonsense)
        assert keys(opened(folder)) == KEYS
        assert (folder / "sa_000000.tar.index").read_bytes() == whole
    row = {"name": "sa_000000.tar", "bytes": 1, "stamp": 1, "records": 1, "faults": {}}
    rows = [{"name": "../sa_0.tar"}, {"bytes": -1}, {"records": True}, {"stamp": None}, {"faults": {"cut": "many"}}]
    texts = [json.dumps({"format": 1, "shards": [{**row, **wrong}]}) for wrong in rows]
    for nonsense in ("", "[]", "{}", '{"format": 7, "shards": []}', '{"format": 1, "shards": [3]}', *texts):
        (folder / "manifest.json").write_text(nonsense)
        with pytest.raises(ValueError, match=r".+"):
            manifest.parse(nonsense.encode())
        assert keys(opened(folder)) == KEYS


def test_a_folder_that_may_only_be_read(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = noting.writing

    def refusing(place: Path) -> Any:
        if place.parent == folder:  # root may write anywhere, so rights alone would not show it
            raise PermissionError(place)
        return real(place)

    monkeypatch.setattr(noting, "writing", refusing)
    assert keys(opened(folder)) == KEYS
    assert {path.suffix for path in folder.iterdir()} == {".tar"}
    assert len(list((tmp_path / "cache" / "indexes").iterdir())) == 3
    monkeypatch.setattr(tars, "walk", refuse_to_walk)
    assert keys(opened(folder)) == KEYS


def test_a_manifest_is_read_as_it_was_written() -> None:
    rows = [Row("sa_0.tar", (5, 7), 3), Row("sa_1.tar", (6, '"tag"'), 0, {"cut": 1, "pair": 2}, "ab" * 32)]
    assert list(manifest.parse(manifest.text(reversed(rows)).encode()).values()) == rows
    assert manifest.text(rows).count("\n") == 4  # a line each


def test_whoever_writes_shards_enters_them(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = manifest.update(folder, {"sa_000001.tar": "ab" * 32})
    assert [(row.name, row.records, row.sha256) for row in rows] == [
        ("sa_000000.tar", 3, ""),
        ("sa_000001.tar", 2, "ab" * 32),
        ("sa_000002.tar", 0, ""),
    ]
    monkeypatch.setattr(tars, "walk", refuse_to_walk)
    assert manifest.update(folder, {"sa_000000.tar": "cd" * 32})[0].sha256 == "cd" * 32
    assert [row.sha256[:2] for row in opened(folder).rows] == ["cd", "ab", ""]


def test_some_of_the_shards_leave_the_others_known(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(folder)
    writing.write(folder / "sa_000001.tar", [record(8)])
    part = Store(str(folder))
    part.open(only=lambda names: [name for name in names if "1" in name])
    assert keys(part) == [["sa_8"]]
    monkeypatch.setattr(tars, "walk", refuse_to_walk)
    assert keys(opened(folder)) == [KEYS[0], ["sa_8"], []]


def test_a_shard_that_is_replaced_while_it_is_read_is_told(folder: Path) -> None:
    there = opened(folder)
    writing.write(folder / "sa_000001.tar", [record(8), record(9)])
    with pytest.raises(Damaged, match=r"^sa_000001\.tar: .*not the one that was indexed") as caught:
        there.record(1, 0)
    assert caught.value.cause == "changed"
    os.unlink(folder / "sa_000000.tar")
    with pytest.raises((Damaged, FileNotFoundError)):
        there.record(0, 0)


def test_many_shards_are_indexed_by_many_processes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int]] = []
    there = Store(str(folder))
    there.open(lambda done, total, what: told.append((done, total)), jobs=2)
    assert told == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert keys(there) == KEYS


def test_faults_are_told_with_their_shards(folder: Path) -> None:
    whole = (folder / "sa_000000.tar").read_bytes()
    (folder / "sa_000000.tar").write_bytes(whole[: len(whole) // 3])
    (folder / "sa_000001.tar").write_bytes(b"")
    (folder / "sa_000004.tar").symlink_to(folder / "nowhere")
    for _ in range(2):  # found, then remembered
        there = opened(folder)
        assert [dict(row.faults) for row in there.rows][1:] == [{"cut": 1}, {}, {"unreadable": 1}]
        told = [(fault.shard, fault.cause) for fault in there.faults()]
        assert ("sa_000001.tar", "cut") in told
        assert ("sa_000000.tar", "cut") in told
        assert ("sa_000004.tar", "unreadable") in told
    assert "sa_000004.tar" not in (folder / "manifest.json").read_text()  # it may be there tomorrow


def test_a_thousand_shards_open_at_once(tmp_path: Path) -> None:
    rows = []
    for number in range(1000):
        path = tmp_path / f"sa_{number:06}.tar"
        path.touch()
        stamp = path.stat()
        rows.append(Row(path.name, (stamp.st_size, stamp.st_mtime_ns), 11_186))
    (tmp_path / "manifest.json").write_text(manifest.text(rows))
    tracemalloc.start()
    before = time.process_time()
    there = opened(tmp_path)
    seconds, (_, peak) = time.process_time() - before, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sum(row.records for row in there.rows) == 11_186_000
    assert peak < 8e6
    assert seconds < 2  # 0.05 s; a slow machine that traces memory has its time
    assert len(pickle.dumps(there)) < 300_000


def test_no_more_indexes_are_open_than_are_in_use(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "OPEN", 2)
    there = opened(folder)
    assert keys(there) == KEYS
    there.index(2)
    there.index(0)
    assert len(there._indexes) == 2
    assert keys(there) == KEYS


def test_records_whose_files_lie_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "GAP", 10)
    writing.write(tmp_path / "sa_000000.tar", [record(1), record(2)])
    there = opened(tmp_path)
    jpeg, text = there.files(0, 1)
    assert (jpeg, text) == (record(2).jpeg, record(2).text())


# Remote


def links(server: Server, *numbers: int) -> str:
    rows = [f"sa_00000{n}.tar\t{server.url}/set/sa_00000{n}.tar?signed={n}" for n in numbers]
    return "\n".join(["file_name\tcdn_link", *rows]) + "\n"


def test_the_same_records_from_everywhere(server: Server, folder: Path, tmp_path: Path) -> None:
    assert keys(opened(server.url + "/set")) == KEYS  # the listing of an ordinary server
    (tmp_path / "links.txt").write_text(links(server, 2, 0, 1))
    assert keys(opened(tmp_path / "links.txt")) == KEYS
    assert keys(opened(server.url + "/set/sa_000001.tar")) == [KEYS[1]]
    server.files["/links.txt"] = links(server, 1).encode()
    assert keys(opened(server.url + "/links.txt")) == [KEYS[1]]
    memory = fsspec.filesystem("memory")
    for path in folder.glob("*.tar"):
        memory.pipe(f"memory://bucket/set/{path.name}", path.read_bytes())
    assert keys(opened("memory://bucket/set")) == KEYS
    memory.rm("/bucket", recursive=True)


def test_a_known_remote_shard_is_not_asked_for_again(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(server.url + "/set/")
    monkeypatch.setattr(tars, "walk", refuse_to_walk)
    server.asked.clear()
    there = opened(server.url + "/set/")
    assert [path for path, _ in server.asked] == ["/set/manifest.json", "/set/"]
    there.record(0, 1)
    assert len(server.asked) == 3  # image and JSON in one range


def test_a_manifest_at_the_root_is_trusted(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    opened(folder)
    monkeypatch.setattr(tars, "walk", refuse_to_walk)
    monkeypatch.setenv("SAMLIT_CACHE", str(tmp_path / "another machine"))
    with serving({f"/set/{path.name}": path.read_bytes() for path in folder.iterdir()}) as server:
        there = opened(server.url + "/set")
        assert [path for path, _ in server.asked] == ["/set/manifest.json"]
        assert keys(there) == KEYS
        server.files["/set/sa_000000.tar"] = server.files["/set/sa_000000.tar"][:4000]
        with pytest.raises(Damaged, match=r"^sa_000000\.tar: sa_4: ") as caught:
            there.record(0, 2)
        assert caught.value.cause == "changed"


def test_a_remote_shard_that_has_become_another_is_told(server: Server, folder: Path) -> None:
    opened(server.url + "/set")
    other = folder.parent / "other.tar"
    writing.write(other, [record(number) for number in (60, 61, 62)])
    server.files["/set/sa_000000.tar"] = other.read_bytes()
    there = opened(server.url + "/set")
    with pytest.raises(Damaged, match=r"^sa_000000\.tar: sa_5: "):
        there.record(0, 0)
    server.etag = '"2"'
    there = Store(server.url + "/set")
    there.open(renew=True)
    assert keys(there)[0] == ["sa_60", "sa_61", "sa_62"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tars, "walk", refuse_to_walk)
        there.open(renew=True)  # they are asked for, and not read again
    assert keys(there)[0] == ["sa_60", "sa_61", "sa_62"]


def test_a_remote_shard_that_cannot_be_had(server: Server, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "links.txt").write_text(links(server, 0, 1, 9))
    there = opened(tmp_path / "links.txt")
    assert [row.records for row in there.rows] == [3, 2, 0]
    (fault,) = there.faults()
    assert (fault.cause, fault.shard) == ("unreadable", "sa_000009.tar")
    server.files["/set/sa_000009.tar"] = server.files["/set/sa_000001.tar"]
    assert [row.records for row in opened(tmp_path / "links.txt").rows] == [3, 2, 2]  # not remembered as lost
    server.always = 403
    with pytest.raises(Damaged, match=r"^sa_000000\.tar: sa_3: .*\(403\); links of SA-1B expire"):
        there.record(0, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file_name\tcdn_link\nsa_000000.tar\n", "line 2"),
        ("file_name\tcdn_link\n\nsa_000000.tar\t/etc/passwd\n", "line 3"),
        ("file_name\tcdn_link\nsa_000000.tar\tpipe:ls\n", "would run a program"),
        ("file_name\tcdn_link\n../sa_000000.tar\thttp://x/y\n", "line 2"),
        ("file_name\tcdn_link\n", r"no sa_\*\.tar"),
    ],
)
def test_lists_of_links_that_are_none(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "links.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        opened(tmp_path / "links.txt")


def test_roots_that_are_none(tmp_path: Path, server: Server) -> None:
    with pytest.raises(FileNotFoundError, match="there is no folder or tar"):
        opened(tmp_path / "nowhere")
    for root in (server.url + "/nowhere", server.url + "/nowhere/sa_links.txt?signed=1", "memory://bucket/nowhere"):
        with pytest.raises(FileNotFoundError, match=f"^there is no folder or tar {re.escape(root.partition('?')[0])}$"):
            opened(root)
    with pytest.raises(ValueError, match="would run a program"):
        Store("pipe:curl x")


# What is read ahead


def test_what_is_asked_for_next_is_begun(server: Server) -> None:
    there = opened(server.url + "/set")
    there.index(0)
    server.delay, begun = 0.2, time.monotonic()
    there.prefetch([(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)])
    assert keys(there)[:2] == KEYS[:2]
    assert time.monotonic() - begun < 0.8  # five in a row would take one second
    server.asked.clear()
    there.prefetch([(0, 0)])
    time.sleep(0.5)
    assert len(server.asked) == 1
    there.record(0, 0)
    assert len(server.asked) == 1


def test_reading_ahead_is_bounded_and_raises_where_it_is_taken() -> None:
    begun: list[int] = []

    def fetch(key: int) -> int:
        begun.append(key)
        if key == 3:
            raise Damaged("unreadable", "gone")
        return key * key

    ahead = Ahead(fetch, threads=2, most=4)
    ahead.hint(range(10))
    time.sleep(0.2)
    assert sorted(begun) == [0, 1, 2, 3]
    assert ahead.take(2) == 4
    with pytest.raises(Damaged, match="gone"):
        ahead.take(3)
    assert ahead.take(50) == 2500
    ahead.hint([20, 21, 22])  # nobody wants 0 any more
    time.sleep(0.2)
    assert [ahead.take(key) for key in (20, 21, 22)] == [400, 441, 484]
    assert begun.count(20) == begun.count(22) == 1
    assert len(ahead._begun) <= 4


def test_a_fork_of_one_that_reads_ahead_waits_for_nobody(tmp_path: Path) -> None:
    code = (
        "import os, time\nfrom samlit.shards.ahead import Ahead\n"
        "ahead = Ahead(lambda key: time.sleep(0.5) or key, 2, 4)\n"
        "ahead.hint([1, 2])\ntime.sleep(0.1)\n"
        "child = os.fork()\n"
        "if child == 0:\n    ahead.hint([1, 3])\n    os._exit(ahead.take(1) + ahead.take(3) + ahead.take(2))\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=True)
    assert ran.stdout == "6\n"


# The cache


def test_the_cache_reads_each_chunk_once(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK", 4096)
    there = opened(server.url + "/set", cache=str(tmp_path / "chunks"))
    assert keys(there) == KEYS
    server.asked.clear()
    assert keys(pickle.loads(pickle.dumps(there))) == KEYS
    assert server.asked == []
    for path in (tmp_path / "chunks").glob("*/*.chunk"):
        path.write_bytes(path.read_bytes()[:99])  # a disk that has lost some
    assert keys(there) == KEYS
    assert server.asked != []


def test_the_cache_keeps_to_its_size(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK", 2048)
    there = opened(server.url + "/set", cache=str(tmp_path / "chunks"), cache_size="5kB")
    for _ in range(3):
        assert keys(there) == KEYS
        assert sum(path.stat().st_size for path in (tmp_path / "chunks").glob("*/*.chunk")) <= 5000


def test_the_cache_removes_what_was_used_least_recently(server: Server, tmp_path: Path) -> None:
    cached = chunks.Chunks(tmp_path / "chunks", 3 * 1000)
    stamp = (5000, "tag")

    class Counting(blobs.Blob):
        asked: ClassVar[list[int]] = []

        def stamp(self) -> Any:
            return stamp

        def read(self, at: int, size: int) -> bytes:
            self.asked.append(at // 1000)
            return bytes(size)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "CHUNK", 1000)
        patch.setattr(chunks, "FRESH", 0.0)
        for number in (0, 1, 2, 0, 3, 0, 1):  # 3 takes the place of 1, for 0 was used again
            cached.read(Counting("http://x/sa_0.tar"), stamp, number * 1000 + 10, 100)
            time.sleep(0.01)
    assert Counting.asked == [0, 1, 2, 3, 1]


def test_many_processes_share_a_cache(server: Server, tmp_path: Path) -> None:
    opened(server.url + "/set")
    code = (
        "import sys; from samlit.shards import chunks; from samlit.shards.store import Store\n"
        "chunks.CHUNK = 4096\n"
        "s = Store(sys.argv[1], cache=sys.argv[2]); s.open()\n"
        "print(*(s.record(w, n).key for w, r in enumerate(s.rows) for n in range(r.records)))\n"
    )
    server.asked.clear()
    words = [sys.executable, "-c", code, server.url + "/set", str(tmp_path / "chunks")]
    running = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [one.communicate(timeout=60)[0].split() for one in running] == [[key for shard in KEYS for key in shard]] * 3
    ranges = [asked for asked in server.asked if asked[1] is not None]
    assert len(ranges) == len(set(ranges))  # nothing was read twice


def test_a_cache_on_a_full_disk_reads_on(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **options: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(chunks, "writing", full)
    assert keys(opened(server.url + "/set", cache=str(tmp_path / "chunks"))) == KEYS


def test_sizes_as_people_write_them() -> None:
    sizes = {"200GB": 200 * 10**9, "1.5 TB": 15 * 10**11, "64MiB": 64 << 20, "5kB": 5000, "7": 7, "2g": 2 * 10**9}
    assert {text: parse_size(text) for text in sizes} == sizes
    for text in ("", "GB", "-5GB", "many", "5 XB", "1e9"):
        with pytest.raises(ValueError, match="is no size"):
            parse_size(text)


def test_threads_may_read_one_store(server: Server) -> None:
    there = opened(server.url + "/set")
    found: list[list[list[str]]] = []
    threads = [threading.Thread(target=lambda: found.append(keys(there))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [KEYS] * 4
