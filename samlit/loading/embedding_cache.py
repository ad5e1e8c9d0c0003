"""Embeddings of a source's images, made once by a frozen encoder and read at every step that needs them.

A file holds one image's, of half precision, and is named by what the image shows. So a cache may serve several sources,
another order of theirs, and more than one run at a time; an image that is replaced is embedded again. A folder of it
belongs to one encoder with its weights, one size of the frame and one precision.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save
from torch.distributed.tensor import DTensor

from samlit import atomic
from samlit.embeddings import fingerprint
from samlit.errors import SamlitError, UsageError, one_line
from samlit.faults import Damaged
from samlit.loading import frames
from samlit.loading.frames import Framed
from samlit.loading.images import Encoded
from samlit.model import Sam
from samlit.shell import terminal
from samlit.source import Sample, Source
from samlit.structures import Embedding
from samlit.training.freezing import frozen

__all__ = ["Embeddings", "keep"]

KEY = "data.embeddings"


@dataclass(frozen=True)
class Embeddings:
    """Where the embeddings of a source's images are.

    Attributes:
        folder: Of the cache, for one encoder and frame.
        names: (samples, 16) uint8, what each sample's image shows; zeros where it cannot be used.
    """

    folder: Path
    names: npt.NDArray[np.uint8]

    def path(self, number: int, mirrored: bool) -> Path:
        """The file of a sample."""
        name: str = self.names[number].tobytes().hex()
        return self.folder / name[:2] / f"{name}{'.mirrored' if mirrored else ''}.safetensors"

    def read(self, number: int, mirrored: bool = False) -> tuple[npt.NDArray[np.floating], ...]:
        """A sample's embedding: (C, h, w), and the finer maps.

        Raises:
            Damaged: There is none, for its image could not be used, or its file is damaged.
        """
        if not self.names[number].any():
            raise Damaged("image", "its image could not be embedded")
        path = self.path(number, mirrored)
        try:
            maps = load_file(path)
        except FileNotFoundError:
            raise Damaged("image", f"its embedding {path} is gone: start again, and it is made again") from None
        except (OSError, SafetensorError) as error:
            raise Damaged("image", f"its embedding {path} is damaged: delete it ({one_line(error)})") from None
        return tuple(maps[name] for name in sorted(maps, key=int))


class _Wanted(NamedTuple):
    """An embedding that is not there yet: of which sample, and of its mirror image?"""

    number: int
    mirrored: bool


def keep(
    net: Sam,
    source: Source,
    folder: str | Path,
    side: int,
    mirrored: bool = False,
    numbers: Sequence[int] | None = None,
    batch_size: int = 1,
    rank: int = 0,
    world: int = 1,
    precision: str = "32-true",
    context: Callable[[], AbstractContextManager[object]] = nullcontext,
    progress: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> Embeddings:
    """Embed what is not in the cache yet; what is there stays, so that a run that was ended goes on.

    Args:
        net: Its encoder is frozen.
        source: Whose images are embedded; prepared.
        folder: Of the cache.
        side: Of the frame, pixels.
        mirrored: Whether the mirror images are wanted too.
        numbers: Of the samples that are wanted; all if not given.
        batch_size: Images that are embedded at a time.
        rank: Of this process, which embeds its share.
        world: How many processes; each must have returned before one reads.
        precision: What the encoder computes in, a word.
        context: In which it computes.
        progress: Told (done, total, what is being done).

    Raises:
        UsageError: The encoder is trained, or sharded over devices.
        SamlitError: There is no room, or the folder cannot be written to.
    """
    if not frozen(net.encoder):
        raise UsageError(
            f"{KEY}: embeddings are kept of an encoder that stays as it is: add --model.freeze '[encoder]', or leave "
            "embeddings out"
        )
    if any(isinstance(parameter, DTensor) for parameter in net.encoder.parameters()):
        raise UsageError(f"{KEY}: the encoder is sharded over devices; give each all of it: --trainer.strategy ddp")
    place = Path(folder).expanduser() / f"{fingerprint(net.encoder)[:16]}-{side}-{precision}"
    kept = Embeddings(place, np.zeros((len(source), 16), np.uint8))
    wanted: dict[Path, _Wanted] = {}  # an image that is there twice is wanted once
    numbers = range(len(source)) if numbers is None else numbers
    for done, number in enumerate(numbers):
        progress(done, len(numbers), "looking for kept embeddings")
        if (sample := _sample(source, number)) is not None:
            kept.names[number] = _name(sample)
            if done % world == rank:
                for turned in (False, True)[: 1 + mirrored]:
                    wanted.setdefault(kept.path(number, turned), _Wanted(number, turned))
    progress(len(numbers), len(numbers), "looking for kept embeddings")
    missing = {path: want for path, want in wanted.items() if not path.exists()}
    if missing:
        try:
            _fill(net, source, kept, missing, side, batch_size, rank, world, context, progress)
        except OSError as error:
            raise SamlitError(f"{KEY}: {folder} cannot be written to: {one_line(error)}") from error
    return kept


def _fill(
    net: Sam,
    source: Source,
    kept: Embeddings,
    missing: dict[Path, _Wanted],
    side: int,
    batch_size: int,
    rank: int,
    world: int,
    context: Callable[[], AbstractContextManager[object]],
    progress: Callable[[int, int, str], None],
) -> None:
    """Embed the missing ones and write their files."""
    device, was_training = net.pixel_mean.device, net.training
    net.eval()
    done, told = 0, False
    try:
        for batch in _framed(source, list(missing.values()), side, batch_size):
            good = [(want, framed) for want, framed in batch if framed is not None]
            if good:
                packed = frames.pack([framed for _, framed in good]).to(device)
                with torch.inference_mode(), context():
                    embedding = net.embed(packed.image, packed.sizes)
                files = _files(embedding)
                if not told:
                    _tell(kept.folder, len(files[0]) * len(missing), len(missing), rank, world)
                    told = True
                for (want, _), data in zip(good, files, strict=True):
                    atomic.write(kept.path(*want), data)
            for want, framed in batch:
                if framed is None:
                    kept.names[want.number] = 0
            done += len(batch)
            progress(done, len(missing), "embedding images")
    finally:
        net.train(was_training)


def _framed(
    source: Source, wanted: Sequence[_Wanted], side: int, batch_size: int
) -> Iterator[list[tuple[_Wanted, Framed | None]]]:
    """Batches in the frame, each made while the one before is embedded; None where an image cannot be decoded."""

    def made(want: _Wanted) -> Framed | None:
        sample = _sample(source, want.number)
        try:
            if sample is None:
                return None
            return replace(frames.frame(Sample(sample.key, sample.image, ()), side), mirrored=want.mirrored)
        except Damaged:
            return None

    def batch(first: int) -> list[tuple[_Wanted, Framed | None]]:
        return [(want, made(want)) for want in wanted[first : first + batch_size]]

    with ThreadPoolExecutor(1) as thread:  # a source need not bear more than one reader
        coming = thread.submit(batch, 0)
        for first in range(batch_size, len(wanted) + batch_size, batch_size):
            here, coming = coming.result(), thread.submit(batch, first)
            yield here


def _sample(source: Source, number: int) -> Sample | None:
    """A sample; None where it is damaged: the loader will say so."""
    try:
        return source[number]
    except (OSError, ValueError):
        return None


def _name(sample: Sample) -> npt.NDArray[np.uint8]:
    """16 bytes by which an image is known."""
    digest = hashlib.blake2b(str(sample.size).encode(), digest_size=16)
    image = sample.image
    digest.update(image.data if isinstance(image, Encoded) else np.ascontiguousarray(image).data)
    return np.frombuffer(digest.digest(), np.uint8)


def _files(embedding: Embedding) -> list[bytes]:
    """What the files of B images hold: half precision, where its range is wide enough."""
    maps = [map_.float().cpu() for map_ in (embedding.image, *embedding.early)]
    halves = [map_.half() if map_.abs().max() < 6e4 else map_ for map_ in maps]
    # Contiguous, for the writer takes bytes as they lie.
    arrays = [np.ascontiguousarray(map_.numpy()) for map_ in halves]
    return [save({str(number): map_[i] for number, map_ in enumerate(arrays)}) for i in range(len(embedding.image))]


def _tell(folder: Path, needed: int, count: int, rank: int, world: int) -> None:
    """Say what room the embeddings need, before any is taken.

    Raises:
        SamlitError: It is more than there is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    needed, free = needed * world, shutil.disk_usage(folder).free
    if needed > free:
        raise SamlitError(
            f"{KEY}: {count * world:,} embeddings need {needed / 1e9:.1f} GB, and {folder} has room for "
            f"{free / 1e9:.1f} GB: name a folder on another disk, or leave embeddings out"
        )
    if rank == 0:
        terminal.tell(f"{count * world:,} embeddings, {needed / 1e9:.2f} GB, into {folder}")
