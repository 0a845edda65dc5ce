"""The merger: golden values and gradients, and the laws that make the packed form the same function."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from golden_tensors import assert_within_twice, golden, golden_config, load, relative, weights
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_formulas import cast
from plain_formulas import merger as plain_merger
from torch import Tensor

from lavit.kernels import Selection, partition
from lavit.kernels.dispatch import OPERATIONS
from lavit.tokenizer import LaVITTokenizerConfig
from lavit.tokenizer.merger import Layout, Merger

SMALL = LaVITTokenizerConfig(
    image_size=12, patch_size=4, hidden_size=16, num_heads=2, encoder_heads=2, merger_depth=2, attention_eps=0.0
)


def layout_of(keep: Tensor) -> Layout:
    return Layout.measure(Selection(keep, keep, *partition(keep.detach() > 0.5)))


@cache
def golden_merger(dtype: torch.dtype) -> Merger:
    return load(Merger(golden_config()), "merger", "merger.", dtype)


@cache
def small_merger() -> Merger:
    torch.manual_seed(0)
    return Merger(SMALL).double()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_dense_equals_golden_on_all_rows(dtype: torch.dtype, tolerance: float) -> None:
    tensors = golden("merger")
    out = golden_merger(dtype).dense(tensors["merger_in"].to(dtype), tensors["keep"].to(dtype))
    assert relative(out, tensors["merger_out"]) < tolerance


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 2e-5), (torch.float32, 1e-5)])
def test_packed_equals_golden_on_kept_rows(dtype: torch.dtype, tolerance: float) -> None:
    tensors = golden("merger")
    out = golden_merger(dtype).packed(tensors["merger_in"].to(dtype), layout_of(tensors["keep"]))
    assert out.lengths().tolist() == [36, 1, 0, 9, 16]
    assert relative(out.values, tensors["merger_out"][tensors["keep"] > 0]) < tolerance


@pytest.mark.parametrize("form", ["dense", "packed"])
def test_bfloat16_error_is_within_twice_that_of_plain_formulas(form: str) -> None:
    tensors = golden("merger")
    x, keep = tensors["merger_in"].bfloat16(), tensors["keep"]
    kept = keep > 0
    merger = golden_merger(torch.bfloat16)
    out = merger.dense(x, keep.float())[kept] if form == "dense" else merger.packed(x, layout_of(keep.float())).values
    plain = plain_merger(cast(weights("merger", "merger."), torch.bfloat16), x, keep, 2, 2)[kept]
    assert_within_twice(out, plain, tensors["merger_out"][kept])


def test_dense_gradients_equal_golden() -> None:
    """To the input, to the mask (kept or not), and to the weights."""
    tensors = golden("merger")
    merger = golden_merger(torch.float64)
    merger.zero_grad()
    x, keep = tensors["merger_in"].clone().requires_grad_(), tensors["keep"].clone().requires_grad_()
    (merger.dense(x, keep) * tensors["loss_weight"]).sum().backward()
    assert relative(x.grad, tensors["grad_in"]) < 1e-9
    assert relative(keep.grad, tensors["grad_keep"]) < 1e-9
    for name, parameter in merger.named_parameters():
        expected = golden("merger").get(f"grad.merger.{name}")
        if expected is None:
            continue
        if name.endswith("token_cross_attn.key.bias"):
            # A shift of all keys moves no softmax: both are rounding noise around zero.
            assert parameter.grad.abs().max() < 1e-12 and expected.abs().max() < 1e-12
        else:
            # Matrices are stored in float32.
            assert relative(parameter.grad, expected) < (1e-6 if parameter.dim() == 2 else 1e-9), name


def test_packed_gradient_to_the_input_equals_golden() -> None:
    tensors = golden("merger")
    x = tensors["merger_in"].clone().requires_grad_()
    out = golden_merger(torch.float64).packed(x, layout_of(tensors["keep"]))
    (out.values * tensors["loss_weight"][tensors["keep"] > 0]).sum().backward()
    assert relative(x.grad, tensors["grad_in"]) < 2e-5


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("form", ["dense", "packed"])
def test_triton_kernels_give_the_golden_values_and_gradients(
    monkeypatch: pytest.MonkeyPatch, device: str, form: str
) -> None:
    """In float32, image by image: where all is kept, epsilon alone makes gradients to the mask of 2e7.

    The gradients of the packed form are compared with its own in float64, which lacks that epsilon.
    """
    operation = "policy_attention" if form == "dense" else "varlen_attention"
    reason = OPERATIONS[operation].implementations["triton"].unusable(device)
    if reason is not None:
        pytest.skip(reason)
    monkeypatch.setenv("LAVIT_KERNELS", f"{operation}=triton")
    images = [0, 1, 3]  # all, one and nine of 36 patches kept
    tensors = {k: golden("merger")[k][images] for k in ("merger_in", "keep", "loss_weight", "merger_out")}
    merger = load(Merger(golden_config()), "merger", "merger.", torch.float32).to(device)
    x, keep, weight = (tensors[k].to(device, torch.float32) for k in ("merger_in", "keep", "loss_weight"))
    x, mask = x.requires_grad_(), keep.clone().requires_grad_()
    kept = keep > 0
    if form == "dense":
        out = merger.dense(x, mask)
        (out * weight).sum().backward()
        out, expected = out[kept], golden("merger")["grad_in"][images]
    else:
        out = merger.packed(x, layout_of(keep)).values
        (out * weight[kept]).sum().backward()
        expected = tensors["merger_in"].clone().requires_grad_()
        monkeypatch.setenv("LAVIT_KERNELS", "reference")
        exact = golden_merger(torch.float64).packed(expected, layout_of(tensors["keep"])).values
        (exact * tensors["loss_weight"][tensors["keep"] > 0]).sum().backward()
        expected = expected.grad
    assert relative(out.cpu(), tensors["merger_out"][kept.cpu()]) < 1e-5
    for i, image in enumerate(images):
        assert relative(x.grad[i].cpu(), expected[i]) < 1e-5, image
        if form == "dense":
            assert relative(mask.grad[i].cpu(), golden("merger")["grad_keep"][image]) < 1e-5, image


def test_packed_does_2_7_times_less_arithmetic_at_a_third() -> None:
    """Multiplications at the paper's width: of the linear layers as they run, of the attentions by their pairs."""
    config = LaVITTokenizerConfig(merger_depth=1)
    merger, n, width = Merger(config), config.num_patches, config.hidden_size
    keep = torch.zeros(1, n)
    keep[0, ::3] = 1
    count = 0

    def add(layer: torch.nn.Linear, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal count
        count += inputs[0].numel() * layer.out_features

    for layer in merger.modules():
        if isinstance(layer, torch.nn.Linear):
            layer.register_forward_hook(add)
    with torch.no_grad():
        merger.dense(torch.randn(1, n, width), keep)
        dense, count = count + 4 * n * n * width, 0
        merger.packed(torch.randn(1, n, width), layout_of(keep))
    kept = int(keep.sum())
    packed = count + (kept * (kept + 1) + 2 * kept * (n - kept)) * width
    assert 2.7 < dense / packed < 3


masks = st.lists(st.lists(st.booleans(), min_size=9, max_size=9), min_size=1, max_size=4)


@settings(max_examples=25, deadline=None)
@given(masks)
def test_packed_equals_dense_on_kept_rows(mask: list[list[bool]]) -> None:
    """For every mask, with the paper's formula in both (no epsilon); images with nothing dropped take the mean."""
    keep = torch.tensor(mask).double()
    x = torch.randn(len(mask), 9, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    packed = small_merger().packed(x, layout_of(keep)).unbind()
    small = small_merger()
    for image, rows in enumerate(packed):
        kept = keep[image] > 0
        if kept.all():
            continue
        dense = small.dense(x[image : image + 1], keep[image : image + 1])[0, kept]
        torch.testing.assert_close(rows, dense, rtol=1e-10, atol=1e-10)


def test_nothing_dropped_attends_to_the_mean_of_all_values() -> None:
    """The release reaches it through its epsilon alone, whatever the epsilon's size."""
    config = LaVITTokenizerConfig(**{**SMALL.to_dict(), "attention_eps": 1e-6})
    dense = Merger(config).double()
    dense.load_state_dict(small_merger().state_dict())
    x = torch.randn(2, 9, 16, dtype=torch.float64)
    keep = torch.ones(2, 9, dtype=torch.float64)
    keep[1, 4] = 0
    packed = dense.packed(x, layout_of(keep)).unbind()
    torch.testing.assert_close(packed[0], dense.dense(x, keep)[0], rtol=1e-4, atol=1e-5)


def test_tokens_of_an_image_do_not_depend_on_its_neighbours() -> None:
    x = torch.randn(5, 9, 16, dtype=torch.float64)
    keep = (torch.rand(5, 9) < 0.5).double()
    keep[0], keep[1], keep[2] = 1, 0, torch.tensor([0, 0, 0, 1, 0, 0, 0, 0, 0])
    together = small_merger().packed(x, layout_of(keep)).unbind()
    for image in range(5):
        alone = small_merger().packed(x[image : image + 1], layout_of(keep[image : image + 1])).values
        torch.testing.assert_close(together[image], alone, rtol=1e-12, atol=1e-12)


def test_packed_mask_gradient_credits_kept_and_dropped_patches() -> None:
    """d/dw of a kept key and of a dropped cross-attention key, against finite differences of the weights."""
    merger, x = small_merger(), torch.randn(1, 9, 16, dtype=torch.float64)
    keep = torch.tensor([[1.0, 0, 0, 1, 1, 0, 1, 0, 0]], dtype=torch.float64, requires_grad=True)
    target = torch.randn(4, 16, dtype=torch.float64)
    selection = Selection(keep, keep, *partition(keep.detach() > 0.5))

    def loss(values: Tensor) -> Tensor:
        layout = Layout.measure(selection._replace(keep=values))
        return (merger.packed(x, layout).values * target).sum()

    (gradient,) = torch.autograd.grad(loss(keep), keep)
    for patch in range(9):
        step = torch.zeros_like(keep)
        step[0, patch] = 1e-5
        up, down = ((keep + sign * step).detach().requires_grad_() for sign in (1, -1))
        difference = (loss(up) - loss(down)).item() / 2e-5
        assert gradient[0, patch].item() == pytest.approx(difference, rel=1e-5, abs=1e-8)
    assert (gradient != 0).sum() >= 8


def test_empty_batch_gives_no_tokens() -> None:
    out = small_merger().packed(torch.zeros(0, 9, 16, dtype=torch.float64), layout_of(torch.zeros(0, 9)))
    assert out.values.shape == (0, 16) and out.cu_seqlens.tolist() == [0]
