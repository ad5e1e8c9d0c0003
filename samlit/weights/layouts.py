"""The names that weights go by elsewhere: SAM's own code, transformers, timm, MobileSAM's exports, and here.

Whatever comes in is brought to SAM's own names first ("sam", SAM_SPEC 1.8), and whatever goes out starts from them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import cache
from typing import Literal

import torch
from torch import Tensor

__all__ = ["Layout", "from_sam", "to_sam", "which"]

Layout = Literal["sam", "hf", "timm", "mae", "samlit"]

# Beginnings of names, longest first where one begins another; {} is a number. SAM's own, and what is here.
SAMLIT = {
    "image_encoder.": "encoder.",
    "prompt_encoder.pe_layer.": "position.",
    "prompt_encoder.point_embeddings.0.": "prompts.points.background.",
    "prompt_encoder.point_embeddings.1.": "prompts.points.foreground.",
    "prompt_encoder.point_embeddings.2.": "prompts.boxes.top_left.",
    "prompt_encoder.point_embeddings.3.": "prompts.boxes.bottom_right.",
    "prompt_encoder.not_a_point_embed.": "prompts.points.not_a_point.",
    "prompt_encoder.no_mask_embed.": "prompts.masks.no_mask.",
    "prompt_encoder.mask_downscaling.": "prompts.masks.mask_downscaling.",
    "mask_decoder.": "decoder.",
}

# SAM's own, and transformers' SamModel.
HF = {
    "image_encoder.pos_embed": "vision_encoder.pos_embed",
    "image_encoder.patch_embed.proj.": "vision_encoder.patch_embed.projection.",
    "image_encoder.blocks.{}.norm1.": "vision_encoder.layers.{}.layer_norm1.",
    "image_encoder.blocks.{}.norm2.": "vision_encoder.layers.{}.layer_norm2.",
    "image_encoder.blocks.{}.attn.": "vision_encoder.layers.{}.attn.",
    "image_encoder.blocks.{}.mlp.": "vision_encoder.layers.{}.mlp.",
    "image_encoder.neck.0.": "vision_encoder.neck.conv1.",
    "image_encoder.neck.1.": "vision_encoder.neck.layer_norm1.",
    "image_encoder.neck.2.": "vision_encoder.neck.conv2.",
    "image_encoder.neck.3.": "vision_encoder.neck.layer_norm2.",
    "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix": "shared_image_embedding.positional_embedding",
    "prompt_encoder.point_embeddings.{}.": "prompt_encoder.point_embed.{}.",
    "prompt_encoder.not_a_point_embed.": "prompt_encoder.not_a_point_embed.",
    "prompt_encoder.no_mask_embed.": "prompt_encoder.no_mask_embed.",
    "prompt_encoder.mask_downscaling.0.": "prompt_encoder.mask_embed.conv1.",
    "prompt_encoder.mask_downscaling.1.": "prompt_encoder.mask_embed.layer_norm1.",
    "prompt_encoder.mask_downscaling.3.": "prompt_encoder.mask_embed.conv2.",
    "prompt_encoder.mask_downscaling.4.": "prompt_encoder.mask_embed.layer_norm2.",
    "prompt_encoder.mask_downscaling.6.": "prompt_encoder.mask_embed.conv3.",
    "mask_decoder.iou_token.": "mask_decoder.iou_token.",
    "mask_decoder.mask_tokens.": "mask_decoder.mask_tokens.",
    "mask_decoder.transformer.layers.{}.norm{}.": "mask_decoder.transformer.layers.{}.layer_norm{}.",
    "mask_decoder.transformer.norm_final_attn.": "mask_decoder.transformer.layer_norm_final_attn.",
    "mask_decoder.transformer.": "mask_decoder.transformer.",
    "mask_decoder.output_upscaling.0.": "mask_decoder.upscale_conv1.",
    "mask_decoder.output_upscaling.1.": "mask_decoder.upscale_layer_norm.",
    "mask_decoder.output_upscaling.3.": "mask_decoder.upscale_conv2.",
    "mask_decoder.output_hypernetworks_mlps.{}.layers.0.": "mask_decoder.output_hypernetworks_mlps.{}.proj_in.",
    "mask_decoder.output_hypernetworks_mlps.{}.layers.1.": "mask_decoder.output_hypernetworks_mlps.{}.layers.0.",
    "mask_decoder.output_hypernetworks_mlps.{}.layers.2.": "mask_decoder.output_hypernetworks_mlps.{}.proj_out.",
    "mask_decoder.iou_prediction_head.layers.0.": "mask_decoder.iou_prediction_head.proj_in.",
    "mask_decoder.iou_prediction_head.layers.1.": "mask_decoder.iou_prediction_head.layers.0.",
    "mask_decoder.iou_prediction_head.layers.2.": "mask_decoder.iou_prediction_head.proj_out.",
}
# The same weights once more, for the prompts.
HF_TWIN = "prompt_encoder.shared_embedding.positional_embedding"

# SAM's own, and timm's samvit models, which are its encoder.
TIMM = {
    "image_encoder.blocks.{}.mlp.lin1.": "blocks.{}.mlp.fc1.",
    "image_encoder.blocks.{}.mlp.lin2.": "blocks.{}.mlp.fc2.",
    "image_encoder.": "",
}

TABLES: dict[Layout, dict[str, str]] = {"samlit": SAMLIT, "hf": HF, "timm": TIMM}


def which(names: Iterable[str]) -> Layout | None:
    """Whose names these are; None where they are nobody's that is known here."""
    names = set(names)
    starts = {name.partition(".")[0] for name in names}
    if {"image_encoder", "mask_decoder"} <= starts:
        return "sam"
    if {"vision_encoder", "mask_decoder"} <= starts:
        return "hf"
    if {"encoder", "prompts", "decoder", "position"} <= starts:
        return "samlit"
    if {"cls_token", "pos_embed", "blocks.0.attn.qkv.weight"} <= names:
        return "mae"
    if {"neck.0.weight", "blocks.0.attn.rel_pos_h", "blocks.0.mlp.fc1.weight"} <= names:
        return "timm"
    return None


def to_sam(state: dict[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """Weights of any layout but "mae" under SAM's own names.

    Raises:
        ValueError: SAM has no name for one of them.
    """
    if layout == "hf":  # files have one of the two, or both
        first = HF["prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"]
        state = {first: state[HF_TWIN], **state} if HF_TWIN in state else state
        state = {name: value for name, value in state.items() if name != HF_TWIN}
    elif layout == "sam":
        return _with_norms(_without_head(state))
    return _rename(state, _renamer(layout, back=True))


def from_sam(state: dict[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """Weights by SAM's own names under those of another layout.

    Raises:
        ValueError: The other has no name for one of them.
    """
    if layout == "sam":
        return state
    renamed = _rename(state, _renamer(layout, back=False))
    if layout == "hf":
        matrix = state["prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"]
        renamed[HF_TWIN] = matrix.clone()  # safetensors takes nothing twice
    return renamed


def _rename(state: dict[str, Tensor], rename: Callable[[str], str | None]) -> dict[str, Tensor]:
    renamed = {}
    for name, value in state.items():
        new = rename(name)
        if new is None:
            raise ValueError(f"there is no place for {name!r} among the names that others know")
        renamed[new] = value
    return renamed


@cache
def _renamer(layout: Layout, back: bool) -> Callable[[str], str | None]:
    """A function from one name to the other; None where there is no other."""
    pairs = [(there, here) if back else (here, there) for here, there in TABLES[layout].items()]
    rules = [(re.compile(re.escape(old).replace(r"\{\}", r"(\d+)")), new) for old, new in pairs]

    def rename(name: str) -> str | None:
        for pattern, new in rules:
            if match := pattern.match(name):
                return new.format(*match.groups()) + name[match.end() :]
        return None

    return rename


def _without_head(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the classifier that TinyViT was trained with before it became an encoder."""
    heads = ("image_encoder.head.", "image_encoder.norm_head.")
    return {name: value for name, value in state.items() if not name.startswith(heads)}


def _with_norms(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give back to TinyViT's convolutions the batch norms that an export had folded into them.

    A norm of mean 0 and variance 1 whose scale makes up for the 1e-5 under its root, and whose shift is the
    convolution's bias, changes nothing; it can be trained on like any other.
    """
    new: dict[str, Tensor] = {}
    for name, value in state.items():
        match = re.fullmatch(r"(image_encoder\.(?:patch_embed\.seq|layers)\..*?)(\.c)?\.(weight|bias)", name)
        stem = match[1] if match else ""
        if not match or not _is_folded(state, stem):
            new[name] = value
        elif match[3] == "weight":
            new[f"{stem}.c.weight"] = value
        else:
            new[f"{stem}.bn.weight"] = torch.full_like(value, (1 + 1e-5) ** 0.5)
            new[f"{stem}.bn.bias"] = value
            new[f"{stem}.bn.running_mean"] = torch.zeros_like(value)
            new[f"{stem}.bn.running_var"] = torch.ones_like(value)
            new[f"{stem}.bn.num_batches_tracked"] = torch.zeros((), dtype=torch.int64)
    return new


def _is_folded(state: dict[str, Tensor], stem: str) -> bool:
    """Whether a convolution of TinyViT's has a bias, which none has that a norm follows."""
    return any(
        f"{stem}{inner}.bias" in state and f"{stem}{inner}.weight" in state and state[f"{stem}{inner}.weight"].ndim == 4
        for inner in (".c", "")
    )
