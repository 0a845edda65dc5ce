"""The quantizer: golden ids, the straight-through gradient, and how the codebook learns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from golden_tensors import golden, golden_config, relative
from processes import on_two_processes
from torch import Tensor
from torch.nn import functional as F

from lavit.tokenizer import LaVITTokenizerConfig
from lavit.tokenizer.quantizer import Quantizer, scramble


def small(**overrides: Any) -> Quantizer:
    torch.manual_seed(0)
    quantizer = Quantizer(LaVITTokenizerConfig(**{"code_dim": 4, "num_codes": 8, **overrides}))
    quantizer.embedding.weight.copy_(F.normalize(torch.randn(8, 4), dim=1))
    return quantizer


def clear(z: Tensor, codebook: Tensor, rounding: float) -> Tensor:
    """Rows whose best code in float64 stays the best when vectors and codes are rounded: the error of |x - c|^2 is at
    most 6 roundings of |x| |c| (the vector, its norm, the code; the factor 2) and 2 of |c|^2."""
    norms = codebook.norm(dim=1)
    distance = torch.cdist(F.normalize(z, dim=1), codebook).square()
    error = rounding * (6 * norms + 2 * norms.square())
    best = distance.argmin(dim=1, keepdim=True)
    others = (distance - error).scatter(1, best, torch.inf).amin(dim=1)
    return (distance + error).gather(1, best)[:, 0] < others


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_ids_and_codes_equal_golden(dtype: torch.dtype) -> None:
    tensors = golden("quantizer")
    codebook = tensors["codebook_unnormalized"]
    quantizer = Quantizer(golden_config()).to(dtype).eval()
    quantizer.embedding.weight.copy_(codebook)
    out = quantizer(tensors["z"].to(dtype))
    # Half a unit in the last place; in float32 the sum over 32 products adds its own.
    rounding = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.bfloat16: 2.0**-9}[dtype]
    sure = clear(tensors["z"], codebook, rounding if dtype == torch.bfloat16 else 32 * rounding)
    assert sure.float().mean() > (0.25 if dtype == torch.bfloat16 else 0.99)
    assert torch.equal(out.ids[sure], tensors["indices_unnormalized"][sure])
    assert relative(out.codes[sure], tensors["z_q_unnormalized"][sure]) < 2 * rounding


def test_ids_of_unit_codes_equal_golden() -> None:
    """The file keeps the codes of this case only as `z_q`; the ones that nothing chose do not matter."""
    tensors = golden("quantizer")
    ids, z_q = tensors["indices"], tensors["z_q"]
    quantizer = Quantizer(golden_config()).double().eval()
    quantizer.embedding.weight.fill_(torch.inf)
    quantizer.embedding.weight[ids] = z_q
    assert torch.equal(quantizer.nearest(tensors["z"]), ids)


def test_gradient_goes_straight_through_and_the_commitment_pulls_to_the_code() -> None:
    quantizer = small().eval().double()
    z = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    out = quantizer(z)
    weight = torch.randn(5, 4, dtype=torch.float64)
    (through,) = torch.autograd.grad((out.codes * weight).sum(), z, retain_graph=True)
    (unit,) = torch.autograd.grad((F.normalize(z, dim=1) * weight).sum(), z)
    torch.testing.assert_close(through, unit)
    codes = quantizer.lookup(out.ids)
    torch.testing.assert_close(out.codes.detach(), codes)
    torch.testing.assert_close(out.commitment, (F.normalize(z, dim=1) - codes).square().mean())


def test_codes_become_the_moving_average_of_their_vectors() -> None:
    quantizer = small(ema_decay=0.75, dead_code_fraction=0.0, unit_codes=False).double()
    unit = F.normalize(torch.randn(40, 4, dtype=torch.float64), dim=1)
    before = quantizer.codebook().clone()
    ids = quantizer(unit).ids
    for code in range(8):
        mine = unit[ids == code]
        size = 0.75 + 0.25 * len(mine)
        expected = (0.75 * before[code] + 0.25 * mine.sum(0)) / size if len(mine) else before[code]
        torch.testing.assert_close(quantizer.codebook()[code], expected)
        assert quantizer.cluster_size[code].item() == pytest.approx(size)
    assert quantizer.usage().tolist() == ids.bincount(minlength=8).tolist()


def test_learned_codes_keep_unit_norm() -> None:
    quantizer = small()
    for _ in range(3):
        quantizer(torch.randn(40, 4))
    torch.testing.assert_close(quantizer.codebook().norm(dim=1), torch.ones(8))


def test_evaluation_moves_nothing() -> None:
    quantizer = small().eval()
    before = {k: v.clone() for k, v in quantizer.state_dict().items()}
    quantizer(torch.randn(40, 4))
    assert all(torch.equal(v, before[k]) for k, v in quantizer.state_dict().items())
    assert quantizer.usage().sum() == 0


def test_dead_codes_are_replaced_by_different_vectors_of_the_batch() -> None:
    quantizer = small()
    quantizer.cluster_size[:] = torch.tensor([1, 1, 1, 1, 0, 0, 0, 0])
    # Far from the batch, so that the dead ones stay without use.
    quantizer.embedding.weight[4:] = torch.tensor([-1.0, 0, 0, 0])
    unit = F.normalize(torch.randn(40, 4).abs(), dim=1)
    quantizer(unit)
    match = (quantizer.codebook()[4:, None] == unit[None]).all(-1)
    assert match.any(1).all(), "every dead code is one of the vectors"
    assert match.float().argmax(1).unique().numel() == 4, "and no two of them the same one"
    assert torch.equal(quantizer.cluster_size[4:], quantizer.cluster_size[4].expand(4))


def test_rows_with_nan_have_no_code_and_teach_nothing() -> None:
    with_nan, without = small(), small()
    z = torch.randn(12, 4)
    spoiled = z.clone()
    spoiled[[3, 7], 1] = torch.tensor([torch.nan, torch.inf])
    good = torch.tensor([i not in (3, 7) for i in range(12)])
    out = with_nan(spoiled)
    assert out.ids[[3, 7]].tolist() == [-1, -1]
    assert torch.equal(out.ids[good], without(z[good]).ids)
    assert torch.equal(with_nan.usage(), without.usage())
    assert with_nan.codebook().isfinite().all()
    assert out.commitment.isnan(), "the loss must show that something was wrong"


def test_a_batch_without_rows_leaves_the_codes() -> None:
    quantizer = small()
    before = quantizer.codebook().clone()
    out = quantizer(torch.zeros(0, 4))
    assert torch.equal(quantizer.codebook(), before)
    assert out.commitment == 0


def test_uncounted_rows_teach_nothing() -> None:
    z, counted = torch.randn(12, 4), torch.arange(12) % 3 > 0
    a, b = small(), small()
    all_rows, some = a(z, counted), b(z[counted])
    assert torch.equal(all_rows.ids[counted], some.ids)
    torch.testing.assert_close(all_rows.commitment, some.commitment)
    torch.testing.assert_close(a.cluster_size, b.cluster_size)


def test_an_optimizer_s_step_moves_the_codebook_once_by_all_that_came_before_it() -> None:
    parts, whole = small(ema_decay=0.5), small(ema_decay=0.5)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])
    batches = torch.randn(2, 40, 4)
    before = parts.codebook().clone()
    with parts.moving_with(optimizer):
        parts(torch.randn(40, 4))
        parts.forget()  # that step is skipped
        for steps in range(2):
            for z in batches[steps].split([30, 0, 10]):
                parts(z)
            if steps == 0:
                assert torch.equal(parts.codebook(), before)
            optimizer.step()
            whole(batches[steps])
    assert torch.equal(parts.codebook(), whole.codebook()) and parts.updates == whole.updates == 2
    assert torch.equal(parts.usage(), whole.usage())
    optimizer.step()
    assert parts.updates == 2
    parts(batches[0])
    assert parts.updates == 3, "outside, forward moves it"


def test_saved_state_continues_to_the_same_codebook() -> None:
    a = small()
    batches = torch.randn(6, 40, 4)
    for z in batches[:3]:
        a(z)
    b = small()
    b.load_state_dict(a.state_dict())
    for z in batches[3:]:
        a(z)
        b(z)
    assert torch.equal(a.codebook(), b.codebook())


def test_k_means_finds_the_clusters_and_is_deterministic() -> None:
    torch.manual_seed(1)
    centres = F.normalize(torch.randn(8, 4), dim=1)
    vectors = (centres.repeat(50, 1) + 0.01 * torch.randn(400, 4)) * torch.rand(400, 1).add(0.5)
    a, b, c = small(), small(), small()
    a.initialize(vectors, seed=3)
    b.initialize(vectors, seed=3)
    c.initialize(vectors, seed=4)
    assert torch.equal(a.codebook(), b.codebook()) and not torch.equal(a.codebook(), c.codebook())
    torch.testing.assert_close(a.codebook().norm(dim=1), torch.ones(8))
    spread = 1 - (F.normalize(vectors, dim=1) @ a.codebook().T).amax(1).mean()
    assert spread < 1 - (F.normalize(vectors, dim=1) @ small().codebook().T).amax(1).mean()
    assert a.cluster_size.mean().item() == pytest.approx(1)


def test_k_means_with_few_or_bad_vectors() -> None:
    quantizer = small()
    quantizer.initialize(torch.randn(3, 4))
    assert quantizer.codebook().isfinite().all()
    with pytest.raises(ValueError, match=r"vectors: expected shape \(n, 4\) with n >= 1, got \(0, 4\)"):
        quantizer.initialize(torch.zeros(0, 4))
    with pytest.raises(ValueError, match="vectors: expected at least one finite row"):
        quantizer.initialize(torch.full((2, 4), torch.nan))


def test_perplexity_counts_codes_in_equal_use() -> None:
    assert Quantizer.perplexity(torch.tensor([5.0, 5, 5, 0])).item() == pytest.approx(3)
    assert Quantizer.perplexity(torch.zeros(4)).item() == 0


def test_scrambled_order_is_fair() -> None:
    """Each of 64 rows comes first about equally often over 6400 updates: 100 +- 5 standard deviations."""
    counts = scramble(torch.arange(64), torch.arange(6400)[:, None]).argmin(1).bincount(minlength=64)
    assert (counts - 100).abs().max() < 50


def train_two_ranks(rank: int, folder: str) -> None:
    torch.manual_seed(rank)
    quantizer = small(ema_decay=0.5)
    torch.manual_seed(rank)
    quantizer.initialize(torch.randn(30, 4), iterations=2)
    for step in range(4):
        # One rank may have no token at all in a step; codes die because the later batches are narrow.
        rows = 0 if (step, rank) == (2, 1) else 20 + rank
        quantizer(torch.randn(rows, 4).abs() + torch.tensor([3.0, 0, 0, 0]))
    torch.save({**quantizer.state_dict(), "usage": quantizer.usage()}, f"{folder}/{rank}.pt")


def test_two_ranks_end_with_identical_codebooks(tmp_path: Any) -> None:
    on_two_processes(train_two_ranks, tmp_path)
    a, b = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert a["usage"].sum() == 20 * 4 + 21 * 3
    assert (a["embedding.weight"][:, 0] > 0.5).all(), "dead codes were replaced by vectors of the narrow batches"
