"""What is frozen: no gradient, no place in the optimiser, nothing that moves; and one line where a name is none."""

import pytest
import torch
from torch import nn

from samlit.errors import UsageError
from samlit.training import freezing
from samlit_encoders.tiny_vit import TinyVit
from tests import fitting

pytestmark = [*fitting.lightning_warnings, pytest.mark.filterwarnings("ignore:.*eval mode at the start")]


def test_only_what_is_left_is_trained(tmp_path):
    module = fitting.module(freeze=["encoder", "prompts.*.not_a_point.weight", "decoder.iou_token"])
    before = {name: value.clone() for name, value in module.net.state_dict().items()}
    fitting.trainer(tmp_path, []).fit(module, fitting.data(validation=False))
    moved = {name for name, value in module.net.state_dict().items() if not torch.equal(value, before[name])}
    still = set(before) - moved
    assert "decoder.mask_tokens.weight" in moved
    assert {name for name in before if name.startswith("encoder.")} < still
    assert {"prompts.points.not_a_point.weight", "decoder.iou_token.weight"} < still
    grouped = {id(p) for group in module.optim.groups(module.net) for p in group["params"]}
    names = {name for name, p in module.net.named_parameters() if id(p) in grouped}
    assert not any(name.startswith("encoder.") for name in names)
    assert "decoder.iou_token.weight" not in names


def test_a_frozen_encoder_stays_as_it_evaluates():
    net = nn.Module()
    net.encoder = TinyVit(64, (8, 8, 16, 16), (1, 1, 1, 1), (2, 2, 4), (7, 4, 7), 16, drop_path=0.5)
    net.head = nn.BatchNorm2d(3)
    freezing.freeze(net, ["encoder"])
    freezing.hold(net.train())
    image = torch.rand(2, 3, 64, 64)
    assert net.head.training, "what is trained trains"
    state = {name: value.clone() for name, value in net.encoder.state_dict().items()}
    found = net.encoder(image).image
    assert torch.equal(found, net.encoder(image).image), "no block is skipped"
    assert not found.requires_grad
    assert all(torch.equal(value, state[name]) for name, value in net.encoder.state_dict().items())
    # In part: the frozen stem's norms keep their statistics, others do not.
    net = TinyVit(64, (8, 8, 16, 16), (1, 1, 1, 1), (2, 2, 4), (7, 4, 7), 16)
    freezing.freeze(net, ["patch_embed"])
    freezing.hold(net.train())
    norms = {name: part.training for name, part in net.named_modules() if isinstance(part, nn.BatchNorm2d)}
    assert norms.pop("patch_embed.seq.0.bn") is norms.pop("patch_embed.seq.2.bn") is False
    assert all(norms.values())


def test_it_lasts_through_validation_and_training_again():
    module = fitting.module(freeze=["encoder"])
    assert module.training
    assert not module.net.encoder.training
    module.eval()
    module.train()
    assert module.net.decoder.training
    assert not module.net.encoder.training


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["encodr"], "model.freeze: the model has no 'encodr'; did you mean 'encoder'"),
        (["encoder.blocks.9"], "no 'encoder.blocks.9'; did you mean 'encoder.blocks.0'"),
        (["*.zzz.*"], "no '[*].zzz.[*]' .it has encoder, prompts, decoder, and names"),
        (["*"], "nothing is left to train"),
    ],
)
def test_names_of_nothing_are_refused(names, said):
    with pytest.raises(UsageError, match=said):
        fitting.module(freeze=names)
