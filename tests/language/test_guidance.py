import pytest
import torch
from tiny_llama import VOCABULARY, tiny_llama
from torch import nn
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from lavit.language.guidance import (
    SamplingSettings,
    draw,
    guided_log_probs,
    guided_scores,
    image_head,
    uniforms,
)
from lavit.language.vocabulary import Vocabulary


@pytest.mark.parametrize("guidance", [0.0, 1.0, 4.0])
def test_the_heads_other_rows_cancel_from_the_distribution_over_allowed_ids(guidance):
    head = nn.Linear(32, VOCABULARY.size + 5, bias=True, dtype=torch.float64)
    c, u = torch.randn(2, 7, 32, dtype=torch.float64)
    weight, bias = image_head(head, VOCABULARY)
    whole = guided_log_probs(head(c), head(u), guidance)[:, VOCABULARY.end_id : VOCABULARY.size]
    part = guided_scores(c @ weight.T + bias, u @ weight.T + bias, guidance)
    torch.testing.assert_close(part.log_softmax(-1), whole.log_softmax(-1), rtol=0, atol=1e-12)


def test_the_heads_rows_for_images_are_a_view_of_16385_of_48386():
    vocabulary = Vocabulary(32000, 16384)
    head = nn.Linear(1, vocabulary.size, bias=False)
    weight, bias = image_head(head, vocabulary)
    assert weight.shape == (16385, 1) and bias is None
    assert weight.data_ptr() == head.weight[32001:].data_ptr()


def test_a_vocabulary_larger_than_the_head_is_refused():
    with pytest.raises(ValueError, match="vocabulary: expected at most 78 ids, the rows of the model's head, got 79"):
        image_head(tiny_llama().lm_head, Vocabulary(40, 37))


def nucleus(scores, settings):
    """Probabilities as transformers' processors leave them: temperature, top-k, top-p."""
    ids = torch.zeros(len(scores), 1, dtype=torch.int64)
    scores = TemperatureLogitsWarper(settings.temperature)(ids, scores)
    if settings.top_k is not None:
        scores = TopKLogitsWarper(settings.top_k)(ids, scores)
    if settings.top_p < 1:
        scores = TopPLogitsWarper(settings.top_p)(ids, scores)
    return scores.softmax(-1)


@pytest.mark.parametrize(
    "settings",
    [
        SamplingSettings(top_k=None),
        SamplingSettings(top_k=5, temperature=0.7),
        SamplingSettings(top_k=None, top_p=0.6),
        SamplingSettings(top_k=6, top_p=0.7, temperature=2.0),
        SamplingSettings(top_k=100),
    ],
    ids=["all", "top 5", "nucleus", "both", "more than there are"],
)
def test_draws_invert_the_distribution_that_transformers_processors_leave(settings):
    scores = 2 * torch.randn(3, 11, dtype=torch.float64)
    scores[1, 4] = -torch.inf
    fine = 20011  # a grid of random numbers: each id is drawn for an interval as long as its probability
    uniform = torch.arange(fine, dtype=torch.float64) / fine
    for row, wanted in zip(scores, nucleus(scores, settings), strict=True):
        drawn = draw(row.expand(fine, -1), uniform, settings)
        found = torch.bincount(drawn, minlength=11) / fine
        assert (found - wanted).abs().max() < 2 / fine
        assert not found[wanted == 0].any()
        assert (drawn.diff() >= 0).all()  # in the order of the ids


@pytest.mark.parametrize("uniform", [0.0, 1 - 2.0**-53])
def test_the_ends_of_the_unit_interval_draw_ids_that_are_allowed(uniform):
    scores = torch.randn(257, 9, dtype=torch.float64)
    scores[:, [0, 8]] = -torch.inf
    drawn = draw(scores, torch.full((257,), uniform, dtype=torch.float64), SamplingSettings(top_k=None))
    assert (drawn == (1 if uniform == 0 else 7)).all()


def test_temperature_0_takes_the_likeliest():
    scores = torch.randn(5, 9)
    assert torch.equal(draw(scores, torch.rand(5).double(), SamplingSettings(temperature=0)), scores.argmax(-1))


def test_random_numbers_depend_on_seed_and_place_only_and_are_uniform():
    seeds = torch.tensor([0, 1, -5, 2**62, 2**62 + 1])
    numbers = uniforms(seeds, 4000)
    assert torch.equal(numbers[3:4, :7], uniforms(seeds[3:4], 7))
    assert len(numbers.unique()) == numbers.numel()
    assert numbers.min() >= 0 and numbers.max() < 1
    # Kolmogorov's distance of 20 000 draws exceeds 1.95 / sqrt(n) once in a thousand.
    ordered = numbers.flatten().sort().values
    distance = (ordered - torch.arange(len(ordered)) / len(ordered)).abs().max()
    assert distance < 1.95 / len(ordered) ** 0.5


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("guidance", -0.1),
        ("guidance", float("inf")),
        ("temperature", -1.0),
        ("temperature", float("nan")),
        ("top_k", 0),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_tokens", 201),
        ("min_tokens", -1),
        ("max_tokens", 0),
        ("num_samples", 0),
        ("check_every", 0),
    ],
)
def test_settings_out_of_range_are_named(name, value):
    with pytest.raises(ValueError, match=f"{name}: expected .*, got {value}" if name != "max_tokens" else "max_tokens"):
        SamplingSettings(**{name: value})


@pytest.mark.parametrize(
    "settings",
    [
        SamplingSettings(top_k=None),
        SamplingSettings(top_k=2),
        SamplingSettings(top_p=0.5),
        SamplingSettings(temperature=0),
        SamplingSettings(temperature=1e-300),
    ],
    ids=["all", "top 2", "nucleus", "greedy", "cold"],
)
def test_a_row_without_a_finite_best_draws_no_id_and_leaves_the_others(settings):
    nan, inf = torch.nan, torch.inf
    scores = torch.tensor(
        [
            [-inf, 1.0, -inf, 0.0],
            [-inf, 1.0, nan, 0.0],
            [-inf, nan, nan, nan],
            [-inf, 1.0, inf, 0.0],
            [-inf, -inf, -inf, -inf],
            [-inf, -inf, -1e300, -inf],
            [nan, -inf, -inf, -inf],
        ],
        dtype=torch.float64,
    )
    for uniform in (0.0, 0.3, 1 - 2.0**-53):
        drawn = draw(scores, torch.full((7,), uniform, dtype=torch.float64), settings).tolist()
        assert drawn[0] in (1, 3) and drawn[5] == 2
        assert [drawn[i] for i in (1, 2, 3, 4, 6)] == [-1] * 5
