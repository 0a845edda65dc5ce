from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nearest import assert_nearest, assert_right_at_any_magnitude, distances, vectors
from safetensors.torch import load_file
from usable import skip_unless_usable

from lavit.kernels import nearest_code
from lavit.kernels.nearest_code.library import nearest_code_op

GOLDEN = Path(__file__).parents[1] / "golden"
IMPLS = ["reference", "cpu", "cpp", "triton"]
pytestmark = [
    pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.*"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning:numpy.*"),
]


@pytest.fixture(params=[*IMPLS, pytest.param("triton on cuda", marks=pytest.mark.gpu)])
def search(request, monkeypatch):
    """nearest_code by one implementation on one device; takes and returns tensors of the CPU."""
    impl, _, device = request.param.partition(" on ")
    device = torch.device(device or "cpu")
    skip_unless_usable("nearest_code", impl, device)
    if request.param == "triton":
        from lavit.kernels.nearest_code import triton

        # The interpreter's time is that of a program, however large: it gets more rows at once.
        monkeypatch.setattr(triton, "RESCORE_ROWS", 128)

    def run(x, codebook, **options):
        found = nearest_code(x.to(device), codebook.to(device), impl=impl, **options)
        return tuple(t.cpu() for t in found) if isinstance(found, tuple) else found.cpu()

    return run


def golden_codes(name):
    """Vectors, codes and indices. The file's `codebook` repeats `codebook_unnormalized`, so that the unit codes are
    taken from what was looked up, `z_q`; codes that were never chosen stay NaN, which is never chosen here either."""
    golden = load_file(GOLDEN / "quantizer.safetensors")
    if name == "unnormalized":
        return golden["z"], golden["codebook_unnormalized"], golden["indices_unnormalized"]
    codebook = torch.full_like(golden["codebook"], float("nan"))
    codebook[golden["indices"]] = golden["z_q"]
    return golden["z"], codebook, golden["indices"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("name", "metric"), [("unnormalized", "euclidean"), ("unit", "euclidean"), ("unit", "cosine")])
def test_golden_indices(search, dtype, name, metric):
    """Equal in float64, and in float32 wherever the float64 gap to the second code exceeds float32's rounding."""
    z, codebook, expected = golden_codes(name)
    ids = search(z.to(dtype), codebook.to(dtype), metric=metric)
    best = distances(z, codebook, metric, True).nan_to_num(float("inf")).topk(2, dim=1, largest=False).values
    clear = best[:, 1] - best[:, 0] > (1e-12 if dtype == torch.float64 else 1e-5)
    assert bool(clear.double().mean() > 0.98)
    assert torch.equal(ids[clear], expected[clear])


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(0, 40),
    st.integers(1, 70),
    st.integers(1, 33),
    st.sampled_from([("cosine", True), ("euclidean", True), ("euclidean", False)]),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    st.integers(0, 2**31),
)
def test_finds_the_nearest(search, n, num_codes, dim, how, dtype, seed):
    metric, normalize_x = how
    x, codebook = vectors(n, dim, seed, dtype), vectors(num_codes, dim, seed + 1, dtype)
    ids, score = search(x, codebook, metric=metric, normalize_x=normalize_x, return_score=True)
    assert ids.shape == score.shape == (n,) and ids.dtype == torch.int64 and score.dtype == torch.float32
    assert_nearest(ids, x, codebook, metric, normalize_x)
    d = distances(x, codebook, metric, normalize_x).gather(1, ids[:, None]).squeeze(1)
    expected = 1 - d / 2 if metric == "cosine" else d
    scale = 1 if metric == "cosine" else (x.double().norm(dim=1) + codebook.double().norm(dim=1).max()) ** 2 + 1
    assert bool(((score.double() - expected).abs() <= 4 * (dim + 3) * 2**-23 * scale).all())


def test_tiles_meet_without_seams():
    """Sizes beyond one tile of 512 x 2048, the last ones ragged; every row and every code can be the answer."""
    codebook = F.normalize(vectors(4099, 16), dim=1)
    x = codebook[torch.randperm(4099, generator=torch.Generator().manual_seed(1))[:1031]]
    for metric in ("cosine", "euclidean"):
        ids = nearest_code(x, codebook, metric=metric, impl="cpu")
        assert torch.equal(codebook[ids], x)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_ties_go_to_the_lowest_id_within_and_across_tiles(search, metric):
    codebook = vectors(5000, 8)
    codebook[[3000, 4999]] = codebook[17].clone()
    codebook[2500] = codebook[2499]
    x = codebook[[17, 2500]]
    assert search(x, codebook, metric=metric, normalize_x=False).tolist() == [17, 2499]


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_rows_and_codes_that_are_not_finite(search, metric):
    x, codebook = vectors(6, 4), vectors(9, 4)
    x[1, 2], x[4, 0] = float("nan"), float("inf")
    clean = search(x.nan_to_num(0, 0, 0), codebook, metric=metric)
    ids, score = search(x, codebook, metric=metric, return_score=True)
    assert ids[[1, 4]].tolist() == [-1, -1] and bool(score[[1, 4]].isnan().all())
    good = torch.tensor([0, 2, 3, 5])
    assert torch.equal(ids[good], clean[good])
    codebook[0] = float("nan")
    codebook[5, 1] = float("-inf")
    ids = search(x[good], codebook, metric=metric)
    assert not bool(((ids == 0) | (ids == 5) | (ids == -1)).any())
    codebook[:] = float("nan")
    assert search(x, codebook, metric=metric).tolist() == [-1] * 6


METRICS = [("cosine", True), ("euclidean", True), ("euclidean", False)]
# Of float32 from its denormals to its largest, at which draws are cut off.
MAGNITUDES = [1e-43, 1e-36, 1e-31, 1e-19, 1e-6, 1.0, 1e6, 1e19, 1e30, 1.5e38]


@pytest.mark.parametrize(("metric", "normalize_x"), METRICS)
@pytest.mark.parametrize("codes", ["alike", *MAGNITUDES])
def test_rows_and_codes_of_any_magnitude_get_float64s_code(search, codes, metric, normalize_x):
    """Rows of every magnitude in one call, against codes of every magnitude together, and of one."""
    size = torch.tensor(MAGNITUDES)
    x = (vectors(20, 6) * size.repeat_interleave(2)[:, None]).clamp(-3e38, 3e38)
    codebook = vectors(70, 6, 1) * (size.repeat(7)[:, None] if codes == "alike" else codes)
    codebook = codebook.clamp(-3e38, 3e38)
    ids, score = search(x, codebook, metric=metric, normalize_x=normalize_x, return_score=True)
    assert_right_at_any_magnitude(ids, x, codebook, metric, normalize_x)
    d = distances(x, codebook, metric, normalize_x).gather(1, ids[:, None])[:, 0]
    expected = 1 - d / 2 if metric == "cosine" else d
    terms = 1 if metric == "cosine" else d + x.double().norm(dim=1) ** 2 * (not normalize_x) + normalize_x
    terms = terms + codebook[ids].double().norm(dim=1) ** 2 * (metric != "cosine")
    near = (score.double() - expected).abs() <= 4 * 9 * 2**-23 * terms + 2.0**-126
    assert bool((near | (score.isposinf() & (terms > 3e37))).all())


@pytest.mark.parametrize(("metric", "normalize_x"), METRICS)
@pytest.mark.parametrize("magnitude", [1e-320, 1e-290, 1e-160, 1e160, 1e290])
def test_float64_rows_beyond_the_range_of_their_squares_get_their_code(search, magnitude, metric, normalize_x):
    x, codebook = vectors(9, 6, dtype=torch.float64), vectors(70, 6, 1, torch.float64)
    ids = search(x * magnitude, codebook, metric=metric, normalize_x=normalize_x)
    assert_right_at_any_magnitude(ids, x * magnitude, codebook, metric, normalize_x)
    if metric == "cosine":
        ids = search(x, codebook * magnitude, metric=metric)
        assert_right_at_any_magnitude(ids, x, codebook * magnitude, metric, normalize_x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("num_codes", [1, 70, 2100])
def test_a_row_of_zeros_gets_the_first_code_by_cosine_and_the_shortest_by_distance(search, num_codes, dtype):
    x, codebook = torch.zeros(3, 8, dtype=dtype), vectors(num_codes, 8, dtype=dtype)
    x[1, 3] = -0.0
    ids, score = search(x, codebook, return_score=True)
    assert ids.tolist() == [0] * 3 and score.tolist() == [0.0] * 3
    shortest = int(codebook.double().norm(dim=1).argmin())
    for normalize_x in (True, False):
        ids, score = search(x, codebook, metric="euclidean", normalize_x=normalize_x, return_score=True)
        assert ids.tolist() == [shortest] * 3
        square = codebook[shortest].double().square().sum().float()
        torch.testing.assert_close(score, square.expand(3), rtol=11 * 2**-23, atol=0)
    if num_codes > 2:
        codebook[:2] = float("nan")
        assert search(x, codebook).tolist() == [2] * 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num_codes", [1, 70, 2100])
def test_a_codebook_of_zeros_gives_its_first_code(search, num_codes, dtype):
    x, codebook = vectors(4, 8, dtype=dtype), torch.zeros(num_codes, 8, dtype=dtype)
    x[2] = 0
    codebook[num_codes // 2, 3] = -0.0
    for metric, normalize_x in METRICS:
        ids, score = search(x, codebook, metric=metric, normalize_x=normalize_x, return_score=True)
        assert ids.tolist() == [0] * 4
        length = torch.tensor([1.0, 1, 0, 1]) if normalize_x else x.double().square().sum(dim=1).float()
        expected = torch.zeros(4) if metric == "cosine" else length
        torch.testing.assert_close(score, expected, rtol=11 * 2**-23, atol=0)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_zero_codes_among_others_are_met_at_no_distance(search, metric):
    """A zero code has cosine 0 with everything: it is nearest where all others point away."""
    codebook = vectors(9, 4).abs()
    codebook[5] = 0
    x = torch.stack([-torch.ones(4), torch.ones(4), torch.zeros(4)])
    ids = search(x, codebook, metric=metric, normalize_x=False)
    assert ids[0] == 5 and ids[1] != 5 and ids[2] == (0 if metric == "cosine" else 5)


def test_a_row_does_not_depend_on_how_many_are_searched_with_it():
    x, codebook = vectors(530, 32), vectors(300, 32)
    ids, score = nearest_code(x, codebook, return_score=True, impl="cpu")
    for n in (1, 2, 3, 15, 16, 17, 100, 511, 513):
        one = nearest_code(x[:n], codebook, return_score=True, impl="cpu")
        assert torch.equal(one[0], ids[:n]) and torch.equal(one[1], score[:n])


def test_half_precision_inputs_are_compared_in_float32(search):
    x, codebook = vectors(50, 32, 0, torch.bfloat16), vectors(200, 32, 1, torch.bfloat16)
    assert torch.equal(search(x, codebook), search(x.float(), codebook.float()))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("n", [0, 1, 5])
def test_opcheck(impl, n):
    skip_unless_usable("nearest_code", impl, torch.device("cpu"))
    torch.library.opcheck(nearest_code_op, (vectors(n, 8), vectors(7, 8), "euclidean", True, "exact", impl))


def test_compiles_without_a_graph_break():
    run = torch.compile(nearest_code, fullgraph=True, dynamic=True, backend="aot_eager")
    codebook = vectors(20, 8)
    for n in (5, 9):
        x = vectors(n, 8).requires_grad_()
        assert torch.equal(run(x, codebook), nearest_code(x, codebook))


@pytest.mark.parametrize(
    ("x", "codebook", "options", "error", "message"),
    [
        (torch.zeros(3), torch.zeros(4, 2), {}, ValueError, r"x: expected shape \(n, D\), got \(3,\)"),
        (torch.zeros(3, 2), torch.zeros(0, 2), {}, ValueError, r"codebook: expected shape \(K, 2\) with K >= 1, got"),
        (torch.zeros(3, 2), torch.zeros(4, 3), {}, ValueError, r"codebook: expected shape \(K, 2\)"),
        (torch.zeros(3, 2).long(), torch.zeros(4, 2), {}, TypeError, "x: expected a float64"),
        (torch.zeros(3, 2), torch.zeros(4, 2), {"metric": "l1"}, ValueError, "metric: expected one of cosine, euc"),
        (torch.zeros(3, 2), torch.zeros(4, 2), {"precision": "low"}, ValueError, "precision: expected one of exact"),
        (torch.zeros(3, 2), torch.zeros(4, 2), {"impl": "cuda"}, ValueError, "impl=: nearest_code has the impl"),
    ],
)
def test_wrong_arguments_are_named(x, codebook, options, error, message):
    with pytest.raises(error, match=message):
        nearest_code(x, codebook, **options)
