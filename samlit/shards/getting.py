"""`samlit shards get`: SA-1B's archives from its list of links, gone on with wherever an earlier run was stopped."""

from __future__ import annotations

import threading
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path

from samlit.errors import SamlitError, UsageError
from samlit.shards import manifest, subsets
from samlit.shards.addresses import links
from samlit.shards.blobs import Blob
from samlit.shell import terminal
from samlit.shell.options import ArgumentParser
from samlit.weights.download import Refused, Report, Wanted, bring

__all__ = ["get", "main"]

EPILOG = """examples:
  samlit shards get links.txt --out sa1b
  samlit shards get links.txt --out sa1b --only sa_000000..sa_000019
"""
PAUSE = 2.0
"""Seconds before a second try."""


def main(argv: list[str]) -> int:
    """Run the command with the words after `samlit shards get`."""
    parser = ArgumentParser(
        prog="samlit shards get",
        description="Download the archives of SA-1B from the list of links that its page offers after its licence is "
        "accepted: a text file of file_name and cdn_link. The same command goes on where an earlier one was stopped.",
        epilog=EPILOG,
    )
    parser.reads.add_argument(
        "links", type=Path, metavar="LINKS", help="the list of links; they expire after some days"
    )
    parser.writes.add_argument("--out", required=True, type=Path, metavar="DIR", help="the folder of the shards")
    parser.reads.add_argument("--only", metavar="RANGE", help="some of them: sa_000000..sa_000019, several with commas")
    parser.runs.add_argument("--jobs", type=int, default=4, metavar="N", help="downloads at once (%(default)s)")
    options = parser.parse_args(argv)
    if options.jobs < 1:
        raise UsageError(f"--jobs is at least 1, not {options.jobs}")
    if not options.links.is_file():
        raise UsageError(f"there is no list of links {options.links}")
    try:
        archives = links(options.links.read_text())
        if options.only:
            wanted = subsets.ranges(options.only)
            names = set(subsets.chosen([blob.name for blob in archives], wanted, str(options.links)))
            archives = [blob for blob in archives if blob.name in names]
    except ValueError as error:
        raise UsageError(str(error)) from error

    from samlit.run.progress import bar

    with bar() as progress:
        failed = get(archives, options.out, options.jobs, progress)
        there = [blob for blob in archives if (options.out / blob.name).is_file()]
        rows = manifest.update(options.out, progress=progress) if there else []
    damaged = [row for row in rows if row.faults]
    terminal.say(f"{len(there):,} of {len(archives):,} archives are in {options.out}")
    for row in damaged:
        terminal.fail(f"{row.name} is damaged ({', '.join(row.faults)}): remove it and run the same command again")
    for line in failed:
        terminal.fail(line)
    return 1 if failed or damaged else 0


def get(
    archives: list[Blob], folder: Path, jobs: int = 4, progress: Report = lambda done, total, what: None
) -> list[str]:
    """Download archives that are not there yet.

    Args:
        archives: With names of their own.
        folder: Made if it is not there.
        jobs: Downloads at once.
        progress: Told (MB done, MB as far as known, what is being done).

    Returns:
        A line for each archive that could not be had.

    Raises:
        Refused: The links have expired.
    """
    stop, lock = threading.Event(), threading.Lock()
    known: dict[str, tuple[int, int]] = {}

    def bring_one(blob: Blob) -> str:
        def report(done: int, total: int, what: str) -> None:
            if stop.is_set():
                raise SamlitError("stopped")
            with lock:
                known[blob.name] = done, total
                sums = [sum(column) for column in zip(*known.values(), strict=True)]
                progress(sums[0], sums[1], f"downloading {len(known)} of {len(archives)} archives, MB")

        wanted = Wanted(
            blob.url,
            folder / blob.name,
            advice="run the same command again",
            room="name another folder with --out",
            refused="links of SA-1B expire; fetch a new list and run the same command with it, what is here is kept",
        )
        try:
            bring(wanted, report, PAUSE)
            return ""
        except Refused:
            raise
        except SamlitError as error:
            return str(error)

    with ThreadPoolExecutor(jobs) as pool:
        try:
            futures = [pool.submit(bring_one, blob) for blob in archives]
            wait(futures, return_when=FIRST_EXCEPTION)
            return [line for future in futures if future.done() and (line := future.result())]
        finally:  # Ctrl-C and links that have expired end the others, too
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
