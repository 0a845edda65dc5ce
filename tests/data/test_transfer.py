"""Copies to a device and back: the same values, and what is on its way is waited for."""

from __future__ import annotations

import threading

import pytest
import torch

from lavit.data.transfer import Transfer


@pytest.mark.parametrize("name", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_values_come_to_the_device_and_back_as_they_are(name):
    device = torch.device(name)
    transfer = Transfer(device)
    given = [torch.randn(64, 3, 224, 224) for _ in range(5)]
    sent, back = [], []

    def send():
        sent.extend(transfer.send(tensor) for tensor in given)

    sender = threading.Thread(target=send)
    sender.start()
    sender.join()
    for one in sent:
        tensor = transfer.receive(one)
        assert tensor.device.type == device.type
        back.append(transfer.fetch([tensor * 2, tensor.sum(dim=(1, 2, 3)) * 0 + 1]))

    def take():
        for tensor, fetched in zip(given, back, strict=True):
            twice, ones = transfer.take(fetched)
            assert twice.device.type == "cpu" and torch.equal(twice, 2 * tensor) and bool((ones == 1).all())
            found.append(True)

    found: list[bool] = []
    taker = threading.Thread(target=take)
    taker.start()
    taker.join()
    assert len(found) == len(given)


@pytest.mark.gpu
def test_the_host_does_not_wait_for_copies_to_a_gpu():
    transfer = Transfer(torch.device("cuda"))
    tensor = torch.randn(16, 3, 224, 224)
    transfer.receive(transfer.send(tensor))  # the allocators are warm
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        copies, event = transfer.fetch([transfer.receive(transfer.send(tensor))])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(transfer.take((copies, event))[0], tensor)
