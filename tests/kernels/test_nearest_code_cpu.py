"""What is particular to the CPU's forms of nearest_code: tiles, vectors of every width, threads."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from nearest import assert_nearest, distances, vectors

from lavit.kernels import nearest_code
from lavit.kernels.extension import cpp_unusable
from lavit.kernels.nearest_code import cpp
from lavit.threads import on as on_threads

FORMS = ["cpu", "cpp-16", "cpp-32", "cpp-64"]
pytestmark = pytest.mark.usefixtures("poisoned")


def has_vectors_of(width: int) -> bool:
    one = torch.ones(1, 1)
    try:
        torch.ops.lavit_cpp.nearest_code(one, one, one[0], width)
    except RuntimeError:
        return False
    return True


@pytest.fixture(params=FORMS, scope="module")
def impl(request: pytest.FixtureRequest) -> Iterator[str]:
    """The implementation's name; the compiled one is told how wide its vectors are, as another machine would have."""
    name, _, width = request.param.partition("-")
    with pytest.MonkeyPatch.context() as patch:
        if name == "cpp":
            if reason := cpp_unusable("cpu"):
                pytest.skip(reason)
            if not has_vectors_of(int(width)):
                pytest.skip(f"this machine has no vectors of {width} bytes")
            patch.setattr(cpp, "VECTOR_BYTES", int(width))
        yield name


@settings(max_examples=30)
@given(
    st.integers(0, 70),
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from([("cosine", True), ("euclidean", True), ("euclidean", False)]),
    st.sampled_from([torch.float32, torch.float64]),
    st.integers(0, 2**31),
)
def test_the_nearest_is_found_whatever_the_vectors(impl, n, num_codes, dim, how, dtype, seed):
    metric, normalize_x = how
    x, codebook = vectors(n, dim, seed, dtype), vectors(num_codes, dim, seed + 1, dtype)
    ids = nearest_code(x, codebook, metric=metric, normalize_x=normalize_x, impl=impl)
    assert ids.shape == (n,)
    assert_nearest(ids, x, codebook, metric, normalize_x)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize(("n", "num_codes", "dim"), [(0, 5, 3), (3, 1, 1), (65, 131, 1), (2, 1, 1024), (67, 71, 1024)])
def test_extreme_sizes(impl, n, num_codes, dim, metric):
    x, codebook = vectors(n, dim), vectors(num_codes, dim, 1)
    ids, score = nearest_code(x, codebook, metric=metric, return_score=True, impl=impl)
    assert_nearest(ids, x, codebook, metric, True)
    d = distances(x, codebook, metric, True).gather(1, ids[:, None])[:, 0]
    expected = 1 - d / 2 if metric == "cosine" else d
    scale = 1 if metric == "cosine" else (1 + float(codebook.double().norm(dim=1).max())) ** 2
    assert bool(((score - expected).abs() <= 4 * (dim + 3) * 2**-23 * scale).all())


def test_every_code_is_found_across_the_seams_of_rows_codes_and_threads(impl):
    """At this dimension a thread holds 512 rows and the inner cache 60 codes at a time."""
    codebook = F.normalize(vectors(1031, 64), dim=1)
    wanted = torch.randperm(1031, generator=torch.Generator().manual_seed(1)).repeat(2)[:1501]
    for metric in ("cosine", "euclidean"):
        assert torch.equal(nearest_code(codebook[wanted], codebook, metric=metric, impl=impl), wanted)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_ties_go_to_the_lowest_id_wherever_they_meet(impl, metric):
    """Six codes are compared at a time, 126 stay in the inner cache at this dimension."""
    codebook = vectors(200, 32)
    lowest, others = [3, 8, 30, 6, 131], [[4, 5], [13], [125, 126], [198, 199], [132, 199]]
    for low, high in zip(lowest, others, strict=True):
        case = codebook.clone()
        case[high] = case[low].clone()
        x = case[[low]].repeat(70, 1)
        assert nearest_code(x, case, metric=metric, normalize_x=False, impl=impl).tolist() == [low] * 70
    same = codebook[:1].repeat(200, 1)
    assert nearest_code(codebook, same, metric=metric, impl=impl).tolist() == [0] * 200


def test_float64_is_told_apart_where_float32_ties(impl):
    x = torch.full((3, 1), 3.0, dtype=torch.float64)  # of codes about 1 the largest is the nearest
    codebook = 1 + torch.tensor([[1e-12], [4e-12], [-3e-12]], dtype=torch.float64)
    assert nearest_code(x, codebook, metric="euclidean", normalize_x=False, impl=impl).tolist() == [1] * 3


def test_a_row_does_not_depend_on_its_neighbours_its_place_or_the_threads(impl):
    x, codebook = vectors(530, 32), vectors(301, 32, 1)
    ids, score = nearest_code(x, codebook, return_score=True, impl=impl)
    for number in (1, 2, 3):
        for rows in (slice(0, 1), slice(0, 63), slice(0, 65), slice(17, 530)):
            with on_threads(number):
                some = nearest_code(x[rows], codebook, return_score=True, impl=impl)
            assert torch.equal(some[0], ids[rows]) and torch.equal(some[1], score[rows])


def test_rows_that_are_not_finite_or_overflow_leave_their_neighbours_alone(impl):
    x, codebook = vectors(40, 8), vectors(100, 8, 1)
    options = {"metric": "euclidean", "normalize_x": False, "return_score": True, "impl": impl}
    ids, score = nearest_code(x, codebook, **options)
    x[3], x[17, 5], x[20, 1], x[39] = float("nan"), float("inf"), float("-inf"), 3e38
    spoilt, spoilt_score = nearest_code(x, codebook, **options)
    good = torch.ones(40, dtype=torch.bool)
    good[[3, 17, 20, 39]] = False
    assert torch.equal(spoilt[good], ids[good]) and torch.equal(spoilt_score[good], score[good])
    assert spoilt[[3, 17, 20]].tolist() == [-1] * 3 and bool(spoilt_score[[3, 17, 20]].isnan().all())


@pytest.mark.parametrize("name", ["auto", "reference", "cpu"])
def test_autocast_does_not_lower_the_precision(name):
    x, codebook = vectors(300, 32), vectors(500, 32, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ids = nearest_code(x, codebook, impl=name)
    assert torch.equal(ids, nearest_code(x, codebook, impl=name))


@pytest.mark.skipif(cpp_unusable("cpu") is not None, reason=str(cpp_unusable("cpu")))
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(3)}, "x: expected at least 2"),
        ({"x": torch.zeros(3, 2).half()}, "x: expected float32 or float64"),
        ({"codes": torch.zeros(4, 3)}, "codes: expected dimension 2, got 3"),
        ({"codes": torch.zeros(4, 2).double()}, "expected the dtype of x"),
        ({"codes": torch.zeros(2, 4).T}, "codes: expected a contiguous tensor"),
        ({"bias": torch.zeros(3)}, "bias: expected 4 elements, got 3"),
        ({"width": 8}, "width: expected 0, 16, 32 or 64"),
    ],
)
def test_cpp_names_wrong_arguments(change, message):
    arguments = {"x": torch.zeros(3, 2), "codes": torch.zeros(4, 2), "bias": torch.zeros(4), "width": 0} | change
    with pytest.raises(RuntimeError, match=message):
        torch.ops.lavit_cpp.nearest_code(*arguments.values())
