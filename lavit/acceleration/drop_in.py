"""``lavit.accelerate(model)``: one line in the release's own program, and ``lavit.restore(model)``, its undoing."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from lavit.acceleration import families  # noqa: F401 registers the parts
from lavit.acceleration.comparison import swap_compared
from lavit.acceleration.registry import PARTS, Part, change_of, swap, swap_back
from lavit.acceleration.report import Left, Replaced, Report
from lavit.acceleration.structure import Odd

POLICIES = ("exact", "fast")


def accelerate(model: nn.Module, policy: str = "exact", *, compare: bool = True) -> Report:
    """Give the modules of a released model this library's methods, in place, on the parameters that they have.

    model: the release's, or one that holds its modules somewhere (a wrapper, a training program's module). They are
        recognised by the names and shapes of what they hold. ``state_dict()``, optimizers, hooks on the modules
        themselves and later loading of weights are untouched.
    policy: "exact", the release's formulas to rounding, all rows and its epsilon; "fast", the paper's: no epsilon, the
        merger computes kept rows only, ids are decided in float32 under autocast too.
    compare: run every module's own methods and the new ones on small random inputs, and leave it where they differ.
        Without, only names and shapes speak for it. Random generators are left as they were.

    Returns a Report, ``print`` it: what was replaced, and what was left and why. Raises TypeError for a model that is
    no module; ValueError for another policy, a model accelerated already, one in which nothing is recognised, or one
    whose recognised parts lie on several devices, and RuntimeError or the like for what goes wrong on the way; the
    model is then as it was.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if policy not in POLICIES:
        raise ValueError(f"policy: expected one of {', '.join(map(repr, POLICIES))}, got {policy!r}")
    for name, module in model.named_modules():
        if (change := change_of(module)) is not None:
            where = f"its module {name!r}" if name else "it"
            already = f"is accelerated already, policy {change.policy!r}"
            raise ValueError(f"model: {where} {already}; lavit.restore undoes it")
    found, left = _recognise(model)
    if found:
        _check_devices(model, [held for _, module, part in found for held in part.on_one_device(module)])
    done: list[tuple[str, nn.Module, Part]] = []
    try:
        for name, module, part in found:
            try:
                _check_needs(module, part)
                if compare:
                    swap_compared(module, part)
                else:
                    swap(module, part, "exact")
            except Odd as odd:
                left.append(Left(name, part.name, str(odd)))
            else:
                done.append((name, module, part))
        if not done:
            raise ValueError(_nothing(left))
        for _, module, part in done:
            swap_back(module)
            swap(module, part, policy)
    except BaseException:
        for _, module, _ in done:
            swap_back(module)
        raise
    replaced = tuple(Replaced(name, part.name, part.replaced()) for name, _, part in reversed(done))
    return Report(policy, replaced, tuple(reversed(left)))


def restore(model: nn.Module) -> Report:
    """Undo :func:`accelerate`: every module has its own methods again. Returns what was replaced until now.

    Raises ValueError where nothing was accelerated, or where something else has changed a module's class since then.
    """
    changed = [(name, module) for name, module in model.named_modules() if change_of(module) is not None]
    if not changed:
        raise ValueError("model: expected an accelerated one, but none of its modules is")
    policy, replaced = "", []
    for name, module in changed:
        change = change_of(module)
        assert change is not None
        if "_lavit_change" not in vars(type(module)):
            raise ValueError(f"model: the class of {name or 'the model'} was changed after accelerate; undo that first")
        policy = change.policy
        replaced.append(Replaced(name, change.part.name, change.part.replaced()))
    for _, module in changed:
        swap_back(module)
    return Report(policy, tuple(replaced), restored=True)


def _recognise(model: nn.Module) -> tuple[list[tuple[str, nn.Module, Part]], list[Left]]:
    """The modules that are parts, inner ones first, and those that are alike and are left."""
    found, left = [], []
    for name, module in reversed(list(model.named_modules())):
        for part in _alike(module):
            try:
                _check_replaceable(module, part)
                found.append((name, module, part))
            except Odd as odd:
                left.append(Left(name, part.name, str(odd)))
            except (AttributeError, IndexError, TypeError, ValueError) as error:  # what only looks alike
                left.append(Left(name, part.name, f"is not built like it: {error}"))
            break
    return found, left


def _alike(module: nn.Module) -> Iterator[Part]:
    return (part for part in PARTS.values() if part.alike(module))


def _check_replaceable(module: nn.Module, part: Part) -> None:
    if isinstance(module, torch.jit.ScriptModule):
        raise Odd("is a ScriptModule")
    for method in part.replaced():
        if method in vars(module):
            raise Odd(f"its {method} was set by someone on the module itself")
    part.check(module)


def _check_needs(module: nn.Module, part: Part) -> None:
    for path, wanted in part.needs(module):
        try:
            change = change_of(module.get_submodule(path))
        except AttributeError as error:
            raise Odd(f"has no {path}") from error
        if change is None or change.part.name != wanted:
            raise Odd(f"its {path} is no {wanted}, or was left")


def _check_devices(model: nn.Module, modules: list[nn.Module]) -> None:
    names = {id(value): name for name, value in (*model.named_parameters(), *model.named_buffers())}
    devices: dict[torch.device, str] = {}
    for module in modules:
        for value in (*module.parameters(), *module.buffers()):
            devices.setdefault(value.device, names.get(id(value), "a parameter"))
    if len(devices) > 1:
        places = ", ".join(f"{name} on {device}" for device, name in devices.items())
        raise ValueError(f"model: expected its parts on one device, got {places}")
    if any(device.type == "meta" for device in devices):
        raise ValueError("model: expected weights, got parameters on the meta device; load them first")


def _nothing(left: list[Left]) -> str:
    if not left:
        return "model: nothing in it has the names of a part of the released LaVIT"
    reasons = "; ".join(f"{entry.name or 'the model'}, {entry.part}: {entry.reason}" for entry in reversed(left))
    return f"model: nothing in it can be replaced: {reasons}"
