"""Rows to int8 and sums of int32 back: the compiled form against the definitions, and what both refuse."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from usable import skip_unless_usable

from lavit.kernels.int8_rows import OPERATION, gelu_products, quantize_rows, reference, scale_products

CPU = torch.device("cpu")
IMPLS = list(OPERATION.implementations)
SHAPES = [(1, 1), (3, 17), (9, 1408), (2, 6145), (0, 8), (4, 0)]


def rows_of(shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * torch.logspace(-6, 6, shape[0]).unsqueeze(1)
    return x.to(dtype)


def sums(shape: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    m, n = shape
    products = torch.randint(-(2**20), 2**20, shape, dtype=torch.int32, generator=g)
    return products, torch.rand(m, generator=g) * 1e-3, torch.rand(n, generator=g) * 1e-2, torch.randn(n, generator=g)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_rows_are_off_by_half_a_step_at_most(impl: str, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    skip_unless_usable("int8_rows", impl, CPU)
    x = rows_of(shape, dtype)
    q, scale = quantize_rows(x, impl=impl)
    assert q.dtype == torch.int8 and scale.dtype == torch.float32 and q.shape == x.shape
    off = (q.double() * scale.double().unsqueeze(1) - x.double()).abs()
    # Half a step, and half of one more where the largest value meets the end of int8's range.
    assert (off <= scale.double().unsqueeze(1) * (0.5 + 1e-4)).all()


@pytest.mark.parametrize("impl", IMPLS)
def test_a_row_depends_on_no_other(impl: str) -> None:
    skip_unless_usable("int8_rows", impl, CPU)
    x = rows_of((9, 77), torch.float32)
    q, scale = quantize_rows(x, impl=impl)
    alone = [quantize_rows(row, impl=impl) for row in x.split(1)]
    assert torch.equal(q, torch.cat([one[0] for one in alone]))
    assert torch.equal(scale, torch.cat([one[1] for one in alone]))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_shows_in_its_rows_scale_alone(impl: str, value: float) -> None:
    skip_unless_usable("int8_rows", impl, CPU)
    x = rows_of((3, 40), torch.float32)
    x[1, 7] = value
    q, scale = quantize_rows(x, impl=impl)
    assert scale.isfinite().tolist() == [True, False, True]
    assert not q[1].any()
    out = scale_products(q.int(), scale, torch.ones(40), torch.zeros(40), impl=impl)
    assert not out[1].isfinite().any() and out[::2].isfinite().all()


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_sums_are_scaled_up_to_rounding(
    impl: str, dtype: torch.dtype, residual: bool, shape: tuple[int, int]
) -> None:
    skip_unless_usable("int8_rows", impl, CPU)
    products, rows, columns, bias = sums(shape)
    added = torch.randn(shape).to(dtype) if residual else None
    out = scale_products(products, rows, columns, bias, dtype=dtype, residual=added, impl=impl)
    scaled = products.double() * rows.double().unsqueeze(1) * columns.double()
    terms = [scaled, bias.double().expand_as(scaled)] + ([added.double()] if added is not None else [])
    size = torch.stack([term.abs() for term in terms]).sum(0)
    allowed = 4 * torch.finfo(torch.float32).eps * size + torch.finfo(dtype).eps * size * (dtype == torch.bfloat16)
    assert out.dtype == dtype
    assert ((out.double() - sum(terms)).abs() <= allowed).all()


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("shape", SHAPES)
def test_gelu_is_off_by_half_a_step_at_most(impl: str, shape: tuple[int, int]) -> None:
    skip_unless_usable("int8_rows", impl, CPU)
    products, rows, columns, bias = sums(shape)
    q, scale = gelu_products(products, rows, columns, bias, impl=impl)
    x = products.double() * rows.double().unsqueeze(1) * columns.double() + bias.double()
    wanted = torch.nn.functional.gelu(x)
    off = (q.double() * scale.double().unsqueeze(1) - wanted).abs()
    # Beside half a step the error function's 1.5e-7 and float32's rounding of its argument.
    assert (off <= 0.5001 * scale.double().unsqueeze(1) + 1e-6 * x.abs() + 1e-7).all()


def test_gelu_follows_the_exact_one_over_its_whole_range() -> None:
    skip_unless_usable("int8_rows", "cpp", CPU)
    x = torch.cat((torch.linspace(-14, 14, 4001), torch.tensor([-1e30, 1e30, 0.0, -0.0, 1e-30])))
    ones = torch.ones(1)
    for value in x.split(1):  # a row of one value, which its scale then tells exactly
        _, scale = gelu_products(torch.zeros(1, 1, dtype=torch.int32), ones, ones, value, impl="cpp")
        wanted = torch.nn.functional.gelu(value.double()).abs()
        floor = reference.LEAST * reference.STEPS
        assert abs(float(scale) * reference.STEPS - float(wanted.clamp(min=floor))) <= 3e-7 * max(1.0, float(wanted))


@pytest.mark.parametrize("impl", IMPLS)
def test_the_operations_are_known_to_the_compiler(impl: str) -> None:
    skip_unless_usable("int8_rows", impl, CPU)
    ops, given = torch.ops.lavit, sums((3, 4))
    torch.library.opcheck(ops.quantize_rows.default, (rows_of((3, 4), torch.bfloat16), impl))
    torch.library.opcheck(ops.gelu_products.default, (*given, impl))
    for residual in (None, torch.ones(3, 4, dtype=torch.bfloat16)):
        torch.library.opcheck(ops.scale_products.default, (*given, torch.bfloat16, residual, impl))


def test_compiles_without_a_graph_break() -> None:
    def plain(x: Tensor, *given: Tensor) -> tuple[Tensor, ...]:
        scaled = scale_products(*given, dtype=x.dtype, residual=x)
        return scaled, *quantize_rows(scaled), *gelu_products(*given)

    run = torch.compile(plain, fullgraph=True, dynamic=True, backend="aot_eager")
    for shape in ((3, 4), (5, 9)):
        given = rows_of(shape, torch.float32), *sums(shape)
        assert all(torch.equal(a, b) for a, b in zip(run(*given), plain(*given), strict=True))


def test_wrong_arguments_are_named() -> None:
    products, rows, columns, bias = sums((3, 4))
    for arguments, message in [
        ((products.float(), rows, columns, bias), "products: expected"),
        ((products, rows[:2], columns, bias), "rows: expected shape"),
        ((products, rows, columns.double(), bias), "columns: expected float32"),
        ((products, rows, columns, bias[:1]), "bias: expected shape"),
    ]:
        with pytest.raises(ValueError, match=message):
            gelu_products(*arguments)
    with pytest.raises(ValueError, match="residual: expected torch.float32"):
        scale_products(products, rows, columns, bias, residual=torch.zeros(3, 4, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match=r"x: expected shape \(M, K\)"):
        quantize_rows(torch.zeros(3))
