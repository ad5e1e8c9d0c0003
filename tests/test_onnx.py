"""Graphs for onnxruntime: what SAM's own export answers, what the model answers, for any number of clicks."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnxruntime import InferenceSession
from segment_anything.utils.onnx import SamOnnxModel
from torch import nn

from samlit import cli
from samlit.errors import UsageError
from samlit.export import command as export
from samlit.export import onnx as onnx_export
from samlit.export.graphs import Answer, Official, Prepare
from samlit.model import Sam
from samlit.structures import Embedding
from samlit_decoders.mask import Mask
from samlit_encoders.vit import Vit
from samlit_prompts.points import Points
from tests import official

SHARED = Path(os.environ.get("SAMLIT_SHARED") or Path(__file__).resolve().parents[2] / "shared" / "data")
MOBILE_SAM = SHARED.parent / "weights" / "mobile_sam.pt"
GRID, SIDE, CHANNELS = 8, 64, 32
PROMPTS = {
    "a click": ([[10, 20], [0, 0]], [1, -1]),
    "clicks": ([[10, 20], [40, 50], [3, 60], [0, 0]], [1, 0, 1, -1]),
    "a box": ([[5, 8], [44, 50]], [2, 3]),
    "a box and a click": ([[20, 30], [5, 8], [44, 50]], [0, 2, 3]),
}
SIZES = [(40, 64), (64, 31), (90, 77)]


@pytest.fixture(scope="module")
def pair():
    return official.small(depth=1)  # as many graphs are made of it; MobileSAM's decoder has two layers


def asked(kind, mask=0.0, seed=0):
    chance = torch.Generator().manual_seed(seed)
    image = torch.randn(1, CHANNELS, GRID, GRID, generator=chance)
    xy, labels = (torch.tensor([x], dtype=torch.float32) for x in PROMPTS[kind])
    return image, xy, labels, 3 * torch.randn(1, 1, 4 * GRID, 4 * GRID, generator=chance), torch.tensor([mask])


def near(found, wanted, most=1e-4):
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted, strict=True):
        a = torch.as_tensor(a)
        assert a.shape == b.shape
        assert (a - b).abs().max() <= most * b.abs().max()


def run(file, given):
    session = InferenceSession(str(file), providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    return session.run(None, {name: x.numpy() for name, x in zip(names, given, strict=True)})


@torch.no_grad()
@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("mask", [0.0, 1.0])
@pytest.mark.parametrize("kind", PROMPTS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_it_answers_as_the_released_export(pair, kind, mask, single, size):
    theirs, own = pair
    given = (*asked(kind, mask), torch.tensor(size, dtype=torch.float32))
    near(Official(own, SIDE, single)(*given), SamOnnxModel(theirs, single)(*given), 2e-5)


@pytest.fixture(scope="module")
def folder(pair, tmp_path_factory):
    weights = tmp_path_factory.mktemp("weights") / "small.pth"
    out = weights.with_name("graphs")
    told = onnx_export.write(pair[1], SIDE, out, onnx_export.Options(("decoder", "batched", "browser")))
    names = ["decoder", "batched", "prepare", "prompt"]
    assert [line.split(":")[0] for line in told] == [f"{name}.onnx" for name in names]
    return out


@pytest.fixture(scope="module")
def released(pair, tmp_path_factory):
    """The graph that SAM's own script makes of the same weights."""
    return official.exported(pair[0], tmp_path_factory.mktemp("released") / "decoder.onnx")


@torch.no_grad()
@pytest.mark.parametrize("kind", PROMPTS)
def test_graphs_answer_for_any_number_of_clicks_as_the_released_code_and_its_graphs(pair, folder, released, kind):
    for mask, size in ((0.0, SIZES[0]), (1.0, SIZES[2])):
        given = (*asked(kind, mask, seed=3), torch.tensor(size, dtype=torch.float32))
        wanted = SamOnnxModel(pair[0], False)(*given)
        near(run(folder / "decoder.onnx", given), wanted)
        prepared = run(folder / "prepare.onnx", given[:1])
        near(run(folder / "prompt.onnx", (*map(torch.from_numpy, prepared), *given[1:5])), (wanted[2], wanted[1]))
        given = (*given[:5], torch.tensor([60.0, 90.0]))
        near(run(folder / "decoder.onnx", given), [torch.from_numpy(x) for x in run(released, given)])


@torch.no_grad()
def test_several_prompts_at_once_are_answered_as_one_by_one(pair, folder):
    for kinds in (["clicks"], ["clicks", "clicks", "clicks"]):
        rows = [asked(kind, mask, seed=i) for i, (kind, mask) in enumerate(zip(kinds, (1.0, 0.0, 1.0), strict=False))]
        image = rows[0][0]
        given = [torch.cat(x) for x in zip(*(row[1:] for row in rows), strict=True)]
        found = run(folder / "batched.onnx", (image, *given))
        for i, row in enumerate(rows):
            low, iou = (torch.from_numpy(x)[i : i + 1] for x in found)
            wanted = SamOnnxModel(pair[0], False)(image, *row[1:], torch.tensor([64.0, 64.0]))
            near((low, iou), (wanted[2], wanted[1]))


@pytest.mark.skipif(
    not MOBILE_SAM.exists(), reason=f"{MOBILE_SAM} is not here: SAMLIT_SHARED names the folder of real data beside it"
)
@torch.no_grad()
def test_mobile_sams_graphs_answer_as_the_graph_of_the_released_export(mobile_graphs):
    released = mobile_graphs / "released.onnx"
    size = torch.tensor([300.0, 450.0])
    chance = torch.Generator().manual_seed(0)
    image = torch.randn(1, 256, 64, 64, generator=chance)
    prepared = [torch.from_numpy(x) for x in run(mobile_graphs / "prepare.onnx", (image,))]
    for kind, (xy, labels) in PROMPTS.items():
        mask = 4 * torch.randn(1, 1, 256, 256, generator=chance)
        given = 12 * torch.tensor([xy]).float(), torch.tensor([labels]).float(), mask, torch.tensor([len(kind) % 2.0])
        masks, iou, low = map(torch.from_numpy, run(released, (image, *given, size)))
        pair = run(mobile_graphs / "prompt.onnx", (*prepared, *given))
        whole = run(mobile_graphs / "decoder.onnx", (image, *given, size))
        near(pair, (low, iou))
        near(whole, (masks, iou, low))
        for found, logits in ((pair[0], low), (whole[0], masks)):
            sure = logits.abs() > 1e-4 * logits.abs().max()  # nearer to its edge a pixel may fall on either side
            assert torch.equal((torch.from_numpy(found) > 0)[sure], (logits > 0)[sure])


def test_the_folder_says_what_it_takes(folder):
    told = json.loads((folder / "model.json").read_text())
    assert (told["image_size"], told["grid"], told["channels"], told["precision"]) == (SIDE, GRID, CHANNELS, "fp32")
    assert np.allclose(told["pixel_mean"], [123.675, 116.28, 103.53])
    assert sorted(file.name for file in folder.parent.iterdir()) == ["graphs"]


def test_prepare_is_all_that_depends_on_the_image_alone(pair):
    own = pair[1]
    prepare = Prepare(own, SIDE)
    image = asked("a click")[0]
    with torch.no_grad():
        made = prepare(image)
    assert tuple(made[0].shape) == (1, GRID * GRID, CHANNELS)
    packed = prepare.packed(made)
    assert packed.keys() == {"mask.cells", "mask.projected"}
    assert Answer(own, SIDE).ask(Embedding(image), *asked("a click")[1:])[0].shape == (1, 4, 4 * GRID, 4 * GRID)


def test_the_encoder_and_int8_from_a_shell(pair, tmp_path, capsys):
    weights, out = tmp_path / "small.safetensors", tmp_path / "graphs"
    own = Sam(Vit(SIDE, 24, 2, 2, (1,), 3, 16, 32), [type(p) for p in pair[1].prompt_types.values()], Mask)
    export.safetensors(own.eval(), SIDE, weights)
    words = ["export", "--weights", str(weights), "--to", "onnx", "--out", str(out)]
    assert cli.main([*words, "--part", "encoder", "--precision", "int8"]) == 0
    assert "encoder.onnx" in capsys.readouterr().out
    image = 255 * torch.rand(1, 3, SIDE, SIDE)
    (found,) = run(out / "encoder.onnx", (image, torch.tensor([[SIDE, 40]])))
    with torch.no_grad():
        wanted = own.embed(image, torch.tensor([[SIDE, 40]])).image
    assert 0 < np.abs(found - wanted.numpy()).max() < 0.2 * wanted.abs().max()
    whole = tmp_path / "whole"
    assert cli.main([*words[:-1], str(whole), "--part", "encoder", "--opset", "20"]) == 0
    assert [one.version for one in onnx.load(whole / "encoder.onnx").opset_import if not one.domain] == [20]
    assert [one.version for one in onnx.load(out / "encoder.onnx").opset_import if not one.domain] == [18]
    layers = [type(x) for x in own.encoder.modules()].count(nn.Linear)
    assert layers
    assert kinds(out / "encoder.onnx").count("MatMulInteger") == layers
    assert (out / "encoder.onnx").stat().st_size < 0.6 * (whole / "encoder.onnx").stat().st_size
    assert cli.main(words) == 2  # it is there already
    assert "makes a new folder" in capsys.readouterr().err


def kinds(file):
    return [node.op_type for node in onnx.load(file).graph.node]


@torch.no_grad()
def test_in_int8_positions_stay_as_they_are(pair, tmp_path):
    """Clicks are multiplied by a matrix of 2 rows: rounding it would move them."""
    out = tmp_path / "graphs"
    (told,) = onnx_export.write(pair[1], SIDE, out, onnx_export.Options(("single",), precision="int8"))
    assert float(told.rpartition("mask IoU ")[2]) > 0.8
    graph = onnx.load(out / "single.onnx").graph
    sizes = {one.name: list(one.dims) for one in graph.initializer}
    multiplied = [n for n in graph.node if n.op_type in ("MatMul", "MatMulInteger", "Gemm")]
    assert any(n.op_type == "MatMulInteger" for n in multiplied)
    weights = {n.op_type for n in multiplied if any(sizes.get(i, [0])[:1] == [2] for i in n.input)}
    assert weights == {"MatMul"}


def weights(file):
    """Bytes of a graph's weights: of so small a model most of a file is the graph."""
    return sum(len(weight.raw_data) for weight in onnx.load(file).graph.initializer)


def test_fp16_is_half_as_large_and_takes_and_gives_what_the_others_do(pair, folder, tmp_path):
    (told,) = onnx_export.write(pair[1], SIDE, tmp_path / "half", onnx_export.Options(("decoder",), precision="fp16"))
    file = tmp_path / "half" / "decoder.onnx"
    assert weights(file) < 0.6 * weights(folder / "decoder.onnx")
    given = (*asked("clicks", 1.0), torch.tensor(SIZES[0], dtype=torch.float32))
    found, wanted = run(file, given), run(folder / "decoder.onnx", given)
    assert {x.dtype for x in found} == {np.dtype(np.float32)}
    near(found, [torch.from_numpy(x) for x in wanted], 5e-2)
    assert float(told.rpartition("mask IoU ")[2]) > 0.9


def test_what_cannot_be_is_one_line(tmp_path, capsys, monkeypatch):
    words = ["export", "--weights", "none.pth", "--to"]
    assert cli.main([*words, "sam", "--out", str(tmp_path / "a.pth"), "--part", "encoder"]) == 2
    assert "--part is for --to onnx" in capsys.readouterr().err
    assert cli.main([*words, "onnx", "--out", str(tmp_path / "a"), "--opset", "11"]) == 2
    assert "--opset 11: from 18 to 23" in capsys.readouterr().err
    bare = Sam(Vit(SIDE, 24, 2, 2, (1,), 3, 8, CHANNELS), [Points], lambda channels: Mask(channels, heads=2))
    with pytest.raises(ValueError, match="takes points, boxes and masks, and the model has no boxes"):
        onnx_export.write(bare, SIDE, tmp_path / "b", onnx_export.Options(("decoder",)))
    assert not list(tmp_path.iterdir())
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UsageError, match=r"pip install 'samlit\[onnx\]'"):
        onnx_export.write(bare, SIDE, tmp_path / "b")


def test_a_graph_that_answers_otherwise_is_not_written(pair, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_export, "EXACT", 0.0)
    with pytest.raises(ValueError, match="the graph encoder answers otherwise"):
        onnx_export.write(pair[1], SIDE, tmp_path / "b", onnx_export.Options(("encoder",)))
    assert not list(tmp_path.iterdir())
