"""Batches to a device and results back, without either side waiting for the copy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class Transfer:
    """Copies between the host and one device, on a GPU by way of pinned memory and beside its work. On any other device
    they are plain copies, and of what is on the host already none.

    `send` may be called in another thread than `receive`, `fetch` in another than `take`.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def send(self, tensor: Tensor) -> tuple[Tensor, Any]:
        """A tensor of the host on the device, or on its way there; for `receive`."""
        if self._stream is None:
            return tensor.to(self.device), None
        pinned = tensor.pin_memory()  # goes back to its allocator, which hands it out again after the copy
        with torch.cuda.stream(self._stream):
            return pinned.to(self.device, non_blocking=True), self._stream.record_event()

    def receive(self, sent: tuple[Tensor, Any]) -> Tensor:
        """For the work of the current stream, which waits for the copy on the device."""
        tensor, event = sent
        if event is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_event(event)
            tensor.record_stream(current)
        return tensor

    def fetch(self, tensors: Sequence[Tensor]) -> tuple[list[Tensor], Any]:
        """Copies on the host of what the current stream has computed, or on their way there; for `take`."""
        copies = [tensor.to("cpu", non_blocking=True) for tensor in tensors]  # pinned, where it is from a GPU
        return copies, torch.cuda.current_stream(self.device).record_event() if self._stream is not None else None

    def take(self, fetched: tuple[list[Tensor], Any]) -> list[Tensor]:
        """The copies, when they are complete."""
        tensors, event = fetched
        if event is not None:
            event.synchronize()
        return tensors
