"""The forms of gumbel_select beside its definition: the same decisions to the bit, at ties and on any device."""

import pytest
import torch
from gradients import same_on_any_number_of_threads
from selection_scores import scores_of
from usable import skip_unless_usable, skip_without_vectors

from lavit.kernels import Selection, gumbel_select
from lavit.kernels.gumbel_select import cpp
from lavit.kernels.gumbel_select.library import gumbel_select_backward_op
from lavit.kernels.gumbel_select.reference import logistic_noise


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
    skip_without_vectors(width)


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
    scores, seeds = scores_of(37, 1000), torch.arange(37)
    assert same_on_any_number_of_threads(lambda: gumbel_select(scores, seeds=seeds, min_keep=500, impl="cpp"))


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
