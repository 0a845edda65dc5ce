import pytest
import torch
from gradients import same_on_any_number_of_threads, weights_like
from usable import chosen_form, skip_unless_usable

from lavit.kernels import add_rms_norm
from lavit.kernels.add_rms_norm.library import add_rms_norm_backward_op, add_rms_norm_op

pytestmark = pytest.mark.usefixtures("poisoned")


@pytest.fixture(params=["reference", "cpp 16", "cpp 32", "cpp 64"])
def impl(request, monkeypatch):
    return chosen_form("add_rms_norm", request.param, monkeypatch)


def gradients_of(run, x, delta, weight, used=(True, True)):
    """Both results, then the gradients to x, delta and weight of a weighted sum of those that are used."""
    leaves = [a if a is None else a.detach().requires_grad_() for a in (x, delta, weight)]
    results = run(*leaves, 1e-5)
    pairs = [(r, weights_like(r, seed)) for seed, (r, use) in enumerate(zip(results, used, strict=True)) if use]
    wanted = [leaf for leaf in leaves if leaf is not None]
    out, weights = zip(*pairs, strict=True)
    return [r.detach() for r in results], torch.autograd.grad(out, wanted, weights, allow_unused=True)


def formula(x, delta, weight, eps):
    total = x if delta is None else x + delta
    return total.clone(), total / (total.square().mean(-1, keepdim=True) + eps).sqrt() * weight


@pytest.mark.parametrize(("rows", "width"), [(0, 7), (5, 1), (5, 7), (1, 64), (5, 131), (1, 4096)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_equals_the_formula_in_float64(impl, rows, width, dtype):
    torch.manual_seed(width)
    x, delta = (torch.randn(rows, width, dtype=torch.float64).to(dtype) for _ in range(2))
    weight = torch.linspace(0.5, 2, width, dtype=torch.float64).to(dtype)
    for added in (delta, None):
        total, normed = add_rms_norm(x, added, weight, 1e-5, impl=impl)
        assert torch.equal(total, x if added is None else x + added) and (rows == 0 or total.data_ptr() != x.data_ptr())
        exact = total.double()
        expected = exact / (exact.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
        # One rounding to the dtype and few before it, each half a unit; a mean of n squares adds less than n / 16.
        rounding = torch.finfo(dtype).eps * (3 if dtype == torch.bfloat16 else 4 + width / 16)
        torch.testing.assert_close(normed.double(), expected, rtol=rounding, atol=0)


def test_not_a_number_stays_in_its_row(impl):
    x = torch.ones(3, 40)
    x[1, 7], x[2, 5] = torch.nan, torch.inf
    total, normed = add_rms_norm(x, torch.zeros_like(x), torch.ones(40), 0.0, impl=impl)
    assert torch.equal(normed[0], torch.ones(40)) and normed[1].isnan().all() and normed[2, 5].isnan()
    assert total[1].isnan().sum() == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("rows", "width"), [(0, 7), (5, 1), (5, 7), (130, 24), (300, 131)])
def test_gradients_are_those_of_the_formula_in_float64(impl, rows, width, dtype):
    """Of the sum as it was rounded. Each is rounded once to the dtype, after sums of n terms of about 1: n + 8 units of
    the precision that is computed in, of the largest."""
    torch.manual_seed(width)
    x, delta = torch.randn(2, rows, width, dtype=torch.float64).to(dtype)
    weight = torch.linspace(0.5, 2, width, dtype=torch.float64).to(dtype)
    (total, _), (dx, ddelta, dw) = gradients_of(lambda *a: add_rms_norm(*a, impl=impl), x, delta, weight)
    _, exact = gradients_of(formula, total.double(), None, weight.double())
    assert torch.equal(dx, ddelta)
    unit = torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    for a, b in zip((dx, dw), exact, strict=True):
        assert a.dtype == dtype
        allowed = (max(rows, width) + 8) * unit * max(1.0, float(b.abs().max())) if b.numel() else 0.0
        torch.testing.assert_close(a.double(), b, rtol=torch.finfo(dtype).eps, atol=allowed)


def test_gradients_of_one_result_alone(impl):
    x, delta = torch.randn(2, 5, 33)
    weight = torch.linspace(0.5, 2, 33)

    def run(*inputs):
        return add_rms_norm(*inputs, impl=impl)

    _, (dx, ddelta, dw) = gradients_of(run, x, delta, weight, used=(True, False))
    assert torch.equal(dx, weights_like(x, 0)) and torch.equal(ddelta, dx) and dw is None
    _, (of_norm, _, dw) = gradients_of(run, x, delta, weight, used=(False, True))
    _, (of_both, _, dw_of_both) = gradients_of(run, x, delta, weight)
    torch.testing.assert_close(of_norm + dx, of_both)
    assert torch.equal(dw, dw_of_both)
    _, without = gradients_of(run, x + delta, None, weight)
    assert all(torch.equal(a, b) for a, b in zip(without, (of_both, dw), strict=True))


def test_cpp_gives_the_same_bits_on_any_number_of_threads():
    skip_unless_usable("add_rms_norm", "cpp", torch.device("cpu"))
    x, delta, weight = torch.randn(1500, 96), torch.randn(1500, 96), torch.randn(96)

    def run():
        results, gradients = gradients_of(lambda *a: add_rms_norm(*a, impl="cpp"), x, delta, weight)
        return *results, *gradients

    assert same_on_any_number_of_threads(run)


def test_the_operation_is_known_to_the_compiler(impl):
    x, delta, weight = torch.randn(3, 20), torch.randn(3, 20), torch.ones(20)
    for added in (delta, None):
        torch.library.opcheck(add_rms_norm_op, (x, added, weight, 1e-6, impl))
        inputs = [a if a is None else a.detach().requires_grad_() for a in (x, added, weight)]
        torch.library.opcheck(add_rms_norm_op, (*inputs, 1e-6, impl))
        torch.library.opcheck(add_rms_norm_backward_op, (x, added, delta, weight, 1e-6, impl))


def test_compiles_without_a_graph_break(impl):
    def plain(*inputs):
        return add_rms_norm(*inputs, impl=impl)

    run = torch.compile(plain, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (3, 5):
        inputs = torch.randn(rows, 20), torch.randn(rows, 20), torch.randn(20)
        assert all(torch.equal(a, b) for a, b in zip(run(*inputs, 1e-6), plain(*inputs, 1e-6), strict=True))
        for found, expected in zip(gradients_of(run, *inputs), gradients_of(plain, *inputs), strict=True):
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_wrong_arguments_are_named():
    x = torch.zeros(3, 6)
    with pytest.raises(ValueError, match=r"delta: expected shape \(3, 6\) to match x, got \(3, 5\)"):
        add_rms_norm(x, x[:, :5], x[0], 1e-6)
    with pytest.raises(ValueError, match=r"weight: expected shape \(6,\) to match x, got \(5,\)"):
        add_rms_norm(x, None, x[0, :5], 1e-6)
    with pytest.raises(ValueError, match="eps: expected a number of at least 0, got -1"):
        add_rms_norm(x, None, x[0], -1)
    with pytest.raises(TypeError, match="x: expected"):
        add_rms_norm(x.int(), None, x[0], 1e-6)
    with pytest.raises(TypeError, match="weight: expected torch.float32 to match x, got torch.float64"):
        add_rms_norm(x, None, x[0].double(), 1e-6)


def test_the_compiled_form_refuses_what_it_cannot_read():
    skip_unless_usable("add_rms_norm", "cpp", torch.device("cpu"))
    x, weight, run = torch.zeros(3, 4), torch.ones(4), torch.ops.lavit_cpp
    for delta, other, message in (
        (x[:2], weight, "delta: expected the shape of x"),
        (x.double(), weight, "delta: expected the dtype of x"),
        (None, weight[:3], r"x, weight: expected \(N, C\), \(C,\)"),
        (None, weight.double(), "weight: expected the dtype of x"),
    ):
        with pytest.raises(RuntimeError, match=message):
            run.add_rms_norm(x, delta, other, 1e-6, 0)
    with pytest.raises(RuntimeError, match="grad_normed: expected the shape of x"):
        run.add_rms_norm_backward(None, x[:1], x, weight, 1e-6, 0)
    with pytest.raises(RuntimeError, match="grad_sum: expected the shape of x"):
        run.add_rms_norm_backward(x[:1], x, x, weight, 1e-6, 0)
