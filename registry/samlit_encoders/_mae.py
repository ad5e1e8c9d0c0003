"""SAM's start: a masked autoencoder's weights as an image encoder's (SAM_SPEC 1.3, arXiv 2111.06377)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from samlit_encoders.vit import Vit, resized

__all__ = ["from_mae"]


def from_mae(state: Mapping[str, Tensor], vit: Vit) -> dict[str, Tensor]:
    """What `vit` starts from: blocks, pixels and positions of MAE's encoder; all else as `vit` has it.

    The published MAE weights are licensed CC BY-NC 4.0: not for commercial use, unlike SAM's own, and what is trained
    from them inherits the question. Whoever loads them says so.

    Args:
        state: MAE's weights by their names there (what its files hold under "model"), with its decoder or without.
        vit: Of the same width and depth, with the "patch" stem. Its patch and grid may be others: kernels and positions
            are brought to them. It is not changed.

    Raises:
        ValueError: The weights are of another model; one line that names what does not fit.
    """
    found = {_name(key): value for key, value in state.items() if key.startswith(("patch_embed.", "blocks."))}
    own = vit.state_dict()
    wanted = {key for key in own if key.startswith(("patch_embed.", "blocks.")) and "rel_pos" not in key}
    if wrong := sorted(wanted ^ found.keys()):
        lacks = "lack" if wrong[0] in wanted else "have, and this model has not,"
        raise ValueError(f"MAE weights: they {lacks} {wrong[0]!r}" + (f" and {len(wrong) - 1} more" * (len(wrong) > 1)))
    if "pos_embed" not in state:
        raise ValueError("MAE weights: they lack 'pos_embed'")
    found["pos_embed"] = _positions(state["pos_embed"], own["pos_embed"].shape[1:3])
    kernel = "patch_embed.proj.weight"
    found[kernel] = _kernels(found[kernel], own[kernel].shape[-1])
    for key, value in found.items():
        if value.shape != own[key].shape:
            shapes = " and not ".join(" x ".join(map(str, shape)) for shape in (value.shape, own[key].shape))
            raise ValueError(f"MAE weights: {key!r} is {shapes}")
    return own | found


def _name(key: str) -> str:
    """Of a weight in SAM."""
    return key.replace(".mlp.fc", ".mlp.lin")


def _positions(positions: Tensor, size: torch.Size) -> Tensor:
    """(1, 1 + G x G, dim), the class token's first, to (1, *size, dim)."""
    side = round((positions.shape[1] - 1) ** 0.5)
    if side * side + 1 != positions.shape[1]:
        raise ValueError(f"MAE weights: {positions.shape[1]} positions are not a class token's and a square's")
    return resized(positions[:, 1:].reshape(1, side, side, -1), size)


def _kernels(kernels: Tensor, side: int) -> Tensor:
    """Kernels (dim, 3, p, p) for patches of another side that answer an enlarged patch as these answer the patch.

    What SAM did to ViT-H's kernels of 14 is not published; this is exact for enlarged pixels (arXiv 2212.08013), where
    interpolated kernels answer a larger patch louder.
    """
    patch = kernels.shape[-1]
    if patch == side:
        return kernels
    pixels = torch.eye(patch * patch, dtype=torch.float64).view(-1, 1, patch, patch)
    enlarge = F.interpolate(pixels, (side, side), mode="bicubic", align_corners=False).flatten(1)  # (p p, side side)
    fitted: Tensor = kernels.double().flatten(2).cpu() @ torch.linalg.pinv(enlarge).t()
    return fitted.view(*kernels.shape[:2], side, side).to(kernels)
