import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from usable import skip_unless_usable

from lavit.kernels import varlen_attention
from lavit.kernels.varlen_attention import library, sdpa
from lavit.kernels.varlen_attention.library import varlen_attention_op

IMPLS = ["reference", "sdpa", "cpp"]
# The last image is large enough for the block of its own that sdpa gives to 2^13 logits and more.
LENGTHS = ([3, 0, 1, 20, 7, 0, 33, 8, 150], [5, 4, 0, 44, 57, 0, 31, 1, 233])
# For Triton's interpreter: the last image has two blocks of queries and of keys.
SHORT = ([3, 0, 36], [5, 4, 35])


@pytest.fixture(
    params=[
        ("reference", "cpu"),
        ("sdpa", "cpu"),
        ("cpp", "cpu"),
        ("triton", "cpu"),
        pytest.param(("triton", "cuda"), marks=pytest.mark.gpu),
    ],
    ids="-".join,
)
def on(request):
    """An implementation and the device that it is held to the laws on."""
    impl, device = request.param
    skip_unless_usable("varlen_attention", impl, torch.device(device))
    return impl, device


def lengths_for(impl):
    return SHORT if impl == "triton" else LENGTHS


def offsets(lengths):
    return torch.tensor([0, *lengths]).cumsum(0).int()


class Case:
    """Random inputs, with a few rows beyond the last offset; weights 0 (removed), 1 and between."""

    def __init__(self, lengths_q, lengths_k, heads=2, dim=8, spare=2, seed=0, dtype=torch.float64, device="cpu"):
        generator = torch.Generator().manual_seed(seed)
        self.cu_q, self.cu_k = offsets(lengths_q), offsets(lengths_k)
        self.max_q, self.max_k = max(lengths_q, default=0), max(lengths_k, default=0)
        rows = [sum(x) + spare for x in (lengths_q, lengths_k, lengths_k)]
        self.qkv = [torch.randn(n, heads, dim, generator=generator, dtype=torch.float64).to(dtype) for n in rows]
        u = torch.rand(rows[1], generator=generator, dtype=torch.float64)
        self.weight = torch.where(u < 0.3, 0.0, torch.where(u > 0.6, 1.0, u)).to(dtype)
        self.grad = torch.randn(self.qkv[0].shape, generator=generator, dtype=torch.float64).to(dtype)
        self.qkv = [x.to(device) for x in self.qkv]
        self.cu_q, self.cu_k, self.weight, self.grad = (
            x.to(device) for x in (self.cu_q, self.cu_k, self.weight, self.grad)
        )

    def run(self, impl, *, causal=False, weighted=True):
        inputs = [x.detach().clone().requires_grad_() for x in (*self.qkv, self.weight)]
        weight = inputs[3] if weighted else None
        out = varlen_attention(
            *inputs[:3], self.cu_q, self.cu_k, self.max_q, self.max_k, causal=causal, key_weight=weight, impl=impl
        )
        return out.detach(), *torch.autograd.grad(out, inputs[: 3 + weighted], self.grad)

    def formula(self, *, causal=False, weighted=True):
        """sum_j w_j exp(s_ij) v_j / sum_j w_j exp(s_ij), by autograd; an empty sum gives 0."""
        q, k, v, w = (x.detach().clone().requires_grad_() for x in (*self.qkv, self.weight))
        out = torch.zeros_like(q)
        a, b = self.cu_q.tolist(), self.cu_k.tolist()
        for i in range(len(a) - 1):
            rows, keys = slice(a[i], a[i + 1]), slice(b[i], b[i + 1])
            s = torch.einsum("ihd,jhd->hij", q[rows], k[keys]) * q.shape[-1] ** -0.5
            e = s.exp() * w[keys] if weighted else s.exp()
            e = e.tril() if causal else e
            total = e.sum(dim=-1, keepdim=True)
            alive = total > 0
            p = torch.where(alive, e / torch.where(alive, total, 1), 0)
            out = out.index_put(
                (torch.arange(a[i], a[i + 1], device=out.device),), torch.einsum("hij,jhd->ihd", p, v[keys])
            )
        return out.detach(), *torch.autograd.grad(out, (q, k, v, w)[: 3 + weighted], self.grad, materialize_grads=True)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("causal", [True, False])
def test_forward_and_explicit_backward_are_those_of_the_formula(impl, weighted, causal):
    lengths_q, lengths_k = LENGTHS
    case = Case(lengths_k if causal else lengths_q, lengths_k)
    for got, expected in zip(
        case.run(impl, causal=causal, weighted=weighted), case.formula(causal=causal, weighted=weighted), strict=True
    ):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-11)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=6),
    st.integers(1, 3),
    st.integers(1, 9),
    st.booleans(),
    st.booleans(),
    st.integers(0, 2**31),
)
def test_sdpa_equals_the_reference(lengths, heads, dim, causal, weighted, seed):
    lengths_k = [m for _, m in lengths]
    lengths_q = lengths_k if causal else [n for n, _ in lengths]
    case = Case(lengths_q, lengths_k, heads, dim, spare=seed % 3, seed=seed)
    options = {"causal": causal, "weighted": weighted}
    for a, b in zip(case.run("sdpa", **options), case.run("reference", **options), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("causal", [True, False])
def test_one_block_padded_to_the_bounds_is_the_same_attention(monkeypatch, weighted, causal):
    """The form for devices whose offsets the host does not read, and bounds that no image reaches."""
    case = Case(LENGTHS[1] if causal else LENGTHS[0], LENGTHS[1])
    expected = case.run("sdpa", causal=causal, weighted=weighted)

    def one_block(cu_q, cu_k, *counts):
        return [sdpa.padded_block(cu_q, cu_k, None, 234, 240, *counts)]

    monkeypatch.setattr(sdpa, "blocks_by_size", one_block)
    for a, b in zip(case.run("sdpa", causal=causal, weighted=weighted), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("causal", [True, False])
def test_gradcheck_with_weights_at_0_at_1_and_between(impl, causal):
    case = Case([3, 0, 2], [3, 0, 2] if causal else [4, 2, 0], dim=3)
    # Above 0 by more than gradcheck's step for two keys, as a weight has no side below 0: the formula test covers 0.
    weight = torch.linspace(0.01, 1, len(case.weight), dtype=torch.float64)
    inputs = [x.requires_grad_() for x in (*case.qkv, weight)]

    def run(q, k, v, w):
        return varlen_attention(q, k, v, case.cu_q, case.cu_k, 3, 4, causal=causal, key_weight=w, impl=impl)

    assert torch.autograd.gradcheck(run, inputs)


def test_empty_key_set_gives_zeros_and_no_gradient(on):
    impl, device = on
    case = Case([3, 2, 2], [0, 4, 3], dtype=torch.float32, device=device)
    case.weight[4:] = 0  # the last image has keys, but none that counts
    out, dq, dk, dv, dw = case.run(impl)
    for rows in (slice(0, 3), slice(5, None)):
        assert not out[rows].any() and not dq[rows].any()
    assert out[3:5].any() and not dk[4:].any() and not dv[4:].any() and not dw[4:].any()


@pytest.mark.parametrize("causal", [True, False])
def test_neighbours_and_unused_rows_change_no_bit_even_if_they_are_nan(on, causal):
    impl, device = on
    lengths_q, lengths_k = lengths_for(impl)
    lengths_q = lengths_k if causal else lengths_q
    case = Case(lengths_q, lengths_k, dtype=torch.float32, device=device)
    results = case.run(impl, causal=causal)
    for image in (3, 6, 8) if impl != "triton" else (2,):
        rows, keys = (slice(*cu[image : image + 2].tolist()) for cu in (case.cu_q, case.cu_k))
        alone = Case([lengths_q[image]], [lengths_k[image]], spare=0, dtype=torch.float32, device=device)
        alone.qkv = [case.qkv[0][rows], case.qkv[1][keys], case.qkv[2][keys]]
        alone.weight, alone.grad = case.weight[keys], case.grad[rows]
        cuts = (rows, rows, keys, keys, keys)
        for whole, one, cut in zip(results, alone.run(impl, causal=causal), cuts, strict=True):
            assert torch.equal(whole[cut], one)
        poisoned = Case(lengths_q, lengths_k, dtype=torch.float32, device=device)
        for x, cut in zip((*poisoned.qkv, poisoned.grad), (rows, keys, keys, rows), strict=True):
            kept = x[cut].clone()
            x[:] = float("nan")
            x[cut] = kept
        for whole, one, cut in zip(results, poisoned.run(impl, causal=causal), cuts, strict=True):
            assert torch.equal(whole[cut], one[cut])


def test_permuting_the_images_permutes_the_results(on):
    impl, device = on
    lengths_q, lengths_k = lengths_for(impl)
    case = Case(lengths_q, lengths_k, spare=0, dtype=torch.float32, device=device)
    order = [i for i in (4, 8, 0, 2, 6, 1, 7, 3, 5) if i < len(lengths_q)]

    def shuffled(x, lengths):
        return torch.cat([x.split(lengths)[i] for i in order])

    lengths = [[n[i] for i in order] for n in (lengths_q, lengths_k)]
    other = Case(*lengths, spare=0, dtype=torch.float32, device=device)
    other.qkv = [shuffled(x, n) for x, n in zip(case.qkv, (lengths_q, lengths_k, lengths_k), strict=True)]
    other.weight, other.grad = shuffled(case.weight, lengths_k), shuffled(case.grad, lengths_q)
    sizes = (lengths_q, lengths_q, lengths_k, lengths_k, lengths_k)
    for a, b, n in zip(case.run(impl), other.run(impl), sizes, strict=True):
        assert torch.equal(shuffled(a, n), b)


@settings(max_examples=25, deadline=None)
@given(st.data(), st.sampled_from(IMPLS), st.booleans(), st.booleans(), st.integers(0, 2**31))
def test_laws_of_a_batch_for_any_lengths(data, impl, causal, weighted, seed):
    """Images in another order or with other neighbours: the same bits. One more key, of weight 0: the same result."""
    sizes = data.draw(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=5))
    sizes = [(m, m) for _, m in sizes] if causal else sizes
    order = data.draw(st.permutations(range(len(sizes))))
    chosen = data.draw(st.integers(0, len(sizes) - 1))
    q, k = ([n[i] for n in sizes] for i in (0, 1))
    case = Case(q, k, spare=0, seed=seed, dtype=torch.float32)
    rows = q, q, k, k, k
    before = [x.split(n) for x, n in zip(case.run(impl, causal=causal, weighted=weighted), rows, strict=False)]

    def regrouped(images, *, others=False):
        """The same images in another batch; with ``others``, all but the chosen one hold other numbers."""
        new = Case([q[i] for i in images], [k[i] for i in images], spare=0, seed=seed + others, dtype=torch.float32)
        fields = []
        for old, field, n in zip((*case.qkv, case.weight, case.grad), (*new.qkv, new.weight, new.grad), (q, k, k, k, q),
                                 strict=True):  # fmt: skip
            drawn = field.split([n[i] for i in images])
            kept = [i == chosen or not others for i in images]
            parts = zip(images, kept, drawn, strict=True)
            fields.append(torch.cat([old.split(n)[i] if same else x for i, same, x in parts]))
        *new.qkv, new.weight, new.grad = fields
        found = new.run(impl, causal=causal, weighted=weighted)
        return [x.split([n[i] for i in images]) for x, n in zip(found, rows, strict=False)]

    for x, y in zip(before, regrouped(order), strict=True):
        assert all(torch.equal(x[image], y[place]) for place, image in enumerate(order))
    for x, y in zip(before, regrouped(range(len(sizes)), others=True), strict=True):
        assert torch.equal(x[chosen], y[chosen])
    if causal:
        return
    longer = Case(q, [n + (i == chosen) for i, n in enumerate(k)], spare=0, dtype=torch.float64)
    plain = Case(q, k, spare=0, dtype=torch.float64)
    end = sum(k[: chosen + 1])
    longer.qkv[0], longer.grad = plain.qkv[0], plain.grad
    for x, value in ((1, 1e3), (2, 1e3)):
        longer.qkv[x] = torch.cat((plain.qkv[x][:end], torch.full((1, 2, 8), value).double(), plain.qkv[x][end:]))
    longer.weight = torch.cat((plain.weight[:end], torch.zeros(1).double(), plain.weight[end:]))
    results = longer.run(impl), plain.run(impl)
    torch.testing.assert_close(results[0][:2], results[1][:2], rtol=1e-9, atol=1e-11)


def test_a_key_of_weight_0_changes_nothing(on):
    """However large its logit: the maximum is taken over the keys that count."""
    impl, device = on
    case = Case([4], [5], spare=0, dtype=torch.float32, device=device)
    case.weight[:] = torch.tensor([1.0, 0.5, 1.0, 1.0, 0.0])
    with_key = case.run(impl)[0]
    case.qkv[1][4] *= 1e5
    case.qkv[2][4] = 1e5
    torch.testing.assert_close(case.run(impl)[0], with_key)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision(impl, dtype):
    """bfloat16: at most twice the error of the formula with every step rounded; float32: 1e-5 of the largest value."""
    lengths_q, lengths_k = LENGTHS
    case = Case(lengths_q, lengths_k, dtype=dtype)
    exact = Case(lengths_q, lengths_k)
    exact.qkv, exact.weight, exact.grad = [x.double() for x in case.qkv], case.weight.double(), case.grad.double()
    for got, plain, truth in zip(case.run(impl), case.formula(), exact.formula(), strict=True):
        assert got.dtype == dtype
        allowed = 2 * (plain.double() - truth).abs().max() if dtype == torch.bfloat16 else 1e-5 * truth.abs().max()
        assert float((got.double() - truth).abs().max()) <= float(allowed)


@pytest.mark.parametrize(("lengths_q", "lengths_k"), [([2, 0, 3], [1, 4, 0]), ([], []), ([0], [3])])
def test_opcheck(on, lengths_q, lengths_k):
    impl, device = on
    case = Case(lengths_q, lengths_k, heads=1, spare=1, dtype=torch.float32, device=device)
    inputs = [x.requires_grad_() for x in case.qkv]
    for weight in (None, case.weight.requires_grad_()):
        torch.library.opcheck(
            varlen_attention_op,
            (*inputs, case.cu_q, case.cu_k, weight, case.max_q, case.max_k, False, 0.5, impl),
        )


def test_compiles_without_a_graph_break():
    @torch.compile(fullgraph=True, dynamic=True, backend="aot_eager")
    def run(q, k, v, w, cu_q, cu_k, max_q, max_k):
        return varlen_attention(q, k, v, cu_q, cu_k, max_q, max_k, key_weight=w)

    for lengths_q, lengths_k in (([2, 3], [4, 5]), ([4, 1, 3], [2, 3, 6])):
        case = Case(lengths_q, lengths_k)
        inputs = [x.requires_grad_() for x in (*case.qkv, case.weight)]
        out = run(*inputs, case.cu_q, case.cu_k, case.max_q, case.max_k)
        got = (out, *torch.autograd.grad(out, inputs, case.grad))
        assert all(torch.equal(a, b) for a, b in zip(got, case.run("auto"), strict=True))


@pytest.mark.parametrize("autocast", [False, True])
def test_past_its_registration_the_operation_is_the_same(monkeypatch, autocast):
    case = Case([2, 0, 3], [4, 1, 5], dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        found = case.run("auto")
        monkeypatch.setattr(library, "direct", lambda *tensors, gradient: False)
        assert all(torch.equal(a, b) for a, b in zip(found, case.run("auto"), strict=True))


def test_past_its_registration_the_environment_chooses(monkeypatch):
    monkeypatch.setattr(library.cpp, "varlen_attention", None)
    monkeypatch.setenv("LAVIT_KERNELS", "varlen_attention=reference")
    case = Case([2, 3], [4, 5])
    assert all(torch.equal(a, b) for a, b in zip(case.run("auto"), case.run("reference"), strict=True))


def test_wrong_arguments_are_named():
    case = Case([2, 3], [4, 5], spare=0)
    q, k, v = case.qkv
    args = (case.cu_q, case.cu_k, 3, 5)
    with pytest.raises(ValueError, match=r"q: expected shape \(Tq, H, D\), got \(5, 16\)"):
        varlen_attention(q.flatten(1), k, v, *args)
    with pytest.raises(ValueError, match=r"k: expected shape \(9, 2, 8\) to match q, got \(9, 2, 7\)"):
        varlen_attention(q, k[..., 1:], v, *args)
    with pytest.raises(ValueError, match=r"v: expected shape \(9, 2, 8\) to match k, got \(8, 2, 8\)"):
        varlen_attention(q, k, v[1:], *args)
    with pytest.raises(TypeError, match="cu_q: expected int32 offsets, got torch.int64"):
        varlen_attention(q, k, v, case.cu_q.long(), case.cu_k, 3, 5)
    with pytest.raises(ValueError, match=r"cu_k: expected shape \(3,\) for a batch of 2, got \(2,\)"):
        varlen_attention(q, k, v, case.cu_q, case.cu_k[1:], 3, 5)
    with pytest.raises(ValueError, match=r"key_weight: expected shape \(9,\) to match k, got \(8,\)"):
        varlen_attention(q, k, v, *args, key_weight=case.weight[1:])
    with pytest.raises(ValueError, match=r"k: expected as many rows as q \(5\) with causal=True, got 9"):
        varlen_attention(q, k, v, *args, causal=True)
    with pytest.raises(ValueError, match="cu_k: expected at most 4 rows a sequence, got 5 in sequence 1"):
        varlen_attention(q, k, v, case.cu_q, case.cu_k, 3, 4)
    with pytest.raises(ValueError, match="cu_q: expected non-decreasing offsets"):
        varlen_attention(q, k, v, case.cu_q[[0, 2, 1]], case.cu_k, 5, 5)
