"""Fine-tuning with few weights: low-rank changes of linear layers (arXiv 2106.09685), and small layers after others.

A layer that is changed keeps the names of its weights, and has `lora_a` and `lora_b` beside them: what is trained
starts from any weights of the model, and may be merged into them. Both kinds begin as nothing.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

from samlit.errors import UsageError, did_you_mean

__all__ = ["Lora", "is_added", "merged"]

T = TypeVar("T", bound=nn.Module)


@dataclass(frozen=True)
class Lora:
    """What is added to a model to be trained in its stead.

    Attributes:
        rank: Of the change of a layer's weights; 0 for none.
        alpha: The change is multiplied with this over the rank.
        targets: Linear layers that are changed, by name, with `*` and `?`. Of one that makes queries, keys and values
            at once, the queries and the values are.
        adapter: Width of a small layer after each of `adapter_after`, two maps with GELU between; 0 for none. It
            cannot be merged: other projects' code has no place for it.
        adapter_after: Modules of the encoder, by name, with `*` and `?`, that end in a linear layer.
    """

    rank: int = 8
    alpha: float = 8.0
    targets: Sequence[str] = ("encoder.*.qkv",)
    adapter: int = 0
    adapter_after: Sequence[str] = ("encoder.*.mlp",)

    def add(self, net: nn.Module) -> None:
        """Change a model's layers; what is added is trained.

        Raises:
            UsageError: Nothing is to be added, or a name stands for nothing, or for no linear layer.
        """
        # Here and not when it is built, where the parser would wrap the line in several of its own.
        if min(self.rank, self.adapter) < 0 or not self.rank + self.adapter:
            raise UsageError(
                f"model.lora: rank {self.rank} and adapter {self.adapter}: widths of 0 or more, one of them above 0; "
                "`--model.lora null` for none"
            )
        if self.rank:
            for name, module in _found(net, self.targets, "targets"):
                if type(module) is not nn.Linear:
                    raise UsageError(f"model.lora.targets: {name} is a {type(module).__name__}, no linear layer")
                above = net.get_submodule(name.rpartition(".")[0])
                _change(module, self.rank, self.alpha / self.rank, _heads(above) if name.endswith("qkv") else 0)
        if self.adapter:
            for name, module in _found(net, self.adapter_after, "adapter_after"):
                linear = [part for part in module.modules() if isinstance(part, nn.Linear)]
                if not linear:
                    raise UsageError(f"model.lora.adapter_after: {name} has no linear layer to tell its width")
                module.adapter = _Adapter(linear[-1].out_features, self.adapter)
                module.register_forward_hook(_adapt)
                _lend(module)


class _Changed(nn.Linear):
    """A linear layer whose weight, whoever asks for it, is the one that it had and a product of two thin matrices."""

    lora_a: Tensor
    lora_b: Tensor
    lora_scale: float
    lora_heads: int

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """(out, in)."""
        base = self._parameters["weight"]
        assert base is not None
        if isinstance(base, DTensor):  # FSDP between two steps, which wants to see the parameter that it has put there
            return base
        return base + self.lora_scale * self._change().to(base.dtype)

    def _change(self) -> Tensor:
        change = self.lora_b @ self.lora_a  # (1, out, in), or of queries and values (2, out / 3, in)
        if not self.lora_heads:
            return change[0]
        q, v = torch.unflatten(change, 1, (self.lora_heads, -1))  # (heads, d, in) each
        return torch.stack([q, torch.zeros_like(q), v], 1).flatten(0, 2)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rank={self.lora_a.shape[1]}"


class _Adapter(nn.Module):
    """A step aside of (..., dim), nothing at first."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(dim, width), nn.Linear(width, dim)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.up(F.gelu(self.down(x)))
        return out


def _adapt(module: nn.Module, given: tuple[Any, ...], out: Tensor) -> Tensor:
    adapter: Any = module.adapter
    adapted: Tensor = out + adapter(out)
    return adapted


def _change(linear: nn.Linear, rank: int, scale: float, heads: int) -> None:
    """Let a linear layer be one that changes; with `heads`, only its queries and values do."""
    parts = 2 if heads else 1
    base = linear.weight
    linear.__class__ = _Changed  # in place: it stays the module that others may hold, hooks and all
    assert isinstance(linear, _Changed)
    linear.lora_scale, linear.lora_heads = scale, heads
    linear.lora_a = nn.Parameter(base.new_empty(parts, rank, linear.in_features))
    linear.lora_b = nn.Parameter(base.new_zeros(parts, linear.out_features // (3 if heads else 1), rank))
    _lend(linear)
    nn.init.uniform_(linear.lora_a, -1 / math.sqrt(linear.in_features), 1 / math.sqrt(linear.in_features))


def _lend(module: nn.Module) -> None:
    """Let what is added be found in every state that is loaded, also in one of the base alone, whoever loads it."""
    module.register_load_state_dict_pre_hook(_own)  # type: ignore[no-untyped-call]


def _own(module: nn.Module, state: dict[str, Any], prefix: str, *rest: Any) -> None:
    for name, value in module.state_dict().items():
        if is_added(f".{name}"):
            state.setdefault(prefix + name, value)


def _heads(attention: Any) -> int:
    """How often queries, keys and values take turns in the rows of a fused layer.

    Mostly once; an attention with `qkv_by_head`, or timm's `head_first`, has each head's side by side.
    """
    if getattr(attention, "qkv_by_head", False):
        return int(attention.heads)
    return int(attention.num_heads) if getattr(attention, "head_first", False) else 1


def is_added(name: str) -> bool:
    """Whether a weight of this name is one that `Lora` adds, and that no other project's file has."""
    return "adapter" in name.split(".") or name.endswith((".lora_a", ".lora_b"))


def merged(net: T) -> T:
    """The same model without anything added: itself where nothing was, or a copy with the changes in its weights.

    Raises:
        ValueError: It has adapters.
    """
    if any(isinstance(module, _Adapter) for module in net.modules()):
        raise ValueError(
            "its adapters (model.lora.adapter) cannot be merged into its weights: use the checkpoint with samlit"
        )
    if not any(isinstance(module, _Changed) for module in net.modules()):
        return net
    net = copy.deepcopy(net)
    for module in net.modules():
        if isinstance(module, _Changed):
            weight = module.weight.detach()
            del module.lora_a, module.lora_b, module.lora_scale, module.lora_heads
            module.__class__ = nn.Linear  # type: ignore[assignment]
            module._parameters["weight"] = nn.Parameter(weight)
    return net


def _found(net: nn.Module, patterns: Sequence[str], key: str) -> Iterator[tuple[str, nn.Module]]:
    """The modules that names stand for, each once.

    Raises:
        UsageError: A name stands for none.
    """
    modules = dict(net.named_modules())
    found: dict[str, nn.Module] = {}
    for pattern in patterns:
        these = {name: module for name, module in modules.items() if fnmatchcase(name, pattern)}
        if not these:
            hint = did_you_mean(pattern, modules) or " among its modules"
            raise UsageError(f"model.lora.{key}: the model has no {pattern!r}{hint}")
        found |= these
    yield from found.items()
