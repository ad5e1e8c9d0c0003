"""All shards of a root, here or remote: indexed once, opened at once, read by number."""

from __future__ import annotations

import mmap
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from samlit import cache
from samlit.faults import Damaged, blaming
from samlit.shards import addresses, crew, manifest, tars
from samlit.shards.ahead import Ahead
from samlit.shards.blobs import Blob, Local, Remote
from samlit.shards.chunks import Chunks, parse_size
from samlit.shards.manifest import Row
from samlit.shards.noting import Noted, looked, note, places, short, walk_and_write, written
from samlit.shards.records import Record, parse
from samlit.shards.tars import Index, Stamp

__all__ = ["Store"]

Report = Callable[[int, int, str], None]

OPEN = 64
"""Indexes that are open at once; they are mapped files, so that processes share their memory."""
MANY = 4 << 30
"""Bytes of shards from which on several processes index them: starting processes takes a second, too."""
THREADS = 16
"""Remote shards that are indexed at once: it is mostly waiting."""
GAP = 1 << 16
"""Bytes between an image and its JSON up to which both are read at once."""


class Store:
    """Shards in SA-1B's layout, wherever they are: by name, and their records by number.

    It holds no open file until it is read from, pickles small, and is used by many threads and processes. What is
    known of the shards is in a manifest and an index file each, beside them, or in the cache where nothing can be
    written beside them.

    Args:
        root: A folder of sa_*.tar or one tar, as a path or an address (http, https, s3, gs, hf, az); or SA-1B's
            list of links.
        cache: A folder for parts of remote shards; nothing is kept if not given.
        cache_size: Bytes of it at most, as "200GB".

    Raises:
        ValueError: The root is an address that nothing is read from, or the size is none.
    """

    def __init__(self, root: str, cache: str | None = None, cache_size: str = "200GB") -> None:
        self.remote = addresses.is_address(root)
        self.root = root if self.remote else str(Path(root.removeprefix("file://")).expanduser())
        limit = parse_size(cache_size)
        self.chunks = Chunks(Path(cache).expanduser(), limit) if cache else None
        self.rows: tuple[Row, ...] = ()
        self.blobs: tuple[Blob, ...] = ()
        self.unreadable: tuple[Damaged, ...] = ()
        self._trusting = False
        self._awake()

    def _awake(self) -> None:
        self._lock = threading.Lock()
        self._indexes: OrderedDict[int, Index] = OrderedDict()
        self._ahead: Ahead[tuple[int, int], tuple[bytes, bytes]] = Ahead(self._fetched)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_lock", "_indexes", "_ahead")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._awake()

    def open(
        self,
        progress: Report = lambda done, total, what: None,
        only: Callable[[Sequence[str]], Iterable[str]] | None = None,
        jobs: int | None = None,
        hashes: Mapping[str, str] | None = None,
        renew: bool = False,
        digest: bool = False,
    ) -> None:
        """Find the shards, and index those that are new or have changed; what is known of the others is read.

        Shards on this machine are looked at, remote ones are not if they are known: whoever reads one that
        has changed is told.

        Args:
            progress: Told (shards done, shards to index, what is being done).
            only: Chooses among the names of all shards.
            jobs: Processes or, for remote shards, threads; as many as help if not given.
            hashes: By name, the sha256 of shards that were just written.
            renew: Ask for the state of remote shards, too.
            digest: Compute the sha256 of shards that have none.

        Raises:
            FileNotFoundError: There is no such folder, tar or list.
            ValueError: There is no shard in it.
            Damaged: It cannot be reached.
        """
        try:
            found, known, self._trusting = self._found()
        except FileNotFoundError:  # each kind of server has other words for it
            raise FileNotFoundError(f"there is no folder or tar {self.root.partition('?')[0]}") from None
        if not found:
            raise ValueError(f"there is no sa_*.tar in {self.root}")
        if not self._trusting:
            known = self._manifest()
        if only is not None:
            chosen = set(only([blob.name for blob, _ in found]))
            found = [(blob, stamp) for blob, stamp in found if blob.name in chosen]
        if renew and not self._trusting and all(stamp is None for _, stamp in found):
            asked = [blob for blob, _ in found]
            stamps = dict(crew.work(looked, asked, jobs or THREADS, threads=True))
            found = [(blob, stamps[number]) for number, blob in enumerate(asked)]
        rows: dict[str, Row] = {}
        stale: list[Blob] = []
        for blob, stamp in found:
            row = known.get(blob.name)
            if isinstance(blob, Local):
                stamp = looked(blob)
            if row is None or (stamp is not None and row.stamp != stamp) or (digest and not row.sha256):
                stale.append(blob)
            else:
                rows[blob.name] = row
        unreadable: list[Damaged] = []
        fresh = {}
        for noted in self._noted(stale, jobs, digest, progress):
            rows[noted.row.name] = noted.row
            if noted.lasting:
                fresh[noted.row.name] = noted.row
            else:
                unreadable += noted.faults
        for name, sha256 in (hashes or {}).items():
            if name in rows and rows[name].sha256 != sha256:
                rows[name] = fresh[name] = replace(rows[name], sha256=sha256)
        if fresh or (not self.remote and only is None and set(known) != set(rows)):
            kept = {name: row for name, row in known.items() if only is not None or name in rows}
            written(manifest.text({**kept, **fresh}.values()).encode(), *self._manifest_places())
        self.blobs = tuple(blob for blob, _ in found)
        self.rows = tuple(rows[blob.name] for blob in self.blobs)
        self.unreadable = tuple(unreadable)
        self._awake()

    def index(self, which: int) -> Index:
        """Where the records of a shard lie.

        Raises:
            Damaged: The shard is not the one that was indexed, or cannot be reached.
        """
        with self._lock:
            if which in self._indexes:
                self._indexes.move_to_end(which)
                return self._indexes[which]
        blob, row = self.blobs[which], self.rows[which]
        index = self._opened(blob, row)
        if len(index.ids) != row.records:
            raise Damaged("changed", "the shard is not the one that was indexed", shard=row.name)
        with self._lock:
            self._indexes[which] = index
            if len(self._indexes) > OPEN:
                self._indexes.popitem(last=False)
        return index

    def files(self, which: int, number: int) -> tuple[bytes, bytes]:
        """A record's image and JSON, as they are stored.

        Raises:
            Damaged: They cannot be had; it names the shard.
        """
        return self._ahead.take((which, number))

    def record(self, which: int, number: int) -> Record:
        """A record, its JSON checked; its image is checked when it is decoded.

        Raises:
            Damaged: It is damaged or cannot be had; it names shard and key and says how.
        """
        name = self.rows[which].name
        with blaming("", name):
            image_id = int(self.index(which).ids[number])
        with blaming(f"sa_{image_id}", name):
            jpeg, text = self.files(which, number)
            return parse(image_id, jpeg, text)

    def prefetch(self, wanted: Sequence[tuple[int, int]]) -> None:
        """Begin to read remote records, (number of the shard, number in it), in this order."""
        if self.blobs and not isinstance(self.blobs[0], Local):
            self._ahead.hint(wanted)

    def faults(self) -> list[Damaged]:
        """What of the shards cannot be used, as it was found when they were indexed."""
        found = list(self.unreadable)
        for which, row in enumerate(self.rows):
            if row.faults and "unreadable" not in row.faults:
                try:
                    found += self.index(which).faults
                except Damaged as error:
                    found.append(error)
        return found

    def _fetched(self, at: tuple[int, int]) -> tuple[bytes, bytes]:
        which, number = at
        blob, stamp = self.blobs[which], self.rows[which].stamp
        image, image_size, text, text_size = self.index(which).spans[number].tolist()

        def read(begin: int, size: int) -> bytes:
            if not 0 <= begin <= begin + size <= stamp[0]:
                raise Damaged("changed", "the shard is shorter than its index says", shard=blob.name)
            if self.chunks is not None and not isinstance(blob, Local):
                return self.chunks.read(blob, stamp, begin, size)
            return blob.read(begin, size)

        begin, end = min(image, text), max(image + image_size, text + text_size)
        if end - begin > image_size + text_size + GAP:
            return read(image, image_size), read(text, text_size)
        both = read(begin, end - begin)
        return both[image - begin :][:image_size], both[text - begin :][:text_size]

    def _opened(self, blob: Blob, row: Row) -> Index:
        """An index from its file, or made anew."""
        if isinstance(blob, Local) and blob.stamp() != row.stamp:
            told = "the shard is not the one that was indexed; start again, or run `samlit shards index`"
            raise Damaged("changed", told, shard=row.name)
        for place in places(blob):
            with suppress(OSError, ValueError), place.open("rb") as stream:
                return tars.unpacked(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ), row.stamp)
        if self._trusting:  # whoever has indexed the shards may have put the index files beside them, too
            with suppress(OSError, ValueError):
                data = _small(addresses.blob(blob.place + ".index"))
                index = tars.unpacked(data, row.stamp)
                written(data, *places(blob))
                return index
        noted, index = walk_and_write(blob, row.stamp, self.chunks)
        if not noted.lasting:
            raise noted.faults[0]
        return index

    def _found(self) -> tuple[list[tuple[Blob, Stamp | None]], dict[str, Row], bool]:
        """All shards by name, with their stamps where a listing has them; a remote manifest's rows; if there is one."""
        if not self.remote:
            path = Path(self.root)
            if path.is_dir():
                return [(Local(str(file)), None) for file in sorted(path.glob("sa_*.tar"))], {}, False
            with path.open("rb") as stream:
                head = stream.read(len(addresses.HEADER))
            if head != addresses.HEADER.encode():
                return [(Local(str(path)), None)], {}, False
            return [(blob, None) for blob in addresses.links(path.read_text())], {}, False
        where = self.root.partition("?")[0]
        if where.endswith(".tar"):
            return [(addresses.blob(self.root), None)], {}, False
        if where.endswith((".txt", ".tsv")):
            return [(blob, None) for blob in addresses.links(_small(addresses.blob(self.root)).decode())], {}, False
        with suppress(FileNotFoundError, ValueError):  # a store that may not be listed refuses what is not there
            rows = manifest.parse(_small(addresses.blob(f"{self.root.rstrip('/')}/{manifest.FILE}")))
            found = [(addresses.blob(f"{self.root.rstrip('/')}/{name}"), None) for name in sorted(rows)]
            return [*found], rows, True
        return addresses.listed(self.root), {}, False

    def _noted(self, stale: list[Blob], jobs: int | None, digest: bool, progress: Report) -> Iterable[Noted]:
        """Index shards, with as many hands as help."""
        if not stale:
            return
        local = isinstance(stale[0], Local)
        helpful = os.cpu_count() or 1 if local else THREADS
        if local and sum(looked(blob)[0] for blob in stale) < MANY:
            helpful = 1
        task = partial(note, chunks=self.chunks, digest=digest)
        progress(0, len(stale), "indexing shards")
        for done, (_, noted) in enumerate(crew.work(task, stale, jobs or helpful, threads=not local), 1):
            yield noted
            progress(done, len(stale), "indexing shards")

    def _manifest(self) -> dict[str, Row]:
        """What is known of the shards."""
        rows: dict[str, Row] = {}
        for place in reversed(self._manifest_places()):  # what stands beside the shards counts most
            with suppress(OSError, ValueError):
                rows.update(manifest.parse(place.read_bytes()))
        return rows

    def _manifest_places(self) -> list[Path]:
        cached = cache.folder() / "manifests" / f"{short(self.root.partition('?')[0])}.json"
        path = Path(self.root)
        if self.remote or not path.is_dir():
            return [cached]
        return [path / manifest.FILE, cached]


def _small(blob: Blob) -> bytes:
    """All of a remote file that is known to be small."""
    assert isinstance(blob, Remote)
    return blob.text()
