"""Masks for a person: set images, give prompts, take masks at the images' own sizes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from samlit import checkpoints, everything, plugins
from samlit.contracts import Task
from samlit.embeddings import Embedded, fingerprint
from samlit.errors import did_you_mean
from samlit.everything import Found
from samlit.loading import frames, images
from samlit.model import Sam
from samlit.source import Sample
from samlit.structures import Embedding, PromptSet, Ragged

__all__ = ["InFrame", "Masks", "Predictor"]

Pixels = str | Path | Image.Image | npt.NDArray[np.uint8] | Tensor


class InFrame(NamedTuple):
    """A prompt's value that is in pixels of the frame already, like the logits of an earlier answer."""

    value: Tensor


Prompts = Mapping[str, Sequence[Tensor | Sequence[float] | InFrame | str]]
"""Values by prompt type in pixels of the image, about one thing; or strings, as a person types them: words for text."""


@dataclass(frozen=True)
class Masks:
    """The answer to one prompt, the most confident mask first.

    Attributes:
        masks: (M, H, W) bool, of the image's own size.
        iou: (M,) float, the IoU that the model expects of each.
        low_res_logits: (M, 4h, 4w) float over the frame.
    """

    masks: Tensor
    iou: Tensor
    low_res_logits: Tensor

    def prompt(self, which: int = 0) -> InFrame:
        """One of the answers as a mask prompt, its logits as they are: {"masks": [answer.prompt()], ...}."""
        return InFrame(self.low_res_logits[which])


class Predictor:
    """Answers prompts about images that are embedded once.

    Args:
        net: The model.
        image_size: Side of the frame that it was trained at, pixels.
        device: Where it runs; where it is if not given.
    """

    def __init__(self, net: Sam, image_size: int, device: torch.device | str | None = None) -> None:
        self.net = net.eval() if device is None else net.eval().to(device)
        self.image_size = image_size
        self._embedding: Embedding | None = None
        self._originals: tuple[tuple[int, int], ...] = ()
        self._sizes: tuple[tuple[int, int], ...] = ()
        self._fingerprint: tuple[object, str] = (None, "")

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
        """Rows and columns of the image that is set, of several the first."""
        return self._originals[0] if self._originals else (0, 0)

    def set_image(self, image: Pixels) -> None:
        """Embed an image: a file's name, a PIL image, (H, W, 3) or (H, W) uint8 RGB, or a (3, H, W) uint8 tensor.

        Raises:
            ValueError: It is no image, or not of that form.
        """
        self.set_images([image])

    @torch.no_grad()  # not inference mode: an embedding may be kept, and learned from
    def set_images(self, images: Sequence[Pixels], at_once: int = 4) -> None:
        """Embed images of any sizes, each in any form that `set_image` takes.

        Args:
            images: One or more.
            at_once: How many the encoder sees at a time; what it needs of memory grows with it.

        Raises:
            ValueError: There is none, or one is no image or not of that form.
        """
        if not len(images):
            raise ValueError("give at least one image")
        parts: list[Embedding] = []
        sizes: list[tuple[int, int]] = []
        originals: list[tuple[int, int]] = []
        for start in range(0, len(images), at_once):
            framed = [
                frames.frame(Sample("", _pixels(image), ()), self.image_size)
                for image in images[start : start + at_once]
            ]
            batch = frames.pack(framed).to(self._device)
            parts.append(self.net.embed(batch.image, batch.sizes))
            sizes += [one.size for one in framed]
            originals += [one.original for one in framed]
        early = tuple(torch.cat(maps) for maps in zip(*(part.early for part in parts), strict=True))
        self._embedding = Embedding(torch.cat([part.image for part in parts]), early)
        self._sizes, self._originals = tuple(sizes), tuple(originals)

    @property
    def embedding(self) -> Embedded:
        """The images that are set, to keep and to give back: `set_embedding`, or `save` to a file.

        Raises:
            RuntimeError: No image is set.
        """
        return Embedded(self._set(), self._sizes, self._originals, self.image_size, self._weights())

    def set_embedding(self, embedded: Embedded | str | Path) -> None:
        """Take images that were embedded before, by this encoder, instead of embedding them; or the file of such.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: They are of another encoder or other weights of it, of another image size, or damaged.
        """
        if not isinstance(embedded, Embedded):
            embedded = Embedded.load(embedded)
        if embedded.image_size != self.image_size:
            raise ValueError(
                f"these images were embedded at an image size of {embedded.image_size}, and this model has "
                f"{self.image_size}: set the images themselves"
            )
        if embedded.weights != self._weights():
            raise ValueError("these images were embedded with other weights of an encoder: set the images themselves")
        image, early = embedded.embedding
        self._embedding = Embedding(image.to(self._device), tuple(map_.to(self._device) for map_ in early))
        self._sizes, self._originals = embedded.sizes, embedded.originals

    def predict(self, prompts: Prompts, multimask: bool | None = None, image: int = 0) -> Masks:
        """Answer one prompt: any mix of the model's prompt types, about one thing.

        Args:
            prompts: Values by prompt type in pixels of the image, like {"points": [(120, 80, 1)], "boxes": [...]}.
            multimask: Three masks or one; SAM's rule if not given: three for a single prompt, one for more.
            image: Which of the images that are set.

        Raises:
            RuntimeError: No image is set.
            ValueError: A value makes no sense on this image, or the model does not take such a prompt.
        """
        return next(self.predict_each([prompts], multimask, image))

    def predict_each(
        self,
        prompts: Sequence[Prompts],
        multimask: bool | None = None,
        image: int | Sequence[int] = 0,
        at_once: int = 16,
    ) -> Iterator[Masks]:
        """Answer P prompts, each about one thing, as if each were asked alone.

        The answers come one after the other, so that masks of full size need the memory of one answer, unless they are
        kept.

        Args:
            prompts: What `predict` takes, P times.
            multimask: As in `predict`.
            image: Which of the images that are set: one for all prompts, or one for each.
            at_once: How many the decoder sees at a time; what it needs of memory grows with it.

        Raises:
            RuntimeError: No image is set.
            ValueError: As `predict`, before the first answer.
        """
        embedding = self._set()
        which = [image] * len(prompts) if isinstance(image, int) else list(image)
        if len(which) != len(prompts):
            raise ValueError(f"there are {len(prompts)} prompts and {len(which)} numbers of images: give one for each")
        if wrong := [i for i in which if not 0 <= i < len(self._sizes)]:
            raise ValueError(f"there is no image {wrong[0]}: {len(self._sizes)} are set, numbered from 0")
        rows = [self._row(given, i) for given, i in zip(prompts, which, strict=True)]
        return self._answers(embedding, rows, which, multimask, at_once)

    def everything(self, image: Pixels, **options: object) -> list[Found]:
        """Masks of all there is in an image, by a grid of points; images that are set stay set.

        Args:
            image: In any form that `set_image` takes. It is embedded anew, and so are its windows, if there are any.
            options: Of the task `everything`, named and preset as those of SAM's automatic mask generator:
                `points_per_side`, `pred_iou_thresh`, `crop_n_layers`, ... (`samlit evaluate --task everything --help`).

        Returns:
            The masks in the order in which NMS left them.

        Raises:
            ValueError: It is no image, or there is no such option, or its value is out of range.
        """
        return everything.find(self.net, self.image_size, _pixels(image), _everything(options))

    def _answers(
        self,
        embedding: Embedding,
        rows: list[dict[str, Tensor]],
        which: list[int],
        multimask: bool | None,
        at_once: int,
    ) -> Iterator[Masks]:
        """The masks of each row; values are in the frame."""
        sizes, originals, frame = self._sizes, self._originals, (self.image_size, self.image_size)
        remaining = iter(which)
        for part in _alike(rows, at_once):
            images = list(islice(remaining, len(part)))
            used = sorted(set(images))
            with torch.inference_mode():
                index = torch.tensor([used.index(i) for i in images], device=self._device)
                some = embedding  # the same one each time where it can be: decoders keep what they make of it
                if len(used) < len(self._sizes):
                    some = Embedding(embedding.image[used], tuple(map_[used] for map_ in embedding.early))
                answer = self.net.answer(some, PromptSet(index, _pack(part, self._device), multimask), frame)
            for row, i in enumerate(images):
                with torch.inference_mode():
                    iou, allowed = answer.iou[row], answer.allowed[row]
                    order = iou.masked_fill(~allowed, -torch.inf).argsort(descending=True)[: int(allowed.sum())]
                    logits = answer.logits[row, order]
                    # Mask by mask: three maps of floats of a large image's size are much to have at once.
                    masks = torch.stack([_full(one, frame, sizes[i], originals[i]) for one in logits])
                yield Masks(masks, iou[order], logits)

    def _set(self) -> Embedding:
        if self._embedding is None:
            raise RuntimeError("set an image before asking about it")
        return self._embedding

    @property
    def _device(self) -> torch.device:
        return self.net.pixel_mean.device

    def _weights(self) -> str:
        """The encoder's fingerprint, taken anew when its weights have changed."""
        marks = [(value.data_ptr(), value._version) for value in self.net.encoder.state_dict().values()]
        if self._fingerprint[0] != marks:
            self._fingerprint = marks, fingerprint(self.net.encoder)
        return self._fingerprint[1]

    def _row(self, prompts: Prompts, image: int) -> dict[str, Tensor]:
        """The values of one prompt in the frame, (N, ...) by type."""
        row = {name: self._given(name, values, image) for name, values in prompts.items() if len(values)}
        if not row:
            raise ValueError(f"give at least one prompt: {', '.join(self.net.prompt_types)}")
        return row

    def _given(self, name: str, values: Sequence[Tensor | Sequence[float] | InFrame | str], image: int) -> Tensor:
        """Values of one type in the frame, (N, ...)."""
        types = self.net.prompt_types
        if name not in types:
            raise ValueError(f"this model takes the prompts {', '.join(types)}; {name!r} is none of them")
        if isinstance(values, str):
            raise ValueError(f"{name}: a list of prompts is wanted, like [{values!r}]")
        size, original = self._sizes[image], self._originals[image]
        scale = (size[1] / original[1], size[0] / original[0])
        moved = []
        for value in values:
            if isinstance(value, InFrame):
                moved.append(value.value.float())
                continue
            # In double precision until it is in the frame, as the released predictor does.
            typed = types[name].parse(value) if isinstance(value, str) else value
            tensor = torch.as_tensor(typed, dtype=torch.float64)
            types[name].check(tensor, original)
            moved.append(types[name].rescale(tensor, scale, (self.image_size, self.image_size)).float())
        if len({value.shape for value in moved}) > 1:
            shapes = ", ".join(str(tuple(value.shape)) for value in moved)
            raise ValueError(f"the {name} of one prompt must be of one shape, not {shapes}")
        return torch.stack(moved)


def _everything(options: Mapping[str, object]) -> Task:
    """The task `everything` with some of its options changed."""
    of_that_name = plugins.load(plugins.find("tasks", "everything").class_path, "everything")
    default: Any = of_that_name().options
    if unknown := next((name for name in options if not hasattr(default, name)), None):
        raise ValueError(f"everything has no option {unknown!r}{did_you_mean(unknown, vars(default))}")
    task: Task = of_that_name(replace(default, **options))
    return task


def _alike(rows: Sequence[dict[str, Tensor]], most: int) -> Iterator[list[dict[str, Tensor]]]:
    """Neighbouring rows in parts of at most so many, values of a type of one shape throughout each."""
    part: list[dict[str, Tensor]] = []
    shapes: dict[str, torch.Size] = {}
    for row in rows:
        own = {name: values.shape[1:] for name, values in row.items()}
        if len(part) == most or any(shapes.get(name, shape) != shape for name, shape in own.items()):
            yield part
            part, shapes = [], {}
        part.append(row)
        shapes |= own
    if part:
        yield part


def _pack(rows: Sequence[dict[str, Tensor]], device: torch.device) -> dict[str, Ragged]:
    """Rows with different types and numbers of values as ragged values by type."""
    packed = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        counts = [len(row[name]) if name in row else 0 for row in rows]
        like = next(row[name] for row in rows if name in row)
        values = like.new_zeros((len(rows), max(counts), *like.shape[1:]))
        for filled, row in zip(values, rows, strict=True):
            if name in row:
                filled[: len(row[name])] = row[name]
        valid = torch.arange(max(counts)) < torch.tensor(counts)[:, None]
        packed[name] = Ragged(values.to(device), valid.to(device))
    return packed


def _full(logits: Tensor, frame: tuple[int, int], size: tuple[int, int], original: tuple[int, int]) -> Tensor:
    """Low-res logits (4h, 4w) to a mask (H, W) bool of the image's size, as SAM does it (SAM_SPEC 1.7)."""
    up = F.interpolate(logits[None, None].float(), frame, mode="bilinear", align_corners=False)
    up = up[:, :, : size[0], : size[1]]
    return F.interpolate(up, original, mode="bilinear", align_corners=False)[0, 0] > 0


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
