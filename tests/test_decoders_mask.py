"""Prompts and the mask decoder against the released implementation, in values and in gradients."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from segment_anything.modeling import MaskDecoder, PromptEncoder, TwoWayTransformer
from torch.utils.flop_counter import FlopCounterMode

from samlit.contracts import Encoder, Factored, Sparse
from samlit.model import Sam
from samlit.structures import Embedding, Prediction, PromptSet, Ragged
from samlit_decoders import _two_way, mask
from samlit_decoders.mask import Mask
from samlit_prompts.boxes import Boxes
from samlit_prompts.masks import Masks
from samlit_prompts.points import Points

GRID, FRAME, HEADS = (6, 8), (96, 128), 2
POINTS = [(3.0, 20.0, 1.0), (120.5, 1.0, 0.0), (11.0, 92.0, 1.0)]
BOX, ROUGH = (2.0, 4.0, 90.0, 80.0), torch.linspace(-8, 8, 16 * GRID[0] * GRID[1]).view(4 * GRID[0], 4 * GRID[1])
# What is given, how many tokens that is, and how many masks answer it (SAM_SPEC 1.4).
KINDS = {
    "nothing": ({}, 0, 3),
    "a point": ({"points": POINTS[:1]}, 2, 3),
    "three points": ({"points": POINTS}, 4, 1),
    "many points": ({"points": POINTS * 5}, 16, 1),
    "a box": ({"boxes": [BOX]}, 2, 3),
    "a box and two points": ({"boxes": [BOX], "points": POINTS[:2]}, 4, 1),
    "a mask": ({"masks": [ROUGH]}, 0, 3),
    "a point and a mask": ({"points": POINTS[1:2], "masks": [-ROUGH]}, 2, 1),
    "all": ({"boxes": [BOX], "points": POINTS, "masks": [ROUGH]}, 5, 1),
}
NAMES = {
    "pe_layer.": "position.",
    "point_embeddings.0.": "prompts.points.background.",
    "point_embeddings.1.": "prompts.points.foreground.",
    "point_embeddings.2.": "prompts.boxes.top_left.",
    "point_embeddings.3.": "prompts.boxes.bottom_right.",
    "not_a_point_embed.": "prompts.points.not_a_point.",
    "no_mask_embed.": "prompts.masks.no_mask.",
    "mask_downscaling.": "prompts.masks.mask_downscaling.",
}


class Given(Encoder):
    """No encoder: embeddings are given."""

    stride = 16

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, image):
        raise NotImplementedError


class Pair:
    """The released prompt encoder and decoder, and samlit's with the same random weights."""

    def __init__(self, channels=32, heads=HEADS, mlp_dim=48, grid=GRID, frame=FRAME) -> None:
        torch.manual_seed(0)
        self.frame = frame
        self.prompts = PromptEncoder(channels, grid, frame, mask_in_chans=16)
        transformer = TwoWayTransformer(depth=2, embedding_dim=channels, num_heads=heads, mlp_dim=mlp_dim)
        self.decoder = MaskDecoder(transformer_dim=channels, transformer=transformer)
        with torch.no_grad():  # away from the zeros and ones that weights start with, which hide faults
            for parameter in (*self.prompts.parameters(), *self.decoder.parameters()):
                parameter.add_(0.5 / channels**0.5 * torch.randn_like(parameter))
        decoder = functools.partial(Mask, heads=heads, mlp_dim=mlp_dim)
        self.net = Sam(Given(channels), [Points, Boxes, Masks], decoder)
        self.net.load_state_dict(self.renamed({**self.prompts.state_dict()}, self.decoder.state_dict()))
        self.images = torch.randn(3, channels, *grid)

    @staticmethod
    def renamed(prompts, decoder):
        found = {f"decoder.{name}": value for name, value in decoder.items()}
        for name, value in prompts.items():
            (old,) = [old for old in NAMES if name.startswith(old)]
            found[NAMES[old] + name.removeprefix(old)] = value
        return found

    def official(self, row, image, multimask):
        """Masks (M, 4h, 4w) and their predicted IoU (M,)."""
        points = torch.tensor(row["points"])[None] if "points" in row else None
        sparse, dense = self.prompts(
            points=None if points is None else (points[..., :2], points[..., 2]),
            boxes=torch.tensor(row["boxes"]) if "boxes" in row else None,
            masks=torch.stack(row["masks"])[None] if "masks" in row else None,
        )
        logits, iou = self.decoder(
            image_embeddings=image[None],
            image_pe=self.prompts.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=multimask,
        )
        return logits[0], iou[0], sparse.shape[1]

    def answer(self, embedding, given, index, multimask) -> Prediction:
        return self.net.answer(embedding, asked(given, index, multimask), self.frame)


def asked(given, index, multimask):
    """A prompt set of one dict of values a row, with what no number is where nothing is given."""
    packed = {}
    for name in dict.fromkeys(name for row in given for name in row):
        most = max(len(row.get(name, ())) for row in given)
        like = next(torch.as_tensor(row[name][0]) for row in given if name in row)
        values = torch.full((len(given), most, *like.shape), torch.nan)
        valid = torch.zeros(len(given), most, dtype=torch.bool)
        for i, row in enumerate(given):
            for j, value in enumerate(row.get(name, ())):
                values[i, j], valid[i, j] = torch.as_tensor(value), True
        packed[name] = Ragged(values, valid)
    return PromptSet(torch.tensor(index), packed, multimask)


def error(found, expected):
    return float((found - expected).detach().norm() / expected.detach().norm())


@pytest.fixture(scope="module")
def pair():
    return Pair()


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("multimask", [True, False, None])
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_prompt_is_answered_as_by_the_released_model(pair, kind, multimask, training):
    row, tokens, masks = KINDS[kind]
    with torch.set_grad_enabled(training):
        found = pair.answer(Embedding(pair.images[:1]), [row], [0], multimask)
        several, one = (pair.official(row, pair.images[0], multi) for multi in (True, False))
    assert several[2] == tokens
    if multimask is None:  # three masks for one prompt, the single one for more
        logits, iou = torch.cat([one[0], several[0]]), torch.cat([one[1], several[1]])
        assert found.allowed.tolist() == [[masks == 1, *[masks == 3] * 3]]
    else:
        logits, iou, _ = several if multimask else one
        assert found.allowed.all()
    assert error(found.logits[0], logits) <= 1e-5
    assert error(found.iou[0], iou) <= 1e-5
    clear = logits.abs() > 1e-5 * logits.std()  # where rounding cannot turn the sign
    assert clear.float().mean() > 0.999
    assert torch.equal((found.logits[0] > 0)[clear], (logits > 0)[clear])


ORDER = [2, 0, 1, 1, 0, 2, 2, 0, 1]


@pytest.mark.parametrize("near", [1, 2**11, 2**14, 2**18])
@pytest.mark.parametrize("masks", [False, True])
def test_kinds_and_images_in_one_batch_are_answered_as_one_by_one(pair, near, masks, monkeypatch):
    monkeypatch.setattr(_two_way, "NEAR", near)
    given = [row for row, _, _ in KINDS.values() if masks or "masks" not in row]
    index = ORDER[: len(given)]
    with torch.no_grad():
        found = pair.answer(Embedding(pair.images), given, index, True)
        for i, (row, b) in enumerate(zip(given, index, strict=True)):
            logits, iou, _ = pair.official(row, pair.images[b], True)
            assert error(found.logits[i], logits) <= 1e-5
            assert error(found.iou[i], iou) <= 1e-5


def test_at_the_released_size_masks_are_the_same():
    pair = Pair(256, 8, 2048, (64, 64), (1024, 1024))
    given = [{"points": [(500.0, 375.0, 1.0)]}, {"boxes": [(100.0, 200.0, 900.0, 800.0)]}]
    with torch.no_grad():
        embedding = Embedding(pair.images[:1])
        for _ in range(2):  # the second time from what was kept
            found = pair.answer(embedding, given, [0, 0], True)
            for i, row in enumerate(given):
                logits, iou, _ = pair.official(row, pair.images[0], True)
                assert error(found.logits[i], logits) <= 5e-6
                assert error(found.iou[i], iou) <= 5e-6
                clear = logits.abs() > 1e-5 * logits.std()
                assert torch.equal((found.logits[i] > 0)[clear], (logits > 0)[clear])


@pytest.mark.parametrize("near", [1, 2**18])
@pytest.mark.parametrize("images", ["in turns", "in order", "one"])
@pytest.mark.parametrize("masks", ["none", "some", "all"])
def test_gradients_are_those_of_the_released_model(pair, masks, images, near, monkeypatch):
    """Of two passes over the same embedding, the second with and without masks among its prompts."""
    monkeypatch.setattr(mask, "NEAR", near)
    keep = {"none": lambda row: "masks" not in row, "some": lambda row: True, "all": lambda row: "masks" in row}
    given = [row for row, _, _ in KINDS.values() if keep[masks](row)]
    index = {"in turns": ORDER, "in order": sorted(ORDER), "one": [1] * len(ORDER)}[images][: len(given)]
    chance = torch.Generator().manual_seed(1)
    weights = torch.randn(2, len(given), 3, 4 * GRID[0], 4 * GRID[1], generator=chance)
    ours, theirs = (pair.images.clone().requires_grad_() for _ in range(2))
    pair.net.zero_grad()
    embedding = Embedding(ours)
    for weight, first in zip(weights, (True, False), strict=True):
        rows = [row if not first else {"points": POINTS[:1]} for row in given]
        found = pair.answer(embedding, rows, index, True)
        ((found.logits * weight).mean() + found.iou.sum()).backward()
    pair.prompts.zero_grad()
    pair.decoder.zero_grad()
    for weight, first in zip(weights, (True, False), strict=True):
        for i, (row, b) in enumerate(zip(given, index, strict=True)):
            logits, iou, _ = pair.official({"points": POINTS[:1]} if first else row, theirs[b], True)
            ((logits * weight[i]).sum() / weight.numel() + iou.sum()).backward()
    assert error(ours.grad, theirs.grad) <= 2e-5
    official = pair.renamed(dict(pair.prompts.named_parameters()), dict(pair.decoder.named_parameters()))
    for name, parameter in pair.net.named_parameters():
        grad = official[name].grad
        if grad is None or parameter.grad is None:
            assert not any(g is not None and g.any() for g in (grad, parameter.grad)), name
        elif name.endswith("k_proj.bias"):  # adds the same to all scores of a token: nothing but rounding
            assert parameter.grad.norm() <= 1e-3 * max(1.0, float(grad.norm())), name
        else:
            assert error(parameter.grad, grad) <= 5e-5, name


@pytest.mark.parametrize("tokens", [1, 4])
@pytest.mark.parametrize("dense", [None, "flat", "maps", "codes"])
@pytest.mark.parametrize("order", [[1, 0], [0, 1]])
def test_gradients_are_those_of_differences(tokens, dense, order):
    torch.manual_seed(2)
    decoder = Mask(8, heads=2, mlp_dim=4, multimask_outputs=1, iou_hidden=4, high_res=True).double()
    index, valid = torch.tensor(order), torch.tensor([[True] * tokens, [True] + [False] * (tokens - 1)])
    shapes = [(2, 8, 1, 2), (2, 1, 4, 8), (2, 2, 2, 4), (8, 1, 2), (2, tokens, 8)]
    shapes += {None: [], "flat": [(1, 8, 1, 1)], "maps": [(2, 8, 1, 2)], "codes": [(2, 1, 2, 3), (8, 3), (8,)]}[dense]
    given = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    assert decoder.transformer.final_attn_token_to_image.absorbs(3 + tokens) == (tokens == 1) or tokens == 1

    def ask(image, quarters, halves, position, sparse, *added):
        embedding = Embedding(image, (quarters, halves))
        some = Factored(*added, torch.ones(2, dtype=torch.bool)) if len(added) > 1 else added[0] if added else None
        return decoder(embedding, position, index, Sparse(sparse, valid), some, None)

    # Fast: along random directions, not number by number, which takes ten times as long.
    assert torch.autograd.gradcheck(ask, given, fast_mode=True)


@torch.no_grad()
def test_no_rows_are_no_answers_without_gradients_either(pair):
    none = PromptSet(torch.zeros(0, dtype=torch.int64), {"points": Ragged.of(torch.zeros(0, 1, 3))}, True)
    found = pair.net.answer(Embedding(pair.images), none, FRAME)
    assert found.logits.shape == (0, 3, 4 * GRID[0], 4 * GRID[1])
    assert found.iou.shape == (0, 3)


def test_what_is_kept_of_an_embedding_follows_the_weights(pair):
    row, embedding = KINDS["a point"][0], Embedding(pair.images)
    with torch.no_grad():
        before = pair.answer(embedding, [row], [1], True).logits
        assert torch.equal(pair.answer(embedding, [row], [1], True).logits, before)
        for name, weight in pair.net.decoder.named_parameters():
            if "token_to_image.v_proj" in name or "image_to_token.q_proj" in name or "upscaling.0" in name:
                kept = weight.clone()
                weight.mul_(1.5)
                changed = pair.answer(embedding, [row], [1], True).logits
                fresh = pair.answer(Embedding(pair.images), [row], [1], True).logits
                weight.copy_(kept)
                assert torch.equal(changed, fresh), name
                assert not torch.equal(changed, before), name
        assert torch.equal(pair.answer(embedding, [row], [1], True).logits, before)
    # And it does not stand in the way of learning: the image gets its gradient.
    image = pair.images.clone().requires_grad_()
    embedding = Embedding(image)
    with torch.no_grad():
        pair.answer(embedding, [row], [1], True)
    pair.answer(embedding, [row], [1], True).logits.sum().backward()
    assert image.grad is not None
    assert image.grad[1].norm() > 0
    assert not image.grad[0].any()


def test_a_second_question_about_an_image_is_less_work(pair):
    net = copy.deepcopy(pair.net).requires_grad_(False)

    def flops(embedding):
        counter = FlopCounterMode(display=False)
        with torch.no_grad(), counter:
            net.answer(embedding, asked([KINDS["a point"][0]], [1], True), FRAME)
        return counter.get_total_flops()

    embedding = Embedding(pair.images)
    first, second = flops(embedding), flops(embedding)
    assert second <= first - 3 * 2 * 3 * 48 * 32 * 16  # three projections of three images from 32 channels to 16
