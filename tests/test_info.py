from __future__ import annotations

import json

import torch

from lavit import info
from lavit.kernels import dispatch


def test_every_operation_is_listed_with_its_reason(capsys):
    assert info.main(["--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    on_cpu = {c["operation"]: c for c in printed["operations"] if c["device_type"] == "cpu"}
    assert set(on_cpu) == set(dispatch.OPERATIONS)
    assert all(c["reason"] and c["name"] in dispatch.OPERATIONS[o].implementations for o, c in on_cpu.items())
    assert printed["versions"]["torch"] == torch.__version__


def test_the_page_names_devices_extension_and_what_is_missing(capsys, monkeypatch):
    monkeypatch.setattr(info, "installed", lambda package: None if package == "deepspeed" else "1.0")
    assert info.main([]) == 0
    page = capsys.readouterr().out
    assert "Compiled library lavit._C" in page
    assert "would bring the ZeRO engine" in page
    assert f"{torch.get_num_threads()} threads" in page


def test_a_missing_library_is_told_with_its_reason():
    text = info.describe_extension({"path": None, "devices": (), "problem": "lavit._C is not built"})
    assert text == "not in use: lavit._C is not built"
    text = info.describe_extension({"path": "/x/_C.abi3.so", "devices": ("cpu",), "problem": None})
    assert text.startswith("C++ kernels for the CPU; no CUDA kernels")
