"""What is special about the streaming form: tiles, the maximum that no one sees, strides, memory. The laws that every
implementation obeys are in test_policy_attention.py."""

from itertools import pairwise, product

import pytest
import torch
from policy_cases import allowed, assert_within, case, in_float64, mask, run
from usable import gpu_waits, skip_unless_usable

from lavit.kernels.policy_attention import reference
from lavit.kernels.policy_attention.library import OPERATION

KINDS = ["causal", "cross"]
pytestmark = pytest.mark.usefixtures("poisoned")


@pytest.fixture
def launcher(device, monkeypatch):
    """kernels/policy_attention/triton.py. In the interpreter with tiles of which 70 tokens need several."""
    skip_unless_usable("policy_attention", "triton", device)
    from lavit.kernels.policy_attention import triton

    if device.type == "cpu":
        tiles = triton.Tile(64, 32, 4, 1), triton.Tile(32, 64, 4, 1), triton.Tile(64, 32, 4, 1)
        monkeypatch.setattr(triton, "choose_tiles", lambda q: triton.Tiles(*tiles))
    return triton


@pytest.mark.parametrize(
    ("n", "dim", "keep", "std"),
    [(1, 16, "all", 2), (17, 24, "none", 2), (70, 40, "one", 2), (70, 88, "third", 9), (17, 128, "between", 9)],
)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("eps", [1e-6, 0.0])
def test_forward_and_backward_are_those_of_the_definition(launcher, device, n, dim, keep, std, kind, eps):
    inputs = [x.to(device) for x in case(n, dim, keep, std if eps else 2.0)]
    assert_within(run(*inputs, kind, eps), in_float64(*inputs, kind, eps), allowed(*inputs, kind, eps))


@pytest.mark.parametrize("kind", KINDS)
def test_masked_columns_that_hold_the_maximum_leak_the_mean(launcher, device, kind):
    """Logits of standard deviation 9: rows that epsilon does not touch, that it owns, and between, in one case."""
    q, k, v, g, keep = (x.to(device) for x in case(70, 88, "third", 9.0))
    keep = 1 - keep if kind == "cross" else keep
    _, lse, leak, mean = launcher.policy_attention(q, k, v, keep, kind, 1e-6, 88**-0.5)
    assert float(leak.min()) < 1e-3 and float(leak.max()) > 0.9 and bool(((leak > 0.05) & (leak < 0.9)).any())
    expected = reference.policy_attention(*(x.double() for x in (q, k, v, keep)), kind, 1e-6, 88**-0.5)
    relative = 6 * float(q.abs().amax() * k.abs().amax()) * 88**0.5 * 96 * 2**-24
    torch.testing.assert_close(leak.double(), expected[2], rtol=relative, atol=0)
    torch.testing.assert_close(lse.double(), expected[1], rtol=0, atol=relative)
    torch.testing.assert_close(mean.double(), expected[3], rtol=0, atol=70 * 2**-24 * float(v.abs().max()))


@pytest.mark.parametrize("kind", KINDS)
def test_without_epsilon_no_masked_column_matters_however_large(launcher, device, kind):
    """Masked logits 1000 above the visible ones, where exp(s - m) of every visible column is 0 in float32."""
    q, k, v, g, keep = (x.to(device) for x in case(70, 16, "third"))
    hidden = keep[..., None, None] == (0 if kind == "causal" else 1)
    q[..., 0], k[..., :1] = 4.0, torch.where(hidden, 1000.0, k[..., :1])
    visible = (keep if kind == "causal" else 1 - keep)[:, None, None, :].bool()
    if kind == "causal":
        below = torch.ones(70, 70, dtype=torch.bool, device=device).tril(-1)
        visible = visible & below | torch.eye(70, dtype=torch.bool, device=device)
        # The first token is not kept: what its own row sees is a masked column.
    got = run(q, k, v, g, keep, kind, 0.0)
    qh, kh, vh = (x.double().transpose(1, 2) for x in (q, k, v))
    s = (qh @ kh.transpose(-1, -2) / 4).masked_fill(~visible, -torch.inf)
    expected = (s.softmax(dim=-1) @ vh).transpose(1, 2)
    # A logit of a thousand is rounded to 2^-14 of one; others to less.
    torch.testing.assert_close(got[0].double(), expected, rtol=0, atol=20 * 2**-13 * float(v.abs().max()))
    assert all(bool(x.isfinite().all()) for x in got[:4])


@pytest.mark.parametrize("kind", KINDS)
def test_of_equal_maxima_the_first_column_bears_the_gradient(launcher, device, kind):
    """Whole numbers, so that ties are ties in any order of summation: within a tile, across tiles, and everywhere."""
    q, k, v, g, keep = case(70, 16, "third")
    q, k = q.round(), k.round().repeat_interleave(2, dim=1)[:, :70].flip(1)
    k[1] = k[1, 0]
    inputs = [x.to(device) for x in (q, k, v, g, keep)]
    assert_within(run(*inputs, kind, 0.3), in_float64(*inputs, kind, 0.3), allowed(*inputs, kind, 0.3))


def plain(q, k, v, keep, kind, eps):
    """The definition in tensors, every step rounded to the dtype of its inputs."""
    a = reference.weights(q.transpose(1, 2), k.transpose(1, 2), keep, kind, eps, q.shape[-1] ** -0.5)[0]
    return (a @ v.transpose(1, 2)).transpose(1, 2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("std", [2, 9])
def test_half_precision_is_at_most_twice_as_far_as_plain_rounding(launcher, device, kind, dtype, std):
    if dtype == torch.bfloat16 and device.type == "cpu":
        pytest.skip("Triton's interpreter computes on bfloat16's raw bits")
    q, k, v, g, keep = (x.to(device) for x in case(70, 88, "third", std, dtype=dtype))
    got, exact = run(q, k, v, g, keep, kind, 1e-6), in_float64(q, k, v, g, keep, kind, 1e-6)
    leaves = [x.detach().requires_grad_() for x in (q, k, v, keep.to(dtype))]
    out = plain(*leaves, kind, 1e-6)
    for x, y, z in zip(got, (out.detach(), *torch.autograd.grad(out, leaves, g)), exact, strict=True):
        error, other = ((a.double().cpu() - z).abs().max() for a in (x, y))
        # Plain rounding may overflow, and then says nothing.
        assert bool(x.isfinite().all()) and (float(error) <= 2 * float(other) or not bool(other.isfinite()))


def test_views_of_a_fused_projection_are_read_where_they_are(launcher, device):
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(2, 17, 3, 2, 24, generator=generator).to(device)
    g = torch.randn(2, 2, 17, 24, generator=generator).to(device).transpose(1, 2)
    keep = mask("third", 2, 17).to(device)
    q, k, v = qkv.unbind(2)
    assert all(launcher.strided(x) is x for x in (q, k, v, g))
    got = run(q, k, v, g, keep, "causal", 1e-6)
    expected = run(*(x.contiguous() for x in (q, k, v, g)), keep, "causal", 1e-6)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_strides_that_no_vector_has_are_copied(launcher, device):
    wide = torch.randn(2, 5, 1, 17, generator=torch.Generator().manual_seed(0)).to(device)
    q, keep = wide[..., :16], mask("third", 2, 5).to(device)
    one = torch.ones((), device=device).expand(q.shape)
    got = run(q, q, q, one, keep, "causal", 1e-6)
    q = q.contiguous()
    expected = run(q, q, q, one.contiguous(), keep, "causal", 1e-6)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize(
    ("dim", "dtype"), [(12, torch.float32), (8, torch.float16), (264, torch.float32), (16, torch.float64)]
)
def test_what_the_kernels_are_not_made_for_goes_to_the_next_implementation(launcher, device, dim, dtype):
    inputs = [x.to(device, dtype) for x in case(5, dim, "third")]
    assert not launcher.can_take(inputs[0])
    inputs[4] = inputs[4].float() if dtype != torch.float64 else inputs[4]
    following = next(name for name in OPERATION.preference[device.type] if name != "triton")
    got, expected = (run(*inputs, "causal", 1e-6, impl=impl) for impl in ("triton", following))
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_the_same_numbers_every_time_and_in_every_company(launcher, device):
    q, k, v, g, keep = (x.to(device) for x in case(17, 24, "third", batch=3, heads=2))
    whole = run(q, k, v, g, keep, "cross", 1e-6)
    order = [2, 0, 1]
    moved = run(*(x[order] for x in (q, k, v, g, keep)), "cross", 1e-6)
    assert all(torch.equal(a[order], b) for a, b in zip(whole, moved, strict=True))


def test_widths_are_padded_to_two_powers_of_two_at_most(launcher):
    padded = {dim: launcher.column_parts(dim) for dim in range(16, 257, 8)}
    assert padded[88] == (64, 32) and padded[40] == (32, 16) and padded[192] == (128, 64) and padded[128] == (128, 0)
    assert all(sum(pair) >= dim and sum(pair) < 1.34 * dim for dim, pair in padded.items())
    assert all(sum(a) <= sum(b) for a, b in pairwise(padded.values()))
    for architecture in (80, 89, 90, 100, 120):
        for dim, dtype in product(padded, (torch.bfloat16, torch.float32)):
            assert launcher.tiles_of(architecture, dim, dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dim", [64, 88, 128, 160, 256])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_tables_tiles_on_a_gpu(kind, dim, dtype):
    skip_unless_usable("policy_attention", "triton", torch.device("cuda"))
    n = 4096 if dim == 88 and dtype == torch.bfloat16 else 300
    q, k, v, g, keep = (x.cuda() for x in case(n, dim, "third", dtype=dtype, batch=1))
    got, exact = run(q, k, v, g, keep, kind, 1e-6), in_float64(q, k, v, g, keep, kind, 1e-6)
    if dtype == torch.float32:
        return assert_within(got, exact, allowed(q, k, v, g, keep, kind, 1e-6))
    leaves = [x.detach().requires_grad_() for x in (q, k, v, keep.to(dtype))]
    out = plain(*leaves, kind, 1e-6)
    for x, y, z in zip(got, (out.detach(), *torch.autograd.grad(out, leaves, g)), exact, strict=True):
        assert float((x.double().cpu() - z).abs().max()) <= 2 * float((y.double().cpu() - z).abs().max())


@pytest.mark.gpu
def test_another_batch_compiles_nothing():
    skip_unless_usable("policy_attention", "triton", torch.device("cuda"))
    from lavit.kernels.policy_attention.triton import KERNELS

    def compiled():
        return [len(kernel.device_caches[torch.cuda.current_device()][0]) for kernel in KERNELS.values()]

    before = None
    for batch, n in ((2, 256), (1, 256), (16, 256), (3, 17), (1, 1)):
        run(*(x.cuda() for x in case(n, 88, "third", batch=batch, dtype=torch.bfloat16)), "causal", 1e-6)
        before = before or compiled()
    assert compiled() == before


@pytest.mark.gpu
def test_recorded_without_waiting_and_replayed():
    skip_unless_usable("policy_attention", "triton", torch.device("cuda"))
    inputs = [x.cuda() for x in case(256, 88, "third", dtype=torch.bfloat16)]
    other = [x.flip(0).contiguous() for x in inputs]
    expected = run(*other, "causal", 1e-6)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        with gpu_waits("error"):
            run(*inputs, "causal", 1e-6)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        got = run(*inputs, "causal", 1e-6)
    for x, y in zip(inputs, other, strict=True):
        x.copy_(y)
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
