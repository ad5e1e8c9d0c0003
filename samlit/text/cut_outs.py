"""What CLIP sees in cut-outs of masks, made once by `samlit shards embed` and looked up by trainings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from samlit.errors import UsageError

__all__ = ["PLAN", "CutOuts"]

PLAN = "plan.json"


class CutOuts:
    """A folder of embeddings: V views of each mask, of which a training draws one whenever it asks about the mask.

    A shard is two arrays: NAME.npy, (M, V, D) float16, its masks in the order of their records, and NAME.rows.npy, the
    number of each record and its first mask, (R, 2) int64. They are mapped, so that processes share their memory.

    Args:
        folder: Of them.
        about: What they have to have been made with, in plain values.
    """

    def __init__(self, folder: str, about: dict[str, Any]) -> None:
        self.folder, self.about = folder, about

    def open(self) -> None:
        """Read what is there.

        Raises:
            UsageError: It is not there, or was made with something else.
        """
        self._maps  # noqa: B018 - read

    def of(self, keys: Sequence[str], numbers: Sequence[int], draw: Sequence[float]) -> Tensor:
        """One view of each of P masks, (P, D) float32.

        Args:
            keys: Of the images, `sa_NUMBER`.
            numbers: Of the masks in their records.
            draw: From 0 to below 1, which view.

        Raises:
            UsageError: There is none of a mask.
        """
        rows, maps = self._maps
        found = []
        for key, number, chance in zip(keys, numbers, draw, strict=True):
            which, first, count = rows.get(key, (0, 0, 0))
            if number >= count:
                raise UsageError(f"{self.folder} has nothing of mask {number} of {key}: `samlit shards embed` goes on")
            views = maps[which][first + number]
            found.append(np.asarray(views[int(chance * len(views))], np.float32))
        return torch.from_numpy(np.stack(found))

    @cached_property
    def _maps(self) -> tuple[dict[str, tuple[int, int, int]], list[npt.NDArray[np.float16]]]:
        """By key its array, its first mask and how many it has; and the arrays."""
        folder = Path(self.folder)
        try:
            plan = json.loads((folder / PLAN).read_text())
        except (OSError, ValueError) as error:
            raise UsageError(f"cut_outs: {self.folder} is not what `samlit shards embed` makes ({error})") from error
        for key, wanted in json.loads(json.dumps(self.about)).items():
            if plan.get(key) != wanted:
                raise UsageError(f"cut_outs: {self.folder} was made with {key} {plan.get(key)}, and this is {wanted}")
        rows: dict[str, tuple[int, int, int]] = {}
        maps: list[npt.NDArray[np.float16]] = []
        for file in sorted(folder.glob("*.rows.npy")):
            values = file.with_name(f"{file.name.removesuffix('.rows.npy')}.npy")
            if not values.exists():  # not finished
                continue
            maps.append(np.load(values, mmap_mode="r"))
            records = np.load(file)
            ends = [*records[1:, 1].tolist(), len(maps[-1])]
            for (image, first), end in zip(records.tolist(), ends, strict=True):
                rows[f"sa_{image}"] = len(maps) - 1, first, end - first
        if not maps:
            raise UsageError(f"cut_outs: {self.folder} has no finished shard; `samlit shards embed` goes on with it")
        return rows, maps

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "about": self.about}
