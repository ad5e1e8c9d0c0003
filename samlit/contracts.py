"""What a plug-in must be: Encoder, Prompt, Decoder, Task (and Source, which is in `samlit.source`).

The letters of the shapes, here and everywhere:

    B      images of a batch                 K      true masks of a batch
    P      prompts (rows) of a PromptSet     N      values or tokens of a row
    H W    rows and columns of the frame     h w    rows and columns of the embedding's grid
    C      width of the embedding            M      masks that answer one row

Coordinates are (x, y) in pixels of the frame unless a name says otherwise; pixel (0, 0) covers [0, 1) x [0, 1) and
prompts name pixels, not their corners. Boxes are xyxy.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from samlit.structures import Embedding, Prediction, PromptSet, Ragged, Result, Scene

if TYPE_CHECKING:
    from pathlib import Path

    from PIL.Image import Image
    from torchmetrics import Metric

    from samlit.layers import PositionCode

__all__ = ["Decoder", "Dense", "Encoder", "Factored", "Frame", "Prompt", "Sparse", "Task"]


class Encoder(nn.Module, ABC):
    """Images to image embeddings, once an image.

    Attributes:
        channels: C, the width of the embedding.
        stride: Pixels of the frame a cell of the embedding.
    """

    channels: int
    stride: int

    @abstractmethod
    def forward(self, image: Tensor) -> Embedding:
        """Encode normalised images: (B, 3, H, W) float, zero where padded -> (B, C, h, w)."""

    def start(self) -> None:
        """Fetch weights that a training begins with; called before one, and by nothing that only uses a model.

        Raises:
            SamlitError: They cannot be had.
        """

    def layer_of(self, parameter: str) -> tuple[int, int]:
        """Where a parameter (its name in this module) stands: its layer from 0 at the pixels, and how many there are.

        Layer-wise learning rates read it; without an override all parameters stand in one layer.
        """
        return 0, 1

    def convert(self, state: dict[str, Tensor], layout: str) -> dict[str, Tensor]:
        """Weights that another project trained, under the names of this module and in its shapes.

        What the result lacks keeps its start. `state` may be used up.

        Args:
            state: Weights by the names of that project.
            layout: "mae", masked autoencoders (SAM_SPEC 1.3).

        Raises:
            ValueError: This encoder takes no such weights; one line that says why.
        """
        raise ValueError(f"the encoder {type(self).__name__} takes no weights of the layout {layout!r}")

    def shards(self) -> Sequence[nn.Module]:
        """The modules, one after the other, that hold most weights and most of what a gradient needs.

        Whoever shards the weights over devices, or computes activations again for the gradient, wraps each of these;
        each is called once a forward pass. Without an override there are none, and the encoder is one piece.
        """
        return ()


class Frame(NamedTuple):
    """The frame that prompts are encoded in.

    Attributes:
        size: H, W.
        grid: h, w.
        position: The random Fourier code shared by points, boxes and the image's own cells.
    """

    size: tuple[int, int]
    grid: tuple[int, int]
    position: PositionCode


class Sparse(NamedTuple):
    """Prompt tokens: (P, N, C), and which of them count: (P, N) bool."""

    tokens: Tensor
    valid: Tensor


class Dense(NamedTuple):
    """Maps to add to the image embedding: (P, C, h, w), and which rows have one: (P,) bool."""

    map: Tensor
    valid: Tensor


class Factored(NamedTuple):
    """Maps to add, of which each cell is a linear function of a few numbers: `codes @ weight.T + bias`.

    Attributes:
        codes: (P, h, w, r), with r far below C.
        weight: (C, r).
        bias: (C,).
        valid: (P,) bool, which rows have one.
    """

    codes: Tensor
    weight: Tensor
    bias: Tensor
    valid: Tensor

    def dense(self) -> Dense:
        """The maps themselves."""
        return Dense(F.linear(self.codes, self.weight, self.bias).permute(0, 3, 1, 2), self.valid)


class Prompt(nn.Module, ABC):
    """One type of prompt, its whole life: parsed from a person, simulated from a mask, encoded, and drawn.

    A prompt type is built as `Type(channels)` with the embedding's width C.

    Attributes:
        name: The word for it, in recipes, prompt sets and the predictor; the plug-in's registered name.
        option: The option of `samlit segment` that gives one ("--point"), without the dashes.
        padding: SAM appends a "not a point" token to points that come without a box (SAM_SPEC 1.4). "needs" asks
            for that token, "replaces" makes it unnecessary in its row, "ignores" is everything else.
        costly: Whether simulating one takes as long as a model does, so that it is done only for masks that get one.
    """

    name: ClassVar[str]
    option: ClassVar[str]
    padding: ClassVar[Literal["needs", "replaces", "ignores"]] = "ignores"
    costly: ClassVar[bool] = False

    def start(self) -> None:
        """Find what a training needs beside the model; called before one, and by nothing that only uses a model.

        Raises:
            SamlitError: It cannot be had.
        """

    @abstractmethod
    def encode(self, given: Ragged, frame: Frame) -> Sparse | Dense | Factored:
        """Encode what was given: values (P, N, ...) in pixels of the frame."""

    @abstractmethod
    def simulate(self, truth: Tensor, predicted: Tensor | None, scene: Scene) -> Ragged:
        """What a person would give next who wants `truth` and sees `predicted`.

        Args:
            truth: (P, H, W) bool.
            predicted: (P, H, W) bool; None before the first answer.
            scene: Where chance comes from (`scene.generator`) and whether the model is training. Before the first
                answer its masks are those of `truth`, row by row, with their images and phrases.
        """

    @abstractmethod
    def parse(self, text: str) -> Tensor:
        """One value, shape (...), in pixels of the original image, from what a person typed.

        Raises:
            ValueError: One line that says what the text should look like.
        """

    def rescale(self, value: Tensor, scale: tuple[float, float], frame: tuple[int, int]) -> Tensor:
        """One value in pixels of the original image to pixels of the frame; `scale` is (x, y), `frame` (H, W)."""
        return value

    def check(self, value: Tensor, size: tuple[int, int]) -> None:
        """Refuse a value that makes no sense on an image of `size` (rows, columns).

        Raises:
            ValueError: One line that says what is wrong.
        """

    def count(self, given: Ragged) -> Tensor:
        """(P,) int64, how many prompts each row is to SAM's rule of one prompt, three masks."""
        return given.valid.sum(1)

    def missing(self) -> Tensor | None:
        """(C,), what a dense prompt type adds to the rows that do not have it; None for nothing."""
        return None

    def padding_token(self) -> Tensor | None:
        """(C,), the "not a point" token; given by types with padding "needs"."""
        return None

    @abstractmethod
    def draw(self, picture: Image, value: Tensor) -> None:
        """Draw one value, in pixels of `picture`, onto it."""


class Decoder(nn.Module, ABC):
    """Image embedding and prompts to masks and their predicted IoU; built as `Type(channels)`.

    What depends on the embedding alone a decoder may put into `embedding.kept`, ready for the next prompts.

    Attributes:
        quality_first: Whether `forward` takes `min_iou` too: only rows of which a mask's predicted IoU exceeds it have
            to be drawn. Masks of the others are empty.
        factored: Whether `dense` may be `Factored`, which is less work where it is made use of.
    """

    quality_first: bool = False
    factored: bool = False

    @abstractmethod
    def forward(
        self,
        embedding: Embedding,
        position: Tensor,
        image_index: Tensor,
        sparse: Sparse,
        dense: Tensor | Factored | None,
        multimask: bool | None,
    ) -> tuple[Tensor, Tensor]:
        """Answer P prompts.

        Args:
            embedding: Of B images.
            position: (C, h, w), position code of the embedding's cells.
            image_index: (P,) int64, the image of each row.
            sparse: Tokens (P, N, C); those that are not valid change nothing.
            dense: (P, C, h, w), or (P, C, 1, 1) where it is the same in all cells, or one for all rows, or None;
                added to the embedding.
            multimask: True asks for the masks of an ambiguous prompt, False for the single one, None for both.

        Returns:
            Low-res logits (P, M, 4h, 4w) and predicted IoU (P, M): M = 3 where `multimask`, 1 where not, and for None
            4, the single one first.
        """


class Task(ABC):
    """A generator of prompts: training, evaluation and everything-mode alike (DESIGN 2).

    Attributes:
        attached: Whether later prompts are made of an earlier answer's logits in such a way that gradients flow
            through them. Answers of other tasks come without a graph, and each is learned from before the next.
        prompts: The prompt types that a model must take to be asked.
        originals: Whether the task needs images and masks at their own size, `scene.batch.samples`. While training
            they are as coarse as the frame shows them.
    """

    attached: bool = False
    prompts: Sequence[str] = ()
    originals: bool = False

    @abstractmethod
    def rounds(self, scene: Scene) -> Generator[PromptSet, Prediction, Result]:
        """Yield prompts, receive the model's predictions for them, return a result.

        A training task's every yield is learned from. A generator that yields nothing is fine: some batches have no
        mask.
        """

    def metric(self) -> Metric | None:
        """A fresh torchmetrics metric whose `update` takes this task's results; None where there is none.

        Its `compute` returns numbers by name, which are logged as `val/NAME`; their mean chooses the best checkpoint,
        less those that an attribute `counts` of the metric names, which are no share of 1.
        """
        return None

    def questions(self, scene: Scene) -> int:
        """How many prompt sets `rounds` will yield, for whoever shows how far it is; 0 where that is not known."""
        return 0

    def show(self, scene: Scene, result: Result) -> Sequence[Image]:
        """Pictures of a result for `samlit evaluate --out`, one an image of the scene; none by default.

        Where a task shows none, the answers to its prompts are shown, each beside the true mask.
        """
        return ()

    def plot(self, numbers: Mapping[str, float], metric: Metric, folder: Path) -> None:  # noqa: B027 - not all do
        """Draw what the numbers of an evaluation are about, as files into a folder; nothing by default.

        Args:
            numbers: What the metric has computed.
            metric: With all that it has seen.
            folder: Where to write, which exists.
        """
