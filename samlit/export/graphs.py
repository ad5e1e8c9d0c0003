"""A model as graphs for ONNX: what goes in and comes out of each, by name (SAM_SPEC 1.9).

Whoever runs a graph gives points and the corners of boxes as SAM's own export takes them: coordinates of the frame, and
labels 1 (wanted), 0 (not wanted), 2 and 3 (a box's corners), -1 (no point). Of a row without a box the caller adds the
point -1 itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samlit.contracts import Dense, Factored, Frame, Prompt, Sparse
from samlit.model import Sam
from samlit.structures import Embedding, Ragged

__all__ = ["Answer", "Encode", "Official", "Prepare", "Prompted"]

T = TypeVar("T")


class Encode(nn.Module):
    """Images to embeddings."""

    inputs, outputs = ("image", "size"), ("image_embeddings",)

    def __init__(self, net: Sam) -> None:
        super().__init__()
        self.net = net

    def forward(self, image: Tensor, size: Tensor) -> Tensor:
        """Embed a frame: (1, 3, S, S) float32, RGB from 0 to 255; (1, 2) int64, its rows and columns of picture."""
        return self.net.embed(image, size).image


class Answer(nn.Module):
    """P prompts about an embedded image to low-res masks, the single one first and then the three.

    Args:
        net: The model.
        image_size: Side S of its frame.
        one: Whether P is always one: then a mask is less work.
    """

    inputs = ("image_embeddings", "point_coords", "point_labels", "mask_input", "has_mask_input")
    outputs = ("low_res_masks", "iou_predictions")

    def __init__(self, net: Sam, image_size: int, one: bool = False) -> None:
        super().__init__()
        self.net, self.one = net, one
        grid = image_size // net.encoder.stride
        self.frame = (image_size, image_size)
        self.register_buffer("position", net.position.grid((grid, grid)).detach().clone(), persistent=False)
        missing = [name for name in ("points", "boxes", "masks") if name not in net.prompt_types]
        if missing:
            raise ValueError(f"the graph takes points, boxes and masks, and the model has no {missing[0]}")

    position: Tensor

    def forward(
        self, image: Tensor, coords: Tensor, labels: Tensor, mask: Tensor, has_mask: Tensor
    ) -> tuple[Tensor, ...]:
        """Answer.

        Args:
            image: (1, C, h, w).
            coords: (P, N, 2), x and y in the frame.
            labels: (P, N).
            mask: (P, 1, 4h, 4w), low-res logits of an earlier answer.
            has_mask: (P,), 1 where there is one and 0 where not.
        """
        return self.ask(Embedding(image), coords, labels, mask, has_mask)

    def ask(
        self, embedding: Embedding, coords: Tensor, labels: Tensor, mask: Tensor, has_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The same of an embedding."""
        frame = Frame(self.frame, (self.position.shape[1], self.position.shape[2]), self.net.position)
        tokens = self._tokens(coords, labels, frame)
        sparse = Sparse(tokens, torch.ones_like(labels, dtype=torch.bool))
        about = torch.zeros_like(labels[:, 0], dtype=torch.int64)
        dense = self._dense(mask, has_mask, frame)
        logits, iou = self.net.decoder(embedding, self.position, about, sparse, dense, None)
        return logits, iou

    def _tokens(self, coords: Tensor, labels: Tensor, frame: Frame) -> Tensor:
        """One token a point or corner, (P, N, C)."""
        points, boxes = self.net.prompt_types["points"], self.net.prompt_types["boxes"]
        everywhere = torch.ones_like(labels, dtype=torch.bool)
        clicked = torch.cat([coords, (labels == 1)[..., None].to(coords.dtype)], 2)
        tokens = _sparse(points, Ragged(clicked, everywhere), frame)
        corners = _sparse(boxes, Ragged(torch.cat([coords, coords], 2), everywhere), frame)
        corners = torch.unflatten(corners, 1, (-1, 2))
        which = labels[..., None]
        tokens = torch.where(which == 2, corners[:, :, 0], torch.where(which == 3, corners[:, :, 1], tokens))
        padding = points.padding_token()
        return tokens if padding is None else torch.where(which == -1, padding, tokens)

    def _dense(self, mask: Tensor, has_mask: Tensor, frame: Frame) -> Tensor | Factored:
        """What is added to the image, (P, C, h, w)."""
        prompt = self.net.prompt_types["masks"]
        encoded = prompt.encode(Ragged(mask, torch.ones_like(mask[:, :, 0, 0], dtype=torch.bool)), frame)
        assert isinstance(encoded, Dense | Factored)
        missing = prompt.missing()
        if self.one and self.net.decoder.factored and isinstance(encoded, Factored):
            bias = has_mask * encoded.bias
            bias = bias if missing is None else bias + (1 - has_mask) * missing
            return encoded._replace(codes=encoded.codes * has_mask, bias=bias)
        full = encoded.map if isinstance(encoded, Dense) else encoded.dense().map
        share = has_mask[:, None, None, None]
        out = share * full
        return out if missing is None else out + (1 - share) * missing[:, None, None]


class Official(nn.Module):
    """The graph of SAM's own export: one row, and masks of the image's own size as well.

    Args:
        net: The model.
        image_size: Side of its frame.
        single: One mask instead of four: of one click the best of three, of more the single one.
    """

    inputs = (*Answer.inputs, "orig_im_size")
    outputs = ("masks", "iou_predictions", "low_res_masks")

    def __init__(self, net: Sam, image_size: int, single: bool = False) -> None:
        super().__init__()
        self.answer, self.single = Answer(net, image_size, one=True), single

    def forward(
        self, image: Tensor, coords: Tensor, labels: Tensor, mask: Tensor, has_mask: Tensor, size: Tensor
    ) -> tuple[Tensor, ...]:
        """Answer; `size` is (2,) float, rows and columns of the image."""
        low, iou = self.answer(image, coords, labels, mask, has_mask)
        if self.single:
            count = torch.ones_like(labels[0]).sum()
            first = (torch.arange(iou.shape[1], device=iou.device) == 0).to(iou.dtype)
            best = (iou + (count - 2.5) * 1000 * first).argmax(1)
            rows = torch.arange(len(low), device=low.device)
            low, iou = low[rows, best][:, None], iou[rows, best][:, None]
        return self._full(low, size), iou, low

    def _full(self, low: Tensor, size: Tensor) -> Tensor:
        """Logits of the image's own size (SAM_SPEC 1.7)."""
        side = self.answer.frame[0]
        inside = torch.floor(size * (side / size.max()) + 0.5).to(torch.int64)
        whole = size.to(torch.int64)
        x = F.interpolate(low, self.answer.frame, mode="bilinear", align_corners=False)
        x = x[..., : inside[0], : inside[1]]
        wanted: Any = [whole[0], whole[1]]  # tensors: an exporter takes the sizes from them
        return F.interpolate(x, wanted, mode="bilinear", align_corners=False)


class Prepare(nn.Module):
    """What a decoder makes of an embedding alone, once an image; the rest is `Prompted`.

    It is whatever the decoder asks `Embedding.kept` for, so this works with any decoder that keeps something.
    """

    inputs = ("image_embeddings",)

    def __init__(self, net: Sam, image_size: int) -> None:
        super().__init__()
        self.answer = Answer(net, image_size, one=True)
        grid = self.answer.position.shape[1:]
        with torch.no_grad():
            made = self._made(torch.zeros(1, net.encoder.channels, *grid))
        self.shapes = {name: type(value) for name, value in made.items()}
        self.counts = {name: 1 if isinstance(value, Tensor) else len(value) for name, value in made.items()}
        self.outputs = tuple(
            f"{name.replace('.', '_')}_{i}" for name, count in self.counts.items() for i in range(count)
        )
        if not self.outputs:
            raise ValueError("its decoder keeps nothing of an image: there is nothing to prepare")

    def _made(self, image: Tensor) -> dict[str, Any]:
        kept = _Made()
        rows, columns = image.shape[-2:]
        click, label = image.new_zeros(1, 1, 2), image.new_ones(1, 1)
        mask = image.new_zeros(1, 1, 4 * rows, 4 * columns)
        self.answer.ask(_with(image, kept), click, label, mask, image.new_zeros(1))
        return kept.results

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(1, C, h, w) to what is kept."""
        made = self._made(image)
        return tuple(x for value in made.values() for x in ((value,) if isinstance(value, Tensor) else value))

    def packed(self, flat: Sequence[Tensor]) -> dict[str, Any]:
        """What `forward` returned, by name."""
        values, rest = {}, list(flat)
        for name, count in self.counts.items():
            some, rest = rest[:count], rest[count:]
            kind = self.shapes[name]
            values[name] = some[0] if issubclass(kind, Tensor) else kind(*some) if kind is not tuple else tuple(some)
        return values


class Prompted(nn.Module):
    """One prompt about an image that `Prepare` has seen, to low-res masks."""

    outputs = Answer.outputs

    def __init__(self, prepare: Prepare) -> None:
        super().__init__()
        self.prepare = prepare
        self.inputs = (*prepare.outputs, *Answer.inputs[1:])

    def forward(self, *given: Tensor) -> tuple[Tensor, Tensor]:
        """What was prepared, and then what `Answer` takes, of one row."""
        *prepared, coords, labels, mask, has_mask = given
        answer = self.prepare.answer
        # Of the embedding nothing but its size is looked at.
        image = answer.position.new_zeros(1, *answer.position.shape)
        kept = _Given(self.prepare.packed(prepared))
        return answer.ask(_with(image, kept), coords, labels, mask, has_mask)


class _Made:
    """In the place of what an embedding keeps: everything is made, and written down."""

    def __init__(self) -> None:
        self.results: dict[str, Any] = {}

    def get(self, name: str, of: Sequence[Tensor], make: Callable[[], T]) -> T:
        made = make()
        self.results[name] = made
        return made


class _Given:
    """In the place of what an embedding keeps: it is given."""

    def __init__(self, results: dict[str, Any]) -> None:
        self.results = results

    def get(self, name: str, of: Sequence[Tensor], make: Callable[[], T]) -> T:
        given: T = self.results[name]
        return given


class _Another(Embedding):
    """An embedding with something else in the place of what it keeps."""

    @property
    def kept(self) -> Any:
        return self.__dict__["other"]


def _with(image: Tensor, kept: _Made | _Given) -> Embedding:
    embedding = _Another(image)
    embedding.__dict__["other"] = kept
    return embedding


def _sparse(prompt: Prompt, given: Ragged, frame: Frame) -> Tensor:
    encoded = prompt.encode(given, frame)
    if not isinstance(encoded, Sparse):
        raise ValueError(f"the graph takes {prompt.name} as tokens, and the model does not encode them so")
    return encoded.tokens
