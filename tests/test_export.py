"""Weights taken elsewhere: what others load is what was here, and what a format cannot say is refused."""

import functools
import json

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn
from transformers import SamModel, SamProcessor

from samlit import atomic, checkpoints, cli
from samlit.export import command as export
from samlit.model import Sam
from samlit.predictor import Predictor
from samlit.weights import layouts
from samlit_decoders.hq import Hq
from samlit_decoders.mask import Mask
from samlit_encoders.vit import Vit
from samlit_prompts.boxes import Boxes
from samlit_prompts.masks import Masks
from samlit_prompts.points import Points
from tests import others

VIT = {"dim": 32, "depth": 3, "heads": 2, "global_blocks": (1,), "window": 3, "patch": 16, "channels": 32}


def small(prompts=(Points, Boxes, Masks), decoder=None, **encoder):
    torch.manual_seed(0)
    decoder = {"heads": 8, "mlp_dim": 64, "iou_hidden": 24} | (decoder or {})
    vit = Vit(others.SIDE, **(VIT | {"mlp_ratio": 2.0} | encoder))
    return others.stirred(Sam(vit, prompts, functools.partial(Mask, **decoder)))


@pytest.fixture(scope="module")
def net():
    return small()


@pytest.fixture(scope="module")
def weights(net, tmp_path_factory):
    """A file of the small model's weights."""
    path = tmp_path_factory.mktemp("weights") / "small.pth"
    export.sam(net, others.SIDE, path)
    return path


def test_the_official_code_loads_it_strictly_and_answers_the_same(net, weights):
    theirs = others.official()
    theirs.load_state_dict(torch.load(weights, weights_only=True), strict=True)
    image = others.picture()
    ours, asks = Predictor(net, others.SIDE), others.Official(theirs, image)
    ours.set_image(image)
    for asked in others.ASKED:
        answer = ours.predict(asked, True)
        low, iou = asks(asked, True)
        assert others.apart(answer.low_res_logits, low) <= 1e-5
        assert others.apart(answer.iou, iou) <= 1e-5


@pytest.mark.parametrize("to", ["sam", "safetensors"])
def test_a_file_from_the_shell_holds_flat_float32_tensors(net, weights, tmp_path, capsys, to):
    half = tmp_path / "half.pth"
    state = torch.load(weights, weights_only=True)
    torch.save({name: value.half() for name, value in state.items()}, half)
    out = tmp_path / ("out.pth" if to == "sam" else "out.safetensors")
    assert cli.main(["export", "--weights", str(half), "--to", to, "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"saved to {out}\n"
    saved = torch.load(out, weights_only=True) if to == "sam" else safetensors.torch.load_file(out)
    assert saved.keys() == state.keys()
    assert all(value.dtype == torch.float32 for value in saved.values())
    assert all(torch.equal(value, state[name].half().float()) for name, value in saved.items())
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(["half.pth", out.name])


def test_transformers_load_the_folder_and_give_the_same_masks(net, weights, tmp_path):
    out = tmp_path / "folder"
    assert cli.main(["export", "--weights", str(weights), "--to", "hf", "--out", str(out)]) == 0
    assert sorted(file.name for file in tmp_path.iterdir()) == ["folder"]
    theirs, loaded = SamModel.from_pretrained(out, output_loading_info=True)
    assert not any(loaded.values()), loaded
    processor = SamProcessor.from_pretrained(out)
    image = others.picture(90, 128)
    ours = Predictor(net, others.SIDE)
    ours.set_image(image)
    asked = [
        ({"points": [(50, 60, 1)]}, {"input_points": [[[[50, 60]]]]}),
        ({"boxes": [(10, 20, 90, 80)]}, {"input_boxes": [[[10, 20, 90, 80]]]}),
    ]
    for here, there in asked:
        inputs = processor(images=image, **there, return_tensors="pt")
        with torch.inference_mode():
            said = theirs.eval()(**inputs)
        order = said.iou_scores[0, 0].argsort(descending=True)
        answer = ours.predict(here, True)
        assert others.apart(answer.low_res_logits, said.pred_masks[0, 0][order]) <= 1e-5
        assert others.apart(answer.iou, said.iou_scores[0, 0][order]) <= 1e-5
        masks = processor.post_process_masks(said.pred_masks, inputs["original_sizes"], inputs["reshaped_input_sizes"])
        differing = (masks[0][0][order] != answer.masks).float().mean()
        assert differing <= 1e-3


def test_windows_larger_than_the_grid_are_told_to_transformers(tmp_path):
    """SAM fine-tuned at 128 pixels, in small: windows of 3 cells on a grid of 2."""
    vit = Vit(32, **VIT, mlp_ratio=2.0)
    net = others.stirred(Sam(vit, (Points, Boxes, Masks), functools.partial(Mask, heads=8, mlp_dim=64, iou_hidden=24)))
    export.huggingface(net, 32, tmp_path / "o")
    theirs, loaded = SamModel.from_pretrained(tmp_path / "o", output_loading_info=True)
    assert not any(loaded.values()), loaded
    image = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        assert others.apart(net.encoder(image).image, theirs.eval().get_image_embeddings(image)) <= 1e-5


def test_a_picture_of_another_size_is_framed_alike(net, weights, tmp_path):
    export.huggingface(net, others.SIDE, tmp_path / "folder")
    processor = SamProcessor.from_pretrained(tmp_path / "folder")
    y, x = np.mgrid[:150, :200]
    image = np.stack([x, y, 255 - x], 2).clip(0, 255).astype(np.uint8)  # smooth: resizing is not in question here
    pixels = processor(images=image, return_tensors="pt")["pixel_values"][0]
    seen = []
    ours = Predictor(net, others.SIDE)
    hook = net.encoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0][0]))
    ours.set_image(image)
    hook.remove()
    assert pixels.shape == seen[0].shape
    assert float((pixels - seen[0]).abs().max()) < 0.05


def test_out_and_in_again_is_the_same_to_the_bit(net, tmp_path):
    export.sam(net, others.SIDE, tmp_path / "out.pth")
    export.safetensors(net, others.SIDE, tmp_path / "out.safetensors")
    export.huggingface(net, others.SIDE, tmp_path / "out")
    for out in ("out.pth", "out.safetensors", "out"):
        back, image_size = checkpoints.load(tmp_path / out)
        assert image_size == others.SIDE
        assert back.state_dict().keys() == net.state_dict().keys()
        assert all(
            torch.equal(a, b) for a, b in zip(back.state_dict().values(), net.state_dict().values(), strict=True)
        )


def test_what_transformers_saved_comes_back_the_same(net, tmp_path):
    export.huggingface(net, others.SIDE, tmp_path / "out")
    SamModel.from_pretrained(tmp_path / "out").save_pretrained(tmp_path / "again")
    back, _ = checkpoints.load(tmp_path / "again")
    assert all(torch.equal(value, back.state_dict()[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("to", ["sam", "safetensors", "hf"])
def test_others_may_read_what_is_written(net, tmp_path, to):
    export.FORMATS[to](net, others.SIDE, tmp_path / "o")
    (tmp_path / "usual").touch()
    usual = (tmp_path / "usual").stat().st_mode
    written = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(written) > 1
    assert {file.stat().st_mode for file in written} == {usual}


class Scribbles(Points):
    name = "scribbles"


class Stranger(Vit):
    def forward(self, image):
        return super().forward(image.flip(-1))


REFUSED = {
    "stem": (lambda: small(stem="conv"), "a stem of its own"),
    "prompt": (lambda: small((Points, Boxes, Masks, Scribbles)), "there is no place for 'prompts.scribbles"),
    "no boxes": (lambda: small((Points, Masks)), "it has no 'prompt_encoder.point_embeddings.2.weight', which readers"),
    "no masks": (lambda: small((Points, Boxes)), "lacks 'prompt_encoder.mask_downscaling.3.weight'"),
    "heads": (lambda: small(decoder={"heads": 4}), "readers take its decoder to have 8 attention heads"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_a_format_cannot_say_is_refused(tmp_path, kind):
    make, says = REFUSED[kind]
    for write, name in ((export.sam, "o.pth"), (export.safetensors, "o.safetensors"), (export.huggingface, "o")):
        with pytest.raises(ValueError, match=says) as error:
            write(make(), others.SIDE, tmp_path / name)
        assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def small_hq(early=(1,), **decoder):
    torch.manual_seed(0)
    vit = Vit(others.SIDE, **VIT, mlp_ratio=2.0, early=early)
    hq = functools.partial(Hq, heads=8, mlp_dim=64, iou_hidden=24, early_channels=32, **decoder)
    return others.stirred(Sam(vit, (Points, Boxes, Masks), hq))


def test_sam_hq_goes_out_by_its_released_names_and_comes_in_again(tmp_path):
    net = small_hq()
    export.sam(net, others.SIDE, tmp_path / "hq.pth")
    read, side = checkpoints.load(tmp_path / "hq.pth")
    assert side == others.SIDE
    answers = []
    for model in (net, read):
        predictor = Predictor(model, side)
        predictor.set_image(others.picture())
        answers.append(predictor.predict({"boxes": [(10, 20, 90, 80)]}))
    assert torch.equal(answers[0].low_res_logits, answers[1].low_res_logits)
    with pytest.raises(ValueError, match=r"SamModel has no 'hq', only samlit's 'mask'"):
        export.huggingface(net, others.SIDE, tmp_path / "folder")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: small_hq(early=(2,)), r"readers take its encoder's early to be \(1,\), and it is \(2,\)"),
        (lambda: small_hq(early=(2, 1)), r"readers take its encoder's early to be \(1,\), and it is \(2, 1\)"),
        (lambda: small_hq(alone=True), "attention heads"),
    ],
)
def test_sam_hq_that_readers_would_take_for_another_is_refused(tmp_path, make, says):
    with pytest.raises(ValueError, match=says):
        export.sam(make(), others.SIDE, tmp_path / "hq.pth")
    assert list(tmp_path.iterdir()) == []


def test_an_encoder_that_only_looks_like_sams_is_refused(tmp_path):
    net = small()
    net.encoder.__class__ = Stranger
    with pytest.raises(ValueError, match="would take the encoder for a Vit"):
        export.sam(net, others.SIDE, tmp_path / "o.pth")
    net = small()
    net.encoder.adapter = nn.Linear(1, 1)
    with pytest.raises(ValueError, match=r"its readers have no 'image_encoder.adapter.bias'"):
        export.sam(net, others.SIDE, tmp_path / "o.pth")
    with pytest.raises(ValueError, match="the size of their frame, 64 here, and readers take it to be 128"):
        export.sam(small(), 64, tmp_path / "o.pth")


def test_the_line_names_the_weights_and_the_format(checkpoint, tmp_path, capsys):
    words = ["--weights", str(checkpoint), "--to", "sam", "--out", str(tmp_path / "o.pth")]
    assert cli.main(["export", *words]) == 1  # its decoder has one attention head
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        line == f"samlit: {checkpoint} cannot be exported to sam: readers take its decoder to have 8 attention heads "
        "and the released choices, and it has not"
    )


@pytest.mark.parametrize(
    ("to", "out", "says"),
    [
        ("onx", "o.pth", "invalid choice: 'onx'"),
        ("sam", "o.safetensors", "ends like out.pth"),
        ("safetensors", "o.pth", "ends like out.safetensors"),
        ("sam", "folder", "is a folder; --to sam writes a file"),
        ("hf", "folder", "is there already; --to hf makes a new folder"),
        ("hf", "folder/file", "is there already"),
    ],
)
def test_a_name_that_cannot_be_is_said_before_anything_is_loaded(tmp_path, capsys, to, out, says):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("mine")
    assert cli.main(["export", "--weights", "nowhere.pth", "--to", to, "--out", str(tmp_path / out)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line
    assert (tmp_path / "folder" / "file").read_text() == "mine"


@pytest.mark.parametrize("to", ["sam", "safetensors", "hf"])
def test_a_full_disk_leaves_what_was_there(net, tmp_path, monkeypatch, to):
    name = {"sam": "o.pth", "safetensors": "o.safetensors", "hf": "o"}[to]
    if to != "hf":
        (tmp_path / name).write_text("before")

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        export.FORMATS[to](net, others.SIDE, tmp_path / name)
    assert [file.name for file in tmp_path.iterdir()] == ([] if to == "hf" else [name])
    assert to == "hf" or (tmp_path / name).read_text() == "before"


def test_a_folder_is_there_whole_or_not_at_all(net, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic, "write", full)
    with pytest.raises(OSError, match="No space left"):
        export.huggingface(net, others.SIDE, tmp_path / "o")
    assert list(tmp_path.iterdir()) == []


def test_the_config_says_what_the_model_is(net, tmp_path):
    export.huggingface(net, others.SIDE, tmp_path / "o")
    config = json.loads((tmp_path / "o" / "config.json").read_text())
    assert config["vision_config"]["global_attn_indexes"] == [1]
    assert config["vision_config"]["window_size"] == 3
    assert config["mask_decoder_config"]["iou_head_hidden_dim"] == 24
    state = safetensors.torch.load_file(tmp_path / "o" / "model.safetensors")
    assert layouts.which(state) == "hf"


def test_help_has_an_example_and_needs_no_weights(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["export", "--help"])
    assert end.value.code == 0
    assert "samlit export --weights sam_vit_b --to hf --out" in capsys.readouterr().out
