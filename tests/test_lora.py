"""Low-rank changes and adapters: nothing at first, trained alone, merged into weights that answer the same."""

import functools

import pytest
import torch
from torch import nn

from samlit import checkpoints
from samlit.errors import UsageError
from samlit.export import command as export
from samlit.model import Sam
from samlit.structures import PromptSet, Ragged
from samlit.training.lora import Lora, is_added, merged
from samlit_decoders.mask import Mask
from samlit_encoders.timm import Timm
from samlit_encoders.tiny_vit import TinyVit
from samlit_encoders.vit import Vit
from samlit_prompts.boxes import Boxes
from samlit_prompts.masks import Masks
from samlit_prompts.points import Points
from tests import fitting

SIDE = 64
PROJECTIONS = ("decoder.*.q_proj", "decoder.*.v_proj")


def tiny_vit():
    return TinyVit(SIDE, (8, 8, 16, 16), (1, 1, 1, 1), (2, 2, 4), (7, 4, 7), 16)


def vit():
    return Vit(SIDE, 16, 2, 2, (1,), 3, channels=16)


def model(encoder=tiny_vit, seed=0):
    torch.manual_seed(seed)
    net = Sam(encoder(), [Points, Boxes, Masks], functools.partial(Mask, depth=1, mlp_dim=16, iou_hidden=16))
    return net.eval()


def stirred(net):
    """With every added weight drawn at random."""
    chance = torch.Generator().manual_seed(1)
    for name, weight in net.named_parameters():
        if "lora_" in name or "adapter" in name:
            weight.data = torch.randn(weight.shape, generator=chance) / 4
    return net


def answer(net):
    image = torch.randint(0, 255, (1, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    prompts = PromptSet(torch.tensor([0]), {"points": Ragged.of(torch.tensor([[[30.0, 20.0, 1.0]]]))}, True)
    with torch.no_grad():
        return net(image, torch.tensor([[SIDE, SIDE - 9]]), prompts).logits


@pytest.mark.parametrize("encoder", [vit, tiny_vit])
def test_it_begins_as_nothing_and_merges_into_the_weights(encoder):
    net = model(encoder)
    before, names = answer(net), net.state_dict().keys()
    Lora(rank=2, targets=("encoder.*.qkv", *PROJECTIONS)).add(net)
    assert torch.equal(answer(net), before)
    assert names < net.state_dict().keys(), "weights keep their names"
    after = answer(stirred(net))
    assert (after - before).abs().max() > 1e-2 * before.abs().max()
    whole = merged(net)
    assert whole.state_dict().keys() == names
    assert not any(type(part) is not nn.Linear for part in whole.modules() if isinstance(part, nn.Linear))
    assert (answer(whole) - after).abs().max() <= 1e-5 * after.abs().max()
    assert torch.equal(answer(net), after), "what was merged is a copy"


@pytest.mark.parametrize("encoder", [vit, tiny_vit])
def test_of_a_fused_layer_queries_and_values_change_and_keys_do_not(encoder):
    """The fused layer's rows are told apart by what the attention itself makes of them."""
    net = model(encoder)
    name, fused = next((n, m) for n, m in net.named_modules() if n.endswith("qkv"))
    before = fused.weight.clone()
    Lora(rank=2, targets=(name,)).add(net)
    change = (stirred(net).get_submodule(name).weight - before).abs().sum(1)
    heads, dim = 2, before.shape[1]
    # SAM's ViT keeps all queries, then all keys; TinyViT takes turns head by head.
    rows = change.view(3, dim) if encoder is vit else change.view(heads, 3, dim // heads).transpose(0, 1).flatten(1)
    assert (rows[0] > 0).all()
    assert not rows[1].any()
    assert (rows[2] > 0).all()


def test_gradients_are_those_of_the_thin_matrices_alone():
    net = model(vit).train()
    for weight in net.parameters():
        weight.requires_grad_(False)
    Lora(rank=2, targets=("encoder.*.qkv",)).add(net)
    stirred(net)
    net.embed(torch.zeros(1, 3, SIDE, SIDE, dtype=torch.uint8) + 9, torch.tensor([[SIDE, SIDE]])).image.sum().backward()
    with_gradient = {name.rpartition(".")[2] for name, weight in net.named_parameters() if weight.grad is not None}
    assert with_gradient == {"lora_a", "lora_b"}
    # A layer after the other: both stand where their block does, for layer-wise rates.
    layers = {net.encoder.layer_of(n.removeprefix("encoder.")) for n, _ in net.named_parameters() if "lora_a" in n}
    assert layers == {(1, 4), (2, 4)}


def test_adapters_begin_as_nothing_and_cannot_be_merged(tmp_path):
    net = model()
    before = answer(net)
    Lora(rank=0, adapter=4).add(net)
    assert torch.equal(answer(net), before)
    assert not torch.allclose(answer(stirred(net)), before)
    with pytest.raises(ValueError, match=r"adapters .* cannot be merged"):
        export.sam(net, SIDE, tmp_path / "out.pth")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"targets": ("encoder.*.qvk",)}, "model has no 'encoder"),
        ({"targets": ("encoder.layers.1.blocks.0.attn",)}, "is a _Attention, no linear layer"),
        ({"rank": 0, "adapter": 2, "adapter_after": ("encoder.patch_embed",)}, "no linear layer to tell its width"),
        ({"rank": 0}, "model.lora: rank 0 and adapter 0: .* one of them above 0"),
        ({"rank": -1, "adapter": 8}, "model.lora: rank -1 and adapter 8: widths of 0 or more"),
    ],
)
def test_names_that_stand_for_nothing_are_refused(given, said):
    with pytest.raises(UsageError, match=said):
        Lora(**given).add(model())


def test_weights_go_into_the_base_and_an_export_holds_what_was_learned(tmp_path):
    """As published weights would: a file by SAM's own names in, trained, and one by SAM's own names out."""
    base = model(lambda: TinyVit(1024, channels=16, dims=(8, 8, 16, 16), depths=(1, 1, 1, 1), heads=(2, 2, 4)))
    export.sam(base, 1024, tmp_path / "base.pth")
    net = model(lambda: TinyVit(1024, channels=16, dims=(8, 8, 16, 16), depths=(1, 1, 1, 1), heads=(2, 2, 4)), seed=1)
    Lora(rank=2, targets=("encoder.*.qkv", *PROJECTIONS)).add(net)
    checkpoints.start_from(net, tmp_path / "base.pth")
    assert torch.equal(answer(net), answer(base))
    after = answer(stirred(net))
    export.sam(net, 1024, tmp_path / "out.pth")
    read, _ = checkpoints.load(tmp_path / "out.pth")
    assert (answer(read.eval()) - after).abs().max() <= 1e-5 * after.abs().max()


def test_a_checkpoint_holds_what_was_added():
    module = fitting.module(freeze=["encoder"], lora=Lora(rank=2))
    trained = {name for name, weight in module.net.named_parameters() if weight.requires_grad}
    assert {name for name in trained if name.startswith("encoder.")} == {
        "encoder.blocks.0.attn.qkv.lora_a",
        "encoder.blocks.0.attn.qkv.lora_b",
    }
    stirred(module.net)
    again = fitting.module(freeze=["encoder"], lora=Lora(rank=2))
    again.load_state_dict(module.state_dict())
    qkv = "encoder.blocks.0.attn.qkv"
    assert torch.equal(again.net.get_submodule(qkv).weight, module.net.get_submodule(qkv).weight)


def test_timms_layers_keep_their_rates_and_its_weights_load():
    """timm names every parameter's layer, and knows nothing of what is added; its weights come without it."""

    def built():
        torch.manual_seed(0)
        encoder = Timm(SIDE, "vit_tiny_patch16_224", channels=16, options={"depth": 3})
        return Sam(encoder, [Points], functools.partial(Mask, depth=1, mlp_dim=16, iou_hidden=16)).eval()

    base, net = built(), built()
    for weight in net.encoder.parameters():
        nn.init.ones_(weight)
    Lora(rank=2, adapter=4).add(net)
    added = [name for name, _ in net.named_parameters() if is_added(name)]
    assert len(added) == 3 * 6
    for name in added:
        block = name.removeprefix("encoder.").partition(".attn.")[0].partition(".mlp.")[0]
        assert net.encoder.layer_of(name.removeprefix("encoder.")) == net.encoder.layer_of(f"{block}.norm1.weight")
    assert len({net.encoder.layer_of(name.removeprefix("encoder.")) for name in added}) == 3
    assert net.encoder.layer_of("neck.0.weight") == (4, 5)
    # What `Timm.start` does with the weights that it fetches.
    net.encoder.net.load_state_dict(base.encoder.net.state_dict())
    net.encoder.neck.load_state_dict(base.encoder.neck.state_dict())
    net.decoder.load_state_dict(base.decoder.state_dict())
    net.prompts.load_state_dict(base.prompts.state_dict())
    net.position.load_state_dict(base.position.state_dict())
    assert torch.equal(answer(net), answer(base))
    with pytest.raises(RuntimeError, match=r"Missing key.* \"blocks.0.attn.qkv.weight\""):
        net.encoder.net.load_state_dict({n: w for n, w in base.encoder.net.state_dict().items() if "qkv" not in n})
