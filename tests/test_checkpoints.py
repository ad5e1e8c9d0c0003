"""Weights from files: what is loaded, at which image size, and what is said of files that do not fit."""

import functools
import pickle
import zipfile

import pytest
import safetensors.torch
import torch

from samlit.checkpoints import load, start_from
from samlit.contracts import Encoder
from samlit.errors import UsageError
from samlit.model import Sam
from samlit.run.checkpointing import Checkpoints
from samlit.weights import layouts
from samlit_decoders.mask import Mask
from samlit_encoders.vit import Vit
from samlit_prompts.boxes import Boxes
from samlit_prompts.masks import Masks
from samlit_prompts.points import Points
from tests import others
from tests.fitting import data, lightning_warnings, module, trainer

pytestmark = lightning_warnings


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A checkpoint of two steps, and the weights in it."""
    folder = tmp_path_factory.mktemp("run")
    net = module(seed=3)
    trainer(folder, [Checkpoints()]).fit(net, datamodule=data())
    return folder / "last.ckpt", net.net.state_dict()


def vit(side, **others):
    return Vit(
        side,
        **(
            {"dim": 16, "depth": 2, "heads": 2, "global_blocks": (1,), "window": 2, "patch": 8, "channels": 16} | others
        ),
    )


def test_all_weights_are_loaded(checkpoint):
    path, saved = checkpoint
    torch.manual_seed(7)
    net = module().net
    assert any(not torch.equal(value, saved[key]) for key, value in net.state_dict().items())
    start_from(net, path)
    assert all(torch.equal(value, saved[key]) for key, value in net.state_dict().items())


def test_a_training_starts_from_them_and_a_resumed_one_goes_on_from_its_own(checkpoint, tmp_path):
    path, saved = checkpoint

    def first_weights(net, max_steps, **how):
        seen = []
        net.on_train_start = lambda: seen.append({k: v.clone() for k, v in net.net.state_dict().items()})
        trainer(tmp_path, [Checkpoints()], max_steps=max_steps).fit(net, datamodule=data(), **how)
        return seen[0]

    begun = first_weights(module(weights=str(path)), 2)
    assert all(torch.equal(value, saved[key]) for key, value in begun.items())
    own = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    resumed = first_weights(module(weights=str(path)), 4, ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert all(torch.equal(value, own[f"net.{key}"]) for key, value in resumed.items())


def test_positions_fit_another_image_size():
    torch.manual_seed(0)
    small, large = vit(32), vit(64)
    with torch.no_grad():
        for name, parameter in small.named_parameters():
            if "rel_pos" in name:
                parameter.copy_(torch.arange(len(parameter))[:, None].expand_as(parameter))
    large.load_state_dict(small.state_dict())
    # Absolute: every old cell's value lies between those of the four cells that it became, where it is smooth.
    mean = large.pos_embed.unflatten(1, (4, 2)).unflatten(3, (4, 2)).mean((2, 4))
    torch.testing.assert_close(mean[:, 1:-1, 1:-1, 8:9], small.pos_embed[:, 1:-1, 1:-1, 8:9], atol=0.1, rtol=0)
    # Relative, in the global block: a ramp stays one, the middle is no distance, and windows keep their own.
    table = large.blocks[1].attn.rel_pos_h[:, 0]
    assert len(table) == 15
    torch.testing.assert_close(table[7], torch.tensor(3.0))
    torch.testing.assert_close(table[2:-2].diff(), torch.full((10,), 7 / 15))
    assert torch.equal(large.blocks[0].attn.rel_pos_h, small.blocks[0].attn.rel_pos_h)
    # Of the same size, nothing is touched.
    same = vit(32)
    same.load_state_dict(small.state_dict())
    assert torch.equal(same.pos_embed, small.pos_embed)
    assert large(torch.randn(1, 3, 64, 64)).image.shape == (1, 16, 8, 8)


def flip_a_bit(path):
    """One bit of the largest tensor."""
    whole = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as file:
        tensor = file.read(max(file.infolist(), key=lambda part: part.file_size * ("/data/" in part.filename)))
    whole[whole.index(tensor) + len(tensor) // 2] ^= 1
    path.write_bytes(whole)


def save(what):
    return lambda path: torch.save(what, path)


SPOILT = {
    "gone": (lambda path: path.unlink(), "there is no such file of weights"),
    "cut off": (lambda path: path.write_bytes(path.read_bytes()[:3000]), "is damaged .*download or copy it again"),
    "one bit": (flip_a_bit, "is damaged .*download or copy it again"),
    "empty": (lambda path: path.write_bytes(b""), "is empty: download or copy it again"),
    "text": (lambda path: path.write_text("hello, this is a page"), "is no file of weights, or is damaged"),
    "no tensors": (save({"weights": 1}), "of no model that is known here .no tensors at all"),
    "a list": (save([1, 2]), "it holds a list, not tensors by name"),
    "foreign": (save({"conv.weight": torch.zeros(1)}), "of no model that is known here .names like 'conv.weight'"),
    "a head of JSON": (lambda path: path.write_bytes((9).to_bytes(8, "little") + b"{}" + bytes(9)), "safetensors"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "is a folder, and not one of transformers'"),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_what_is_no_file_of_weights_is_one_clear_line(checkpoint, tmp_path, kind):
    path = tmp_path / "some.ckpt"
    path.write_bytes(checkpoint[0].read_bytes())
    spoil, says = SPOILT[kind]
    spoil(path)
    with pytest.raises(UsageError, match=says) as error:
        start_from(module().net, path)
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        load(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
    assert len(str(error.value)) < 600


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ("{", "cannot be read"),
        ("[]", "is not what transformers writes"),
        ('{"model_type": "sam2"}', "is a model of the type 'sam2', not 'sam'"),
        ('{"model_type": "sam"}', "there is no model.safetensors in it"),
    ],
)
def test_a_folder_that_is_not_whole_is_one_clear_line(tmp_path, config, says):
    (tmp_path / "config.json").write_text(config)
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        load(tmp_path)


def test_safetensors_that_are_cut_off_are_told(tmp_path):
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file({"a": torch.zeros(100)}, path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"w.safetensors: is cut off or damaged"):
        load(path)


def test_a_weight_of_another_shape_or_none_is_named(tmp_path):
    state = others.official().state_dict()
    wrong = {**state, "image_encoder.blocks.0.attn.qkv.bias": torch.zeros(5)}
    lacking = {name: value for name, value in state.items() if name != "mask_decoder.iou_token.weight"}
    headless = {name: value for name, value in state.items() if name != "image_encoder.pos_embed"}
    for what, says in (
        (wrong, "size mismatch for encoder.blocks.0.attn.qkv.bias"),
        (lacking, "it lacks 'decoder.iou_token.weight'"),
        (headless, "it lacks 'image_encoder.pos_embed'"),
        ({**state, "image_encoder.adapter.weight": torch.zeros(1)}, "it has, and this model has not, 'encoder.adapter"),
        ({**state, "prompt_encoder.more": torch.zeros(1)}, "there is no place for 'prompt_encoder.more'"),
    ):
        torch.save(what, tmp_path / "w.pth")
        with pytest.raises(ValueError, match=says) as error:
            load(tmp_path / "w.pth")
        assert str(error.value).startswith(str(tmp_path / "w.pth"))
        assert "\n" not in str(error.value)


def small(side=others.SIDE, prompts=(Points, Boxes, Masks), encoder=None, heads=8):
    """samlit's own model of the shape of the small official one."""
    vit_args = {"dim": 32, "depth": 3, "heads": 2, "global_blocks": (1,), "window": 3, "patch": 16, "channels": 32}
    encoder = encoder or Vit(side, **vit_args, mlp_ratio=2.0)
    return Sam(encoder, prompts, functools.partial(Mask, heads=heads, mlp_dim=64, iou_hidden=24))


def test_a_training_starts_from_official_weights_at_any_image_size(tmp_path):
    state = others.official().state_dict()
    torch.save(state, tmp_path / "sam.pth")
    same, other = small(), small(64)
    start_from(same, tmp_path / "sam.pth")
    back = layouts.to_sam(same.state_dict(), "samlit")
    assert all(torch.equal(back[name], value) for name, value in state.items())
    start_from(other, tmp_path / "sam.pth")
    assert other.encoder.pos_embed.shape == (1, 4, 4, 32)
    assert torch.equal(other.encoder.neck[0].weight, state["image_encoder.neck.0.weight"])


def test_a_decoder_of_another_number_of_heads_is_refused_though_all_shapes_fit(tmp_path):
    torch.save(others.official().state_dict(), tmp_path / "sam.pth")
    with pytest.raises(
        UsageError,
        match=r"sam\.pth is of another model: its decoder has 8 attention heads, and this model's another number",
    ):
        start_from(small(heads=4), tmp_path / "sam.pth")


def test_a_new_prompt_type_starts_by_chance_and_is_noted(tmp_path):
    class Scribbles(Points):
        name = "scribbles"

    state = others.official().state_dict()
    torch.save(state, tmp_path / "sam.pth")
    net = small(prompts=(Points, Scribbles, Masks))
    fresh = net.prompts["scribbles"].foreground.weight.clone()
    with pytest.warns(UserWarning, match="the weights have") as told:
        start_from(net, tmp_path / "sam.pth")
    assert [str(warning.message) for warning in told] == [
        "the weights have no prompts.scribbles: it starts as it is",
        "the weights have prompts.boxes, and this model has not: left out",
    ]
    assert torch.equal(net.prompts["scribbles"].foreground.weight, fresh)
    assert torch.equal(net.prompts["points"].foreground.weight, state["prompt_encoder.point_embeddings.1.weight"])
    del state["prompt_encoder.not_a_point_embed.weight"]  # a part of a prompt type is missing: that is no new one
    torch.save(state, tmp_path / "sam.pth")
    with pytest.raises(UsageError, match=r"it lacks 'prompts.points.not_a_point.weight'"):
        start_from(small(), tmp_path / "sam.pth")


@pytest.mark.parametrize("wrapped", [True, False])
def test_weights_of_masked_autoencoders_go_into_the_encoder_with_their_licence(tmp_path, wrapped):
    encoder = Vit(64, 32, 1, 2, (0,), channels=32)
    state = {
        name.replace("mlp.lin", "mlp.fc"): torch.randn_like(value)
        for name, value in encoder.state_dict().items()
        if name.startswith(("patch_embed.", "blocks.")) and "rel_pos" not in name
    }
    state |= {
        "cls_token": torch.zeros(1, 1, 32),
        "pos_embed": torch.randn(1, 17, 32),
        "mask_token": torch.zeros(1, 1, 8),
    }
    torch.save({"model": state} if wrapped else state, tmp_path / "mae.pth")
    net = small(encoder=encoder)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.warns(UserWarning, match="CC BY-NC 4.0: not for commercial use"):
        start_from(net, tmp_path / "mae.pth")
    changed = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {
        f"encoder.{name}" for name in encoder.state_dict() if not name.startswith("neck.") and "rel_pos" not in name
    }
    assert torch.equal(net.encoder.blocks[0].mlp.lin2.weight, state["blocks.0.mlp.fc2.weight"])
    assert torch.equal(net.encoder.pos_embed, state["pos_embed"][:, 1:].view(1, 4, 4, 32))
    with pytest.raises(ValueError, match="an encoder only"):
        load(tmp_path / "mae.pth")


def test_an_encoder_that_takes_no_such_weights_says_so(tmp_path):
    state = {"cls_token": torch.zeros(1), "pos_embed": torch.zeros(1), "blocks.0.attn.qkv.weight": torch.zeros(1)}
    torch.save(state, tmp_path / "mae.pth")
    net = small()
    net.encoder.convert = functools.partial(Encoder.convert, net.encoder)
    with (
        pytest.warns(UserWarning, match="not for commercial use"),
        pytest.raises(UsageError, match="the encoder Vit takes no weights of the layout 'mae'"),
    ):
        start_from(net, tmp_path / "mae.pth")


def test_another_model_is_named_by_what_does_not_fit(checkpoint):
    net = module().net
    net.encoder.extra = torch.nn.Linear(1, 1)
    with pytest.raises(UsageError, match=r"it lacks 'encoder.extra.weight' and 1 more"):
        start_from(net, checkpoint[0])
    wide = functools.partial(vit, dim=32, depth=1, global_blocks=(0,), window=4)
    net = module().net
    net.encoder = wide(32)
    with pytest.raises(UsageError, match="another model: size mismatch for encoder") as error:
        start_from(net, checkpoint[0])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("old_format", [False, True])
def test_code_in_a_file_is_not_run(tmp_path, old_format):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    state = {**others.official().state_dict(), "more": Trap()}
    torch.save(state, tmp_path / "trap.pth", _use_new_zipfile_serialization=not old_format)
    (tmp_path / "trap.pkl").write_bytes(pickle.dumps(Trap()))
    for file in ("trap.pth", "trap.pkl"):
        with pytest.raises(ValueError, match=r"holds code or objects besides tensors|is no file of weights"):
            load(tmp_path / file)
        with pytest.raises(UsageError, match=file):
            start_from(module().net, tmp_path / file)
    assert not (tmp_path / "sprung").exists()
