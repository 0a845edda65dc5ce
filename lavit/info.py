"""`lavit info`: what is installed, what is built, what each operation will run and why, what is missing."""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version

from lavit import threads

REQUIRED = (
    *("torch", "triton", "transformers", "diffusers", "safetensors", "pillow", "numpy", "pyyaml", "scikit-image"),
    *("lazy-loader", "matplotlib", "jinja2", "markupsafe"),
)

OPTIONAL = {
    "flash-attn": "its attention over variable lengths, and peers for the benchmarks, on CUDA",
    "xformers": "its memory-efficient attention, by impl= and as a peer for the benchmarks, on CUDA",
    "apex": "NVIDIA's fused LayerNorm where it is measured faster, on CUDA",
    "deepspeed": "the ZeRO engine for training on many devices",
    "torchao": "the encoder's weights in 8 bits, by for_inference(quantization=...)",
    "liger-kernel": "fused losses and norms for training the language model, on CUDA",
    "tensorboard": "curves of a training run in TensorBoard, beside the JSON lines",
}

SETTINGS = {
    "LAVIT_KERNELS": "implementations asked for",
    "LAVIT_DEBUG": "checks that read device memory",
    "TRITON_INTERPRET": "Triton kernels on the CPU",
    threads.NUMBER: "threads of the CPU kernels",
    threads.WAITING[0]: "how threads wait for each other",
}


def installed(package: str) -> str | None:
    if package == "apex":
        from lavit.kernels.layer_norm.apex import unusable

        if unusable("cuda") is not None:
            return None  # PyPI's package of that name is another project's
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def devices() -> list[dict[str, str]]:
    """Name, type and detail of the CPU, and of every CUDA device that torch sees."""
    import torch

    from lavit.kernels.triton_support import SHARED_OF_A100, shared_memory

    detail = f"{platform.machine()}, {torch.get_num_threads()} threads of {os.cpu_count()} CPUs"
    found = [{"name": "cpu", "type": "cpu", "detail": detail}]
    for i in range(torch.cuda.device_count()):
        p = torch.cuda.get_device_properties(i)
        detail = f"{p.name}, compute {p.major}.{p.minor}, {p.total_memory / 2**30:.0f} GiB"
        if (shared := shared_memory(torch.device("cuda", i))) < SHARED_OF_A100:
            detail += f"; {shared >> 10} KiB of shared memory a block: smaller tiles"
        found.append({"name": f"cuda:{i}", "type": "cuda", "detail": detail})
    return found


def no_cuda_because() -> str | None:
    """Why torch sees no CUDA device, or None if it sees one."""
    import torch

    if torch.cuda.is_available():
        return None
    return "this torch is built without CUDA" if torch.version.cuda is None else "torch finds no CUDA device or driver"


def operations(devices: list[str]) -> list[dict[str, str]]:
    """What runs on each device; of several GPUs on the first, and on those where something else does, by name."""
    import lavit.kernels  # noqa: F401  (registers the operations)
    from lavit.kernels import dispatch

    listed: dict[str, list[dispatch.Choice]] = {}
    for device in devices:
        choices, kind = dispatch.table(device), device.partition(":")[0]
        if choices not in listed.values():
            listed[device if kind in listed else kind] = choices
    return [asdict(replace(c, device_type=name)) for name, choices in listed.items() for c in choices]


def encoder_attention(devices: list[str]) -> list[dict[str, str | float | bool | None]]:
    """What there is for the encoder's heads of 88 channels in bfloat16, timed on each device: some 0.1 s on a CPU."""
    import torch

    from lavit.tokenizer.encoder_attention import fastest, measured

    listed = []
    for device in devices:
        found = measured(torch.device(device), torch.bfloat16)
        best = fastest(found)
        for one in found:
            facts = {"seconds": one.seconds, "problem": one.problem, "chosen": one.name == best}
            listed.append({"device": device, "name": one.name, **facts})
    return listed


def collect() -> dict:
    """Everything that is printed, as plain data."""
    import torch

    from lavit import __version__
    from lavit.kernels.extension import extension

    here = devices()
    return {
        "versions": {
            "lavit": __version__,
            "python": platform.python_version(),
            "system": platform.platform(),
            **{name: installed(name) for name in REQUIRED},
            "torch": str(torch.__version__),  # names the CUDA that it was built for, as the package's metadata do not
        },
        "devices": here,
        "threads": {"chosen": str(threads.choose()), "waiting": waiting()},
        "no_cuda": no_cuda_because(),
        "extension": asdict(extension()),
        "operations": operations([d["name"] for d in here]),
        "encoder_attention": encoder_attention([d["name"] for d in here]),
        "optional": {name: {"version": installed(name), "brings": brings} for name, brings in OPTIONAL.items()},
        "settings": {name: {"value": threads.given(name), "means": means} for name, means in SETTINGS.items()},
    }


def waiting() -> str:
    """How the threads of this process wait for each other, and who has said so."""
    given = [f"{name}={value}" for name in threads.WAITING if (value := threads.given(name))]
    if given:
        return ", ".join(given)
    return "soon asleep, as commands have it" if os.environ.get(threads.WAITING[0]) else "as OpenMP has it"


def columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Rows of cells, aligned; the last column runs free."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)][:-1]
    return ["  " + "  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[-1]]) for row in rows]


def describe_extension(extension: dict) -> str:
    if extension["problem"]:
        return f"not in use: {extension['problem']}"
    parts = {"cpu": "C++ kernels for the CPU", "cuda": "CUDA kernels"}
    built = " and ".join(parts[d] for d in extension["devices"])
    lacking = "" if "cuda" in extension["devices"] else "; no CUDA kernels (nvcc was not there when it was built)"
    return f"{built}{lacking} ({extension['path']})"


def why_attention(found: dict) -> str:
    if found["problem"]:
        return f"does not run: {found['problem']}"
    return "for_inference(compile=True) takes it for a model like this" if found["chosen"] else ""


def render(info: dict) -> str:
    lines = ["Versions", *columns([(name, value or "not installed") for name, value in info["versions"].items()])]
    lines += ["", "Devices", *columns([(d["name"], d["detail"]) for d in info["devices"]])]
    if info["no_cuda"]:
        lines.append(f"  no GPU: {info['no_cuda']}")
    lines += ["", "Threads", f"  {info['threads']['chosen']}", f"  waiting: {info['threads']['waiting']}"]
    lines += ["", "Compiled library lavit._C", f"  {describe_extension(info['extension'])}"]
    chosen = [(c["operation"], c["device_type"], c["name"], c["reason"]) for c in info["operations"]]
    lines += ["", "Operations: what runs, and why", *columns(chosen)]
    attention = [
        (a["device"], a["name"], f"{1e3 * a['seconds']:.3g} ms" if a["seconds"] is not None else "-", why_attention(a))
        for a in info["encoder_attention"]
    ]
    lines += ["", "Encoder's attention, 257 rows x 16 heads x 88 in bfloat16", *columns(attention)]
    optional = [
        (name, o["version"] or "missing", ("brings " if o["version"] else "would bring ") + o["brings"])
        for name, o in info["optional"].items()
    ]
    lines += ["", "Optional packages", *columns(optional)]
    settings = [(name, s["value"] or "not set", s["means"]) for name, s in info["settings"].items()]
    lines += ["", "Settings", *columns(settings)]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="lavit info", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    arguments = parser.parse_args(argv)
    info = collect()
    print(json.dumps(info, indent=2) if arguments.json else render(info))
    return 0
