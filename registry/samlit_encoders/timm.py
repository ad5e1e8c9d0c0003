"""Any backbone of timm with SAM's neck."""

from __future__ import annotations

from typing import Any

import timm
import torch
from timm.models import group_parameters
from torch import Tensor, nn

from samlit.contracts import Encoder
from samlit.errors import SamlitError, did_you_mean, one_line
from samlit.layers import hold_norms, neck
from samlit.model import PIXEL_MEAN, PIXEL_STD
from samlit.structures import Embedding

__all__ = ["Timm"]


class Timm(Encoder):
    """Any backbone of timm by its name, with SAM's neck on its map of the wanted stride.

    A net whose positions can be resized (ViT, MAE, DINOv3, EVA) takes frames of any size; one whose positions belong to
    a size (SAM's ViT, Hiera, Swin) is built for `image_size`, and so are its weights.

    A net that was trained with another mean and deviation than SAM's receives pictures normalised by its own: an affine
    map undoes samlit's and applies the net's, exactly. The frame's padding goes through it too, so that the net sees
    what SAM sees, a border of SAM's mean colour.

    Args:
        image_size: Side of the square frame in pixels, a multiple of the stride.
        name: As timm calls it, with a tag if wanted: convnext_tiny, vit_base_patch16_224.mae, hiera_small_224,
            vit_small_patch16_dinov3, samvit_base_patch16. `python -c "import timm; print(timm.list_models())"` has all.
        pretrained: Whether a training starts from timm's weights, which are downloaded once, when it starts. A
            checkpoint that is loaded brings its own, and fetches nothing.
        stride: Pixels of the frame a cell. Of a net's maps with that stride the deepest is taken, and what comes after
            it is left out.
        channels: Width C of the image embedding.
        detail: Whether the net's maps of a half and a quarter of the stride are given to a decoder with `high_res`.
        freeze_norms: Whether batch norms keep their stored statistics in training, which batches of few images need.
        options: More arguments for timm's `create_model`, such as {drop_path_rate: 0.1} or {patch_size: 16}.
    """

    shift: Tensor
    scale: Tensor

    def __init__(
        self,
        image_size: int = 1024,
        name: str = "convnext_tiny",
        pretrained: bool = False,
        stride: int = 16,
        channels: int = 256,
        detail: bool = False,
        freeze_norms: bool = False,
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        architecture = name.partition(".")[0]
        if not timm.is_model(architecture):
            raise ValueError(f"timm has no model {architecture!r}{did_you_mean(architecture, timm.list_models())}")
        tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{architecture}.*")]
        if (tag := name.partition(".")[2]) and tag not in tags:
            raise ValueError(f"timm has no weights {name!r} (known: {', '.join(tags) or 'none'})")
        if pretrained and not tags and "pretrained_cfg_overlay" not in (options or {}):
            raise ValueError(f"timm has no weights for {name!r}: leave `pretrained` off")
        if image_size % stride:
            raise ValueError(f"image_size {image_size} is not a multiple of the stride, {stride}")
        self.channels, self.stride, self.freeze_norms = channels, stride, freeze_norms
        self.pretrained, self._made_of = pretrained, (name, image_size, options or {})
        net = self._create()
        if not hasattr(net, "forward_intermediates"):
            raise ValueError(f"timm's {name} gives no maps of its stages: take another backbone")
        strides = [int(stage["reduction"]) for stage in net.feature_info]
        wanted = [stride // 4, stride // 2, stride] if detail else [stride]
        if missing := [s for s in wanted if s not in strides]:
            raise ValueError(
                f"timm's {name} has maps of the strides {', '.join(map(str, dict.fromkeys(strides)))}; "
                f"{missing[0]} is wanted" + (" for detail" if missing[0] != stride else "")
            )
        # Of equal strides the last one: the deepest.
        self.taken = [len(strides) - 1 - strides[::-1].index(s) for s in wanted]
        widths = [int(net.feature_info[i]["num_chs"]) for i in self.taken]
        # SAM's ViT has its neck already, which timm calls a norm; a plain ViT's last norm is a part of its features.
        own = getattr(net, "neck", None)
        necked = isinstance(own, nn.Sequential) and getattr(own[0], "out_channels", 0) == channels
        self.norm = necked or (len(set(strides)) == 1 and own is None)
        self.net = self._prune(net)
        self.neck = nn.Identity() if necked else neck(widths[-1], channels)
        self.detail = None
        if detail:
            narrow = zip(widths, (channels // 8, channels // 4), strict=False)
            self.detail = nn.ModuleList([nn.Conv2d(width, out, 1) for width, out in narrow])
        shift, scale = _renormalise(net.pretrained_cfg)
        self.register_buffer("shift", shift, persistent=False)
        self.register_buffer("scale", scale, persistent=False)
        groups: dict[str, int] = group_parameters(self.net, self.net.group_matcher(coarse=False), reverse=True)
        self._layer = {f"net.{parameter}": layer for parameter, layer in groups.items()}
        self._layers = max(groups.values()) + (1 if necked else 2)

    def _create(self, pretrained: bool = False) -> Any:
        """The whole net, for frames of any size where it can be, else for this image size."""
        name, image_size, options = self._made_of
        for size in ({"dynamic_img_size": True}, {"img_size": image_size}):
            try:
                return timm.create_model(name, pretrained=pretrained, **size, **options)
            except TypeError:  # it does not take this argument: each net has its own
                continue
        try:
            return timm.create_model(name, pretrained=pretrained, **options)
        except TypeError as error:
            raise ValueError(f"options: timm's {name} does not take them ({one_line(error)})") from error

    def _prune(self, net: Any) -> Any:
        """Leave out what comes after the last map that is taken: no gradient would reach it."""
        net.prune_intermediate_layers(self.taken, prune_norm=not self.norm, prune_head=True)
        return net

    def start(self) -> None:
        """Fetch timm's weights, if they are wanted."""
        if not self.pretrained:
            return
        name = self._made_of[0]
        try:
            whole = self._create(pretrained=True)
        except Exception as error:  # the hub, the network, the disk and the file each have their own
            why = one_line(error).partition(". ")[0]
            raise SamlitError(
                f"encoder timm: the weights of {name!r} could not be fetched ({why}): go online once, or leave "
                "`pretrained` off"
            ) from error
        self.net.load_state_dict(self._prune(whole).state_dict())

    def forward(self, image: Tensor) -> Embedding:
        """Encode normalised images: (B, 3, H, W) float -> (B, C, h, w)."""
        maps = self.net.forward_intermediates(
            image * self.scale + self.shift,
            indices=self.taken,
            norm=self.norm,
            stop_early=True,
            output_fmt="NCHW",
            intermediates_only=True,
        )
        early = () if self.detail is None else tuple(out(x) for out, x in zip(self.detail, maps, strict=False))
        return Embedding(self.neck(maps[-1]), early)

    def train(self, mode: bool = True) -> Timm:
        """Switch between training and evaluation; frozen norms stay in evaluation."""
        super().train(mode)
        if self.freeze_norms:
            hold_norms(self)
        return self

    def layer_of(self, parameter: str) -> tuple[int, int]:
        """The layers that timm itself names, then the neck; what was added to a layer stands where it does."""
        part = parameter
        while part not in self._layer and part.count(".") > 1:
            part = part.rpartition(".")[0]
            if beside := [layer for name, layer in self._layer.items() if name.startswith(f"{part}.")]:
                return beside[0], self._layers
        return self._layer.get(part, self._layers - 1), self._layers


def _renormalise(trained: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Shift and scale, (3, 1, 1), from pictures normalised as SAM's to those that a net was trained with."""
    mean, std = (torch.tensor(trained[key], dtype=torch.float64).view(3, 1, 1) * 255 for key in ("mean", "std"))
    sam_mean, sam_std = (torch.tensor(value, dtype=torch.float64).view(3, 1, 1) for value in (PIXEL_MEAN, PIXEL_STD))
    return ((sam_mean - mean) / std).float(), (sam_std / std).float()
