"""Focal loss, dice loss and IoU of low-res logits against masks of the frame's resolution, in one go."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from samlit.masks.counting import pixels
from samlit.training import focal_dice_cpu

__all__ = ["Compared", "compared"]

NEAR, FAR = 2**18, 2**25
"""How many pixels are compared at a time: on a processor what its cache holds, elsewhere what keeps a device busy."""


class Compared(NamedTuple):
    """P times M masks beside the truth.

    Attributes:
        focal: (P, M), sigmoid focal loss, mean over pixels (RetinaNet, arXiv 1708.02002).
        dice: (P, M), dice loss with one pixel of smoothing (V-Net, arXiv 1606.04797); both as MaskFormer takes them.
        iou: (P, M), of the masks that the logits make; 1 where both are empty. Without a gradient.
        hard: (P, M, H, W) bool, those masks.
    """

    focal: Tensor
    dice: Tensor
    iou: Tensor
    hard: Tensor


def compared(logits: Tensor, truth: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Compared:
    """Compare logits, interpolated to the truth's resolution, with the truth.

    A few masks at a time, and what is kept for the gradient has the resolution of the logits: the losses' gradients
    are known as soon as they are, and go back through the interpolation at once.

    Args:
        logits: (P, M, h, w) float.
        truth: (P, H, W) bool.
        alpha: Focal loss's weight of pixels inside the mask; those outside have 1 - alpha.
        gamma: Focal loss's exponent.
    """
    return Compared(*_FocalDice.apply(logits, truth, alpha, gamma))


class _FocalDice(torch.autograd.Function):
    """Both losses of m = sigmoid(z), the probability missed: z is the logit, its sign turned inside the mask.

    With e = softplus(z), the cross-entropy, dm/dz = m (1 - m) and de/dz = m.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, truth: Tensor, alpha: float, gamma: float) -> tuple[Tensor, ...]:
        p, m, h, w = logits.shape
        size = (truth.shape[-2], truth.shape[-1])
        low = logits.double() if logits.dtype == torch.float64 else logits.float()
        focal, dice, iou = (low.new_empty(p, m) for _ in range(3))
        hard = torch.empty(p, m, *size, dtype=torch.bool, device=low.device)
        ctx.dtype = logits.dtype
        if _in_one_pass(low, truth, gamma):
            learns = ctx.needs_input_grad[0]
            focal, dice, iou, slopes = focal_dice_cpu.compare(low, truth, alpha, hard, learns)
            ctx.save_for_backward(*slopes)
            ctx.mark_non_differentiable(iou, hard)
            return focal, dice, iou, hard
        slopes = [torch.empty_like(low) for _ in range(2 * ctx.needs_input_grad[0])]
        rows = max(1, (NEAR if low.device.type == "cpu" else FAR) // (m * size[0] * size[1]))
        with torch.autocast(low.device.type, enabled=False):
            for first in range(0, p, rows):
                some = slice(first, first + rows)
                up = low[some]
                up = up.clone() if size == (h, w) else F.interpolate(up, size, mode="bilinear", align_corners=False)
                found = _compare(up, truth[some], alpha, gamma, hard[some], len(slopes) > 0)
                focal[some], dice[some], iou[some] = found[:3]
                for slope, full in zip(slopes, found[3:], strict=True):
                    slope[some] = _gathered(full.flatten(0, 1), h, w).view(-1, m, h, w)
        ctx.save_for_backward(*slopes)
        ctx.mark_non_differentiable(iou, hard)
        return focal, dice, iou, hard

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None, None, None]:
        by_focal, by_dice = ctx.saved_tensors
        slope = by_focal * outer[0][..., None, None]
        return slope.addcmul_(by_dice, outer[1][..., None, None]).to(ctx.dtype), None, None, None


def _in_one_pass(low: Tensor, truth: Tensor, gamma: float) -> bool:
    """Whether a processor's own way is there: for the usual exponent and numbers, and logits that are enlarged."""
    larger = truth.shape[-2] >= low.shape[-2] and truth.shape[-1] >= low.shape[-1]
    usual = gamma == 2 and low.dtype == torch.float32 and larger and low.numel() > 0
    return usual and low.device.type == "cpu" and not torch.compiler.is_compiling()


def _compare(up: Tensor, truth: Tensor, alpha: float, gamma: float, hard: Tensor, learns: bool) -> tuple[Tensor, ...]:
    """Focal, dice and IoU of logits (p, M, H, W), which are used up, and the slopes of the first two where wanted."""
    torch.gt(up, 0, out=hard)
    both = pixels(hard & truth[:, None])
    sizes = pixels(hard), pixels(truth)[:, None]
    either = sizes[0] + sizes[1] - both
    iou = torch.where(either > 0, both / either.clamp_min(1), 1.0)
    inside = truth[:, None].to(up.dtype)  # products of floats: choosing by truth values is slow on a CPU
    sign = 1 - 2 * inside
    z = up.mul_(sign)
    m, e = z.sigmoid(), F.softplus(z)
    weight = (1 - alpha) + (2 * alpha - 1) * inside
    lever = weight.mul(m).mul_(m) if gamma == 2 else m.pow(gamma).mul_(weight)
    area = up.shape[-2] * up.shape[-1]
    focal = _sum(lever, e) / area
    true = sizes[1].to(up.dtype)
    missed_inside, missed = _sum(m, inside), m.flatten(-2).sum(-1)
    twice = 2 * (true - missed_inside) + 1  # twice the intersection
    whole = missed - 2 * missed_inside + 2 * true + 1  # of the prediction and the truth
    dice = 1 - twice / whole
    if not learns:
        return focal, dice, iou
    # d focal/dz = weight m^gamma (m + gamma (1 - m) e)
    rest = 1 - m
    by_focal = lever.mul_(e.mul_(rest).mul_(gamma).add_(m)).mul_(sign).div_(area)
    outer = (twice / whole**2)[..., None, None]  # d dice/dm outside the mask, a number a mask
    inner = 2 / whole[..., None, None] - outer
    by_dice = m.mul_(rest).mul_(sign).mul_((inside * (inner - outer)).add_(outer))
    return focal, dice, iou, by_focal, by_dice


def _sum(a: Tensor, b: Tensor) -> Tensor:
    """Sums of products over the last two dimensions."""
    return (a * b).flatten(-2).sum(-1)


def _gathered(slope: Tensor, h: int, w: int) -> Tensor:
    """What bilinear interpolation brings back: slopes of (n, H, W) to those of (n, h, w)."""
    n, rows, columns = slope.shape
    if (rows, columns) == (h, w):
        return slope
    if rows % h or columns % w:
        shape = [n, 1, h, w]
        back = torch.ops.aten.upsample_bilinear2d_backward(slope[:, None], [rows, columns], shape, False, None, None)
        found: Tensor = back[:, 0]
        return found
    times = rows // h
    lines = slope.view(n, h, times, columns)
    own, before, after = (slope.new_zeros(n, h, columns) for _ in range(3))
    for k in range(times):
        off = (k + 0.5) / times - 0.5  # from the middle of the coarse row that it lies in, in coarse rows
        own.add_(lines[:, :, k], alpha=1 - abs(off))
        (before if off < 0 else after).add_(lines[:, :, k], alpha=abs(off))
    # At the borders there is no further row, and the last one stands for it.
    own[:, :-1] += before[:, 1:]
    own[:, 1:] += after[:, :-1]
    own[:, 0] += before[:, 0]
    own[:, -1] += after[:, -1]
    return own @ _spread(w, columns, slope.dtype, slope.device).t()


@cache
def _spread(few: int, many: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(few, many), how many values take from few."""
    return F.interpolate(torch.eye(few, dtype=dtype, device=device)[None], many, mode="linear")[0]
