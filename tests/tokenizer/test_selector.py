"""The selector and its Gumbel choice against the golden tensors."""

from __future__ import annotations

import pytest
import torch
from golden_tensors import golden, golden_config, load, relative

from lavit.kernels import gumbel_select
from lavit.tokenizer.selector import Selector


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_log_probabilities_equal_golden(dtype: torch.dtype, tolerance: float) -> None:
    selector = load(Selector(golden_config()), "selector", "selector.", dtype)
    out = selector(golden("selector")["selector_in"].to(dtype))
    assert out.dtype == dtype
    assert relative(out, golden("selector")["selector_logp"]) < tolerance


def test_half_precision_input_is_computed_in_float32_under_autocast_too() -> None:
    x = golden("selector")["selector_in"].bfloat16()
    selector = load(Selector(golden_config()), "selector", "selector.", torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = selector(x)
    assert out.dtype == torch.float32
    assert relative(out, golden("selector")["selector_logp"]) < 1e-5


def test_bfloat16_parameters_still_compute_in_float32() -> None:
    # Only the rounding of the parameters (biases and norms are not exact in bfloat16) may show.
    x = golden("selector")["selector_in"].bfloat16()
    half = load(Selector(golden_config()), "selector", "selector.", torch.bfloat16)
    full = Selector(golden_config())
    full.load_state_dict(half.state_dict())
    assert torch.equal(half(x), full(x))


@pytest.mark.parametrize("tau", [1.0, 0.5])
def test_choice_for_given_noise_equals_golden(tau: float) -> None:
    tensors = golden("selector")
    selection = gumbel_select(tensors["selector_logp"], tau=tau, noise=tensors["gumbel_noise"])
    assert torch.equal(selection.keep, tensors[f"keep_mask_tau{tau}"])
    assert relative(selection.prob, tensors[f"gumbel_soft_tau{tau}"][..., 0]) < 1e-9


def test_a_patch_knows_the_other_patches() -> None:
    selector = load(Selector(golden_config()), "selector", "selector.", torch.float64)
    x = golden("selector")["selector_in"][:1].clone()
    before = selector(x)[0, 0]
    x[0, -1] *= -1
    assert not torch.equal(selector(x)[0, 0], before)
