"""The U-Net of the small preset: sizes, where the condition counts, and what it refuses."""

from __future__ import annotations

import pytest
import torch

from lavit.pixels import small_unet
from lavit.pixels.unet import on_grid


def trained(**sizes: object) -> torch.nn.Module:
    """As after some training: no layer is zero."""
    unet = small_unet(16, 6, channels=(4, 8), heads=2, groups=2, **sizes).double()
    for parameter in unet.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return unet.eval()


def test_size_of_the_preset() -> None:
    assert 350_000 < sum(p.numel() for p in small_unet().parameters()) < 450_000


@pytest.mark.parametrize(("height", "width"), [(16, 16), (18, 10)])
@torch.no_grad()
def test_one_time_is_the_same_as_one_for_each_image(height: int, width: int) -> None:
    unet, x, c = trained(), torch.randn(2, 3, height, width).double(), torch.randn(2, 16, 6).double()
    out = unet(x, 7, encoder_hidden_states=c).sample
    assert out.shape == x.shape
    for times in (torch.tensor(7), torch.tensor([7, 7])):
        assert torch.equal(unet(x, times, c, return_dict=False)[0], out)
    assert not torch.equal(unet(x, 8, c).sample, out)


@torch.no_grad()
def test_a_row_of_the_condition_is_laid_where_its_patch_is() -> None:
    """Without attention its reach ends with that of the convolutions."""
    unet = trained(layers=1)
    for parameter in (unet.attention.proj.weight, unet.attention.proj.bias):
        parameter.zero_()
    seen = []
    for module in (unet.coarse[0],):
        module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    x, c = torch.randn(1, 3, 16, 16).double(), torch.randn(1, 16, 6).double()
    other = c.clone()
    other[0, 6] += 1  # row 1, column 2 of 4 x 4
    unet(x, 3, c)
    unet(x, 3, other)
    differs = (seen[0] != seen[1]).any(dim=1)[0]
    assert differs.nonzero().tolist() == [[1, 2]]


@torch.no_grad()
def test_each_place_of_a_larger_patch_reads_its_own_of_the_row() -> None:
    unet, seen = trained(patch=8), []
    for block in unet.coarse:
        block.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[2][0]))
    x, c = torch.randn(1, 3, 16, 16).double(), torch.randn(1, 4, 6).double()
    other = c.clone()
    other[0, 1] += 1  # row 0, column 1 of 2 x 2
    unet(x, 3, c)
    unet(x, 3, other)
    changed = seen[2] - seen[0]
    places = [(0, 2), (0, 3), (1, 2), (1, 3)]
    assert changed.any(dim=0).nonzero().tolist() == [list(place) for place in places]
    assert len({tuple(changed[:, row, column].tolist()) for row, column in places}) == len(places)
    assert torch.equal(seen[0], seen[1])


@torch.no_grad()
def test_in_images_of_other_sizes_a_patch_stays_where_it_is() -> None:
    unet, c = trained(patch=8), torch.randn(1, 4, 6).double()
    assert unet(torch.randn(1, 3, 24, 40).double(), 3, c).sample.shape == (1, 3, 24, 40)
    small, large = (on_grid(unet.condition(c), side, side, unet.cells) for side in (4, 8))
    assert torch.equal(large, small.repeat_interleave(2, 2).repeat_interleave(2, 3))


@torch.no_grad()
def test_every_coarse_block_and_the_way_out_see_the_condition_at_its_place() -> None:
    unet = trained()
    c = torch.randn(1, 8, 4, 4).double()
    other = c.clone()
    other[0, :, 1, 2] += 1
    x, time = torch.randn(1, 8, 4, 4).double(), torch.randn(1, 64).double()
    for block in unet.coarse:
        differs = (block(x, time, c) != block(x, time, other)).any(dim=1)[0]
        assert differs.nonzero().tolist() == [[row, column] for row in (0, 1, 2) for column in (1, 2, 3)]

    torch.nn.init.zeros_(unet.up.weight)  # nothing else comes from the coarse level
    seen: list[torch.Tensor] = []
    unet.fine_out.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    rows = torch.randn(1, 16, 6).double()
    changed = rows.clone()
    changed[0, 6] += 1  # row 1, column 2 of 4 x 4
    image = torch.randn(1, 3, 16, 16).double()
    unet(image, 3, rows)
    unet(image, 3, changed)
    differs = (seen[0] != seen[1]).any(dim=1)[0]
    assert differs.nonzero().tolist() == [[2, 4], [2, 5], [3, 4], [3, 5]]


@torch.no_grad()
def test_what_cannot_be_is_refused() -> None:
    unet, x, c = trained(), torch.zeros(1, 3, 16, 16).double(), torch.zeros(1, 16, 6).double()
    with pytest.raises(ValueError, match="encoder_attention_mask: expected None"):
        unet(x, 0, c, encoder_attention_mask=torch.ones(1, 16))
    with pytest.raises(ValueError, match=r"sample: expected even sides, got \(1, 3, 16, 15\)"):
        unet(x[..., 1:], 0, c)
    with pytest.raises(ValueError, match="encoder_hidden_states: expected the rows of a square grid, got 15"):
        unet(x, 0, c[:, 1:])
    with pytest.raises(ValueError, match="attention_head_dim: expected a divisor of 8 channels, got 3"):
        small_unet(channels=(4, 8), heads=3, groups=2)
    for patch in (6, 0, -4, "none", 8.0):
        with pytest.raises(ValueError, match=f"patch_size: expected a multiple of 4 or None, got {patch}"):
            small_unet(patch=patch)
    with pytest.raises(ValueError, match=r"block_out_channels: expected two levels, got \(4,\)"):
        small_unet(channels=(4,), groups=2)
