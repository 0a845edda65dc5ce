"""Other people's attention over variable lengths: flash-attn, xformers, and what PyTorch has of its own. By impl= only.

flash-attn and xformers through their public functions; those keep to themselves what their backward needs, so here the
backward computes the forward again. None of the three knows weights of keys. xformers takes the lengths from the host:
with it every call waits for the device, and no CUDA graph can record one.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import torch
from torch import Tensor

LARGEST = 256
HALF = (torch.float16, torch.bfloat16)

# cu_q, cu_k, max_q, max_k, causal, scale, after q, k and v.
Settings = tuple[Tensor, Tensor, int, int, bool, float]


class Package:
    """An implementation of the operation by a package's functions. ``name`` as impl= says it, ``title`` as its authors
    write it, ``why`` what it is, for `lavit info`, ``dtypes`` that it can be given."""

    name: str
    title: str
    why: str
    dtypes: tuple[torch.dtype, ...] = HALF

    def unusable(self, device_type: str) -> str | None:
        if device_type != "cuda":
            return f"{self.title} needs a GPU"
        return None if importlib.util.find_spec(self.name) else f"{self.title} is not installed"

    def forward(self, q: Tensor, k: Tensor, v: Tensor, settings: Settings) -> tuple[Tensor, Tensor]:
        """out, and (Tq, H) float32 that the backward may want. Rows that met nothing may hold anything."""
        raise NotImplementedError

    def backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, settings: Settings
    ) -> tuple[Tensor, Tensor, Tensor]:
        """dq, dk, dv. Rows that met nothing may hold anything."""
        raise NotImplementedError

    def check(self, q: Tensor, key_weight: Tensor | None) -> None:
        """Raises TypeError or ValueError for what the package cannot do."""
        if q.dtype not in self.dtypes:
            names = " or ".join(str(dtype).removeprefix("torch.") for dtype in self.dtypes)
            raise TypeError(f"q: {self.name} needs {names}, got {q.dtype}")
        if key_weight is not None:
            raise ValueError(f"key_weight: {self.name} has no weights of keys, got some")
        if q.shape[-1] > LARGEST or q.shape[-1] % 8:
            raise ValueError(f"q: {self.name} needs a width of at most {LARGEST}, a multiple of 8, got {q.shape[-1]}")

    def varlen_attention(
        self, q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, key_weight: Tensor | None, *bounds: Any
    ) -> tuple[Tensor, Tensor]:
        """out as in reference.py; lse is this package's own."""
        self.check(q, key_weight)
        if _nothing(q, k, *bounds):
            return q.new_zeros(q.shape), q.new_zeros(q.shape[:2], dtype=torch.float32)
        out, lse = self.forward(q, k, v, (cu_q, cu_k, *bounds))
        return served(out, cu_q, cu_k), lse

    def varlen_attention_backward(
        self,
        grad: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        lse: Tensor,
        cu_q: Tensor,
        cu_k: Tensor,
        key_weight: Tensor | None,
        *bounds: Any,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The gradients of reference.py."""
        if _nothing(q, k, *bounds):
            return q.new_zeros(q.shape), k.new_zeros(k.shape), v.new_zeros(v.shape), lse.new_empty(0)
        dq, dk, dv = self.backward(grad, q, k, v, out, lse, (cu_q, cu_k, *bounds))
        return served(dq, cu_q, cu_k), served(dk, cu_k, cu_q), served(dv, cu_k, cu_q), lse.new_empty(0)


def _nothing(q: Tensor, k: Tensor, max_q: int, max_k: int, causal: bool, scale: float) -> bool:
    """Whether there is nothing to launch a kernel for, as far as the host knows."""
    return min(q.shape[0], k.shape[0], max_q, max_k) == 0


def served(x: Tensor, cu: Tensor, cu_other: Tensor) -> Tensor:
    """x (T, H, D), contiguous, with zeros where nothing was attended to and in the unused rows at the end.

    cu: the offsets of x's rows; cu_other: those of what they met, none in some images. The packages leave such rows as
    they were allocated.
    """
    if cu.shape[0] == 1:
        return x.new_zeros(x.shape)
    row = torch.arange(x.shape[0], device=x.device, dtype=cu.dtype)
    image = torch.searchsorted(cu[1:], row, right=True).clamp(max=cu.shape[0] - 2)
    met = (row < cu[-1]) & (cu_other.diff()[image] > 0)
    return torch.where(met[:, None, None], x, 0).contiguous()


class FlashAttn(Package):
    name, title, why = "flash_attn", "flash-attn", "the flash-attn package's kernels"

    @staticmethod
    def attend(q: Tensor, k: Tensor, v: Tensor, settings: Settings) -> Tensor:
        function = importlib.import_module("flash_attn").flash_attn_varlen_func
        *offsets_and_bounds, causal, scale = settings
        return function(q, k, v, *offsets_and_bounds, softmax_scale=scale, causal=causal)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, settings: Settings) -> tuple[Tensor, Tensor]:
        return self.attend(q, k, v, settings), q.new_zeros(q.shape[:2], dtype=torch.float32)

    def backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, settings: Settings
    ) -> tuple[Tensor, Tensor, Tensor]:
        # An autograd.Function in the package, which records inside an operator too.
        q, k, v = (x.detach().requires_grad_() for x in (q, k, v))
        with torch.enable_grad():
            again = self.attend(q, k, v, settings)
        dq, dk, dv = torch.autograd.grad(again, (q, k, v), grad)
        return dq, dk, dv


class Xformers(Package):
    name, title, why = "xformers", "xformers", "the xformers package's kernels, with a wait in every call"
    dtypes = (*HALF, torch.float32)

    @staticmethod
    def arguments(q: Tensor, k: Tensor, v: Tensor, settings: Settings) -> tuple[list[Tensor], dict[str, Any]]:
        """q, k, v as one batch of the used rows, and the mask: the lengths are read, which waits for the device."""
        cu_q, cu_k, _, _, causal, scale = settings
        lengths = torch.stack((cu_q.diff(), cu_k.diff())).tolist()
        blocks = importlib.import_module("xformers.ops.fmha.attn_bias").BlockDiagonalMask
        mask = blocks.from_seqlens(*lengths, device=q.device)
        used = [x[None, : sum(n)] for x, n in zip((q, k, v), (*lengths, lengths[1]), strict=True)]
        return used, {"attn_bias": mask.make_causal() if causal else mask, "scale": scale}

    def forward(self, q: Tensor, k: Tensor, v: Tensor, settings: Settings) -> tuple[Tensor, Tensor]:
        used, options = self.arguments(q, k, v, settings)
        out, lse = q.new_zeros(q.shape), q.new_zeros(q.shape[:2], dtype=torch.float32)
        if all(x.numel() for x in used):
            ops = importlib.import_module("xformers.ops")
            out[: used[0].shape[1]] = ops.memory_efficient_attention_forward(*used, **options)[0]
        return out, lse

    def backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, settings: Settings
    ) -> tuple[Tensor, Tensor, Tensor]:
        used, options = self.arguments(q, k, v, settings)
        gradients = q.new_zeros(q.shape), k.new_zeros(k.shape), v.new_zeros(v.shape)
        if all(x.numel() for x in used):
            ops = importlib.import_module("xformers.ops")
            again, own = ops.memory_efficient_attention_forward_requires_grad(*used, **options)
            grad = grad[None, : used[0].shape[1]].contiguous()
            found = ops.memory_efficient_attention_backward(grad, again, own, *used, **options)
            for whole, part in zip(gradients, found, strict=True):
                whole[: part.shape[1]] = part[0]
        return gradients


class TorchVarlen(Package):
    """The kernels behind torch.nn.attention.varlen, by their operators: that function cannot run inside another."""

    name, title, why = "torch_varlen", "torch's flash attention", "flash attention as PyTorch brings it along"

    def unusable(self, device_type: str) -> str | None:
        if device_type != "cuda":
            return f"{self.title} needs a GPU"
        if torch.backends.cuda.is_flash_attention_available():
            return None
        return f"torch {torch.__version__} was built without flash attention"

    def forward(self, q: Tensor, k: Tensor, v: Tensor, settings: Settings) -> tuple[Tensor, Tensor]:
        *offsets_and_bounds, causal, scale = settings
        out, lse, *_ = torch.ops.aten._flash_attention_forward(
            q, k, v, *offsets_and_bounds, 0.0, causal, False, scale=scale
        )
        return out, lse.t().contiguous()

    def backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, settings: Settings
    ) -> tuple[Tensor, Tensor, Tensor]:
        *offsets_and_bounds, causal, scale = settings
        lse = lse.t().contiguous()
        no_dropout = torch.zeros(2, dtype=torch.uint64, device=q.device), q.new_empty(0)
        return torch.ops.aten._flash_attention_backward(
            grad.contiguous(), q, k, v, out, lse, *offsets_and_bounds, 0.0, causal, *no_dropout, scale=scale
        )


PACKAGES: dict[str, Package] = {package.name: package for package in (FlashAttn(), Xformers(), TorchVarlen())}
