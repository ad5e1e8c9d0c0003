"""Procedural scenes of things with parts and sub-parts, to train and test without any download."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from pathlib import Path
from typing import Literal

from samlit import cache
from samlit.atomic import writing
from samlit.shards.records import Record
from samlit.shards.writing import write
from samlit.source import Sample, Source
from samlit_sources import _scenes
from samlit_sources._scenes import Lot
from samlit_sources.sa1b import Sa1b

__all__ = ["Shapes"]

SHARD = 500
"""Scenes a shard."""
LOT = 25
"""Scenes that a process draws at a time."""
MIN_AREA = {"rich": 32, "clear": 300, "worded": 60}
"""Pixels of a mask at least, where nothing else is said."""


class Shapes(Source):
    """Procedural scenes of carts, cats and rockets, with a phrase for every mask.

    A click is truly ambiguous: a hub lies on a wheel, and the wheel on a cart. The scenes are written once, as shards
    in SA-1B's layout, and read like those.

    Args:
        split: No scene of one is in the other.
        count: How many scenes.
        size: The long side in pixels; the short one is 6 to 8 eighths of it.
        seed: Another seed, other scenes.
        min_area: Visible pixels of a mask at least, in a picture of 128; in others as much of the picture. 32 in rich
            scenes, 300 in clear and 60 in worded ones if not given.
        style: "rich" scenes are crowded; "clear" ones have fewer and larger things, of fewer kinds, every
            part with a dark rim; "worded" ones have three to five balls, stars, leaves, bricks, diamonds and hearts,
            some with a badge, whose phrases say colour, texture and shape and mean one thing each.
        combinations: Of shape and colour, in worded scenes: "known" ones leave out one colour in eight for each shape,
            and of "held_out" scenes just those are masks.
        root: The folder for the shards; by default one in the cache, named after all of this.
    """

    def __init__(
        self,
        split: Literal["train", "val"] = "train",
        count: int = 1000,
        size: int = 128,
        seed: int = 0,
        min_area: int | None = None,
        style: Literal["rich", "clear", "worded"] = "rich",
        root: str | None = None,
        combinations: Literal["known", "held_out", "all"] = "all",
    ) -> None:
        if split not in ("train", "val"):
            raise ValueError(f"split is train or val, not {split!r}")
        if count < 1:
            raise ValueError(f"count is at least 1, not {count}")
        if size < 32 or size % 8:
            raise ValueError(f"size is a multiple of 8 from 32 on, not {size}")
        if style not in MIN_AREA:
            raise ValueError(f"style is rich, clear or worded, not {style!r}")
        if combinations not in ("known", "held_out", "all"):
            raise ValueError(f"combinations are known, held_out or all, not {combinations!r}")
        if combinations != "all" and style != "worded":
            raise ValueError(f"combinations are of worded scenes, and style is {style}")
        if min_area is None:
            min_area = MIN_AREA[style]
        if min_area < 1:
            raise ValueError(f"min_area is at least 1, not {min_area}")
        self.split, self.count, self.size, self.seed = split, count, size, seed
        self.min_area, self.style, self.combinations = min_area, style, combinations
        self.root = root
        self._reader: Sa1b | None = None

    @property
    def folder(self) -> Path:
        """Where the shards are, or will be."""
        if self.root is not None:
            return Path(self.root).expanduser()
        name = (
            f"v{_scenes.VERSION}-{self.style}-{self.split}-{self.count}x{self.size}-from{self.min_area}-seed{self.seed}"
        )
        if self.combinations != "all":
            name += f"-{self.combinations}"
        return cache.folder() / "shapes" / name

    def prepare(self, progress: Callable[[int, int, str], None] = lambda done, total, what: None) -> None:
        """Write the shards that are missing, with all processors.

        Each shard appears under its name when it is whole, so whatever an interrupted run has left is gone on with.

        Args:
            progress: Told (scenes done, scenes, what is being done).

        Raises:
            ValueError: The folder holds something else.
        """
        folder = self.folder
        folder.mkdir(parents=True, exist_ok=True)
        self._claim(folder)
        missing = [(path, lots) for path, lots in self._plan(folder) if not path.exists()]
        done = self.count - sum(lot.count for _, lots in missing for lot in lots)
        progress(done, self.count, "drawing scenes")
        with closing(_drawn([lot for _, lots in missing for lot in lots])) as drawn:

            def records(lots: list[Lot]) -> Iterator[Record]:
                nonlocal done
                for _ in lots:
                    yield from (batch := next(drawn))
                    done += len(batch)
                    progress(done, self.count, "drawing scenes")

            for path, lots in missing:
                write(path, records(lots))
        self._reader = self._read(folder)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        """Scene number `index`.

        Raises:
            FileNotFoundError: The scenes are not drawn yet: call `prepare` first.
            IndexError: There are not so many.
            ValueError: The record is damaged; one line that names shard and key and says how.
        """
        if self._reader is None:
            self._reader = self._read(self.folder)
        return self._reader[index]

    def _claim(self, folder: Path) -> None:
        """Make sure that the folder is for these very scenes, and say so in it."""
        names = ("split", "count", "size", "seed", "min_area", "style")
        about = {"version": _scenes.VERSION, **{name: getattr(self, name) for name in names}}
        if self.combinations != "all":
            about["combinations"] = self.combinations
        label = folder / "shapes.json"
        occupied = any(folder.glob("*.tar"))  # looked at first: another process's label is there before its shards
        if label.exists():
            try:
                same = json.loads(label.read_bytes()) == about
            except ValueError:
                same = False
            if not same:
                raise ValueError(f"{folder} holds other scenes than these; name another folder, or remove it")
        elif occupied:
            raise ValueError(f"{folder} holds shards that are not scenes; name another folder")
        else:
            with writing(label) as stream:
                stream.write(json.dumps(about).encode())

    def _plan(self, folder: Path) -> list[tuple[Path, list[Lot]]]:
        """All shards, and the lots of scenes that make each."""
        stream = {"train": 0, "val": 1}[self.split]
        plan = []
        for number, start in enumerate(range(0, self.count, SHARD)):
            stop = min(start + SHARD, self.count)
            lots = [
                Lot(
                    self.seed,
                    stream,
                    at,
                    min(LOT, stop - at),
                    self.size,
                    self.min_area,
                    self.style,
                    self.combinations,
                )
                for at in range(start, stop, LOT)
            ]
            plan.append((folder / f"sa_{number:06d}.tar", lots))
        return plan

    def _read(self, folder: Path) -> Sa1b:
        for path, _ in self._plan(folder):
            if not path.exists():
                raise FileNotFoundError(f"there is no {path}: the scenes are not drawn yet, call prepare() first")
        self._claim(folder)
        reader = Sa1b(str(folder), empty=True)
        reader.prepare()
        if len(reader) != self.count:
            why = "; ".join(map(str, reader.faults()[:1])) or f"it has {len(reader)} scenes, not {self.count}"
            raise ValueError(f"{folder} is damaged ({why}): remove it, and the scenes are drawn again")
        return reader


def _drawn(lots: list[Lot]) -> Generator[list[Record]]:
    """Draw lots, in as many processes as there are processors, and yield them in order."""
    workers = min(os.cpu_count() or 1, len(lots))
    done = 0
    if workers > 1:
        # Spawned, not forked: a fork of a process with threads (torch has some) may hang.
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(workers, context, initializer=_scenes.use_one_thread)
        try:
            for records in pool.map(_scenes.draw, lots):
                yield records
                done += 1
        except BrokenProcessPool:
            # A script without `if __name__ == "__main__"` cannot be spawned from; this process can still do it.
            pass
        finally:
            pool.shutdown(cancel_futures=True)
    for lot in lots[done:]:
        yield _scenes.draw(lot)
