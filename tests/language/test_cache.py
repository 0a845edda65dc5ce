import pytest
import torch
from tiny_llama import VOCABULARY, prompts, tiny_llama
from transformers import DynamicCache

from lavit.kernels import pad
from lavit.language.cache import CACHE, KeyValueCache, PromptCache


@pytest.mark.parametrize("key_heads", [1, 2, 4])
@pytest.mark.parametrize("window", ["in use", "all"])
@torch.no_grad()
def test_steps_over_the_cache_equal_transformers_forward_pass_of_each_sequence(key_heads, window):
    model = tiny_llama(key_heads=key_heads)
    ids = prompts(5, 17, 1)
    padded, mask, position_ids = pad(ids.with_values(model.model.embed_tokens(ids.values)), side="left")
    read = DynamicCache()
    model.model(inputs_embeds=padded, attention_mask=mask, position_ids=position_ids, use_cache=True, **{CACHE: read})
    rows = torch.tensor([1, 0, 0, 2])
    cache = KeyValueCache(model, read, mask, rows, new_tokens=20)
    new = torch.randint(0, VOCABULARY.size, (4, 20))
    found = []
    for token in range(20):
        if token == 9:  # a sequence leaves
            kept = torch.tensor([0, 2, 3])
            cache.select(kept)
            rows, new, found = rows[kept], new[kept], [x[kept] for x in found]
        found.append(cache.step(new[:, token], token if window == "in use" else None))
    for row, tokens, hidden in zip(rows, new, torch.stack(found, dim=1), strict=True):
        whole = torch.cat((ids.unbind()[row], tokens))[None]
        expected = model.model(whole, use_cache=False).last_hidden_state[0, -20:]
        # transformers' norm and rotation are float32 whatever the model; four norms lie on the way.
        torch.testing.assert_close(hidden, expected, rtol=0, atol=20 * torch.finfo(torch.float32).eps)


def test_the_prompts_own_cache_is_given_back_and_a_row_begins_where_the_gpus_attention_wants_it():
    model = tiny_llama()
    ids = prompts(5, 7)
    padded, mask, _ = pad(ids.with_values(model.model.embed_tokens(ids.values)), side="left")
    read = DynamicCache()
    model.model(inputs_embeds=padded, attention_mask=mask, use_cache=True, **{CACHE: read})
    cache = KeyValueCache(model, read, mask, torch.arange(2), new_tokens=11)
    assert all(layer.keys is None for layer in read.layers)
    assert {x.shape[2] for x in cache.keys} == {cache.mask.shape[-1]} == {32}


@torch.no_grad()
def test_no_padding_enters_the_cache_whatever_eager_attention_makes_of_it():
    model = tiny_llama()
    model.set_attn_implementation("eager")
    ids = prompts(5, 9)
    padded, mask, position_ids = pad(ids.with_values(model.model.embed_tokens(ids.values)), side="left")
    read = PromptCache(mask)
    hidden = model.model(
        inputs_embeds=padded, attention_mask=mask, position_ids=position_ids, use_cache=True, **{CACHE: read}
    ).last_hidden_state
    assert hidden[~mask].isnan().any(), "the fault that the cache is to keep out"
    assert hidden[mask].isfinite().all()
    for layer in read.layers:
        for x in (layer.keys, layer.values):
            rows = x.transpose(1, 2)
            assert not rows[~mask].any() and rows[mask].isfinite().all() and rows[mask].any(-1).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@torch.no_grad()
def test_what_the_prompts_cache_holds_at_padding_counts_nothing(dtype):
    """In float16 the mask's least number is but -65504, which a score of that size would make up for."""
    model = tiny_llama(dtype, positions=1100)
    ids = prompts(3, 1030)  # the first row's padding fills whole blocks of the attention
    padded, mask, position_ids = pad(ids.with_values(model.model.embed_tokens(ids.values)), side="left")
    found = []
    for garbage in (0.0, 60000.0, torch.inf, torch.nan):
        read = DynamicCache()
        model.model(
            inputs_embeds=padded, attention_mask=mask, position_ids=position_ids, use_cache=True, **{CACHE: read}
        )
        for layer in read.layers:
            for x in (layer.keys, layer.values):
                x.masked_fill_(~mask[:, None, :, None], garbage)
        cache = KeyValueCache(model, read, mask, torch.arange(2), new_tokens=2)
        found.append(torch.stack([cache.step(torch.tensor([44, 45]), fed) for fed in (0, 1)]))
    assert found[0].isfinite().all() and all(torch.equal(found[0], other) for other in found[1:])
