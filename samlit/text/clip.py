"""CLIP, frozen: phrases and cut-outs of images to embeddings of one space (open_clip)."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samlit.errors import UsageError, did_you_mean, one_line

__all__ = ["Clip", "Tokens", "build", "configurations", "width_of"]

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

Config = str | Mapping[str, Any]


class Tokens(NamedTuple):
    """A tokenizer and how many tokens its model reads."""

    tokenizer: Any
    length: int

    def __call__(self, phrases: Sequence[str]) -> Tensor:
        """(n, length) int64.

        Raises:
            ValueError: A phrase is empty or longer than the model reads.
        """
        for phrase in phrases:
            if not phrase.strip():
                raise ValueError("a text prompt says what is wanted; this one is empty")
            if (num := self._count(phrase)) > self.length:
                raise ValueError(
                    f"the text {phrase[:40] + '…' if len(phrase) > 40 else phrase!r} has {num} tokens, and this CLIP "
                    f"reads {self.length} at most: say it in fewer words"
                )
        tokens: Tensor = self.tokenizer(list(phrases), self.length)
        return tokens

    def _count(self, phrase: str) -> int:
        """Tokens of a phrase with those of its beginning and end."""
        if hasattr(self.tokenizer, "encode"):
            return len(self.tokenizer.encode(phrase)) + 2
        return len(self.tokenizer.tokenizer(phrase)["input_ids"])


class Clip:
    """A frozen CLIP. It is no module: no checkpoint keeps it, no optimiser sees it, no rank waits for it.

    It is loaded when it is first asked, once a process.

    Args:
        model: A model of open_clip (`ViT-L-14-336-quickgelu`), a JSON file of its configuration, or the configuration
            itself.
        weights: A tag of open_clip's (`openai`), or a file.
    """

    def __init__(self, model: Config, weights: str | None) -> None:
        self.model, self.weights = model, weights
        self._phrases: dict[str, Tensor] = {}
        self._key = json.dumps(model, sort_keys=True) if isinstance(model, Mapping) else str(model)

    def identity(self) -> dict[str, Any]:
        """What tells its embeddings from another's, in plain values, without loading it."""
        file = Path(self.weights) if self.weights else None
        if file is None or not file.is_file():
            return {"model": self.model, "weights": self.weights}
        with file.open("rb") as stream:
            return {"model": self.model, "weights": hashlib.file_digest(stream, "sha256").hexdigest()}

    @property
    def image_size(self) -> int:
        """Side of the square pictures that it looks at, in pixels."""
        return _side(_config(self.model))

    def text(self, phrases: Sequence[str], device: torch.device | str = "cpu") -> Tensor:
        """Embed phrases, each once: (n, D) float32, of length 1.

        Raises:
            ValueError: A phrase is empty or too long.
            UsageError: There is no such model, or its weights are not to be had.
        """
        new = [phrase for phrase in dict.fromkeys(phrases) if phrase not in self._phrases]
        if new:
            net, tokens = self._loaded()
            with torch.inference_mode():
                read = tokens(new).to(next(net.parameters()).device)
                parts = [F.normalize(net.encode_text(part).float(), dim=1).cpu() for part in torch.split(read, 256)]
            self._phrases |= dict(zip(new, torch.cat(parts).clone().unbind(), strict=True))
        if not phrases:
            return torch.zeros(0, width_of(self.model), device=device)
        return torch.stack([self._phrases[phrase] for phrase in phrases]).to(device)

    def images(self, pictures: Tensor, inside: Tensor) -> Tensor:
        """Embed cut-outs: what they show where they are masked, (n, D) float32, of length 1.

        In the last layer the output token looks at patches in the mask only (SAM_SPEC 1.10).

        Args:
            pictures: (n, 3, S, S) float from 0 to 1, S the image size.
            inside: (n, S, S) bool, the masks.
        """
        if not len(pictures):
            return torch.zeros(0, width_of(self.model), device=pictures.device)
        net, _ = self._loaded(pictures.device)
        with torch.no_grad():
            return F.normalize(encode_images(net, pictures, inside).float(), dim=1)

    def _loaded(self, device: torch.device | None = None) -> tuple[Any, Tokens]:
        net, tokens = _load(self._key, self.weights)
        return (net if device is None else net.to(device)), tokens


def encode_images(net: Any, pictures: Tensor, inside: Tensor) -> Tensor:
    """As `Clip.images`, with gradients and of any length.

    Raises:
        ValueError: The model's image tower has no output token.
    """
    visual = net.visual
    blocks = getattr(getattr(visual, "transformer", None), "resblocks", None)
    if blocks is None or getattr(visual, "pool_type", "") != "tok" or getattr(visual, "attn_pool", None) is not None:
        raise ValueError("the image tower of this CLIP has no output token: train from phrases, or take a ViT of CLIP")
    mean, std = (pictures.new_tensor(x).view(3, 1, 1) for x in (MEAN, STD))
    hidden = _outside(inside, visual.grid_size).to(pictures.dtype)  # (n, L) 0 or -inf
    length, heads = hidden.shape[1] + 1, blocks[-1].attn.num_heads
    mask = hidden.new_zeros(len(pictures), length, length)
    mask[:, 0, 1:] = hidden
    mask = mask.repeat_interleave(heads, 0)

    def look(block: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**kwargs, "attn_mask": mask}

    handle = blocks[-1].register_forward_pre_hook(look, with_kwargs=True)
    try:
        encoded: Tensor = net.encode_image((pictures - mean) / std)
    finally:
        handle.remove()
    return encoded


def _outside(inside: Tensor, grid: tuple[int, int]) -> Tensor:
    """-inf for each patch of which less than half is in the mask, but for the one of which most is: (n, L)."""
    share = F.adaptive_avg_pool2d(inside[:, None].float(), grid).flatten(1)
    kept = (share >= 0.5) | (share >= share.amax(1, keepdim=True))
    return torch.zeros_like(share).masked_fill(~kept, -math.inf)


def build(model: Config) -> tuple[Any, Tokens]:
    """A model with weights by chance, and its tokenizer.

    Raises:
        UsageError: There is no such model.
    """
    config = _config(model)
    if isinstance(model, Mapping):
        import open_clip

        try:
            net = open_clip.model.CLIP(**{key: value for key, value in config.items() if key != "init_logit_scale"})
        except (TypeError, AssertionError, KeyError) as error:
            raise UsageError(f"clip: this is no configuration of open_clip's ({one_line(error)})") from error
        length = int(config["text_cfg"].get("context_length", 77))
        return net, Tokens(open_clip.SimpleTokenizer(context_length=length), length)
    return _created(str(model), None)


@lru_cache(maxsize=2)
def _load(key: str, weights: str | None) -> tuple[Any, Tokens]:
    model: Config = json.loads(key) if key.startswith("{") else key
    if weights is None:
        raise UsageError("clip: a CLIP without weights knows no word; give a tag of open_clip's or a file")
    if isinstance(model, Mapping):
        net, tokens = build(model)
        file = Path(weights)
        if not file.is_file():
            raise UsageError(f"there is no {weights}, the CLIP of this recipe: `samlit clip --recipe NAME` makes it")
        try:
            net.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
        except Exception as error:
            raise UsageError(f"{weights}: is no CLIP of this configuration ({one_line(error)})") from error
    else:
        net, tokens = _created(str(model), weights)
    net.eval().requires_grad_(False)
    return net, tokens


def _created(model: str, weights: str | None) -> tuple[Any, Tokens]:
    config = _config(model)
    import open_clip

    name = Path(model).stem if model.endswith(".json") else model
    if model.endswith(".json"):
        open_clip.add_model_config(model)
    if weights is not None and not Path(weights).is_file():
        tags = open_clip.list_pretrained_tags_by_model(name)
        if weights.lower() not in tags:
            known = f" (known: {', '.join(tags)})" if tags else ""
            raise UsageError(
                f"clip: {name} has no weights {weights!r}{did_you_mean(weights, tags)}{known}; nor is it a file"
            )
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)  # it is told below, once
    try:
        net = open_clip.create_model(name, pretrained=weights)
        tokenizer = open_clip.get_tokenizer(name)
    except Exception as error:  # what hubs and files can raise is endless
        why = one_line(error).partition(". ")[0]
        raise UsageError(f"clip: {name} with {weights!r} cannot be loaded ({why})") from error
    finally:
        logging.disable(disabled)
    return net, Tokens(tokenizer, int(config.get("text_cfg", {}).get("context_length", 77)))


@lru_cache(maxsize=1)
def configurations() -> Mapping[str, Path]:
    """The models of open_clip by name, found without importing it."""
    spec = find_spec("open_clip")
    if spec is None or not spec.submodule_search_locations:
        return {}
    folder = Path(next(iter(spec.submodule_search_locations))) / "model_configs"
    return {file.stem: file for file in sorted(folder.glob("*.json"))}


def width_of(model: Config) -> int:
    """D, the width of a model's embeddings.

    Raises:
        UsageError: There is no such model.
    """
    return int(_config(model)["embed_dim"])


def _config(model: Config) -> Mapping[str, Any]:
    if isinstance(model, Mapping):
        if missing := [key for key in ("embed_dim", "vision_cfg", "text_cfg") if key not in model]:
            raise UsageError(
                f"clip: a configuration of open_clip's has embed_dim, vision_cfg and text_cfg; no {missing[0]}"
            )
        return model
    known = configurations()
    file = Path(model) if model.endswith(".json") else known.get(model)
    if file is None or not file.is_file():
        raise UsageError(f"clip: open_clip has no model {model!r}{did_you_mean(model, known)}")
    try:
        config: dict[str, Any] = json.loads(file.read_text())
        int(config["embed_dim"]), _side(config)
    except (ValueError, KeyError, OSError) as error:
        raise UsageError(f"clip: {file} is no configuration of open_clip's ({one_line(error)})") from error
    return config


def _side(config: Mapping[str, Any]) -> int:
    side = config["vision_cfg"].get("image_size", 224)
    return int(side[0] if isinstance(side, Sequence) else side)
