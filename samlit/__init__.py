"""samlit: the open training framework for promptable segmentation.

What `__all__` names is the public API, beside the plug-ins' class paths and the keys of recipes. Each name is imported
from its module when it is first asked for, so that ``import samlit`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from samlit.contracts import Decoder, Encoder, Prompt, Task
    from samlit.datamodule import SamData
    from samlit.errors import SamlitError, UsageError
    from samlit.everything import Found
    from samlit.model import Sam
    from samlit.module import SamModule
    from samlit.predictor import InFrame, Masks, Predictor
    from samlit.source import Sample, Source
    from samlit.structures import Batch, Embedding, Prediction, PromptSet, Ragged, Scene

__version__ = "0.1.0.dev0"

__all__ = [
    "Batch",
    "Decoder",
    "Embedding",
    "Encoder",
    "Found",
    "InFrame",
    "Masks",
    "Prediction",
    "Predictor",
    "Prompt",
    "PromptSet",
    "Ragged",
    "Sam",
    "SamData",
    "SamModule",
    "SamlitError",
    "Sample",
    "Scene",
    "Source",
    "Task",
    "UsageError",
    "__version__",
]

_MODULES = {
    "contracts": ("Decoder", "Encoder", "Prompt", "Task"),
    "datamodule": ("SamData",),
    "errors": ("SamlitError", "UsageError"),
    "everything": ("Found",),
    "model": ("Sam",),
    "module": ("SamModule",),
    "predictor": ("InFrame", "Masks", "Predictor"),
    "source": ("Sample", "Source"),
    "structures": ("Batch", "Embedding", "Prediction", "PromptSet", "Ragged", "Scene"),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'samlit' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"samlit.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
