"""Time of a token against the context before it: ``python -m benchmarks.language.growth OUT.svg``.

One pass over a token of both guidance streams (two rows) of the small model of bench_sampling, after a context of 64 to
16 384 tokens whose keys and values are random numbers: by ``KeyValueCache.step`` and by transformers' forward pass with
its ``DynamicCache``, which gets both rows at once. On one thread; of rounds in turn the least CPU time. Prints the same
as Markdown, with tokens a second and two exponents: fitted to all points, and between the last two octaves. A pass has
a part that does not depend on the context, so that the exponent goes from 0 to at most 1.

Parity: at every context both give the same states, within rounding.
"""

from __future__ import annotations

import argparse
import io
import math
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor
from transformers import DynamicCache, LlamaForCausalLM

from benchmarks.language.bench_sampling import SMALL, model_of
from benchmarks.plot import POINT, Points, draw_panel, fitted, slope
from lavit.language.cache import CACHE, KeyValueCache
from lavit.report.plots import drawing

CONTEXTS = (64, 256, 1024, 4096, 16384)
ROWS, TOKENS, ROUNDS = 2, 8, 9
TITLE = f"a token after a context, {ROWS} rows, width 128, 4 layers, float32"


def filled(model: LlamaForCausalLM, context: int) -> DynamicCache:
    """A cache of random keys and values, the same for the same context."""
    generator = torch.Generator().manual_seed(context)
    config, cache = model.config, DynamicCache()
    heads = config.num_attention_heads
    for layer in range(config.num_hidden_layers):
        both = torch.randn(2, ROWS, heads, context, config.hidden_size // heads, generator=generator)
        cache.update(both[0], both[1], layer)
    return cache


def lavit_tokens(model: LlamaForCausalLM, context: int) -> Callable[[Tensor], Tensor]:
    """ids (ROWS, TOKENS) -> last states, each token read after those before it; from the same context every time."""
    rows = torch.arange(ROWS)
    cache = KeyValueCache(model, filled(model, context), torch.ones(ROWS, context, dtype=torch.bool), rows, TOKENS)
    hidden = cache.mask.clone()

    def run(ids: Tensor) -> Tensor:
        cache.slot.fill_(context)
        cache.token.zero_()
        cache.mask.copy_(hidden)
        return torch.stack([cache.step(ids[:, fed], fed) for fed in range(TOKENS)])[-1]

    return run


def transformers_tokens(model: LlamaForCausalLM, context: int) -> Callable[[Tensor], Tensor]:
    cache = filled(model, context)

    def run(ids: Tensor) -> Tensor:
        for fed in range(TOKENS):
            position = torch.full((ROWS, 1), context + fed)
            out = model.model(ids[:, fed : fed + 1], position_ids=position, use_cache=True, **{CACHE: cache})
        cache.crop(-TOKENS)
        return out.last_hidden_state[:, 0]

    return run


FORMS = {"lavit": lavit_tokens, "transformers": transformers_tokens}


@torch.inference_mode()
def measured() -> dict[str, Points]:
    """(context, seconds a token) of each form."""
    model = model_of(*SMALL, "cpu")  # type: ignore[arg-type]
    ids = torch.randint(0, SMALL[0].size, (ROWS, TOKENS), generator=torch.Generator().manual_seed(0))
    curves: dict[str, Points] = {name: [] for name in FORMS}
    for context in CONTEXTS:
        runs = {name: form(model, context) for name, form in FORMS.items()}
        ours, theirs = (run(ids) for run in runs.values())
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
        least = dict.fromkeys(runs, math.inf)
        for _ in range(ROUNDS):
            for name, run in runs.items():
                begin = time.process_time()
                run(ids)
                least[name] = min(least[name], (time.process_time() - begin) / TOKENS)
        for name, seconds in least.items():
            curves[name].append((context, seconds))
    return curves


def picture(curves: dict[str, Points]) -> str:
    file = io.StringIO()
    with drawing("growth", 13 * POINT):
        figure = Figure((6.2, 3.64), facecolor="white", layout="constrained")
        axes = figure.subplots()
        draw_panel(axes, TITLE, curves)
        axes.set(xlabel="tokens of context", ylabel="seconds a token")
        figure.savefig(file, format="svg", metadata={"Date": None})
    return re.sub(r"[ \t]+$", "", file.getvalue(), flags=re.MULTILINE)


def markdown(curves: dict[str, Points]) -> str:
    lines = [f"**{TITLE}**, tokens a second", ""]
    for name, points in curves.items():
        each = ", ".join(f"{1 / t:,.0f} at {n:,}" for n, t in points)
        lines.append(f"- {name}: {each}; time as context^{fitted(points):.2f}, at the end ^{slope(points):.2f}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.language.growth", description=__doc__)
    parser.add_argument("out", type=Path, help="the picture to write, SVG")
    arguments = parser.parse_args(argv)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        curves = measured()
    finally:
        torch.set_num_threads(before)
    arguments.out.write_text(picture(curves))
    print(markdown(curves))
    return 0


if __name__ == "__main__":
    sys.exit(main())
