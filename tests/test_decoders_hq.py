"""SAM-HQ's decoder against its published formulas, written out plainly over the released SAM decoder's modules."""

from __future__ import annotations

import pytest
import torch
from segment_anything.modeling import TwoWayTransformer

from samlit.contracts import Sparse
from samlit.structures import Embedding
from samlit_decoders import _two_way
from samlit_decoders.hq import Hq

C, EARLY, GRID = 32, 20, (3, 5)
INDEX = [1, 0, 1]
ADDED = ("hf_token", "hf_mlp", "compress_vit_feat", "embedding_encoder", "embedding_maskfeature")


def decoder(**others):
    torch.manual_seed(0)
    made = Hq(C, heads=2, mlp_dim=24, iou_hidden=12, early_channels=EARLY, **others)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made.eval()


@pytest.fixture
def given():
    torch.manual_seed(1)
    tokens = Sparse(torch.randn(3, 2, C), torch.ones(3, 2, dtype=torch.bool))
    early = (torch.randn(2, C // 8, 12, 20), torch.randn(2, EARLY, *GRID))  # with another map before it
    return Embedding(torch.randn(2, C, *GRID), early), torch.randn(C, *GRID), tokens, torch.randn(3, C, *GRID)


def ask(net, given, multimask, dense=True):
    embedding, position, tokens, maps = given
    return net(embedding, position, torch.tensor(INDEX), tokens, maps if dense else None, multimask)


def plainly(net, given, alone):
    """Section 3 of the paper, a prompt at a time: SAM's four masks, the high-quality one added or alone."""
    (image, early), position, tokens, maps = given
    transformer = TwoWayTransformer(depth=2, embedding_dim=C, num_heads=2, mlp_dim=24)
    transformer.load_state_dict(net.transformer.state_dict())
    found = []
    for i, b in enumerate(INDEX):
        own = torch.cat([net.iou_token.weight, net.mask_tokens.weight, net.hf_token.weight])
        seen, cells = transformer(image[b : b + 1] + maps[i], position[None], torch.cat([own, tokens.tokens[i]])[None])
        upscaled = net.output_upscaling(cells.transpose(1, 2).view(1, C, *GRID))
        fused = net.embedding_encoder(image[b : b + 1]) + net.compress_vit_feat(early[1][b : b + 1])
        finest = net.embedding_maskfeature(upscaled) + fused
        high = torch.einsum("c,cyx->yx", net.hf_mlp(seen[0, 5]), finest[0])
        heads = net.output_hypernetworks_mlps
        sam = [torch.einsum("c,cyx->yx", heads[j](seen[0, 1 + j]), upscaled[0]) for j in range(4)]
        found.append(torch.stack([high if alone else mask + high for mask in sam]))
    return torch.stack(found)


@torch.no_grad()
@pytest.mark.parametrize("near", [1, 2**18])
@pytest.mark.parametrize("alone", [False, True])
def test_masks_are_those_of_the_formulas(given, alone, near, monkeypatch):
    monkeypatch.setattr(_two_way, "NEAR", near)
    net = decoder(alone=alone)
    expected = plainly(net, given, alone)
    for multimask, which in ((None, slice(None)), (True, slice(1, None)), (False, slice(0, 1))):
        logits, iou = ask(net, given, multimask)
        assert logits.shape == (3, *expected[:, which].shape[1:])
        assert iou.shape == logits.shape[:2]
        torch.testing.assert_close(logits, expected[:, which], atol=1e-4, rtol=1e-4)


def test_the_rest_may_be_frozen_and_the_high_quality_mask_learns_alone(given):
    net = decoder(freeze=True).train()
    logits, _ = ask(net, given, True)
    torch.testing.assert_close(logits, plainly(net, given, True)[:, 1:], atol=1e-4, rtol=1e-4)
    logits.square().mean().backward()
    learning = {name for name, parameter in net.named_parameters() if parameter.grad is not None}
    assert learning == {name for name, _ in net.named_parameters() if name.startswith(ADDED)}
    # At inference it corrects SAM's masks.
    torch.testing.assert_close(ask(net.eval(), given, None)[0], plainly(net, given, False), atol=1e-4, rtol=1e-4)


def test_all_of_it_may_learn(given):
    net = decoder().train()
    logits, iou = ask(net, given, None)
    (logits.square().mean() + iou.square().mean()).backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


@torch.no_grad()
def test_without_a_mask_prompt_the_image_is_fused_once(given):
    net = decoder()
    first, _ = ask(net, given, True, dense=False)
    calls = []
    net.compress_vit_feat.register_forward_hook(lambda *of: calls.append(of))
    assert torch.equal(ask(net, given, True, dense=False)[0], first)
    assert not calls


def test_the_added_names_are_the_released_ones():
    names = {name for name in decoder().state_dict() if name.startswith(ADDED)}
    maps = [f"{part}.{i}.{kind}" for part in ADDED[2:] for i in (0, 1, 3) for kind in ("weight", "bias")]
    mlp = [f"hf_mlp.layers.{i}.{kind}" for i in range(3) for kind in ("weight", "bias")]
    assert names == {"hf_token.weight", *mlp, *maps}


def test_an_encoder_without_the_early_map_is_refused(given):
    embedding, *rest = given
    with pytest.raises(ValueError, match="hq needs an encoder with an early map"):
        ask(decoder(), (Embedding(embedding.image, embedding.early[:1]), *rest), True)
