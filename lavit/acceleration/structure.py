"""Recognising a module by the names and shapes of what it holds, never by its class or where that was imported from."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn


class Odd(Exception):
    """A module has the names of a known part and something that the part has not; the text says what."""


def has_names(module: nn.Module, children: Iterable[str], parameters: Iterable[str] = ()) -> bool:
    """Whether the module's own children and parameters that are not None have just these names."""
    held = {name for name, child in module._modules.items() if child is not None}
    own = {name for name, value in module._parameters.items() if value is not None}
    return held == set(children) and own == set(parameters)


def holds(module: nn.Module, children: Iterable[str], parameters: Iterable[str] = ()) -> bool:
    """Whether the module has children and parameters of these names, and perhaps others."""
    return set(children) <= set(module._modules) and set(parameters) <= set(module._parameters)


def expect_names(module: nn.Module, children: Iterable[str], parameters: Iterable[str] = ()) -> None:
    """As :func:`has_names`; Odd names what is missing or too much."""
    held = {name for name, inner in module._modules.items() if inner is not None}
    held |= {name for name, value in module._parameters.items() if value is not None}
    wanted = {*children, *parameters}
    if missing := wanted - held:
        raise Odd(f"has no {', '.join(sorted(missing))}")
    if surplus := held - wanted:
        raise Odd(f"has {', '.join(sorted(surplus))} besides")


def child(module: nn.Module, path: str) -> Any:
    """The submodule at a dotted path; Odd where there is none."""
    found = module
    for name in path.split("."):
        inner = found._modules.get(name)
        if inner is None:
            raise Odd(f"has no {path}")
        found = inner
    return found


def expect_shape(name: str, value: Tensor | None, shape: tuple[int, ...]) -> None:
    if value is None:
        raise Odd(f"has no {name}")
    if tuple(value.shape) != shape:
        raise Odd(f"{name}: expected shape {shape}, got {tuple(value.shape)}")


def expect_linear(module: nn.Module, path: str, inputs: int, outputs: int, bias: bool = True) -> None:
    """A layer whose only parameters are a weight (outputs, inputs) and, with ``bias``, a bias (outputs,)."""
    layer = child(module, path)
    if not has_names(layer, (), ("weight", "bias") if bias else ("weight",)):
        raise Odd(f"{path}: expected a weight {'and a' if bias else 'without'} bias alone")
    expect_shape(f"{path}.weight", layer.weight, (outputs, inputs))
    if bias:
        expect_shape(f"{path}.bias", layer.bias, (outputs,))


def expect_norm(module: nn.Module, path: str, width: int) -> None:
    layer = child(module, path)
    if not has_names(layer, (), ("weight", "bias")) or not hasattr(layer, "eps"):
        raise Odd(f"{path}: expected a LayerNorm with weight and bias")
    expect_shape(f"{path}.weight", layer.weight, (width,))


def expect_types(module: nn.Module, path: str, *types: type) -> Any:
    """A chain of layers without surprises: of just these classes of torch, or of classes made from them."""
    layers = child(module, path)
    if not isinstance(layers, nn.Sequential) or len(layers) != len(types):
        raise Odd(f"{path}: expected {len(types)} layers in a row")
    for number, (layer, wanted) in enumerate(zip(layers, types, strict=True)):
        if not isinstance(layer, wanted):
            raise Odd(f"{path}.{number}: expected {wanted.__name__}, got {type(layer).__name__}")
    return layers


def expect_no_dropout(module: nn.Module) -> None:
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Dropout) and layer.p != 0:
            raise Odd(f"{name}: expected no dropout, got {layer.p}")


def expect_attribute(module: nn.Module, name: str, wanted: object) -> None:
    value = getattr(module, name, None)
    if value != wanted:
        raise Odd(f"{name}: expected {wanted!r}, got {value!r}")


def expect_heads(module: nn.Module, width: int) -> None:
    """A number of heads that divides the width, and logits scaled by D^-1/2."""
    heads = getattr(module, "num_heads", None)
    if not isinstance(heads, int) or heads < 1 or width % heads:
        raise Odd(f"num_heads: expected a divisor of {width}, got {heads!r}")
    scale = getattr(module, "scale", None)
    if not isinstance(scale, float) or abs(scale * (width // heads) ** 0.5 - 1) > 1e-6:
        raise Odd(f"scale: expected {(width // heads) ** -0.5:.6g}, got {scale!r}")


def arguments(module: nn.Module, method: str) -> str | None:
    """The method's arguments, names and defaults, as in "x, policy=None"; None where there is no such method."""
    own = getattr(type(module), method, None)
    if own is None:
        return None
    parameters = list(inspect.signature(own).parameters.values())[1:]
    return ", ".join(str(p.replace(annotation=inspect.Parameter.empty)) for p in parameters)


def expect_arguments(module: nn.Module, method: str, wanted: str) -> None:
    """The method takes the arguments ``wanted``, as by :func:`arguments`."""
    found = arguments(module, method)
    if found is None:
        raise Odd(f"has no method {method}")
    if found != wanted:
        raise Odd(f"{method}: expected the arguments ({wanted}), got ({found})")


HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def has_hooks(module: nn.Module) -> bool:
    """Whether something runs with the module's calls beside its class's forward."""
    return any(getattr(module, kind) for kind in HOOKS) or "forward" in vars(module)


def expect_no_hooks(module: nn.Module, paths: Iterable[str]) -> None:
    """None of these submodules, which will no longer be called, has a hook that would no longer run."""
    for path in paths:
        if has_hooks(child(module, path)):
            raise Odd(f"{path}: has a hook, which would no longer run")
