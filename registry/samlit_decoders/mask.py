"""The two-way mask decoder with dynamic mask heads.

Paper section 3 and appendix A; SAM_SPEC 1.5. Parameter names are the released ones.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samlit.contracts import Decoder, Sparse
from samlit.layers import MLP, LayerNorm2d
from samlit.structures import Embedding

__all__ = ["Mask"]


class Mask(Decoder):
    """SAM's mask decoder: two-way attention, three masks or one, predicted IoU.

    Args:
        channels: Width C of the embedding.
        depth: Two-way blocks.
        heads: Attention heads.
        mlp_dim: Hidden width of a block's MLP on the tokens.
        multimask_outputs: Masks for an ambiguous prompt.
        iou_hidden: Hidden width of the IoU head.
        high_res: Whether the encoder's finer maps are added while masks are drawn, as in SAM 2: sharper edges. The
            encoder must have them.
    """

    def __init__(
        self,
        channels: int = 256,
        depth: int = 2,
        heads: int = 8,
        mlp_dim: int = 2048,
        multimask_outputs: int = 3,
        iou_hidden: int = 256,
        high_res: bool = False,
    ) -> None:
        super().__init__()
        if channels % 8 or (channels // 2) % heads:
            raise ValueError(f"channels {channels} must be a multiple of 8 and of twice the number of heads, {heads}")
        self.high_res = high_res
        outputs = multimask_outputs + 1
        self.transformer = _TwoWay(channels, depth, heads, mlp_dim)
        self.iou_token = nn.Embedding(1, channels)
        self.mask_tokens = nn.Embedding(outputs, channels)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(channels, channels // 4, 2, 2),
            LayerNorm2d(channels // 4),
            nn.GELU(),
            nn.ConvTranspose2d(channels // 4, channels // 8, 2, 2),
            nn.GELU(),
        )
        self.output_hypernetworks_mlps = nn.ModuleList(
            MLP(channels, channels, channels, channels // 8) for _ in range(outputs)
        )
        self.iou_prediction_head = MLP(channels, iou_hidden, iou_hidden, outputs)

    def forward(
        self,
        embedding: Embedding,
        position: Tensor,
        image_index: Tensor,
        sparse: Sparse,
        dense: Tensor | None,
        multimask: bool | None,
    ) -> tuple[Tensor, Tensor]:
        """Answer P prompts; shapes as in the contract."""
        rows, outputs = len(image_index), self.mask_tokens.num_embeddings
        h, w = embedding.image.shape[-2:]
        own = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        tokens = torch.cat([own.expand(rows, -1, -1), sparse.tokens], 1)
        valid = F.pad(sparse.valid, (len(own), 0), value=True)
        # Channels last from here to the logits: what follows is linear maps of cells.
        image = _cells(embedding.image)[image_index]
        if dense is not None:
            image = image + _cells(dense)
        tokens, image = self.transformer(tokens, valid, image, position.flatten(1).t())
        which = slice(1, None) if multimask else slice(0, 1) if multimask is False else slice(None)
        heads = list(self.output_hypernetworks_mlps)
        kernels = torch.stack([heads[i](tokens[:, 1 + i]) for i in range(outputs)[which]], 1)
        logits = self._draw(image, kernels, h, w, self._details(embedding, image_index))
        iou: Tensor = self.iou_prediction_head(tokens[:, 0])
        return logits, iou[:, which]

    def _details(self, embedding: Embedding, image_index: Tensor) -> tuple[Tensor | float, Tensor | float]:
        """What is added to halves of cells, (P, hw, 4, C/4), and to quarters, (P, hw, 4, 4, C/8)."""
        if not self.high_res:
            return 0.0, 0.0
        if len(embedding.early) != 2:
            raise ValueError("high_res needs an encoder with finer maps, such as vit with its conv stem")
        quarters, halves = embedding.early
        b, h, w = len(halves), *embedding.image.shape[-2:]
        halves = halves.reshape(b, -1, h, 2, w, 2).permute(0, 2, 4, 3, 5, 1).reshape(b, h * w, 4, -1)
        quarters = quarters.reshape(b, -1, h, 2, 2, w, 2, 2).permute(0, 2, 5, 3, 6, 4, 7, 1)
        return halves[image_index], quarters.reshape(b, h * w, 4, 4, -1)[image_index]

    def _draw(
        self, image: Tensor, kernels: Tensor, h: int, w: int, details: tuple[Tensor | float, Tensor | float]
    ) -> Tensor:
        """Upscale (P, hw, C) four times and take the product with (P, M, C/8): (P, M, 4h, 4w).

        A transposed convolution of kernel and stride 2 is a linear map of each cell to its four quarters, so that
        channels stay last and only the finished logits are put in place.
        """
        first, norm, _, second, _ = self.output_upscaling
        assert isinstance(first, nn.ConvTranspose2d)
        assert isinstance(second, nn.ConvTranspose2d)
        assert isinstance(norm, LayerNorm2d)
        x = _quarters(image, first) + details[0]  # (P, hw, 4, C/4)
        x = F.gelu(F.layer_norm(x, norm.weight.shape, norm.weight, norm.bias, norm.eps))
        x = F.gelu(_quarters(x, second) + details[1])  # (P, hw, 4, 4, C/8)
        x = x.flatten(1, 3) @ kernels.transpose(1, 2)  # (P, hw * 16, M)
        x = x.view(-1, h, w, 2, 2, 2, 2, kernels.shape[1])  # cell row, column, then half and quarter, row and column
        return x.permute(0, 7, 1, 3, 5, 2, 4, 6).reshape(-1, kernels.shape[1], 4 * h, 4 * w)


def _cells(image: Tensor) -> Tensor:
    """(P, C, h, w) to (P, hw, C), contiguous."""
    return image.flatten(2).transpose(1, 2).contiguous()


def _quarters(x: Tensor, up: nn.ConvTranspose2d) -> Tensor:
    """(..., C) to (..., 4, c): rows first, then columns."""
    assert up.bias is not None
    weight = up.weight.permute(2, 3, 1, 0).flatten(0, 2)  # (4 c, C)
    return F.linear(x, weight, up.bias.repeat(4)).view(*x.shape[:-1], 4, len(up.bias))


class _TwoWay(nn.Module):
    """Tokens and image attend to each other."""

    def __init__(self, channels: int, depth: int, heads: int, mlp_dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Block(channels, heads, mlp_dim, first=i == 0) for i in range(depth))
        self.final_attn_token_to_image = _Attention(channels, channels // 2, heads)
        self.norm_final_attn = nn.LayerNorm(channels)

    def forward(self, tokens: Tensor, valid: Tensor, image: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (P, T, C), valid (P, T), image (P, hw, C), position (hw, C)."""
        code = tokens  # the tokens as they came in are their own position code
        for layer in self.layers:
            tokens, image = layer(tokens, code, valid, image, position)
        tokens = tokens + self.final_attn_token_to_image(tokens + code, image + position, image)
        return self.norm_final_attn(tokens), image


class _Block(nn.Module):
    def __init__(self, channels: int, heads: int, mlp_dim: int, first: bool) -> None:
        super().__init__()
        self.first = first
        self.self_attn = _Attention(channels, channels, heads)
        self.norm1 = nn.LayerNorm(channels)
        self.cross_attn_token_to_image = _Attention(channels, channels // 2, heads)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = _FeedForward(channels, mlp_dim)
        self.norm3 = nn.LayerNorm(channels)
        self.cross_attn_image_to_token = _Attention(channels, channels // 2, heads)
        self.norm4 = nn.LayerNorm(channels)

    def forward(
        self, tokens: Tensor, code: Tensor, valid: Tensor, image: Tensor, position: Tensor
    ) -> tuple[Tensor, Tensor]:
        if self.first:  # without position code and without a residual, as released (SAM_SPEC 1.5)
            tokens = self.self_attn(tokens, tokens, tokens, valid)
        else:
            tokens = tokens + self.self_attn(tokens + code, tokens + code, tokens, valid)
        tokens = self.norm1(tokens)
        keys = image + position
        tokens = self.norm2(tokens + self.cross_attn_token_to_image(tokens + code, keys, image))
        tokens = self.norm3(tokens + self.mlp(tokens))
        image = self.norm4(image + self.cross_attn_image_to_token(keys, tokens + code, tokens, valid))
        return tokens, image


class _FeedForward(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.lin1, self.lin2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.lin2(F.relu(self.lin1(x)))
        return out


class _Attention(nn.Module):
    """Attention in `internal` dimensions; keys that are not valid are not seen."""

    def __init__(self, channels: int, internal: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(channels, internal) for _ in range(3))
        self.out_proj = nn.Linear(internal, channels)
        # Queries and keys start in the same subspace, so that a point's token and the cells around it attend to each
        # other from the first step: their position codes are alike. How SAM started is not published (SAM_SPEC 1.6).
        nn.init.orthogonal_(self.q_proj.weight)
        with torch.no_grad():
            self.k_proj.weight.copy_(self.q_proj.weight)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, valid: Tensor | None = None) -> Tensor:
        q, k, v = (
            project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project, x in ((self.q_proj, q), (self.k_proj, k), (self.v_proj, v))
        )
        seen = None if valid is None else valid[:, None, None, :]
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        out: Tensor = self.out_proj(x.transpose(1, 2).flatten(2))
        return out
