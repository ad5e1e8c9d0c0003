"""`samlit shards check`: read all of every shard, decode it, and list what is damaged, without a training."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from samlit import atomic
from samlit.errors import UsageError
from samlit.faults import CAUSES, Damaged, blaming
from samlit.shards import crew
from samlit.shards.blobs import Blob
from samlit.shards.manifest import Row
from samlit.shards.noting import sha256, walked
from samlit.shards.records import parse
from samlit.shards.store import Store
from samlit.shards.tars import Index
from samlit.shell import terminal
from samlit.shell.options import ArgumentParser

__all__ = ["Found", "check", "main"]

Report = Callable[[int, int, str], None]

EPILOG = """examples:
  samlit shards check shards
  samlit shards check shards --out quarantine.jsonl --json
"""
GROUP = 16
"""Shards whose indexes are held at a time."""
LOT = 64
"""Records that a process decodes at a time."""


@dataclass
class Found:
    """What a check has found.

    Attributes:
        shards: How many.
        records: How many were decoded.
        size: Bytes of the shards.
        faults: What is damaged, and images without a mask.
        whole: Whether it came to its end.
    """

    shards: int = 0
    records: int = 0
    size: int = 0
    faults: list[Damaged] = field(default_factory=list)
    whole: bool = False

    @property
    def causes(self) -> Counter[str]:
        """How many faults of each cause."""
        return Counter(fault.cause for fault in self.faults)

    @property
    def damaged(self) -> int:
        """How many faults are damage."""
        return sum(fault.cause != "empty" for fault in self.faults)


@dataclass(frozen=True)
class _Lot:
    blob: Blob
    ids: npt.NDArray[np.int64]
    spans: npt.NDArray[np.int64]


def main(argv: list[str]) -> int:
    """Run the command with the words after `samlit shards check`."""
    parser = ArgumentParser(
        prog="samlit shards check",
        description="Read all of every shard, decode each image and mask, and list what is damaged. "
        "The exit status is 1 where anything is.",
        epilog=EPILOG,
    )
    parser.reads.add_argument(
        "root", metavar="ROOT", help="a folder of sa_*.tar, a tar, their address, or a list of links"
    )
    told = "processes (all processors)"
    parser.runs.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help=told)
    parser.writes.add_argument(
        "--out", type=Path, metavar="FILE", help="write a line of JSON for each fault: quarantine.jsonl"
    )
    parser.says.add_argument("--json", action="store_true", help="for a program, the counts as one object on stdout")
    options = parser.parse_args(argv)
    if options.jobs < 1:
        raise UsageError(f"--jobs is at least 1, not {options.jobs}")

    from samlit.run.progress import bar

    found = Found()
    try:
        with bar() as progress:
            store = Store(options.root)
            store.open(progress, jobs=None if options.jobs > 1 else 1, renew=True)
            check(store, found, options.jobs, progress)
    finally:  # after Ctrl-C, too: what was found by then is known
        if options.out is not None:
            atomic.write(options.out, "".join(json.dumps(_line(fault)) + "\n" for fault in found.faults))
        if found.shards:
            _print(found, options.json, options.out)
    return 1 if found.damaged else 0


def check(store: Store, found: Found, jobs: int = 1, progress: Report = lambda done, total, what: None) -> None:
    """Check all shards of a store that is open.

    Args:
        store: Of any root.
        found: Where it is noted what was found, as it is.
        jobs: Processes.
        progress: Told (records done, records, what is being done).
    """
    found.faults += store.unreadable
    pairs = [pair for pair in zip(store.blobs, store.rows, strict=True) if "unreadable" not in pair[1].faults]
    total = sum(row.records for _, row in pairs)
    progress(0, total, "checking records")
    for first in range(0, len(pairs), GROUP):
        lots: list[_Lot] = []
        group = pairs[first : first + GROUP]
        for number, (index, faults) in crew.work(_walked, group, jobs):
            found.faults += faults
            found.shards, found.size = found.shards + 1, found.size + group[number][1].size
            lots += _lots(group[number][0], index)
        for number, faults in crew.work(_decoded, lots, jobs):
            found.faults += faults
            found.records += len(lots[number].ids)
            progress(found.records, max(total, found.records), "checking records")
    found.faults.sort(key=lambda fault: (fault.shard, fault.key))
    found.shards += len(store.rows) - len(pairs)
    found.whole = True


def _walked(pair: tuple[Blob, Row]) -> tuple[Index, list[Damaged]]:
    """A shard's index made anew, and what is wrong with the shard as a whole."""
    blob, row = pair
    try:
        stamp = blob.stamp()
        index = walked(blob, stamp)
        faults = list(index.faults)
        if row.sha256 and (digest := sha256(blob, stamp[0])) != row.sha256:
            told = f"its sha256 is {digest[:12]}..., the manifest says {row.sha256[:12]}..."
            faults.append(Damaged("changed", told, shard=blob.name))
        return index, faults
    except (OSError, Damaged) as error:
        fault = error if isinstance(error, Damaged) else Damaged("unreadable", str(error), shard=blob.name)
        return Index(np.empty(0, np.int64), np.empty((0, 4), np.int64)), [fault]


def _lots(blob: Blob, index: Index) -> Iterator[_Lot]:
    for first in range(0, len(index.ids), LOT):
        yield _Lot(blob, index.ids[first : first + LOT], index.spans[first : first + LOT])


def _decoded(lot: _Lot) -> list[Damaged]:
    """What is damaged in some records; an image and a mask of the same record are told one by one."""
    faults: list[Damaged] = []
    for image_id, (at, size, text_at, text_size) in zip(lot.ids.tolist(), lot.spans.tolist(), strict=True):
        key, name = f"sa_{image_id}", lot.blob.name
        try:
            with blaming(key, name):
                record = parse(image_id, lot.blob.read(at, size), lot.blob.read(text_at, text_size))
        except Damaged as error:
            faults.append(error)
            continue
        faults += [Damaged(flaw.cause, flaw.message, key, name) for flaw in record.flaws()]
        if not record.annotations:
            faults.append(Damaged("empty", "the image has no mask", key, name))
    return faults


def _line(fault: Damaged) -> dict[str, str]:
    return {"shard": fault.shard, "key": fault.key, "cause": fault.cause, "message": fault.message}


def _print(found: Found, as_json: bool, out: Path | None) -> None:
    """The table, for a person or a program."""
    causes = dict(found.causes.most_common())
    if as_json:
        told = {"shards": found.shards, "records": found.records, "bytes": found.size, "faults": causes}
        terminal.show(json.dumps({**told, "damaged": found.damaged, "whole": found.whole}))
        return
    sums = {"shards": f"{found.shards:,}", "records": f"{found.records:,}", "GB": f"{found.size / 1e9:,.3f}"}
    terminal.show(terminal.facts(sums))
    if not found.whole:
        terminal.show("the check was stopped before its end")
    if not causes:
        terminal.show("no fault" + ("" if found.whole else " so far"))
        return
    table = terminal.table("fault", "records", "", left=[""])
    for cause, count in causes.items():
        table.add_row(cause, f"{count:,}", CAUSES[cause])
    terminal.show("", table, "")
    if out is None:
        terminal.show(*(str(fault) for fault in found.faults[:10]))
        if len(found.faults) > 10:
            terminal.show(f"and {len(found.faults) - 10:,} more: --out FILE lists them all")
    else:
        terminal.say(f"saved to {out}")
