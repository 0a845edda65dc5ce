import pytest
import torch

from lavit.kernels import layer_norm


def test_equals_the_formula_in_float64():
    x = torch.randn(3, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weight, bias = torch.linspace(1, 2, 7, dtype=torch.float64), torch.linspace(-1, 1, 7, dtype=torch.float64)
    centred = x - x.mean(dim=-1, keepdim=True)
    expected = centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt() * weight + bias
    torch.testing.assert_close(layer_norm(x, weight, bias, 1e-5), expected, rtol=1e-12, atol=1e-12)


def test_compiles_without_a_graph_break():
    run = torch.compile(layer_norm, fullgraph=True, dynamic=True, backend="aot_eager")
    for n in (3, 4):
        x, weight, bias = torch.randn(n, 6), torch.ones(6), torch.zeros(6)
        torch.testing.assert_close(run(x, weight, bias, 1e-6), layer_norm(x, weight, bias, 1e-6))


def test_wrong_arguments_are_named():
    x, weight, bias = torch.zeros(3, 6), torch.ones(6), torch.zeros(5)
    with pytest.raises(ValueError, match=r"bias: expected shape \(6,\) to match x, got \(5,\)"):
        layer_norm(x, weight, bias, 1e-6)
    with pytest.raises(RuntimeError, match="layer_norm cannot run 'apex' on cpu: apex's layer norm runs on CUDA only"):
        layer_norm(x, weight, weight, 1e-6, impl="apex")
