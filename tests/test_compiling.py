"""torch.compile of a model's parts: the same losses and gradients, the same names."""

import shutil
from types import SimpleNamespace

import pytest
import torch

from samlit.errors import UsageError
from samlit.module import SamModule
from samlit.training.compiling import arguments, compile_parts
from tests import fitting
from tests.test_module import batch_of, tight

# torch's own, while it traces and compiles.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def _forget():
    yield
    torch._dynamo.reset()


def learned(how, decoder=True):
    """A step's loss, its gradients, and the names of the weights."""
    module = tight()
    compile_parts(module.net, how)
    if not decoder:
        module.net.decoder._compiled_call_impl = None
    module._trainer = SimpleNamespace(world_size=1, global_step=0, global_rank=0, accumulate_grad_batches=1)
    module.log = lambda *_, **__: None
    loss = SamModule.training_step(module, batch_of(0, 1), 0)
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in module.named_parameters()}, list(module.state_dict())


def same(one, other, **tolerance):
    torch.testing.assert_close(one[0], other[0], **tolerance)
    assert one[1].keys() == other[1].keys()
    for name, gradient in one[1].items():
        torch.testing.assert_close(gradient, other[1][name], **tolerance)
    assert one[2] == other[2]


def test_what_is_traced_is_the_same():
    torch._dynamo.utils.counters.clear()
    same(learned(False), learned("aot_eager"), atol=1e-5, rtol=1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 3  # a block, three masks, one mask
    assert not torch._dynamo.utils.counters["graph_break"]


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch's own compiler needs one for C++")
def test_what_is_compiled_is_the_same():
    """The encoder; the decoder's turn takes minutes on a processor."""
    same(learned(False), learned(True, decoder=False), atol=1e-4, rtol=1e-3)


def test_a_training_compiles_and_loading_does_not():
    module = fitting.module(compile="eager")
    assert all(part._compiled_call_impl is None for part in module.modules())
    module.setup("validate")
    assert module.net.decoder._compiled_call_impl is None
    module.setup("fit")
    assert all(part._compiled_call_impl for part in (*module.net.encoder.blocks, module.net.decoder))
    assert module.hparams["compile"] == "eager"


def test_modes_and_backends_by_name():
    assert arguments(True) == {}
    assert arguments("max-autotune") == {"mode": "max-autotune"}
    assert arguments("aot_eager") == {"backend": "aot_eager"}
    with pytest.raises(UsageError, match=r"no mode 'max_autotune'; did you mean 'max-autotune'"):
        arguments("max_autotune")
