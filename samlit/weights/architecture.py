"""Which model weights belong to, told by their names and shapes, and that model built from plug-ins by name."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from samlit import plugins
from samlit.contracts import Decoder, Sparse
from samlit.errors import UsageError
from samlit.model import Sam
from samlit.structures import Embedding

__all__ = ["HEADS", "Architecture", "Part", "answer_alike", "decoder", "recognise"]

HEADS = 8
"""Attention heads of SAM's decoder: the one number that no shape tells (SAM_SPEC 1.5)."""


@dataclass(frozen=True)
class Part:
    """A plug-in and what it is built with.

    Attributes:
        kind: Its kind, "encoders", "prompts" or "decoders".
        name: What it is registered as.
        arguments: For its constructor.
    """

    kind: str
    name: str
    arguments: dict[str, Any]

    @property
    def type(self) -> Any:
        """The plug-in itself.

        Raises:
            SamlitError: It is not installed.
        """
        return plugins.load(plugins.find(self.kind, self.name).class_path, "weights")


@dataclass(frozen=True)
class Architecture:
    """A model that SAM's own names can hold.

    Attributes:
        encoder: The encoder.
        prompts: The prompt types.
        decoder: The decoder.
        image_size: Side of the frame that it was trained at, pixels.
    """

    encoder: Part
    prompts: tuple[Part, ...]
    decoder: Part
    image_size: int

    def build(self) -> Sam:
        """The model, with places for all weights and nothing sensible in them yet.

        Raises:
            SamlitError: A plug-in of it is not installed.
            ValueError: Its numbers do not fit each other.
        """
        try:
            return self._build()
        except (UsageError, TypeError) as error:  # nobody typed these names
            raise ValueError(f"its model cannot be built here: {error}") from error

    def _build(self) -> Sam:
        with _without_chance():
            encoder = self.encoder.type(image_size=self.image_size, **self.encoder.arguments)
            prompts = [functools.partial(part.type, **part.arguments) for part in self.prompts]
            return Sam(encoder, prompts, functools.partial(self.decoder.type, **self.decoder.arguments))


@contextmanager
def _without_chance() -> Iterator[None]:
    """Leave weights as they lie in memory: to draw those of a ViT that are overwritten at once takes most of a load."""
    names = ("kaiming_uniform_", "normal_", "orthogonal_", "trunc_normal_", "uniform_")
    before = {name: getattr(nn.init, name) for name in names}
    for name in names:
        setattr(nn.init, name, lambda tensor, *args, **kwargs: tensor)
    try:
        yield
    finally:
        for name in names:
            setattr(nn.init, name, before[name])


def recognise(state: dict[str, Tensor], heads: int = HEADS) -> Architecture:
    """The model that weights by SAM's own names are of.

    Args:
        state: The weights.
        heads: Attention heads of the decoder.

    Raises:
        ValueError: It is no model that is known here; one line that says by what.
    """
    try:
        return _recognise(state, heads)
    except KeyError as error:
        raise ValueError(f"it lacks {error.args[0]!r}") from None


def _recognise(state: dict[str, Tensor], heads: int) -> Architecture:
    if "image_encoder.patch_embed.proj.weight" in state:
        encoder, image_size = _vit(state)
    elif any(name.startswith("image_encoder.patch_embed.seq.") for name in state):
        encoder, image_size = _tiny_vit(state), 1024  # it has no positions that would tell
    else:
        raise ValueError("its encoder is none that is known here: neither SAM's ViT nor TinyViT")
    answers = decoder(state, heads)
    if answers.name == "hq":  # it sees what the first block saw that looked at the whole grid (arXiv 2306.01567)
        first = encoder.arguments["global_blocks"][:1] if encoder.name == "vit" else True
        encoder.arguments["early"] = first
    hidden = state["prompt_encoder.mask_downscaling.3.weight"].shape[0]
    prompts = (
        Part("prompts", "points", {}),
        Part("prompts", "boxes", {}),
        Part("prompts", "masks", {} if hidden == 16 else {"hidden": hidden}),
    )
    return Architecture(encoder, prompts, answers, image_size)


def _vit(state: dict[str, Tensor]) -> tuple[Part, int]:
    """SAM's ViT: the widths and the patch from shapes, windows and heads from the relative positions."""
    dim, colours, patch, _ = state["image_encoder.patch_embed.proj.weight"].shape
    if colours != 3:
        raise ValueError("its encoder does not begin with SAM's patches of pixels, but with a stem of its own")
    _, rows, columns, _ = state["image_encoder.pos_embed"].shape
    if rows != columns:
        raise ValueError(f"its frame is not square: {columns} x {rows} cells")
    depth = _count(state, r"image_encoder\.blocks\.(\d+)\.")
    tables = [state[f"image_encoder.blocks.{i}.attn.rel_pos_h"] for i in range(depth)]
    spans = [(len(table) + 1) // 2 for table in tables]
    # Blocks whose table spans the grid attend everywhere. A finetuned file may keep tables of the grid that it came
    # from, which was larger than a window.
    everywhere = rows if rows in spans else max(spans) if len(set(spans)) > 1 else 0
    windows = sorted(set(spans) - {everywhere})
    if len(windows) > 1:
        raise ValueError(f"its blocks have windows of more than one size: {', '.join(map(str, windows))}")
    arguments = {
        "dim": dim,
        "depth": depth,
        "heads": dim // tables[0].shape[1],
        "global_blocks": tuple(i for i, span in enumerate(spans) if span == everywhere),
        "window": windows[0] if windows else everywhere,
        "patch": patch,
        "channels": state["image_encoder.neck.0.weight"].shape[0],
        "mlp_ratio": state["image_encoder.blocks.0.mlp.lin1.weight"].shape[0] / dim,
    }
    return Part("encoders", "vit", arguments), rows * patch


def _tiny_vit(state: dict[str, Tensor]) -> Part:
    """TinyViT: a stage of convolutions, then stages of attention."""
    stages = range(1, _count(state, r"image_encoder\.layers\.(\d+)\."))
    first = [f"image_encoder.layers.{i}.blocks.0" for i in stages]
    biases = [state[f"{block}.attn.attention_biases"] for block in first]
    dims = [state[f"{block}.attn.proj.weight"].shape[0] for block in first]
    arguments = {
        "dims": (state["image_encoder.patch_embed.seq.2.c.weight"].shape[0], *dims),
        "depths": tuple(_count(state, rf"image_encoder\.layers\.{i}\.blocks\.(\d+)\.") for i in (0, *stages)),
        "heads": tuple(bias.shape[0] for bias in biases),
        "windows": tuple(round(bias.shape[1] ** 0.5) for bias in biases),
        "channels": state["image_encoder.neck.0.weight"].shape[0],
        "mlp_ratio": state[f"{first[0]}.mlp.fc1.weight"].shape[0] / dims[0],
    }
    return Part("encoders", "tiny_vit", arguments)


def decoder(state: dict[str, Tensor], heads: int = HEADS) -> Part:
    """The decoder that weights by SAM's own names are of.

    Raises:
        KeyError: A weight that every decoder has is missing.
    """
    arguments = {
        "depth": _count(state, r"mask_decoder\.transformer\.layers\.(\d+)\."),
        "heads": heads,
        "mlp_dim": state["mask_decoder.transformer.layers.0.mlp.lin1.weight"].shape[0],
        "multimask_outputs": state["mask_decoder.mask_tokens.weight"].shape[0] - 1,
        "iou_hidden": state["mask_decoder.iou_prediction_head.layers.0.weight"].shape[0],
    }
    if "mask_decoder.hf_token.weight" not in state:
        return Part("decoders", "mask", arguments)
    # SAM-HQ is SAM's decoder and more beside it.
    arguments["early_channels"] = state["mask_decoder.compress_vit_feat.0.weight"].shape[0]
    return Part("decoders", "hq", arguments)


@torch.inference_mode()
def answer_alike(a: Decoder, b: Decoder, channels: int, part: Part) -> bool:
    """Whether two decoders answer alike with the weights of the first, which the second is given.

    Names and shapes may be the same and the answers not, as with another number of attention heads.

    Args:
        a: A decoder.
        b: Another.
        channels: Width of the embedding.
        part: What the second is: it tells the width of the early map that it looks at, if it does.

    Raises:
        ValueError: One of them needs more than an image embedding and such a map.
    """
    b.load_state_dict(a.state_dict())
    device = next(a.parameters()).device
    chance = torch.Generator().manual_seed(0)
    image = torch.randn(1, channels, 4, 4, generator=chance)
    position, tokens = torch.randn(channels, 4, 4, generator=chance), torch.randn(1, 2, channels, generator=chance)
    width = part.arguments.get("early_channels")
    early = () if width is None else (torch.randn(1, width, 4, 4, generator=chance).to(device),)
    answers = []
    for decoder in (a, b.to(device)):
        training = decoder.training
        sparse = Sparse(tokens.to(device), torch.ones(1, 2, dtype=torch.bool, device=device))
        which = torch.zeros(1, dtype=torch.int64, device=device)
        try:
            logits, _ = decoder.eval()(
                Embedding(image.to(device), early), position.to(device), which, sparse, None, None
            )
        finally:
            decoder.train(training)
        answers.append(logits)
    return bool((answers[0] - answers[1]).abs().max() <= 1e-3 * answers[1].abs().max())


def _count(names: Iterable[str], pattern: str) -> int:
    """How many numbered things there are."""
    found = [int(match[1]) for name in names if (match := re.match(pattern, name))]
    return max(found, default=-1) + 1
