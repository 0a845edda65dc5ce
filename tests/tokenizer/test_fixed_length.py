"""The ablation with a fixed number of tokens: which patches, how many, and what the selector learns from it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lavit.kernels import Selection, gumbel_select
from lavit.kernels.gumbel_select.reference import logistic_noise
from lavit.tokenizer import LaVITTokenizer, LaVITTokenizerConfig
from lavit.tokenizer.selector import select_fixed

SIZES = {
    "image_size": 16,
    "hidden_size": 32,
    "encoder_depth": 1,
    "merger_depth": 1,
    "decoder_depth": 1,
    "num_codes": 16,
}


def scores(batch: int = 5, patches: int = 13, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(batch, patches, 2, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def kept(selection: Selection) -> list[list[int]]:
    return [row.nonzero().flatten().tolist() for row in selection.keep > 0.5]


@pytest.mark.parametrize("count", [1, 4, 12, 13])
def test_every_image_keeps_the_same_number_and_the_most_probable(count: int) -> None:
    logits = scores(dtype=torch.float64)
    selection = select_fixed(logits, count, deterministic=True)
    best = (logits[..., 0] - logits[..., 1]).topk(count, dim=1).indices.sort(dim=1).values
    assert kept(selection) == best.tolist()
    assert selection.cu_kept.tolist() == [count * b for b in range(6)]
    assert torch.equal(selection.order[:, :count].long(), best)


def test_equal_patches_are_kept_from_the_first() -> None:
    same = torch.zeros(2, 6, 2)
    same[1, 4, 0] = 1
    assert kept(select_fixed(same, 3, deterministic=True)) == [[0, 1, 2], [0, 1, 4]]


def test_noise_of_a_seed_is_that_of_the_dynamic_choice() -> None:
    logits, seeds = scores(dtype=torch.float64), torch.arange(5)
    margin = logits[..., 0] - logits[..., 1] + logistic_noise(seeds, 13)
    expected = margin.topk(4, dim=1).indices.sort(dim=1).values.tolist()
    assert kept(select_fixed(logits, 4, seeds=seeds)) == expected
    noise = torch.stack((logistic_noise(seeds, 13), torch.zeros(5, 13, dtype=torch.float64)), dim=-1)
    assert kept(select_fixed(logits, 4, noise=noise)) == expected
    drawn = [kept(select_fixed(logits, 4)) for _ in range(8)]
    assert any(other != drawn[0] for other in drawn[1:])


def test_a_patch_without_a_score_is_not_kept() -> None:
    logits = scores(2, 5)
    logits[0, 2] = torch.nan
    logits[1] = torch.nan
    assert kept(select_fixed(logits, 5, deterministic=True)) == [[0, 1, 3, 4], []]


def test_the_gradient_is_that_of_the_dynamic_choice_at_the_threshold() -> None:
    logits = scores(3, 7, dtype=torch.float64)
    weight = torch.randn(3, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ranked = (logits[..., 0] - logits[..., 1]).sort(dim=1, descending=True).values
    threshold = ranked[:, 2:4].mean(dim=1, keepdim=True)
    gradients = []
    for fixed in (True, False):
        x = logits.clone().requires_grad_()
        moved = torch.stack((x[..., 0] - threshold, x[..., 1]), dim=-1)
        choice = (
            select_fixed(x, 3, tau=0.7, deterministic=True)
            if fixed
            else gumbel_select(moved, tau=0.7, deterministic=True)
        )
        (choice.keep * weight).sum().backward()
        assert x.grad is not None
        gradients.append(x.grad)
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-14)
    assert gradients[0].abs().min() > 0


@pytest.mark.parametrize(("keep_rate", "count"), [(0.3, 5), (1.0, 16), (0.001, 1)])
def test_a_tokenizer_of_fixed_length(keep_rate: float, count: int) -> None:
    torch.manual_seed(0)
    model = LaVITTokenizer(LaVITTokenizerConfig.preset("small", **SIZES, length="fixed", keep_rate=keep_rate)).eval()
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    for settings in ({"deterministic": True}, {"seeds": range(4)}, {}):
        assert model.encode(images, **settings).lengths().tolist() == [count] * 4  # type: ignore[arg-type]
    again = model.encode(images[2:3], seeds=[2])
    assert torch.equal(again.ids, model.encode(images, seeds=range(4)).ids[2 * count : 3 * count])
    out = model.train()(images, noise_scale=0.5)
    assert out.ratio_loss == 0 and out.keep_rate == pytest.approx(count / 16)
    out.loss.backward()
    if count < 16:  # with every patch kept nothing is left to choose
        assert model.token_predictor.out_conv[-1].weight.grad.abs().sum() > 0


def test_the_length_is_a_part_of_the_configuration(tmp_path) -> None:
    LaVITTokenizer(LaVITTokenizerConfig.preset("small", **SIZES, length="fixed")).save_pretrained(tmp_path)
    assert LaVITTokenizer.from_pretrained(tmp_path).config.length == "fixed"
    with pytest.raises(ValueError, match="length: expected one of dynamic, fixed, got 'short'"):
        LaVITTokenizerConfig(length="short")
