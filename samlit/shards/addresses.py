"""Where shards are: a path, an address, a folder's listing, a list of links. Nothing here runs a program."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urljoin

from samlit.shards import cloud
from samlit.shards.blobs import Blob, Local
from samlit.shards.cloud import Cloud
from samlit.shards.tars import Stamp
from samlit.shards.web import Web

__all__ = ["HEADER", "blob", "is_address", "links", "listed"]

KNOWN = ("http", "https", *cloud.PACKAGES, "memory")
HEADER = "file_name\tcdn_link"
"""The first line of SA-1B's list of links."""


def is_address(text: str) -> bool:
    """Whether it is an address, not a path.

    Raises:
        ValueError: It is one that nothing is read from.
    """
    protocol, colon, _ = text.partition(":")
    if "|" in text or (colon and protocol.strip().lower() == "pipe"):
        raise ValueError(f"{text[:80]!r} would run a program, which no data set may; give a folder or an address")
    if "://" not in text:
        return False
    if protocol not in (*KNOWN, "file") or "::" in text:
        raise ValueError(f"{text[:80]!r} is no address that can be read (known: {', '.join(KNOWN)})")
    return protocol != "file"


def blob(text: str, name: str = "") -> Blob:
    """The file at an address or path, by a name of its own if it has one.

    Raises:
        ValueError: It is an address that nothing is read from.
    """
    if not is_address(text):
        return Local(str(Path(text.removeprefix("file://")).expanduser().absolute()))
    return Web(text, name) if text.startswith(("http://", "https://")) else Cloud(text, name)


def listed(folder: str) -> list[tuple[Blob, Stamp | None]]:
    """The shards in a folder at an address, by name, with their stamps where the listing has them.

    Raises:
        FileNotFoundError: There is no such folder.
        Damaged: It cannot be reached.
    """
    folder = folder.rstrip("/") + "/"
    shards: dict[str, tuple[Blob, Stamp | None]] = {}
    if folder.startswith(("http://", "https://")):
        page = Web(folder).text().decode("utf-8", "replace")
        for link in re.findall(r"""href=["']?([^"'>\s]+\.tar)["'>\s]""", page, re.IGNORECASE):
            found = Web(urljoin(folder, link))
            if found.url.startswith(folder):
                shards[found.name] = (found, None)
    else:
        shards = {name: (Cloud(folder + name), stamp) for name, stamp in cloud.rows(folder) if name.endswith(".tar")}
    return [shards[name] for name in sorted(shards) if name.startswith("sa_")]


def links(text: str) -> list[Blob]:
    """The archives of SA-1B's list of links (SAM_SPEC 4), by name.

    Raises:
        ValueError: It is none; one line that names the line.
    """
    head, *lines = text.splitlines()
    if head.strip() != HEADER:
        raise ValueError(f"the list of links does not begin with {HEADER!r}")
    found: dict[str, Blob] = {}
    for number, line in enumerate(lines, 2):
        if line.strip():
            name, tab, link = line.strip().partition("\t")
            if not tab or not name.endswith(".tar") or "/" in name or not is_address(link.strip()):
                raise ValueError(f"line {number} of the list of links is not a name and an address: {line[:60]!r}")
            found[name] = blob(link.strip(), name)
    return [found[name] for name in sorted(found)]
