import pytest
import torch

from lavit.kernels import add_rms_norm
from lavit.kernels.add_rms_norm import cpp

IMPLEMENTATIONS = [
    "reference",
    pytest.param("cpp", marks=pytest.mark.skipif(cpp.unusable("cpu") is not None, reason=f"{cpp.unusable('cpu')}")),
]


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
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


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_not_a_number_stays_in_its_row(impl):
    x = torch.ones(3, 40)
    x[1, 7], x[2, 5] = torch.nan, torch.inf
    total, normed = add_rms_norm(x, torch.zeros_like(x), torch.ones(40), 0.0, impl=impl)
    assert torch.equal(normed[0], torch.ones(40)) and normed[1].isnan().all() and normed[2, 5].isnan()
    assert total[1].isnan().sum() == 1


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_the_operation_is_known_to_the_compiler(impl):
    x = torch.randn(3, 20)
    torch.library.opcheck(torch.ops.lavit.add_rms_norm.default, (x, x, torch.ones(20), 1e-6, impl))
    torch.library.opcheck(torch.ops.lavit.add_rms_norm.default, (x, None, torch.ones(20), 1e-6, impl))


def test_compiles_without_a_graph_break():
    run = torch.compile(add_rms_norm, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (3, 5):
        x, delta, weight = torch.randn(rows, 20), torch.randn(rows, 20), torch.randn(20)
        expected = add_rms_norm(x, delta, weight, 1e-6)
        assert all(torch.equal(a, b) for a, b in zip(run(x, delta, weight, 1e-6), expected, strict=True))


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
