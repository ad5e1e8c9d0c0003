"""Text: what is wanted in words, by embeddings of CLIP (paper section 7.5 and appendix D.5, SAM_SPEC 1.10)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from PIL import ImageDraw
from PIL.Image import Image
from torch import Tensor, nn
from torch.nn import functional as F

from samlit.contracts import Frame, Prompt, Sparse
from samlit.errors import UsageError
from samlit.structures import Batch, Ragged, Scene
from samlit.text.clip import Clip, width_of
from samlit.text.crops import cut
from samlit.text.cut_outs import CutOuts
from samlit.text.phrases import Phrases

__all__ = ["Text"]


class Text(Prompt):
    """Words for what is wanted.

    Values are embeddings of CLIP, (D,) of length 1. While training they are those of cut-outs of the images, which need
    no words, or of the masks' phrases; a person's words are embedded as text. CLIP stays as it is, and is no part of a
    checkpoint.

    Args:
        channels: Width C of the embedding.
        clip: A model of open_clip, a JSON file of its configuration, or the configuration itself.
        weights: Of the CLIP: a tag of open_clip's, or a file. None where all phrases are in `embeddings`.
        embeddings: An .npy file of embeddings of phrases by the same CLIP, (n, D), which it then need not embed.
        names: The phrases of `embeddings`: a text file of one a line, a JSON list, or COCO's or LVIS's categories.
        phrases: Share of the training's prompts that are of a mask's phrase, where it has one, rather than of its
            cut-out. The paper's is 0.
        zoom: Most that a square is enlarged around a mask's box; the paper's is 2.
        masked: Share of the cut-outs that show nothing but the mask; the paper's is 0.5.
        cut_outs: A folder that `samlit shards embed` has made of the training's shards by the same CLIP, `zoom` and
            `masked`: cut-outs are then looked up, and CLIP does not run.
        noise: Deviation of what is added to a cut-out's embedding while training, of length about this: phrases lie a
            little apart from images. The paper adds none.
        ambiguous: Whether text alone is answered with three masks, as any single prompt of the paper's. Without, with
            one.
    """

    name: ClassVar[str] = "text"
    option: ClassVar[str] = "text"
    costly: ClassVar[bool] = True

    def __init__(
        self,
        channels: int = 256,
        clip: str | dict[str, Any] = "ViT-L-14-336-quickgelu",
        weights: str | None = "openai",
        embeddings: str | None = None,
        names: str | None = None,
        phrases: float = 0.0,
        zoom: float = 2.0,
        masked: float = 0.5,
        cut_outs: str | None = None,
        noise: float = 0.0,
        ambiguous: bool = True,
    ) -> None:
        super().__init__()
        if zoom < 1:
            raise ValueError(f"zoom: one at least, not {zoom:g}")
        for key, share in (("phrases", phrases), ("masked", masked)):
            if not 0 <= share <= 1:
                raise ValueError(f"{key}: a share from 0 to 1, not {share:g}")
        if noise < 0:
            raise ValueError(f"noise: no less than 0, not {noise:g}")
        self.phrases, self.zoom, self.masked, self.noise, self.ambiguous = phrases, zoom, masked, noise, ambiguous
        self.width = width_of(clip)
        self.clip = Clip(clip, weights)  # no module: see there
        self.words = Phrases(self.clip, embeddings, names)
        self.cut_outs = None if cut_outs is None else CutOuts(cut_outs, self.about())
        self.project = nn.Linear(self.width, channels)
        self.text = nn.Embedding(1, channels)

    def start(self) -> None:
        """Find the CLIP or its embeddings before a training does without.

        Raises:
            UsageError: They are not there.
        """
        self.words.start()
        if self.cut_outs is not None:
            self.cut_outs.open()

    def about(self) -> dict[str, Any]:
        """What cut-outs and their embeddings depend on, in plain values."""
        return {"clip": self.clip.identity(), "zoom": self.zoom, "masked": self.masked}

    def encode(self, given: Ragged, frame: Frame) -> Sparse:
        """One token a phrase: (P, N, D) -> (P, N, C)."""
        # Of length 1, a component is about D ** -0.5; the projection sees them as it would see normal numbers.
        values = F.normalize(given.values, dim=-1) * self.width**0.5
        return Sparse(self.project(values) + self.text.weight, given.valid)

    def simulate(self, truth: Tensor, predicted: Tensor | None, scene: Scene) -> Ragged:
        """The embedding of each mask's cut-out, or of its phrase; (P, 1, D).

        What is wanted is said once, so that nothing more is said about an answer. Where it is not learned from, only
        phrases count.

        Raises:
            UsageError: The images are not there to cut out of.
        """
        rows = len(truth)
        values = torch.zeros(rows, self.width, device=truth.device)
        valid = torch.zeros(rows, dtype=torch.bool, device=truth.device)
        # A model without weights is asked what it takes, and CLIP is no part of it.
        if predicted is not None or not rows or self.project.weight.is_meta:
            return Ragged(values[:, None], valid[:, None])
        said = scene.batch.phrases or [""] * rows
        if len(said) != rows:
            raise ValueError(f"text is simulated for all masks of a scene: {len(said)} phrases, {rows} masks")
        share = self.phrases if scene.training else 1.0
        by_phrase = torch.rand(rows, device=truth.device, generator=scene.generator) < share
        by_phrase &= torch.tensor([bool(phrase) for phrase in said], device=truth.device)
        chosen = by_phrase.tolist()
        if spoken := [k for k, yes in enumerate(chosen) if yes]:
            values[spoken] = self.words.embed([said[k] for k in spoken], truth.device)
            valid[spoken] = True
        if scene.training and (seen := [k for k, yes in enumerate(chosen) if not yes]):
            values[seen] = self._of_cut_outs(truth[seen], scene, seen)
            valid[seen] = truth[seen].flatten(1).any(1)
        return Ragged(values[:, None], valid[:, None])

    def _of_cut_outs(self, masks: Tensor, scene: Scene, which: list[int]) -> Tensor:
        """(P, D)."""
        chance = scene.generator
        index = scene.image_index[which]
        if self.cut_outs is not None:
            keys = [scene.batch.keys[image] for image in index.tolist()]
            draw = torch.rand(len(masks), device=masks.device, generator=chance).tolist()
            embedded = self.cut_outs.of(keys, [scene.batch.numbers[k] for k in which], draw).to(masks.device)
        elif scene.batch.embedding is not None:
            raise UsageError(
                "text: its prompts are cut out of the images, which data.embeddings replaces: leave it out, or name "
                "what `samlit shards embed` made of them (cut_outs)"
            )
        else:
            zoom = 1 + (self.zoom - 1) * torch.rand(len(masks), device=masks.device, generator=chance)
            masked = torch.rand(len(masks), device=masks.device, generator=chance) < self.masked
            embedded = self.shown(scene.batch, masks, index, zoom, masked)
        move = torch.randn(embedded.shape, device=masks.device, generator=chance) / self.width**0.5
        return F.normalize(embedded + self.noise * move, dim=1)

    def shown(self, batch: Batch, masks: Tensor, index: Tensor, zoom: Tensor, masked: Tensor) -> Tensor:
        """What CLIP sees in cut-outs, (P, D); all else as `crops.cut`."""
        return self.clip.images(*cut(batch, masks, index, self.clip.image_size, zoom, masked))

    def told(self, phrases: list[str], device: torch.device) -> Ragged:
        """Phrases as a person would say them, one a row: (P, 1, D)."""
        return Ragged.of(self.words.embed(phrases, device)[:, None])

    def likeness(self, masks: Tensor, scene: Scene, image_index: Tensor) -> Tensor:
        """What masks (P, H, W) show, to be compared with what phrases mean: (P, D), of length 1.

        The mean of a close cut-out with what lies around it and of one without.
        """
        near = torch.full((len(masks),), 1.25, device=masks.device)
        only = torch.ones(len(masks), dtype=torch.bool, device=masks.device)
        size = self.clip.image_size
        both = [
            self.clip.images(*cut(scene.batch, masks, image_index, size, near, only & flag)) for flag in (True, False)
        ]
        return F.normalize(both[0] + both[1], dim=1)

    def count(self, given: Ragged) -> Tensor:
        """One prompt a phrase, or two, for which there is one answer."""
        said = given.valid.sum(1)
        return said if self.ambiguous else 2 * said

    def parse(self, text: str) -> Tensor:
        """`WORDS`: what is wanted, like "the striped wheel"."""
        return self.words.embed([text])[0]

    def check(self, value: Tensor, size: tuple[int, int]) -> None:
        """An embedding is of CLIP's width."""
        if value.shape != (self.width,):
            raise ValueError(f"text is embedded in {self.width} numbers here, not in the shape {tuple(value.shape)}")

    def draw(self, picture: Image, value: Tensor) -> None:
        """The words, white on black, in the upper left corner."""
        words = self.words.said(value)
        pen = ImageDraw.Draw(picture)
        size = max(10.0, max(picture.size) / 40)
        place = (size / 2, size / 2)
        left, top, right, bottom = pen.textbbox(place, words, font_size=size)
        pen.rectangle((left - 3, top - 3, right + 3, bottom + 3), fill="black")
        pen.text(place, words, fill="white", font_size=size)
