"""The promptable model: tokens, what an answer depends on, and each part against its plain form."""

import functools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from samlit.contracts import Encoder, Frame, Sparse
from samlit.layers import PositionCode
from samlit.model import PIXEL_MEAN, PIXEL_STD, Sam
from samlit.structures import Embedding, PromptSet, Ragged
from samlit_decoders.mask import Mask
from samlit_encoders.vit import Vit, VitB, VitH, VitL
from samlit_prompts.boxes import Boxes
from samlit_prompts.masks import Masks
from samlit_prompts.points import Points

SIDE = 32


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def stirred(module):
    """The module with every weight away from the zeros and ones that it starts with, which hide faults."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module.eval()


def vit(side=SIDE, **others):
    options = {"dim": 16, "depth": 2, "heads": 2, "global_blocks": (1,), "window": 3, "patch": 8, "channels": 16}
    return Vit(side, **options | others)


def model(encoder=None, prompts=(Points, Boxes, Masks)):
    decoder = functools.partial(Mask, heads=2, mlp_dim=16, iou_hidden=16)
    return stirred(Sam(encoder or vit(), prompts, decoder))


def rows(*given, image_index=None, multimask=None):
    """A prompt set from one dict of values a row; what a row lacks is filled with rubbish and not valid."""
    packed = {}
    for name in dict.fromkeys(name for row in given for name in row):
        most = max(len(row.get(name, ())) for row in given)
        like = next(torch.as_tensor(row[name][0]) for row in given if row.get(name))
        values = torch.full((len(given), most, *like.shape), torch.nan)
        valid = torch.zeros(len(given), most, dtype=torch.bool)
        for i, row in enumerate(given):
            for j, value in enumerate(row.get(name, ())):
                values[i, j], valid[i, j] = torch.as_tensor(value), True
        packed[name] = Ragged(values, valid)
    index = torch.zeros(len(given), dtype=torch.int64) if image_index is None else torch.tensor(image_index)
    return PromptSet(index, packed, multimask)


POINT, OTHER, THIRD, BOX = (3.0, 20.0, 1.0), (30.0, 1.0, 0.0), (11.0, 12.0, 1.0), (2.0, 4.0, 20.0, 30.0)
ROUGH = torch.linspace(-8, 8, 16 * 16).view(16, 16)
KINDS = {
    "a point": ({"points": [POINT]}, 2, 3),
    "three points": ({"points": [POINT, OTHER, THIRD]}, 4, 1),
    "a box": ({"boxes": [BOX]}, 2, 3),
    "a box and two points": ({"boxes": [BOX], "points": [POINT, OTHER]}, 4, 1),
    "a mask": ({"masks": [ROUGH]}, 0, 3),
    "a point and a mask": ({"points": [OTHER], "masks": [-ROUGH]}, 2, 1),
    "all": ({"boxes": [BOX], "points": [POINT, OTHER, THIRD], "masks": [ROUGH]}, 5, 1),
}


def pictures(count=2):
    image = torch.randint(0, 256, (count, 3, SIDE, SIDE), dtype=torch.uint8)
    return image, torch.tensor([[SIDE, SIDE], [SIDE - 12, SIDE], [SIDE, 9]])[:count]


@pytest.mark.parametrize("kind", KINDS)
def test_token_counts_and_the_rule_of_three_masks(kind):
    net, (row, tokens, masks) = model(), KINDS[kind]
    prompts = rows(row)
    sparse, _ = net._encode(prompts, Frame((SIDE, SIDE), (4, 4), net.position))
    assert int(sparse.valid.sum()) == tokens
    answer = net(*pictures(1), prompts)
    assert answer.logits.shape == (1, 4, 16, 16)
    assert answer.allowed.tolist() == [[masks == 1, *[masks == 3] * 3]]
    assert bool(answer.allowed[0, answer.best()[0]])


def test_a_box_that_is_not_ambiguous_counts_as_its_corners():
    net = model(prompts=(Points, functools.partial(Boxes, ambiguous=False), Masks))
    answer = net(*pictures(1), rows(*(row for row, _, _ in KINDS.values())))
    expected = [1 if "boxes" in row else masks for row, _, masks in KINDS.values()]
    assert answer.allowed.sum(1).tolist() == expected


def test_padded_values_are_no_tokens():
    net = model()
    prompts = rows(*(row for row, _, _ in KINDS.values()))
    sparse, _ = net._encode(prompts, Frame((SIDE, SIDE), (4, 4), net.position))
    assert sparse.valid.sum(1).tolist() == [tokens for _, tokens, _ in KINDS.values()]


@pytest.mark.parametrize("multimask", [None, True, False])
def test_an_answer_does_not_depend_on_what_else_is_asked(multimask):
    net, (image, sizes) = model(), pictures(3)
    given = [row for row, _, _ in KINDS.values()]
    index = [i % 3 for i in range(len(given))]
    together = net(image, sizes, rows(*given, image_index=index, multimask=multimask))
    assert together.logits.shape[1] == {None: 4, True: 3, False: 1}[multimask]
    assert together.logits.isfinite().all()
    for i, (row, b) in enumerate(zip(given, index, strict=True)):
        alone = net(image[[b]], sizes[[b]], rows(row, multimask=multimask))
        torch.testing.assert_close(together.logits[[i]], alone.logits, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(together.iou[[i]], alone.iou, atol=1e-5, rtol=1e-4)
        assert torch.equal(together.allowed[[i]], alone.allowed)
    # And each row is its own: neither its image nor its prompt is without effect.
    for i in range(len(given) - 3):
        assert (together.logits[i] - together.logits[i + 3]).abs().max() > 1e-3


def test_the_order_of_rows_is_theirs():
    net, (image, sizes) = model(), pictures(3)
    given, index = [row for row, _, _ in KINDS.values()], [2, 0, 1, 1, 0, 2, 2]
    order = [4, 0, 6, 2, 1, 5, 3]
    first = net(image, sizes, rows(*given, image_index=index))
    again = net(image, sizes, rows(*(given[i] for i in order), image_index=[index[i] for i in order]))
    torch.testing.assert_close(first.logits[order], again.logits, atol=1e-5, rtol=1e-4)


def test_rubbish_in_values_that_are_not_given_reaches_no_gradient():
    net = model()
    answer = net(*pictures(1), rows(*(row for row, _, _ in KINDS.values())))
    (answer.logits.sum() + answer.iou.sum()).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_of_several_masks_each_rows_last_one_counts():
    net, (image, sizes) = model(), pictures(1)
    prompts = rows({"masks": [ROUGH, -ROUGH]}, {"masks": [-ROUGH]}, multimask=False)
    answer = net(image, sizes, prompts)
    torch.testing.assert_close(answer.logits[0], answer.logits[1])
    other = net(image, sizes, rows({"masks": [ROUGH]}, multimask=False))
    assert (other.logits[0] - answer.logits[0]).abs().max() > 1e-3


@pytest.mark.parametrize("prompts", [(Points, Boxes, Masks), (Points,), (Masks, Boxes)])
def test_no_prompt_at_all_is_answered_like_an_ambiguous_one(prompts):
    net = model(prompts=prompts)
    answer = net(*pictures(2), PromptSet(torch.tensor([1, 0]), {}))
    assert answer.logits.isfinite().all()
    assert answer.allowed.tolist() == [[False, True, True, True]] * 2


def test_no_rows_are_no_answers():
    net = model()
    none = PromptSet(torch.zeros(0, dtype=torch.int64), {"points": Ragged.of(torch.zeros(0, 1, 3))})
    answer = net(*pictures(2), none)
    assert answer.logits.shape == (0, 4, 16, 16)
    assert answer.iou.shape == answer.allowed.shape == (0, 4)


def test_an_unknown_prompt_is_named():
    net = model(prompts=[Points, Boxes])
    with pytest.raises(ValueError, match=r"points, boxes; it was given masks$"):
        net(*pictures(1), rows({"points": [POINT], "masks": [ROUGH]}))


@pytest.mark.parametrize("prompts", [[], [Points, Boxes, Points]])
def test_a_model_without_prompts_or_with_one_twice_is_refused(prompts):
    with pytest.raises(ValueError, match=r"each once; it was given: (none|points, boxes, points)$"):
        model(prompts=prompts)


class Recorder(Encoder):
    """Shows what it was given; any size of frame."""

    channels, stride = 8, 8

    def forward(self, image):
        self.seen = image
        return Embedding(F.avg_pool2d(image, 8).repeat(1, 3, 1, 1)[:, :8])


def test_pixels_are_normalised_and_padding_is_zero():
    encoder = Recorder()
    net = Sam(encoder, [Points], functools.partial(Mask, heads=2, mlp_dim=8, iou_hidden=8))
    image = torch.randint(0, 256, (2, 3, 16, 24), dtype=torch.uint8)
    net.embed(image, torch.tensor([[16, 11], [9, 24]]))
    seen = encoder.seen
    assert seen[0, :, :, 11:].abs().sum() == 0
    assert seen[1, :, 9:].abs().sum() == 0
    for channel in range(3):
        value = (image[0, channel, 15, 10].float() - PIXEL_MEAN[channel]) / PIXEL_STD[channel]
        torch.testing.assert_close(seen[0, channel, 15, 10], value)
        assert (seen[1, channel, :9] != 0).all()
    # SAM pads after normalising: rubbish outside the picture changes nothing.
    rubbish = image.clone()
    rubbish[0, :, :, 11:] = 255
    rubbish[1, :, 9:] = 3
    net.embed(rubbish, torch.tensor([[16, 11], [9, 24]]))
    assert torch.equal(seen, encoder.seen)


def test_frames_need_not_be_square():
    net = stirred(Sam(Recorder(), [Points, Boxes, Masks], functools.partial(Mask, heads=2, mlp_dim=8, iou_hidden=8)))
    image = torch.randint(0, 256, (2, 3, 16, 40), dtype=torch.uint8)
    sizes = torch.tensor([[16, 40], [16, 40]])
    given = [{"points": [(39.0, 2.0, 1.0)]}, {"boxes": [(1.0, 2.0, 30.0, 14.0)]}, {"masks": [torch.randn(8, 20)]}]
    together = net(image, sizes, rows(*given, image_index=[1, 0, 1]))
    assert together.logits.shape == (3, 4, 8, 20)
    assert together.full(together.logits).shape == (3, 4, 16, 40)
    for i, b in enumerate([1, 0, 1]):
        alone = net(image[[b]], sizes[[b]], rows(given[i]))
        torch.testing.assert_close(together.logits[[i]], alone.logits, atol=1e-5, rtol=1e-4)
    # x and y are not exchanged: rows of the position code differ as the columns of a transposed frame do.
    code = PositionCode(8)
    swapped = PositionCode(8)
    swapped.positional_encoding_gaussian_matrix.copy_(code.positional_encoding_gaussian_matrix.flip(0))
    torch.testing.assert_close(code.grid((2, 5)), swapped.grid((5, 2)).transpose(1, 2))


def test_the_position_code_is_the_formula():
    code = PositionCode(4)
    code.positional_encoding_gaussian_matrix.copy_(torch.tensor([[0.5, -1.0], [0.25, 2.0]]))
    x, y = 3.0, 1.0
    u, v = 2 * x / 12 - 1, 2 * y / 4 - 1
    angles = 2 * torch.pi * torch.tensor([0.5 * u + 0.25 * v, -1.0 * u + 2.0 * v])
    expected = torch.cat([angles.sin(), angles.cos()])
    torch.testing.assert_close(code(torch.tensor([x, y]), (4, 12)), expected)
    torch.testing.assert_close(code.grid((4, 12))[:, 2, 5], code(torch.tensor([5.5, 2.5]), (4, 12)))


def test_points_and_boxes_are_position_and_label():
    code = PositionCode(8)
    frame, points, boxes = Frame((20, 30), (5, 7), code), stirred(Points(8)), stirred(Boxes(8))
    sparse = points.encode(Ragged.of(torch.tensor([[[7.0, 11.0, 1.0], [29.0, 0.0, 0.0]]])), frame)
    at = functools.partial(code, size=(20, 30))
    torch.testing.assert_close(sparse.tokens[0, 0], at(torch.tensor([7.5, 11.5])) + points.foreground.weight[0])
    torch.testing.assert_close(sparse.tokens[0, 1], at(torch.tensor([29.5, 0.5])) + points.background.weight[0])
    torch.testing.assert_close(points.padding_token(), points.not_a_point.weight[0])
    given = Ragged(torch.tensor([[[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]]]), torch.tensor([[True, False]]))
    sparse = boxes.encode(given, frame)
    assert sparse.valid.tolist() == [[True, True, False, False]]
    corners = [((1.5, 2.5), boxes.top_left), ((3.5, 4.5), boxes.bottom_right)]
    for i, (corner, label) in enumerate(corners):
        torch.testing.assert_close(sparse.tokens[0, i], at(torch.tensor(corner)) + label.weight[0])


def test_a_mask_is_added_where_it_is_given_and_no_mask_elsewhere():
    net = model()
    _, dense = net._encode(rows({"points": [POINT]}, {"masks": [ROUGH]}), Frame((SIDE, SIDE), (4, 4), net.position))
    masks = net.prompts["masks"]
    torch.testing.assert_close(dense[0], masks.no_mask.weight[0][:, None, None].expand(-1, 4, 4))
    torch.testing.assert_close(dense[1], masks.mask_downscaling(ROUGH[None, None])[0])


# The encoder against loops.


def attention_by_loops(attn, x):
    """One query and one key at a time, with tables of relative positions read by difference."""
    b, h, w, c = x.shape
    d = c // attn.heads
    qkv = attn.qkv(x).view(b, h, w, 3, attn.heads, d)
    out = torch.zeros(b, h, w, attn.heads, d)
    for n in range(attn.heads):
        for i in range(h):
            for j in range(w):
                q = qkv[:, i, j, 0, n]
                logits = torch.empty(b, h, w)
                for y in range(h):
                    for z in range(w):
                        bias = q @ attn.rel_pos_h[i - y + h - 1] + q @ attn.rel_pos_w[j - z + w - 1]
                        logits[:, y, z] = (q * qkv[:, y, z, 1, n]).sum(-1) / d**0.5 + bias
                weight = logits.flatten(1).softmax(1).view(b, h, w, 1)
                out[:, i, j, n] = (weight * qkv[:, :, :, 2, n]).sum((1, 2))
    return attn.proj(out.reshape(b, h, w, c))


def block_by_loops(block, x, window):
    """A block whose windows are cut out one by one from a map that is padded with zeros after the norm."""
    y = block.norm1(x)
    b, h, w, c = y.shape
    if window:
        full = torch.zeros(b, -(-h // window) * window, -(-w // window) * window, c)
        full[:, :h, :w] = y
        for top in range(0, full.shape[1], window):
            for left in range(0, full.shape[2], window):
                cut = (slice(None), slice(top, top + window), slice(left, left + window))
                full[cut] = attention_by_loops(block.attn, full[cut].clone())
        y = full[:, :h, :w]
    else:
        y = attention_by_loops(block.attn, y)
    x = x + y
    return x + block.mlp.lin2(F.gelu(block.mlp.lin1(block.norm2(x))))


@pytest.mark.parametrize("window", [0, 3, 5])
@torch.no_grad()
def test_relative_positions_are_those_of_a_loop(window):
    encoder = stirred(vit(window=window or 3, global_blocks=() if window else (0,), depth=1))
    block, x = encoder.blocks[0], torch.randn(2, 4, 4, 16)
    assert block.attn.rel_pos_h.abs().min() > 0
    torch.testing.assert_close(block(x), block_by_loops(block, x, window), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_the_encoder_is_its_parts_one_after_the_other():
    encoder, image = stirred(vit()), torch.randn(2, 3, SIDE, SIDE)
    x = F.conv2d(image, encoder.patch_embed.proj.weight, encoder.patch_embed.proj.bias, 8).permute(0, 2, 3, 1)
    x = x + encoder.pos_embed
    for block, window in zip(encoder.blocks, (3, 0), strict=True):
        x = block_by_loops(block, x, window)
    x = F.conv2d(x.permute(0, 3, 1, 2), encoder.neck[0].weight)
    for i in (1, 3):
        mean, var = x.mean(1, keepdim=True), x.var(1, unbiased=False, keepdim=True)
        norm = encoder.neck[i]
        x = (x - mean) / (var + 1e-6).sqrt() * norm.weight[:, None, None] + norm.bias[:, None, None]
        x = F.conv2d(x, encoder.neck[2].weight, padding=1) if i == 1 else x
    torch.testing.assert_close(encoder(image).image, x, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("build", "parameters"), [(VitB, 89_670_912), (VitL, 308_278_272), (VitH, 637_026_048)])
def test_the_encoders_are_as_large_as_the_released_ones(build, parameters):
    with torch.device("meta"):
        encoder = build()
    assert sum(p.numel() for p in encoder.parameters()) == parameters
    assert (encoder.channels, encoder.stride) == (256, 16)


def test_decoder_and_prompts_are_as_large_as_the_released_ones():
    with torch.device("meta"):
        parts = Mask(), [Points(), Boxes(), Masks()]
    assert sum(p.numel() for p in parts[0].parameters()) == 4_058_340
    assert sum(p.numel() for prompt in parts[1] for p in prompt.parameters()) == 6_220


def test_skipped_blocks_keep_the_expectation():
    encoder = vit(depth=3, drop_path=0.5, global_blocks=())
    assert [block.drop_path for block in encoder.blocks] == [0.0, 0.25, 0.5]
    block, x = encoder.blocks[2].train(), torch.ones(4000, 1, 1, 1)
    kept = block._skip(x)
    assert set(kept.flatten().tolist()) == {0.0, 2.0}
    assert abs(float(kept.mean()) - 1) < 0.1
    assert torch.equal(block.eval()._skip(x), x)


@pytest.mark.parametrize(
    ("others", "words"),
    [
        ({"side": 36}, "not a multiple of the patch"),
        ({"heads": 3}, "not a multiple of the number of heads"),
        ({"global_blocks": (2,)}, r"\[2\] are not among the 2 blocks"),
        ({"global_blocks": (-1,)}, r"\[-1\] are not among"),
        ({"stem": "conv", "patch": 6, "side": 36}, "patch must be"),
        ({"drop_path": 1.0}, "drop_path"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(others, words):
    with pytest.raises(ValueError, match=words):
        vit(**others)


@pytest.mark.parametrize("dim", [16, 48, 96])
@pytest.mark.parametrize("patch", [8, 16])
def test_the_conv_stem_makes_the_same_grid_and_finer_maps(dim, patch):
    encoder = vit(stem="conv", dim=dim, patch=patch)
    cells = SIDE // patch
    found = encoder(torch.randn(2, 3, SIDE, SIDE))
    assert found.image.shape == (2, 16, cells, cells)
    assert [early.shape for early in found.early] == [(2, 2, 4 * cells, 4 * cells), (2, 4, 2 * cells, 2 * cells)]
    assert encoder.layer_of("patch_embed.proj.weight") == (0, 4)
    assert vit()(torch.randn(1, 3, SIDE, SIDE)).early == ()


# The decoder against the plain form.


def plain(attention, q, k, v):
    """Attention head by head."""
    q, k, v = attention.q_proj(q), attention.k_proj(k), attention.v_proj(v)
    d = q.shape[-1] // attention.heads
    parts = []
    for n in range(attention.heads):
        head = slice(n * d, (n + 1) * d)
        weight = (q[..., head] @ k[..., head].transpose(-1, -2) / d**0.5).softmax(-1)
        parts.append(weight @ v[..., head])
    return attention.out_proj(torch.cat(parts, -1))


@torch.no_grad()
def test_the_decoder_is_its_modules_run_the_plain_way():
    decoder = stirred(Mask(16, heads=2, mlp_dim=24, iou_hidden=12))
    embedding, position = torch.randn(2, 16, 3, 5), torch.randn(16, 3, 5)
    index, prompts, dense = torch.tensor([1, 0, 1]), torch.randn(3, 2, 16), torch.randn(3, 16, 3, 5)
    sparse = Sparse(prompts, torch.ones(3, 2, dtype=torch.bool))
    logits, iou = decoder(Embedding(embedding), position, index, sparse, dense, None)

    own = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight]).expand(3, -1, -1)
    code = tokens = torch.cat([own, prompts], 1)
    image = (embedding[index] + dense).flatten(2).transpose(1, 2)
    where = position.flatten(1).t()
    for i, layer in enumerate(decoder.transformer.layers):
        if i == 0:  # the tokens are replaced, and see no position code
            tokens = layer.norm1(plain(layer.self_attn, tokens, tokens, tokens))
        else:
            tokens = layer.norm1(tokens + plain(layer.self_attn, tokens + code, tokens + code, tokens))
        across = plain(layer.cross_attn_token_to_image, tokens + code, image + where, image)
        tokens = layer.norm2(tokens + across)
        tokens = layer.norm3(tokens + layer.mlp.lin2(layer.mlp.lin1(tokens).relu()))
        image = layer.norm4(image + plain(layer.cross_attn_image_to_token, image + where, tokens + code, tokens))
    last = decoder.transformer
    tokens = last.norm_final_attn(tokens + plain(last.final_attn_token_to_image, tokens + code, image + where, image))
    up = decoder.output_upscaling(image.transpose(1, 2).view(3, 16, 3, 5))
    assert isinstance(decoder.output_upscaling[0], nn.ConvTranspose2d)
    kernels = torch.stack([mlp(tokens[:, 1 + i]) for i, mlp in enumerate(decoder.output_hypernetworks_mlps)], 1)
    torch.testing.assert_close(logits, torch.einsum("pmc,pcyx->pmyx", kernels, up), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(iou, decoder.iou_prediction_head(tokens[:, 0]), atol=1e-5, rtol=1e-4)

    for multimask, which in ((True, slice(1, 4)), (False, slice(0, 1))):
        some, their_iou = decoder(Embedding(embedding), position, index, sparse, dense, multimask)
        torch.testing.assert_close(some, logits[:, which])
        torch.testing.assert_close(their_iou, iou[:, which])


@torch.no_grad()
def test_finer_maps_are_added_where_masks_are_drawn():
    torch.manual_seed(1)
    fine = stirred(Mask(16, heads=2, mlp_dim=24, iou_hidden=12, high_res=True))
    position, index = torch.randn(16, 3, 5), torch.tensor([1, 0, 1])
    quarters, halves = torch.randn(2, 2, 12, 20), torch.randn(2, 4, 6, 10)
    sparse = Sparse(torch.randn(3, 2, 16), torch.ones(3, 2, dtype=torch.bool))
    embedding, seen = torch.randn(2, 16, 3, 5), {}

    def keep(module, given, returned):
        seen["tokens"], seen["image"] = returned

    fine.transformer.register_forward_hook(keep)
    logits, _ = fine(Embedding(embedding, (quarters, halves)), position, index, sparse, None, None)
    first, norm, _, second, _ = fine.output_upscaling
    x = F.gelu(norm(first(seen["image"].transpose(1, 2).view(3, 16, 3, 5)) + halves[index]))
    x = F.gelu(second(x) + quarters[index])
    kernels = torch.stack([mlp(seen["tokens"][:, 1 + i]) for i, mlp in enumerate(fine.output_hypernetworks_mlps)], 1)
    torch.testing.assert_close(logits, torch.einsum("pmc,pcyx->pmyx", kernels, x), atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="needs an encoder with finer maps"):
        fine(Embedding(embedding), position, index, sparse, None, None)


@torch.no_grad()
@pytest.mark.parametrize("index", [[0], [1, 0], [0, 1, 1]])
def test_a_dense_prompt_that_is_the_same_everywhere_may_be_given_once(index):
    decoder = stirred(Mask(16, heads=2, mlp_dim=24, iou_hidden=12))
    embedding, position = Embedding(torch.randn(2, 16, 3, 5)), torch.randn(16, 3, 5)
    rows_, flat = len(index), torch.randn(1, 16, 1, 1)
    sparse = Sparse(torch.randn(rows_, 1, 16), torch.ones(rows_, 1, dtype=torch.bool))
    ask = functools.partial(decoder, embedding, position, torch.tensor(index), sparse, multimask=None)
    once, _ = ask(dense=flat)
    for one, all_ in ((once, flat.expand(rows_, 16, 3, 5)), (ask(dense=None)[0], torch.zeros(rows_, 16, 3, 5))):
        torch.testing.assert_close(one, ask(dense=all_)[0], atol=1e-4, rtol=1e-4)


def test_the_released_files_hold_the_random_matrix_and_not_the_pixel_statistics():
    names = model().state_dict().keys()
    assert "position.positional_encoding_gaussian_matrix" in names
    assert not [name for name in names if "pixel" in name or "offset" in name or name.endswith("here")]
