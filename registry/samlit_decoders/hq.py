"""The mask decoder of SAM-HQ (arXiv 2306.01567): one more token, which sees early features of the encoder.

Parameter names are the released ones.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from samlit.layers import MLP, LayerNorm2d
from samlit.structures import Embedding
from samlit_decoders._two_way import parts
from samlit_decoders.mask import Mask, in_place, pick

__all__ = ["Hq"]


class Hq(Mask):
    """SAM-HQ's mask decoder: a high-quality token corrects SAM's masks with early features.

    The encoder must emit an early map of its grid's own size, such as vit with `early: [first global block]`.

    Args:
        channels: Width C of the embedding.
        depth: Two-way blocks.
        heads: Attention heads.
        mlp_dim: Hidden width of a block's MLP on the tokens.
        multimask_outputs: Masks for an ambiguous prompt.
        iou_hidden: Hidden width of the IoU head.
        early_channels: Width of the early map: 768 of ViT-B, 1024 of ViT-L, 1280 of ViT-H.
        freeze: Whether SAM's own decoder stays as it is, and the high-quality mask learns alone, as in the paper.
            Prompts and encoder have freezes of their own.
        alone: Whether the high-quality mask answers alone, and not added to each of SAM's.
    """

    def __init__(
        self,
        channels: int = 256,
        depth: int = 2,
        heads: int = 8,
        mlp_dim: int = 2048,
        multimask_outputs: int = 3,
        iou_hidden: int = 256,
        early_channels: int = 1024,
        freeze: bool = False,
        alone: bool = False,
    ) -> None:
        super().__init__(channels, depth, heads, mlp_dim, multimask_outputs, iou_hidden)
        self.freeze, self.alone = freeze, alone
        if freeze:
            self.requires_grad_(False)
        self.hf_token = nn.Embedding(1, channels)
        self.hf_mlp = MLP(channels, channels, channels, channels // 8)
        self.compress_vit_feat = _finer(early_channels, channels, channels // 8)
        self.embedding_encoder = _finer(channels, channels // 4, channels // 8)
        self.embedding_maskfeature = nn.Sequential(
            nn.Conv2d(channels // 8, channels // 4, 3, 1, 1),
            LayerNorm2d(channels // 4),
            nn.GELU(),
            nn.Conv2d(channels // 4, channels // 8, 3, 1, 1),
        )

    def _wanted(self, which: slice) -> int:
        return len(self._tokens())  # its own is the last

    def _tokens(self) -> Tensor:
        return torch.cat([super()._tokens(), self.hf_token.weight])

    def _draw(self, embedding: Embedding, about: slice | Tensor, tokens: Tensor, cells: Tensor, which: slice) -> Tensor:
        rows = parts(cells.shape[1], 2 * len(cells) * cells.shape[2], cells.device)
        upscaled = torch.cat([self._upscale(cells[:, some]).flatten(1, 3) for some in rows], 1)
        h = embedding.image.shape[-2]
        finest = self.embedding_maskfeature(in_place(upscaled, h)) + pick(self._features(embedding), about)
        kernel = self.hf_mlp(tokens[:, 1 + self.mask_tokens.num_embeddings])
        found = torch.unflatten(kernel[:, None] @ finest.flatten(2), 2, finest.shape[-2:])  # (n, 1, 4h, 4w)
        kernels = self._kernels(tokens, which)
        if self.alone or (self.training and self.freeze):
            return found.expand(-1, kernels.shape[1], -1, -1)
        return in_place(upscaled @ kernels.transpose(1, 2), h) + found

    def _features(self, embedding: Embedding) -> Tensor:
        """What is seen early and last, of images: (B, C/8, 4h, 4w)."""
        grid, width = embedding.image.shape[-2:], self.compress_vit_feat[0].in_channels
        early = next((x for x in embedding.early if x.shape[1] == width and x.shape[-2:] == grid), None)
        if early is None:
            raise ValueError(
                f"hq needs an encoder with an early map of its grid's own size and {width} channels, such as vit with "
                "`early` and this decoder's `early_channels` its width"
            )

        def make() -> Tensor:
            features: Tensor = self.embedding_encoder(embedding.image) + self.compress_vit_feat(early)
            return features

        weights = (*self.embedding_encoder.parameters(), *self.compress_vit_feat.parameters())
        return embedding.kept.get("hq.features", (embedding.image, early, *weights), make)


def _finer(channels: int, hidden: int, out: int) -> nn.Sequential:
    """(B, channels, h, w) to (B, out, 4h, 4w)."""
    return nn.Sequential(
        nn.ConvTranspose2d(channels, hidden, 2, 2),
        LayerNorm2d(hidden),
        nn.GELU(),
        nn.ConvTranspose2d(hidden, out, 2, 2),
    )
