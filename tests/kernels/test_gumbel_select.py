from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from lavit.kernels import gumbel_select
from lavit.kernels.gumbel_select.library import gumbel_select_op
from lavit.kernels.gumbel_select.reference import logistic_noise, odd_numbers, philox4x32

GOLDEN = Path(__file__).parents[1] / "golden"


def scores_of(batch, patches, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, patches, 2, generator=generator, dtype=torch.float64).to(dtype)


def words(*values):
    return tuple(torch.tensor([v]) for v in values)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    ],
)
def test_philox_gives_the_known_answers_of_random123(counter, key, expected):
    assert tuple(int(w) for w in philox4x32(words(*key), words(*counter))) == expected


@pytest.mark.parametrize("tau", [1.0, 0.5])
def test_golden_masks_and_probabilities(tau):
    golden = load_file(GOLDEN / "selector.safetensors")
    got = gumbel_select(golden["selector_logp"], noise=golden["gumbel_noise"], tau=tau)
    assert torch.equal(got.keep, golden[f"keep_mask_tau{tau}"])
    torch.testing.assert_close(got.prob, golden[f"gumbel_soft_tau{tau}"][..., 0], rtol=1e-12, atol=1e-15)


def test_given_noise_equals_the_hard_gumbel_softmax_of_pytorch_with_its_gradient():
    scores = scores_of(3, 7, torch.float64).requires_grad_()
    noise = -torch.empty(3, 7, 2, dtype=torch.float64).exponential_(generator=torch.Generator().manual_seed(1)).log()
    weight = torch.linspace(-1, 1, 21, dtype=torch.float64).view(3, 7)
    soft = F.softmax((scores + noise) / 0.7, dim=-1)[..., 0]
    hard = (soft >= 0.5).double() + soft - soft.detach()
    (expected,) = torch.autograd.grad((hard * weight).sum(), scores)
    got = gumbel_select(scores, noise=noise, tau=0.7)
    (grad,) = torch.autograd.grad((got.keep * weight).sum(), scores)
    torch.testing.assert_close(got.keep, hard, rtol=0, atol=1e-15)
    torch.testing.assert_close(grad, expected, rtol=1e-12, atol=1e-15)


def test_gradient_of_the_relaxed_probability():
    scores = scores_of(2, 3, torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: gumbel_select(s, seeds=torch.tensor([5, -6]), tau=0.7).prob, scores)


def test_uniform_numbers_are_exact_in_float32_and_never_0_or_1():
    t = odd_numbers(torch.tensor([0, -1, 2**62]), 4096)
    u = t.float() / 2**24
    assert torch.equal((u.double() * 2**24).long(), t)
    assert bool(((t % 2 == 1) & (t > 0) & (t < 2**24)).all())


def test_noise_is_logistic_and_unrelated_between_patches_images_and_calls():
    """2^18 draws: the empirical distribution function is within 2.2 / sqrt(n) (Kolmogorov, p = 1e-4)."""
    n = 2**18
    noise = logistic_noise(torch.arange(512), 512)
    u = noise.sigmoid().flatten().sort().values
    assert float((u - (torch.arange(n) + 0.5) / n).abs().max()) < 2.2 / n**0.5
    centred = noise.sigmoid() - 0.5
    for a, b in ((centred[:, 1:], centred[:, :-1]), (centred[1:], centred[:-1])):
        assert abs(float((a * b).mean()) * 12) < 4 / n**0.5
    torch.manual_seed(0)
    scores = torch.zeros(64, 256, 2)
    first, second = (gumbel_select(scores).keep - 0.5 for _ in range(2))
    assert abs(float((first * second).mean()) * 4) < 4 / first.numel() ** 0.5


def test_keep_rate_is_the_sigmoid_of_the_score_difference():
    d = torch.tensor([-3.0, -0.5, 0.0, 1.0, 4.0])
    scores = torch.stack((d, torch.zeros(5)), dim=1)[None].expand(20000, 5, 2)
    rate = gumbel_select(scores, seeds=torch.arange(20000), tau=0.3).keep.mean(dim=0)
    p = d.sigmoid()
    assert bool(((rate - p).abs() < 4.5 * (p * (1 - p) / 20000).sqrt()).all())


def test_manual_seed_governs_the_draw():
    scores = scores_of(4, 33)
    torch.manual_seed(3)
    first, second = gumbel_select(scores), gumbel_select(scores)
    torch.manual_seed(3)
    again = gumbel_select(scores)
    assert torch.equal(first.keep, again.keep) and torch.equal(first.prob, again.prob)
    assert not torch.equal(first.prob, second.prob)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 6), st.integers(0, 40), st.integers(0, 2**31), st.randoms())
def test_an_image_depends_on_its_seed_and_scores_only(batch, patches, seed, random):
    scores = scores_of(batch, patches, seed=seed)
    seeds = torch.tensor([random.randint(-(2**63), 2**63 - 1) for _ in range(batch)], dtype=torch.int64)
    got = gumbel_select(scores, seeds=seeds, min_keep=min(1, patches))
    for b in range(batch):
        alone = gumbel_select(scores[b : b + 1], seeds=seeds[b : b + 1], min_keep=min(1, patches))
        for whole, one in zip(got[:3], alone[:3], strict=True):
            assert torch.equal(whole[b], one[0])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 5), st.integers(0, 40), st.integers(0, 45), st.integers(0, 2**31))
def test_partition_is_stable_and_min_keep_adds_the_most_probable(batch, patches, least, seed):
    least = min(least, patches)
    scores = scores_of(batch, patches, seed=seed)
    seeds = torch.arange(batch)
    plain, got = gumbel_select(scores, seeds=seeds), gumbel_select(scores, seeds=seeds, min_keep=least)
    assert torch.equal(got.prob, plain.prob)
    for b in range(batch):
        kept = set(plain.keep[b].nonzero().flatten().tolist())
        best = sorted(range(patches), key=lambda i: (-float(plain.prob[b, i]), i))
        kept |= set(best[:least])
        order = sorted(kept) + [i for i in range(patches) if i not in kept]
        assert got.order[b].tolist() == order
        assert got.keep[b].tolist() == [float(i in kept) for i in range(patches)]
        assert int(got.cu_kept[b + 1] - got.cu_kept[b]) == len(kept)
        assert int(got.cu_dropped[b + 1] - got.cu_dropped[b]) == patches - len(kept)
    assert int(got.cu_kept[0]) == int(got.cu_dropped[0]) == 0


def test_deterministic_keeps_where_the_first_score_is_not_smaller():
    scores = torch.tensor([[[0.0, 1.0], [1.0, 1.0], [2.0, 1.0]]])
    got = gumbel_select(scores, deterministic=True, tau=2.0)
    assert got.keep.tolist() == [[0.0, 1.0, 1.0]]
    torch.testing.assert_close(got.prob, torch.tensor([[-0.5, 0.0, 0.5]]).sigmoid())


@pytest.mark.parametrize("mode", ["noise", "seeds", "deterministic"])
def test_nan_scores_are_dropped_without_gradient_whatever_min_keep_asks(mode):
    scores = torch.tensor([[[float("nan"), 0.0], [-9.0, 9.0], [0.0, float("nan")]]], requires_grad=True)
    given_ = {"noise": torch.zeros(1, 3, 2), "seeds": torch.tensor([1]), "deterministic": True}[mode]
    got = gumbel_select(scores, min_keep=3, **{mode: given_})
    (got.keep + got.prob).sum().backward()
    assert got.keep.tolist() == [[0.0, 1.0, 0.0]]
    assert got.prob[0, 0] == 0 and bool(scores.grad.isfinite().all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_scores_are_computed_in_float32(dtype):
    half = scores_of(2, 9, dtype)
    got, expected = (gumbel_select(s, seeds=torch.tensor([1, 2])) for s in (half, half.float()))
    assert got.keep.dtype == got.prob.dtype == torch.float32
    assert torch.equal(got.prob, expected.prob) and torch.equal(got.order, expected.order)


@pytest.mark.parametrize(("batch", "patches"), [(0, 5), (3, 0), (2, 1)])
@pytest.mark.parametrize("mode", ["seeds", "noise", None])
def test_opcheck(batch, patches, mode):
    scores = scores_of(batch, patches).requires_grad_()
    noise = torch.zeros(batch, patches, 2) if mode == "noise" else None
    seeds = torch.arange(batch) if mode == "seeds" else None
    torch.library.opcheck(gumbel_select_op, (scores, noise, seeds, 0.7, min(1, patches), "auto"))


def test_compiles_without_a_graph_break():
    @torch.compile(fullgraph=True, dynamic=True, backend="aot_eager")
    def run(scores, seeds):
        return gumbel_select(scores, seeds=seeds, min_keep=1)

    for batch in (2, 3):
        scores, seeds = scores_of(batch, 11).requires_grad_(), torch.arange(batch)
        got, expected = run(scores, seeds), gumbel_select(scores, seeds=seeds, min_keep=1)
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
        got.prob.sum().backward()


@pytest.mark.parametrize(
    ("scores", "options", "error", "message"),
    [
        (torch.zeros(2, 3), {}, ValueError, r"scores: expected shape \(B, N, 2\), got \(2, 3\)"),
        (torch.zeros(2, 3, 4), {}, ValueError, r"scores: expected shape \(B, N, 2\), got \(2, 3, 4\)"),
        (torch.zeros(2, 3, 2).int(), {}, TypeError, "scores: expected a float64"),
        (torch.zeros(2, 3, 2), {"tau": 0.0}, ValueError, "tau: expected a positive number, got 0.0"),
        (torch.zeros(2, 3, 2), {"min_keep": 4}, ValueError, "min_keep: expected 0 to 3"),
        (torch.zeros(2, 3, 2), {"seeds": torch.zeros(3).long()}, ValueError, r"seeds: expected shape \(2,\) to match"),
        (torch.zeros(2, 3, 2), {"seeds": torch.zeros(2)}, TypeError, "seeds: expected int64, got torch.float32"),
        (torch.zeros(2, 3, 2), {"noise": torch.zeros(2, 3)}, ValueError, r"noise: expected shape \(2, 3, 2\)"),
        (
            torch.zeros(2, 3, 2),
            {"seeds": torch.zeros(2).long(), "deterministic": True},
            ValueError,
            "expected at most one of them",
        ),
    ],
)
def test_wrong_arguments_are_named(scores, options, error, message):
    with pytest.raises(error, match=message):
        gumbel_select(scores, **options)
