"""`samlit shards make`: any source as shards in SA-1B's layout, gone on with wherever an earlier run was stopped."""

from __future__ import annotations

import fcntl
import hashlib
import json
import multiprocessing
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samlit import atomic
from samlit.errors import SamlitError, UsageError
from samlit.loading import specs
from samlit.shell import terminal
from samlit.shell.options import ArgumentParser

if TYPE_CHECKING:
    from samlit.shards.conversion import Maker
    from samlit.source import Source

__all__ = ["main", "make"]

Report = Callable[[int, int, str], None]

PLAN, JOURNAL, QUARANTINE = "plan.json", "made.jsonl", "quarantine.jsonl"
FORMAT = 1  # of the plan

EPILOG = """sources are registered names (`samlit list sources`) or class paths; the path is their first argument, --set
gives the others, and `samlit fit --data.source.help NAME` lists them; several become one, in order

JPEG files of three colours that no EXIF turns are copied byte for byte, EXIF included; all others are encoded once.
The same sources give the same bytes, however many processes write them. The same command goes on where an earlier one
was stopped. What is damaged is left out and listed in DIR/quarantine.jsonl. DIR/manifest.json tells a program of all
shards.

examples:
  samlit shards make coco:train.json --set images=photos --out shards
  samlit shards make folder:cells --out shards
  samlit shards make coco:a.json coco:b.json --set 2.crowd=true --out shards --long-side 2250
"""


def main(argv: list[str]) -> int:
    """Run the command with the words after `samlit shards make`."""
    parser = ArgumentParser(
        prog="samlit shards make",
        description="Shards in SA-1B's layout of any source.",
        epilog=EPILOG,
    )
    parser.reads.add_argument(
        "sources", nargs="+", metavar="SOURCE:PATH", help="what they are made of: coco:train.json"
    )
    parser.writes.add_argument("--out", required=True, metavar="DIR", help="the folder of the shards")
    told = "an argument of the sources that have it, or of the second one: 2.KEY=VALUE; any number of times"
    parser.reads.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="settings", help=told)
    parser.writes.add_argument("--per-shard", type=int, default=1000, metavar="N", help="images a shard (1000)")
    parser.runs.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="processes (all processors)"
    )
    told = "of a JPEG that has to be encoded, 1 to 100 (95); colours are kept whole, 4:4:4"
    parser.writes.add_argument("--quality", type=int, default=95, metavar="Q", help=told)
    told = "make larger images smaller, so that their long side has N pixels; masks with them"
    parser.writes.add_argument("--long-side", type=int, metavar="N", help=told)
    told = "stop where a greater share of the images is damaged (0.01)"
    parser.runs.add_argument("--max-damaged", type=float, default=0.01, metavar="SHARE", help=told)
    options = parser.parse_args(argv)
    for name, value, least in (
        ("--per-shard", options.per_shard, 1),
        ("--jobs", options.jobs, 1),
        ("--long-side", 1 if options.long_side is None else options.long_side, 1),
    ):
        if value < least:
            raise UsageError(f"{name} is at least {least}, not {value}")
    if not 1 <= options.quality <= 100:
        raise UsageError(f"--quality is 1 to 100, not {options.quality}")
    if not 0 <= options.max_damaged <= 1:
        raise UsageError(f"--max-damaged is a share, 0 to 1, not {options.max_damaged:g}")
    read = specs.read(options.sources, options.settings)

    from samlit.shell.bars import bar

    source, arguments = specs.build(read)
    folder = Path(options.out)
    about = [{"source": one.class_path, "arguments": given} for one, given in zip(read, arguments, strict=True)]
    with bar() as progress:
        shards = make(
            source,
            about,
            folder,
            per_shard=options.per_shard,
            quality=options.quality,
            long_side=options.long_side,
            jobs=options.jobs,
            max_damaged=options.max_damaged,
            progress=progress,
        )
    _print_table(shards, folder, options.quality)
    return 0


def make(
    source: Source,
    about: list[dict[str, Any]],
    folder: Path,
    per_shard: int = 1000,
    quality: int = 95,
    long_side: int | None = None,
    jobs: int = 1,
    max_damaged: float = 0.01,
    progress: Report = lambda done, total, what: None,
) -> list[dict[str, Any]]:
    """Make the shards of a source that are missing in a folder.

    Args:
        source: Any.
        about: What the source is, in plain values: the folder is for this and nothing else.
        folder: Made if it is not there. Beside the shards it gets a plan of what it holds, a line for each shard that
            is whole, and a list of what was left out.
        per_shard: Samples a shard.
        quality: Of JPEG files that have to be encoded.
        long_side: Of the images at most, in pixels.
        jobs: Processes, a shard each; 1 works in this one.
        max_damaged: The greatest share of damaged samples that is no reason to stop.
        progress: Told (samples done, samples, what is being done).

    Returns:
        What there is to say of each shard, in order, as `conversion.Maker.make` does.

    Raises:
        SamlitError: The folder is for something else or in use, too much is damaged, or a process is lost.
    """
    from samlit.shards import manifest
    from samlit.shards.conversion import Maker

    source.prepare(progress)
    maker = Maker(source, folder, per_shard, quality, long_side)
    options = {"per_shard": per_shard, "quality": quality, "long_side": long_side}
    plan = {"format": FORMAT, "sources": _rooted(about), "samples": len(source), **options, "files": _hashes(about)}
    # What a source could not even number is left out as well.
    faults = [
        {"shard": fault.shard, "key": fault.key, "cause": fault.cause, "message": fault.message}
        for fault in source.faults()
    ]
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        _claim(folder, plan)
        shards = _journal(folder)
        wanted = range(-(-len(source) // per_shard))
        missing = [number for number in wanted if f"sa_{number:06d}.tar" not in shards]
        most = max_damaged * (len(source) + len(faults))

        def note(shard: dict[str, Any] | None = None) -> None:
            if shard is not None:
                _append(folder, shard)
                shards[shard["name"]] = shard
            left_out = faults + [row for name in sorted(shards) for row in shards[name]["left_out"]]
            if shard is None or shard["left_out"]:
                _quarantine(folder, left_out)
            damaged = Counter(row["cause"] for row in left_out if row["cause"] != "empty")
            if damaged.total() > most:
                causes = ", ".join(f"{cause} {count}" for cause, count in damaged.most_common())
                raise SamlitError(
                    f"{damaged.total()} of {len(source) + len(faults)} images are damaged ({causes}), more than "
                    f"--max-damaged {max_damaged:g} allows: they are in {folder / QUARANTINE}; mend them, or allow more"
                )

        note()
        _run(maker, missing, jobs, note, progress)
        note()
        manifest.update(folder, {name: shard["sha256"] for name, shard in shards.items() if shard["images"]})
    return [shards[name] for name in sorted(shards)]


def _run(maker: Maker, missing: list[int], jobs: int, note: Callable[[dict[str, Any]], None], progress: Report) -> None:
    """Make shards, in several processes if that helps, and note each that is whole."""
    total, what = len(maker.source), "making shards"
    sizes = {number: min((number + 1) * maker.per_shard, total) - number * maker.per_shard for number in missing}
    begun = total - sum(sizes.values())
    progress(begun, total, what)
    if min(jobs, len(missing)) < 2:

        def step() -> None:
            nonlocal begun
            progress(begun, total, what)
            begun += 1

        for number in missing:
            note(maker.make(number, step))
    else:
        for shard in _made(maker, missing, jobs, lambda done: progress(begun + done, total, what)):
            note(shard)
    progress(total, total, what)


def _made(maker: Maker, missing: list[int], jobs: int, report: Callable[[int], None]) -> Iterator[dict[str, Any]]:
    """Make shards in a pool of processes; on the way out, also by an error or Ctrl-C, all of them are ended."""
    from samlit.shards import conversion

    # Spawned, not forked: a fork of a process with threads (torch has some) may hang.
    context = multiprocessing.get_context("spawn")
    done, stop = context.Value("q", 0), context.Event()
    pool = ProcessPoolExecutor(min(jobs, len(missing)), context, conversion.ready, (maker, done, stop))
    try:
        with _deaf():
            waiting = {pool.submit(conversion.made, number) for number in missing}
        while waiting:
            whole, waiting = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
            report(done.value)
            for future in whole:
                yield future.result()
    except BrokenProcessPool:
        raise SamlitError(
            "a process that made shards is gone, perhaps for lack of memory: run the same command again to go on, "
            f"with fewer --jobs than {min(jobs, len(missing))}"
        ) from None
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


@contextmanager
def _deaf() -> Iterator[None]:
    """Processes that are started here do not hear Ctrl-C, which a terminal sends to all: this one tells them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let one command at a time write to a folder, and remove what one that was killed has left half written."""
    with (folder / ".making.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SamlitError(f"{folder}: another process is making shards there; wait for it, or stop it") from None
        for piece in folder.glob(".sa_*.tar.*.tmp"):
            piece.unlink()
        yield


def _claim(folder: Path, plan: dict[str, Any]) -> None:
    """Make sure that the folder is for this very plan, and say so in it."""
    file = folder / PLAN
    if not file.exists():
        if any(folder.glob("sa_*.tar")):
            raise SamlitError(f"{folder} holds shards that no `shards make` made: name another folder with --out")
        atomic.write(file, json.dumps(plan, indent=1) + "\n")
        return
    try:
        before = json.loads(file.read_bytes())
        differing = next((name for name in plan if before.get(name) != plan[name]), None)
    except (ValueError, AttributeError):
        raise SamlitError(f"{file} is no plan of shards: name another folder with --out, or remove this one") from None
    if differing is None:
        return
    if differing == "files":
        what = "made from a file that has changed since"
    elif differing == "sources":
        what = _apart(before[differing], plan[differing])
    else:
        what = f"made with {differing} {before.get(differing)}, not {plan[differing]}"
    raise SamlitError(f"{folder} holds shards {what}: name another folder with --out, or remove this one")


def _apart(before: Any, now: list[dict[str, Any]]) -> str:
    """What the sources of a plan are and others are not, as little as tells them apart."""
    names = ["; ".join(str(one["source"]) for one in about) for about in (before, now)]
    if names[0] != names[1]:
        return f"made from {names[0]}, not from {names[1]}"
    for old, new in zip(before, now, strict=True):
        for name, value in new["arguments"].items():
            if (was := old["arguments"].get(name)) != value:
                return f"made with {name} {json.dumps(was)}, not {json.dumps(value)}"
    return "made with other arguments"


def _rooted(about: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the sources are, wherever the command is run; in plain values."""
    plain: list[dict[str, Any]] = json.loads(json.dumps(about, default=str))
    for one in plain:
        for name, value in one["arguments"].items():
            if isinstance(value, str) and Path(value).expanduser().exists():
                one["arguments"][name] = str(Path(value).expanduser().resolve())
    return plain


def _hashes(about: list[dict[str, Any]]) -> dict[str, str]:
    """The sha256 of each file that an argument names, for the same name may later hold something else."""
    hashes = {}
    for one in _rooted(about):
        for name, value in one["arguments"].items():
            if isinstance(value, str) and Path(value).is_file():
                with Path(value).open("rb") as stream:
                    hashes[f"{name}={value}"] = hashlib.file_digest(stream, "sha256").hexdigest()
    return hashes


def _journal(folder: Path) -> dict[str, dict[str, Any]]:
    """By name, the shards that are whole and still there; from now on the journal has these alone."""
    shards: dict[str, dict[str, Any]] = {}
    file = folder / JOURNAL
    for line in file.read_bytes().splitlines() if file.exists() else ():
        with suppress(ValueError, OSError):  # a line that was being written when the machine went down
            shard = json.loads(line)
            if not shard["images"] or (folder / shard["name"]).stat().st_size == shard["bytes"]:
                shards[shard["name"]] = shard
    atomic.write(file, "".join(json.dumps(shard) + "\n" for shard in shards.values()))
    return shards


def _append(folder: Path, shard: dict[str, Any]) -> None:
    """Note a whole shard."""
    with (folder / JOURNAL).open("ab") as stream:
        stream.write(json.dumps(shard).encode() + b"\n")
        stream.flush()
        os.fsync(stream.fileno())


def _quarantine(folder: Path, left_out: list[dict[str, str]]) -> None:
    """List what was left out; no list where there is nothing."""
    if left_out:
        atomic.write(folder / QUARANTINE, "".join(json.dumps(row) + "\n" for row in left_out))
    else:
        (folder / QUARANTINE).unlink(missing_ok=True)


def _print_table(shards: list[dict[str, Any]], folder: Path, quality: int) -> None:
    """What was made, for a person."""
    names = ("images", "bare", "copied", "lost")
    images, bare, copied, lost = (sum(shard[name] for shard in shards) for name in names)
    causes = Counter(row["cause"] for shard in shards for row in shard["left_out"])
    left_out = f"{causes.total()}"
    if causes:
        named = ", ".join(f"{cause} {count}" for cause, count in causes.most_common())
        left_out += f" ({named}): {folder / QUARANTINE}"
    masks = f"{sum(shard['masks'] for shard in shards)}"
    rows = {
        "images": f"{images} ({copied} JPEG files as they are, {images - copied} encoded at quality {quality}, 4:4:4)"
        + (f", {bare} without a mask" if bare else ""),
        "masks": masks + (f" ({lost} more have no pixel at this size)" if lost else ""),
        "shards": f"{sum(1 for shard in shards if shard['images'])} in {folder}",
        "MB": f"{sum(shard['bytes'] for shard in shards) / 1e6:.1f}",
        "left out": left_out,
    }
    terminal.say(terminal.facts(rows))
