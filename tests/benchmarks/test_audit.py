"""The audit of the GPU kernels passes on this repository's, and finds what it is there to find in others."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.audit.row import Row

ROOT = Path(__file__).resolve().parents[2]
OPERATIONS = sorted(path.parent.name for path in (ROOT / "kernels").glob("*/triton.py"))

# A product with and without tensor cores, one that no thread has the registers for, and a kernel that is left out.
KERNELS = '''
import triton
import triton.language as tl
from lavit.kernels.triton_support import Variant


@triton.jit
def doubled(x):
    return x + x


@triton.jit
def product(a_ptr, out_ptr, SIZE: tl.constexpr, WAY: tl.constexpr):
    rows = tl.arange(0, SIZE)[:, None]
    columns = tl.arange(0, SIZE)[None, :]
    a = tl.load(a_ptr + rows * SIZE + columns)
    if WAY == "cores":
        a = tl.dot(a.to(tl.float16), a.to(tl.float16))
    tl.store(out_ptr + rows * SIZE + columns, doubled(a))


@triton.jit
def forgotten(x_ptr):
    tl.store(x_ptr, 1.0)


def variant(label, size, way, cores, warps=4):
    signature = {"a_ptr": "*fp32", "out_ptr": "*fp32"}
    constants = {"SIZE": size, "WAY": way}
    return Variant(product, label, signature, constants, num_warps=warps, tensor_cores=cores)


def variants():
    return VARIANTS
'''


def audit(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.audit", "--arch", "90", "--skip-cuda", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


def audit_module(folder: Path, name: str, variants: str, without_forgotten: bool = True):
    text = KERNELS.replace("VARIANTS", variants)
    if without_forgotten:
        start = text.index("@triton.jit\ndef forgotten")
        text = text[:start] + text[text.index("def variant(") :]
    (folder / f"{name}.py").write_text(text)
    file = folder / f"{name}.json"
    path = os.pathsep.join([str(folder), str(ROOT), os.environ.get("PYTHONPATH", "")])
    result = audit("--module", name, "--json", str(file), PYTHONPATH=path)
    return result, json.loads(file.read_text())


pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


@pytest.mark.timeout(900)
def test_every_triton_kernel_is_free_of_spills_and_uses_tensor_cores_where_meant(tmp_path):
    result = audit("--json", str(tmp_path / "audit.json"), TRITON_INTERPRET="1")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "TRITON_INTERPRET=1 is set" in result.stdout
    report = json.loads((tmp_path / "audit.json").read_text())
    assert {row["operation"] for row in report["rows"]} == set(OPERATIONS)
    assert report["problems"] == []
    for row in report["rows"]:
        assert row["kernel"] in result.stdout
        assert row["architecture"] == 90 and row["registers"] > 0
        assert row["spilled"] == 0, row
        assert row["tensor_core_instructions"] or not row["tensor_cores_meant"], row
    assert any(row["tensor_cores_meant"] for row in report["rows"])


def row(registers: int | None, at_most: int | None, spilled: int | None) -> Row:
    return Row("operation", "kernel", "label", 90, registers, spilled, spilled, 0, at_most)


def test_a_few_bytes_spilled_for_another_block_pass_and_those_for_want_of_registers_do_not():
    assert row(128, 255, 32).bargain and not list(row(128, 255, 32).problems())
    for spills in (row(255, 255, 8), row(128, 255, 36), row(128, 128, 8), row(None, 255, 8), row(128, None, 8)):
        assert not spills.bargain and "spills" in next(spills.problems())
    assert not row(255, 255, 0).bargain and not list(row(255, 255, 0).problems())


@pytest.mark.parametrize("operation", ["varlen_attention", "policy_attention"])
def test_every_lists_the_compilations_of_all_widths_dtypes_and_devices(operation):
    from itertools import product

    from lavit.kernels.triton_support import POINTERS, column_parts, newest, of_width

    module = importlib.import_module(f"lavit.kernels.{operation}.triton")

    def compilation(v):
        parts = v.constants["D0"], v.constants["D1"]
        pointer = v.signature["q"] if "q" in v.signature else v.signature["q_ptr"]
        tile = v.constants["BLOCK_M"], v.constants["BLOCK_N"], v.num_warps, v.num_stages
        return v.kernel.fn.__name__, parts, sum(parts) == v.constants["D"], pointer, *tile

    listed = {(*compilation(v), served) for v in module.variants(every=True) for served in v.architectures}
    assert listed >= {(*compilation(v), served) for v in module.variants() for served in v.architectures}
    dtypes = [dtype for dtype, name in POINTERS.items() if name != "*fp64"]
    for dim, dtype, served in product(range(16, 257, 8), dtypes, (80, 90, 100)):
        if operation == "varlen_attention":
            tiles = of_width(newest(module.TABLE, served)[dtype.itemsize], dim)
        else:
            tiles = module.tiles_of(served, dim, dtype)
        for name, kernel in module.KERNELS.items():
            tile, parts = getattr(tiles, name), column_parts(dim)
            shape = tile.block_m, tile.block_n, tile.num_warps, tile.num_stages
            chosen = kernel.fn.__name__, parts, sum(parts) == dim, POINTERS[dtype], *shape, served
            assert chosen in listed, (dim, dtype, served, name)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("version", ["3.6.0", "3.7.0"])
def test_the_same_with_other_versions_of_triton(version):
    """Beside the newest, by ``python -m benchmarks.audit``, which CI runs; ``--every`` takes an hour a version."""
    result = audit("--arch", "80", "--arch", "100", "--triton", version)
    assert f"Triton {version}: " in result.stdout, result.stderr
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr


def test_a_spill_and_missing_tensor_cores_are_caught_and_a_good_kernel_passes(tmp_path):
    variants = """[
        variant("good", 64, "cores", True),
        variant("no cores", 64, "sum", True),
        variant("too big for two warps", 128, "cores", True, warps=2),
    ]"""
    result, report = audit_module(tmp_path, "audited_products", variants)
    assert result.returncode == 1
    rows = {row["label"]: row for row in report["rows"]}
    assert rows["good"]["spilled"] == 0 and sum(rows["good"]["tensor_core_instructions"].values()) > 0
    assert rows["no cores"]["tensor_core_instructions"] == {}
    assert rows["too big for two warps"]["spilled"] > 0
    where = "audited_products: product"
    assert any(p.startswith(f"{where} [no cores] on sm_90 has no tensor-core") for p in report["problems"])
    assert any(p.startswith(f"{where} [too big for two warps] on sm_90 spills") for p in report["problems"])
    assert not any("[good]" in problem for problem in report["problems"])


def test_a_kernel_that_no_variant_covers_is_caught_and_a_called_one_is_covered(tmp_path):
    result, report = audit_module(tmp_path, "audited_left_out", '[variant("good", 64, "cores", True)]', False)
    assert result.returncode == 1
    assert report["problems"] == [
        "audited_left_out: no variant covers forgotten, and no kernel of a variant calls it"
    ]


def test_an_empty_list_of_variants_is_caught(tmp_path):
    result, report = audit_module(tmp_path, "audited_nothing", "[]")
    assert result.returncode == 1
    assert "audited_nothing has no variants() or lists none" in report["problems"][0]
