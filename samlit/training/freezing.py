"""What is not trained: parts of a model by name, held as they are."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from itertools import accumulate

from torch import nn

from samlit.errors import UsageError, did_you_mean

__all__ = ["freeze", "frozen", "hold", "named"]


def named(net: nn.Module, pattern: str) -> list[str]:
    """The parameters that a name stands for: a part with all that is in it, or what matches its `*` and `?`."""
    return [
        name
        for name, _ in net.named_parameters()
        if name == pattern or name.startswith(f"{pattern}.") or fnmatchcase(name, pattern)
    ]


def freeze(net: nn.Module, names: Sequence[str], key: str = "model.freeze") -> None:
    """Let nothing with these names be trained.

    Args:
        net: The model.
        names: Of parts or parameters, with `*` and `?`.
        key: Begins every error.

    Raises:
        UsageError: A name stands for nothing.
    """
    for pattern in names:
        found = set(named(net, pattern))
        if not found:
            raise UsageError(f"{key}: the model has no {pattern!r}{_near(net, pattern)}")
        for name, parameter in net.named_parameters():
            if name in found:
                parameter.requires_grad_(False)


def frozen(module: nn.Module) -> bool:
    """Whether nothing in a module is trained."""
    return not any(parameter.requires_grad for parameter in module.parameters())


def hold(module: nn.Module) -> None:
    """Put what is frozen as a whole into evaluation: no block is skipped in it, and batch norms keep their statistics.

    It lasts until the module is switched to training again.
    """
    if any(True for _ in module.parameters()) and frozen(module):
        module.eval()
        return
    for part in module.children():
        hold(part)


def _near(net: nn.Module, pattern: str) -> str:
    """The nearest name of a part, and where none is near, the first parts there are."""
    paths = [accumulate(name.split("."), lambda a, b: f"{a}.{b}") for name, _ in net.named_parameters()]
    known = list(dict.fromkeys(part for path in paths for part in path))
    top = list(dict.fromkeys(name.partition(".")[0] for name in known))
    return did_you_mean(pattern, known) or f" (it has {', '.join(top)}, and names of parameters in them)"
