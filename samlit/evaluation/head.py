"""A head that names masks: a linear classifier of the image embedding's mean inside of each (SAM_SPEC 5.5).

`samlit head` trains one on any data that names its masks; the tasks that want names take its file.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from samlit import atomic
from samlit.errors import one_line

__all__ = ["Head", "features", "fit"]

AT_ONCE = 64
"""Masks that are held in the frame at once."""


class Head(NamedTuple):
    """What a mask is called, by what the encoder makes of it.

    Attributes:
        names: N names.
        weight: (N, C).
        bias: (N,).
    """

    names: tuple[str, ...]
    weight: Tensor
    bias: Tensor

    def scores(self, means: Tensor) -> Tensor:
        """(K, C) to (K, N), of which the highest is the name."""
        return F.linear(means, self.weight.to(means.device), self.bias.to(means.device))

    def save(self, path: Path) -> None:
        """Write it to a file."""
        from safetensors.torch import save

        told = {"format": "pt", "names": json.dumps(self.names)}
        atomic.write(path, save({"weight": self.weight, "bias": self.bias}, told))

    @classmethod
    def load(cls, path: str) -> Head:
        """Read one.

        Raises:
            ValueError: The file is none; one line.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as file:
                names = json.loads((file.metadata() or {})["names"])
                return cls(tuple(names), file.get_tensor("weight"), file.get_tensor("bias"))
        except FileNotFoundError:
            raise ValueError(f"{path}: there is no such file; `samlit head` writes one") from None
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise ValueError(f"{path}: is no head, as `samlit head` writes one ({one_line(error)})") from error


def features(embedding: Tensor, masks: Tensor, image_index: Tensor) -> Tensor:
    """The mean of the image embedding inside of each mask.

    Args:
        embedding: (B, C, h, w).
        masks: (K, H, W) bool, in the frame; a cell counts by the share of it that is in the mask.
        image_index: (K,).

    Returns:
        (K, C); zeros where a mask has no pixel.
    """
    means = [embedding.new_zeros(0, embedding.shape[1], dtype=torch.float32)]
    for at in range(0, len(masks), AT_ONCE):
        some, index = masks[at : at + AT_ONCE], image_index[at : at + AT_ONCE]
        share = F.interpolate(some[:, None].float(), embedding.shape[-2:], mode="area").flatten(1)
        for image, mine in zip(index.tolist(), share, strict=True):
            means.append((embedding[image].float().flatten(1) @ mine / mine.sum().clamp_min(1e-6))[None])
    return torch.cat(means)


def fit(means: Tensor, names: Sequence[str], decay: float = 1e-3, steps: int = 200) -> Head:
    """The head that tells names apart best, by multinomial logistic regression.

    Args:
        means: (K, C), as of `features`.
        names: K names.
        decay: What weights cost; means are brought to a deviation of 1 first.
        steps: Of L-BFGS at most.
    """
    known = tuple(dict.fromkeys(sorted(names)))
    target = torch.tensor([known.index(name) for name in names], device=means.device)
    middle, deviation = means.mean(0), means.std(0, correction=0).clamp_min(1e-6)
    scaled = (means - middle) / deviation
    weight = torch.zeros(len(known), means.shape[1], device=means.device, requires_grad=True)
    bias = torch.zeros(len(known), device=means.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=steps, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(F.linear(scaled, weight, bias), target) + decay * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[no-untyped-call]
    own = weight.detach() / deviation
    return Head(known, own.cpu().contiguous(), (bias.detach() - own @ middle).cpu())
