"""What travels between sources, prompts, models, tasks and metrics.

The letters of the shapes are those of `samlit.contracts`. "The frame" is the square that the model sees: the image,
resized so that its long side fits and padded at the right and the bottom.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from samlit.kept import Kept

if TYPE_CHECKING:
    from samlit.contracts import Prompt
    from samlit.source import Sample

__all__ = ["Batch", "Change", "Embedding", "Prediction", "PromptSet", "Ragged", "Result", "Scene", "Window"]

Result = dict[str, Any]
"""What a task's generator returns: one entry a thing that its metric or a person reads."""


@dataclass
class Batch:
    """B images and all K of their masks, packed: an image may have no mask, and no mask is padded.

    Attributes:
        image: (B, 3, H, W) uint8, RGB, in the frame; what lies outside `sizes` is padding.
        sizes: (B, 2) int64, rows and columns of the frame that hold picture.
        original: (B, 2) int64, rows and columns of the picture before it was resized.
        masks: (K, H, W) bool, in the frame.
        image_index: (K,) int64, the image that each mask belongs to, ascending.
        keys: B names.
        phrases: K phrases, empty where the source has none.
        embedding: Of the B images, where it is known; `image` then need not show them.
        samples: The B images and masks at their own size, for tasks that judge there (`Task.originals`); else none.
        numbers: K numbers, which mask of what is stored of its image each one is; none where nobody said.
    """

    image: Tensor
    sizes: Tensor
    original: Tensor
    masks: Tensor
    image_index: Tensor
    keys: list[str] = field(default_factory=list)
    phrases: list[str] = field(default_factory=list)
    embedding: Embedding | None = None
    samples: list[Sample] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch with its tensors on `device`."""
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        for name, value in moved.items():
            if isinstance(value, Tensor | Embedding):
                moved[name] = value.to(device, non_blocking=non_blocking)
        return Batch(**moved)

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory; called by the data loader."""
        pinned = {f.name: getattr(self, f.name) for f in fields(self)}
        for name, value in pinned.items():
            if isinstance(value, Tensor | Embedding):
                pinned[name] = value.pin_memory()
        return Batch(**pinned)


class _Maps(NamedTuple):
    image: Tensor
    early: tuple[Tensor, ...] = ()


class Embedding(_Maps):
    """What an encoder makes of B images, once an image.

    Attributes:
        image: (B, C, h, w), SAM's image embedding.
        early: Finer maps for decoders that want detail, the finest first: (B, C/8, 4h, 4w) and (B, C/4, 2h, 2w), or
            none.
    """

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Embedding:
        """The same on `device`."""
        image, *early = (map_.to(device, non_blocking=non_blocking) for map_ in (self.image, *self.early))
        return Embedding(image, tuple(early))

    def pin_memory(self) -> Embedding:
        """The same in page-locked memory."""
        return Embedding(self.image.pin_memory(), tuple(map_.pin_memory() for map_ in self.early))

    def float(self) -> Embedding:
        """The same in single precision, which is how files may not keep it."""
        return Embedding(self.image.float(), tuple(map_.float() for map_ in self.early))

    @property
    def kept(self) -> Kept:
        """What a decoder makes of these images alone, ready when the next prompts about them come."""
        if torch.compiler.is_compiling():  # where nothing is kept, see there
            return Kept()
        known: Kept = self.__dict__.setdefault("_kept", Kept())
        return known


class Ragged(NamedTuple):
    """Up to N values for each of P rows, where rows have different numbers of them.

    Attributes:
        values: (P, N, ...), anything where not valid.
        valid: (P, N) bool.
    """

    values: Tensor
    valid: Tensor

    @classmethod
    def of(cls, values: Tensor) -> Ragged:
        """All values count: (P, N, ...)."""
        return cls(values, torch.ones(values.shape[:2], dtype=torch.bool, device=values.device))

    def append(self, other: Ragged) -> Ragged:
        """The values of both, row by row; N is the sum."""
        return Ragged(torch.cat([self.values, other.values], 1), torch.cat([self.valid, other.valid], 1))

    def where(self, rows: Tensor) -> Ragged:
        """The same values, kept only in the rows that `rows` (P,) bool names."""
        return Ragged(self.values, self.valid & rows[:, None])

    def __getitem__(self, rows: Any) -> Ragged:  # type: ignore[override]
        """Some of the rows, by any index of the first axis."""
        return Ragged(self.values[rows], self.valid[rows])


class Window(NamedTuple):
    """A rectangle of one of a batch's images, in pixels of that image, which fills the frame in the image's place.

    Attributes:
        image: Which of the B images.
        x0: Its left edge, and so on: [x0, x1) x [y0, y1).
    """

    image: int
    x0: int
    y0: int
    x1: int
    y1: int


@dataclass(frozen=True)
class Change:
    """What is done to images before they are embedded, to ask how answers change with it.

    Attributes:
        name: By which changes are told apart.
        apply: An image of its own size, (rows, columns, 3) uint8, to another one of the same size.
    """

    name: str
    apply: Callable[[np.ndarray], np.ndarray] = field(compare=False)


@dataclass
class PromptSet:
    """P prompts for the images of a batch: each row asks for one mask, with any mix of prompt types.

    Attributes:
        image_index: (P,) int64, the image that each row is about.
        given: By prompt name ("points", "boxes", ...), what is given in each row, in pixels of the frame.
        multimask: Whether rows are answered with three masks (True) or one (False). None is SAM's rule: three where
            the row is one single prompt, one where it is more (paper section 3, SAM_SPEC 1.5).
        target: (P,) int64, the mask of the scene that each row asks for, or a number that no mask has where it asks for
            none of them; None where row i asks for mask i.
        window: What the frame shows, of the image that all rows are about; all of each image if not given. It is
            embedded when it is first asked about, and kept till the next; needs `Batch.samples`.
        change: What is done to the images first; none if not given. They are embedded anew, as with a window.
        min_iou: Masks of rows of which none has a higher predicted IoU are not looked at, and need not be drawn.
    """

    image_index: Tensor
    given: dict[str, Ragged]
    multimask: bool | None = None
    target: Tensor | None = None
    window: Window | None = None
    change: Change | None = None
    min_iou: float | None = None

    def __len__(self) -> int:
        return len(self.image_index)


@dataclass
class Prediction:
    """The model's answer to P prompts: M masks each with the model's own estimate of their IoU.

    Attributes:
        logits: (P, M, 4h, 4w), low-res logits over the whole frame; a pixel is in the mask where they exceed 0.
        iou: (P, M), predicted IoU, a raw value that may exceed 1.
        allowed: (P, M) bool, which of the M answer the row (see `PromptSet.multimask`).
        frame: Rows and columns of the frame.
        drawn: (P, H, W) bool, the masks over the frame where there is one a row and they have been drawn before.
    """

    logits: Tensor
    iou: Tensor
    allowed: Tensor
    frame: tuple[int, int]
    drawn: Tensor | None = None

    def best(self) -> Tensor:
        """(P,) int64, the allowed mask of highest predicted IoU."""
        return self.iou.masked_fill(~self.allowed, -torch.inf).argmax(1)

    def pick(self, which: Tensor) -> Tensor:
        """Low-res logits (P, 4h, 4w) of one mask a row; `which` is (P,) int64."""
        return self.logits[torch.arange(len(which), device=which.device), which]

    def mask(self, which: Tensor) -> Tensor:
        """(P, H, W) bool, one mask a row over the frame; `which` is (P,) int64."""
        return self.full(self.pick(which).detach()) > 0 if self.drawn is None else self.drawn

    def full(self, logits: Tensor) -> Tensor:
        """Low-res logits (P, 4h, 4w) or (P, M, 4h, 4w) at the frame's resolution, bilinear as in SAM."""
        four = logits if logits.ndim == 4 else logits[:, None]
        up = F.interpolate(four.float(), self.frame, mode="bilinear", align_corners=False)
        return up if logits.ndim == 4 else up[:, 0]


@dataclass
class Scene:
    """What a task sees: a batch without its pixels' meaning, the model's prompt types, and a source of chance.

    Attributes:
        batch: The images and, where they are known, the true masks.
        prompts: The model's prompt types by name: a task simulates through them and imports none.
        seed: Chance for tensors comes from this number; each rank has its own.
        common: Chance for choices made on the host comes from this one; it is the same on all ranks, so that all of
            them run the same parts of the model.
        training: Whether the answers will be learned from.
        embed: Gives the embedding of the batch's images, made once; None where whoever drives the task has none.
    """

    batch: Batch
    prompts: Mapping[str, Prompt]
    seed: int = 0
    training: bool = False
    common: int = 0
    embed: Callable[[], Embedding] | None = None

    @property
    def masks(self) -> Tensor:
        """(K, H, W) bool, the true masks."""
        return self.batch.masks

    @property
    def image_index(self) -> Tensor:
        """(K,) int64, the image that each true mask belongs to."""
        return self.batch.image_index

    def of(self, which: Tensor) -> Scene:
        """The same with some of its masks only, `which` (P,) int64; chance goes on where it was."""
        rows = which.tolist()
        phrases = [self.batch.phrases[k] for k in rows] if self.batch.phrases else []
        numbers = [self.batch.numbers[k] for k in rows] if self.batch.numbers else []
        index = self.image_index[which]
        batch = replace(self.batch, masks=self.masks[which], image_index=index, phrases=phrases, numbers=numbers)
        some = replace(self, batch=batch)
        some.__dict__["generator"], some.__dict__["chance"] = self.generator, self.chance
        return some

    @property
    def frame(self) -> tuple[int, int]:
        """Rows and columns of the frame."""
        return self.batch.image.shape[-2], self.batch.image.shape[-1]

    @cached_property
    def generator(self) -> torch.Generator:
        """Chance for tensors, on their device."""
        return torch.Generator(self.batch.image.device).manual_seed(self.seed)

    @cached_property
    def chance(self) -> random.Random:
        """Chance for choices made on the host, so that none of them waits for the device."""
        return random.Random(self.common)
