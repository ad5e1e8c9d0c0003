"""Masks for a person: set an image, give prompts, take masks at the image's own size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from samlit import checkpoints, frames, images
from samlit.model import Sam
from samlit.structures import Embedding, PromptSet, Ragged, Sample

__all__ = ["Masks", "Predictor"]

Pixels = str | Path | Image.Image | npt.NDArray[np.uint8] | Tensor


@dataclass(frozen=True)
class Masks:
    """The answer to one prompt, the most confident mask first.

    Attributes:
        masks: (M, H, W) bool, of the image's own size.
        iou: (M,) float, the IoU that the model expects of each.
        low_res_logits: (M, 4h, 4w) float over the frame, to give back as a mask prompt.
    """

    masks: Tensor
    iou: Tensor
    low_res_logits: Tensor


class Predictor:
    """Answers prompts about one image, which is embedded once.

    Args:
        net: The model.
        image_size: Side of the frame that it was trained at, pixels.
        device: Where it runs; where it is if not given.
    """

    def __init__(self, net: Sam, image_size: int, device: torch.device | str | None = None) -> None:
        self.net = net.eval() if device is None else net.eval().to(device)
        self.image_size = image_size
        self._embedding: Embedding | None = None
        self._original = self._size = (0, 0)

    @classmethod
    def load(cls, weights: str | Path, device: torch.device | str | None = None) -> Predictor:
        """A predictor from weights; nothing but tensors and plain values is unpickled.

        Args:
            weights: A file of any layout that holds a whole model (samlit's `.ckpt`, SAM's `.pth`, MobileSAM's `.pt`,
                `.safetensors`), a folder of transformers, or a published name (`samlit list weights`).
            device: Where it runs.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is damaged, of no known model, or needs a plug-in that is not installed.
            SamlitError: It cannot be downloaded.
        """
        net, image_size = checkpoints.load(weights)
        return cls(net, image_size, device)

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of the image that is set."""
        return self._original

    @torch.inference_mode()
    def set_image(self, image: Pixels) -> None:
        """Embed an image: a file's name, a PIL image, (H, W, 3) or (H, W) uint8 RGB, or a (3, H, W) uint8 tensor.

        Raises:
            ValueError: It is no image, or not of that form.
        """
        pixels = _pixels(image)
        framed = frames.frame(Sample("", pixels, ()), self.image_size)
        batch = frames.pack([framed]).to(self.net.pixel_mean.device)
        self._embedding = self.net.embed(batch.image, batch.sizes)
        self._original, self._size = framed.original, framed.size

    @torch.inference_mode()
    def predict(
        self, prompts: Mapping[str, Sequence[Tensor | Sequence[float]]], multimask: bool | None = None
    ) -> Masks:
        """Answer one prompt: any mix of the model's prompt types, about one thing.

        Args:
            prompts: Values by prompt type in pixels of the image, like {"points": [(120, 80, 1)], "boxes": [...]}.
            multimask: Three masks or one; SAM's rule if not given: three for a single prompt, one for more.

        Raises:
            RuntimeError: No image is set.
            ValueError: A value makes no sense on this image, or the model does not take such a prompt.
        """
        if self._embedding is None:
            raise RuntimeError("set an image before asking about it")
        device = self.net.pixel_mean.device
        given = {name: self._given(name, values).to(device) for name, values in prompts.items() if len(values)}
        if not given:
            raise ValueError(f"give at least one prompt: {', '.join(self.net.prompt_types)}")
        index = torch.zeros(1, dtype=torch.int64, device=device)
        frame = (self.image_size, self.image_size)
        rows = PromptSet(index, {name: Ragged.of(values) for name, values in given.items()}, multimask)
        answer = self.net.answer(self._embedding, rows, frame)
        order = answer.iou[0].masked_fill(~answer.allowed[0], -torch.inf).argsort(descending=True)
        order = order[: int(answer.allowed[0].sum())]
        logits = answer.logits[0, order]
        h, w = self._size
        full = answer.full(logits[None])[:, :, :h, :w]
        masks = F.interpolate(full, self._original, mode="bilinear", align_corners=False)[0] > 0
        return Masks(masks, answer.iou[0, order], logits)

    def _given(self, name: str, values: Sequence[Tensor | Sequence[float]]) -> Tensor:
        """Values of one type in the frame, (1, N, ...)."""
        types = self.net.prompt_types
        if name not in types:
            raise ValueError(f"this model takes the prompts {', '.join(types)}; {name!r} is none of them")
        scale = (self._size[1] / self._original[1], self._size[0] / self._original[0])
        moved = []
        for value in values:
            tensor = torch.as_tensor(value, dtype=torch.float32)
            types[name].check(tensor, self._original)
            moved.append(types[name].rescale(tensor, scale, (self.image_size, self.image_size)))
        return torch.stack(moved)[None]


def _pixels(image: Pixels) -> npt.NDArray[np.uint8]:
    """(H, W, 3) uint8, RGB."""
    if isinstance(image, (str, Path)):
        return images.read(str(image))
    if isinstance(image, Image.Image):
        return images.rgb(image)
    if isinstance(image, Tensor):
        image = image.permute(1, 2, 0).cpu().numpy() if image.ndim == 3 else image.cpu().numpy()
    if image.dtype != np.uint8:
        raise ValueError(f"an image is uint8 from 0 to 255; this one is {image.dtype}")
    if image.ndim == 2:
        image = np.repeat(image[..., None], 3, 2)
    if image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(f"an image has three channels, red, green and blue; this one has the shape {image.shape}")
    return np.ascontiguousarray(image)
