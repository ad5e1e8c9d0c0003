"""A model without values, which computes shapes alone, as a GPU would compute what they stand for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

__all__ = ["Hollow", "without_weights"]

# What torch's autocast for CUDA computes in half precision, in full, and in full without a copy: its own three lists.
_HALF = """
    conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d prelu addmm addmv addr matmul __matmul__
    __rmatmul__ einsum mm mv linear addbmm baddbmm bmm chain_matmul multi_dot lstm_cell gru_cell rnn_tanh_cell
    rnn_relu_cell multi_head_attention_forward
"""
_FULL = """
    acos asin cosh erfinv exp expm1 log log10 log2 log1p reciprocal rsqrt sinh tan pow __pow__ __rpow__ softplus
    layer_norm group_norm rms_norm norm cosine_similarity cosine_embedding_loss multilabel_margin_loss
    poisson_nll_loss nll_loss hinge_embedding_loss kl_div l1_loss smooth_l1_loss huber_loss mse_loss
    margin_ranking_loss soft_margin_loss triplet_margin_loss multi_margin_loss binary_cross_entropy_with_logits
    dist pdist cdist renorm logsumexp interpolate
"""
HALF, FULL = frozenset(_HALF.split()), frozenset(_FULL.split())
FULL_RESULT = frozenset({"prod", "softmax", "log_softmax", "cumprod", "cumsum", "sum"})


@contextmanager
def without_weights() -> Iterator[None]:
    """Modules that are built inside have their weights on the meta device, where they need no memory.

    Only the weights: what a constructor computes besides, a list of rates or a table of indices, has its values.
    """
    register = nn.Module.register_parameter

    def hollow(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        register(self, name, param)
        if param is not None and param.device.type != "meta":
            empty = type(param)(param.to("meta"), requires_grad=param.requires_grad)
            empty.__dict__.update(param.__dict__)
            self._parameters[name] = empty

    with mock.patch.object(nn.Module, "register_parameter", hollow):
        yield


class Hollow(TorchFunctionMode):
    """Tensors on the meta device, computed with as on a GPU: attention that keeps no scores, and mixed precision.

    Torch's autocast knows nothing of the meta device, and a CUDA tensor without values can be made only where there is
    a GPU.

    Args:
        half: What a mixed precision computes in; None where there is none.
    """

    def __init__(self, half: torch.dtype | None = None) -> None:
        super().__init__()
        self.half = self._whole = half
        self._cast: dict[int, tuple[Tensor, Tensor]] = {}

    @contextmanager
    def step(self) -> Iterator[None]:
        """Inside, `torch.autocast` means this mode."""
        mode = self

        class _Autocast(torch.autocast):
            def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
                super().__init__("cpu", enabled=False)
                self._wanted = mode._whole if kwargs.get("enabled", True) else None

            def __enter__(self) -> Any:
                self._before, mode.half = mode.half, self._wanted
                return self

            def __exit__(self, *error: Any) -> None:
                mode.half = self._before

        go_back = torch.autograd._engine_run_backward  # type: ignore[attr-defined]

        def going_back(*args: Any, **kwargs: Any) -> Any:
            with mode:  # torch has left it to call a function of its own, and what is computed again is to be in it
                return go_back(*args, **kwargs)

        with (
            mock.patch.object(torch, "autocast", _Autocast),
            mock.patch.object(torch.autograd, "_engine_run_backward", going_back),
            self,
        ):
            yield
        self._cast.clear()

    def forget(self) -> None:
        """Let go of the weights in half precision, which autocast keeps while a step is computed."""
        self._cast.clear()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called for every function of torch."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "scaled_dot_product_attention":
            return self._attention(*args, **kwargs)
        half = self._precision()
        if half is not None and name in HALF:
            return func(*self._to(half, args), **self._to(half, kwargs))
        if half is not None and name in FULL:
            return func(*self._to(torch.float32, args), **self._to(torch.float32, kwargs))
        if half is not None and name in FULL_RESULT and args[0].dtype in (torch.float16, torch.bfloat16):
            return func(*args, **{"dtype": torch.float32} | kwargs)
        return func(*args, **kwargs)

    def _precision(self) -> torch.dtype | None:
        """What to compute in now. What a backward pass computes again has the precision that it had at first."""
        if not _going_back():
            return self.half
        return self._whole if torch.is_grad_enabled() else None

    def _attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """By the kernel for a GPU that takes a bias in any precision; what others keep is the same."""
        if (half := self._precision()) is not None:
            query, key, value, attn_mask = self._to(half, (query, key, value, attn_mask))
        if enable_gqa:
            times = query.shape[-3] // key.shape[-3]
            key, value = key.repeat_interleave(times, -3), value.repeat_interleave(times, -3)
        if attn_mask is not None:
            attn_mask = attn_mask.to(query.dtype)
            attn_mask = attn_mask.expand(*query.shape[:-1], key.shape[-2])
        flat = [x.reshape(-1, *x.shape[-3:]) for x in (query, key, value)]
        bias = None if attn_mask is None else attn_mask.reshape(-1, *attn_mask.shape[-3:])
        attend = torch.ops.aten._scaled_dot_product_efficient_attention
        out: Tensor = attend(*flat, bias, torch.is_grad_enabled(), dropout_p, is_causal, scale=scale)[0]
        return out.reshape(*query.shape[:-1], value.shape[-1])

    def _to(self, dtype: torch.dtype, given: Any) -> Any:
        """The same with its floating-point tensors in a precision; a weight is brought to it once a step."""
        if isinstance(given, dict):
            return {name: self._to(dtype, value) for name, value in given.items()}
        if isinstance(given, (list, tuple)):
            return type(given)(self._to(dtype, value) for value in given)
        if not isinstance(given, Tensor) or not given.is_floating_point() or given.dtype in (dtype, torch.float64):
            return given
        if not (given.is_leaf and given.requires_grad) or dtype == torch.float32 or _going_back():
            return given.to(dtype)
        if id(given) not in self._cast:
            self._cast[id(given)] = given, given.to(dtype)
        return self._cast[id(given)][1]


def _going_back() -> bool:
    return torch._C._current_graph_task_id() != -1
