"""Files in object stores, by ranges, through fsspec."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar
from urllib.parse import urlsplit

from samlit.errors import one_line
from samlit.shards import blobs
from samlit.shards.blobs import Remote, persistent
from samlit.shards.tars import Stamp

__all__ = ["PACKAGES", "Cloud", "rows"]

T = TypeVar("T")

PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "hf": "huggingface_hub", "az": "adlfs"}
"""By protocol, the package that fsspec needs for it."""


class Cloud(Remote):
    """A file in an object store, through fsspec."""

    def stamp(self) -> Stamp:
        """Its size, and the store's tag of it or the time of its last change."""
        return persistent(self, lambda: _stamp(_timed(lambda: _system(self.url).info(self.url))))

    def text(self) -> bytes:
        """All of it, for what is small."""
        return persistent(self, lambda: bytes(_timed(lambda: _system(self.url).cat_file(self.url))))

    def _pieces(self, at: int, size: int) -> Iterator[bytes]:
        wait = blobs.TIMEOUT + size / (blobs.SLOWEST << 4)
        yield bytes(_timed(lambda: _system(self.url).cat_file(self.url, start=at, end=at + size), wait))


def _system(url: str) -> Any:
    """The file system of an address; fsspec keeps one of each kind."""
    import fsspec

    protocol = urlsplit(url).scheme
    try:
        return fsspec.filesystem(protocol)
    except ImportError as error:
        package = PACKAGES.get(protocol, protocol)
        told = f"{protocol}:// needs the package {package}: pip install {package}, or pip install 'samlit[remote]'"
        raise ValueError(told) from error


def _stamp(info: dict[str, Any]) -> Stamp:
    """A stamp of what a store says of a file: each has its own words."""
    for name in ("ETag", "etag", "md5Hash", "content_md5", "blob_id", "mtime", "LastModified"):
        if info.get(name):
            return int(info["size"]), str(info[name])
    return int(info["size"]), ""


def _timed(ask: Callable[[], T], seconds: float | None = None) -> T:
    """Ask a library that may never answer; a thread that still waits then is left behind.

    Raises:
        OSError: It did not answer in time, or with an error.
    """
    found: list[T] = []
    raised: list[BaseException] = []

    def run() -> None:
        try:
            found.append(ask())
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(blobs.TIMEOUT if seconds is None else seconds)
    if found:
        return found[0]
    if not raised:
        raise TimeoutError(f"no answer for {blobs.TIMEOUT if seconds is None else seconds:g} s")
    if isinstance(raised[0], (OSError, ValueError)):
        raise raised[0]
    raise ConnectionError(one_line(raised[0])) from raised[0]  # each store's library has errors of its own


def rows(folder: str) -> list[tuple[str, Stamp]]:
    """The files in a folder, by name, each with its stamp.

    Raises:
        FileNotFoundError: There is no such folder.
        Damaged: It cannot be reached.
    """
    found = persistent(Cloud(folder), lambda: _timed(lambda: _system(folder).ls(folder, detail=True, refresh=True)))
    return [(row["name"].rpartition("/")[2], _stamp(row)) for row in found if row.get("type") == "file"]
