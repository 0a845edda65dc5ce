"""Both attentions where numbers end: logits far apart, weights near 0, NaN, gradients beyond float16."""

import pytest
import torch
from packed import offsets, run
from usable import skip_unless_usable

from lavit.kernels.policy_attention import policy_attention

IMPLEMENTATIONS = ["reference", "sdpa", "cpp", "triton"]
HALF = [torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.gpu)]
NAN = float("nan")


def column(values, dim=16):
    """Rows (n, 1, dim) of which only the first column is not zero."""
    x = torch.zeros(len(values), 1, dim)
    x[:, 0, 0] = torch.tensor(values)
    return x


def two_keys(impl, device, dtype, weights, far, *, value=1e4, queries=(1.0, 0.5), dim=16):
    """Queries whose logits are 0 and (times a power of two) ``far``: what the implementation gives, and float64."""
    if dtype == torch.bfloat16 and device.type == "cpu":
        pytest.skip("Triton's interpreter computes on bfloat16's raw bits")
    skip_unless_usable("varlen_attention", impl, device)
    n = len(queries)
    root = dim**0.5  # the scale is 1 / root
    q, k = column([root * 8.0] * n, dim), column([0.0, far / 8.0], dim)
    v, g = torch.ones(2, 1, dim), torch.ones(n, 1, dim) * torch.tensor(queries)[:, None, None]
    v[1] = value
    case = [x.to(device, dtype) for x in (q, k, v, g)]
    w = torch.tensor(weights, device=device)
    exact = run("reference", *(x.double().cpu() for x in case), w.double().cpu(), [n], [2])
    return run(impl, *case, w, [n], [2]), exact


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_of_a_removed_key_only_its_weight_has_a_gradient_however_large_its_logit(device, impl, dtype):
    """e^100 times a difference of 1e4 is beyond float32, and 0 times it is 0: of both signs, as the second query's."""
    (out, dq, dk, dv, dw), exact = two_keys(impl, device, dtype, [1.0, 0.0], 100.0, queries=(1.0, -0.5))
    assert bool((out == 1).all()) and not dq.any() and not dk.any()
    assert torch.equal(dv.double().cpu(), exact[3]) and not dv[1].any()
    assert float(dw[0]) == 0
    # One product of 16 columns, rounded to 16 bits for none of them.
    torch.testing.assert_close(dw.double().cpu(), exact[4], rtol=64 * 2**-24, atol=0)
    # 1e4 is 9984 in bfloat16.
    assert float(exact[4][1]) == pytest.approx(2.0**64 * 16 * (1e4 - 1) / 2, rel=2**-8)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("weight", [1e-20, 2e-38])
def test_a_key_of_any_weight_above_0_has_the_gradients_of_the_formula(device, impl, weight):
    """Where its logit makes up for its weight: half of the sum is its own."""
    far = -float(torch.tensor(weight, dtype=torch.float64).log())
    got, exact = two_keys(impl, device, torch.float32, [1.0, weight], far, value=3.0)
    assert float(exact[0].min()) > 1.5
    # A logit of 86, rounded to 2^-18 of one some times over; the weight's gradient is bounded.
    for x, y in zip(got[:4], exact[:4], strict=True):
        torch.testing.assert_close(x.double().cpu(), y, rtol=1e-3, atol=1e-6)
    assert bool(got[4].isfinite().all())


@pytest.mark.parametrize("impl", ["reference", "cpp", "triton"])
def test_what_rounding_left_of_a_sum_makes_no_weight_above_1(device, impl):
    """Logits so large that the sum kept from the forward is off by their rounding, here by 200."""
    skip_unless_usable("varlen_attention", impl, device)
    from importlib import import_module

    module = import_module(f"lavit.kernels.varlen_attention.{impl}")
    q, k, v, g = (x.to(device) for x in (column([200.0]), column([1.0, 1.0]), column([1.0, 3.0]), column([1.0])))
    cu, lse, out = (offsets([1], device), offsets([2], device)), torch.zeros(1, 1, device=device), column([2.0])
    for w in (None, torch.ones(2, device=device)):
        dq, dk, dv, _ = module.varlen_attention_backward(g, q, k, v, out.to(device), lse, *cu, w, 1, 2, False, 1.0)
        assert torch.equal(dv.cpu(), column([1.0, 1.0]))
        assert bool(dq.isfinite().all()) and bool(dk.isfinite().all())


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("place", ["query", "key", "weight"])
def test_a_logit_that_is_no_number_is_never_taken_for_one(device, impl, weighted, place):
    """One row of NaN in one head of the second image: there, and nowhere else, the results are those of the definition,
    NaN; the other head's and the other images' are numbers."""
    if place == "weight" and not weighted:
        pytest.skip("no weights")
    skip_unless_usable("varlen_attention", impl, device)
    lengths_q, lengths_k = [2, 35, 3], [3, 37, 2]
    generator = torch.Generator().manual_seed(0)
    q, k, v, g = (torch.randn(n, 2, 16, generator=generator).to(device) for n in (40, 42, 42, 40))
    w = torch.ones(42, device=device)
    {"query": q[20, 0], "key": k[20, 0], "weight": w[20:21]}[place][:] = NAN
    case = (q, k, v, g, w if weighted else None, lengths_q, lengths_k)
    for got, expected in zip(run(impl, *case), run("reference", *case), strict=True):
        assert torch.equal(got.isnan(), expected.isnan())
        assert expected.isnan().any() and not bool(got.isinf().any())
        assert not expected[:2].isnan().any() and not expected[-2:].isnan().any()


@pytest.mark.parametrize("impl", ["reference", "cpp", "triton"])
def test_a_causal_query_that_is_no_number_reaches_the_keys_it_sees(device, impl):
    skip_unless_usable("varlen_attention", impl, device)
    generator = torch.Generator().manual_seed(0)
    q, k, v, g = (torch.randn(70, 1, 16, generator=generator).to(device) for _ in range(4))
    q[20] = NAN
    out, dq, dk, dv = run(impl, q, k, v, g, None, [70], [70], causal=True)
    wrong = torch.arange(70, device=device) == 20
    assert torch.equal(out.isnan().all(-1)[:, 0], wrong) and torch.equal(dq.isnan().all(-1)[:, 0], wrong)
    assert bool(dv[:21].isnan().all()) and bool(dk[:21].isnan().all())
    # dk of the others is 0 times NaN in a product; their dv is not.
    assert bool(dv[21:].isfinite().all())


def policy_run(impl, inputs, g, kind, eps):
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = policy_attention(*leaves, kind=kind, eps=eps, impl=impl)
    return out.detach(), *torch.autograd.grad(out, leaves, g)


@pytest.mark.parametrize("eps", [1e-6, 0.0])
@pytest.mark.parametrize("kind", ["causal", "cross"])
@pytest.mark.parametrize("place", ["query", "visible key", "masked key", "keep"])
def test_policy_a_logit_that_is_no_number_is_never_taken_for_one(device, kind, eps, place):
    """With an epsilon a masked column is one of those whose maximum is taken, and makes every row NaN; without, it does
    not matter to any other."""
    skip_unless_usable("policy_attention", "triton", device)
    generator = torch.Generator().manual_seed(0)
    q, k, v, g = (torch.randn(2, 70, 1, 16, generator=generator).to(device) for _ in range(4))
    keep = (torch.arange(70, device=device) % 3 == 0).float().expand(2, -1).clone()
    visible, masked = (3, 4) if kind == "causal" else (4, 3)
    {"query": q[1, 20], "visible key": k[1, visible], "masked key": k[1, masked], "keep": keep[1, 4:5]}[place][:] = NAN
    got = policy_run("triton", (q, k, v, keep), g, kind, eps)
    expected = policy_run("reference", (q, k, v, keep), g, kind, eps)
    for name, x, y in zip(("out", "dq", "dk", "dv", "dkeep"), got, expected, strict=True):
        assert not x[0].isnan().any() and not x.isinf().any(), name
        if eps > 0 or name in ("out", "dq", "dkeep"):
            assert torch.equal(x.isnan(), y.isnan()), name
    if eps == 0:
        # 0 times NaN in the definition's products reaches more rows than those that anything is seen of.
        everywhere = [j for j in range(70) if (j % 3 == 0) == (kind == "causal")]
        of_query = [j for j in everywhere if j < 20] + [20] if kind == "causal" else everywhere
        seen = {"query": of_query, "visible key": everywhere, "masked key": [], "keep": everywhere}[place]
        assert bool(got[2][1, seen].isnan().all()) and bool(got[3][1, seen].isnan().all())


@pytest.mark.parametrize("impl", ["reference", "triton"])
@pytest.mark.parametrize("kind", ["causal", "cross"])
@pytest.mark.parametrize("above", [40.0, 300.0])
def test_policy_without_epsilon_no_masked_column_matters_but_to_its_own_mask(device, impl, kind, above):
    """Logits of a masked token so far above the others' that what it would weigh ends at 2^64, or not quite so far."""
    skip_unless_usable("policy_attention", impl, device)
    hidden = torch.tensor([0.0, 1.0, 0.0, 0.0])
    keep = (1 - hidden if kind == "causal" else hidden)[None].to(device)
    q, k = column([4.0] * 4)[None], column([0.0, above, 0.0, 0.0])[None]
    q[0, 1] = 0  # causal: this token sees itself
    v, g = column([1.0, 1e4, 2.0, 3.0])[None], column([1.0, 1.0, -0.5, 1.0])[None]
    inputs = [x.to(device) for x in (q, k, v, keep)]
    out, dq, dk, dv, dkeep = policy_run(impl, inputs, g.to(device), kind, 0.0)
    rows = [0, 2, 3]
    wanted = torch.tensor([1.0, 1.5, 2.0] if kind == "causal" else [2.0] * 3, device=device)
    torch.testing.assert_close(out[0, rows, 0, 0], wanted, rtol=1e-6, atol=0)
    assert not dq[0, rows].any() and not dk[0, 1].any()
    assert bool(dv.isfinite().all())
    # u_ij of row i is exp(above) over its number of visible tokens; d_ij = g_i (v_j - out_i).
    count = [2.0, 3.0] if kind == "causal" else [3.0, 3.0, 3.0]
    of = torch.tensor([-0.5, 1.0] if kind == "causal" else [1.0, -0.5, 1.0]).double()
    weight = (torch.tensor(above, dtype=torch.float64).exp() / torch.tensor(count)).clamp(max=2.0**64)
    exact = (weight * of * (1e4 - wanted[-len(count) :].double().cpu())).sum()
    if kind == "cross":  # token 1's own query, whose logits are all 0
        exact = -(exact + (1e4 - 2.0) / 3)
    assert float(dkeep[0, 1]) == pytest.approx(float(exact), rel=1e-4)


@pytest.mark.parametrize("weight", [1e-10, 1e-30])
def test_policy_without_epsilon_a_token_kept_a_little_has_the_gradients_of_the_formula(device, weight):
    """Where its logit makes up for that: no bound of what is masked is one for it."""
    skip_unless_usable("policy_attention", "triton", device)
    far = -float(torch.tensor(weight, dtype=torch.float64).log())
    keep = torch.tensor([[1.0, weight, 0.0]])
    q, k = column([0.0, 0.0, 4.0])[None], column([0.0, far, -1e3])[None]
    v, g = column([1.0, 3.0, 5.0])[None], column([0.0, 0.0, 1.0])[None]
    inputs = [q, k, v, keep]
    exact = policy_run("reference", [x.double() for x in inputs], g.double(), "causal", 0.0)
    got = policy_run("triton", [x.to(device) for x in inputs], g.to(device), "causal", 0.0)
    assert float(exact[0][0, 2, 0, 0]) == pytest.approx(2.0)
    for x, y in zip(got, exact, strict=True):
        torch.testing.assert_close(x.double().cpu(), y, rtol=1e-4, atol=1e-6)


def far_apart(dim=64):
    """Two tokens of equal weight whose values differ much: p d is 204800, three times what float16 holds, and a part of
    it, scaled by 1/8, is not. Every step is exact."""
    q, k = column([2.0**-6, 2.0**-6], dim), column([0.5, 0.5], dim)
    k[1, 0, 1], k[0, 0, 1] = 0.5, -0.5
    v, g = torch.full((2, 1, dim), 100.0), torch.full((2, 1, dim), 64.0)
    v[1] = -100.0
    return [x.half() for x in (q, k, v, g)]


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_float16_gradients_end_where_the_definitions_do(device, impl):
    skip_unless_usable("varlen_attention", impl, device)
    case = [x.to(device) for x in far_apart()]
    got = run(impl, *case, None, [2], [2])
    expected = run("reference", *(x.double().cpu() for x in case), None, [2], [2])
    assert float(expected[1].abs().max()) == 25600
    for x, y in zip(got, expected, strict=True):
        torch.testing.assert_close(x.double().cpu(), y, rtol=2**-10, atol=2**-10)


@pytest.mark.parametrize("eps", [1e-6, 0.0])
def test_policy_float16_gradients_end_where_the_definitions_do(device, eps):
    skip_unless_usable("policy_attention", "triton", device)
    q, k, v, g = (x[None].to(device) for x in far_apart())
    keep = torch.zeros(1, 2, device=device)
    got = policy_run("triton", (q, k, v, keep), g, "cross", eps)
    exact = (x.double().cpu() for x in (q, k, v, keep))
    expected = policy_run("reference", tuple(exact), g.double().cpu(), "cross", eps)
    assert float(expected[1].abs().max()) == pytest.approx(25600, rel=1e-4)
    # Rounded to float16, and what epsilon takes of the maximum's column.
    for x, y in zip(got, expected, strict=True):
        torch.testing.assert_close(x.double().cpu(), y, rtol=2**-9, atol=2**-9 * float(y.abs().max()))
