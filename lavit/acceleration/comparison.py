"""Whether a module's own methods and the new ones give the same, on small random inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from lavit.acceleration.registry import Case, Part, first_tensor, swap, swap_back
from lavit.acceleration.structure import Odd

# Of discrete results, so many must be equal: where two are nearly tied, rounding may decide.
EQUAL_SHARE = 0.5
SEED = 20240423
# Numbers of a gradient that are compared: all of an attention of the release, of a tokenizer the smaller parameters.
COMPARED = 1 << 23


@contextmanager
def undisturbed(module: nn.Module) -> Iterator[None]:
    """The global generators are as they were afterwards; for weights in half precision autocast is on, as the release
    runs them."""
    like = first_tensor(module)
    devices = [like.device] if like.device.type == "cuda" else []
    half = like.dtype in (torch.float16, torch.bfloat16)
    with torch.random.fork_rng(devices=devices):
        with torch.autocast(like.device.type, dtype=like.dtype if half else None, enabled=half):
            yield


def seed(device: torch.device) -> None:
    """Of the generators that ``undisturbed`` keeps, and of no other, which torch.manual_seed would set too."""
    torch.default_generator.manual_seed(SEED)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(SEED)


def randoms(module: nn.Module) -> Callable[..., Tensor]:
    """(sizes) -> a normal tensor on the module's device, the same numbers for every call of this function, whatever the
    default device."""
    like = first_tensor(module)
    generator = torch.Generator("cpu").manual_seed(SEED)
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32

    def normal(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator, dtype=dtype, device="cpu").to(like.device)

    return normal


def swap_compared(module: nn.Module, part: Part) -> None:
    """Give the module the part's methods, by the policy that keeps the release's formulas: "exact". Raises Odd, the
    module as it was, where they give something else.

    Continuous results, and the gradient of their squares to parameters that ask for one, may differ by the square root
    of the precision's unit roundoff, in norm: half the digits. Another formula differs by more, the order of sums by
    less.
    """
    with undisturbed(module):
        cases = list(part.cases(module, randoms(module)))
        before = _results(module, cases, "its own methods")
        swap(module, part, "exact")
        try:
            after = _results(module, cases, "the new methods")
            for (was, slope), (now, new_slope) in zip(before, after, strict=True):
                _compare(was, now, first_tensor(module).dtype)
                _compare_gradients(slope, new_slope, first_tensor(module).dtype)
        except BaseException:
            swap_back(module)
            raise


def _results(module: nn.Module, cases: list[Case], whose: str) -> list[Any]:
    """What each call gives and, of those that have one, the gradient to the parameters, as one vector."""
    found: list[Any] = []
    learned = _smallest([p for p in module.parameters() if p.requires_grad])
    for case in cases:
        seed(first_tensor(module).device)
        try:
            with torch.enable_grad():
                result = case(module)
                squares = [x.float().square().sum() for x in _flat(result) if x.requires_grad]
            gradient = torch.autograd.grad(torch.stack(squares).sum(), learned, allow_unused=True) if squares else ()
        except Exception as error:
            raise Odd(f"{whose} fail on a small input: {type(error).__name__}: {error}") from error
        of_all = [torch.zeros_like(p) if g is None else g for p, g in zip(learned, gradient, strict=False)]
        found.append([result, torch.cat([g.flatten().float() for g in of_all]) if of_all else None])
    return found


def _smallest(parameters: list[nn.Parameter]) -> list[nn.Parameter]:
    """As many as COMPARED allows, and one in any case."""
    ordered = sorted(parameters, key=torch.Tensor.numel)
    within = sum(total <= COMPARED for total in accumulate(p.numel() for p in ordered))
    return ordered[: max(1, within)]


def _flat(result: Any) -> list[Tensor]:
    if isinstance(result, (list, tuple)):
        return [x for part in result for x in _flat(part)]
    return [result]


def _compare(was: Any, now: Any, dtype: torch.dtype) -> None:
    if isinstance(was, (list, tuple)):
        if type(was) is not type(now) or len(was) != len(now):
            raise Odd(f"its own methods give {_kind(was)}, the new ones {_kind(now)}")
        for one, other in zip(was, now, strict=True):
            _compare(one, other, dtype)
        return
    if was.shape != now.shape or was.dtype != now.dtype:
        raise Odd(
            f"its own methods give {tuple(was.shape)} {was.dtype}, the new ones {tuple(now.shape)} {now.dtype}, on a "
            "small input"
        )
    if not was.is_floating_point():
        share = (was == now).double().mean().item() if was.numel() else 1.0
        if share < EQUAL_SHARE:
            raise Odd(f"its own methods and the new ones agree in {share:.0%} of the ids of a small input")
        return
    if not was.isfinite().all():
        raise Odd("its own results are not finite on a small input")
    error, allowed = _difference(was, now, dtype)
    if not error <= allowed:
        raise Odd(f"its results differ from the new ones by {error:.1e} on a small input, of {allowed:.1e} allowed")


def _compare_gradients(was: Tensor | None, now: Tensor | None, dtype: torch.dtype) -> None:
    if was is None or now is None:
        if was is not now:
            raise Odd("of its results and the new ones one has a gradient on a small input, and one has none")
        return
    error, allowed = _difference(was, now, dtype)
    if not error <= allowed:
        raise Odd(f"its gradients differ from the new ones by {error:.1e} on a small input, of {allowed:.1e} allowed")


def _difference(was: Tensor, now: Tensor, dtype: torch.dtype) -> tuple[float, float]:
    """Relative, in norm, and what is allowed: weights in half precision have their roundoff beside float32 results."""
    was, now = was.detach().double(), now.detach().double()
    error = ((now - was).norm() / was.norm().clamp(min=1e-30)).item()
    return error, max(torch.finfo(kind).eps for kind in (dtype, torch.float32)) ** 0.5


def _kind(value: Any) -> str:
    return f"a {type(value).__name__} of {len(value)}" if isinstance(value, (list, tuple)) else type(value).__name__
