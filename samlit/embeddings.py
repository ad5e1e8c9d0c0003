"""Embedded images on their own: kept in a file, and refused where they do not belong."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from samlit import atomic
from samlit.errors import one_line
from samlit.structures import Embedding

__all__ = ["Embedded", "fingerprint"]

FORMAT = "samlit embedding 1"


@dataclass(frozen=True)
class Embedded:
    """B images as an encoder sees them: all that is needed to answer prompts about them, without their pixels.

    Attributes:
        embedding: Of the B images.
        sizes: B times rows and columns of the frame that hold picture.
        originals: B times rows and columns of the picture before it was resized.
        image_size: Side of the frame.
        weights: Fingerprint of the encoder that embedded them; another's prompts mean nothing to them.
    """

    embedding: Embedding
    sizes: tuple[tuple[int, int], ...]
    originals: tuple[tuple[int, int], ...]
    image_size: int
    weights: str

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, which: slice) -> Embedded:
        """Some of the images."""
        image, early = self.embedding
        some = Embedding(image[which], tuple(map_[which] for map_ in early))
        return Embedded(some, self.sizes[which], self.originals[which], self.image_size, self.weights)

    def save(self, path: str | Path) -> None:
        """Write a file, whole or not at all."""
        image, early = self.embedding
        with atomic.writing(Path(path)) as stream:
            torch.save(
                {
                    "format": FORMAT,
                    # Cloned, for a view would drag along all of the tensor that it looks into.
                    "image": image.detach().cpu().clone(),
                    "early": [map_.detach().cpu().clone() for map_ in early],
                    "sizes": torch.tensor(self.sizes),
                    "originals": torch.tensor(self.originals),
                    "image_size": self.image_size,
                    "weights": self.weights,
                },
                stream,
            )

    @classmethod
    def load(cls, path: str | Path) -> Embedded:
        """Read a file that `save` wrote; nothing but tensors and plain values is unpickled.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is no such file, or is damaged.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"{path}: there is no such file; `predictor.embedding.save` writes one")
        try:
            kept: Any = torch.load(path, map_location="cpu", weights_only=True)
            if kept["format"] != FORMAT:
                raise ValueError(f"its format is {kept['format']!r}, not {FORMAT!r}")
            sizes, originals = (
                tuple((int(rows), int(columns)) for rows, columns in kept[name].tolist())
                for name in ("sizes", "originals")
            )
            embedding = Embedding(kept["image"], tuple(kept["early"]))
            if {len(sizes), len(originals), *(len(map_) for map_ in (embedding.image, *embedding.early))} != {
                len(sizes)
            }:
                raise ValueError("its parts are of different numbers of images")
            return cls(embedding, sizes, originals, int(kept["image_size"]), str(kept["weights"]))
        except OSError:
            raise
        except Exception as error:  # what damaged and foreign files make of torch's reader is endless
            raise ValueError(f"{path}: is no embedding that samlit wrote, or is damaged ({one_line(error)})") from error


def fingerprint(module: nn.Module) -> str:
    """A word that tells what a module computes, and with which weights, from any others: 32 hexadecimal digits."""
    # Of the class that computes: a size with a name of its own is the same encoder.
    kind = next(kind for kind in type(module).__mro__ if "forward" in vars(kind))
    digest = hashlib.blake2b(f"{kind.__module__}.{kind.__qualname__}".encode(), digest_size=16)
    for name, value in module.state_dict().items():
        digest.update(f"\n{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
