"""`samlit shards index`: note where every record lies, once, so that a training begins at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from samlit.errors import UsageError
from samlit.shards.manifest import Row
from samlit.shell import terminal
from samlit.shell.options import ArgumentParser

__all__ = ["main"]

EPILOG = """manifest.json, beside the shards, is for programs too: a row a shard with its records, faults and sha256

examples:
  samlit shards index shards
  samlit shards index shards --hash
"""
SHOWN = 20
"""Shards with faults that are listed."""


def main(argv: list[str]) -> int:
    """Run the command with the words after `samlit shards index`."""
    parser = ArgumentParser(
        prog="samlit shards index",
        description="Read the headers of all shards and note where every record lies: an index file a shard, and "
        "manifest.json for all of them. What is known and has not changed is not read again.",
        epilog=EPILOG,
    )
    parser.reads.add_argument(
        "root", metavar="ROOT", help="a folder of sa_*.tar, a tar, their address, or a list of links"
    )
    parser.runs.add_argument("--hash", action="store_true", help="compute the sha256 of shards that have none noted")
    parser.runs.add_argument("--jobs", type=int, metavar="N", help="processes, or connections (as many as help)")
    options = parser.parse_args(argv)
    if options.jobs is not None and options.jobs < 1:
        raise UsageError(f"--jobs is at least 1, not {options.jobs}")

    from samlit.run.progress import bar
    from samlit.shards.store import Store

    store = Store(options.root)
    with bar() as progress:
        store.open(progress, jobs=options.jobs, renew=True, digest=options.hash)
    _print_table(store.rows, options.root)
    return 0


def _print_table(rows: Sequence[Row], root: str) -> None:
    """What there is, for a person."""
    causes: Counter[str] = Counter()
    for row in rows:
        causes.update(row.faults)
    damaged = [row for row in rows if row.faults]
    faults = f"{causes.total():,} in {len(damaged):,} shards ({_words(causes)})" if causes else "none in the headers"
    hashed = sum(bool(row.sha256) for row in rows)
    told = {
        "shards": f"{len(rows):,}",
        "records": f"{sum(row.records for row in rows):,}",
        "GB": f"{sum(row.size for row in rows) / 1e9:,.3f}",
        "sha256": f"of {hashed:,} noted",
        "faults": faults,
    }
    terminal.say(terminal.facts(told))
    for row in damaged[:SHOWN]:
        terminal.say(f"  {row.name}  {row.records:,} records  {_words(row.faults)}")
    if len(damaged) > SHOWN:
        terminal.say(f"  and {len(damaged) - SHOWN:,} more")
    if damaged:
        terminal.say(f"`samlit shards check {root}` lists them one by one")


def _words(faults: Mapping[str, int]) -> str:
    return ", ".join(f"{cause} {count}" for cause, count in Counter(faults).most_common())
