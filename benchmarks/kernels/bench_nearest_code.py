"""nearest_code beside the ways in which others do it, in one run. ``pytest benchmarks/kernels/bench_nearest_code.py``

LaVIT: K = 16384 codes of dimension 32, vectors and codes of length one, so that cosine and euclidean ask for the same
code and every peer, whichever it computes, must give the same ids. SEED: K = 8192 codes as they are, euclidean.
n = 5440 vectors are the kept patches of about 64 images; 640 of 8.

Parity, in every case before it is timed: the id is float64's, or one that is as near within float32's rounding.
``precision="fast"`` promises no such thing: how often it disagrees is measured, and stands in place of a ratio.
The codebook and the vectors are the same every time, so a GPU finds them in its second-level cache, as in a model.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor

from benchmarks.timing import measure
from lavit.kernels import nearest_code
from lavit.kernels.dispatch import OPERATIONS

WIDTH = 32
CASES = {"LaVIT": 16384, "SEED": 8192}
CHUNK = 1024
# What a CPU searches 65536 vectors with in seconds, not minutes.
AFFORDABLE = ("lavit cpu, euclidean", "lavit cpp, euclidean", "faiss flat index")

Search = Callable[[], Tensor]


def release(x: Tensor, codebook: Tensor, normalize: bool = True, one_hot: bool = True) -> Tensor:
    """The release's way: the whole matrix of distances, and a one-hot of the result that nothing reads."""
    z = torch.nn.functional.normalize(x, dim=1) if normalize else x
    distance = z.square().sum(1, keepdim=True) + codebook.square().sum(1) - 2 * z @ codebook.T
    ids = distance.argmin(1)
    if one_hot:
        torch.nn.functional.one_hot(ids, codebook.shape[0]).to(x.dtype)
    return ids


def bias_of(codebook: Tensor, normalize: bool) -> Tensor:
    """What arg max x.c lacks to be the nearest: nothing for codes of length one, as LaVIT's."""
    return torch.zeros_like(codebook[:, 0]) if normalize else -0.5 * codebook.square().sum(1)


def chunked_matmul(x: Tensor, codebook: Tensor, normalize: bool) -> Tensor:
    """Rows in chunks: product and arg max, the n x K matrix never whole."""
    bias = bias_of(codebook, normalize)
    return torch.cat([torch.addmm(bias, rows, codebook.T).argmax(1) for rows in x.split(CHUNK)])


def split_gemm(x: Tensor, codebook: Tensor, normalize: bool) -> Tensor:
    """Codes in chunks: product and maximum of each, reduced to a running maximum."""
    bias, best = bias_of(codebook, normalize), x.new_full((x.shape[0],), -torch.inf)
    ids = torch.zeros(x.shape[0], dtype=torch.int64, device=x.device)
    for first in range(0, codebook.shape[0], CHUNK):
        part = slice(first, first + CHUNK)
        score, id_ = torch.addmm(bias[part], x, codebook[part].T).max(1)
        nearer = score > best
        best, ids = torch.where(nearer, score, best), torch.where(nearer, id_ + first, ids)
    return ids


def vector_quantize(x: Tensor, codebook: Tensor, normalize: bool) -> Search:
    """vector-quantize-pytorch's codebook as it is in inference."""
    module = pytest.importorskip("vector_quantize_pytorch", reason="vector-quantize-pytorch is not installed")
    whole = module.VectorQuantize(WIDTH, codebook_size=codebook.shape[0], use_cosine_sim=normalize)
    peer = whole._codebook.to(x.device).eval()
    peer.embed.copy_(codebook[None])
    rows = torch.nn.functional.normalize(x, dim=1) if normalize else x
    return lambda: peer(rows[None])[1][0]


def faiss_flat(x: Tensor, codebook: Tensor, normalize: bool) -> Search:
    """faiss's exhaustive search over an index that is ready; on the CPU, with torch's number of threads."""
    if x.is_cuda:
        pytest.skip("faiss-cpu searches on the CPU")
    faiss = pytest.importorskip("faiss", reason="faiss-cpu is not installed")
    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatIP(WIDTH) if normalize else faiss.IndexFlatL2(WIDTH)
    index.add(codebook.numpy())
    return lambda: torch.from_numpy(index.search(x.numpy(), 1)[1][:, 0])


def compiled(x: Tensor, codebook: Tensor, normalize: bool) -> Search:
    """torch.compile of the release's way without its one-hot."""
    torch._dynamo.reset()
    function = torch.compile(release, dynamic=False)
    try:
        function(x, codebook, normalize, False)
    except Exception as error:
        pytest.skip(f"torch.compile does not work here: {str(error).splitlines()[0]}")
    return lambda: function(x, codebook, normalize, False)


def on_a_gpu(x: Tensor, codebook: Tensor, normalize: bool) -> Search:
    if not x.is_cuda:
        pytest.skip("a peer for a GPU")
    return lambda: split_gemm(x, codebook, normalize)


PEERS: dict[str, Callable[[Tensor, Tensor, bool], Search]] = {
    "release": lambda x, c, normalize: lambda: release(x, c, normalize),
    "release without one-hot": lambda x, c, normalize: lambda: release(x, c, normalize, one_hot=False),
    "torch.compile of that": compiled,
    "chunked matmul": lambda x, c, normalize: lambda: chunked_matmul(x, c, normalize),
    "split GEMM + reduce": on_a_gpu,
    "vector-quantize-pytorch": vector_quantize,
    "faiss flat index": faiss_flat,
}


def ours(impl: str, metric: str, precision: str = "exact") -> Callable[[Tensor, Tensor, bool], Search]:
    def search(x: Tensor, codebook: Tensor, normalize: bool) -> Search:
        implementation = OPERATIONS["nearest_code"].implementations.get(impl)
        reason = f"no implementation {impl!r}" if implementation is None else implementation.unusable(x.device.type)
        if reason is None and impl == "triton" and not x.is_cuda:
            reason = "Triton's interpreter is for tests"
        if reason is not None:
            pytest.skip(f"nearest_code, {impl}: {reason}")
        return lambda: nearest_code(x, codebook, metric=metric, normalize_x=normalize, precision=precision, impl=impl)

    return search


IMPLEMENTATIONS = list(OPERATIONS["nearest_code"].implementations)
OURS = {f"lavit {i}, {m}": ours(i, m) for i in IMPLEMENTATIONS for m in ("euclidean", "cosine")}
if "triton" in IMPLEMENTATIONS:
    OURS |= {f"lavit triton fast, {m}": ours("triton", m, "fast") for m in ("euclidean", "cosine")}
ALL = {**PEERS, **OURS}


@cache
def inputs(case: str, n: int, device: torch.device) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, WIDTH, generator=generator).to(device)
    codebook = torch.randn(CASES[case], WIDTH, generator=generator).to(device)
    return x, torch.nn.functional.normalize(codebook, dim=1) if case == "LaVIT" else codebook


@cache
def nearest(case: str, n: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """float64's ids and squared distances."""
    x, codebook = inputs(case, n, device)
    z, c = in_float64(x, codebook, case)
    length = 0.5 * c.square().sum(1)
    ids = torch.cat([(length - rows @ c.T).argmin(1) for rows in z.split(CHUNK)])
    return ids, (z - c[ids]).square().sum(1)


def in_float64(x: Tensor, codebook: Tensor, case: str) -> tuple[Tensor, Tensor]:
    z = torch.nn.functional.normalize(x.double(), dim=1) if case == "LaVIT" else x.double()
    return z, codebook.double()


def verdict(ids: Tensor, case: str, n: int, device: torch.device) -> tuple[bool, dict[str, float]]:
    """Whether every id is float64's, or as near within float32's rounding of 32 terms of at most (|x| + |c|)^2."""
    x, codebook = inputs(case, n, device)
    want, distance = nearest(case, n, device)
    z, c = in_float64(x, codebook, case)
    gap = (z - c[ids.clamp(min=0)]).square().sum(1) - distance
    band = WIDTH * torch.finfo(torch.float32).eps * (z.norm(dim=1) + c.norm(dim=1).max()).square()
    passed = bool((ids >= 0).all()) and bool((gap <= band).all())
    return passed, {"disagreement": float((ids != want).double().mean()), "largest gap": float(gap.max())}


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("n", [640, 5440, 65536])
@pytest.mark.parametrize("case", CASES)
def bench_nearest_code(benchmark, device, case, n, name):
    if case == "SEED" and "cosine" in name:
        pytest.skip("SEED's metric is euclidean")
    if n > 5440 and device.type == "cpu" and name not in AFFORDABLE:
        pytest.skip("a case for a GPU: its n x K matrix does not fit the time of a CPU run")
    x, codebook = inputs(case, n, device)
    run = ALL[name](x, codebook, case == "LaVIT")
    passed, parity = verdict(run(), case, n, device)
    measure(
        benchmark,
        device,
        f"nearest code, {case}, n={n} K={CASES[case]} D={WIDTH}",
        run,
        implementation=name,
        baseline=name == "release",
        passed=passed,
        parity=parity,
        approximate="fast" in name,
        counts_memory=name != "faiss flat index",
        operations=2 * n * CASES[case] * WIDTH,
        scores=n * CASES[case],
    )
