from __future__ import annotations

import importlib
import importlib.metadata
import json
import re
import sys

import torch

from lavit import info, threads
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
    assert f"Threads\n  {threads.choose()}\n  waiting: " in page


def test_the_page_tells_what_the_user_has_set_from_what_the_command_has(monkeypatch):
    for name in threads.WAITING:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(threads, "_set_here", set())
    assert info.waiting() == "as OpenMP has it"
    monkeypatch.setenv("GOMP_SPINCOUNT", "1000")
    assert info.waiting() == "GOMP_SPINCOUNT=1000"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    assert info.waiting() == "OMP_WAIT_POLICY=PASSIVE"
    monkeypatch.setattr(threads, "_set_here", {"OMP_WAIT_POLICY"})
    assert info.waiting() == "soon asleep, as commands have it"


def test_the_encoders_attention_is_timed_on_every_device_and_one_is_chosen(capsys):
    assert info.main(["--json"]) == 0
    found = json.loads(capsys.readouterr().out)["encoder_attention"]
    for device in {one["device"] for one in found}:
        here = [one for one in found if one["device"] == device]
        assert all((one["seconds"] is None) == (one["problem"] is not None) for one in here)
        assert [one["seconds"] is not None for one in here if one["chosen"]] == [True]


def test_a_missing_library_is_told_with_its_reason():
    text = info.describe_extension({"path": None, "devices": (), "problem": "lavit._C is not built"})
    assert text == "not in use: lavit._C is not built"
    text = info.describe_extension({"path": "/x/_C.abi3.so", "devices": ("cpu",), "problem": None})
    assert text.startswith("C++ kernels for the CPU; no CUDA kernels")


def test_the_unrelated_apex_of_the_package_index_is_not_taken_for_nvidias(tmp_path, monkeypatch):
    (tmp_path / "apex").mkdir()
    (tmp_path / "apex" / "__init__.py").write_text("")
    metadata = tmp_path / "apex-0.9.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: apex\nVersion: 0.9\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert importlib.metadata.version("apex") == "0.9"
    assert info.installed("apex") is None
    (tmp_path / "apex" / "normalization").mkdir()
    (tmp_path / "apex" / "normalization" / "__init__.py").write_text("")
    importlib.invalidate_caches()
    monkeypatch.delitem(sys.modules, "apex", raising=False)
    assert info.installed("apex") == "0.9"


def test_every_package_that_the_project_needs_is_listed_with_its_version():
    needed = importlib.metadata.requires("lavit") or []
    plain = {re.match(r"[\w.-]+", line)[0].lower() for line in needed if "extra ==" not in line}
    assert plain == set(info.REQUIRED)
