"""The small preset's U-Net: where the condition goes, sizes, what it refuses."""

from __future__ import annotations

import pytest
import torch

from lavit.pixels import SmallUNet, small_unet
from lavit.pixels.unet import on_grid


def tiny(**changes) -> SmallUNet:
    torch.manual_seed(0)
    return small_unet(16, 6, channels=(4, 8), heads=2, groups=2, **changes).eval()


def test_each_row_of_the_condition_is_laid_where_its_patch_is():
    rows = torch.arange(4.0).view(1, 4, 1)
    assert on_grid(rows, 2, 2)[0, 0].tolist() == [[0, 1], [2, 3]]
    assert on_grid(rows, 4, 2)[0, 0].tolist() == [[0, 1], [0, 1], [2, 3], [2, 3]]


def test_a_row_changes_its_own_patch_most():
    net, sample = tiny(layers=1), torch.randn(1, 3, 16, 16)
    rows = torch.zeros(1, 16, 6)
    changed = rows.clone()
    changed[0, 6] = 5.0
    with torch.no_grad():
        difference = (net(sample, 3, rows).sample - net(sample, 3, changed).sample).abs().mean(1)
    patches = difference.view(4, 4, 4, 4).mean((1, 3)).flatten()
    assert patches.argmax() == 6


@pytest.mark.parametrize("size", [(16, 16), (10, 22), (2, 2)])
def test_any_even_size_is_drawn(size):
    with torch.no_grad():
        out = tiny()(torch.randn(3, 3, *size), torch.tensor([0, 5, 999]), torch.randn(3, 16, 6)).sample
    assert out.shape == (3, 3, *size) and out.isfinite().all()


def test_one_time_is_that_time_for_all():
    net, sample, rows = tiny(), torch.randn(2, 3, 16, 16), torch.randn(2, 16, 6)
    with torch.no_grad():
        one = [net(sample, time, rows, return_dict=False)[0] for time in (7, torch.tensor(7), torch.tensor([7, 7]))]
    assert torch.equal(one[0], one[1]) and torch.equal(one[0], one[2])


def test_the_preset_has_less_than_half_a_million_parameters():
    assert 300_000 < sum(parameter.numel() for parameter in small_unet().parameters()) < 500_000


def test_what_it_cannot_take_is_named():
    net, rows = tiny(), torch.randn(1, 16, 6)
    with pytest.raises(ValueError, match=r"sample: expected even sides, got \(1, 3, 16, 15\)"):
        net(torch.randn(1, 3, 16, 15), 0, rows)
    with pytest.raises(ValueError, match="encoder_hidden_states: expected the rows of a square grid, got 12"):
        net(torch.randn(1, 3, 16, 16), 0, rows[:, :12])
    with pytest.raises(ValueError, match="encoder_attention_mask: expected None"):
        net(torch.randn(1, 3, 16, 16), 0, rows, torch.ones(1, 16))
    with pytest.raises(ValueError, match="block_out_channels: expected two levels"):
        small_unet(channels=(8, 16, 32))
    with pytest.raises(ValueError, match="attention_head_dim: expected a divisor of 8 channels, got 3"):
        small_unet(channels=(4, 8), heads=3, groups=2)
