"""The compiled steps between the products of a LLaMA layer, beside transformers' formulas."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from lavit.kernels import llama
from lavit.kernels.extension import cpp_unusable

pytestmark = [
    pytest.mark.usefixtures("poisoned"),
    pytest.mark.skipif(cpp_unusable("cpu") is not None, reason=str(cpp_unusable("cpu"))),
]
SHAPES = [(0, 8), (1, 1), (5, 7), (130, 24), (300, 128)]


def formula(x, weight, eps):
    return weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps))


def rotated(x, cos, sin):
    first, second = x.chunk(2, dim=-1)
    return x * cos[:, None] + torch.cat((-second, first), dim=-1) * sin[:, None]


def results(function, *inputs):
    """The output and the gradients of a weighted sum of it."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = function(*leaves)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64).to(out.dtype)
    return out.detach(), *torch.autograd.grad(out, leaves, grad)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_norm_and_its_gradients_are_those_of_the_formula(shape):
    torch.manual_seed(0)
    x, weight = torch.randn(shape, dtype=torch.float64), torch.randn(shape[1], dtype=torch.float64)
    exact = results(lambda a, b: formula(a, b, 1e-6), x, weight)
    for a, b in zip(results(lambda a, b: llama.rms_norm(a, b, 1e-6), x, weight), exact, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    # In float32 sums of n terms, each rounded: n + 8 units of the largest, and of what cancels, which is about 1.
    for a, b in zip(results(lambda a, b: llama.rms_norm(a, b, 1e-6), x.float(), weight.float()), exact, strict=True):
        allowed = (max(shape) + 8) * 2**-23 * max(1.0, float(b.abs().max())) if b.numel() else 0.0
        torch.testing.assert_close(a.double(), b, rtol=0, atol=allowed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("rows", "heads", "dim"), [(0, 2, 4), (1, 1, 2), (37, 3, 6), (700, 4, 32)])
def test_the_rotation_and_its_gradient_are_those_of_the_formula(rows, heads, dim, dtype):
    """Halves of cos and sin that differ, and rows that lie apart."""
    torch.manual_seed(0)
    x = torch.randn(rows, heads + 1, dim, dtype=dtype)[:, :heads]
    cos, sin = torch.randn(rows, dim, dtype=dtype), torch.randn(rows, dim, dtype=dtype)
    got = results(lambda a: llama.rotate(a, cos, sin), x)
    expected = results(lambda a: rotated(a, cos, sin), x)
    # Two products and a sum; the gradient's sum may be in the other order.
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=4 * torch.finfo(dtype).eps, atol=8 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("width", [16, 32, 64])
@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 40_003])
def test_the_gate_and_its_gradients_are_those_of_the_formula(monkeypatch, width, count):
    monkeypatch.setattr(llama, "VECTOR_BYTES", width)
    gate = torch.linspace(-100, 100, count) if count > 100 else torch.linspace(-3, 3, count)
    up = torch.linspace(1, -2, count)
    try:
        got = results(llama.silu_gate, gate, up)
    except RuntimeError as error:
        assert "this machine has no vectors" in str(error)
        pytest.skip(str(error))
    exact = results(lambda g, u: F.silu(g) * u, gate.double(), up.double())
    # The sigmoid within 4 units, four more products and sums; below e^-44 nothing is left of it.
    for a, b in zip(got, exact, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=2**-20, atol=2**-21)


def test_what_is_no_number_stays_none_and_in_its_place():
    x = torch.randn(9, 4)
    x[3, 1] = float("nan")
    assert torch.equal(llama.rms_norm(x, torch.ones(4), 1e-6).isnan().all(1), torch.arange(9) == 3)
    assert torch.equal(llama.silu_gate(x, torch.ones(9, 4)).isnan(), x.isnan())


def test_the_number_of_threads_changes_no_bit():
    torch.manual_seed(0)
    x, weight, up = torch.randn(1500, 96), torch.randn(96), torch.randn(1500, 96)
    threads = torch.get_num_threads()
    found = []
    for number in (1, 2, 3):
        torch.set_num_threads(number)
        found.append([*results(lambda a, b: llama.rms_norm(a, b, 1e-6), x, weight), *results(llama.silu_gate, x, up)])
    torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_only_plain_rows_of_the_cpu_are_taken():
    x = torch.zeros(3, 4)
    assert llama.usable(x) and not llama.usable(x.double())
    assert not llama.usable(x.bfloat16()) and not llama.usable(x.to("meta"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not llama.usable(x)


def test_wrong_arguments_are_named():
    x = torch.zeros(3, 4)
    with pytest.raises(RuntimeError, match="weight: expected the dtype of x"):
        llama.rms_norm(x, torch.ones(4).double(), 1e-6)
    with pytest.raises(RuntimeError, match=r"x, weight: expected \(T, C\), \(C,\)"):
        llama.rms_norm(x, torch.ones(3), 1e-6)
    with pytest.raises(RuntimeError, match=r"cos, sin: expected \(T, D\)"):
        llama.rotate(x[:, None], x[:2], x)
    with pytest.raises(RuntimeError, match=r"x: expected \(T, H, D\), D even"):
        llama.rotate(torch.zeros(3, 1, 5), torch.zeros(3, 5), torch.zeros(3, 5))
    with pytest.raises(RuntimeError, match="up: expected float32 like gate"):
        llama.silu_gate(x, x[:2])
