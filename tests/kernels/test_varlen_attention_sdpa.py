"""What the matrix-product form of varlen_attention does beside the laws that it shares with the others."""

import pytest
import torch

from lavit.kernels import varlen_attention
from lavit.kernels.varlen_attention import sdpa

# With 3 heads: 31 x 97 logits and 61 x 61 are blocks of their own, 5 x 7 and 5 x 5 are padded.
LENGTHS_Q, LENGTHS_K, HEADS, DIM = [5, 31, 0, 61], [7, 97, 3, 53], 3, 88


def offsets(lengths):
    return torch.tensor([0, *lengths]).cumsum(0).int()


def run(impl, q, k, v, grad, cu_q, cu_k, causal, weight=None):
    inputs = [x.detach().requires_grad_() for x in (q, k, v)]
    out = varlen_attention(*inputs, cu_q, cu_k, 97, 97, causal=causal, key_weight=weight, impl=impl)
    return out.detach(), *torch.autograd.grad(out, inputs, grad)


def layouts(rows, dtype):
    """(rows, HEADS, DIM): packed beside two others, heads outermost, columns outermost, and one row repeated."""
    yield torch.randn(rows, 3, HEADS, DIM, dtype=dtype)[:, 1]
    yield torch.randn(HEADS, rows, DIM, dtype=dtype).transpose(0, 1)
    yield torch.randn(DIM, rows, HEADS, dtype=dtype).permute(1, 2, 0)
    yield torch.randn(1, HEADS, DIM, dtype=dtype).expand(rows, -1, -1)
    yield torch.randn((), dtype=dtype).expand(rows, HEADS, DIM)


@pytest.mark.parametrize("causal", [True, False])
def test_every_memory_layout_gives_the_reference(causal):
    torch.manual_seed(0)
    lengths_q = LENGTHS_K if causal else LENGTHS_Q
    cu_q, cu_k = offsets(lengths_q), offsets(LENGTHS_K)
    places = (sum(lengths_q), sum(LENGTHS_K), sum(LENGTHS_K), sum(lengths_q))
    for inputs in zip(*(layouts(rows, torch.float64) for rows in places), strict=True):
        got, expected = (run(impl, *inputs, cu_q, cu_k, causal) for impl in ("sdpa", "reference"))
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("causal", [True, False])
def test_large_images_are_computed_one_by_one_without_a_copy_of_the_batch(causal, monkeypatch):
    """Weights of 1 change nothing: the fused kernel and the products agree, and only the first is called without."""
    torch.manual_seed(0)
    cu = offsets([61, 97, 53])
    q, k, v, grad = (torch.randn(211, HEADS, DIM, dtype=torch.float64) for _ in range(4))
    weighted = run("sdpa", q, k, v, grad, cu, cu, causal, torch.ones(211, dtype=torch.float64))
    monkeypatch.setattr(torch, "bmm", None)
    monkeypatch.setattr(torch, "cat", None)
    for a, b in zip(run("sdpa", q, k, v, grad, cu, cu, causal), weighted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exponential_is_exact_zero_where_hidden(dtype):
    x = torch.tensor([sdpa.HIDDEN, -torch.inf, -1000.0, -87.5, -86.9, -1.0, 0.0, 80.0, 1000.0], dtype=dtype).repeat(5)
    got = sdpa.exp_(x.clone(), sdpa.LARGEST_EXPONENT)
    assert not got[x < -87].any()
    # A rounding of the exponent itself is up to 87 eps; MKL and PyTorch promise one more unit in the last place.
    visible = x[x > -87].clamp(max=sdpa.LARGEST_EXPONENT).double().exp()
    torch.testing.assert_close(got[x > -87].double(), visible, rtol=2 * torch.finfo(dtype).eps, atol=0)
    assert (sdpa.exp_(x[x <= 0].clone()) <= 1).all()
