"""The chunked loss: its definition, what counts, and the memory that it is there to save."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lavit.language.loss import OPERATION, TokenLoss, linear_cross_entropy

sys.path.insert(0, str(Path(__file__).parents[2]))  # the benchmarks are not installed

from benchmarks.timing import peak_bytes  # noqa: E402

IMPLS = ["torch", "liger", "chunked", "reference"]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


def usable(impl: str, device: torch.device) -> str:
    if reason := OPERATION.implementations[impl].unusable(device.type):
        pytest.skip(reason)
    return impl


def inputs(rows: int, width: int, size: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Every third label is ignored, and one that the head does not have must do no harm there."""
    hidden = torch.randn(rows, width, dtype=dtype, device=device, requires_grad=True)
    weight = torch.randn(size, width, dtype=dtype, device=device, requires_grad=True)
    labels = torch.randint(size, (rows,), device=device)
    labels[::3] = -100
    return hidden, weight, labels


def definition(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy((hidden @ weight.T).to(torch.promote_types(hidden.dtype, torch.float32)), labels)


def gradients(mean: Tensor, *inputs: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(mean * 1.7, inputs))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("sizes", [(131, 8, 257), (1, 3, 2), (67, 40, 5)])
def test_value_and_gradients_are_those_of_all_logits(impl: str, sizes: tuple, device: torch.device) -> None:
    usable(impl, device)
    # Liger computes its rows in float32 whatever it is given.
    dtype, tolerance = (torch.float32, 2e-5) if impl == "liger" else (torch.float64, 1e-12)
    hidden, weight, labels = inputs(*sizes, dtype, device)
    labels[-1] = 1
    out = linear_cross_entropy(hidden, weight, labels, impl=impl)
    wanted = definition(hidden, weight, labels)
    torch.testing.assert_close(out.mean, wanted, rtol=tolerance, atol=tolerance)
    assert out.number == (labels != -100).sum() and out.number.dtype == torch.int64
    for got, exact in zip(gradients(out.mean, hidden, weight), gradients(wanted, hidden, weight), strict=True):
        torch.testing.assert_close(got, exact, rtol=tolerance, atol=tolerance)
    logits = hidden @ weight.T
    rows = F.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(out.rows, rows.detach().to(out.rows.dtype), rtol=tolerance, atol=tolerance)
    assert not out.rows.requires_grad


@pytest.mark.parametrize("impl", IMPLS)
def test_bfloat16_is_as_near_as_bfloat16_logits(impl: str, device: torch.device) -> None:
    usable(impl, device)
    hidden, weight, labels = inputs(67, 16, 131, torch.bfloat16, device)
    exact = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    wanted = definition(*exact, labels)
    plain = definition(hidden, weight, labels)
    out = linear_cross_entropy(hidden, weight, labels, impl=impl)
    assert out.mean.dtype == torch.float32
    target = gradients(wanted, *exact)
    ours, theirs = (
        [(got.double() - b).norm() / b.norm() for got, b in zip(gradients(mean, hidden, weight), target, strict=True)]
        for mean in (out.mean, plain)
    )
    # Twice the error of plain logits, and a rounding of the result itself.
    assert all(a <= 2 * b + 2**-8 for a, b in zip(ours, theirs, strict=True))
    assert (out.mean - wanted).abs() <= 2 * (plain - wanted).abs() + 2**-8 * wanted


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("rows", [0, 5])
def test_no_label_gives_zero_and_zero_gradients(impl: str, rows: int, device: torch.device) -> None:
    usable(impl, device)
    hidden, weight, labels = inputs(rows, 8, 13, torch.float32, device)
    out = linear_cross_entropy(hidden, weight, torch.full_like(labels, -100), impl=impl)
    assert out.mean == 0 and out.number == 0 and not out.rows.any()
    assert not any(g.any() for g in gradients(out.mean, hidden, weight))


@pytest.mark.parametrize("impl", ["torch", "liger", "chunked"])
@pytest.mark.parametrize("backward", [True, False])
def test_the_peak_is_far_below_all_logits(impl: str, backward: bool, device: torch.device) -> None:
    usable(impl, device)
    rows, width, size = 1999, 16, 4001
    hidden, weight, labels = inputs(rows, width, size, torch.float32, device)

    def run(impl: str = impl) -> TokenLoss:
        with torch.set_grad_enabled(backward):
            out = linear_cross_entropy(hidden, weight, labels, impl=impl)
        if backward:
            gradients(out.mean, hidden, weight)
        return out

    all_logits = rows * size * 4
    assert peak_bytes(lambda: run("reference"), device) >= all_logits, "the measurement would see them"
    assert peak_bytes(run, device) < all_logits / 4


@pytest.mark.parametrize("impl", ["torch", "chunked"])
def test_a_frozen_head_or_frozen_rows_get_no_gradient(impl: str, device: torch.device) -> None:
    usable(impl, device)
    hidden, weight, labels = inputs(11, 8, 13, torch.float64, device)
    for x, other in ((hidden, weight), (weight, hidden)):
        fixed = [other.detach(), x] if other is hidden else [x, other.detach()]
        out = linear_cross_entropy(*fixed, labels, impl=impl)
        (got,) = torch.autograd.grad(out.mean, x)
        (exact,) = torch.autograd.grad(definition(hidden, weight, labels), x)
        torch.testing.assert_close(got, exact)


@pytest.mark.parametrize("impl", ["torch", "chunked", "reference"])
def test_autocast_multiplies_in_its_dtype_and_returns_gradients_in_their_own(impl: str) -> None:
    usable(impl, torch.device("cpu"))
    hidden, weight, labels = inputs(67, 16, 131, torch.float32, torch.device("cpu"))
    with torch.autocast("cpu", torch.bfloat16):
        out = linear_cross_entropy(hidden, weight, labels, impl=impl)
    half = linear_cross_entropy(hidden.bfloat16(), weight.bfloat16(), labels, impl=impl)
    torch.testing.assert_close(out.mean, half.mean, rtol=2**-8, atol=0)
    assert all(g.dtype == torch.float32 for g in gradients(out.mean, hidden, weight))


def test_wrong_arguments_are_named() -> None:
    hidden, weight, labels = inputs(5, 8, 13, torch.float32, torch.device("cpu"))
    with pytest.raises(ValueError, match=r"weight: expected shape \(13, 8\) to match hidden, got \(13, 7\)"):
        linear_cross_entropy(hidden, weight[:, 1:], labels)
    with pytest.raises(ValueError, match=r"labels: expected shape \(5,\) to match hidden, got \(4,\)"):
        linear_cross_entropy(hidden, weight, labels[1:])
    with pytest.raises(TypeError, match="labels: expected int64, got torch.int32"):
        linear_cross_entropy(hidden, weight, labels.int())
    with pytest.raises(ValueError, match="linear_cross_entropy has the implementations torch, liger, chunked"):
        linear_cross_entropy(hidden, weight, labels, impl="fused")
    labels[1] = 13
    with pytest.raises(ValueError, match="labels: expected 0 to 12 or -100, got 13 at index 1"):
        linear_cross_entropy(hidden, weight, labels)
