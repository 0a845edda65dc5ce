import logging
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lavit.kernels import dispatch
from lavit.kernels.dispatch import Implementation, direct, register


def gpu_only(device_type):
    return None if device_type == "cuda" else "needs a GPU"


@pytest.fixture
def operation(monkeypatch):
    monkeypatch.setattr(dispatch, "OPERATIONS", {})
    monkeypatch.delenv("LAVIT_KERNELS", raising=False)
    yield register("op", Implementation("fast", "it is fast", gpu_only), Implementation("reference", "always there"))
    dispatch._choose.cache_clear()


def test_the_first_usable_implementation_is_chosen_and_the_others_explained(operation):
    assert operation.choose("auto", "cuda") == "fast"
    (choice,) = dispatch.table("cpu")
    assert (choice.name, choice.reason) == ("reference", "always there; not fast: needs a GPU")


def test_a_preference_may_differ_between_devices(monkeypatch):
    monkeypatch.setattr(dispatch, "OPERATIONS", {})
    first, second = Implementation("first", "one"), Implementation("reference", "two")
    operation = register("op", first, second, preference={"cpu": ("reference", "first")})
    assert operation.choose("auto", "cpu") == "reference" and operation.choose("auto", "cuda") == "first"
    dispatch._choose.cache_clear()


@pytest.mark.parametrize(
    ("variable", "chosen"),
    [
        ("reference", "reference"),
        ("op=reference", "reference"),
        ("other=reference, op=reference", "reference"),
        ("other=reference", "fast"),
        ("nowhere", "fast"),
    ],
)
def test_the_environment_asks_for_one_or_for_all(operation, monkeypatch, variable, chosen):
    monkeypatch.setenv("LAVIT_KERNELS", variable)
    assert operation.choose("auto", "cuda") == chosen


def test_the_argument_wins_over_the_environment(operation, monkeypatch):
    monkeypatch.setenv("LAVIT_KERNELS", "fast")
    assert operation.choose("reference", "cuda") == "reference"


def test_what_cannot_run_or_does_not_exist_is_refused_by_name(operation, monkeypatch):
    with pytest.raises(ValueError, match="impl=: op has the implementations fast, reference; got 'triton'"):
        operation.choose("triton", "cpu")
    with pytest.raises(RuntimeError, match="impl=: op cannot run 'fast' on cpu: needs a GPU"):
        operation.choose("fast", "cpu")
    monkeypatch.setenv("LAVIT_KERNELS", "op=fast")
    with pytest.raises(RuntimeError, match="LAVIT_KERNELS: op cannot run 'fast' on cpu"):
        operation.choose("auto", "cpu")


def test_a_choice_is_logged_once(operation, caplog):
    with caplog.at_level(logging.INFO, logger="lavit.kernels"):
        for _ in range(3):
            operation.choose("auto", "cpu")
    assert [r.getMessage() for r in caplog.records] == [
        "op on cpu: reference (always there; not fast: needs a GPU)"
    ]


def test_every_operation_needs_a_reference():
    with pytest.raises(ValueError, match="op: every operation needs a reference implementation"):
        register("op", Implementation("fast", "it is fast"))


def test_every_operation_of_the_library_has_a_choice_on_the_cpu():
    import lavit.kernels  # noqa: F401  registers them

    names = {choice.operation for choice in dispatch.table("cpu")}
    assert {"gumbel_select", "nearest_code", "policy_attention", "varlen_attention", "code_statistics"} <= names


def test_what_an_implementation_does_not_take_goes_to_the_next_that_can_run_and_takes_it(monkeypatch):
    modules = {
        "first": SimpleNamespace(can_take=lambda x: False),
        "second": SimpleNamespace(),
        "third": SimpleNamespace(can_take=lambda x: x.dtype == torch.float32),
        "reference": SimpleNamespace(),
    }
    monkeypatch.setattr(dispatch, "_module", lambda folder, name: modules[name])
    unusable = {"second": lambda device_type: "not built"}
    implementations = {name: Implementation(name, "", unusable.get(name, dispatch.always)) for name in modules}
    operation = dispatch.Operation("stepping", implementations)
    monkeypatch.setattr(dispatch, "OPERATIONS", {"stepping": operation})
    assert operation.module("auto", torch.zeros(1)) is modules["third"]
    assert operation.module("auto", torch.zeros(1, dtype=torch.float64)) is modules["reference"]
    del implementations["reference"]
    with pytest.raises(RuntimeError, match=r"stepping: no implementation takes torch.float64 of shape \(1,\) on cpu"):
        operation.module("auto", torch.zeros(1, dtype=torch.float64))
    dispatch._choose.cache_clear()


class Other(torch.Tensor):
    """A class of its own, with nothing of its own."""


class Watching(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def test_the_registration_is_passed_by_where_nobody_looks_at_operators_only():
    x = torch.zeros(3)
    assert direct(x, None, torch.nn.Parameter(x, requires_grad=False))
    assert not direct(x, x.as_subclass(Other)) and not direct(x.to("meta"))
    with Watching():
        assert not direct(x)
    seen = []
    torch.vmap(lambda row: seen.append(direct(row)) or row)(x[None])
    torch.compile(lambda row: seen.append(direct(row)) or row, backend="eager")(x)
    assert seen == [False, False]


def test_what_has_no_gradient_is_not_called_past_its_registration_where_one_is_wanted():
    x = torch.zeros(3, requires_grad=True)
    assert not direct(torch.zeros(3), x) and direct(x, gradient=True)
    with torch.no_grad():
        assert direct(x)
