"""The warm start of stage 1: the selector learns to like what stands out, in its picture or in the batch."""

from __future__ import annotations

import pytest
import torch
from test_train_tokenizer import some_features, tiny

from lavit.training.tokenizer import objective


def test_contrast_is_the_distance_from_the_mean_of_the_neighbours():
    features = torch.randn(2, 9, 5, dtype=torch.float64)
    grid = features.view(2, 3, 3, 5)
    wanted = torch.empty(2, 3, 3, dtype=torch.float64)
    for y in range(3):
        for x in range(3):
            near = [(y + dy, x + dx) for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0))]
            mean = torch.stack([grid[:, a, b] for a, b in near if 0 <= a < 3 and 0 <= b < 3]).mean(0)
            wanted[:, y, x] = (grid[:, y, x] - mean).norm(dim=-1)
    torch.testing.assert_close(objective.contrast(features).double(), wanted.view(2, 9), atol=1e-5, rtol=1e-5)


def test_warm_start_teaches_the_selector_to_like_what_stands_out():
    model, features = tiny(keep_rate=0.25, num_codes=4), some_features(32)
    optimizer = torch.optim.Adam(model.token_predictor.parameters(), 3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        objective.contrast_loss(model, features).backward()
        optimizer.step()
    contrast = objective.contrast(features)
    kept = model.select(features, deterministic=True).keep > 0.5
    assert 0.1 < kept.float().mean() < 0.4
    assert contrast[kept].mean() > 1.5 * contrast[~kept].mean()


def test_relative_contrast_gives_pale_images_as_many_of_the_chosen_patches():
    features = some_features(2)
    features[1] = 0.1 * features[0] + 3.0  # the same picture, ten times paler

    def chosen(relative: float) -> list[int]:
        distances = objective.contrast(features, relative)
        return objective.most_outstanding(distances.flatten(), 0.25).view(2, -1).sum(1).tolist()

    vivid, pale = chosen(0.0)
    assert pale == 0 < vivid
    assert chosen(1.0) == [vivid // 2, vivid // 2]
    between, paler = (objective.contrast(features, 0.5)[i].mean() for i in (0, 1))
    assert between / paler == pytest.approx(10**0.5, rel=1e-4)


def test_relative_contrast_reaches_the_loss_and_the_look_ahead():
    model, batch = tiny(), {"features": torch.cat([some_features(1), 0.1 * some_features(1)])}
    losses = [objective.contrast_loss(model, batch["features"], relative=r) for r in (0.0, 1.0)]
    assert losses[0] != losses[1]
    for relative, loss in zip((0.0, 1.0), losses, strict=True):
        settings = {"tau": 1.0, "noise_scale": 0.0}
        parts = objective.Step(model)(batch, warm_start=1.0, relative=relative, quantize=False, **settings)
        assert parts["contrast_loss"].item() == pytest.approx(loss.item(), rel=1e-6)
        ((seen, told),) = objective.look_ahead(model, [batch], contrasted=True, relative=relative, **settings)
        distances = objective.contrast(seen["features"], relative).flatten()
        assert torch.equal(told["outstanding"], objective.most_outstanding(distances, model.config.keep_rate))


def test_a_warm_step_runs_the_selector_once_with_the_gradient_of_two_runs(monkeypatch):
    model, batch = tiny().double(), {"features": some_features(4).double()}
    runs, forward = [], model.token_predictor.forward
    monkeypatch.setattr(model.token_predictor, "forward", lambda x: runs.append(1) or forward(x))
    settings = {"tau": 1.0, "noise_scale": 0.0, "quantize": False}

    def gradients(loss):
        model.zero_grad()
        loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    once = gradients(objective.Step(model)(batch, warm_start=0.7, **settings)["loss"])
    assert len(runs) == 1
    twice = gradients(model(**batch, **settings).loss + 0.7 * objective.contrast_loss(model, batch["features"]))
    assert len(runs) == 3 and once.keys() == twice.keys()
    for name, gradient in once.items():
        torch.testing.assert_close(gradient, twice[name], rtol=1e-9, atol=1e-12)
