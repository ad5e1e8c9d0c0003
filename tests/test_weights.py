"""Weights of other projects: the same answers here as there, from every layout, and every name back as it came."""

import json
import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from segment_anything.build_sam import _build_sam, build_sam_vit_b
from timm.models.vision_transformer_sam import VisionTransformerSAM, checkpoint_filter_fn
from transformers import SamConfig, SamModel

from samlit import checkpoints
from samlit.export import command as export
from samlit.model import Sam
from samlit.predictor import Predictor
from samlit.weights import architecture, layouts
from samlit_decoders.hq import Hq
from samlit_encoders.tiny_vit import TinyVit
from samlit_encoders.vit import Vit
from samlit_prompts.boxes import Boxes
from samlit_prompts.masks import Masks
from samlit_prompts.points import Points
from tests import others

SHARED = Path(os.environ.get("SAMLIT_SHARED") or Path(__file__).resolve().parents[2] / "shared" / "data")
MOBILE = SHARED.parent / "weights" / "mobile_sam.pt"
RELEASED = {
    "b": (768, 12, 12, (2, 5, 8, 11)),
    "l": (1024, 24, 16, (5, 11, 17, 23)),
    "h": (1280, 32, 16, (7, 15, 23, 31)),
}

needs_mobile_sam = pytest.mark.skipif(
    not MOBILE.is_file(), reason=f"{MOBILE} is not here: SAMLIT_SHARED names the folder of real data beside it"
)


@pytest.fixture(scope="module")
def model():
    return others.official()


def test_answers_are_those_of_the_official_predictor(model, tmp_path):
    torch.save(model.state_dict(), tmp_path / "sam.pth")
    ours = Predictor.load(tmp_path / "sam.pth")
    image = others.picture()
    theirs = others.Official(model, image)
    ours.set_image(image)
    for asked in others.ASKED:
        for multimask in (True, False):
            answer = ours.predict(asked, multimask)
            low, iou = theirs(asked, multimask)
            assert others.apart(answer.low_res_logits, low) <= 1e-5
            assert others.apart(answer.iou, iou) <= 1e-5


@pytest.mark.slow
def test_a_frame_of_1024_is_answered_as_by_the_official_model_and_goes_back_to_it(tmp_path):
    """ViT-B with four of its blocks; all twelve, on a smaller frame, are in test_vit.py."""
    torch.manual_seed(0)
    built = {"encoder_embed_dim": 768, "encoder_depth": 4, "encoder_num_heads": 12}
    built["encoder_global_attn_indexes"] = [0, 3]
    model = _build_sam(**built)
    others.stirred(model, by=0.02)
    torch.save(model.state_dict(), tmp_path / "sam.pth")
    ours = Predictor.load(tmp_path / "sam.pth")
    assert ours.image_size == 1024
    image = others.picture(300, 400)
    theirs = others.Official(model, image)
    ours.set_image(image)
    for asked in others.ASKED:
        low, iou = theirs(asked, True)
        answer = ours.predict(asked, True)
        assert others.apart(answer.low_res_logits, low) <= 1e-5
        assert others.apart(answer.iou, iou) <= 1e-5
    export.sam(ours.net, 1024, tmp_path / "back.pth")
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert all(value.dtype == torch.float32 for value in back.values())
    before = model.state_dict()
    assert back.keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in back.items())
    _build_sam(**built, checkpoint=tmp_path / "back.pth")  # strict


@pytest.mark.parametrize("size", RELEASED)
def test_every_name_of_a_released_size_is_known_and_comes_back(size):
    dim, depth, heads, where = RELEASED[size]
    with torch.device("meta"):
        state = _build_sam(dim, depth, heads, list(where)).state_dict()
    assert len(state) == {"b": 314, "l": 482, "h": 594}[size]  # SAM_SPEC 1.1
    for layout, extra in (("samlit", 0), ("hf", 1)):
        renamed = layouts.from_sam(state, layout)
        assert len(renamed) == len(state) + extra
        assert layouts.which(renamed) == layout
        back = layouts.to_sam(renamed, layout)
        assert back.keys() == state.keys()
        assert all(back[name] is state[name] for name in state)
    encoder = {name: value for name, value in state.items() if name.startswith("image_encoder.")}
    assert layouts.to_sam(layouts.from_sam(encoder, "timm"), "timm").keys() == encoder.keys()
    found = architecture.recognise(state)
    assert found.image_size == 1024
    expected = {"dim": dim, "depth": depth, "heads": heads, "global_blocks": where, "window": 14, "patch": 16}
    assert found.encoder.arguments == {**expected, "channels": 256, "mlp_ratio": 4.0}
    expected = {"depth": 2, "heads": 8, "mlp_dim": 2048, "multimask_outputs": 3, "iou_hidden": 256}
    assert found.decoder.arguments == expected


def test_the_names_here_are_those_of_transformers_too():
    with torch.device("meta"):
        theirs = SamModel(SamConfig()).state_dict()
        state = build_sam_vit_b().state_dict()
    renamed = layouts.from_sam(state, "hf")
    assert {name: value.shape for name, value in renamed.items()} == {name: v.shape for name, v in theirs.items()}


def as_saved(model, path):
    torch.save(model.state_dict(), path / "w.pth")
    return path / "w.pth"


def in_the_old_format(model, path):
    torch.save(model.state_dict(), path / "w.pth", _use_new_zipfile_serialization=False)
    return path / "w.pth"


def wrapped(model, path):
    state = {f"module.{name}": value for name, value in model.state_dict().items()}
    torch.save({"model": state, "epoch": 3}, path / "w.pth")
    return path / "w.pth"


def as_safetensors(model, path):
    safetensors.torch.save_file(model.state_dict(), path / "w.safetensors")
    return path / "w.safetensors"


def as_folder(model, path):
    safetensors.torch.save_file(layouts.from_sam(model.state_dict(), "hf"), path / "model.safetensors")
    (path / "config.json").write_text(json.dumps({"model_type": "sam"}))
    return path


def as_folder_with_the_other_twin(model, path):
    state = layouts.from_sam(model.state_dict(), "hf")
    del state["shared_image_embedding.positional_embedding"]
    torch.save(state, path / "pytorch_model.bin")
    (path / "config.json").write_text(json.dumps({"model_type": "sam"}))
    return path


def as_folder_of_parts(model, path):
    state = layouts.from_sam(model.state_dict(), "hf")
    half = len(state) // 2
    for number, names in enumerate((list(state)[:half], list(state)[half:])):
        safetensors.torch.save_file({name: state[name] for name in names}, path / f"{number}.safetensors")
    where = {name: f"{int(i >= half)}.safetensors" for i, name in enumerate(state)}
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    (path / "config.json").write_text(json.dumps({"model_type": "sam"}))
    return path


@pytest.mark.parametrize(
    "save",
    [
        as_saved,
        in_the_old_format,
        wrapped,
        as_safetensors,
        as_folder,
        as_folder_with_the_other_twin,
        as_folder_of_parts,
    ],
)
def test_the_same_weights_come_out_of_every_file(model, tmp_path, save):
    net, image_size = checkpoints.load(save(model, tmp_path))
    assert image_size == others.SIDE
    back = layouts.to_sam(net.state_dict(), "samlit")
    before = model.state_dict()
    assert back.keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in back.items())


def test_positions_of_another_grid_are_told_from_windows(tmp_path):
    """A finetuned file may keep tables of the grid that it came from."""
    state = others.official(side=64).state_dict()
    for name in ("rel_pos_h", "rel_pos_w"):
        state[f"image_encoder.blocks.1.attn.{name}"] = torch.randn(15, 16)
    torch.save(state, tmp_path / "w.pth")
    net, image_size = checkpoints.load(tmp_path / "w.pth")
    assert image_size == 64
    assert architecture.recognise(state).encoder.arguments["global_blocks"] == (1,)
    assert net.encoder.blocks[1].attn.rel_pos_h.shape == (7, 16)


@pytest.mark.parametrize(("side", "window"), [(32, 3), (48, 3), (64, 3)])
def test_a_window_may_be_larger_than_the_grid_or_as_large(side, window):
    """SAM's windows of 14 cells on a frame of 128 pixels, in small."""
    found = architecture.recognise(others.official(side).state_dict())
    assert found.image_size == side
    assert found.encoder.arguments["window"] == window
    everywhere = found.encoder.arguments["global_blocks"]
    assert everywhere == ((0, 1, 2) if side == 48 else (1,))  # where they are the same, both do the same


def test_windows_of_several_sizes_are_refused(model):
    state = model.state_dict()
    state["image_encoder.blocks.0.attn.rel_pos_h"] = torch.zeros(3, 16)
    with pytest.raises(ValueError, match="windows of more than one size: 2, 3"):
        architecture.recognise(state)


def test_weights_of_transformers_answer_here_as_there(tmp_path):
    parts = {
        "vision_config": {
            "hidden_size": 32,
            "output_channels": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 64,
            "window_size": 3,
            "global_attn_indexes": [1],
            "num_pos_feats": 16,
            "initializer_range": 0.02,
        },
        "prompt_encoder_config": {"hidden_size": 32, "image_size": 64, "mask_input_channels": 8},
        "mask_decoder_config": {"hidden_size": 32, "mlp_dim": 48, "num_attention_heads": 4, "iou_head_hidden_dim": 16},
    }
    theirs = others.stirred(SamModel(SamConfig(**parts)))
    theirs.save_pretrained(tmp_path)
    ours = Predictor.load(tmp_path)
    image = others.picture(64, 64)
    ours.set_image(image)
    pixels = (torch.from_numpy(image).permute(2, 0, 1)[None].float() - ours.net.pixel_mean) / ours.net.pixel_std
    answer = ours.predict({"points": [(30, 20, 1)]}, True)
    with torch.inference_mode():
        points = torch.tensor([[[[30.0, 20.0]]]])
        said = theirs(pixels, input_points=points, input_labels=torch.ones(1, 1, 1, dtype=torch.int64))
    order = said.iou_scores[0, 0].argsort(descending=True)
    # Their decoder's norms have another epsilon (1e-6) than SAM's and ours (1e-5), unless the config says so.
    assert others.apart(answer.low_res_logits, said.pred_masks[0, 0][order]) <= 1e-3


def test_timm_takes_an_exported_encoder_and_gives_it_back(model, tmp_path):
    torch.save(model.state_dict(), tmp_path / "w.pth")
    net, _ = checkpoints.load(tmp_path / "w.pth")
    export.sam(net, others.SIDE, tmp_path / "out.pth")
    theirs = VisionTransformerSAM(
        img_size=others.SIDE,
        embed_dim=others.DIM,
        depth=3,
        num_heads=others.HEADS,
        mlp_ratio=2.0,
        num_classes=0,
        neck_chans=32,
        window_size=3,
        global_attn_indexes=(1,),
        use_rel_pos=True,
    ).eval()
    theirs.load_state_dict(checkpoint_filter_fn(torch.load(tmp_path / "out.pth", weights_only=True), theirs))
    image = torch.randn(1, 3, others.SIDE, others.SIDE)
    with torch.inference_mode():
        assert others.apart(net.encoder(image).image, theirs.forward_features(image)) <= 1e-5
    others.stirred(theirs, seed=5)
    torch.save(theirs.state_dict(), tmp_path / "timm.pth")
    with pytest.raises(ValueError, match="an encoder only"):
        checkpoints.load(tmp_path / "timm.pth")
    before = [value.clone() for value in net.decoder.state_dict().values()]
    checkpoints.start_from(net, tmp_path / "timm.pth")
    with torch.inference_mode():
        assert others.apart(net.encoder(image).image, theirs.forward_features(image)) <= 1e-5
    assert all(torch.equal(a, b) for a, b in zip(before, net.decoder.state_dict().values(), strict=True))


def folded(state, inner):
    """The same weights with the batch norms in their convolutions, as exports write them."""
    new = {}
    for name, value in state.items():
        stem, _, last = name.rpartition(".bn.")
        if stem and last == "bias":
            new[f"{stem}{inner}.bias"] = value
        elif not stem:
            new[name.replace(".c.weight", f"{inner}.weight")] = value
    return new


def norms(width, chance):
    return {
        "weight": torch.full((width,), (1 + 1e-5) ** 0.5),
        "bias": torch.randn(width, generator=chance),
        "running_mean": torch.zeros(width),
        "running_var": torch.ones(width),
        "num_batches_tracked": torch.tensor(0),
    }


@pytest.mark.parametrize("inner", [".c", ""])
def test_norms_that_were_folded_into_convolutions_come_back(inner):
    chance = torch.Generator().manual_seed(0)
    state = {"image_encoder.layers.1.blocks.0.mlp.fc1.weight": torch.randn(4, 2, generator=chance)}
    state["image_encoder.layers.1.blocks.0.mlp.fc1.bias"] = torch.randn(4, generator=chance)
    state["image_encoder.neck.0.weight"] = torch.randn(4, 2, 1, 1, generator=chance)
    for stem in ("patch_embed.seq.0", "layers.0.blocks.1.conv2", "layers.1.downsample.conv3"):
        state[f"image_encoder.{stem}.c.weight"] = torch.randn(4, 3, 3, 3, generator=chance)
        state |= {f"image_encoder.{stem}.bn.{name}": value for name, value in norms(4, chance).items()}
    small = folded(state, inner)
    assert not any(".bn." in name for name in small)
    back = layouts.to_sam(small, "sam")
    assert back.keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in back.items())


@pytest.mark.parametrize("encoder", ["vit", "tiny_vit"])
def test_sam_hq_is_built_with_the_early_map_that_it_looks_at(tmp_path, encoder):
    torch.manual_seed(0)
    if encoder == "vit":
        made, width = Vit(128, 32, 3, 2, (1,), 3, channels=32, mlp_ratio=2.0, early=(1,)), 32
    else:
        made, width = TinyVit(1024, (8, 8, 12, 16), (1, 1, 1, 1), (2, 2, 2), channels=32, early=True), 12
    hq = partial(Hq, heads=8, mlp_dim=48, iou_hidden=24, early_channels=width)
    ours = others.stirred(Sam(made, [Points, Boxes, Masks], hq))
    torch.save(layouts.to_sam(ours.state_dict(), "samlit"), tmp_path / "sam_hq.pth")
    names = torch.load(tmp_path / "sam_hq.pth", weights_only=True)
    assert {"mask_decoder.hf_token.weight", "mask_decoder.compress_vit_feat.0.weight"} <= names.keys()
    net, side = checkpoints.load(tmp_path / "sam_hq.pth")
    assert isinstance(net.decoder, Hq)
    answers = []
    for model in (ours, net):
        predictor = Predictor(model, side)
        predictor.set_image(others.picture())
        answers.append(predictor.predict({"boxes": [(10, 20, 90, 80)]}))
    assert torch.equal(answers[0].low_res_logits, answers[1].low_res_logits)


@needs_mobile_sam
@pytest.mark.parametrize("layout", ["whole", "without head", "without norms", "plain convolutions"])
def test_mobile_sam_in_all_its_layouts(layout, tmp_path):
    state = torch.load(MOBILE, weights_only=True)
    body = {name: value for name, value in state.items() if "head." not in name or "mask_decoder" in name}
    given = {
        "whole": state,
        "without head": body,
        "without norms": folded(body, ".c"),
        "plain convolutions": folded(body, ""),
    }[layout]
    torch.save(given, tmp_path / "mobile_sam.pt")
    net, image_size = checkpoints.load(tmp_path / "mobile_sam.pt")
    assert image_size == 1024
    back, _ = export.official(net, image_size)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], value) for name, value in body.items())


@needs_mobile_sam
def test_mobile_sam_finds_a_disc():
    rows, columns = np.mgrid[:300, :400]
    disc = (rows - 140) ** 2 + (columns - 210) ** 2 < 70**2
    image = np.where(disc[..., None], (210, 60, 40), (70, 110, 160)).astype(np.uint8)
    predictor = Predictor.load(MOBILE)
    predictor.set_image(image)
    best = predictor.predict({"boxes": [(140, 70, 280, 210)]}).masks[0].numpy()
    assert (best & disc).sum() / (best | disc).sum() > 0.95


def test_mobile_sam_is_recognised_without_its_encoder_being_installed():
    if not MOBILE.is_file():
        pytest.skip(f"{MOBILE} is not here")
    found = architecture.recognise(layouts.to_sam(torch.load(MOBILE, weights_only=True), "sam"))
    assert found.encoder.name == "tiny_vit"
    assert found.encoder.arguments == {
        "dims": (64, 128, 160, 320),
        "depths": (2, 2, 6, 2),
        "heads": (4, 5, 10),
        "windows": (7, 14, 7),
        "channels": 256,
        "mlp_ratio": 4.0,
    }
