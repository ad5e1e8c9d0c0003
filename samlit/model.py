"""The promptable model: one encoder, any prompt types, one decoder; the kernel's part of SAM."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from samlit.contracts import Decoder, Dense, Encoder, Factored, Frame, Prompt, Sparse
from samlit.layers import PositionCode
from samlit.structures import Embedding, Prediction, PromptSet, Ragged

__all__ = ["PIXEL_MEAN", "PIXEL_STD", "Sam"]

PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)


class Sam(nn.Module):
    """Encodes images once and answers any number of prompts about them.

    Owns what SAM's prompts share (SAM_SPEC 1.4): the position code, the assembly of tokens with the padding token, and
    the rule of one prompt, three masks.

    Args:
        encoder: Images to embeddings.
        prompts: Built with the embedding's width; order is the order of their tokens.
        decoder: Built with the embedding's width.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self, encoder: Encoder, prompts: Sequence[Callable[[int], Prompt]], decoder: Callable[[int], Decoder]
    ) -> None:
        super().__init__()
        self.encoder = encoder
        built = [build(encoder.channels) for build in prompts]
        self.prompts = nn.ModuleDict({prompt.name: prompt for prompt in built})
        if not built or len(self.prompts) != len(built):
            names = ", ".join(prompt.name for prompt in built) or "none"
            raise ValueError(f"a model needs prompt types, each once; it was given: {names}")
        self.decoder = decoder(encoder.channels)
        self.position = PositionCode(encoder.channels)
        # Not persistent: the released checkpoints do not hold them (SAM_SPEC 0.6).
        self.register_buffer("pixel_mean", torch.tensor(PIXEL_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(PIXEL_STD).view(3, 1, 1), persistent=False)

    @property
    def prompt_types(self) -> dict[str, Prompt]:
        """The prompt types by name."""
        return {name: prompt for name, prompt in self.prompts.items() if isinstance(prompt, Prompt)}

    def forward(self, image: Tensor, sizes: Tensor, prompts: PromptSet) -> Prediction:
        """Embed and answer: (B, 3, H, W) uint8, (B, 2) int64, P prompts."""
        return self.answer(self.embed(image, sizes), prompts, (image.shape[-2], image.shape[-1]))

    def embed(self, image: Tensor, sizes: Tensor) -> Embedding:
        """Embed images: (B, 3, H, W) uint8 RGB in the frame, (B, 2) int64 rows and columns that hold picture."""
        h, w = image.shape[-2:]
        x = (image.float() - self.pixel_mean) / self.pixel_std
        rows = torch.arange(h, device=image.device) < sizes[:, :1]
        columns = torch.arange(w, device=image.device) < sizes[:, 1:]
        # Zero after normalising, as SAM pads (SAM_SPEC 1.7).
        embedding: Embedding = self.encoder(x * (rows[:, None, :, None] & columns[:, None, None, :]))
        return embedding

    def answer(self, embedding: Embedding, prompts: PromptSet, size: tuple[int, int]) -> Prediction:
        """Answer P prompts about embedded images; `size` is the frame's rows and columns."""
        grid = (embedding.image.shape[-2], embedding.image.shape[-1])
        sparse, dense = self._encode(prompts, Frame(size, grid, self.position))
        some = {} if prompts.min_iou is None or not self.decoder.quality_first else {"min_iou": prompts.min_iou}
        logits, iou = self.decoder(
            embedding, self.position.grid(grid), prompts.image_index, sparse, dense, prompts.multimask, **some
        )
        if prompts.multimask is None:
            ambiguous = self._count(prompts) <= 1
            first = torch.arange(iou.shape[1], device=iou.device) == 0
            allowed = first[None, :] != ambiguous[:, None]
        else:
            allowed = torch.ones_like(iou, dtype=torch.bool)
        return Prediction(logits, iou, allowed, size)

    def _count(self, prompts: PromptSet) -> Tensor:
        """(P,) int64, how many prompts each row is."""
        count = torch.zeros_like(prompts.image_index)
        for name, given in prompts.given.items():
            count = count + self.prompt_types[name].count(given)
        return count

    def _encode(self, prompts: PromptSet, frame: Frame) -> tuple[Sparse, Tensor | Factored | None]:
        """Tokens (P, N, C), and the map to add to the embedding, (P, C, h, w) or (1, C, 1, 1)."""
        if unknown := prompts.given.keys() - self.prompts.keys():
            raise ValueError(
                f"this model takes the prompts {', '.join(self.prompts)}; it was given {', '.join(sorted(unknown))}"
            )
        rows, device = len(prompts), prompts.image_index.device
        bounded = torch.zeros(rows, dtype=torch.bool, device=device)
        for name, given in prompts.given.items():
            if self.prompt_types[name].padding == "replaces":
                bounded = bounded | given.valid.any(1)
        tokens, valid = [], []
        maps: list[Tensor | Factored] = []
        for name, prompt in self.prompt_types.items():
            missing = prompt.missing()
            if name not in prompts.given:
                if missing is not None:
                    maps.append(missing[None, :, None, None])
                continue
            encoded = prompt.encode(_clean(prompts.given[name]), frame)
            if isinstance(encoded, Dense | Factored):
                maps.append(_everywhere(encoded, missing))
                continue
            tokens.append(encoded.tokens)
            valid.append(encoded.valid)
            padding = prompt.padding_token()
            if prompt.padding == "needs" and padding is not None:
                tokens.append(padding.expand(rows, 1, -1))
                valid.append((encoded.valid.any(1) & ~bounded)[:, None])
        dense = _sum(maps, self.decoder.factored)
        if not tokens:
            none = torch.zeros(rows, 0, self.encoder.channels, device=device)
            return Sparse(none, none.new_zeros(rows, 0, dtype=torch.bool)), dense
        dtype = tokens[0].dtype
        return Sparse(torch.cat([t.to(dtype) for t in tokens], 1), torch.cat(valid, 1)), dense


def _clean(given: Ragged) -> Ragged:
    """The same with zeros where nothing is given: what stands there, even if no number, must not reach a gradient."""
    valid = given.valid.view(*given.valid.shape, *(1,) * (given.values.ndim - 2))
    return Ragged(given.values.where(valid, 0), given.valid)


def _all(valid: Tensor) -> bool:
    """Whether all rows have one, where that is known without waiting for a device."""
    return valid.device.type == "cpu" and not torch.compiler.is_compiling() and bool(valid.all())


def _everywhere(encoded: Dense | Factored, missing: Tensor | None) -> Tensor | Factored:
    """What to add in each row, also in those that have none."""
    if _all(encoded.valid):
        return encoded.map if isinstance(encoded, Dense) else encoded
    dense = encoded if isinstance(encoded, Dense) else encoded.dense()
    otherwise = 0.0 if missing is None else missing[None, :, None, None]
    return torch.where(dense.valid[:, None, None, None], dense.map, otherwise)


def _sum(maps: list[Tensor | Factored], factored: bool) -> Tensor | Factored | None:
    """All that is to be added; a single one as it is, if it may be."""
    if factored and len(maps) == 1:
        return maps[0]
    plain = [x.dense().map if isinstance(x, Factored) else x for x in maps]
    return functools.reduce(operator.add, plain) if plain else None
