"""Averages of the weights in checkpoints: in the place of the weights, so that whoever reads one gets the averages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from samlit.training.adamw import AVERAGE, AdamW

__all__ = ["put_averages", "put_weights"]


def put_averages(checkpoint: dict[str, Any], module: nn.Module, optimizer: AdamW, state: Mapping[str, Any]) -> None:
    """Let a checkpoint's `state_dict` hold the averages, and its optimiser state the weights.

    `averaged` then says which: the number or name of a weight in the optimiser's state, and its name in `state_dict`.

    Args:
        checkpoint: As Lightning makes it; values change places, none is copied.
        module: Whose `state_dict` is in there.
        optimizer: Of the module's weights.
        state: Of the optimiser; the one in the checkpoint, or its own where the checkpoint holds none.
    """
    names = {id(weight): name for name, weight in module.named_parameters()}
    averaged = {}
    # All ranks come here; where one file is written, only the first of them holds anything.
    for live, saved in zip(optimizer.param_groups, state.get("param_groups", ()), strict=False):
        for weight, key in zip(live["params"], saved["params"], strict=True):
            if AVERAGE in state["state"].get(key, {}):
                averaged[key] = names[id(weight)]
    if averaged:
        checkpoint["averaged"] = averaged
        if not optimizer.swapped:
            _exchange(checkpoint, state)


def put_weights(checkpoint: dict[str, Any]) -> bool:
    """Undo `put_averages`, for a training that goes on; whether it could be done in the checkpoint.

    A sharded one holds neither: both are on their way into module and optimiser, which have to swap them then.
    """
    if "state_dict" not in checkpoint:
        return False
    states = checkpoint.get("optimizer_states", ())
    if states:
        _exchange(checkpoint, states[0])
    return True


def _exchange(checkpoint: dict[str, Any], state: Mapping[str, Any]) -> None:
    weights, states = dict(checkpoint["state_dict"]), dict(state["state"])
    for key, name in checkpoint["averaged"].items():
        states[key] = {**states[key], AVERAGE: weights[name]}
        weights[name] = state["state"][key][AVERAGE]
    checkpoint["state_dict"] = weights
    if checkpoint.get("optimizer_states"):
        checkpoint["optimizer_states"] = [{**state, "state": states}]
