"""``python -m benchmarks.gpu.versions``: device, driver and versions as a line of JSON; exits with 1 without a GPU."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

PACKAGES = ("torch", "triton", "transformers", "diffusers", "numpy", "flash-attn", "xformers")


def versions() -> dict[str, Any]:
    import torch

    found: dict[str, Any] = {"python": platform.python_version(), "cuda": torch.version.cuda}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    found["torch"] = str(torch.__version__)
    found["device"] = None
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found["device"] = properties.name
        found["capability"] = f"{properties.major}.{properties.minor}"
        found["shared_memory"] = getattr(properties, "shared_memory_per_block_optin", None)
        found["driver"] = _said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    found["commit"] = _said("git", "rev-parse", "HEAD") or os.environ.get("LAVIT_COMMIT", "unknown")
    return found


def _said(*words: str) -> str | None:
    try:
        said = subprocess.run(words, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return said.stdout.strip().splitlines()[0] if said.returncode == 0 and said.stdout.strip() else None


if __name__ == "__main__":
    told = versions()
    print(json.dumps(told))
    sys.exit(0 if told["device"] is not None else 1)
