"""The Triton kernels, compiled ahead of time; triton's own cuobjdump and nvdisasm tell what came of it.

Every ``kernels/<operation>/triton.py`` lists its compilations in ``variants()``; a kernel that no variant covers,
itself or as a function that a covered kernel calls, is a failure. Works with triton 3.6 and later.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import multiprocessing
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks.audit.row import Row
from lavit.kernels.triton_support import Variant

WARP = 32

# An instruction of SASS with its modifiers, without its predicate.
SASS_OPCODE = re.compile(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", re.MULTILINE)
# Products of the tensor cores: HMMA on sm_80, HGMMA on sm_90, UTCHMMA on sm_100, and their other types; in PTX, theirs.
TENSOR_CORE = re.compile(r"(UTC\w*MMA|[A-Z]GMMA|[BDHIOQ]MMA)$")
PTX_TENSOR_CORE = re.compile(r"^\s*(?:@!?%\w+\s+)?(tcgen05\.mma|wgmma\.mma_async|mma\.sync)", re.MULTILINE)
WIDTHS = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}


def audited_module(name: str, folder: Path) -> str:
    """The module of an operation's Triton kernels, once it is certain that it is there."""
    if not (folder / name / "triton.py").is_file():
        raise ValueError(f"no operation {name!r} with a triton.py in {folder}")
    return f"lavit.kernels.{name}.triton"


def variants_of(module: ModuleType, every: bool = False) -> list[Variant]:
    """A module's variants; raises ValueError where it has none or leaves a kernel of its own out."""
    make = getattr(module, "variants", None)
    more = every and callable(make) and "every" in inspect.signature(make).parameters
    found = list(make(**({"every": True} if more else {}))) if callable(make) else []
    if not found:
        raise ValueError(f"{module.__name__} has no variants() or lists none: nothing of it would be audited")
    covered: set[str] = set()
    for variant in found:
        for function in (variant.kernel, *variant.constants.values()):
            _cover(_jit_function(function), covered)
    left = sorted({_key(f) for f in kernels_of(module)} - covered)
    if left:
        names = ", ".join(key.rpartition(".")[2] for key in left)
        raise ValueError(f"{module.__name__}: no variant covers {names}, and no kernel of a variant calls it")
    return found


def kernels_of(module: ModuleType) -> list[Any]:
    """The ``@triton.jit`` functions of a module, and of its package's other modules as far as it has imported them."""
    home = f"{module.__package__}." if module.__package__ else module.__name__
    near = [m for name, m in sorted(sys.modules.items()) if m is module or name.startswith(home)]
    functions = (_jit_function(value) for m in near for value in vars(m).values())
    return [f for f in functions if f is not None and f.fn.__module__ in {m.__name__ for m in near}]


def _jit_function(value: Any) -> Any:
    """What lies under ``@triton.autotune`` and its like, or None for anything that is no kernel."""
    from triton.runtime.jit import JITFunction, KernelInterface

    while isinstance(value, KernelInterface) and not isinstance(value, JITFunction):
        value = getattr(value, "fn", None)
    return value if isinstance(value, JITFunction) else None


def _key(function: Any) -> str:
    return f"{function.fn.__module__}.{function.fn.__name__}"


def _cover(function: Any, covered: set[str]) -> None:
    """Add a kernel and every ``@triton.jit`` function that its code names, in turn."""
    if function is None or _key(function) in covered:
        return
    covered.add(_key(function))
    names, world = function.fn.__code__.co_names, function.fn.__globals__
    modules = [value for value in map(world.get, names) if isinstance(value, ModuleType)]
    for name in names:
        for value in (world.get(name), *(vars(m).get(name) for m in modules)):
            _cover(_jit_function(value), covered)


@cache
def tool(name: str) -> str | None:
    """One of CUDA's binary utilities: triton's own, else what PATH or the toolkit has."""
    spec = importlib.util.find_spec("triton")
    own = Path(spec.origin).parent / "backends" / "nvidia" / "bin" / name if spec and spec.origin else Path(name)
    return shutil.which(str(own)) or shutil.which(name) or shutil.which(f"/usr/local/cuda/bin/{name}")


def audit(
    modules: list[str], architectures: tuple[int, ...], workers: int, every: bool = False
) -> tuple[list[Row], list[str]]:
    """One row for every variant and architecture it is made for, and what kept a module or variant from one."""
    jobs, problems = [], []
    for name in modules:
        try:
            found = variants_of(importlib.import_module(name), every)
        except ValueError as error:
            problems.append(str(error))
            continue
        jobs += [(name, every, i, a) for i, v in enumerate(found) for a in architectures if a in v.architectures]
    # Not forked: the parent may have threads by now.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        results = list(pool.map(_compiled, *zip(*jobs, strict=True), chunksize=4)) if jobs else []
    rows = [result for result in results if isinstance(result, Row)]
    return rows, problems + [result for result in results if isinstance(result, str)]


@cache
def _listed(name: str, every: bool) -> list[Variant]:
    return variants_of(importlib.import_module(name), every)


def _compiled(name: str, every: bool, index: int, architecture: int) -> Row | str:
    """The row of one compilation, or in words why there is none."""
    variant = _listed(name, every)[index]
    operation = name.split(".")[-2] if name.endswith(".triton") else name
    try:
        return compile_variant(operation, variant, architecture, disassemble=not every)
    except Exception as error:
        what = f"{operation}: {_jit_function(variant.kernel).fn.__name__} [{variant.label}] for sm_{architecture}"
        return f"{what} does not compile: {type(error).__name__}: {error}"


def compile_variant(operation: str, variant: Variant, architecture: int, disassemble: bool = True) -> Row:
    """Compile it and look at what came of it. disassemble: count tensor-core instructions in the machine code, not in
    PTX; that takes as long as compiling. What is spilled is always counted there."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function = _jit_function(variant.kernel)
    names = function.arg_names
    given = {**{name: "constexpr" for name in variant.constants}, **variant.signature}
    if set(given) != set(names) or len(given) != len(variant.constants) + len(variant.signature):
        raise ValueError(f"the variant describes the arguments {sorted(given)}, the kernel has {sorted(names)}")
    multiples = [n for n in names if given[n].startswith("*") or n in variant.divisible]
    source = ASTSource(
        function,
        {name: given[name] for name in names},
        constexprs={(names.index(name),): value for name, value in variant.constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in multiples},
    )
    options = {"num_warps": variant.num_warps, "num_stages": variant.num_stages, "enable_fp_fusion": True}
    options |= {"maxnreg": variant.maxnreg} if variant.maxnreg else {}
    compiled = triton.compile(source, target=GPUTarget("cuda", architecture, WARP), options=options)
    products = Counter(PTX_TENSOR_CORE.findall(compiled.asm["ptx"]))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        registers, stack = _resources(file.name)
        spilled = stack
        # Not where there is neither local memory nor a product to look for.
        if (stack != 0 or products and disassemble) and (opcodes := _opcodes(file.name)) is not None:
            spilled = sum(n * _local_bytes(opcode) for opcode, n in opcodes.items())
            products = Counter(
                base for opcode in opcodes.elements() if TENSOR_CORE.match(base := opcode.partition(".")[0])
            )
    return Row(
        operation=operation,
        kernel=function.fn.__name__,
        label=variant.label,
        architecture=architecture,
        registers=registers,
        stack=stack,
        spilled=spilled,
        shared=compiled.metadata.shared,
        registers_at_most=min(variant.maxnreg or 255, 65536 // (WARP * variant.num_warps), 255),
        tensor_core_instructions=dict(products),
        tensor_cores_meant=variant.tensor_cores,
    )


def _local_bytes(opcode: str) -> int:
    """What one instruction moves between a thread's registers and local memory."""
    base, *modifiers = opcode.split(".")
    return next((WIDTHS[m] for m in modifiers if m in WIDTHS), 4) if base in ("LDL", "STL") else 0


def _resources(cubin: str) -> tuple[int | None, int | None]:
    """Registers and bytes of local memory per thread; None without cuobjdump."""
    if (program := tool("cuobjdump")) is None:
        return None, None
    command = [program, "--dump-resource-usage", cubin]
    report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    usages = [dict(re.findall(r"(\w+):(\d+)", line)) for line in report.splitlines() if "REG:" in line]
    if not usages:
        raise RuntimeError(f"cuobjdump's report is not understood:\n{report}")
    return max(int(u["REG"]) for u in usages), max(int(u["STACK"]) + int(u["LOCAL"]) for u in usages)


def _opcodes(cubin: str) -> Counter[str] | None:
    """How often each instruction, with its modifiers, is in the kernel's SASS; None without nvdisasm."""
    if (program := tool("nvdisasm")) is None:
        return None
    command = [program, "--print-code", "--no-dataflow", cubin]
    return Counter(SASS_OPCODE.findall(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
