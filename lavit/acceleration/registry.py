"""The parts that `accelerate` knows. A new family of models is a module that calls :func:`register`, no new branch.

A module gets a part's methods by a change of its class, to one made of the part's methods and the module's own class:
``isinstance`` holds, parameters, buffers, hooks and ``state_dict`` are untouched, and the way back is the old class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

Case = Callable[[Any], Any]
"""One call of a method, the result being tensors or lists and tuples of them."""


@dataclass(frozen=True)
class Part:
    """One kind of module.

    name: for the report.
    alike: whether a module's names are this kind's; cheap, asked of every module.
    check: raises Odd where a shape, an attribute or an argument is not this kind's, for all that the methods rely on.
    methods: a class whose functions replace the module's of the same name. In them ``policy_of(self)`` is the policy.
    cases: calls on small inputs, from the module and a function that makes them, by which the module's own methods and
        the new ones are compared before the change stands. A call is made twice, and draws no inputs of its own.
    needs: of a module, paths of submodules and the names of the parts that these must have become.
    on_one_device: the modules whose parameters must lie on one device.
    """

    name: str
    alike: Callable[[Any], bool]
    check: Callable[[Any], None]
    methods: type
    cases: Callable[[Any, Callable[..., Tensor]], Iterable[Case]]
    needs: Callable[[nn.Module], Iterable[tuple[str, str]]] = lambda module: ()
    on_one_device: Callable[[nn.Module], Iterable[nn.Module]] = lambda module: (module,)

    def replaced(self) -> tuple[str, ...]:
        return tuple(name for name in vars(self.methods) if not name.startswith("_"))


PARTS: dict[str, Part] = {}


def register(part: Part) -> None:
    """Make a part known. Raises ValueError for a name that is taken."""
    if part.name in PARTS:
        raise ValueError(f"part: {part.name!r} is registered already")
    PARTS[part.name] = part


@dataclass(frozen=True)
class Change:
    part: Part
    policy: str
    own: Any


def change_of(module: nn.Module) -> Change | None:
    """What was done to the module, None where nothing was."""
    return getattr(type(module), "_lavit_change", None)


def policy_of(module: nn.Module) -> str:
    change = change_of(module)
    assert change is not None
    return change.policy


@cache
def _changed(own: Any, name: str, policy: str) -> Any:
    part = PARTS[name]
    space = {
        "__module__": own.__module__,
        "__qualname__": own.__qualname__,
        "__doc__": own.__doc__,
        "__reduce_ex__": _reduce,
        "_lavit_change": Change(part, policy, own),
    }
    return type(own)(own.__name__, (part.methods, own), space)


def _reduce(self: nn.Module, protocol: Any) -> Any:
    """A copy, by copy.deepcopy or pickle, is changed alike; to read the pickle, this library must be there."""
    change = change_of(self)
    assert change is not None
    state: Any = object.__reduce_ex__(self, 2)[2:]
    return _rebuild, (change.own, change.part.name, change.policy), *state


def _rebuild(own: Any, name: str, policy: str) -> nn.Module:
    changed = _changed(own, name, policy)
    return changed.__new__(changed)


def swap(module: nn.Module, part: Part, policy: str) -> None:
    own: Any = type(module)
    module.__class__ = _changed(own, part.name, policy)


def swap_back(module: nn.Module) -> None:
    change = change_of(module)
    assert change is not None
    module.__class__ = change.own


def first_tensor(module: nn.Module) -> Tensor:
    """A floating parameter of the module, for its device and dtype: a weight of a layer where there is one, as norms
    stay in float32 beside half-precision weights."""
    floating = [p for p in module.parameters() if p.is_floating_point()]
    return next((p for p in floating if p.dtype != torch.float32), floating[0])
