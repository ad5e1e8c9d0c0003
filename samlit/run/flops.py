"""How many floating-point operations a training step asks for, and how many a device can do."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from samlit.model import Sam
from samlit.run import gpus
from samlit.structures import PromptSet, Ragged

__all__ = ["Cost", "Skeleton", "cost", "peak", "skeleton", "without_values"]


class Cost(NamedTuple):
    """FLOPs of learning, forward and backward, that the model needs, not those that this way to compute it takes.

    What is computed again to save memory is not counted again, nor what is padded for a faster kernel.

    Attributes:
        image: Of embedding an image.
        answer: Of answering a prompt, on the mean of the passes seen.
    """

    image: float
    answer: float


def peak(device: str, precision: str) -> float | None:
    """TFLOP/s that a device's maker states for a precision of Lightning's; None for a device that is not known."""
    kind = gpus.named(device)
    if kind is None:
        return None
    if precision.startswith(("bf16", "16", "transformer-engine")):
        return gpus.GPUS[kind].half
    return gpus.GPUS[kind].full if torch.get_float32_matmul_precision() == "highest" else gpus.GPUS[kind].tf32


class Skeleton(NamedTuple):
    """A model without its values: it computes shapes, and needs no memory.

    Attributes:
        net: The model.
        mode: In which it works. Not torch's meta device, for which there is no autocast.
    """

    net: Sam
    mode: FakeTensorMode


def skeleton(net: Sam) -> Skeleton:
    """Take a model's outline."""
    mode, memo = FakeTensorMode(allow_non_fake_inputs=True), dict[int, Tensor]()
    with mode:
        for p in net.parameters():
            memo[id(p)] = nn.Parameter(torch.empty(p.shape, dtype=p.dtype), p.requires_grad)
        for b in net.buffers():
            memo[id(b)] = torch.empty(b.shape, dtype=b.dtype)
    return Skeleton(copy.deepcopy(net, memo), mode)


def without_values(prompts: PromptSet) -> PromptSet:
    """A prompt set's shapes."""
    given = {n: Ragged(v.to("meta"), valid.to("meta")) for n, (v, valid) in prompts.given.items()}
    return PromptSet(prompts.image_index.to("meta"), given, prompts.multimask)


def cost(bones: Skeleton, trained: Mapping[str, bool], side: int, images: int, asked: Sequence[PromptSet]) -> Cost:
    """Count what a step asks for, from the prompts of one.

    Args:
        bones: Of the model.
        trained: Of each weight by name, whether it is trained.
        side: Of the frame.
        images: Of the step.
        asked: Its prompts, without values.
    """
    net = bones.net
    # What is compiled must not look at values, which a processor has at hand: here they are none.
    no_values = patch.object(torch.compiler, "is_compiling", lambda: True)
    with torch.compiler.set_stance("force_eager"), bones.mode, no_values, torch.no_grad():
        pixels, attention = torch.zeros(1, 3, side, side, dtype=torch.uint8), _Attention()
        with _Products() as products, attention:
            embedding = net.embed(pixels, torch.full((1, 2), side))
        image = products.flops + attention.flops
        of_kind: dict[object, list[PromptSet]] = {}
        for prompts in asked:
            of_kind.setdefault((prompts.multimask, *prompts.given), []).append(prompts)
        total = 0.0
        for same in of_kind.values():
            # Flops grow evenly with the number of prompts of a row: the one in the middle is the mean.
            middle = sorted(same, key=_tokens)[len(same) // 2]
            rows = max(len(middle) // images, 1)
            given = {n: Ragged(_blank(v, rows), _blank(valid, rows)) for n, (v, valid) in middle.given.items()}
            index = torch.zeros(rows, dtype=torch.int64)
            with _Products() as products:
                net.answer(embedding, PromptSet(index, given, middle.multimask), (side, side))
            total += products.flops / rows * sum(map(len, same))
    inside = {name: learns for name, learns in trained.items() if name.startswith("encoder.")}
    outside = {name: learns for name, learns in trained.items() if name not in inside}
    sizes = {name: p.numel() for name, p in net.named_parameters()}
    answer = total / max(sum(map(len, asked)), 1) * _with_backward(outside, sizes, any(trained.values()))
    return Cost(image * _with_backward(inside, sizes, any(inside.values())), answer)


class _Products(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts matrix products and convolutions by torch's own formulas."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called for every operation."""
        result = func(*args, **(kwargs or {}))
        if (formula := flop_registry.get(func._overloadpacket)) is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=result)
        return result


class _Attention(TorchFunctionMode):
    """Counts attention by the width of its values, without what they, and queries and keys, are padded with."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0.0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called for every function of torch."""
        if func is F.scaled_dot_product_attention:
            q, k, v = args[:3]
            width = getattr(v, "before_padding", v.shape[-1])
            self.flops += 4.0 * q.shape[:-1].numel() * k.shape[-2] * width
            return q.new_zeros(*q.shape[:-1], v.shape[-1])
        result = func(*args, **(kwargs or {}))
        if func is F.pad:
            result.before_padding = args[0].shape[-1]
        return result


def _with_backward(trained: Mapping[str, bool], sizes: Mapping[str, int], goes_through: bool) -> float:
    """What forward FLOPs are multiplied with: a product has two gradients, of its input and of its weights."""
    whole = sum(sizes.get(name, 0) for name in trained)
    learns = sum(sizes.get(name, 0) for name, yes in trained.items() if yes)
    return 1.0 + goes_through + learns / max(whole, 1)


def _tokens(prompts: PromptSet) -> int:
    return sum(given.valid.shape[1] for given in prompts.given.values())


def _blank(like: Tensor, rows: int) -> Tensor:
    return torch.zeros(rows, *like.shape[1:], dtype=like.dtype)
