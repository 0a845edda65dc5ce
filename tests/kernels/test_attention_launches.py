"""How the attentions' kernels are launched: tiles for small devices, warming up, what they may touch."""

from __future__ import annotations

import fence
import pytest
import torch
from packed import inputs, run
from policy_cases import case
from policy_cases import run as run_policy
from usable import skip_unless_usable

from lavit.kernels import triton_support
from lavit.kernels.policy_attention import warm_up as warm_up_policy
from lavit.kernels.triton_support import Tile
from lavit.kernels.varlen_attention import warm_up as warm_up_varlen

CPU = torch.device("cpu")


@pytest.fixture
def interpreted():
    for operation in ("policy_attention", "varlen_attention"):
        skip_unless_usable(operation, "triton", CPU)


def test_smaller_tiles_run_loads_less_far_ahead_and_then_halve_the_longer_side(interpreted):
    from lavit.kernels.attention_launches import smaller

    found = [(t.block_m, t.block_n, t.num_stages) for t in smaller(Tile(64, 32, 8, 2))]
    assert found == [(64, 32, 2), (64, 32, 1), (32, 32, 1), (16, 32, 1), (16, 16, 1)]
    assert smaller(Tile(16, 16, 4, 1)) == [Tile(16, 16, 4, 1)]


class Small:
    """A kernel on a device that has room for so many elements of a tile and no more; the others run interpreted."""

    def __init__(self, kernel, room, tried):
        self.kernel, self.room, self.tried = kernel, room, tried

    def __getitem__(self, grid):
        from triton.runtime.errors import OutOfResources

        def launch(*args, **options):
            place = self.kernel.arg_names.index
            block_m, block_n = args[place("BLOCK_M")], args[place("BLOCK_N")]
            self.tried.append((block_m, block_n, options["num_stages"]))
            if block_m * block_n > self.room:
                raise OutOfResources(block_m * block_n, self.room, "shared memory")
            return self.kernel[grid](*args, **options)

        return launch


@pytest.mark.parametrize("operation", ["varlen_attention", "policy_attention"])
def test_where_a_device_has_no_room_for_a_tile_a_smaller_one_gives_the_results(interpreted, monkeypatch, operation):
    from importlib import import_module

    triton = import_module(f"lavit.kernels.{operation}.triton")
    monkeypatch.setattr(triton_support, "_refused", {})
    if operation == "varlen_attention":
        problem = (*inputs([37, 2], [35, 3], 64, torch.float32, "cpu"), [37, 2], [35, 3])
        results = lambda: run("triton", *problem)  # noqa: E731
    else:
        problem = (*case(37, 64, "third", batch=1), "causal", 1e-6)
        results = lambda: run_policy(*problem)  # noqa: E731
    expected, tried = results(), []
    for name in [name for name in vars(triton) if name.endswith("_kernel")]:
        monkeypatch.setattr(triton, name, Small(getattr(triton, name), 256, tried))
    got = results()
    # The same sums in another order.
    for x, y in zip(got, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4)
    assert max(m * n for m, n, _ in tried) > 256 and tried.count((16, 16, 1)) == 3
    tried.clear()
    assert all(torch.equal(a, b) for a, b in zip(results(), got, strict=True))
    assert tried == [(16, 16, 1)] * 3  # remembered


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_warming_up_runs_all_kernels_of_a_kind_of_call(interpreted, monkeypatch, dtype):
    launched = fence.install(monkeypatch).launched
    with torch.no_grad():
        warm_up_varlen(24, dtype, "cpu", causal=True, weighted=True, impl="triton")
        warm_up_policy(24, dtype, "cpu", kind="cross", eps=0.0, impl="triton")
    varlen, policy = launched[:3], launched[3:]
    assert len(policy) == 3
    assert all(x["q"].dtype == dtype and x["D"] == 24 and x["CAUSAL"] and x["weight"] is not None for x in varlen)
    assert all(x["q_ptr"].dtype == dtype and x["D"] == 24 and not x["CAUSAL"] and not x["EPS"] for x in policy)


@pytest.mark.parametrize("operation", ["varlen_attention", "policy_attention"])
def test_tensors_that_begin_anywhere_are_read_right(interpreted, operation):
    """Views whose first element is no multiple of 16 bytes."""

    def elsewhere(x):
        return x.new_zeros(x.numel() + 1)[1:].view(x.shape).copy_(x)

    if operation == "varlen_attention":
        tensors, others, call = inputs([5, 2], [3, 4], 16, torch.float32, "cpu"), ([5, 2], [3, 4]), run
        got = call("triton", *map(elsewhere, tensors), *others)
        expected = call("triton", *tensors, *others)
    else:
        tensors = case(17, 16, "third", batch=1)
        got, expected = (run_policy(*x, "causal", 1e-6) for x in (map(elsewhere, tensors), tensors))
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_images_beyond_what_32_bits_count_go_to_another_implementation(interpreted):
    from lavit.kernels.policy_attention.triton import can_take

    one = torch.zeros((), dtype=torch.bfloat16)
    assert not can_take(one.expand(1, 2**18, 128, 64)) and can_take(one.expand(9, 2**17, 128, 64))


def test_a_fence_notices_every_load_and_store_outside(interpreted, monkeypatch):
    """The kernels as they are, given one row, one head or one image more than their tensors have."""
    from lavit.kernels.varlen_attention import triton

    launched = fence.install(monkeypatch).launched
    q, k, v, g, w = inputs([5, 2], [3, 4], 16, torch.float32, "cpu")
    run("triton", q, k, v, g, w, [5, 2], [3, 4])
    for launch, name, argument in (
        (launched[0], "forward_kernel", "total_q"),
        (launched[1], "backward_queries_kernel", "images"),
        (launched[2], "backward_keys_kernel", "total_k"),
        (launched[2], "backward_keys_kernel", "heads"),
    ):
        arguments = {**launch, argument: launch[argument] + 1}
        programs = (arguments["images"] + 1) * arguments["blocks"] * arguments["heads"]
        with pytest.raises(Exception, match="outside of|no argument's memory"):
            getattr(triton, name)[(programs,)](*arguments.values())


HOSTILE = [[0, 9, 4, 20], [-5, 3, 8, 20], [0, 40, 50, 60], [7, 7, 2**31 - 1, -(2**31)], [20, 12, 3, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("queries", HOSTILE, ids=str)
def test_hostile_offsets_touch_nothing_outside(interpreted, monkeypatch, poisoned, queries, causal):
    """Below the operation, which refuses them on a CPU: what the kernels do on a GPU, where nobody looks."""
    from lavit.kernels.varlen_attention import triton

    fence.install(monkeypatch, once=False)  # images that overlap are written twice
    q, k, v, g, w = inputs([20], [20], 40, torch.float32, "cpu", spare=0)
    cu_q = torch.tensor(queries, dtype=torch.int32)
    for cu_k in (cu_q, *(torch.tensor(keys, dtype=torch.int32) for keys in HOSTILE[::2])):
        settings = cu_q, cu_k, None if causal else w, 20, 20, causal, 0.1
        out, lse = triton.varlen_attention(q, k, v, *settings)
        triton.varlen_attention_backward(g, q, k, v, out, lse, *settings)
