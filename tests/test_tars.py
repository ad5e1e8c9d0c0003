"""Walking a tar: all that is whole is found, all that is not is named, and nothing makes it raise."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from samlit.shards import tars
from samlit.shards.tars import Index


def data(name: str) -> bytes:
    """What a member of that name holds; of another length each."""
    return name.encode() * (40 + sum(name.encode()) % 60)


def pack(names: list[str], form: int = tarfile.USTAR_FORMAT, mtime: float = 0) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form) as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size, member.mtime = len(data(name)), mtime
            tar.addfile(member, io.BytesIO(data(name)))
    return stream.getvalue()


PAIRS = [f"sa_{number}.{ending}" for number in (5, 3, 700) for ending in ("jpg", "json")]
TAR = pack(PAIRS)


def walk(whole: bytes) -> Index:
    return tars.walk(lambda at, size: whole[at : at + size], len(whole), "sa_000007.tar")


def told(index: Index) -> list[tuple[str, str]]:
    return [(fault.cause, fault.key) for fault in index.faults]


def headers(whole: bytes) -> list[int]:
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        return [member.offset for member in tar]


def test_records_in_order() -> None:
    index = walk(TAR)
    assert index.ids.tolist() == [5, 3, 700]
    assert index.faults == ()
    for number, (at, size, text_at, text_size) in zip(index.ids, index.spans, strict=True):
        assert TAR[at : at + size] == data(f"sa_{number}.jpg")
        assert TAR[text_at : text_at + text_size] == data(f"sa_{number}.json")


def test_members_of_a_record_may_lie_apart() -> None:
    index = walk(pack(["sa_1.json", "sa_2.jpg", "sa_3.json", "sa_1.jpg", "sa_3.jpg", "sa_2.json"]))
    assert index.ids.tolist() == [1, 2, 3]
    assert index.faults == ()


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_kind_of_tar_and_long_names(form: int) -> None:
    folders = "/".join(["a" * 50] * (5 if form != tarfile.USTAR_FORMAT else 2))
    names = [f"{folders}/sa_{number}.{ending}" for number in (2, 1) for ending in ("json", "jpg")]
    whole = pack(names, form, mtime=1.5 if form == tarfile.PAX_FORMAT else 1)  # a fraction makes an extended header
    index = walk(whole)
    assert index.ids.tolist() == [2, 1]
    assert index.faults == ()
    at, size = index.spans[0, :2]
    assert whole[at : at + size] == data(names[1])


@settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_the_standard_library_finds_the_same(draw: Any) -> None:
    stems = draw.draw(st.lists(st.integers(0, 10**12), unique=True, max_size=8))
    folder = draw.draw(
        st.sampled_from(["", "./", "sa_000020/", "ä/ö/", "x" * 90 + "/", "y" * 120 + "/" + "z" * 120 + "/"])
    )
    form = draw.draw(st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
    names = draw.draw(st.permutations([f"{folder}sa_{stem}.{ending}" for stem in stems for ending in ("jpg", "json")]))
    whole = pack(names, form, mtime=draw.draw(st.sampled_from([0, 7.25])) if form == tarfile.PAX_FORMAT else 0)
    index = walk(whole)
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        theirs = {member.name.rpartition("/")[2]: (member.offset_data, member.size) for member in tar}
    ours = {}
    for number, (at, size, text_at, text_size) in zip(index.ids.tolist(), index.spans.tolist(), strict=True):
        ours |= {f"sa_{number}.jpg": (at, size), f"sa_{number}.json": (text_at, text_size)}
    assert ours == theirs
    assert index.faults == ()


def test_a_size_in_an_extended_header_counts() -> None:
    whole = bytearray(pack(["x"]))
    body = b"0" * 700
    line = b"12 size=700\n"
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        extended = tarfile.TarInfo("pax")
        extended.type, extended.size = tarfile.XHDTYPE, len(line)
        tar.addfile(extended, io.BytesIO(line))
        member = tarfile.TarInfo("sa_1.jpg")  # says 0 itself
        tar.addfile(member)
        whole = bytearray(stream.getvalue()[: tar.offset]) + body + bytes(-len(body) % 512)
    whole += pack(["sa_1.json"])
    index = walk(bytes(whole))
    assert index.spans[0, 1] == 700
    assert index.faults == ()


def test_other_files_are_passed_over() -> None:
    whole = pack(["./shard/sa_3.json", "./shard/sa_3.jpg", "./shard/._sa_3.jpg", "./shard/README.txt"])
    assert walk(whole).ids.tolist() == [3]
    assert walk(whole).faults == ()


# Damage


def test_cut_in_a_member_at_its_end_and_to_nothing() -> None:
    at = headers(TAR)
    for cut, ids, faults in [
        (0, [], [("cut", "")]),
        (300, [], [("cut", "")]),
        (at[1], [], [("cut", ""), ("pair", "sa_5")]),
        (at[2], [5], [("cut", "")]),
        (at[3] + 600, [5], [("cut", "sa_3"), ("pair", "sa_3")]),
        (at[5] + 512, [5, 3], [("cut", "sa_700"), ("pair", "sa_700")]),
    ]:
        index = walk(TAR[:cut])
        assert index.ids.tolist() == ids, cut
        assert told(index) == faults, cut
        assert "cut off" in str(index.faults[0])
        assert str(index.faults[0]).startswith("sa_000007.tar: ")


@settings(deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, len(TAR)))
def test_cut_anywhere_never_raises_and_gives_nothing_that_is_not_whole(cut: int) -> None:
    index = walk(TAR[:cut])
    assert index.ids.tolist() == [5, 3, 700][: len(index.ids)]
    for number, (at, size, text_at, text_size) in zip(index.ids, index.spans, strict=True):
        assert TAR[:cut][at : at + size] == data(f"sa_{number}.jpg")
        assert TAR[:cut][text_at : text_at + text_size] == data(f"sa_{number}.json")
    end = headers(TAR)[-1] + 512 + -(-len(data("sa_700.json")) // 512) * 512
    assert bool(index.faults) == (cut < end + 512)  # with one block that marks the end, all is there


@settings(deadline=None, max_examples=300, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_anything_never_raises(draw: Any) -> None:
    whole = bytearray(TAR)
    for _ in range(draw.draw(st.integers(1, 4))):
        at = draw.draw(st.sampled_from(headers(TAR))) + draw.draw(st.integers(0, 511))
        whole[at] = draw.draw(st.integers(0, 255))
    index = walk(bytes(whole))
    assert ((index.spans >= 0) & (index.spans <= len(whole))).all()
    assert (index.spans[:, 0] + index.spans[:, 1] <= len(whole)).all()
    if bytes(whole) != TAR and len(index.ids) < 3:
        assert index.faults


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=4096))
def test_noise_never_raises(noise: bytes) -> None:
    index = walk(noise)
    assert len(index.ids) == 0
    assert index.faults or (noise[:512].count(0) == 512 and not noise.strip(b"\0"))


def test_a_flipped_header_ends_the_shard_there() -> None:
    for which, ids in ((0, []), (3, [5]), (4, [5, 3])):
        for place in (0, 124, 150, 156):
            whole = bytearray(TAR)
            whole[headers(TAR)[which] + place] ^= 0x10
            index = walk(bytes(whole))
            assert index.ids.tolist() == ids
            assert index.faults[0].cause == "header"
            assert f"damaged header at byte {headers(TAR)[which]}: " in str(index.faults[0])
    assert told(walk(os.urandom(4096))) == [("header", "")]


def test_nothing_after_the_end_is_lost_in_silence() -> None:
    index = walk(TAR + TAR)
    assert index.ids.tolist() == [5, 3, 700]
    assert told(index) == [("header", "")]
    assert "more after the end" in str(index.faults[0])
    index = walk(bytes(20 << 20))
    assert told(index) == [("cut", "")]
    assert "never finished" in str(index.faults[0])
    assert walk(bytes(10240)).faults == ()  # tar's own empty archive


@pytest.mark.parametrize("missing", ["jpg", "json"])
def test_half_records(missing: str) -> None:
    index = walk(pack([name for name in PAIRS if name != f"sa_3.{missing}"]))
    assert index.ids.tolist() == [5, 700]
    assert told(index) == [("pair", "sa_3")]
    assert str(index.faults[0]) == f"sa_000007.tar: sa_3: there is no sa_3.{missing}"


def test_what_comes_twice_is_left_out() -> None:
    index = walk(pack([*PAIRS, "again/sa_3.jpg", "again/sa_3.json"]))
    assert index.ids.tolist() == [5, 700]
    assert told(index) == [("pair", "sa_3")]
    assert "sa_3.jpg comes twice" in str(index.faults[0])


@pytest.mark.parametrize(
    ("name", "key", "message"),
    [
        ("/sa_9.jpg", "sa_9", "leads out of the shard"),
        ("../sa_9.jpg", "sa_9", "leads out of the shard"),
        ("a/../../sa_9.jpg", "sa_9", "leads out of the shard"),
        ("../../etc/passwd", "", "leads out of the shard"),
        ("v1.0.jpg", "", "is not called sa_<id>"),
        ("dog.json", "", "is not called sa_<id>"),
        ("sa_x.jpg", "", "is not called sa_<id>"),
        ("sa_01.jpg", "", "is not called sa_<id>"),
        ("sa_.jpg", "", "is not called sa_<id>"),
        ("sa_1.JPG", "", "is not called sa_<id>"),
        ("sa_" + "9" * 30 + ".jpg", "", "is not called sa_<id>"),
    ],
)
def test_bad_names(name: str, key: str, message: str) -> None:
    index = walk(pack([*PAIRS[:2], name, *PAIRS[2:]]))
    assert index.ids.tolist() == [5, 3, 700]
    assert told(index) == [("name", key)]
    assert message in str(index.faults[0])


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices(kind: bytes) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        link = tarfile.TarInfo("sa_9.jpg")
        link.type, link.linkname = kind, "/etc/hostname"
        tar.addfile(link)
    index = walk(stream.getvalue()[:512] + TAR)
    assert index.ids.tolist() == [5, 3, 700]
    assert told(index) == [("name", "sa_9")]
    assert "neither a file nor a folder" in str(index.faults[0])


def test_a_disk_that_fails_is_a_fault() -> None:
    def read(at: int, size: int) -> bytes:
        if at > headers(TAR)[2]:
            raise OSError(5, "Input/output error")
        return TAR[at : at + size]

    index = tars.walk(read, len(TAR), "sa_000007.tar")
    assert [fault.cause for fault in index.faults] == ["unreadable", "pair"]
    assert index.ids.tolist() == [5]


# The index file


def test_an_index_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    index = walk(pack([*PAIRS, "dog.jpg"]))
    packed = tars.packed(index, (5, "tag"))
    back = tars.unpacked(packed, (5, "tag"))
    assert np.array_equal(back.ids, index.ids)
    assert np.array_equal(back.spans, index.spans)
    assert [str(fault) for fault in back.faults] == [str(fault) for fault in index.faults]
    assert told(back) == [("name", "")]


def test_an_index_file_that_is_none_is_refused() -> None:
    packed = tars.packed(walk(TAR), (5, 7))
    flipped = bytearray(packed)
    flipped[-3] ^= 1
    for nonsense in (b"", b"[]", b"{}\n", b"nonsense\n", b"null\n", b"\xff\n", packed[:-8], bytes(flipped)):
        with pytest.raises(ValueError, match=r".+"):
            tars.unpacked(nonsense, (5, 7))
    with pytest.raises(ValueError, match="of another shard"):
        tars.unpacked(packed, (5, 8))
