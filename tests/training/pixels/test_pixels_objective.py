"""Stage 3's objective: losses, weights, dropped conditions and averages, each against a plain formula."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import EMAModel, compute_snr
from small_pixels import trained

from lavit.pixels import Condition, NegativeEmbeds
from lavit.training.pixels.objective import Step, min_snr_weight, noised, target, without_some


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_the_loss_is_the_plain_formula_with_diffusers_own_noise(prediction):
    scheduler = DDPMScheduler(num_train_timesteps=50, prediction_type=prediction)
    module = trained()
    step = Step(module, scheduler.alphas_cumprod, prediction, drop=0.0, gamma=5.0)
    images, features = torch.rand(3, 3, 32, 32) * 2 - 1, torch.randn(3, 16, 16)
    torch.manual_seed(7)
    with torch.no_grad():
        out = step(images, features)
        torch.manual_seed(7)
        time, noise = torch.randint(50, (3,)), torch.randn(3, 3, 32, 32)
        noisy = scheduler.add_noise(images, noise, time)
        predicted = module.unet(noisy, time, module.conditioner(features).embeds).sample
    wanted = {"epsilon": noise, "v_prediction": scheduler.get_velocity(images, noise, time), "sample": images}
    error = (predicted - wanted[prediction]).pow(2).flatten(1).mean(1)
    snr = compute_snr(scheduler, time)
    capped = snr.clamp(max=5.0)
    weight = {"epsilon": capped / snr, "v_prediction": capped / (snr + 1), "sample": capped}[prediction]
    # Sums of 3072 float32 squares in another order, and square roots of products instead of products of square roots.
    torch.testing.assert_close(out["loss"], (weight * error).mean(), rtol=1e-4, atol=0)
    torch.testing.assert_close(out["error"], error.mean(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_min_snr_weights_stay_finite_where_there_is_only_noise_or_none(prediction):
    weight = min_snr_weight(torch.tensor([0.0, 1.0]), 5.0, prediction)
    assert weight.tolist() == {"epsilon": [1, 0], "v_prediction": [0, 0], "sample": [0, 5]}[prediction]


def test_noise_and_velocity_give_the_image_back():
    x, noise, alpha = torch.randn(4, 3, 2, 2), torch.randn(4, 3, 2, 2), torch.tensor([0.0, 0.3, 0.9, 1.0])
    v, a = target(x, noise, alpha, "v_prediction"), alpha.view(-1, 1, 1, 1)
    torch.testing.assert_close(a.sqrt() * noised(x, noise, alpha) - (1 - a).sqrt() * v, x)


def test_a_dropped_condition_is_the_negative_and_the_others_stay():
    condition = Condition(torch.randn(5, 4, 6), torch.randn(5, 3))
    drop = torch.tensor([True, False, False, True, False])
    embeds, pooled, mask = without_some(condition, drop, None)
    assert mask is None and not embeds[drop].any() and not pooled[drop].any()
    assert torch.equal(embeds[~drop], condition.embeds[~drop]) and torch.equal(pooled[~drop], condition.pooled[~drop])
    stored = NegativeEmbeds.from_tensor(torch.randn(3, 6))
    embeds, _, mask = without_some(Condition(condition.embeds), drop, stored)
    assert torch.equal(embeds[0, :3], stored.embeds) and mask.tolist()[0] == [1, 1, 1, 0]
    assert torch.equal(embeds[~drop], condition.embeds[~drop]) and mask[~drop].all()


def test_the_asked_for_share_of_conditions_is_dropped():
    seen = []

    class Spy(torch.nn.Module):
        def forward(self, x, time, encoder_hidden_states):
            seen.append((encoder_hidden_states == 0).flatten(1).all(1))
            return type("Output", (), {"sample": x})

    module = trained()
    step = Step(module, torch.linspace(1, 0, 10), "epsilon", drop=0.1)
    step.unet = Spy()
    torch.manual_seed(0)
    for _ in range(8):
        step(torch.zeros(512, 3, 2, 2), torch.ones(512, 16, 16))
    share = torch.cat(seen).double().mean().item()
    assert abs(share - 0.1) < 4 * (0.1 * 0.9 / 4096) ** 0.5


def test_averages_are_those_of_diffusers():
    module = trained(decay=0.5)
    theirs = EMAModel(module.trained_parameters(), decay=0.5)
    for _ in range(14):
        with torch.no_grad():
            for parameter in module.trained_parameters():
                parameter.add_(torch.randn_like(parameter))
        module.move_average()
        theirs.step(module.trained_parameters())
    for ours, other in zip(module.average.parameters(), theirs.shadow_params, strict=True):
        torch.testing.assert_close(ours, other)
