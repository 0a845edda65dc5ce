import pytest
import torch
from gradients import same_on_any_number_of_threads, with_gradients
from torch.nn import functional as F
from usable import chosen_form, skip_unless_usable

from lavit.kernels import swiglu
from lavit.kernels.swiglu.library import swiglu_backward_op, swiglu_op

pytestmark = pytest.mark.usefixtures("poisoned")


@pytest.fixture(params=["reference", "cpp 16", "cpp 32", "cpp 64"])
def impl(request, monkeypatch):
    return chosen_form("swiglu", request.param, monkeypatch)


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 40_003])
def test_output_and_gradients_are_those_of_the_formula_in_float64(impl, count):
    gate = torch.linspace(-100, 100, count) if count > 100 else torch.linspace(-3, 3, count)
    up = torch.linspace(1, -2, count)
    got = with_gradients(lambda g, u: swiglu(g, u, impl=impl), gate, up)
    exact = with_gradients(lambda g, u: F.silu(g) * u, gate.double(), up.double())
    # The sigmoid within 4 units, four more products and sums; 1 + g (1 - s) is small beside its terms near -1.3.
    for a, b in zip(got, exact, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=2**-20, atol=2**-21)


def test_small_gates_are_right_beside_large_inputs(impl):
    """Relative to what they are: e^-80 of 1e30 is not nothing. Beyond float32's least number nothing is left."""
    gate, up = torch.tensor([-80.0, -60.0, -45.0, -44.0, -20.0]), torch.full((5,), 1e30)
    got = with_gradients(lambda g, u: swiglu(g, u, impl=impl), gate, up)
    for a, b in zip(got, with_gradients(lambda g, u: F.silu(g) * u, gate.double(), up.double()), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=2**-18, atol=0)
    assert not swiglu(torch.tensor([-1e30, -200.0]), torch.ones(2), impl=impl).any()


@pytest.mark.parametrize("impl", ["auto", "reference"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes_are_computed_as_pytorch_does(impl, dtype):
    """The gradients with one rounding, where PyTorch's two operations have two or three, of numbers up to about 20."""
    gate, up = torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    found, *gradients = with_gradients(lambda g, u: swiglu(g, u, impl=impl), gate, up)
    expected, *theirs = with_gradients(lambda g, u: F.silu(g) * u, gate, up)
    assert torch.equal(found, expected)
    for a, b in zip(gradients, theirs, strict=True):
        assert a.dtype == dtype
        torch.testing.assert_close(a, b, rtol=4 * torch.finfo(dtype).eps, atol=4 * torch.finfo(dtype).eps)


def test_gradient_is_that_of_finite_differences():
    gate, up = torch.randn(2, 3, 4, dtype=torch.float64).requires_grad_().unbind()
    assert torch.autograd.gradcheck(lambda g, u: swiglu(g, u), (gate, up))


def test_not_a_number_stays_in_its_place(impl):
    gate = torch.randn(9, 4)
    gate[3, 1] = torch.nan
    assert torch.equal(swiglu(gate, torch.ones(9, 4), impl=impl).isnan(), gate.isnan())


def test_any_strides_are_taken(impl):
    both = torch.randn(9, 8)
    parts = both.chunk(2, dim=1)
    got = with_gradients(lambda g, u: swiglu(g, u, impl=impl).t(), *parts)
    expected = with_gradients(lambda g, u: swiglu(g, u, impl=impl).t(), *(x.contiguous() for x in parts))
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)  # PyTorch computes strided exponentials one by one


def test_cpp_gives_the_same_bits_on_any_number_of_threads():
    skip_unless_usable("swiglu", "cpp", torch.device("cpu"))
    gate, up = torch.randn(2, 1500, 96)
    assert same_on_any_number_of_threads(lambda: with_gradients(lambda g, u: swiglu(g, u, impl="cpp"), gate, up))


def test_the_operation_is_known_to_the_compiler(impl):
    gate, up = (torch.randn(3, 5).requires_grad_() for _ in range(2))
    torch.library.opcheck(swiglu_op, (gate, up, impl))
    torch.library.opcheck(swiglu_backward_op, (torch.randn(3, 5), gate.detach(), up.detach(), impl))


def test_compiles_without_a_graph_break(impl):
    def plain(gate, up):
        return swiglu(gate, up, impl=impl)

    run = torch.compile(plain, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (3, 5):
        inputs = torch.randn(2, rows, 20).unbind()
        pairs = zip(with_gradients(run, *inputs), with_gradients(plain, *inputs), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


def test_wrong_arguments_are_named():
    x = torch.zeros(3, 4)
    with pytest.raises(ValueError, match=r"up: expected shape \(3, 4\) to match gate, got \(2, 4\)"):
        swiglu(x, x[:2])
    with pytest.raises(TypeError, match="up: expected torch.float32 to match gate, got torch.float64"):
        swiglu(x, x.double())
    with pytest.raises(TypeError, match="gate: expected a float64, float32"):
        swiglu(x.int(), x.int())


def test_the_compiled_form_refuses_what_it_cannot_read():
    skip_unless_usable("swiglu", "cpp", torch.device("cpu"))
    x, run = torch.zeros(3, 4), torch.ops.lavit_cpp
    with pytest.raises(RuntimeError, match="up: expected float32 like gate"):
        run.swiglu(x, x[:2], 0)
    with pytest.raises(RuntimeError, match="up: expected float32 like gate"):
        run.swiglu(x, x.double(), 0)
    with pytest.raises(RuntimeError, match="gate: expected"):
        run.swiglu(x.t(), x, 0)
    with pytest.raises(RuntimeError, match="grad: expected float32 like gate"):
        run.swiglu_backward(x[:1], x, x, 0)
