"""What the bound of nearest_code's screening leaves to the rescoring, and how often either precision differs.

``TRITON_INTERPRET=1 python -m benchmarks.screening`` without a GPU (two minutes), with one without the variable.
Unit vectors and codes drawn at random, K = 16384, D = 32, beside float64.
"""

from __future__ import annotations

import sys
import warnings

import torch

from lavit.kernels import nearest_code
from lavit.kernels.triton_support import triton_unusable

ROWS, CODES, WIDTH = 2048, 16384, 32


def main() -> int:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if (reason := triton_unusable(device.type)) is not None:
        print(reason, file=sys.stderr)
        return 2
    from lavit.kernels.nearest_code import triton

    warnings.filterwarnings("ignore", category=RuntimeWarning, module="triton")  # the interpreter's, of NaN
    if device.type == "cpu":
        triton.RESCORE_ROWS = 256  # an interpreted program costs the same, however large
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, WIDTH, generator=generator).to(device)
    codebook = torch.nn.functional.normalize(torch.randn(CODES, WIDTH, generator=generator), dim=1).to(device)
    expected = nearest_code(x.double().cpu(), codebook.double().cpu()).to(device)

    found = triton.screen(x, codebook, "cosine", True, False, triton.plan(x, CODES))
    assert found.window is not None
    threshold = found.keys.amax(dim=(0, 2)) - found.window
    candidates = (found.keys >= threshold[:, None]).sum(dim=(0, 2))
    whole = (found.third >= threshold[:, None]).any(dim=1)
    exact, fast = (triton.nearest_code(x, codebook, "cosine", True, p)[0] for p in ("exact", "fast"))
    print(f"{ROWS} rows, {CODES} codes of {WIDTH}")
    print(f"bound of a block's maximum:    {float(found.window.max()) / 2:.1e} of the largest score, 1")
    print(f"blocks left a row:             {float(candidates.double().mean()):.3f} of {CODES // 32}")
    print(f"rows with a share left whole:  {float(whole.double().mean()):.2%}")
    print(f"ids that are not float64's:    {float((exact != expected).double().mean()):.2%} exact,", end=" ")
    print(f"{float((fast != expected).double().mean()):.2%} fast")
    return 0


if __name__ == "__main__":
    sys.exit(main())
