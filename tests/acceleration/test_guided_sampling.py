"""Guided sampling in one pass a token: the same draws as two passes, and what goes the release's own way."""

from __future__ import annotations

import traceback

import pytest
import release_alike as release
import torch
from host_reads import host_reads
from torch.utils._python_dispatch import TorchDispatchMode

from lavit import accelerate, restore
from lavit.acceleration.guided_sampling import Draw, drawn_from
from lavit.language.cache import KeyValueCache

PROMPTS = ["a red square", "two blue circles beside a small dog"]
BEGIN, END, FIRST = release.BEGIN, release.END, release.FIRST


def model(load_tokenizer=True, **changes):
    torch.manual_seed(11)
    generation = release.Generation(load_tokenizer=load_tokenizer)
    for name, value in changes.items():
        setattr(generation.llama_model.generation_config, name, value)
    return generation


def draw(generation, prompts=PROMPTS, seed=3, **settings):
    torch.manual_seed(seed)
    return generation.generate_image_tokenids(prompts, **{"max_length": 30, "min_length": 5, **settings})


SETTINGS = {
    "defaults": {},
    "four samples": {"num_return_images": 4},
    "all ids": {"top_k": 0, "top_p": 1.0},
    "more candidates than ids": {"top_k": 10**5, "top_p": 1.0},
    "nucleus": {"top_k": 0, "top_p": 0.5},
    "cold": {"temperature": 0.3, "guidance_scale": 1.5},
    "hot, soon ended": {"temperature": 5.0, "min_length": 0},
    "one token": {"max_length": 1, "min_length": 0},
    "the prompt ignored": {"guidance_scale": 0.0},
    "one prompt": {"prompts": PROMPTS[:1]},
    "ids for prompts": {"prompts": [torch.tensor([5, 6, 7, 8, 9, 4]), torch.tensor([9, 4])], "is_token_prompt": True},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=list(SETTINGS))
@pytest.mark.parametrize("seed", [1, 2])
def test_the_same_seed_gives_the_same_ids(settings, seed):
    generation = model()
    wanted = draw(generation, seed=seed, **settings)
    after = torch.random.get_rng_state()
    accelerate(generation, compare=False)
    found = draw(generation, seed=seed, **settings)
    assert found.equal(wanted)
    assert torch.random.get_rng_state().equal(after)


def test_rows_that_ended_are_padded_and_generation_stops_with_the_last():
    generation = model()
    # 67 ids are allowed, and all are about equally likely: [/IMG] comes after 67 tokens in the mean.
    accelerate(generation, compare=False)
    ids = draw(generation, min_length=0, max_length=220, temperature=1e4, top_k=0, num_return_images=2, top_p=1.0)
    assert (ids[:, 0] == BEGIN).all() and ids.shape[1] < 221
    for row in ids.tolist():
        end = row.index(END)
        assert all(other == 2 for other in row[end + 1 :])
    assert any(row.index(END) == ids.shape[1] - 1 for row in ids.tolist())


@pytest.mark.parametrize("prompts", [1, 2])
def test_one_pass_a_token_in_place_of_two(prompts):
    generation = model()
    passes = []
    generation.llama_model.model.register_forward_hook(lambda *_: passes.append(1))
    draw(generation, PROMPTS[:prompts], min_length=12, max_length=12)
    own = len(passes)
    accelerate(generation, compare=False)
    passes.clear()
    draw(generation, PROMPTS[:prompts], min_length=12, max_length=12)
    assert (own, len(passes)) == (24, 12)


@pytest.mark.parametrize("hooked", [False, True])
def test_tokens_are_read_through_the_library_s_cache_unless_a_hook_would_be_passed_over(hooked, monkeypatch):
    generation, steps, calls = model(), [], []
    wanted = draw(generation, num_return_images=2, max_length=12, min_length=12)
    step = KeyValueCache.step
    monkeypatch.setattr(KeyValueCache, "step", lambda *given: steps.append(1) or step(*given))
    accelerate(generation, compare=False)
    if hooked:
        generation.llama_model.model.layers[1].mlp.register_forward_hook(lambda *_: calls.append(1))
    assert draw(generation, num_return_images=2, max_length=12, min_length=12).equal(wanted)
    assert (len(steps), len(calls)) == ((0, 12) if hooked else (11, 0))


OWN_WAY = {
    "no guidance": {"guidance_scale": 1},
    "greedy": {"use_nucleus_sampling": False},
}


@pytest.mark.parametrize("settings", OWN_WAY.values(), ids=list(OWN_WAY))
def test_what_is_not_guided_sampling_goes_the_release_s_own_way(settings):
    generation = model()
    wanted = draw(generation, **settings)
    calls = []
    own = release.Generation.generate_image_tokenids
    with pytest.MonkeyPatch.context() as patch:
        accelerate(generation, compare=False)
        patch.setattr(
            release.Generation,
            "generate_image_tokenids",
            lambda *args: calls.append(args) or own(*args),
        )
        assert draw(generation, **settings).equal(wanted)
    assert len(calls) == 1


def test_another_setting_of_the_generation_configuration_goes_the_own_way():
    generation = model()
    accelerate(generation, compare=False)
    passes = []
    generation.llama_model.model.register_forward_hook(lambda *_: passes.append(1))
    generation.llama_model.generation_config.repetition_penalty = 1.3
    draw(generation, min_length=4, max_length=4)
    assert len(passes) == 8


@pytest.mark.parametrize("load_tokenizer", [True, False])
@pytest.mark.parametrize("as_list", [True, False])
def test_embeddings_of_drawn_ids_are_alike(load_tokenizer, as_list):
    generation = model(load_tokenizer)
    ids = torch.full((3, 9), 2)
    ids[:, 0] = BEGIN
    ids[0, 1:6], ids[1, 1:8], ids[2, 1] = torch.arange(FIRST, FIRST + 5), FIRST + 7, END
    given = [row[:8] for row in ids] if as_list else ids
    wanted = generation.generate_image_embeds(given)
    accelerate(generation, compare=False)
    found = generation.generate_image_embeds(given)
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(found, wanted, strict=True))


def test_waits_of_the_host_do_not_grow_with_the_images():
    generation = model()
    accelerate(generation, compare=False)

    def reads(count):
        ids = torch.full((count, 6), FIRST)
        with host_reads() as found:
            generation.generate_image_embeds(ids)
        return len(found)

    assert reads(2) == reads(7) <= 2


class Reads(TorchDispatchMode):
    """Counts the host's reads of values, but those of transformers within a pass."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default:
            self.count += not any("transformers" in frame.filename for frame in traceback.extract_stack())
        return func(*args, **(kwargs or {}))


def test_the_host_waits_once_a_token_from_the_first_that_may_be_the_end():
    generation = model()
    accelerate(generation, compare=False)

    def reads(least, most):
        with Reads() as found:
            drawn = draw(generation, min_length=least, max_length=most)
        return found.count, drawn.shape[1] - 1

    assert reads(12, 12) == (0, 12)
    count, tokens = reads(4, 12)
    assert count == tokens - 4 > 0


def test_a_draw_is_that_of_multinomial():
    p = torch.rand(300, 40).softmax(-1)
    p[:, ::3] = 0
    torch.manual_seed(1)
    wanted = torch.multinomial(p, 1)[:, 0]
    torch.manual_seed(1)
    assert drawn_from(p).equal(wanted)


def test_the_distribution_is_that_of_the_mixed_log_softmax():
    """Over all ids, then suppressed: less one number a row, which softmax does not see."""
    torch.manual_seed(0)
    c, u = torch.randn(2, 5, 70, dtype=torch.float64).mul(3).unbind()
    rule = Draw(4.0, 0.7, 9, 0.8, 0, 10)
    m = u.log_softmax(-1) + 4.0 * (c.log_softmax(-1) - u.log_softmax(-1))
    m = m[:, 10:] / 0.7
    m[m < m.topk(9).values[:, -1:]] = -torch.inf
    p = m.softmax(-1)
    order = p.sort(-1, descending=True)
    before = order.values.cumsum(-1) - order.values
    p = torch.where(torch.zeros_like(p, dtype=torch.bool).scatter(1, order.indices, before < 0.8), p, 0)
    found = rule.allowed(c[:, 10:], u[:, 10:], 3, 0).softmax(-1)
    assert torch.allclose(found, p / p.sum(-1, keepdim=True), rtol=1e-10, atol=1e-12)


def test_a_vocabulary_too_small_is_left():
    generation = model()
    generation.llama_model.resize_token_embeddings(32010)
    report = accelerate(generation, compare=False)
    assert any("embeddings and a head of 32066 ids" in entry.reason for entry in report.left)
    restore(generation)


def test_a_model_spread_over_devices_by_a_map_is_accepted():
    generation = model()
    generation.llama_model.hf_device_map = {"model": "cpu", "lm_head": 0}
    accelerate(generation, compare=False)
    restore(generation)
