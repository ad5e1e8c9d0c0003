"""The image encoder against the official one with equal weights, none of them zero: sizes, gradients, detours."""

import functools

import pytest
import timm
import torch
from segment_anything.modeling import ImageEncoderViT
from torch import nn
from torch.nn import functional as F

from samlit_encoders import vit as module
from samlit_encoders._attention import Attention, relative
from samlit_encoders._mae import from_mae
from samlit_encoders.vit import Vit, VitB, VitH, VitL

BUILD = {"vit_b": VitB, "vit_l": VitL, "vit_h": VitH}
PLAN = {
    "vit_b": (768, 12, 12, (2, 5, 8, 11)),
    "vit_l": (1024, 24, 16, (5, 11, 17, 23)),
    "vit_h": (1280, 32, 16, (7, 15, 23, 31)),
}


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def official(size, dim, depth, heads, global_blocks, window=14, patch=16, channels=256):
    """The official encoder with positions that are not zero."""
    encoder = ImageEncoderViT(
        img_size=size,
        patch_size=patch,
        embed_dim=dim,
        depth=depth,
        num_heads=heads,
        out_chans=channels,
        norm_layer=functools.partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=window,
        global_attn_indexes=global_blocks,
    )
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if "pos" in name:
                parameter.normal_(std=0.1)
            elif name.endswith("bias"):
                parameter.normal_(std=0.02)
    return encoder.eval()


def small(size=96, depth=2, **others):
    """A pair of the same weights: the official encoder and this one. 12 x 12 cells, and windows that do not fit."""
    reference = official(size, 32, depth, 2, (depth - 1,), window=5, patch=8, channels=16)
    own = Vit(size, 32, depth, 2, (depth - 1,), 5, 8, 16, **others).eval()
    own.load_state_dict(reference.state_dict())
    return reference, own


def off(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


def fitted(reference, grid):
    """Interpolate absolute positions, which the official encoder leaves to its caller; returns the learned ones."""
    learned = reference.pos_embed
    maps = F.interpolate(learned.permute(0, 3, 1, 2), grid, mode="bicubic", align_corners=False)
    del reference.pos_embed
    reference.pos_embed = maps.permute(0, 2, 3, 1)
    return learned


# The official encoder.


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("vit_b", 320),
        pytest.param("vit_l", 320, marks=pytest.mark.slow),
        pytest.param("vit_h", 256, marks=pytest.mark.slow),
    ],
)
@torch.no_grad()
def test_a_released_encoder_is_the_official_one(name, size):
    reference, image = official(size, *PLAN[name]), torch.randn(1, 3, size, size)
    with torch.device("meta"):
        own = BUILD[name](size).eval()
    own.load_state_dict(reference.state_dict(), assign=True)  # one copy of the weights
    assert off(own(image).image, reference(image)) < 1e-5


@pytest.mark.parametrize(
    ("name", "parameters"), [("vit_b", 89_670_912), ("vit_l", 308_278_272), ("vit_h", 637_026_048)]
)
def test_names_and_shapes_are_those_of_the_released_files(name, parameters):
    with torch.device("meta"):
        own, reference = BUILD[name](), official(1024, *PLAN[name])
    shapes = [{key: tuple(value.shape) for key, value in net.state_dict().items()} for net in (own, reference)]
    assert shapes[0] == shapes[1]
    assert len(shapes[0]) == 9 + 14 * PLAN[name][1]
    assert sum(value.numel() for value in own.state_dict().values()) == parameters


@pytest.mark.parametrize("size", [(96, 96), (48, 48), (144, 144), (64, 96), (152, 40), (8, 8)])
@torch.no_grad()
def test_images_of_any_size_are_encoded(size):
    reference, own = small()
    image = torch.randn(2, 3, *size)
    grid = [side // 8 for side in size]
    fitted(reference, grid)
    found = own(image).image
    assert found.shape == (2, 16, *grid)
    assert off(found, reference(image)) < 1e-5
    # The same as a model built for that side, which brings the positions to it when they are loaded.
    if size[0] == size[1]:
        other = Vit(size[0], 32, 2, 2, (1,), 5, 8, 16).eval()
        other.load_state_dict(own.state_dict())
        assert off(other(image).image, found) < 1e-5


def test_an_image_that_is_no_multiple_of_the_patch_is_refused():
    with pytest.raises(ValueError, match=r"36 x 40 is not a multiple of the patch, 8$"):
        small()[1](torch.zeros(1, 3, 36, 40))


@pytest.mark.parametrize("size", [(96, 96), (64, 120)])
def test_gradients_are_the_official_ones(size):
    reference, own = small(depth=3)
    image = torch.randn(2, 3, *size, requires_grad=True)
    weights = dict(reference.named_parameters())
    fitted(reference, [side // 8 for side in size])
    found, expected = own.train()(image).image, reference(image)
    assert off(found, expected) < 1e-5
    direction = torch.randn_like(found)
    ours = torch.autograd.grad(found, [image, *own.parameters()], direction)
    theirs = torch.autograd.grad(expected, [image, *(weights[name] for name, _ in own.named_parameters())], direction)
    for name, a, b in zip(["image", *dict(own.named_parameters())], ours, theirs, strict=True):
        assert off(a, b) < 2e-5, name


# Ways of computing the same.


def attention(window, grid=3, dtype=torch.float64):
    attn = Attention(8, 2, window or grid, window).to(dtype)
    with torch.no_grad():
        for parameter in attn.parameters():
            parameter.normal_(std=0.5)
    return attn


@pytest.mark.parametrize(("window", "size"), [(0, (3, 3)), (0, (2, 4)), (2, (4, 2)), (2, (3, 3)), (3, (2, 4))])
def test_gradients_are_those_of_differences(window, size):
    attn, x = attention(window), torch.randn(2, *size, 8, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in attn.named_parameters()]

    def run(x, *parameters):
        return torch.func.functional_call(attn, dict(zip(names, parameters, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (x, *attn.parameters()))


@pytest.mark.parametrize(("window", "size"), [(0, (24, 26)), (5, (24, 26)), (0, (6, 3)), (4, (8, 8))])
def test_training_computes_what_inference_does(window, size):
    attn, x = attention(window, 24, torch.float32), torch.randn(2, *size, 8)
    learning = attn(x)  # more cells than SMALL, and fewer
    assert learning.requires_grad
    attn.requires_grad_(False)
    torch.testing.assert_close(attn(x), learning.detach(), atol=1e-5, rtol=1e-5)
    half = attn.bfloat16()(x.bfloat16()).float()
    assert off(half, learning) < 3e-2


@torch.no_grad()
def test_chunks_of_scores_are_whole_wherever_they_end(monkeypatch):
    attn, x = attention(0, 7), torch.randn(3, 7, 5, 8, dtype=torch.float64)
    whole = attn(x)
    for scores in (1, 40, 35 * 35, 2 * 35 * 35 + 1, 4 * 35 * 35):
        monkeypatch.setattr("samlit_encoders._attention.SCORES", scores)
        torch.testing.assert_close(attn(x), whole)


@pytest.mark.parametrize("size", [(96, 96), (64, 120)])
@torch.no_grad()
def test_bands_of_rows_are_the_whole(size, monkeypatch):
    _, own = small()
    image = torch.randn(2, 3, *size)
    whole, rows = own(image).image, []
    monkeypatch.setattr(module, "BAND", 40)
    own.blocks[1].mlp.register_forward_hook(lambda mlp, given, found: rows.append(given[0].shape[1]))
    torch.testing.assert_close(own(image).image, whole, atol=1e-5, rtol=1e-5)
    assert len(rows) > 2
    assert max(rows) * size[1] // 8 <= 40


@torch.no_grad()
def test_the_padding_of_windows_is_seen():
    _, own = small()
    block, x = own.blocks[0], torch.randn(1, 7, 6, 32)
    found = block.attn(x)
    # As the official code: windows cut from a map that is padded before the projection.
    full = F.pad(x, (0, 0, 0, 4, 0, 3))
    plain = Attention(32, 2, 5, 0)
    plain.load_state_dict(block.attn.state_dict())
    parts = [torch.cat([plain(full[:, i : i + 5, j : j + 5]) for j in (0, 5)], 2) for i in (0, 5)]
    torch.testing.assert_close(found, torch.cat(parts, 1)[:, :7, :6], atol=1e-6, rtol=1e-5)
    # Without it, the cells of a window that is not full attend to each other alone: another result.
    assert off(plain(x[:, :5, 5:]), found[:, :5, 5:]) > 0.05


def test_a_table_of_its_own_size_is_read_by_difference():
    table = torch.randn(7, 3)
    vectors = relative(table, 4)
    assert all(torch.equal(vectors[i, j], table[i - j + 3]) for i in range(4) for j in range(4))


@pytest.mark.filterwarnings("ignore:Guards may run slower on Python 3.13.0")  # torch about one version of Python
@pytest.mark.parametrize("learns", [True, False])
def test_it_compiles(learns):
    _, own = small()
    image, expected = torch.randn(1, 3, 96, 96), None
    own.train(learns).requires_grad_(learns)
    expected = own(image).image
    compiled = torch.compile(own, backend="aot_eager", fullgraph=True)
    found = compiled(image).image
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    if learns:
        ours = torch.autograd.grad(found.square().sum(), list(own.parameters()))
        theirs = torch.autograd.grad(expected.square().sum(), list(own.parameters()))
        assert all(off(a, b) < 1e-4 for a, b in zip(ours, theirs, strict=True))


# Training.


@pytest.mark.parametrize("drop_path", [0.0, 0.5])
def test_recomputed_blocks_have_the_same_gradients(drop_path):
    nets = [small(depth=3, drop_path=drop_path, checkpoint=checkpoint)[1].train() for checkpoint in (False, True)]
    nets[1].load_state_dict(nets[0].state_dict())
    image, kept, found = torch.randn(4, 3, 96, 96), [], []
    for net in nets:
        total = 0

        def pack(tensor):
            nonlocal total
            total += tensor.numel()
            return tensor

        torch.manual_seed(1)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = net(image).image.square().sum()
        kept.append(total)
        torch.manual_seed(2)  # what was skipped is remembered, not drawn again
        found.append(torch.autograd.grad(loss, list(net.parameters()), allow_unused=True))
    assert kept[1] < kept[0] / 3
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


def test_the_blocks_are_what_is_sharded_and_recomputed():
    _, own = small(depth=3)
    assert own.shards() == list(own.blocks)
    whole = sum(p.numel() for block in own.shards() for p in block.parameters())
    assert whole > 0.5 * sum(p.numel() for p in own.parameters())


def test_both_branches_of_a_block_are_skipped_an_image_at_a_time():
    _, own = small(depth=3, drop_path=0.9)
    assert [block.drop_path for block in own.blocks] == pytest.approx([0.0, 0.45, 0.9])
    block, x = own.blocks[2].train(), torch.randn(400, 1, 1, 32)
    with torch.no_grad():
        moved = (block(x) - x).flatten(1)
        block.attn.proj.weight.zero_()
        block.attn.proj.bias.zero_()
        by_mlp = (block(x) - x).flatten(1)
    untouched = (moved == 0).all(1).float().mean()
    assert abs(untouched - 0.81) < 0.08  # 0.9 x 0.9: each branch of each image on its own
    assert abs((by_mlp == 0).all(1).float().mean() - 0.9) < 0.06


# Where SAM starts from.


def mae(patch=8, side=5, dim=32, depth=2):
    """Weights with the names and shapes of a masked autoencoder's, its decoder among them."""
    encoder = timm.create_model(
        "vit_tiny_patch16_224", img_size=patch * side, patch_size=patch, embed_dim=dim, depth=depth, num_heads=2
    )
    state = {key: torch.randn_like(value) for key, value in encoder.state_dict().items() if "head" not in key}
    extra = {"mask_token": (1, 1, 16), "decoder_pos_embed": (1, 26, 16), "decoder_blocks.0.norm1.weight": (16,)}
    return state | {key: torch.randn(shape) for key, shape in extra.items()}


def test_an_encoder_starts_from_a_masked_autoencoder():
    state, (_, own) = mae(), small()
    before = {key: value.clone() for key, value in own.state_dict().items()}
    start = own.convert(state, "mae")
    assert all(torch.equal(value, before[key]) for key, value in own.state_dict().items())
    own.load_state_dict(start)
    for name in ("norm1.weight", "norm2.bias", "attn.qkv.weight", "attn.proj.bias"):
        assert torch.equal(own.get_parameter(f"blocks.1.{name}"), state[f"blocks.1.{name}"])
    assert torch.equal(own.blocks[0].mlp.lin1.weight, state["blocks.0.mlp.fc1.weight"])
    assert torch.equal(own.blocks[0].mlp.lin2.bias, state["blocks.0.mlp.fc2.bias"])
    assert torch.equal(own.patch_embed.proj.weight, state["patch_embed.proj.weight"])
    for name in ("neck.0.weight", "blocks.0.attn.rel_pos_h"):
        assert torch.equal(start[name], before[name])
    positions = state["pos_embed"][:, 1:].reshape(1, 5, 5, 32).permute(0, 3, 1, 2)
    positions = F.interpolate(positions, (12, 12), mode="bicubic").permute(0, 2, 3, 1)
    torch.testing.assert_close(own.pos_embed.data, positions)


def test_kernels_answer_an_enlarged_patch_as_they_answered_the_patch():
    state, (_, own) = mae(patch=7), small()
    kernels = from_mae(state, own)["patch_embed.proj.weight"]
    patch = torch.randn(4, 3, 7, 7)
    larger = F.interpolate(patch, (8, 8), mode="bicubic", align_corners=False)
    torch.testing.assert_close(
        F.conv2d(larger, kernels), F.conv2d(patch, state["patch_embed.proj.weight"]), atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.pop("blocks.1.mlp.fc1.bias"), r"lack 'blocks\.1\.mlp\.lin1\.bias'$"),
        (lambda state: state.update(mae(depth=3)), r"have, and this model has not, 'blocks\.2\..* and 11 more$"),
        (lambda state: state.update({"pos_embed": torch.zeros(1, 25, 32)}), "25 positions are not"),
        (lambda state: state.pop("pos_embed"), "lack 'pos_embed'"),
        (lambda state: state.update({"blocks.0.attn.proj.bias": torch.zeros(8)}), "'blocks.0.attn.proj.bias' is 8 and"),
    ],
)
def test_weights_of_another_autoencoder_are_refused(change, words):
    state = mae()
    change(state)
    with pytest.raises(ValueError, match=words):
        from_mae(state, small()[1])


@torch.no_grad()
@pytest.mark.parametrize("stem", ["patch", "conv"])
def test_outputs_of_blocks_are_emitted_after_finer_maps(stem):
    encoder = Vit(32, 16, 3, 2, (1,), 3, 8, 16, stem=stem, early=(1, 0)).eval()
    seen = []
    for block in encoder.blocks:
        block.register_forward_hook(lambda block, given, returned: seen.append(returned))
    found = encoder(torch.randn(2, 3, 32, 32))
    finer = found.early[:-2]
    assert len(finer) == (2 if stem == "conv" else 0)
    for emitted, block in zip(found.early[-2:], (1, 0), strict=True):
        assert emitted.shape == (2, 16, 4, 4)
        assert torch.equal(emitted, seen[block].permute(0, 3, 1, 2))


def test_blocks_that_are_not_there_cannot_be_emitted():
    with pytest.raises(ValueError, match=r"early \[3\] are not among the 3 blocks"):
        Vit(32, 16, 3, 2, (1,), 3, 8, 16, early=(3,))
