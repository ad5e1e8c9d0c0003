"""samlit: the open training framework for promptable segmentation.

What stands in `__all__` is the public API, beside the commands, the keys of recipes and the layout of files. It is
imported when it is first asked for, so that `import samlit` takes nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from samlit.contracts import Decoder, Encoder, Prompt, Source, Task
    from samlit.datamodule import SamData
    from samlit.model import Sam
    from samlit.module import SamModule
    from samlit.predictor import Masks, Predictor
    from samlit.structures import Batch, Embedding, Prediction, PromptSet, Ragged, Sample, Scene

__all__ = [
    "Batch",
    "Decoder",
    "Embedding",
    "Encoder",
    "Masks",
    "Prediction",
    "Predictor",
    "Prompt",
    "PromptSet",
    "Ragged",
    "Sam",
    "SamData",
    "SamModule",
    "Sample",
    "Scene",
    "Source",
    "Task",
    "__version__",
]

__version__ = "0.1.0.dev0"

_HOMES = {
    "contracts": ("Decoder", "Encoder", "Prompt", "Source", "Task"),
    "datamodule": ("SamData",),
    "model": ("Sam",),
    "module": ("SamModule",),
    "predictor": ("Masks", "Predictor"),
    "structures": ("Batch", "Embedding", "Prediction", "PromptSet", "Ragged", "Sample", "Scene"),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"samlit.{module}"), name)
    raise AttributeError(f"module 'samlit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
