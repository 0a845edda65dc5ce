from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from usable import gpu_waits, skip_unless_usable

from lavit.kernels import Selection, gumbel_select
from lavit.kernels.gumbel_select import cpp
from lavit.kernels.gumbel_select.library import gumbel_select_backward_op, gumbel_select_op
from lavit.kernels.gumbel_select.reference import logistic_noise, odd_numbers, philox4x32

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(params=["reference", "triton", "cpp"])
def impl(request, device):
    skip_unless_usable("gumbel_select", request.param, device)
    return request.param


@pytest.fixture(params=["triton", "cpp 16", "cpp 32", "cpp 64"])
def form(request, device, monkeypatch):
    """The forms beside the reference; the compiled one by vectors of each width that this machine has."""
    name, _, width = request.param.partition(" ")
    skip_unless_usable("gumbel_select", name, device)
    if width:
        compute_with(int(width), monkeypatch)
    return name


def compute_with(width, monkeypatch):
    """The compiled form takes vectors of so many bytes in this test."""
    skip_unless_usable("gumbel_select", "cpp", torch.device("cpu"))
    monkeypatch.setattr(cpp, "VECTOR_BYTES", width)
    try:
        gumbel_select(torch.zeros(1, 1, 2), deterministic=True, impl="cpp")
    except RuntimeError as error:
        pytest.skip(str(error).splitlines()[0])


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


def difficult_scores(batch, patches, dtype):
    """Ties in plenty (multiples of 1/2), zeros of both signs, NaN and infinities."""
    scores = (scores_of(batch, patches, torch.float64, seed=1) * 4).round() / 2
    generator = torch.Generator().manual_seed(2)
    for value in (float("nan"), float("inf"), -float("inf"), -0.0):
        scores[torch.rand(scores.shape, generator=generator) < 0.06] = value
    return scores.to(dtype)


@pytest.mark.filterwarnings("ignore:invalid value encountered in subtract:RuntimeWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize(
    ("batch", "patches", "mode"),
    [
        (0, 5, "seeds"),
        (3, 0, "noise"),
        (2, 1, "deterministic"),
        (3, 31, "seeds"),
        (3, 31, "noise"),
        (1, 1031, "seeds"),
        (1, 1031, "deterministic"),
    ],
)
def test_every_form_decides_as_the_reference_to_the_bit(form, device, poisoned, batch, patches, dtype, mode):
    """The probabilities agree within the rounding of float64's logarithms and exponential, and of the result.

    A margin has at most 17 + size to round; p moves by p (1 - p) / tau times that, and by a few roundings of its own.
    """
    scores, tau = difficult_scores(batch, patches, dtype), 0.7
    options = {
        "seeds": {"seeds": torch.randint(-(2**63), 2**63 - 1, (batch,))},
        "noise": {"noise": scores_of(batch, patches, dtype, seed=5)},
        "deterministic": {"deterministic": True},
    }[mode]
    on_device = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    size = 17 + (scores.double().abs() + options.get("noise", torch.zeros(1)).double().abs()).sum(2)
    for min_keep in sorted({0, patches // 2, patches - patches // 8}):
        expected = gumbel_select(scores, tau=tau, min_keep=min_keep, impl="reference", **options)
        got = gumbel_select(scores.to(device), tau=tau, min_keep=min_keep, impl=form, **on_device)
        got = Selection(*(t.cpu() for t in got))
        for name in ("keep", "order", "cu_kept", "cu_dropped"):
            a, b = getattr(got, name), getattr(expected, name)
            assert a.dtype == b.dtype and torch.equal(a, b), name
        precision = torch.finfo(expected.prob.dtype)
        bound = expected.prob.double() * (precision.eps + 2**-49 * (1 + size / tau)) + precision.smallest_normal
        finite = size.isfinite()
        assert got.prob.dtype == expected.prob.dtype
        assert bool(((got.prob - expected.prob).abs() <= bound)[finite].all())
        assert torch.equal(got.prob[~finite], expected.prob[~finite])


def test_every_form_takes_any_strides_and_more_patches_than_its_largest_block(form, device):
    for scores in (scores_of(7, 3).transpose(0, 1), scores_of(2, 9)[:, ::2], scores_of(1, 4097)):
        expected = gumbel_select(scores, seeds=torch.arange(scores.shape[0]), min_keep=2, impl="reference")
        seeds = torch.arange(2 * scores.shape[0], device=device)[::2] // 2
        got = gumbel_select(scores.to(device), seeds=seeds, min_keep=2, impl=form)
        assert torch.equal(got.keep.cpu(), expected.keep) and torch.equal(got.order.cpu(), expected.order)


@pytest.mark.parametrize("batch", [15, 16, 17, 32, 49])
def test_offsets_carry_from_one_block_of_images_to_the_next(device, monkeypatch, poisoned, batch):
    """Blocks of 16 images stand for those of 1024; every image keeps another number of patches."""
    skip_unless_usable("gumbel_select", "triton", device)
    from lavit.kernels.gumbel_select import triton as form

    monkeypatch.setattr(form, "SCAN", 16)
    scores = torch.where(torch.arange(7) < torch.arange(batch)[:, None] * 3 % 8, 1.0, -1.0)
    scores = torch.stack((scores, torch.zeros_like(scores)), dim=2)
    expected = gumbel_select(scores, deterministic=True, impl="reference")
    got = gumbel_select(scores.to(device), deterministic=True, impl="triton")
    assert torch.equal(got.cu_kept.cpu(), expected.cu_kept) and torch.equal(got.cu_dropped.cpu(), expected.cu_dropped)


def test_the_most_probable_at_equality_are_the_first_and_both_zeros_are_equal(device):
    """The helper alone: a caller without noise keeps zeros of either sign before it asks for the most probable."""
    skip_unless_usable("gumbel_select", "triton", device)
    from most_probable import most_probable

    nan, inf = float("nan"), float("inf")
    margins = [-0.0, 0.0, -1e-310, 2.0, -inf, nan, 2.0, 0.0, -0.0, -3.0, inf, -1e-320, 1e-320, -2.0, nan, -inf]
    margin = torch.tensor(margins, dtype=torch.float64)
    value = [-inf if m != m else m for m in margins]  # NaN ranks as -inf, and is never chosen
    for inside in (16, 11):
        order = sorted(range(inside), key=lambda i: (-value[i], i))
        for wanted in range(1, inside + 1):
            chosen = most_probable(margin.to(device), inside, wanted).cpu()
            expected = sorted(i for i in order[:wanted] if margins[i] == margins[i])
            assert chosen.nonzero().flatten().tolist() == expected, (inside, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(("batch", "patches"), [(0, 5), (3, 0), (2, 1), (3, 31), (1, 1031)])
@pytest.mark.parametrize("name", ["triton", "cpp"])
def test_gradient_of_every_form_is_that_of_the_reference_to_the_bit(name, device, poisoned, batch, patches, dtype):
    skip_unless_usable("gumbel_select", name, device)
    if name == "triton" and dtype == torch.bfloat16 and device.type == "cpu":
        pytest.skip("Triton's interpreter truncates float32 to bfloat16")
    precision = torch.float64 if dtype == torch.float64 else torch.float32
    prob, whole, sparse = (
        torch.rand(batch, 2 * patches, generator=torch.Generator().manual_seed(i), dtype=precision) for i in range(3)
    )
    one = torch.full((), 0.3, dtype=precision).expand(batch, patches)
    rows, across = whole[:, :patches], sparse.view(2 * patches, batch)[::2].T
    for keep, soft in ((rows, across), (one, None), (None, across), (one, rows)):
        arguments = (keep, soft, prob[:, :patches], 0.7, dtype)
        moved = (a.to(device) if isinstance(a, torch.Tensor) else a for a in arguments)
        expected = gumbel_select_backward_op(*arguments, "reference")
        got = gumbel_select_backward_op(*moved, name)
        assert got.dtype == dtype and torch.equal(got.cpu(), expected)


def near_ties(batch, patches, seeds, steps):
    """Scores in float64 whose margins are ``steps`` (B, N) units in the last place of the noise from a tie."""
    noise = logistic_noise(seeds, patches)
    return torch.stack((steps * (noise.abs() * 2**-52), noise), dim=2)


@pytest.mark.parametrize("width", [16, 32, 64])
def test_cpp_leaves_ties_of_the_reference_to_its_own_logarithms(monkeypatch, width):
    """Margins of no and of a few roundings: here any other logarithm would decide otherwise."""
    compute_with(width, monkeypatch)
    seeds = torch.arange(6)
    steps = torch.randint(-4, 5, (6, 300), generator=torch.Generator().manual_seed(0))
    scores = near_ties(6, 300, seeds, steps)
    for min_keep in (0, 250):
        expected = gumbel_select(scores, seeds=seeds, min_keep=min_keep, impl="reference")
        got = gumbel_select(scores, seeds=seeds, min_keep=min_keep, impl="cpp")
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("width", [16, 32, 64])
def test_cpp_leaves_the_last_of_the_most_probable_to_the_reference_where_two_are_equal(monkeypatch, width):
    """No margin is near 0, but all are so near each other that roundings rank them."""
    compute_with(width, monkeypatch)
    seeds = torch.arange(3)
    scores = near_ties(3, 40, seeds, torch.zeros(3, 40))
    scores[..., 0] -= 2
    expected = gumbel_select(scores, seeds=seeds, min_keep=20, impl="reference")
    got = gumbel_select(scores, seeds=seeds, min_keep=20, impl="cpp")
    assert torch.equal(got.keep, expected.keep) and torch.equal(got.order, expected.order)


@pytest.mark.parametrize("width", [16, 32, 64])
def test_cpp_asks_the_reference_for_ties_alone(monkeypatch, width):
    """Of 2^20 decisions none, however many scores are equal; of one exact tie this one."""
    compute_with(width, monkeypatch)
    asked, definition = [], cpp.reference.gumbel_select
    monkeypatch.setattr(cpp.reference, "gumbel_select", lambda *inputs: asked.append(1) or definition(*inputs))
    for scores in (scores_of(1024, 1024), torch.zeros(4, 1024, 2), torch.full((4, 1024, 2), -torch.inf)):
        gumbel_select(scores, seeds=torch.arange(scores.shape[0]), impl="cpp")
    assert not asked
    gumbel_select(near_ties(1, 1, torch.zeros(1).long(), torch.zeros(1, 1)), seeds=torch.zeros(1).long(), impl="cpp")
    assert asked


def test_cpp_decides_alike_on_any_number_of_threads():
    skip_unless_usable("gumbel_select", "cpp", torch.device("cpu"))
    scores, seeds, before = scores_of(37, 1000), torch.arange(37), torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(gumbel_select(scores, seeds=seeds, min_keep=500, impl="cpp"))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.gpu
def test_cuda_and_cpu_decide_alike_on_many_patches():
    """2^24 decisions, none of which differs."""
    scores, seeds = scores_of(4096, 4096), torch.arange(4096)
    got = gumbel_select(scores.cuda(), seeds=seeds.cuda(), min_keep=2048, impl="triton")
    for some in (slice(0, 64), slice(4032, 4096)):
        expected = gumbel_select(scores[some], seeds=seeds[some], min_keep=2048, impl="reference")
        assert torch.equal(got.keep[some].cpu(), expected.keep) and torch.equal(got.order[some].cpu(), expected.order)
    on_device = gumbel_select(scores.cuda(), seeds=seeds.cuda(), min_keep=2048, impl="reference")
    assert all(torch.equal(getattr(got, n), getattr(on_device, n)) for n in ("keep", "order", "cu_kept", "cu_dropped"))


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
