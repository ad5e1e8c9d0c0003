"""Tokens and image attend to each other: SAM_SPEC 1.5, with the work on the image done as seldom as it can be.

Three identities, exact but for rounding, let a prompt's work on the image shrink to less than half:

- Before the first layer has run, all prompts of an image see the same cells but for what a mask adds: these are
  projected once an image. What "no mask" adds, one vector to all cells, comes to biases; what a mask adds is a linear
  function of 16 numbers a cell, with which projections of few tokens are multiplied instead of 256.
- A projection moves to the few tokens: q (W k) = (q W) k and A (V W) = (A V) W.
- The position code of the cells is the same for all: W (image + position) = W image + W position.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samlit.kept import Kept
from samlit_decoders._looks import look, looked

__all__ = ["Projected", "TwoWay", "parts"]

NEAR, FAR = 2**18, 2**27
"""How many numbers a temporary may hold when nothing is learned: on a processor what its cache holds, elsewhere enough
to keep a device busy."""


ALL = slice(None)


Codes = tuple[Tensor, Tensor]
"""Few numbers a cell, (n, hw, r), and what makes (n, hw, C) of them, (C, r)."""


class Projected(NamedTuple):
    """The cells of B images as the first layer's attentions see them, before any prompt: d channels a head.

    Attributes:
        keys: (B, heads, d, hw), where tokens look.
        values: (B, heads, hw, d), what they find there.
        queries: (B, heads, d, hw), where cells look from.
    """

    keys: Tensor
    values: Tensor
    queries: Tensor


def parts(count: int, size: int, device: torch.device) -> list[slice]:
    """Which of `count` things of `size` numbers each to work on at a time; all of them in training."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return [slice(None)]
    most = max(1, (NEAR if device.type == "cpu" else FAR) // max(size, 1))
    return [slice(i, i + most) for i in range(0, max(count, 1), most)]


class TwoWay(nn.Module):
    """Two-way blocks, and a last look of the tokens at the image.

    Args:
        channels: Width C of tokens and cells.
        depth: Blocks.
        heads: Attention heads.
        mlp_dim: Hidden width of a block's MLP on the tokens.
    """

    def __init__(self, channels: int, depth: int, heads: int, mlp_dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Block(channels, heads, mlp_dim, first=i == 0) for i in range(depth))
        self.final_attn_token_to_image = _TokenToImage(channels, channels // 2, heads)
        self.norm_final_attn = nn.LayerNorm(channels)

    def projections(self) -> list[Tensor]:
        """The weights of `project`."""
        looks, seen = self._first()
        used = (looks.k_proj, looks.v_proj, seen.q_proj)
        return [weight for linear in used for weight in (linear.weight, linear.bias)]

    def project(self, cells: Tensor, position: Tensor) -> Projected:
        """What does not depend on prompts: cells (B, hw, C) with their position (C, h, w), projected."""
        looks, seen = self._first()
        return Projected(*looks.project(cells, position), seen.project(cells, position))

    def _first(self) -> tuple[_TokenToImage, _ImageToToken]:
        block = self.layers[0]
        assert isinstance(block, _Block)
        return block.cross_attn_token_to_image, block.cross_attn_image_to_token

    def forward(
        self,
        tokens: Tensor,
        unseen: Tensor | None,
        cells: Tensor,
        position: Tensor,
        projected: Projected | None = None,
        flat: Tensor | None = None,
        codes: Codes | None = None,
        wanted: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Answer n prompts with their tokens (n, T, C) and cells (n, hw, C).

        Args:
            tokens: (n, T, C).
            unseen: (n, T), 0 for tokens that count and minus infinity for others; None if all count.
            cells: (n, hw, C), or (1, hw, C) with `projected`.
            position: (C, h, w), of the cells.
            projected: Of these cells, where no prompt has changed them yet; of n images or one.
            flat: (n, C) or (1, C), to add to all cells; with `projected` only.
            codes: What to add to each cell, as few numbers (n, hw, r) and the weight (C, r) that they are multiplied
                with; with `projected` only.
            wanted: Tokens, the first ones, that are returned; nobody learns anything from the last look of the others.
        """
        code = tokens  # the tokens as they came in are their own position code
        if codes is not None:
            cells = F.linear(*codes).add_(cells)
        for layer in self.layers:
            tokens, cells = layer(tokens, code, unseen, cells, position, projected, flat, codes)
            projected = flat = codes = None
        tokens, code = tokens[:, :wanted], code[:, :wanted]
        tokens = tokens + self.final_attn_token_to_image(tokens + code, cells, position)
        return self.norm_final_attn(tokens), cells


class _Block(nn.Module):
    def __init__(self, channels: int, heads: int, mlp_dim: int, first: bool) -> None:
        super().__init__()
        self.first = first
        self.self_attn = _SelfAttention(channels, channels, heads)
        self.norm1 = nn.LayerNorm(channels)
        self.cross_attn_token_to_image = _TokenToImage(channels, channels // 2, heads)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = _FeedForward(channels, mlp_dim)
        self.norm3 = nn.LayerNorm(channels)
        self.cross_attn_image_to_token = _ImageToToken(channels, channels // 2, heads)
        self.norm4 = nn.LayerNorm(channels)

    def forward(
        self,
        tokens: Tensor,
        code: Tensor,
        unseen: Tensor | None,
        cells: Tensor,
        position: Tensor,
        projected: Projected | None,
        flat: Tensor | None,
        codes: Codes | None,
    ) -> tuple[Tensor, Tensor]:
        if self.first:  # without position code and without a residual, as released (SAM_SPEC 1.5)
            tokens = self.self_attn(tokens, tokens, unseen)
        else:
            tokens = tokens + self.self_attn(tokens + code, tokens, unseen)
        tokens = self.norm1(tokens)
        tokens = tokens + self.cross_attn_token_to_image(tokens + code, cells, position, projected, flat, codes)
        tokens = self.norm2(tokens)
        tokens = self.norm3(tokens + self.mlp(tokens))
        looked = self.cross_attn_image_to_token.prepare(tokens + code, tokens)
        found = [
            self.norm4(self.cross_attn_image_to_token(cells, some, looked, unseen, position, projected, flat, codes))
            for some in parts(cells.shape[1], 2 * tokens.shape[0] * cells.shape[2], cells.device)
        ]
        return tokens, found[0] if len(found) == 1 else torch.cat(found, 1)


class _FeedForward(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.lin1, self.lin2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.lin2(F.relu(self.lin1(x)))
        return out


class _Attention(nn.Module):
    """The weights of an attention in `internal` dimensions."""

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
        self._kept = Kept()

    def split(self, x: Tensor) -> Tensor:
        """(n, T, internal) to (n, heads, T, d)."""
        return torch.unflatten(x, -1, (self.heads, -1)).transpose(1, 2)

    def scaled(self, x: Tensor) -> Tensor:
        """The same, over the root of d: of the two sides of the product, the one with less to scale."""
        x = self.split(x)
        return torch.mul(x, x.shape[-1] ** -0.5)

    def absorbs(self, tokens: int) -> bool:
        """Whether it is less work to bring so many tokens to the width of the cells than cells to that of the heads."""
        if torch.compiler.is_exporting():  # a graph for any number of tokens; people give few
            return True
        internal, channels = self.out_proj.in_features, self.out_proj.out_features
        return self.heads * tokens * channels < internal * (channels + tokens)

    def apart(self, linear: nn.Linear) -> Tensor:
        """(heads, d, C), a projection's weight, a head's at a time."""
        return torch.unflatten(linear.weight, 0, (self.heads, -1))

    def columns(self, linear: nn.Linear, cells: Tensor, position: Tensor, some: slice = ALL) -> Tensor:
        """`linear` of cells (n, hw, C), which are some, with their position: (n, heads, d, hw)."""
        projected = torch.unflatten(F.linear(cells, linear.weight).transpose(1, 2), 1, (self.heads, -1))
        out: Tensor = projected + self.coded(linear, position)[..., some]
        return out

    def coded(self, linear: nn.Linear, position: Tensor) -> Tensor:
        """`linear` of the position code (C, h, w), with the bias: (heads, d, hw)."""

        def make() -> Tensor:
            projected = torch.addmm(linear.bias[:, None], linear.weight, position.flatten(1))
            return torch.unflatten(projected, 0, (self.heads, -1))

        return self._kept.get("coded", (position, linear.weight, linear.bias), make)

    def moved(self, few: Tensor, linear: nn.Linear, position: Tensor, some: slice = ALL) -> tuple[Tensor, Tensor]:
        """For products of (n, heads, T, d) with what `columns` returns, two summands.

        Returns:
            What to multiply with cells, (n, heads T, C); and what their position comes to, (n, heads T, hw).
        """
        at = _product(few, self.coded(linear, position)[None, ..., some])
        return _product(few, self.apart(linear)[None]).flatten(1, 2), at.flatten(1, 2)

    def by_codes(self, few: Tensor, linear: nn.Linear, codes: Codes, scores: Tensor) -> Tensor:
        """Products of (n, heads, T, d) with `linear` of what codes add to cells, added to the scores they have."""
        moved = _product(few, (self.apart(linear) @ codes[1])[None]).flatten(1, 2)  # (n, heads T, r)
        out = torch.baddbmm(scores.flatten(1, 2), moved, codes[0].transpose(1, 2))
        return torch.unflatten(out, 1, scores.shape[1:3])


class _SelfAttention(_Attention):
    def forward(self, x: Tensor, values: Tensor, unseen: Tensor | None) -> Tensor:
        """What tokens (n, T, C) find in each other's values."""
        scores = self.scaled(self.q_proj(x)) @ self.split(self.k_proj(x)).transpose(-1, -2)
        if unseen is not None:
            scores = scores + unseen[:, None, None, :].to(scores.dtype)
        found = scores.softmax(-1) @ self.split(self.v_proj(values))
        out: Tensor = self.out_proj(found.transpose(1, 2).flatten(2))
        return out


class _TokenToImage(_Attention):
    """Tokens look at the image."""

    def project(self, cells: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """Keys (n, heads, d, hw) and values (n, heads, hw, d) of cells (n, hw, C)."""
        return self.columns(self.k_proj, cells, position), self.split(self.v_proj(cells)).contiguous()

    def forward(
        self,
        tokens: Tensor,
        cells: Tensor,
        position: Tensor,
        projected: Projected | None = None,
        flat: Tensor | None = None,
        codes: Codes | None = None,
    ) -> Tensor:
        """What tokens (n, T, C) find in cells (n, hw, C); see `TwoWay.forward`."""
        q = self.scaled(self.q_proj(tokens))
        if projected is None and self.absorbs(tokens.shape[1]):
            moved, at = self.moved(q, self.k_proj, position)
            found = torch.unflatten(look(at, moved, cells), 1, q.shape[1:3])  # (n, heads, T, C)
            found = _product(found, self.apart(self.v_proj).transpose(1, 2)[None])
            out: Tensor = self.out_proj(found.transpose(1, 2).flatten(2) + self.v_proj.bias)
            return out
        keys, values = self.project(cells, position) if projected is None else projected[:2]
        # What is added to all keys alike changes no weights, and the weights sum to one.
        scores = _product(q, keys)
        if codes is not None:
            scores = self.by_codes(q, self.k_proj, codes, scores)
        weights = scores.softmax(-1)
        found = _product(weights, values)
        if codes is not None:
            seen = torch.unflatten(weights.flatten(1, 2) @ codes[0], 1, q.shape[1:3])  # (n, heads, T, r)
            found = found + _product(seen, (self.apart(self.v_proj) @ codes[1]).transpose(1, 2)[None])
        found = found.transpose(1, 2).flatten(2)
        if flat is not None:
            found = found + F.linear(flat, self.v_proj.weight)[:, None]
        out = self.out_proj(found)
        return out


class _ImageToToken(_Attention):
    """The image looks at the tokens."""

    def project(self, cells: Tensor, position: Tensor) -> Tensor:
        """Queries (n, heads, d, hw) of cells (n, hw, C)."""
        return self.columns(self.q_proj, cells, position)

    def prepare(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keys, scaled, and values of the tokens, from (n, T, C) to (n, heads, T, d)."""
        return self.scaled(self.k_proj(keys)), self.split(self.v_proj(values))

    def forward(
        self,
        cells: Tensor,
        some: slice,
        tokens: tuple[Tensor, Tensor],
        unseen: Tensor | None,
        position: Tensor,
        projected: Projected | None = None,
        flat: Tensor | None = None,
        codes: Codes | None = None,
    ) -> Tensor:
        """Some of the cells (n, hw, C), and what they find in the tokens, which `prepare` made, added.

        The rest as in `TwoWay.forward`.
        """
        (k, v), cells = tokens, cells[:, some]
        added = self.out_proj.bias if flat is None else self.out_proj.bias + flat[:, None]
        absorbs = self.absorbs(k.shape[2])
        if absorbs:
            turned = torch.unflatten(self.out_proj.weight.t(), 0, (self.heads, -1))  # (heads, d, C)
            # The weights of a head sum to one: a share in each head's values is what is added.
            v = _product(v, turned[None]).flatten(1, 2) + added / self.heads  # (n, heads T, C)
            if projected is None:
                moved, at = self.moved(k, self.q_proj, position, some)
                if unseen is not None:
                    at = at + unseen.repeat(1, self.heads)[..., None].to(at.dtype)
                return looked(at, moved, cells, v, self.heads)
        if projected is not None:
            scores = _product(k, projected.queries[..., some])
        else:
            scores = _product(k, self.columns(self.q_proj, cells, position, some))
        if codes is not None:
            scores = self.by_codes(k, self.q_proj, (codes[0][:, some], codes[1]), scores)
        if flat is not None:
            scores = scores + k @ torch.unflatten(F.linear(flat, self.q_proj.weight), 1, (self.heads, -1, 1))
        if unseen is not None:
            scores = scores + unseen[:, None, :, None].to(scores.dtype)
        weights = scores.softmax(2)  # over the tokens, with cells last: as fast as over cells, and no need to turn
        if absorbs:
            return torch.baddbmm(cells.expand(v.shape[0], -1, -1), weights.flatten(1, 2).transpose(1, 2), v)
        found = (weights.transpose(2, 3) @ v).transpose(1, 2).flatten(2)
        return cells + (F.linear(found, self.out_proj.weight) + added)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """(n, heads, i, j) times (n, heads, j, k), or (1, heads, j, k) without a copy of it for each of the n."""
    if b.shape[0] == a.shape[0]:
        return a @ b
    out = a.transpose(0, 1).flatten(1, 2) @ b[0]  # (heads, n i, k)
    return torch.unflatten(out, 1, (a.shape[0], a.shape[2])).transpose(0, 1)
