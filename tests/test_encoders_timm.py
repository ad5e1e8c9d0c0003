"""Backbones of timm: maps of the wanted stride from any of them, their own normalisation, and SAM's ViT as samlit's."""

import pytest
import timm
import torch

from samlit import module
from samlit.contracts import Task
from samlit.errors import SamlitError
from samlit.model import PIXEL_MEAN, PIXEL_STD, Sam
from samlit.structures import PromptSet, Ragged
from samlit_decoders.mask import Mask
from samlit_encoders.timm import Timm
from samlit_encoders.vit import Vit
from samlit_prompts.points import Points

VIT = {"embed_dim": 32, "depth": 2, "num_heads": 2}
NETS = {
    "vit_tiny_patch16_224": VIT,
    "vit_base_patch16_224.mae": VIT,
    "vit_small_patch14_dinov2": VIT | {"patch_size": 16},
    "vit_small_patch16_dinov3": VIT | {"embed_dim": 48},
    "samvit_base_patch16": VIT | {"window_size": 3, "global_attn_indexes": (1,)},
    "hiera_tiny_224": {"embed_dim": 16, "stages": (1, 1, 2, 1)},
    "convnext_atto": {"dims": (8, 16, 24, 32), "depths": (1, 1, 2, 1)},
    "tiny_vit_5m_224": {"embed_dims": (16, 24, 32, 32), "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2)},
    "efficientvit_b0": {"widths": (8, 8, 16, 16, 32), "head_widths": (32, 32)},
    "resnet18": {},
    "swin_tiny_patch4_window7_224": {
        "embed_dim": 12,
        "depths": (1, 1, 2, 1),
        "num_heads": (1, 2, 2, 2),
        "drop_path_rate": 0.0,
    },
}
FINE = {name for name in NETS if name.startswith(("hiera", "convnext", "tiny", "efficient", "resnet", "swin"))}
ONE_SIZE = {"hiera_tiny_224"}


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def build(name, image_size=64, channels=16, **others):
    return Timm(image_size, name, channels=channels, options=NETS[name], **others)


@pytest.mark.parametrize("name", NETS)
def test_a_net_gives_the_embedding_and_all_that_is_left_of_it_learns(name):
    encoder = build(name, detail=name in FINE)
    with torch.no_grad():  # nets begin with zeros here and there, behind which no gradient passes
        for parameter in encoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    embedding = encoder(torch.randn(2, 3, 64, 64))
    assert (encoder.channels, encoder.stride) == (16, 16)
    assert embedding.image.shape == (2, 16, 4, 4)
    assert embedding.image.dtype == torch.float32
    assert [tuple(m.shape) for m in embedding.early] == ([(2, 2, 16, 16), (2, 4, 8, 8)] if name in FINE else [])
    torch.stack([m.square().mean() for m in (embedding.image, *embedding.early)]).sum().backward()
    assert not [parameter for parameter, p in encoder.named_parameters() if p.grad is None or not p.grad.any()]
    if name not in ONE_SIZE:
        assert encoder(torch.randn(1, 3, 96, 32)).image.shape == (1, 16, 6, 2)
    layers = [encoder.layer_of(parameter) for parameter, _ in encoder.named_parameters()]
    assert {count for _, count in layers} == {max(layer for layer, _ in layers) + 1}
    assert min(layers)[0] == 0
    assert encoder.layer_of("neck.0.weight")[0] == layers[0][1] - 1


def test_the_map_is_that_of_the_deepest_stage_of_the_stride():
    for stride, index in ((8, 1), (16, 2), (32, 3)):
        encoder = build("convnext_atto", stride=stride).eval()
        peer = timm.create_model("convnext_atto", num_classes=0, **NETS["convnext_atto"]).eval()
        peer.load_state_dict(encoder.net.state_dict(), strict=False)
        image = torch.randn(1, 3, 64, 96)
        with torch.no_grad():
            x = peer.stem(image)
            for stage in peer.stages[: index + 1]:
                x = stage(x)
            torch.testing.assert_close(encoder(image).image, encoder.neck(x))
        assert encoder(image).image.shape == (1, 16, 64 // stride, 96 // stride)


def test_tokens_become_cells_and_prefix_tokens_none():
    encoder = build("vit_base_patch16_224.mae").eval()
    assert len(encoder.net.blocks) == 2  # the last block's, not the first one's
    with torch.no_grad():
        image = torch.randn(1, 3, 64, 96)
        tokens = encoder.net.forward_features(image)[:, 1:]
        expected = encoder.neck(tokens.view(1, 4, 6, 32).permute(0, 3, 1, 2))
        torch.testing.assert_close(encoder(image).image, expected)


@torch.no_grad()
def test_sams_vit_of_timm_is_samlits():
    own = Vit(64, dim=32, depth=2, heads=2, global_blocks=(1,), window=3, channels=16).eval()
    options = NETS["samvit_base_patch16"]
    for neck_chans in (16, 24):  # with its own neck, and, where its width is another, with ours in its place
        peer = Timm(64, "samvit_base_patch16", channels=16, options=options | {"neck_chans": neck_chans}).eval()
        for value in peer.state_dict().values():
            value.add_(0.2 * torch.randn_like(value))
        state = {name.removeprefix("net."): value for name, value in peer.state_dict().items()}
        own.load_state_dict({name.replace("fc1", "lin1").replace("fc2", "lin2"): v for name, v in state.items()})
        image = torch.randn(2, 3, 64, 64)
        expected = own(image).image
        torch.testing.assert_close(peer(image).image, expected, atol=2e-4, rtol=1e-4)
        assert expected.std() > 0.1


@torch.no_grad()
def test_a_net_sees_pictures_normalised_as_it_was_trained():
    """And the frame's padding as SAM's mean colour."""
    encoder = build("vit_tiny_patch16_224").eval()
    assert encoder.net.pretrained_cfg["mean"] == (0.5, 0.5, 0.5)
    net = Sam(encoder, [Points], lambda c: Mask(c, heads=2))
    seen = []
    encoder.net.patch_embed.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    picture = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    net.embed(picture, torch.tensor([[64, 40]]))
    painted = picture.float()
    painted[..., 40:] = torch.tensor(PIXEL_MEAN).view(3, 1, 1)
    torch.testing.assert_close(seen[0], (painted / 255 - 0.5) / 0.5, atol=1e-5, rtol=1e-5)
    same = build("convnext_atto")  # trained with SAM's own: nothing moves
    assert same.scale.unique().tolist() == [1]
    torch.testing.assert_close(same.shift, torch.zeros(3, 1, 1), atol=1e-6, rtol=0)
    assert len(PIXEL_STD) == 3


def test_it_answers_prompts_with_finer_maps():
    encoder = build("convnext_atto", detail=True)
    net = Sam(encoder, [Points], lambda c: Mask(c, heads=2, mlp_dim=16, high_res=True)).eval()
    prompts = PromptSet(torch.tensor([0]), {"points": Ragged.of(torch.tensor([[[3.0, 9.0, 1.0]]]))})
    image = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    assert net(image, torch.tensor([[64, 64]]), prompts).logits.shape == (1, 4, 16, 16)


def test_frozen_norms_keep_their_statistics():
    for freeze in (False, True):
        encoder = build("resnet18", freeze_norms=freeze).train()
        before = encoder.net.bn1.running_mean.clone()
        encoder(torch.randn(2, 3, 64, 64))
        assert torch.equal(encoder.net.bn1.running_mean, before) == freeze


def trained(tmp_path, **more):
    """Weights as timm would have fetched them, in a file, and the options that name it."""
    peer = timm.create_model("convnext_atto", **NETS["convnext_atto"])
    torch.save(peer.state_dict(), tmp_path / "weights.pth")
    return peer, NETS["convnext_atto"] | {"pretrained_cfg_overlay": {"file": str(tmp_path / "weights.pth"), **more}}


class Nothing(Task):
    """Asks nothing."""

    def rounds(self, scene):
        yield from ()
        return {}


def test_pretrained_weights_come_when_a_training_starts(tmp_path):
    peer, options = trained(tmp_path)
    made = module.SamModule(
        lambda size: Timm(size, "convnext_atto", pretrained=True, channels=16, options=options),
        [Points],
        lambda c: Mask(c, heads=2),
        Nothing(),
        image_size=64,
    )
    net, name = made.net.encoder.net, "stages.2.blocks.0.mlp.fc1.weight"
    expected = peer.state_dict()[name]
    assert not torch.equal(net.state_dict()[name], expected)  # a checkpoint would bring its own
    made.setup("validate")
    assert not torch.equal(net.state_dict()[name], expected)
    made.setup("fit")
    assert all(torch.equal(value, peer.state_dict()[key]) for key, value in net.state_dict().items())


def test_weights_that_cannot_be_fetched_are_one_line(tmp_path):
    _, options = trained(tmp_path)
    encoder = Timm(64, "convnext_atto", pretrained=True, options=options)
    (tmp_path / "weights.pth").write_bytes(b"not weights")
    with pytest.raises(
        SamlitError, match=r"the weights of 'convnext_atto' could not be fetched \(.*go online"
    ) as caught:
        encoder.start()
    assert "\n" not in str(caught.value)


def test_a_net_that_gives_no_maps_is_refused(monkeypatch):
    monkeypatch.setattr(timm, "create_model", lambda name, **options: torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match="timm's resnet18 gives no maps of its stages"):
        Timm(64, "resnet18")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "convnext_atoo"}, "timm has no model 'convnext_atoo'; did you mean 'convnext_atto'?"),
        ({"name": "vit_base_patch16_224.mea"}, r"no weights 'vit_base_patch16_224.mea' \(known: .*mae"),
        ({"name": "resnet18", "image_size": 100}, "image_size 100 is not a multiple of the stride, 16"),
        ({"name": "vit_tiny_patch16_224", "stride": 8}, "maps of the strides 16; 8 is wanted"),
        ({"name": "vit_tiny_patch16_224", "detail": True}, "maps of the strides 16; 4 is wanted for detail"),
        ({"name": "resnet18", "options": {"colour": 1}}, "options: timm's resnet18 does not take them .*colour"),
        ({"name": "test_vit4", "pretrained": True}, "timm has no weights for 'test_vit4'"),
    ],
)
def test_what_cannot_be_built_is_refused(options, words):
    with pytest.raises(ValueError, match=words) as caught:
        Timm(**{"image_size": 64} | options)
    assert "\n" not in str(caught.value)
