"""Weights from files: what is loaded, at which image size, and what is said of files that do not fit."""

import functools

import pytest
import torch

from samlit.checkpointing import Checkpoints
from samlit.checkpoints import start_from
from samlit.errors import UsageError
from samlit_encoders.vit import Vit
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


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda path: path.unlink(), "there is no file"),
        (lambda path: path.write_bytes(path.read_bytes()[:3000]), "no checkpoint of samlit's, or is damaged"),
        (lambda path: path.write_text("hello"), "no checkpoint of samlit's, or is damaged"),
        (lambda path: torch.save({"weights": 1}, path), "no checkpoint of samlit's, or is damaged"),
        (lambda path: torch.save({"state_dict": {"net.x": torch.zeros(1)}}, path), "of another model: it lacks '.*and"),
    ],
)
def test_what_is_no_checkpoint_is_one_clear_line(checkpoint, tmp_path, spoil, says):
    path = tmp_path / "some.ckpt"
    path.write_bytes(checkpoint[0].read_bytes())
    spoil(path)
    with pytest.raises(UsageError, match=says) as error:
        start_from(module().net, path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


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


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    torch.save({"state_dict": {"net.x": Trap()}}, tmp_path / "trap.ckpt")
    with pytest.raises(UsageError, match="no checkpoint of samlit's"):
        start_from(module().net, tmp_path / "trap.ckpt")
    assert not (tmp_path / "sprung").exists()
