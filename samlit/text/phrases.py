"""Phrases and their embeddings: from a table that somebody computed, else from CLIP."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from samlit.errors import UsageError, did_you_mean, one_line
from samlit.text.clip import Clip, width_of

__all__ = ["Phrases"]


class Phrases:
    """Embeds phrases, and remembers which words an embedding is of.

    Args:
        clip: Embeds what is not in the table.
        embeddings: An .npy file, (n, D) of any float type and length.
        names: The phrase of each: lines of a text file, a JSON list of phrases, or of categories with a name, which
            COCO's files hold as `categories`.
    """

    def __init__(self, clip: Clip, embeddings: str | None = None, names: str | None = None) -> None:
        if (embeddings is None) != (names is None):
            raise ValueError("embeddings and names go together: what is embedded, and what it is called")
        self.clip, self.embeddings, self.names = clip, embeddings, names
        self._said: dict[bytes, str] = {}

    def start(self) -> None:
        """Find what phrases or cut-outs are embedded with.

        Raises:
            UsageError: It is not there.
        """
        if self.embeddings is None or self.clip.weights is not None:
            self.clip.text(["anything"])
        if self.embeddings is not None:
            self._table  # noqa: B018 - read

    def embed(self, phrases: Sequence[str], device: torch.device | str = "cpu") -> Tensor:
        """(n, D) float32, of length 1.

        Raises:
            ValueError: A phrase is empty, too long, or not in the table where there is nothing else.
            UsageError: Files or weights are not to be had.
        """
        table, phrases = self._table, list(map(_plain, phrases))
        new = [phrase for phrase in phrases if phrase not in table]
        if new and self.clip.weights is None:
            if not new[0].strip():
                raise ValueError("a text prompt says what is wanted; this one is empty")
            raise ValueError(
                f"there is no embedding of {new[0]!r} in {self.embeddings}{did_you_mean(new[0], table)}, and no CLIP "
                "with weights to make one"
            )
        made = dict(zip(new, self.clip.text(new), strict=True)) if new else {}
        found = [table[phrase] if phrase in table else made[phrase] for phrase in phrases]
        for phrase, value in zip(phrases, found, strict=True):
            self._said[value.numpy().tobytes()] = phrase
        return torch.stack(found).to(device) if found else torch.zeros(0, width_of(self.clip.model), device=device)

    def said(self, value: Tensor) -> str:
        """The phrase that an embedding (D,) is of, as far as it was embedded here."""
        return self._said.get(value.detach().float().cpu().contiguous().numpy().tobytes(), "text")

    @cached_property
    def _table(self) -> dict[str, Tensor]:
        if self.embeddings is None or self.names is None:
            return {}
        try:
            values = np.load(self.embeddings, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise UsageError(f"text: {self.embeddings} cannot be read ({one_line(error)})") from error
        names, width = _names(Path(self.names)), width_of(self.clip.model)
        if values.ndim != 2 or values.shape[1] != width:
            raise UsageError(
                f"text: {self.embeddings} holds embeddings of the shape {values.shape}; the CLIP of this model has "
                f"{width} numbers each"
            )
        if len(values) != len(names):
            raise UsageError(
                f"text: {self.embeddings} holds {len(values)} embeddings, and {self.names} {len(names)} names"
            )
        tensor = F.normalize(torch.from_numpy(values.astype(np.float32)), dim=1)
        return dict(zip(map(_plain, names), tensor.unbind(), strict=True))


def _plain(phrase: str) -> str:
    """LVIS writes "paper_plate" where a person says "paper plate"."""
    return phrase.replace("_", " ")


def _names(file: Path) -> list[str]:
    try:
        text = file.read_text(encoding="utf-8")
        if file.suffix != ".json":
            return [line.strip() for line in text.splitlines() if line.strip()]
        told = json.loads(text)
        told = told["categories"] if isinstance(told, dict) else told
        if told and isinstance(told[0], dict):
            told = [row["name"] for row in sorted(told, key=lambda row: row["id"])]
        if not all(isinstance(name, str) for name in told):
            raise ValueError("a list of phrases or of categories with id and name is wanted")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"text: the names in {file} cannot be read ({one_line(error)})") from error
    return list(told)
