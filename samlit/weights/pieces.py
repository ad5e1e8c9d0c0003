"""Checkpoints in pieces: a folder into which every rank writes its part, read on any number of ranks.

last.ckpt/
  rest.pt                          what is no large tensor
  part-00000-of-00008.safetensors  rank 0's rows of every tensor; one file a rank
  manifest.json                    which rows are where, and every file's check sum; written last
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch import distributed as dist
from torch.distributed.tensor import DTensor

from samlit import atomic
from samlit.errors import SamlitError, one_line
from samlit.training.rows import placed, rows

__all__ = ["MANIFEST", "Place", "is_complete", "is_folder", "load", "read", "save", "whole"]

MANIFEST, REST = "manifest.json", "rest.pt"
LARGE = ("state_dict", "optimizer_states")
"""Whose tensors go into parts; those of anything else are small."""

At = tuple[Any, ...]
Place = Callable[[At, Sequence[int], dict[str, Any]], DTensor | None]
"""Where a tensor will live: its keys, its shape and the checkpoint without tensors to a tensor that is shared alike."""


class _Piece(NamedTuple):
    """Rows of a tensor.

    Attributes:
        at: The keys that lead to the tensor in the checkpoint.
        shape: The whole tensor's.
        first: Its first row, which the piece begins with.
        rows: How many rows it has.
    """

    at: list[Any]
    shape: list[int]
    first: int
    rows: int

    @property
    def name(self) -> str:
        """In its file."""
        return "/".join(map(str, self.at))


def is_folder(path: str | Path) -> bool:
    """Whether this is a checkpoint in pieces, whole or not."""
    return any((Path(path) / name).is_file() for name in (MANIFEST, REST))


def is_complete(path: str | Path) -> bool:
    """Whether it was written to its end."""
    return (Path(path) / MANIFEST).is_file()


def whole(checkpoint: dict[str, Any], keep: bool = True) -> dict[str, Any]:
    """A checkpoint with every shared tensor put together, on the processor; every rank calls it.

    Args:
        checkpoint: Of this rank.
        keep: Whether this rank wants it; the others get none of the tensors.
    """

    def gather(at: At, value: Tensor) -> Tensor | None:
        if not isinstance(value, DTensor):
            return value
        full = value.full_tensor()
        return full.cpu() if keep else None

    gathered: dict[str, Any] = _mapped(checkpoint, gather)
    return gathered


def save(checkpoint: dict[str, Any], path: Path, keep: Path | None = None) -> None:
    """Save in pieces; every rank calls it. The folder appears when all of it is on the disk, and not at all otherwise.

    Args:
        checkpoint: Of this rank.
        path: The folder.
        keep: Where what was at `path` goes, instead of what is there; if not given, it goes.

    Raises:
        SamlitError: It could not be written; what was there is untouched. On every rank alike.
    """
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    beside = path.with_name(f".{path.name}.part.tmp")

    def begin() -> None:
        if rank == 0:
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir(parents=True)

    def write() -> dict[str, Any]:
        return _write(checkpoint, beside, f"part-{rank:05d}-of-{world:05d}.safetensors", rank == 0)

    def end() -> None:
        if rank == 0:
            files = {name: facts for part in parts for name, facts in part.items()}
            atomic.write(beside / MANIFEST, json.dumps({"format": 1, "files": files}))
            _swap(beside, path, keep)

    try:
        _together(begin)
        parts = _together(write)
        _together(end)
    except _Failed as failed:
        if rank == 0:
            shutil.rmtree(beside, ignore_errors=True)
        before = "; the one that was there is untouched" if path.exists() else ""
        raise SamlitError(f"the checkpoint {path} could not be written ({failed}){before}") from failed


def damage(path: Path) -> str:
    """Where a checkpoint in pieces is damaged, found by reading it through; empty where it is not."""
    try:
        manifest = _manifest(path)
        _check(path, manifest, list(manifest["files"]))
    except _Damaged as fault:
        return str(fault.where)
    return ""


def read(path: Path, moments: bool = True, checked: bool = False) -> dict[str, Any]:
    """A checkpoint in pieces as one, with ordinary tensors.

    Args:
        path: The folder.
        moments: With the optimiser's states; whoever only uses the model can do without.
        checked: Somebody has just read it through.

    Raises:
        SamlitError: It is damaged.
    """
    manifest = _manifest(path)
    if not checked:
        _check(path, manifest, list(manifest["files"]))
    if moments:
        return _read(path, manifest, lambda at, shape, rest: None)
    for facts in manifest["files"].values():
        facts["pieces"] = [piece for piece in facts["pieces"] if piece.at[0] != "optimizer_states"]
    found = _read(path, manifest, lambda at, shape, rest: None)
    found.pop("optimizer_states", None)
    return found


def load(path: Path, place: Place, file: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """This rank's part of a checkpoint, in pieces or in one; every rank calls it.

    Args:
        path: A folder or a file.
        place: How tensors are shared here.
        file: Reads a checkpoint that is one file.

    Raises:
        SamlitError: It is damaged; on every rank alike where it is in pieces.
    """
    if not is_folder(path):
        found = file(path)

        def cut(at: At, value: Tensor) -> Tensor:
            like = place(at, value.shape, found)
            return value if like is None else placed(value[slice(*rows(like))].clone(), like)

        mine: dict[str, Any] = _mapped(found, cut)
        return mine
    manifest = _manifest(path)
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    try:  # the ranks share the work of reading all of it once
        _together(lambda: _check(path, manifest, sorted(manifest["files"])[rank::world]))
    except _Failed as failed:
        raise SamlitError(str(failed)) from failed
    return _read(path, manifest, place)


def _write(checkpoint: dict[str, Any], folder: Path, name: str, first: bool) -> dict[str, Any]:
    """Write this rank's part, and on the first rank what is not shared; what the manifest says of it."""
    tensors: dict[str, Tensor] = {}
    found: list[_Piece] = []

    def take(at: At, value: Tensor) -> Tensor | None:
        shared = isinstance(value, DTensor)
        if not shared and (at[0] not in LARGE or value.ndim == 0):
            return value
        start, stop = rows(value) if isinstance(value, DTensor) else (0, len(value) if first else 0)
        once = not isinstance(value, DTensor) or _is_first_copy(value)
        if once and (stop > start or (first and not len(value))):
            piece = _Piece(list(at), list(value.shape), start, stop - start)
            local = value.to_local() if isinstance(value, DTensor) else value
            tensors[piece.name] = local.detach().cpu().contiguous()
            found.append(piece)
        return None

    rest = _mapped(checkpoint, take)
    save_file(tensors, folder / name)
    (folder / name).chmod(folder.stat().st_mode & 0o666)  # it lets nobody else read, whatever the person's mask says
    facts = {name: _facts(folder / name) | {"pieces": [list(piece) for piece in found]}}
    if first:
        torch.save(rest, folder / REST)
        facts[REST] = _facts(folder / REST)
    return facts


def _is_first_copy(value: DTensor) -> bool:
    """Whether this rank is the first of those that have the same rows."""
    coordinate = value.device_mesh.get_coordinate() or ()
    return all(not rank for place, rank in zip(value.placements, coordinate, strict=True) if place.is_replicate())


def _facts(file: Path) -> dict[str, Any]:
    """Size and check sum of a file, which is on the disk afterwards."""
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
        sum_ = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"bytes": file.stat().st_size, "sha256": sum_}


def _swap(beside: Path, path: Path, keep: Path | None) -> None:
    """Put a folder in the place of another, or of a file, which is never gone before the new one is there."""
    old = keep or path.with_name(f".{path.name}.old.tmp")
    if path.exists():
        _remove(old)
        path.rename(old)
    beside.rename(path)
    if keep is None:
        _remove(old)
    with suppress(OSError):  # some systems cannot sync a folder
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)


def _remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
    path.unlink(missing_ok=True)


def _manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] != 1:
            raise SamlitError(f"the checkpoint {path} is of a newer samlit (format {manifest['format']})")
        for name, facts in manifest["files"].items():
            if Path(name).name != name:
                raise ValueError(f"{name} is no file of the folder")
            facts["pieces"] = [_Piece(*piece) for piece in facts.get("pieces", ())]
    except FileNotFoundError:
        raise _Damaged(path, "its end") from None
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise _Damaged(path, f"{MANIFEST}: {one_line(error)}") from error
    found: dict[str, Any] = manifest
    return found


class _Damaged(SamlitError):
    def __init__(self, path: Path, where: str) -> None:
        super().__init__(f"the checkpoint {path} is damaged (at {where}): go on from another one")
        self.where = where


def _check(path: Path, manifest: dict[str, Any], names: list[str]) -> None:
    """Read files through once.

    Raises:
        SamlitError: One is not what was written.
    """
    for name in names:
        facts = manifest["files"][name]
        try:
            size = (path / name).stat().st_size
            if size != facts["bytes"]:
                raise _Damaged(path, f"{name}: {size} bytes instead of {facts['bytes']}")
            with (path / name).open("rb") as stream:
                if hashlib.file_digest(stream, "sha256").hexdigest() != facts["sha256"]:
                    raise _Damaged(path, name)
        except OSError as error:
            raise _Damaged(path, f"{name}: {one_line(error)}") from error


def _read(path: Path, manifest: dict[str, Any], place: Place) -> dict[str, Any]:
    """All tensors, or of each the rows that are wanted."""
    try:
        rest: dict[str, Any] = torch.load(path / REST, map_location="cpu", weights_only=True)
    except Exception as error:  # what damaged and foreign files make of torch's reader is endless
        raise _Damaged(path, f"{REST}: {one_line(error)[:160]}") from error
    by_tensor: dict[str, list[tuple[str, _Piece]]] = {}
    for name, facts in manifest["files"].items():
        for piece in facts["pieces"]:
            by_tensor.setdefault(piece.name, []).append((name, piece))
    with _Parts(path) as parts:
        for pieces in by_tensor.values():
            at, shape = pieces[0][1].at, pieces[0][1].shape
            like = place(tuple(at), shape, rest)
            start, stop = (0, shape[0]) if like is None else rows(like)
            found = [parts.rows(name, piece, start, stop) for name, piece in sorted(pieces, key=lambda p: p[1].first)]
            wanted = torch.cat(found) if len(found) > 1 else found[0]
            if len(wanted) != stop - start:
                raise _Damaged(path, f"{pieces[0][1].name}: rows are missing")
            inner: Any = rest
            for key in at[:-1]:
                inner = inner[key]
            inner[at[-1]] = wanted if like is None else placed(wanted, like)
    return rest


class _Parts:
    """The files of parts, each opened once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[str, Any] = {}

    def __enter__(self) -> _Parts:
        return self

    def __exit__(self, *error: object) -> None:
        self._open.clear()

    def rows(self, name: str, piece: _Piece, start: int, stop: int) -> Tensor:
        """Those of a piece that lie between two rows of its tensor."""
        try:
            if name not in self._open:
                self._open[name] = safe_open(self._folder / name, "pt")
            slices = self._open[name].get_slice(piece.name)
            first = min(max(start - piece.first, 0), piece.rows)
            last = min(max(stop - piece.first, first), piece.rows)
            found: Tensor = slices[first:last]
            return found
        except (SafetensorError, OSError) as error:
            raise _Damaged(self._folder, f"{name}: {one_line(error)}") from error


def _mapped(tree: Any, change: Callable[[At, Tensor], Any], at: At = ()) -> Any:
    """A tree of dicts and lists with every tensor changed; what is no dict, list or tensor is the same."""
    if isinstance(tree, Tensor):
        return change(at, tree)
    if isinstance(tree, dict):
        return {key: _mapped(value, change, (*at, key)) for key, value in tree.items()}
    if type(tree) is list:
        return [_mapped(value, change, (*at, number)) for number, value in enumerate(tree)]
    return tree


class _Failed(Exception):
    """What one rank could not do, on all of them."""


def _together(work: Callable[[], Any]) -> list[Any]:
    """What each rank's work returns.

    Raises:
        _Failed: On one of them it failed.
    """
    done, fault = None, ""
    try:
        done = work()
    except (SamlitError, OSError, RuntimeError, SafetensorError) as error:
        fault = one_line(error)
    outcomes: list[Any] = [(done, fault)]
    if dist.is_initialized() and dist.get_world_size() > 1:
        outcomes = [None] * dist.get_world_size()
        dist.all_gather_object(outcomes, (done, fault))
    if faults := list(dict.fromkeys(fault for _, fault in outcomes if fault)):
        raise _Failed("; ".join(faults))
    return [done for done, _ in outcomes]
