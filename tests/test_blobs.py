"""Bytes from servers: whatever the server does, they come whole, or one line says why they do not."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from samlit.faults import Damaged
from samlit.shards import addresses, blobs, web
from samlit.shards.blobs import Local
from samlit.shards.cloud import Cloud
from samlit.shards.web import Web
from tests.serving import Server, serving

BODY = bytes(range(251)) * 4000


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blobs, "PAUSE", 0.01)
    monkeypatch.setattr(blobs, "TIMEOUT", 0.5)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving({"/sa_000000.tar": BODY}) as found:
        yield found


def remote(server: Server) -> Web:
    return Web(server.url + "/sa_000000.tar?signed=secret")


def refusal(what: Any, *args: Any) -> Damaged:
    with pytest.raises(Damaged) as caught:
        what(*args)
    assert caught.value.cause in ("unreadable", "changed")
    assert caught.value.shard == "sa_000000.tar"
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)
    return caught.value


def test_a_range_and_a_stamp(server: Server) -> None:
    there = remote(server)
    assert there.read(1000, 300) == BODY[1000:1300]
    assert there.stamp() == (len(BODY), '"1"')
    assert server.asked == [("/sa_000000.tar", "bytes=1000-1299"), ("/sa_000000.tar", "bytes=0-0")]
    assert there.read(len(BODY), 0) == b""


@pytest.mark.parametrize("troubles", [[503, 503], ["none"], ["stall"], [429], [500, "cut", "none", "stall"]])
def test_trouble_that_passes(server: Server, troubles: list[Any]) -> None:
    server.troubles = troubles
    assert remote(server).read(1000, 300_000) == BODY[1000:301_000]
    server.troubles = list(troubles)
    assert remote(server).stamp()[0] == len(BODY)


def test_what_came_before_a_cut_is_not_read_again(server: Server) -> None:
    server.troubles = ["cut"]
    assert remote(server).read(0, 1_000_000) == BODY[:1_000_000]
    (_, first), (_, second) = server.asked
    assert first == "bytes=0-999999"
    begin = int(second.removeprefix("bytes=").partition("-")[0])  # type: ignore[union-attr]
    assert 500_000 - blobs.PIECE <= begin <= 500_000


def test_a_server_that_always_cuts_is_given_up_only_where_it_brings_nothing(server: Server) -> None:
    server.always = "cut"
    server.always = "none"
    error = refusal(remote(server).read, 0, 1000)
    assert "given up after 5 tries" in str(error)
    assert len(server.asked) == blobs.TRIES


@pytest.mark.parametrize(
    ("code", "says"), [(404, "no such file"), (410, "no such file"), (403, "expire"), (400, "400")]
)
def test_what_is_final_is_asked_once(server: Server, code: int, says: str) -> None:
    server.always = code
    error = refusal(remote(server).read, 0, 1000)
    assert says in str(error)
    assert len(server.asked) == 1


@pytest.mark.parametrize("trouble", [503, "stall", "none"])
def test_trouble_that_stays(server: Server, monkeypatch: pytest.MonkeyPatch, trouble: Any) -> None:
    monkeypatch.setattr(blobs, "TRIES", 3)
    monkeypatch.setattr(blobs, "TIMEOUT", 0.2)
    server.always = trouble
    before = time.monotonic()
    refusal(remote(server).read, 0, 1000)
    assert len(server.asked) == 3
    assert time.monotonic() - before < 5


def test_a_server_that_trickles_is_too_slow(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blobs, "TIMEOUT", 0.0001)
    monkeypatch.setattr(blobs, "SLOWEST", 1 << 60)
    answer = type("Answer", (), {"iter_content": lambda self, size: iter([b"x"] * 9)})()
    with pytest.raises(TimeoutError, match="bytes in"):
        [time.sleep(0.001) for _ in web._body(answer)]


def test_no_lengths(server: Server) -> None:
    server.lengths = False
    assert remote(server).read(5, 1000) == BODY[5:1005]
    assert remote(server).stamp()[0] == len(BODY)  # the range says it
    server.troubles = ["cut"]
    assert remote(server).read(0, 500_000) == BODY[:500_000]
    server.ranges = False
    assert "how large" in str(refusal(remote(server).stamp))


def test_no_ranges(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.ranges = False
    assert remote(server).stamp()[0] == len(BODY)
    assert remote(server).read(70_001, 1000) == BODY[70_001:71_001]
    monkeypatch.setattr(web, "WHOLE", 100_000)
    assert "shards get" in str(refusal(remote(server).read, 100_000, 1000))


def test_another_range_than_was_asked_for_is_refused(server: Server) -> None:
    server.always = "other"
    assert "another range" in str(refusal(remote(server).read, 10, 100))


def test_behind_the_end(server: Server) -> None:
    error = refusal(remote(server).read, len(BODY) + 5, 100)
    assert error.cause == "changed"


def test_nobody_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blobs, "TRIES", 2)
    assert "refused" in str(refusal(Web("http://127.0.0.1:9/sa_000000.tar").read, 0, 9))


def test_a_folder_over_http(server: Server) -> None:
    server.files |= {"/set/sa_000001.tar": b"1", "/set/sa_000000.tar": b"0", "/set/other.tar": b"", "/set/readme": b""}
    assert [blob.name for blob, _ in addresses.listed(server.url + "/set")] == ["sa_000000.tar", "sa_000001.tar"]
    with pytest.raises(FileNotFoundError):
        addresses.listed(server.url + "/nowhere")


# Object stores


@pytest.fixture
def bucket() -> Iterator[str]:
    memory = fsspec.filesystem("memory")
    memory.pipe("memory://bucket/sa_000000.tar", BODY)
    yield "memory://bucket/sa_000000.tar"
    memory.rm("/bucket", recursive=True)


def test_an_object_store(bucket: str) -> None:
    assert Cloud(bucket).read(1000, 300) == BODY[1000:1300]
    assert Cloud(bucket).stamp() == (len(BODY), "")
    ((found, stamp),) = addresses.listed("memory://bucket")
    assert found.name == "sa_000000.tar"
    assert found.read(3, 4) == BODY[3:7]
    assert stamp == (len(BODY), "")
    with pytest.raises(FileNotFoundError):
        Cloud("memory://bucket/nothing.tar").stamp()


def test_an_object_store_in_trouble(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    memory, real, calls = type(fsspec.filesystem("memory")), fsspec.filesystem("memory").cat_file, []

    class Unheard(Exception):
        """Of a library that fsspec knows nothing of."""

    def troubled(self: Any, path: str, start: int, end: int) -> bytes:
        calls.append((start, end))
        if len(calls) == 1:
            raise Unheard("slow down")
        if len(calls) == 2:
            time.sleep(2)
        return bytes(real(path, start=start, end=end if len(calls) > 3 else (start + end) // 2))

    monkeypatch.setattr(memory, "cat_file", troubled)
    assert Cloud(bucket).read(0, 1000) == BODY[:1000]
    assert calls == [(0, 1000), (0, 1000), (0, 1000), (500, 1000)]
    monkeypatch.setattr(memory, "cat_file", lambda *args, **kwargs: 1 / 0)
    assert "given up after 5 tries" in str(refusal(Cloud(bucket).read, 0, 10))


# Addresses


@pytest.mark.parametrize(
    "text",
    [
        "pipe:curl http://x/sa_000000.tar",
        "pipe:cat x",
        " pipe:ls",
        "PIPE:ls",
        "a|b",
        "simplecache::s3://b/k",
        "ftp://x/y",
    ],
)
def test_addresses_that_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"would run a program|no address that can be read"):
        addresses.blob(text)


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for protocol, package in (("s3", "s3fs"), ("gs", "gcsfs"), ("hf", "huggingface_hub")):
        monkeypatch.setitem(sys.modules, package, None)
        monkeypatch.setattr(sys.modules["fsspec.registry"], "_registry", {})
        with pytest.raises(ValueError, match=rf"{protocol}:// needs the package {package}: .*samlit\[remote\]"):
            Cloud(f"{protocol}://bucket/sa_000000.tar").stamp()


def test_files_here(tmp_path: Path) -> None:
    (tmp_path / "sa_000000.tar").write_bytes(BODY)
    for text in (str(tmp_path / "sa_000000.tar"), (tmp_path / "sa_000000.tar").as_uri()):
        here = addresses.blob(text)
        assert isinstance(here, Local)
        assert here.read(5, 10) == BODY[5:15]
        assert here.name == "sa_000000.tar"
    assert refusal(here.read, len(BODY) - 3, 10).cause == "changed"
    (tmp_path / "sa_000000.tar").unlink()
    assert "gone" in str(refusal(here.read, 0, 10))
