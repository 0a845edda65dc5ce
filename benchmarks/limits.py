"""What a GPU can do at most, by NVIDIA's data sheets, and which part of it a run reached."""

from __future__ import annotations

from typing import Any

# As torch names them: bytes a second of the memory, operations a second of the tensor cores in dense bfloat16.
LIMITS = {
    "NVIDIA B200": (8.0e12, 2250e12),
    "NVIDIA H200": (4.8e12, 989e12),
    "NVIDIA H100 80GB HBM3": (3.35e12, 989e12),
    "NVIDIA H100 PCIe": (2.0e12, 756e12),
    "NVIDIA A100-SXM4-80GB": (2.039e12, 312e12),
    "NVIDIA A100-SXM4-40GB": (1.555e12, 312e12),
    "NVIDIA GeForce RTX 4090": (1.008e12, 165e12),
}


def reached(device: str, seconds: float, facts: dict[str, Any]) -> tuple[float, str] | None:
    """The larger of the shares of the two limits, and which it is; None for an unknown device, or where a case says
    neither how many bytes it moves nor how many operations it takes. Above 1: what is moved lay in a cache."""
    if device not in LIMITS or seconds <= 0:
        return None
    shares = [
        (facts[unit] / seconds / limit, name)
        for unit, limit, name in zip(("bytes_moved", "operations"), LIMITS[device], ("memory", "bf16"), strict=True)
        if unit in facts
    ]
    return max(shares, default=None)
