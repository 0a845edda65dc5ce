from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from selection_scores import scores_of
from usable import gpu_waits, skip_unless_usable

from lavit.kernels import Selection, gumbel_select
from lavit.kernels.gumbel_select.library import gumbel_select_backward_op, gumbel_select_op
from lavit.kernels.gumbel_select.reference import logistic_noise, odd_numbers, philox4x32

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(params=["reference", "triton", "cpp"])
def impl(request, device):
    skip_unless_usable("gumbel_select", request.param, device)
    return request.param


@pytest.fixture
def select(impl, device):
    """gumbel_select by one implementation on one device, from and to tensors on the CPU."""

    def run(scores, **options):
        moved = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in options.items()}
        return Selection(*(t.cpu() for t in gumbel_select(scores.to(device), impl=impl, **moved)))

    return run


def many_examples(count):
    """The fixture is the same for every example, so that it need not be made anew."""
    return settings(max_examples=count, suppress_health_check=[HealthCheck.function_scoped_fixture])


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
def test_golden_masks_and_probabilities(select, tau):
    golden = load_file(GOLDEN / "selector.safetensors")
    got = select(golden["selector_logp"], noise=golden["gumbel_noise"], tau=tau)
    assert torch.equal(got.keep, golden[f"keep_mask_tau{tau}"])
    torch.testing.assert_close(got.prob, golden[f"gumbel_soft_tau{tau}"][..., 0], rtol=1e-12, atol=1e-15)


def test_given_noise_equals_the_hard_gumbel_softmax_of_pytorch_with_its_gradient(select):
    scores = scores_of(3, 7, torch.float64).requires_grad_()
    torch.manual_seed(1)
    noise = -torch.empty_like(scores).exponential_().log()
    torch.manual_seed(1)
    hard = F.gumbel_softmax(scores, tau=0.7, hard=True)[..., 0]
    weight = torch.linspace(-1, 1, 21, dtype=torch.float64).view(3, 7)
    (expected,) = torch.autograd.grad((hard * weight).sum(), scores)
    got = select(scores, noise=noise, tau=0.7)
    (grad,) = torch.autograd.grad((got.keep * weight).sum(), scores)
    torch.testing.assert_close(got.keep, hard, rtol=0, atol=1e-15)
    torch.testing.assert_close(grad, expected, rtol=1e-12, atol=1e-15)


def test_gradient_of_the_relaxed_probability(select):
    scores = scores_of(2, 3, torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: select(s, seeds=torch.tensor([5, -6]), tau=0.7).prob, scores)


def test_keep_and_prob_have_the_same_gradient_and_it_adds_up(select):
    """0.5 and 0.25 in the scores' own dtype: sums and products by them are exact."""
    scores = scores_of(2, 5, torch.bfloat16).requires_grad_()
    got = select(scores, seeds=torch.tensor([1, 2]))
    by_keep, by_prob, both = (
        torch.autograd.grad(loss, scores, retain_graph=True)[0]
        for loss in (got.keep.sum() / 2, got.prob.sum() / 4, (got.keep / 2 + got.prob / 2).sum())
    )
    assert by_keep.dtype == torch.bfloat16 and bool(by_keep.any())
    assert torch.equal(by_keep, 2 * by_prob) and torch.equal(by_keep * 2, both)


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


def test_decisions_of_two_calls_are_unrelated(select):
    scores = torch.zeros(8, 2048, 2)
    first, second = (select(scores).keep - 0.5 for _ in range(2))
    assert abs(float((first * second).mean()) * 4) < 4 / first.numel() ** 0.5


def test_keep_rate_is_the_sigmoid_of_the_score_difference(select):
    """Five differences, 16384 draws each, in 20 images of 4096 patches."""
    p = torch.tensor([-3.0, -0.5, 0.0, 1.0, 4.0]).sigmoid()
    d = p.logit().repeat(16384).view(20, 4096)
    keep = select(torch.stack((d, torch.zeros_like(d)), dim=2), seeds=torch.arange(20), tau=0.3).keep
    rate = keep.view(16384, 5).mean(dim=0)
    assert bool(((rate - p).abs() < 4.5 * (p * (1 - p) / 16384).sqrt()).all())


def test_manual_seed_governs_the_draw(select):
    scores = scores_of(4, 33)
    torch.manual_seed(3)
    first, second = select(scores), select(scores)
    torch.manual_seed(3)
    again = select(scores)
    assert torch.equal(first.keep, again.keep) and torch.equal(first.prob, again.prob)
    assert not torch.equal(first.prob, second.prob)


@many_examples(15)
@given(batch=st.integers(0, 6), patches=st.integers(0, 40), seed=st.integers(0, 2**31), random=st.randoms())
def test_an_image_depends_on_its_seed_and_scores_only(select, batch, patches, seed, random):
    scores = scores_of(batch, patches, seed=seed)
    seeds = torch.tensor([random.randint(-(2**63), 2**63 - 1) for _ in range(batch)], dtype=torch.int64)
    got = select(scores, seeds=seeds, min_keep=min(1, patches))
    for b in range(batch):
        alone = select(scores[b : b + 1], seeds=seeds[b : b + 1], min_keep=min(1, patches))
        for whole, one in zip(got[:3], alone[:3], strict=True):
            assert torch.equal(whole[b], one[0])


@many_examples(25)
@given(batch=st.integers(0, 5), patches=st.integers(0, 40), least=st.integers(0, 45), seed=st.integers(0, 2**31))
def test_partition_is_stable_and_min_keep_adds_the_most_probable(select, batch, patches, least, seed):
    least = min(least, patches)
    scores = scores_of(batch, patches, seed=seed)
    seeds = torch.arange(batch)
    plain, got = select(scores, seeds=seeds), select(scores, seeds=seeds, min_keep=least)
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


def test_deterministic_keeps_where_the_first_score_is_not_smaller(select):
    scores = torch.tensor([[[0.0, 1.0], [1.0, 1.0], [2.0, 1.0]]])
    got = select(scores, deterministic=True, tau=2.0)
    assert got.keep.tolist() == [[0.0, 1.0, 1.0]]
    torch.testing.assert_close(got.prob, torch.tensor([[-0.5, 0.0, 0.5]]).sigmoid())


@pytest.mark.parametrize("mode", ["noise", "seeds", "deterministic"])
def test_nan_scores_are_dropped_without_gradient_whatever_min_keep_asks(select, mode):
    scores = torch.tensor([[[float("nan"), 0.0], [-9.0, 9.0], [0.0, float("nan")]]], requires_grad=True)
    given_ = {"noise": torch.zeros(1, 3, 2), "seeds": torch.tensor([1]), "deterministic": True}[mode]
    got = select(scores, min_keep=3, **{mode: given_})
    (got.keep + got.prob).sum().backward()
    assert got.keep.tolist() == [[0.0, 1.0, 0.0]]
    assert got.prob[0, 0] == 0 and bool(scores.grad.isfinite().all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_scores_are_computed_in_float32(select, dtype):
    half = scores_of(2, 9, dtype)
    got, expected = (select(s, seeds=torch.tensor([1, 2])) for s in (half, half.float()))
    assert got.keep.dtype == got.prob.dtype == torch.float32
    assert torch.equal(got.prob, expected.prob) and torch.equal(got.order, expected.order)


@pytest.mark.parametrize(("batch", "patches"), [(0, 5), (3, 0), (2, 1)])
@pytest.mark.parametrize("mode", ["seeds", "noise", None])
def test_opcheck(impl, device, batch, patches, mode):
    scores = scores_of(batch, patches).to(device).requires_grad_()
    noise = torch.zeros(batch, patches, 2, device=device) if mode == "noise" else None
    seeds = torch.arange(batch, device=device) if mode == "seeds" else None
    torch.library.opcheck(gumbel_select_op, (scores, noise, seeds, 0.7, min(1, patches), impl))


@pytest.mark.parametrize("given_", [(True, True), (True, False), (False, True)])
def test_opcheck_of_the_backward(impl, device, given_):
    grads = [torch.ones(3, 5, device=device) if g else None for g in given_]
    prob = torch.full((3, 5), 0.3, device=device)
    torch.library.opcheck(gumbel_select_backward_op, (*grads, prob, 0.7, torch.bfloat16, impl))


def test_compiles_without_a_graph_break(impl, device):
    def plain(scores, seeds):
        return gumbel_select(scores, seeds=seeds, min_keep=1, impl=impl)

    run = torch.compile(plain, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch in (2, 3):
        scores, seeds = scores_of(batch, 11).to(device).requires_grad_(), torch.arange(batch, device=device)
        got, expected = run(scores, seeds), plain(scores, seeds)
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
        got.prob.sum().backward()


@pytest.mark.gpu
def test_a_cuda_graph_draws_new_noise_at_each_replay_under_the_manual_seed():
    scores = torch.zeros(4, 257, 2, device="cuda")
    gumbel_select(scores, min_keep=3, impl="triton")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = gumbel_select(scores, min_keep=3, impl="triton")

    def replay():
        graph.replay()
        assert torch.equal(captured.cu_kept.diff(), captured.keep.sum(1).int())
        return captured.keep.clone()

    torch.cuda.manual_seed(1)
    first, second = replay(), replay()
    torch.cuda.manual_seed(1)
    again = replay()
    assert torch.equal(first, again) and not torch.equal(first, second)


@pytest.mark.gpu
def test_the_host_never_waits_and_sizes_do_not_recompile():
    from lavit.kernels.gumbel_select import triton as form

    def compiled():
        return sum(len(cache[0]) for k in (form._select, form._offsets) for cache in k.device_caches.values())

    counts = []
    for batch, min_keep, tau in ((1, 0, 1.0), (2, 1, 1.0), (16, 16, 0.5), (33, 37, 0.3)):
        scores = scores_of(batch, 37).cuda().requires_grad_()
        with gpu_waits("error"):
            got = gumbel_select(scores, min_keep=min_keep, tau=tau, impl="triton")
            (got.keep.sum() + got.prob.mean()).backward()
        counts.append(compiled())
    assert len(set(counts)) == 1


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
