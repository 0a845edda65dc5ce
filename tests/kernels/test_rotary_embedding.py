import pytest
import torch
from gradients import same_on_any_number_of_threads, weights_like, with_gradients
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb
from usable import chosen_form, skip_unless_usable

from lavit.kernels import rotary_embedding
from lavit.kernels.rotary_embedding.library import rotary_embedding_op

pytestmark = pytest.mark.usefixtures("poisoned")


@pytest.fixture(params=["reference", "cpp 16", "cpp 32", "cpp 64"])
def impl(request, monkeypatch):
    return chosen_form("rotary_embedding", request.param, monkeypatch)


def inputs_of(rows, heads, dim, dtype=torch.float32):
    """Rows that lie apart, and halves of cos and sin that differ."""
    generator = torch.Generator().manual_seed(rows)
    x, cos, sin = (
        torch.randn(rows, *shape, generator=generator, dtype=torch.float64).to(dtype)
        for shape in ((heads + 1, dim), (dim,), (dim,))
    )
    return x[:, :heads], cos, sin


def theirs(x, cos, sin):
    """transformers' rotation, of x alone."""
    return apply_rotary_pos_emb(x[None], x[None], cos[None], sin[None], unsqueeze_dim=2)[0][0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("rows", "heads", "dim"), [(0, 2, 4), (1, 1, 2), (37, 3, 6), (700, 4, 32)])
def test_output_and_gradient_are_those_of_transformers(impl, rows, heads, dim, dtype):
    """Two products and their sum are rounded, each by half a unit of at most the sizes of the two together."""
    x, cos, sin = inputs_of(rows, heads, dim, dtype)
    got = with_gradients(lambda a: rotary_embedding(a, cos, sin, impl=impl), x)
    exact = with_gradients(lambda a: theirs(a, cos.double(), sin.double()), x.double())
    c, s = cos.double().abs()[:, None], sin.double().abs()[:, None]
    for a, b, rotated in zip(got, exact, (x, weights_like(got[0])), strict=True):
        size = rotated.double().abs()
        # Which half of sin is meant the gradient turns round: the larger is enough for a bound.
        together = size * c + size.roll(dim // 2, -1) * s.maximum(s.roll(dim // 2, -1))
        assert a.dtype == dtype
        # Below the normal numbers units grow no smaller.
        precision = torch.finfo(dtype)
        assert bool(((a.double() - b).abs() <= precision.eps * (1.01 * together + 2 * precision.smallest_normal)).all())


def test_back_is_the_transposed(impl):
    """<rotated x, y> = <x, y rotated back>, sums of 1332 products of about 1 in float64."""
    x, cos, sin = inputs_of(37, 3, 6, torch.float64)
    y = torch.randn(37, 3, 6, dtype=torch.float64)
    there, back = (rotary_embedding_op(a, cos, sin, b, impl) for a, b in ((x, False), (y, True)))
    torch.testing.assert_close((there * y).sum(), (x * back).sum(), rtol=0, atol=1e-11)


def test_any_strides_are_taken(impl):
    x, cos, sin = inputs_of(5, 2, 6)
    crossed = x.transpose(0, 1).contiguous().transpose(0, 1), cos.t().contiguous().t(), sin.t().contiguous().t()
    assert torch.equal(rotary_embedding(*crossed, impl=impl), rotary_embedding(x, cos, sin, impl=impl))


def test_cpp_gives_the_same_bits_on_any_number_of_threads():
    skip_unless_usable("rotary_embedding", "cpp", torch.device("cpu"))
    x, cos, sin = inputs_of(900, 4, 32)

    def run(a):
        return rotary_embedding(a, cos, sin, impl="cpp")

    assert same_on_any_number_of_threads(lambda: with_gradients(run, x))


@pytest.mark.parametrize("back", [False, True])
def test_the_operation_is_known_to_the_compiler(impl, back):
    x, cos, sin = inputs_of(5, 2, 6)
    torch.library.opcheck(rotary_embedding_op, (x.detach().requires_grad_(), cos, sin, back, impl))


def test_compiles_without_a_graph_break(impl):
    def plain(x, cos, sin):
        return rotary_embedding(x, cos, sin, impl=impl)

    def all_of(run, x, cos, sin):
        return with_gradients(lambda a: run(a, cos, sin), x)

    compiled = torch.compile(plain, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (3, 5):
        found, expected = (all_of(run, *inputs_of(rows, 2, 6)) for run in (compiled, plain))
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_wrong_arguments_are_named():
    x, cos, sin = inputs_of(3, 1, 6)
    with pytest.raises(ValueError, match=r"cos: expected shape \(3, 6\) to match x, got \(2, 6\)"):
        rotary_embedding(x, cos[:2], sin)
    with pytest.raises(TypeError, match="sin: expected torch.float32 to match x, got torch.float64"):
        rotary_embedding(x, cos, sin.double())
    with pytest.raises(ValueError, match=r"x: expected heads of an even number of dimensions, got \(3, 1, 5\)"):
        rotary_embedding(x[..., :5], cos[:, :5], sin[:, :5])
    with pytest.raises(ValueError, match=r"x: expected shape \(T, H, D\), got \(3, 6\)"):
        rotary_embedding(x[:, 0], cos, sin)
    with pytest.raises(ValueError, match="cos: expected a tensor that wants no gradient"):
        rotary_embedding(x, cos.requires_grad_(), sin)


def test_the_compiled_form_refuses_what_it_cannot_read():
    skip_unless_usable("rotary_embedding", "cpp", torch.device("cpu"))
    x, angles, run = torch.zeros(3, 2, 4), torch.zeros(3, 4), torch.ops.lavit_cpp
    for given, cos, sin, message in (
        (x[..., :3], angles, angles, r"x: expected \(T, H, D\), D even"),
        (x.transpose(1, 2), angles[:, :2], angles[:, :2], "x: expected contiguous rows"),
        (x, angles[:2], angles, r"cos, sin: expected \(T, D\)"),
        (x, angles, angles.double(), "cos, sin: expected the dtype of x"),
        (x.half(), angles.half(), angles.half(), "x: expected float32 or float64"),
    ):
        with pytest.raises(RuntimeError, match=message):
            run.rotary_embedding(given, cos, sin, False, 0)
