"""How flash-attn, xformers and torch's varlen_attn are called, by stand-ins that run here; the packages themselves
where they and a GPU are."""

import sys
from types import SimpleNamespace

import pytest
import torch
from packed import inputs, offsets, run, truth_and_bounds
from usable import skip_unless_usable

from lavit.kernels import varlen_attention
from lavit.kernels.dispatch import Implementation, _choose
from lavit.kernels.varlen_attention import packages, reference
from lavit.kernels.varlen_attention.library import OPERATION

# An image without keys and one without queries: their rows are what the packages leave unwritten.
QUERIES, KEYS = [1, 37, 0, 2], [3, 35, 4, 0]
NAMES = list(packages.PACKAGES)


class _Attention(torch.autograd.Function):
    """The definition, differentiable, with NaN in every row that a package would not write."""

    @staticmethod
    def forward(ctx, q, k, v, cu_q, cu_k, causal, scale):
        settings = None, 0, 0, causal, scale
        out, lse = reference.varlen_attention(q, k, v, cu_q, cu_k, *settings)
        ctx.save_for_backward(q, k, v, out, lse, cu_q, cu_k)
        ctx.settings = settings
        return _unwritten(out, cu_q, cu_k)

    @staticmethod
    def backward(ctx, grad):
        *_, cu_q, cu_k = ctx.saved_tensors
        dq, dk, dv, _ = reference.varlen_attention_backward(grad, *ctx.saved_tensors, *ctx.settings)
        return _unwritten(dq, cu_q, cu_k), _unwritten(dk, cu_k, cu_q), _unwritten(dv, cu_k, cu_q), *[None] * 4


def _unwritten(x, cu, cu_other):
    x = x.clone()
    a, b = cu.tolist(), cu_other.tolist()
    for image in range(len(a) - 1):
        if b[image] == b[image + 1]:
            x[a[image] : a[image + 1]] = torch.nan
    x[a[-1] :] = torch.nan
    return x


class _Blocks:
    """As much of xformers' BlockDiagonalMask as is asked of it."""

    def __init__(self, q_seqlen, kv_seqlen, causal=False):
        self.lengths, self.causal = (q_seqlen, kv_seqlen), causal

    @classmethod
    def from_seqlens(cls, q_seqlen, kv_seqlen=None, *, device=None):
        assert all(type(n) is int for n in (*q_seqlen, *kv_seqlen)) and device is not None
        return cls(q_seqlen, kv_seqlen)

    def make_causal(self):
        return _Blocks(*self.lengths, causal=True)


@pytest.fixture
def calls(monkeypatch):
    """The packages' functions run here, on the definition, and leave what they were called with in this list."""
    made = []

    def flash_attn_varlen_func(q, k, v, cu_q, cu_k, max_q, max_k, *, softmax_scale, causal):
        made.append((max_q, max_k, softmax_scale, causal))
        return _Attention.apply(q, k, v, cu_q, cu_k, causal, softmax_scale)

    def mask(q, k, v, attn_bias, scale):
        lengths_q, lengths_k = attn_bias.lengths
        assert q.shape[:2] == (1, sum(lengths_q)) and k.shape[:2] == v.shape[:2] == (1, sum(lengths_k))
        made.append((max(lengths_q), max(lengths_k), scale, attn_bias.causal))
        return offsets(lengths_q, "cpu"), offsets(lengths_k, "cpu"), None, 0, 0, attn_bias.causal, scale

    def with_lse(q, k, v, *, attn_bias, scale):
        cu_q, cu_k, *settings = mask(q, k, v, attn_bias, scale)
        out, lse = reference.varlen_attention(q[0], k[0], v[0], cu_q, cu_k, *settings)
        return _unwritten(out, cu_q, cu_k)[None], lse

    def xformers_backward(grad, out, lse, q, k, v, *, attn_bias, scale):
        cu_q, cu_k, *settings = mask(q, k, v, attn_bias, scale)
        saved = (x[0] for x in (grad, q, k, v, out.nan_to_num()))
        found = reference.varlen_attention_backward(*saved, lse, cu_q, cu_k, *settings)[:3]
        offsets_of = (cu_q, cu_k), (cu_k, cu_q), (cu_k, cu_q)
        return [_unwritten(x, *cu)[None] for x, cu in zip(found, offsets_of, strict=True)]

    def flash_forward(q, k, v, cu_q, cu_k, max_q, max_k, dropout, causal, debug, *, scale):
        assert (dropout, debug) == (0.0, False)
        made.append((max_q, max_k, scale, causal))
        out, lse = reference.varlen_attention(q, k, v, cu_q, cu_k, None, 0, 0, causal, scale)
        return _unwritten(out, cu_q, cu_k), lse.t().contiguous(), None, None, None

    def flash_backward(
        grad, q, k, v, out, lse, cu_q, cu_k, max_q, max_k, dropout, causal, rng_state, unused, *, scale
    ):
        assert dropout == 0.0 and rng_state.dtype == torch.uint64 and lse.shape == q.shape[1::-1]
        made.append((max_q, max_k, scale, causal))
        settings = cu_q, cu_k, None, 0, 0, causal, scale
        dq, dk, dv, _ = reference.varlen_attention_backward(grad, q, k, v, out, lse.t(), *settings)
        return _unwritten(dq, cu_q, cu_k), _unwritten(dk, cu_k, cu_q), _unwritten(dv, cu_k, cu_q)

    xformers_ops = SimpleNamespace(
        memory_efficient_attention_forward=lambda *qkv, **options: with_lse(*qkv, **options)[0],
        memory_efficient_attention_forward_requires_grad=with_lse,
        memory_efficient_attention_backward=xformers_backward,
    )
    modules = {
        "flash_attn": SimpleNamespace(flash_attn_varlen_func=flash_attn_varlen_func),
        "xformers": SimpleNamespace(),
        "xformers.ops": xformers_ops,
        "xformers.ops.fmha.attn_bias": SimpleNamespace(BlockDiagonalMask=_Blocks),
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", flash_forward)
    monkeypatch.setattr(torch.ops.aten, "_flash_attention_backward", flash_backward)
    for name in NAMES:
        monkeypatch.setitem(OPERATION.implementations, name, Implementation(name, "a stand-in"))
    _choose.cache_clear()
    yield made
    _choose.cache_clear()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("causal", [True, False])
def test_packages_get_the_arguments_and_what_they_leave_unwritten_is_zero(calls, name, causal):
    lengths_q = KEYS if causal else QUERIES
    q, k, v, g, _ = inputs(lengths_q, KEYS, 16, torch.float16, torch.device("cpu"))
    case = (q, k, v, g, None, lengths_q, KEYS, causal)
    for got, expected in zip(run(name, *case), run("reference", *case), strict=True):
        assert torch.equal(got, expected)
    assert calls and set(calls) == {(max(lengths_q), 35, 0.25, causal)}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("lengths_q", "lengths_k"), [([], []), ([2, 1], [0, 0]), ([0], [3])])
def test_with_nothing_to_attend_to_everything_is_zero(calls, name, lengths_q, lengths_k):
    q, k, v, g, _ = inputs(lengths_q, lengths_k, 8, torch.float16, torch.device("cpu"))
    leaves = [x.requires_grad_() for x in (q, k, v)]
    bounds = (max(lengths_q, default=0), max(lengths_k, default=0)), (4, 4)
    for longest in bounds:  # known to the host, and known to the device alone
        out = varlen_attention(*leaves, offsets(lengths_q, "cpu"), offsets(lengths_k, "cpu"), *longest, impl=name)
        assert not any(bool(x.any()) for x in (out, *torch.autograd.grad(out, leaves, g)))


@pytest.mark.parametrize("name", NAMES)
def test_packages_refuse_what_they_lack(calls, name):
    q, k, v, _, w = inputs([2], [3], 16, torch.float64, torch.device("cpu"))
    cu = offsets([2], "cpu"), offsets([3], "cpu"), 2, 3
    with pytest.raises(TypeError, match=f"q: {name} needs float16 or bfloat16.*, got torch.float64"):
        varlen_attention(q.double(), k.double(), v.double(), *cu, impl=name)
    q, k, v = q.half(), k.half(), v.half()
    with pytest.raises(ValueError, match=f"key_weight: {name} has no weights of keys"):
        varlen_attention(q, k, v, *cu, key_weight=w, impl=name)
    with pytest.raises(ValueError, match="multiple of 8, got 15"):
        varlen_attention(q[..., 1:], k[..., 1:], v[..., 1:], *cu, impl=name)
    assert not calls


@pytest.mark.parametrize("name", NAMES)
def test_packages_say_why_they_cannot_run_and_are_never_taken_unasked(name):
    with pytest.raises(RuntimeError, match=f"varlen_attention cannot run '{name}' on cpu: .* needs a GPU"):
        OPERATION.choose(name, "cpu")
    assert name not in {name for names in OPERATION.preference.values() for name in names}


def test_what_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: False)
    reasons = {name: package.unusable("cuda") for name, package in packages.PACKAGES.items()}
    assert reasons["flash_attn"] == "flash-attn is not installed"
    assert reasons["xformers"] == "xformers is not installed"
    assert reasons["torch_varlen"].endswith("was built without flash attention")


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("causal", [True, False])
def test_packages_agree_with_the_definition(name, causal):
    skip_unless_usable("varlen_attention", name, torch.device("cuda"))
    lengths_q = [85, 1, 0, 300, 64, 5] if not causal else [171, 3, 0, 129, 64, 0]
    lengths_k = [171, 3, 0, 129, 64, 0]
    q, k, v, g, _ = inputs(lengths_q, lengths_k, 88, torch.bfloat16, "cuda", heads=2)
    case = (q, k, v, g, None, lengths_q, lengths_k, causal)
    for got, (exact, bound) in zip(run(name, *case), truth_and_bounds(*case), strict=True):
        assert bool(((got.double().cpu() - exact).abs() <= 2 * bound).all())
