"""Focal and dice loss and IoU of low-res logits against full-size masks, beside the same of torchvision's parts.

python benchmarks/losses.py
python benchmarks/losses.py --size 256 --threads 2 --device cuda

The peer is what one would write: interpolate, `torchvision.ops.sigmoid_focal_loss`, dice, and autograd for the slopes.
"ours, torch" is samlit's way on other devices and in double precision: a few masks at a time, slopes written out.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from samlit.training import focal_dice


def peer(low: Tensor, truth: Tensor) -> Tensor:
    """20 focal + dice, summed over masks; low (P, M, h, w), truth (P, H, W)."""
    up = F.interpolate(low, truth.shape[-2:], mode="bilinear", align_corners=False)
    target = truth[:, None].expand(up.shape).float()
    focal = sigmoid_focal_loss(up, target, alpha=0.25, gamma=2).mean((-2, -1))
    likely, hard = up.sigmoid(), up > 0
    dice = 1 - (2 * (likely * target).sum((-2, -1)) + 1) / (likely.sum((-2, -1)) + target.sum((-2, -1)) + 1)
    inside = truth[:, None]
    _ = (hard & inside).sum((-2, -1)) / (hard | inside).sum((-2, -1))  # the IoU, which the IoU head learns
    return (20 * focal + dice).sum()


def ours(low: Tensor, truth: Tensor) -> Tensor:
    """The same."""
    found = focal_dice.compared(low, truth)
    return (20 * found.focal + found.dice).sum()


def through_torch(low: Tensor, truth: Tensor) -> Tensor:
    """The same without what is compiled for a processor."""
    usual = focal_dice._in_one_pass
    focal_dice._in_one_pass = lambda *_: False
    try:
        return ours(low, truth)
    finally:
        focal_dice._in_one_pass = usual


WAYS = {"torchvision, autograd": peer, "ours, torch": through_torch, "ours": ours}


def main() -> None:
    """Print nanoseconds per pixel and mask, and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1024, help="side of the masks; logits have a quarter of it")
    parser.add_argument("--prompts", type=int, default=4, help="with three masks each")
    parser.add_argument("--rounds", type=int, default=5, help="how often each way is timed, in turns")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    side, device = given.size, torch.device(given.device)
    smooth = F.interpolate(torch.randn(given.prompts, 3, 16, 16), (side // 4, side // 4), mode="bicubic")
    truth = F.interpolate(torch.randn(given.prompts, 1, 12, 12), (side, side), mode="bicubic")[:, 0].to(device) > 0
    times: dict[str, list[float]] = {name: [] for name in WAYS}
    slopes: dict[str, Tensor] = {}
    for turn in range(given.rounds + 1):  # the first one warms up
        for name, way in WAYS.items():
            low = (5 * smooth).to(device).requires_grad_()
            begin = _now(device)
            way(low, truth).backward()
            if turn:
                times[name].append(_now(device) - begin)
            assert low.grad is not None
            slopes[name] = low.grad
    pixels = given.prompts * 3 * side * side
    first = next(iter(WAYS))
    title = f"{given.prompts} x 3 masks of {side} x {side}, {given.device}, {given.threads} thread(s)"
    table = Table(title=title, title_justify="left")
    for column in ("way", "ns a pixel", "x the first", "slopes differ"):
        table.add_column(column, justify="left" if column == "way" else "right")
    for name, took in times.items():
        ratio = statistics.median(a / b for a, b in zip(times[first], took, strict=True))
        off = float((slopes[name] - slopes[first]).abs().max() / slopes[first].abs().max())
        table.add_row(name, f"{statistics.median(took) / pixels * 1e9:.2f}", f"{ratio:.1f}", f"{off:.0e}")
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(
        f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}", highlight=False
    )
    console.print(table)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


if __name__ == "__main__":
    main()
