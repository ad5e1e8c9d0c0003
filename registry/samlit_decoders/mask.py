"""The two-way mask decoder with dynamic mask heads.

Paper section 3 and appendix A; SAM_SPEC 1.5. Parameter names are the released ones.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint as recomputed

from samlit.contracts import Decoder, Factored, Sparse
from samlit.kept import Kept
from samlit.layers import MLP, LayerNorm2d
from samlit.structures import Embedding
from samlit_decoders._two_way import ALL, NEAR, Projected, TwoWay, parts

__all__ = ["Mask"]


NOTHING = -100.0
"""The logit of masks that were not drawn."""


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

    quality_first = True
    factored = True

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
        self.transformer = TwoWay(channels, depth, heads, mlp_dim)
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
        self._kept = Kept()

    def forward(
        self,
        embedding: Embedding,
        position: Tensor,
        image_index: Tensor,
        sparse: Sparse,
        dense: Tensor | Factored | None,
        multimask: bool | None,
        min_iou: float | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Answer P prompts; shapes as in the contract."""
        rows, (b, c, h, w) = image_index.shape[0], embedding.image.shape
        own = self._tokens()
        tokens = torch.cat([own.expand(rows, -1, -1), sparse.tokens], 1)
        valid = F.pad(sparse.valid, (len(own), 0), value=True)
        which = slice(1, None) if multimask else slice(0, 1) if multimask is False else slice(None)
        wanted = self._wanted(which)
        found = []
        for some in _runs(image_index) or parts(rows, 2 * c * h * w, image_index.device):
            about = _images(image_index[some], b)
            added = _rows(dense, some)
            given, unseen = _packed(tokens[some], valid[some])
            answer, cells = self._transform(embedding, position, about, given, unseen, added, wanted)
            iou: Tensor = self.iou_prediction_head(answer[:, 0])[:, which]
            if min_iou is None:
                logits = self._draw(embedding, about, answer, cells, which)
            else:
                good = (iou > min_iou).any(1).nonzero()[:, 0]
                logits = iou.new_full((*iou.shape, 4 * h, 4 * w), NOTHING)
                if len(good):
                    whose = about if isinstance(about, slice) else about[good]
                    logits[good] = self._draw(embedding, whose, answer[good], cells[good], which).to(iou.dtype)
            found.append((logits, iou))
        if len(found) == 1:
            return found[0]
        return torch.cat([logits for logits, _ in found]), torch.cat([iou for _, iou in found])

    def _wanted(self, which: slice) -> int:
        """How many of its own tokens, the first ones, the masks named and their IoU are made of."""
        return 1 + len(range(self.mask_tokens.num_embeddings)[: which.stop])

    def _tokens(self) -> Tensor:
        """The decoder's own tokens, which stand before a prompt's."""
        return torch.cat([self.iou_token.weight, self.mask_tokens.weight])

    def _transform(
        self,
        embedding: Embedding,
        position: Tensor,
        about: slice | Tensor,
        tokens: Tensor,
        unseen: Tensor | None,
        dense: Tensor | Factored | None,
        wanted: int,
    ) -> tuple[Tensor, Tensor]:
        """The first, wanted tokens (n, wanted, C), and cells (n, hw, C), after the two-way attention."""
        cells = embedding.kept.get("mask.cells", (embedding.image,), lambda: _cells(embedding.image))
        if isinstance(dense, Tensor) and dense.shape[-2:] != (1, 1):
            out: tuple[Tensor, Tensor] = self.transformer(
                tokens, unseen, pick(cells, about) + _cells(dense), position, wanted=wanted
            )
            return out
        # The prompts of an image share their first look at it, also from call to call, but for what a mask adds.
        made_of = (cells, position, *self.transformer.projections())
        projected = embedding.kept.get("mask.projected", made_of, lambda: self.transformer.project(cells, position))
        projected = Projected(*(pick(x, about) for x in projected))
        codes, flat = None, None
        if isinstance(dense, Factored):
            codes, flat = (dense.codes.flatten(1, 2), dense.weight), dense.bias[None]
        elif dense is not None:
            flat = dense.flatten(1)
        out = self.transformer(tokens, unseen, pick(cells, about), position, projected, flat, codes, wanted)
        return out

    def _draw(self, embedding: Embedding, about: slice | Tensor, tokens: Tensor, cells: Tensor, which: slice) -> Tensor:
        """Low-res logits (n, M, 4h, 4w) of the masks named."""
        details = [pick(x, about) for x in self._details(embedding)]
        kernels = self._kernels(tokens, which).transpose(1, 2)
        if _learns(cells):
            # Quarters of cells are the largest maps there are: a few at a time, and again when gradients are wanted,
            # they stay in the processor's cache, and none has to be kept.
            rows = max(1, 4 * NEAR // (cells.shape[1] * cells.shape[2]))
            full = (self._halves(cells), kernels, *(x.expand(len(cells), *x.shape[1:]) for x in details))
            drawn = [
                recomputed(self._look_up, *some, use_reentrant=False, preserve_rng_state=False)
                for some in zip(*(torch.split(x, rows) for x in full), strict=True)
            ]
            return in_place(drawn[0] if len(drawn) == 1 else torch.cat(drawn), embedding.image.shape[-2])
        found = [
            self._look_up(self._halves(cells[:, some]), kernels, *(x[:, some] for x in details))
            for some in parts(cells.shape[1], 2 * cells.shape[0] * cells.shape[2], cells.device)
        ]
        return in_place(found[0] if len(found) == 1 else torch.cat(found, 1), embedding.image.shape[-2])

    def _look_up(self, halves: Tensor, kernels: Tensor, *details: Tensor) -> Tensor:
        """Logits (n, k 4 4, M) of halves (n, k, 4, C/4), by what each of M masks looks for, (n, C/8, M)."""
        return self._quarters(halves, *details).flatten(1, 3) @ kernels

    def _kernels(self, tokens: Tensor, which: slice) -> Tensor:
        """What the mask tokens look for: (n, M, C/8)."""
        heads = list(self.output_hypernetworks_mlps)
        return torch.stack([heads[i](tokens[:, 1 + i]) for i in range(len(heads))[which]], 1)

    def _upscale(self, cells: Tensor) -> Tensor:
        """Cells (n, k, C) to (n, k, 4, 4, C/8): their four quarters, and the four of each, rows first.

        A transposed convolution of kernel and stride 2 is a linear map of each cell to its four quarters, so that
        channels stay last and only finished logits are put in place.
        """
        return self._quarters(self._halves(cells))

    def _halves(self, cells: Tensor) -> Tensor:
        """Cells (n, k, C) to (n, k, 4, C/4)."""
        first = self.output_upscaling[0]
        assert isinstance(first, nn.ConvTranspose2d)
        return quartered(cells, first, self._kept)

    def _quarters(self, x: Tensor, halves: Tensor | None = None, quarters: Tensor | None = None) -> Tensor:
        """Halves (n, k, 4, C/4) to (n, k, 4, 4, C/8), with finer maps added."""
        _, norm, _, second, _ = self.output_upscaling
        assert isinstance(second, nn.ConvTranspose2d)
        assert isinstance(norm, LayerNorm2d)
        x = x if halves is None else x + halves
        x = quartered(F.gelu(F.layer_norm(x, norm.weight.shape, norm.weight, norm.bias, norm.eps)), second, self._kept)
        return F.gelu(x if quarters is None else x + quarters)

    def _details(self, embedding: Embedding) -> tuple[Tensor, ...]:
        """What is added to halves of cells, (B, hw, 4, C/4), and to quarters, (B, hw, 4, 4, C/8); or nothing."""
        if not self.high_res:
            return ()
        h, w = embedding.image.shape[-2:]
        fine = [x for scale in (4, 2) for x in embedding.early if x.shape[-2:] == (scale * h, scale * w)]
        if len(fine) != 2:
            raise ValueError("high_res needs an encoder with finer maps, such as vit with its conv stem")
        quarters, halves = fine

        def turn() -> tuple[Tensor, Tensor]:
            b = len(halves)
            a = halves.reshape(b, -1, h, 2, w, 2).permute(0, 2, 4, 3, 5, 1).reshape(b, h * w, 4, -1)
            c = quarters.reshape(b, -1, h, 2, 2, w, 2, 2).permute(0, 2, 5, 3, 6, 4, 7, 1)
            return a, c.reshape(b, h * w, 4, 4, -1)

        return embedding.kept.get("mask.details", fine, turn)


def _rows(dense: Tensor | Factored | None, some: slice) -> Tensor | Factored | None:
    """Of some rows; all of them as they are, for the gradient of a slice of everything is a copy."""
    if dense is None or some == ALL:
        return dense
    if isinstance(dense, Factored):
        return dense._replace(codes=dense.codes[some], valid=dense.valid[some])
    return dense if len(dense) == 1 else dense[some]


def _runs(image_index: Tensor) -> list[slice]:
    """While learning on a processor, the rows of each image, which then share what is the image's; none otherwise."""
    if not (torch.is_grad_enabled() and _at_hand(image_index)):
        return []
    index = image_index.tolist()
    begins = [i for i, image in enumerate(index) if i == 0 or image != index[i - 1]]
    if len(begins) == 1 or len(begins) > len(set(index)):
        return []
    return [slice(a, b) for a, b in zip(begins, [*begins[1:], len(index)], strict=True)]


def _images(image_index: Tensor, images: int) -> slice | Tensor:
    """The images of some rows; a slice, which copies nothing, where it is one and that is known without waiting."""
    if images == 1:
        return slice(0, 1)
    if _at_hand(image_index) and bool((image_index == image_index[0]).all()):
        return slice(int(image_index[0]), int(image_index[0]) + 1)
    return image_index


def _learns(cells: Tensor) -> bool:
    """Whether gradients are asked for where memory is slow."""
    on = cells.device.type == "cpu" and torch.is_grad_enabled() and not torch.compiler.is_compiling()
    return on and len(cells) > 0


def _at_hand(x: Tensor) -> bool:
    """Whether there is anything, and it may be looked at without waiting for a device."""
    return x.device.type == "cpu" and x.numel() > 0 and not torch.compiler.is_compiling()


def pick(x: Tensor, about: slice | Tensor) -> Tensor:
    return x[about] if isinstance(about, slice) else x.index_select(0, about)


def _packed(tokens: Tensor, valid: Tensor) -> tuple[Tensor, Tensor | None]:
    """Tokens (n, T, C) with those that count first, as many as the longest row has; and minus infinity for others.

    A row's first token always counts; which ones a row has differs from row to row where prompts are of several types.
    """
    if _at_hand(valid) and not valid.all():
        most = int(valid.sum(1).max())
        order = valid.to(torch.uint8).argsort(stable=True, dim=1, descending=True)[:, :most]
        tokens, valid = tokens.gather(1, order[:, :, None].expand(-1, -1, tokens.shape[2])), valid.gather(1, order)
    if _at_hand(valid) and valid.all():
        return tokens, None
    return tokens, torch.zeros(valid.shape, device=valid.device).masked_fill(~valid, -torch.inf)


def _cells(image: Tensor) -> Tensor:
    """(n, C, h, w) to (n, hw, C), contiguous."""
    return image.flatten(2).transpose(1, 2).contiguous()


def quartered(x: Tensor, up: nn.ConvTranspose2d, kept: Kept) -> Tensor:
    """(..., C) to (..., 4, c): rows first, then columns."""
    bias = up.bias
    assert bias is not None

    def make() -> tuple[Tensor, Tensor]:
        return up.weight.permute(2, 3, 1, 0).flatten(0, 2), bias.repeat(4)  # (4 c, C), (4 c,)

    weights = kept.get(f"quarters of {up.in_channels}", (up.weight, bias), make)
    return F.linear(x, *weights).view(*x.shape[:-1], 4, len(bias))


def in_place(x: Tensor, h: int) -> Tensor:
    """Logits (n, hw 4 4, M) of halves' quarters, each in its place: (n, M, 4h, 4w)."""
    n, pixels, m = x.shape
    x = x.view(n, pixels // 16, 2, 2, 2, 2, m).permute(0, 6, 2, 4, 3, 5, 1)  # mask, row and column in a cell, cell
    return F.pixel_shuffle(x.reshape(n, 16 * m, h, pixels // 16 // h), 4)
