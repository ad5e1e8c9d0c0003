"""What a piece of work takes: its floating-point operations, and the memory that it holds and at most held."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

__all__ = ["Meter", "Work"]


@dataclass
class Work:
    """FLOPs, 2 a multiply-add, of products, convolutions and attention: what torch's own counter counts.

    Attributes:
        forward: Of the forward pass.
        backward: Of the gradients.
        again: Of what is computed again for the gradients, where it was not kept.
    """

    forward: float = 0.0
    backward: float = 0.0
    again: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.forward + other.forward, self.backward + other.backward, self.again + other.again)

    def __mul__(self, times: float) -> Work:
        return Work(self.forward * times, self.backward * times, self.again * times)

    @property
    def total(self) -> float:
        """All of it."""
        return self.forward + self.backward + self.again


class Meter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations, and bytes of the storages that they make for as long as these live.

    Works on real tensors and on the meta device alike: what autograd keeps, and when it lets go of it, is the same.
    What an operation needs for itself and gives back before it ends is not seen.

    Args:
        known: Tensors that are there already and are not counted.
        gradients: Whose gradients, once they have arrived, are counted in `gradients` and not in `held`.

    Attributes:
        work: FLOPs so far.
        held: Bytes held now, without gradients.
        gradients: Bytes of gradients that have arrived.
        most: The most bytes held at once since it was last set.
        most_with_gradients: The same with gradients.
    """

    def __init__(self, known: Iterable[Tensor] = (), gradients: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.work = Work()
        self.held = self.gradients = self.most = self.most_with_gradients = 0
        self._live: dict[int, weakref.ref[Any]] = {}
        for tensor in known:
            self._hold(tensor, 0)
        self._parameters = list(gradients)

    @contextmanager
    def running(self) -> Iterator[Meter]:
        """Count what runs inside."""
        hooks = [
            p.register_post_accumulate_grad_hook(self._arrived)  # type: ignore[no-untyped-call]
            for p in self._parameters
        ]
        try:
            with self:
                yield self
        finally:
            for hook in hooks:
                hook.remove()

    def mark(self) -> None:
        """Begin anew with the most that is held."""
        self.most, self.most_with_gradients = self.held, self.held + self.gradients

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called for every operation."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if flops := _flops(func._overloadpacket, args, kwargs, out):
            # During a backward pass there is a graph task, and gradients are off but where something is computed again.
            inside = torch._C._current_graph_task_id() != -1
            part = "forward" if not inside else "again" if torch.is_grad_enabled() else "backward"
            setattr(self.work, part, getattr(self.work, part) + flops)
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._hold(leaf, leaf.untyped_storage().nbytes())
        return out

    def _hold(self, tensor: Tensor, size: int) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._live and self._live[key]() is not None:
            return
        self._live[key] = weakref.ref(storage)
        if size:
            weakref.finalize(storage, self._free, key, size)
        self.held += size
        self.most = max(self.most, self.held)
        self.most_with_gradients = max(self.most_with_gradients, self.held + self.gradients)

    def _free(self, key: int, size: int) -> None:
        self.held -= size
        self._live.pop(key, None)

    def _arrived(self, parameter: Tensor) -> None:
        """A parameter's gradient is there: from now on it is one of the gradients."""
        assert parameter.grad is not None
        size = parameter.grad.untyped_storage().nbytes()
        self.held -= size
        self.gradients += size


_aten = torch.ops.aten
_ON_A_GPU = {
    _aten._scaled_dot_product_flash_attention_for_cpu: _aten._scaled_dot_product_flash_attention,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _aten._scaled_dot_product_flash_attention_backward,
}
"""A processor's kernels, of which torch 2.14 and earlier have no formula, and a GPU's that do the same."""


def _flops(operation: Any, args: Any, kwargs: Any, out: Any) -> float:
    """Of one operation, as torch's own counter has it."""
    if operation is torch.ops.aten.convolution_backward:
        # Torch's formula multiplies by the number of groups once too often. Either gradient is as much work as the way
        # forward: every weight with every place that it is laid on.
        grad, image, weight, transposed, wanted = args[0], args[1], args[2], args[7], args[10]
        places = math.prod((image if transposed else grad).shape[2:]) * image.shape[0]
        return float(2 * places * weight.numel() * sum(map(bool, wanted[:2])))
    known = flop_registry.get(operation) or flop_registry.get(_ON_A_GPU.get(operation))
    return float(known(*args, **kwargs, out_val=out)) if known else 0.0
