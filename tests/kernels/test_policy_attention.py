import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from usable import skip_unless_usable

from lavit.kernels import policy_attention
from lavit.kernels.policy_attention import cpp
from lavit.kernels.policy_attention.library import policy_attention_op
from lavit.threads import on as on_threads

KINDS = ["causal", "cross"]
IMPLEMENTATIONS = ["reference", "cpu", "cpp", "triton"]


def case(batch, patches, heads, dim, seed=0, dtype=torch.float64, mask="between"):
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(batch, patches, heads, dim, generator=generator, dtype=torch.float64) for _ in range(3))
    keep = torch.rand(batch, patches, generator=generator, dtype=torch.float64)
    keep = {"between": keep, "hard": (keep < 0.4).double(), "none": keep * 0, "all": keep * 0 + 1}[mask]
    return tuple(x.to(dtype) for x in (2 * q, 2 * k, v, keep))


def on(device, impl, inputs):
    """The inputs where, and in the precision in which, an implementation is tested; skips where it cannot run."""
    skip_unless_usable("policy_attention", impl, device)
    narrower = impl == "triton" and inputs[0].dtype == torch.float64
    return tuple((x.float() if narrower else x).to(device) for x in inputs)


def formula(q, k, v, keep, kind, eps):
    """The release's weights, token by token; the diagonal of the causal policy is the constant 1."""
    batch, n, heads, dim = q.shape
    out = []
    for b in range(batch):
        for h in range(heads):
            s = q[b, :, h] @ k[b, :, h].T / dim**0.5
            e = (s - s.max(dim=1, keepdim=True).values).exp()
            if kind == "cross":
                p = (1 - keep[b])[None].expand(n, n)
            else:
                rows = [torch.cat((keep[b, :i], keep.new_ones(1), keep.new_zeros(n - i - 1))) for i in range(n)]
                p = torch.stack(rows)
            w = e * p
            out.append((w + eps / n) / (w.sum(dim=1, keepdim=True) + eps) @ v[b, :, h])
    return torch.stack(out).view(batch, heads, n, dim).transpose(1, 2)


@settings(max_examples=20, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 9),
    st.integers(1, 3),
    st.integers(1, 9),
    st.sampled_from(KINDS),
    st.sampled_from([1e-6, 0.3]),
    st.sampled_from(["between", "hard", "none", "all"]),
    st.integers(0, 2**31),
    st.sampled_from(["reference", "cpu", "cpp"]),
)
def test_forward_and_explicit_backward_are_those_of_the_formula(b, n, h, d, kind, eps, mask, seed, impl):
    inputs = [x.requires_grad_() for x in case(b, n, h, d, seed, mask=mask)]
    weight = torch.randn(b, n, h, d, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected, got = formula(*inputs, kind, eps), policy_attention(*inputs, kind=kind, eps=eps, impl=impl)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)
    grads = torch.autograd.grad((got * weight).sum(), inputs)
    # Where nothing is visible, rounding comes back divided by the row's sum, which is eps.
    atol = 1e-11 + 100 * 2**-53 / eps
    for a, e in zip(grads, torch.autograd.grad((expected * weight).sum(), inputs), strict=True):
        scale = max(1.0, float(e.abs().max()))
        torch.testing.assert_close(a / scale, e / scale, rtol=1e-9, atol=atol)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("eps", [1e-6, 0.0, 0.2])
@pytest.mark.parametrize("impl", ["reference", "cpu", "cpp"])
def test_gradcheck_with_a_mask_at_0_at_1_and_between(impl, kind, eps):
    q, k, v, keep = case(2, 4, 2, 3)
    keep[0, 1], keep[1, 2] = 0.0, 1.0
    inputs = [x.requires_grad_() for x in (q, k, v, keep)]
    assert torch.autograd.gradcheck(lambda *a: policy_attention(*a, kind=kind, eps=eps, impl=impl), inputs)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_without_epsilon_it_is_the_softmax_over_the_visible_tokens(device, impl):
    q, k, v, keep = on(device, impl, case(2, 7, 2, 16, mask="hard"))
    got = policy_attention(q, k, v, keep, kind="cross", eps=0.0, impl=impl)
    for b in range(2):
        j = keep[b] == 0
        s = torch.einsum("ihd,jhd->hij", q[b], k[b, j]) / 4
        want = torch.einsum("hij,jhd->ihd", s.softmax(dim=-1), v[b, j])
        # Scores of some tens, rounded: 16 terms of float32 and less than 64 of rounding after them.
        torch.testing.assert_close(got[b], want, rtol=0, atol=256 * torch.finfo(q.dtype).eps * float(v.abs().max()))


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_nothing_dropped_gives_the_mean_with_epsilon_and_zeros_without(device, impl):
    q, k, v, keep = on(device, impl, case(2, 6, 2, 16, mask="all"))
    mean = v.mean(dim=1, keepdim=True).expand_as(v)
    torch.testing.assert_close(policy_attention(q, k, v, keep, kind="cross", impl=impl), mean)
    got = policy_attention(q.requires_grad_(), k, v, keep.requires_grad_(), kind="cross", eps=0.0, impl=impl)
    got.sum().backward()
    assert not got.any() and not q.grad.any() and bool(keep.grad.isfinite().all())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_low_precision(device, impl, kind, dtype):
    """bfloat16: at most twice the error of the formula with every step rounded; float32: 1e-5 of the largest value."""
    if impl == "triton" and device.type == "cpu" and dtype == torch.bfloat16:
        pytest.skip("Triton's interpreter computes on bfloat16's raw bits")
    inputs = on(device, impl, case(2, 16, 2, 16, mask="hard", dtype=dtype))
    exact = formula(*(x.double() for x in inputs), kind, 1e-6)
    plain = formula(*inputs, kind, 1e-6).double()
    got = policy_attention(*inputs, kind=kind, impl=impl)
    assert got.dtype == dtype
    allowed = 2 * (plain - exact).abs().max() if dtype == torch.bfloat16 else 1e-5 * exact.abs().max()
    assert float((got.double() - exact).abs().max()) <= float(allowed)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("width", [16, 32, 64])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [1, 17, 64, 65, 130])
def test_cpp_is_the_definition_whatever_the_vectors_blocks_and_groups(monkeypatch, n, dtype, kind, width):
    """Rows of whole vectors and of parts, blocks of 64 rows and what is left, one head or all at a time.

    Errors are compared with those of the definition in the same precision, which sums in another order; and what
    cancels to nothing there, as for one token, were numbers of about 1.
    """
    skip_unless_usable("policy_attention", "cpp", torch.device("cpu"))
    monkeypatch.setattr(cpp, "VECTOR_BYTES", width)
    inputs = case(2, n, 3, 8, dtype=dtype, mask="between")
    weight = torch.randn(2, n, 3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(dtype)

    def results(impl, precision):
        leaves = [x.to(precision).requires_grad_() for x in inputs]
        out = policy_attention(*leaves, kind=kind, impl=impl)
        return out.detach(), *torch.autograd.grad(out, leaves, weight.to(precision))

    exact, plain = results("reference", torch.float64), results("reference", dtype)
    for cached in (1, 2**19):
        monkeypatch.setattr(cpp, "CACHED_BYTES", cached)
        try:
            got = results("cpp", dtype)
        except RuntimeError as error:
            if "no vectors of" not in str(error):
                raise
            pytest.skip(str(error).splitlines()[0])
        for a, b, e in zip(got, plain, exact, strict=True):
            allowed = 2 * float((b - e).abs().max()) + 16 * torch.finfo(dtype).eps * (1 + float(e.abs().max()))
            assert float((a - e).abs().max()) <= allowed


def test_cpp_computes_alike_on_any_number_of_threads():
    skip_unless_usable("policy_attention", "cpp", torch.device("cpu"))
    inputs = case(1, 130, 2, 8)
    s = torch.randn(2, 130, 130, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    results = []
    for threads in (1, 3):
        with on_threads(threads):
            a, ds, lse = s.clone(), s.flip(1).contiguous(), s.new_empty(2, 130)
            leak = torch.empty_like(lse)
            torch.ops.lavit_cpp.policy_weights(a, inputs[3][0], lse, leak, False, 1e-6, 0)
            again = s.clone()
            sums = torch.ops.lavit_cpp.policy_gradients(again, ds, inputs[3][0], lse, leak, False, 0.5, 0)
            results.append((a, lse, leak, again, ds, sums))
    assert all(torch.equal(x, y) for x, y in zip(*results, strict=True))


def test_a_bool_mask_is_a_mask_of_zeros_and_ones():
    q, k, v, keep = case(2, 5, 1, 3, mask="hard")
    assert torch.equal(policy_attention(q, k, v, keep.bool()), policy_attention(q, k, v, keep))


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_images_do_not_meet(device, impl):
    q, k, v, keep = on(device, impl, case(4, 9, 2, 16, dtype=torch.float32, mask="hard"))
    whole = policy_attention(q, k, v, keep, impl=impl)
    torch.testing.assert_close(policy_attention(q[1:2], k[1:2], v[1:2], keep[1:2], impl=impl), whole[1:2])
    poisoned = v.clone()
    poisoned[0] = float("nan")
    assert torch.equal(policy_attention(q, k, poisoned, keep, impl=impl)[1:], whole[1:])


@settings(max_examples=20, deadline=None)
@given(st.data(), st.sampled_from(KINDS), st.sampled_from([1e-6, 0.0]), st.integers(1, 20), st.integers(0, 2**31))
def test_laws_of_a_batch_for_any_mask(data, kind, eps, n, seed):
    """Images in another order, and a dropped token after all others, that no one attends to: the same rows.

    To rounding: the definition's batched products round by where their matrices lie. The kernels' bits are compared in
    test_policy_attention_triton.py.
    """
    q, k, v, keep = case(4, n, 2, 8, seed, mask="hard")
    out = policy_attention(q, k, v, keep, kind=kind, eps=eps)
    order = data.draw(st.permutations(range(4)))
    shuffled = policy_attention(q[order], k[order], v[order], keep[order], kind=kind, eps=eps)
    # What remains of a sum that is nearly epsilon carries the rounding of its terms.
    torch.testing.assert_close(shuffled, out[order], rtol=1e-9, atol=1e-9)
    q, k, v, more = (
        torch.cat((x, torch.full_like(x[:, :1], value)), dim=1)
        for x, value in ((q, 1.0), (k, 1.0), (v, 1e3), (keep, 0.0))
    )
    if kind == "causal":  # only there does no one attend to it; an epsilon would let every token
        longer = policy_attention(q, k, v, more, kind=kind, eps=0.0)[:, :n]
        shorter = policy_attention(q[:, :n], k[:, :n], v[:, :n], more[:, :n], kind=kind, eps=0.0)
        torch.testing.assert_close(longer, shorter, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("impl", "b", "n"),
    [
        ("reference", 0, 3),
        ("reference", 2, 0),
        ("reference", 1, 1),
        ("reference", 2, 5),
        ("cpu", 0, 3),
        ("cpu", 2, 5),
        ("cpp", 0, 3),
        ("cpp", 2, 5),
        ("triton", 2, 5),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_opcheck(device, impl, b, n, kind):
    inputs = [x.requires_grad_() for x in on(device, impl, case(b, n, 2, 16))]
    torch.library.opcheck(policy_attention_op, (*inputs, kind, 1e-6, 0.5, impl))


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(("b", "n"), [(0, 3), (2, 0)])
@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_nothing_in_nothing_out(device, impl, b, n):
    inputs = [x.requires_grad_() for x in on(device, impl, case(b, n, 2, 16))]
    out = policy_attention(*inputs, impl=impl)
    grads = torch.autograd.grad(out.sum(), inputs)
    assert out.shape == (b, n, 2, 16) and [g.shape for g in grads] == [x.shape for x in inputs]


def test_compiles_without_a_graph_break():
    run = torch.compile(policy_attention, fullgraph=True, dynamic=True, backend="aot_eager")
    for n in (4, 6):
        inputs = [x.requires_grad_() for x in case(2, n, 2, 3)]
        got, expected = run(*inputs), policy_attention(*inputs)
        assert torch.equal(got, expected)
        grads = (torch.autograd.grad(y.square().sum(), inputs) for y in (got, expected))
        assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_wrong_arguments_are_named():
    q, k, v, keep = case(2, 5, 2, 3)
    with pytest.raises(ValueError, match=r"q: expected shape \(B, N, H, D\), got \(5, 2, 3\)"):
        policy_attention(q[0], k, v, keep)
    with pytest.raises(ValueError, match=r"k: expected shape \(2, 5, 2, 3\) to match q, got \(2, 4, 2, 3\)"):
        policy_attention(q, k[:, 1:], v, keep)
    with pytest.raises(ValueError, match=r"keep: expected shape \(2, 5\) to match q, got \(2, 4\)"):
        policy_attention(q, k, v, keep[:, 1:])
    with pytest.raises(TypeError, match="v: expected torch.float64 to match q, got torch.float32"):
        policy_attention(q, k, v.float(), keep)
    with pytest.raises(TypeError, match="keep: expected a float64"):
        policy_attention(q, k, v, keep.long())
    with pytest.raises(ValueError, match="kind: expected one of causal, cross; got 'self'"):
        policy_attention(q, k, v, keep, kind="self")
    with pytest.raises(ValueError, match="eps: expected a number of at least 0"):
        policy_attention(q, k, v, keep, eps=-1.0)
