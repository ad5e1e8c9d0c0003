"""AdamW that leaves out a step without anybody waiting for the device, and keeps averages of the weights it moves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

__all__ = ["AVERAGE", "AdamW", "local"]

AVERAGE = "other"
"""In a weight's state, the name of its average; of the weight itself while the average stands in its place."""

TOGETHER = 64
"""Weights that are averaged in one call: what that needs beside them stays small."""


class AdamW(torch.optim.AdamW):
    """PyTorch's fused AdamW, for all devices, with what `Muon` shares.

    Averages are state like the moments are, so they are saved, sharded and restored wherever those are.

    Args:
        groups: Parameter groups.
        lr: Rate of groups that name none.
        betas: Averages of the gradient and of its square.
        average: Decay of the weights' average; 0 for none. In the first steps it is less, so that what the weights
            were before is soon forgotten.

    Attributes:
        found_inf: () float, on the weights' device: a step where it is 1 leaves weights, moments and averages as they
            are, to the bit. None is 0.
        swapped: Whether the averages stand where the weights were, and the weights where the averages were.
    """

    found_inf: Tensor | None

    def __init__(
        self, groups: list[dict[str, Any]], lr: float, betas: tuple[float, float] = (0.9, 0.999), average: float = 0.0
    ) -> None:
        if not 0 <= average < 1:
            raise ValueError(f"ema: a decay from 0 to below 1, not {average}")
        # One launch for all weights; and it is what can leave out a step on the device.
        super().__init__(groups, lr=lr, betas=betas, fused=True)
        # Gradients are unscaled (float16) before they are clipped, not in here.
        self._step_supports_amp_scaling = False
        self.average, self.found_inf, self.swapped = average, None, False
        low = [p for group in self.param_groups for p in group["params"] if p.dtype in (torch.float16, torch.bfloat16)]
        if average and low:
            raise ValueError("ema: an average needs weights of float32: trainer.precision bf16-mixed, not bf16-true")

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step, and the averages after it."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self.swapped:
            raise RuntimeError("the weights are swapped with their averages: no step can be taken")
        self._take()
        if self.average:
            self._follow()
        return loss

    def _take(self) -> None:
        """Move the weights."""
        super().step()
        # Fused kernels do not tell that they wrote, and what was made of the weights before (`Kept`) would be kept.
        moved = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        torch.autograd.graph.increment_version(moved)

    @torch.no_grad()
    def _follow(self) -> None:
        """Draw the averages nearer to the weights."""
        for group in self.param_groups:
            moved = [p for p in group["params"] if p.grad is not None]
            for first in range(0, len(moved), TOGETHER):
                weights, averages = [], []
                for weight in moved[first : first + TOGETHER]:
                    state = self.state[weight]
                    if AVERAGE not in state:
                        state[AVERAGE] = weight.detach().clone()
                    weights.append(local(weight))
                    averages.append(local(state[AVERAGE]))
                taken = self.state[moved[first]]["step"].to(weights[0].device)
                share = 1 - ((1 + taken) / (10 + taken)).clamp(max=self.average)
                if self.found_inf is not None:
                    share = share * (1 - self.found_inf)
                change = torch._foreach_sub(weights, averages)
                torch._foreach_mul_(change, share)
                torch._foreach_add_(averages, change)

    @torch.no_grad()
    def swap(self) -> bool:
        """Let weights and averages change places, to the bit; whether there are any."""
        pairs = list(self._pairs())
        for weight, average in pairs:
            before = weight.clone()
            weight.copy_(average)
            average.copy_(before)
        if pairs:
            self.swapped = not self.swapped
        return bool(pairs)

    def _pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        for weight, state in self.state.items():
            if AVERAGE in state:
                yield local(weight), local(state[AVERAGE])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on; also from what another implementation of AdamW has saved."""
        groups = [{**group, "fused": True, "foreach": None} for group in state_dict["param_groups"]]
        state = state_dict["state"]
        if not self.average:
            state = {i: {name: x for name, x in s.items() if name != AVERAGE} for i, s in state.items()}
        super().load_state_dict({**state_dict, "state": state, "param_groups": groups})


def local(x: Tensor) -> Tensor:
    """This rank's part of a tensor that is sharded, or all of it; the same memory."""
    if not isinstance(x, DTensor):
        return x
    part: Tensor = x.to_local()
    return part
