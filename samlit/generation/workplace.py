"""The folder that workers share: what was asked, what is done, and whose work the rest is."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samlit import atomic
from samlit.errors import SamlitError
from samlit.faults import Damaged
from samlit.generation.claims import claimed
from samlit.generation.finding import Finder, stored
from samlit.generation.statistics import counted
from samlit.shards.records import Record, parse
from samlit.shards.writing import write
from samlit.source import Source

__all__ = ["Workplace"]

PLAN = "plan.json"
SHARE = 8
"""Images that a worker claims at a time: what others may wait for at the end, and what is claimed anew if it dies."""


@dataclass(frozen=True)
class Workplace:
    """Images that are done lie in `.work/SHARD/IMAGE.json` till their shard is written; then a row tells what it holds.

    Shard n has the images from n times `per_shard` on, whoever finds their masks, so the shards do not depend on how
    many workers there were, or how often they died.

    Attributes:
        folder: Of the shards.
        source: Prepared.
        per_shard: Images a shard.
    """

    folder: Path
    source: Source
    per_shard: int

    @property
    def shards(self) -> range:
        """Numbers of all shards."""
        return range(-(-len(self.source) // self.per_shard))

    def images(self, shard: int) -> range:
        """Numbers of a shard's images."""
        return range(shard * self.per_shard, min((shard + 1) * self.per_shard, len(self.source)))

    def row_file(self, shard: int) -> Path:
        """The file that is there when the shard is whole."""
        return self.folder / ".work" / f"sa_{shard:06d}.json"

    def begin(self, plan: dict[str, Any]) -> None:
        """Write down what is asked, or make sure that it is what was asked before.

        Raises:
            SamlitError: Something else was; one line.
        """
        file = self.folder / PLAN
        plan = json.loads(json.dumps(plan, default=str))
        with claimed(self.folder / ".work" / "plan.lock", patient=True):
            if not file.exists():
                if any(self.folder.glob("sa_*.tar")):
                    told = "holds shards that no `samlit generate` made: name another folder with --out"
                    raise SamlitError(f"{self.folder} {told}")
                atomic.write(file, json.dumps(plan, indent=1) + "\n")
                return
            try:
                before = _flat(json.loads(file.read_bytes()))
            except (ValueError, AttributeError):
                raise SamlitError(f"{file} is no plan: name another folder with --out, or remove this one") from None
        now = _flat(plan)
        for name in {**before, **now}:
            if before.get(name) != now.get(name):
                raise SamlitError(
                    f"{self.folder} was begun with {name} {json.dumps(before.get(name))}, not "
                    f"{json.dumps(now.get(name))}: go on with that, or name another folder with --out"
                )

    def work(self, finder: Finder, first: int, step: Callable[[], None]) -> Iterator[int]:
        """Do what nobody else does, until all is done; shares that died with their worker are taken over.

        Args:
            finder: Finds the masks of an image.
            first: The shard to begin with, so that workers do not stand in each other's way.
            step: Called after each image.

        Yields:
            0 where there is nothing to do but to wait for others; the number of images otherwise, of a share.
        """
        while True:
            waiting, idle = False, True
            for shard in [*self.shards[first:], *self.shards[:first]]:
                if self.row_file(shard).exists():
                    continue
                for at in range(0, len(self.images(shard)), SHARE):
                    share = self.images(shard)[at : at + SHARE]
                    if self._missing(shard, share):
                        with claimed(self._place(shard) / f"{at}.lock") as mine:
                            done = self._share(shard, share, finder, step) if mine else 0
                        if done:
                            idle = False
                            yield done
                if not self._missing(shard, self.images(shard)):
                    self._finish(shard, finder)
                waiting |= not self.row_file(shard).exists()
            if not waiting:
                return
            if idle:
                yield 0

    def done(self) -> int:
        """How many images are done, by whomever."""
        count = 0
        for shard in self.shards:
            whole = self.row_file(shard).exists()
            count += len(self.images(shard)) if whole else len(self._found(shard))
        return count

    def rows(self) -> list[dict[str, Any]]:
        """What the shards hold that are whole."""
        return [json.loads(self.row_file(n).read_bytes()) for n in self.shards if self.row_file(n).exists()]

    def _place(self, shard: int) -> Path:
        return self.folder / ".work" / f"{shard:06d}"

    def _part(self, shard: int, image: int) -> Path:
        return self._place(shard) / f"{image}.json"

    def _found(self, shard: int) -> set[str]:
        try:
            return {name for name in os.listdir(self._place(shard)) if name.endswith(".json") and name[0] != "."}
        except FileNotFoundError:
            return set()

    def _missing(self, shard: int, images: range) -> bool:
        found = self._found(shard)
        # In this order: the parts go after the row is there.
        return any(f"{image}.json" not in found for image in images) and not self.row_file(shard).exists()

    def _share(self, shard: int, images: range, finder: Finder, step: Callable[[], None]) -> int:
        """Find masks in those images of a share that are not done; how many."""
        done = 0
        for image in images:
            part = self._part(shard, image)
            if part.exists():
                continue
            if self.row_file(shard).exists():
                break
            key = f"number {image}"
            try:
                sample = self.source[image]
                key = sample.key
                text = finder.record(sample, image).text()
            except ValueError as error:
                text = json.dumps({"left_out": _told(error, key)}).encode()
            with atomic.writing(part, alone=True) as stream:
                stream.write(text)
            done += 1
            step()
        return done

    def _finish(self, shard: int, finder: Finder) -> None:
        """Write a shard of which all images are done, unless somebody else does."""
        row = self.row_file(shard)
        with claimed(self._place(shard) / "shard.lock") as mine:
            if not mine or row.exists():
                return
            path = self.folder / f"sa_{shard:06d}.tar"
            for piece in self.folder.glob(f".{path.name}.*.tmp"):
                piece.unlink()
            about: dict[str, Any] = {"name": path.name, "images": 0, "masks": 0, "copied": 0}
            left_out: list[dict[str, str]] = []
            seen: list[Record] = []

            def records() -> Iterator[Record]:
                for image in self.images(shard):
                    text = self._part(shard, image).read_bytes()
                    told = json.loads(text)
                    if "left_out" in told:
                        left_out.append(told["left_out"])
                        continue
                    key = told["image"].get("source_key", "")
                    try:
                        jpeg, _, copied = stored(self.source[image], finder.short_side, finder.quality)
                    except ValueError as error:
                        left_out.append(_told(error, key))
                        continue
                    record = parse(image, jpeg, text)
                    about["images"] += 1
                    about["masks"] += len(record.annotations)
                    about["copied"] += copied
                    # Without its picture, for a shard may have more of them than memory.
                    seen.append(Record(image, record.size, b"", record.annotations, key))
                    yield Record(image, record.size, jpeg, record.annotations, key)

            if not write(path, records()):
                path.unlink()
            else:
                with path.open("rb") as stream:
                    about["sha256"] = hashlib.file_digest(stream, "sha256").hexdigest()
                about["bytes"] = path.stat().st_size
            about |= {"left_out": left_out, "statistics": counted(seen)}
            atomic.write(row, json.dumps(about))
        # Others who look here find the row first.
        shutil.rmtree(self._place(shard), ignore_errors=True)


def _flat(plan: dict[str, Any], before: str = "") -> dict[str, Any]:
    """A plan's values by names with dots."""
    flat: dict[str, Any] = {}
    for name, value in plan.items():
        flat |= _flat(value, f"{before}{name}.") if isinstance(value, dict) else {before + name: value}
    return flat


def _told(error: ValueError, key: str) -> dict[str, str]:
    """What is wrong with an image, as the list of what was left out has it."""
    if not isinstance(error, Damaged):
        error = Damaged("other", str(error))
    message = " ".join(error.message.split())
    return {"shard": error.shard, "key": error.key or key, "cause": error.cause, "message": message}
