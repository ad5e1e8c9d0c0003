"""Pixels are counted right, a few masks at a time or all at once."""

import pytest
import torch

from samlit.masks import counting


@pytest.mark.parametrize("near", [1, 60, 2**18])
@pytest.mark.parametrize("shape", [(5, 4, 6), (2, 3, 4, 6), (0, 4, 6), (4, 6)], ids=str)
def test_pixels_are_those_of_a_plain_sum(shape, near, monkeypatch):
    monkeypatch.setattr(counting, "NEAR", near)
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.4
    for some in (mask, mask.transpose(-1, -2)):
        found = counting.pixels(some)
        assert found.dtype == torch.int32
        assert torch.equal(found, some.sum((-1, -2), dtype=torch.int32))
        assert torch.equal(counting.pixels(some, dim=1), some.sum(-1, dtype=torch.int32))
