"""Gradients before they are stepped along: their norm, clipping, and the steps that are left out for it."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from samlit.errors import SamlitError
from samlit.training.adamw import AdamW
from samlit.training.later import Later

__all__ = ["Diverged", "Gradients"]


class Diverged(SamlitError):
    """Too many steps in a row had a gradient that was not finite."""


class Gradients:
    """Judges every step by the norm of its gradient, which is the same on all ranks, and never waits for the device.

    A step whose norm is not finite is left out by the optimiser, exactly, and counted; too many in a row end the run.

    Args:
        net: What is trained; where it keeps running statistics, they are those of the steps that counted.
        most: Steps left out in a row that end the run.
        before: `state_dict` of a training that goes on.
    """

    def __init__(self, net: nn.Module, most: int, before: dict[str, Any] | None = None) -> None:
        self.most = most
        left_out, row = (before["left_out"], before["in_a_row"]) if before else (0, 0)
        # Steps left out in all, in a row, in the longest row, and the last of them.
        self._tally = torch.tensor([left_out, row, 0, 0])
        self._told, self._steps = left_out, 0
        self._later = Later()
        self._running = [
            buffer
            for module in net.modules()
            if isinstance(module, nn.modules.batchnorm._NormBase) and module.track_running_stats
            for buffer in module.buffers(recurse=False)
        ]
        self._known = [buffer.clone() for buffer in self._running]

    @torch.no_grad()
    def judge(self, optimizer: AdamW, step: int, clip: float | None = None, by_value: bool = False) -> Tensor:
        """Clip the gradients of a step, and let the optimiser leave it out where they are not finite.

        Args:
            optimizer: Holds the weights.
            step: Its number.
            clip: Greatest norm, or value; none if not given.
            by_value: Whether values are clipped.

        Returns:
            () float, the norm of all gradients before they are clipped.
        """
        weights = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in weights if p.grad is not None])
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        bad = ~norm.isfinite()
        optimizer.found_inf = bad.float()
        if clip and by_value:
            nn.utils.clip_grad_value_(weights, clip)
        elif clip:
            nn.utils.clip_grads_with_norm_(weights, clip, norm)
        for buffer, known in zip(self._running, self._known, strict=True):
            known.copy_(torch.where(bad, known, buffer))
            buffer.copy_(known)
        total, row, longest, last = self._tally.to(norm.device).unbind()
        row = (row + 1) * bad
        self._tally = torch.stack([total + bad, row, longest.maximum(row), torch.where(bad, step, last)])
        self._steps += 1
        return norm

    @property
    def left_out(self) -> Tensor:
        """() int64 on the device, steps that were left out so far."""
        return self._tally[0]

    def check(self) -> None:
        """Tell of steps that were left out; on a GPU it looks now and then, at what was there some time ago.

        Raises:
            Diverged: They were too many in a row.
        """
        if self._tally.device.type != "cuda" or self._steps % self.most == 0:
            found = self._later.hand_over(self._tally)
            if found:
                self._tell(found)

    def finish(self) -> None:
        """Tell of what was not told yet.

        Raises:
            Diverged: They were too many in a row.
        """
        self._tell(self._tally.tolist())

    def _tell(self, found: list[float]) -> None:
        total, _, longest, last = (int(number) for number in found)
        if longest >= self.most:
            raise Diverged(
                f"the gradient was not finite {longest} times in a row, the last time at step {last}, and these steps "
                "were not taken: try a lower model.optim.lr, a longer model.optim.warmup, "
                "trainer.gradient_clip_val 1.0, or trainer.precision bf16-mixed or 32-true, and go on with "
                "--ckpt_path last"
            )
        if total > self._told:
            self._told = total
            told = f"step {last} is left out, for its gradient is not finite ({total} so far); training goes on"
            warnings.warn(told, stacklevel=1)

    def state_dict(self) -> dict[str, Any]:
        """What a training that goes on has to know."""
        row = int(self._tally[1])
        # Who goes on from where too many ended a run has changed something, and is to have as many tries.
        return {"left_out": int(self._tally[0]), "in_a_row": row if row < self.most else 0}
