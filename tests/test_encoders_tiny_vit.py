"""TinyViT: against timm's, with the released names, at any size, and with norms that stay as they are."""

import math

import pytest
import timm
import torch
from torch import nn

from samlit.model import Sam
from samlit.structures import PromptSet, Ragged
from samlit.training.optim import Optim
from samlit_decoders.mask import Mask
from samlit_encoders.tiny_vit import TinyVit
from samlit_prompts.points import Points

SMALL = {"dims": (16, 24, 32, 48), "depths": (1, 2, 2, 1), "heads": (2, 4, 4), "windows": (3, 5, 3), "channels": 16}


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def stirred(module):
    """Every weight and statistic away from the zeros and ones that it starts with, which hide faults."""
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if name.endswith("running_var"):
                value.uniform_(0.5, 2)
            elif value.is_floating_point():
                value.add_(0.2 * torch.randn_like(value))
    return module.eval()


def timms_name(name):
    """The name in timm's TinyViT of a weight of ours."""
    words = name.replace("seq.0.", "conv1.").replace("seq.2.", "conv2.").replace(".c.", ".conv.").split(".")
    if words[0] == "layers":
        words[:2] = "stages", str(int(words[1]) + (words[2] == "downsample"))  # timm's steps open a stage, ours end one
    return ".".join(words)


@pytest.mark.parametrize("size", [(96, 64), (112, 112), (80, 176)], ids=str)
@torch.no_grad()
def test_it_is_timms_tiny_vit_with_the_last_stage_at_a_stride_of_16(size):
    own = stirred(TinyVit())
    peer = timm.create_model("tiny_vit_5m_224", num_classes=0).eval()
    peer.stages[3].downsample.conv2.conv.stride = (1, 1)
    state = {timms_name(name): value for name, value in own.state_dict().items() if not name.startswith("neck.")}
    found = peer.load_state_dict(state, strict=False)
    assert found.missing_keys == ["head.norm.weight", "head.norm.bias"]
    assert not found.unexpected_keys
    image = torch.randn(2, 3, *size)
    maps = peer.forward_intermediates(image, intermediates_only=True)
    embedding = own(image).image
    assert embedding.shape == (2, 256, size[0] // 16, size[1] // 16)
    torch.testing.assert_close(embedding, own.neck(maps[-1]), atol=1e-4, rtol=1e-4)
    assert embedding.std() > 0.1


def test_its_names_are_the_released_ones_and_the_classifier_is_left_out():
    own = TinyVit()
    state = stirred(TinyVit()).state_dict()
    released = {**state, "norm_head.weight": torch.ones(320), "norm_head.bias": torch.ones(320)}
    released |= {"head.weight": torch.ones(1000, 320), "head.bias": torch.ones(1000)}
    own.load_state_dict(released)
    assert all(torch.equal(value, state[name]) for name, value in own.state_dict().items())
    # Counted in the released file, without the classifier.
    assert len(state) == 298
    assert sum(parameter.numel() for parameter in own.parameters()) == 5_743_892
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    assert shapes["patch_embed.seq.2.bn.running_var"] == (64,)
    assert shapes["layers.0.blocks.1.conv2.c.weight"] == (256, 1, 3, 3)
    assert shapes["layers.1.downsample.conv3.c.weight"] == (160, 160, 1, 1)
    assert shapes["layers.2.blocks.5.attn.attention_biases"] == (5, 196)
    assert shapes["layers.3.blocks.0.local_conv.c.weight"] == (320, 1, 3, 3)
    assert shapes["neck.2.weight"] == (256, 256, 3, 3)


@torch.no_grad()
def test_norms_folded_into_their_convolutions_are_the_same_network():
    """As MobileSAM is passed around: statistics 0 and 1, a weight that undoes the norm's epsilon."""
    whole = stirred(TinyVit(64, **SMALL))
    state = dict(whole.state_dict())
    for name, module in whole.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            scale = module.weight / (module.running_var + module.eps).sqrt()
            conv = f"{name.removesuffix('bn')}c.weight"
            state[conv] = state[conv] * scale[:, None, None, None]
            state[f"{name}.bias"] = module.bias - module.running_mean * scale
            state[f"{name}.weight"] = torch.full_like(scale, math.sqrt(1 + module.eps))
            state[f"{name}.running_mean"] = torch.zeros_like(scale)
            state[f"{name}.running_var"] = torch.ones_like(scale)
    folded = TinyVit(64, **SMALL, freeze_norms=True)
    folded.load_state_dict(state)
    image = torch.randn(2, 3, 64, 96)
    expected = whole(image).image
    torch.testing.assert_close(folded.eval()(image).image, expected, atol=1e-4, rtol=1e-4)
    # In training, only frozen norms leave them the same network.
    torch.testing.assert_close(folded.train()(image).image, expected, atol=1e-4, rtol=1e-4)
    loose = TinyVit(64, **SMALL)
    loose.load_state_dict(state)
    assert (loose.train()(image).image - expected).abs().max() > 0.1


def test_frozen_norms_learn_their_weights_but_keep_their_statistics():
    own = TinyVit(64, **SMALL, freeze_norms=True).train()
    before = {name: value.clone() for name, value in own.state_dict().items() if "running" in name}
    own(torch.randn(2, 3, 64, 64)).image.square().mean().backward()
    assert all(torch.equal(own.state_dict()[name], value) for name, value in before.items())
    assert own.patch_embed.seq[0].bn.weight.grad.abs().max() > 0


@pytest.mark.parametrize("detail", [False, True])
def test_every_weight_learns_and_finer_maps_come_if_wanted(detail):
    own = stirred(TinyVit(64, **SMALL, detail=detail)).train()
    embedding = own(torch.randn(2, 3, 64, 96))
    assert embedding.image.shape == (2, 16, 4, 6)
    assert [tuple(map_.shape) for map_ in embedding.early] == ([(2, 2, 16, 24), (2, 4, 8, 12)] if detail else [])
    torch.stack([map_.square().mean() for map_ in (embedding.image, *embedding.early)]).sum().backward()
    for name, parameter in own.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_finer_maps_serve_a_decoder():
    net = Sam(TinyVit(64, **SMALL, detail=True), [Points], lambda c: Mask(c, heads=2, mlp_dim=16, high_res=True)).eval()
    prompts = PromptSet(torch.tensor([0]), {"points": Ragged.of(torch.tensor([[[3.0, 9.0, 1.0]]]))})
    image = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    answer = net(image, torch.tensor([[64, 64]]), prompts)
    assert answer.logits.shape == (1, 4, 16, 16)


def test_new_weights_are_seen_in_evaluation():
    own = stirred(TinyVit(64, **SMALL))
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = own(image).image
        own.layers[2].blocks[0].attn.attention_biases.add_(torch.randn(4, 25))
        assert (own(image).image - before).abs().max() > 1e-4


def test_layers_of_rates_rise_from_the_pixels_to_the_neck():
    own = TinyVit(64, **SMALL, detail=True)
    found = {name: own.layer_of(name) for name, _ in own.named_parameters()}
    assert {layers for _, layers in found.values()} == {8}  # stem, 6 blocks, neck
    assert {layer for layer, _ in found.values()} == set(range(8))
    assert found["layers.1.blocks.0.attn.qkv.weight"][0] == 2
    assert found["layers.1.downsample.conv1.c.weight"] == found["layers.1.blocks.1.mlp.fc1.weight"] == (3, 8)
    order = [layer for name, (layer, _) in found.items() if not name.startswith("detail.")]
    assert order == sorted(order)


def test_biases_of_attention_do_not_decay():
    net = Sam(TinyVit(64, **SMALL), [Points], lambda c: Mask(c, heads=2, mlp_dim=16))
    decays = {id(p): group["weight_decay"] for group in Optim().groups(net) for p in group["params"]}
    attention = net.encoder.layers[1].blocks[0].attn
    assert decays[id(attention.attention_biases)] == 0
    assert decays[id(attention.qkv.weight)] > 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"image_size": 100}, "image_size 100 is not a multiple of 16"),
        ({"heads": (2, 4)}, "four stages"),
        ({"heads": (2, 3, 4)}, "dim 160 is not a multiple of the number of heads, 3"),
        ({"drop_path": 1.0}, "drop_path 1.0"),
    ],
)
def test_what_cannot_be_built_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        TinyVit(**options)


def test_a_skipped_block_is_no_block():
    own = stirred(TinyVit(64, **SMALL, drop_path=0.9)).train()
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert not torch.equal(own(image).image, own(image).image)
        own.eval()
        assert torch.equal(own(image).image, own(image).image)
