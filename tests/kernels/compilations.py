"""How many compilations an operation's calls ask Triton for; run in a process without the interpreter.

A stand-in for the driver says of what architecture the current device is, a hook of Triton's takes every wish for a
compilation, and no kernel runs. Prints one line of JSON: for every step of STEPS[operation], how many were new.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable
from functools import partial

import torch


def stand_in(architecture: int) -> set[tuple[str, str]]:
    """Kernels and their keys, as far as they have been asked for."""
    from triton import knobs
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    class Driver:
        def get_current_device(self) -> int:
            return 0

        def get_current_stream(self, device: int) -> int:
            return 0

        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cuda", architecture, 32)

    asked: set[tuple[str, str]] = set()

    def hook(*, key: str, fn: object, **others: object) -> bool:
        asked.add((fn.name, key))
        return True  # this compilation is taken care of

    driver.set_active(Driver())
    knobs.runtime.jit_cache_hook = hook
    return asked


def misaligned(x: torch.Tensor) -> torch.Tensor:
    """The same values, one element behind where memory is allocated."""
    room = x.new_zeros(x.numel() + 1)
    return room[1:].view(x.shape).copy_(x)


def varlen(rows_q: int, rows_k: int, images: int, heads: int, form: str, weight_dtype: torch.dtype) -> None:
    from lavit.kernels import varlen_attention

    dim, dtype = 88, torch.bfloat16
    q = torch.zeros(rows_q, heads, dim, dtype=dtype)
    k, v = (torch.zeros(rows_k, heads, dim, dtype=dtype) for _ in "kv")
    if form == "fused":
        k, v = torch.zeros(rows_k, 2, heads, dim, dtype=dtype).unbind(1)
    cu, w = torch.zeros(images + 1, dtype=torch.int32), torch.ones(rows_k, dtype=weight_dtype)
    if form == "misaligned":
        q, k, v, cu, w = map(misaligned, (q, k, v, cu, w))
    leaves = [x.requires_grad_() for x in (q, k, v, w)]
    out = varlen_attention(*leaves[:3], cu, cu, rows_q, rows_k, key_weight=w, impl="triton")
    torch.autograd.grad(out, leaves, misaligned(torch.ones_like(out)) if form == "misaligned" else torch.ones_like(out))


def policy(batch: int, n: int, heads: int, form: str) -> None:
    from lavit.kernels import policy_attention

    shape, dtype = (batch, n, heads, 88), torch.bfloat16
    q, k, v = (torch.zeros(shape, dtype=dtype) for _ in "qkv")
    if form == "fused":
        q, k, v = torch.zeros(batch, n, 3, heads, 88, dtype=dtype).unbind(2)
    keep = torch.zeros(batch, n)
    if form == "misaligned":
        q, k, v, keep = map(misaligned, (q, k, v, keep))
    leaves = [x.requires_grad_() for x in (q, k, v, keep)]
    out = policy_attention(*leaves, impl="triton")
    torch.autograd.grad(out, leaves, torch.ones_like(out[0, 0, 0, 0]).expand_as(out))


def warm_up_varlen() -> None:
    from lavit.kernels.varlen_attention import warm_up

    warm_up(88, torch.bfloat16, "cpu", weighted=True, impl="triton")


def warm_up_policy() -> None:
    from lavit.kernels.policy_attention import warm_up

    warm_up(88, torch.bfloat16, "cpu", impl="triton")


def gumbel(batch: int, patches: int, min_keep: int, tau: float) -> None:
    from lavit.kernels.gumbel_select import triton as select

    scores, seeds = torch.zeros(batch, patches, 2), torch.zeros(batch, dtype=torch.int64)
    select.gumbel_select(scores, None, seeds, tau, min_keep)
    prob, one = torch.zeros(batch, patches), torch.ones(())
    wide = torch.zeros(patches, 2 * batch)
    rows = wide.T[:batch]
    for keep, soft in ((prob, one.expand(batch, patches)), (wide[:, ::2].T, prob), (rows, rows)):
        select.gumbel_select_backward(keep, soft, prob, tau, torch.float32)


def codes(n: int, num_codes: int, metric: str) -> None:
    from lavit.kernels.nearest_code import triton as nearest

    nearest.nearest_code(torch.zeros(n, 32), torch.zeros(num_codes, 32), metric, True, "exact")


def sums(n: int, num_codes: int) -> None:
    from lavit.kernels.code_statistics import triton as statistics

    statistics.code_statistics(torch.zeros(n, 32), torch.zeros(n, dtype=torch.int64), num_codes)


F32, BF16 = torch.float32, torch.bfloat16
STEPS: dict[str, list[Callable[[], None]]] = {
    "varlen_attention": [
        warm_up_varlen,
        lambda: varlen(20, 30, 3, 4, "plain", F32),
        lambda: varlen(1, 1, 1, 1, "plain", F32),
        lambda: varlen(256, 304, 16, 16, "fused", F32),
        lambda: varlen(17, 3, 16, 3, "misaligned", F32),
        lambda: varlen(16, 16, 16, 16, "plain", BF16),
    ],
    "policy_attention": [
        warm_up_policy,
        lambda: policy(2, 256, 4, "plain"),
        lambda: policy(1, 256, 1, "fused"),
        lambda: policy(16, 17, 16, "misaligned"),
        lambda: policy(1, 1, 1, "plain"),
    ],
    "gumbel_select": [
        lambda: gumbel(1, 200, 0, 1.0),
        lambda: gumbel(2, 256, 1, 1.0),
        lambda: gumbel(16, 144, 16, 0.5),
        lambda: gumbel(33, 251, 37, 0.3),
    ],
    "nearest_code": [
        partial(codes, n, num_codes, metric)
        for n in (1, 16, 17, 640, 5440)
        for num_codes in (2000, 16384)
        for metric in ("cosine", "euclidean")
    ],
    "code_statistics": [partial(sums, n, num_codes) for n in (1, 2, 16, 17, 640) for num_codes in (1, 16, 1000)],
}


def main(operation: str, architecture: int) -> None:
    # Decorated for the compiler, before the variable below would have them interpreted.
    importlib.import_module(f"lavit.kernels.{operation}.triton")
    os.environ["TRITON_INTERPRET"] = "1"  # what lets the operations take tensors of the CPU
    asked, counts = stand_in(architecture), []
    for step in STEPS[operation]:
        before = len(asked)
        step()
        counts.append(len(asked) - before)
    print(json.dumps(counts))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
