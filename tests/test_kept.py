"""What was made of tensors is made again once they change."""

import copy
import pickle

import pytest
import torch

from samlit.kept import Kept


class Counted:
    """Twice a tensor, and how often that was made."""

    def __init__(self, x):
        self.x, self.kept, self.made = x, Kept(), 0

    def make(self):
        self.made += 1
        return self.x * 2

    def __call__(self):
        return self.kept.get("twice", (self.x,), self.make)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_result_is_made_once_while_its_tensors_stay(mode):
    twice = Counted(torch.ones(3))
    with mode():
        assert twice() is twice()
        assert twice.made == 1


CHANGES = {
    "written in place": lambda c: c.x.add_(1),
    "another tensor": lambda c: setattr(c, "x", torch.zeros(3)),
    "other memory": lambda c: setattr(c.x, "data", torch.zeros(3)),
    "another type": lambda c: setattr(c.x, "data", torch.ones(3, dtype=torch.float64)),
}


@torch.no_grad()
@pytest.mark.parametrize("change", CHANGES)
def test_a_result_is_made_again_after_a_change(change):
    twice = Counted(torch.ones(3))
    twice()
    CHANGES[change](twice)
    torch.testing.assert_close(twice(), twice.x * 2)
    assert twice.made == 2


@torch.no_grad()
def test_results_of_another_precision_are_others():
    twice = Counted(torch.ones(3))
    twice()
    with torch.autocast("cpu", torch.bfloat16):
        twice()
    assert twice.made == 2


def test_nothing_is_kept_where_gradients_are_asked_for():
    twice = Counted(torch.ones(3, requires_grad=True))
    with torch.no_grad():
        twice()
    assert twice().requires_grad
    twice().sum().backward()
    assert twice.made == 3


@torch.no_grad()
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda kept: pickle.loads(pickle.dumps(kept))])
def test_a_copy_starts_empty(copied):
    twice = Counted(torch.ones(3))
    twice()
    twice.kept = copied(twice.kept)
    twice()
    assert twice.made == 2
