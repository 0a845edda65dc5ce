"""Choosing by the device at hand: its capability, its shared memory, and what Triton says that it has no room for."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from lavit import info
from lavit.kernels import dispatch, triton_support
from lavit.kernels.dispatch import Implementation, register
from lavit.kernels.triton_support import launch_first_that_fits, triton_unusable

CPU = torch.device("cpu")
GPUS = {0: ("Tesla T4", (7, 5), 64), 1: ("H100", (9, 0), 227), 2: ("H100", (9, 0), 227), 3: ("RTX 4090", (8, 9), 99)}


@pytest.fixture
def gpus(monkeypatch):
    """A machine with four GPUs of three kinds, as torch describes them."""
    current = [1]

    class Current:
        def __init__(self, index):
            self.index = index

        def __enter__(self):
            self.before, current[0] = current[0], self.index

        def __exit__(self, *_):
            current[0] = self.before

    def properties(index):
        name, (major, minor), kib = GPUS[getattr(index, "index", index)]
        return SimpleNamespace(
            name=name, major=major, minor=minor, total_memory=2**34, shared_memory_per_block_optin=kib * 1024
        )

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(GPUS))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current[0])
    monkeypatch.setattr(torch.cuda, "device", Current)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index=None: GPUS[index][1])
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    monkeypatch.delenv("LAVIT_KERNELS", raising=False)
    caches = (triton_support._capability_problem, triton_support.shared_memory, dispatch._choose)
    for cached in caches:
        cached.cache_clear()
    yield current
    for cached in caches:
        cached.cache_clear()


def test_each_of_several_gpus_is_judged_by_its_own_capability(gpus, monkeypatch):
    monkeypatch.setattr(dispatch, "OPERATIONS", {})
    operation = register("op", Implementation("triton", "fast", triton_unusable), Implementation("reference", "plain"))
    assert [operation.choose("auto", torch.device("cuda", i)) for i in range(4)] == ["reference", *["triton"] * 3]
    assert operation.choose("auto", "cuda") == "triton"
    gpus[0] = 0
    assert operation.choose("auto", "cuda") == "reference"
    assert "this GPU has 7.5" in triton_unusable("cuda")
    assert gpus == [0]  # the current device is the caller's again


def test_info_lists_what_differs_between_gpus_and_says_where_tiles_are_smaller(gpus):
    listed = info.operations([device["name"] for device in info.devices()])
    triton = {o["device_type"]: o["name"] for o in listed if o["operation"] == "nearest_code"}
    assert triton == {"cpu": triton["cpu"], "cuda": "reference", "cuda:1": "triton"}
    details = [device["detail"] for device in info.devices()]
    assert ["smaller tiles" in detail for detail in details] == [False, True, False, False, True]
    assert details[4].endswith("99 KiB of shared memory a block: smaller tiles")


@pytest.fixture
def refusals(monkeypatch):
    monkeypatch.setattr(triton_support, "_refused", {})
    errors = pytest.importorskip("triton.runtime.errors")

    def launcher(limit):
        tried = []

        def launch(size):
            tried.append(size)
            if size > limit:
                raise errors.OutOfResources(size, limit, "shared memory")
            return f"ran {size}"

        return launch, tried

    return launcher, errors.OutOfResources


def test_the_first_choice_that_the_device_has_room_for_runs_and_is_remembered(refusals):
    launch, tried = refusals[0](limit=99)
    for _ in range(2):
        assert launch_first_that_fits(launch, [227, 163, 64, 32], ("op", 88), CPU) == "ran 64"
    assert tried == [227, 163, 64, 64]
    assert launch_first_that_fits(launch, [227, 48], ("op", 96), CPU) == "ran 48"  # of another width: asked anew
    assert launch_first_that_fits(launch, [227, 32], ("op", 88), torch.device("cuda", 1)) == "ran 32"


def test_where_nothing_fits_tritons_own_error_says_what_was_wanted(refusals):
    launch, tried = refusals[0](limit=10)
    for _ in range(2):
        with pytest.raises(refusals[1], match="Required: 32, Hardware limit: 10"):
            launch_first_that_fits(launch, [64, 32], "op", CPU)
    assert tried == [64, 32, 32]


def test_other_errors_of_a_launch_are_not_taken_for_a_lack_of_room(refusals):
    def launch(size):
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        launch_first_that_fits(launch, [2, 1], "op", CPU)


@pytest.mark.parametrize(
    ("of_triton", "of_numpy", "works"),
    [("3.6.0", "2.4.0", False), ("3.6.0", "2.3.5", True), ("3.7.1", "2.4.6", True), ("3.10.0+git1", "2.10.0", True)],
)
def test_an_interpreter_that_fails_with_this_numpy_says_so(of_triton, of_numpy, works):
    reason = triton_support._interpreter_problem(of_triton, of_numpy)
    assert reason is None if works else f"{of_triton}'s interpreter fails with numpy {of_numpy}" in reason
