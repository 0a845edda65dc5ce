import pytest
import torch
from tiny_llama import VOCABULARY, prompts, tiny_llama
from transformers import GenerationConfig

from lavit.kernels import Ragged
from lavit.language.attention import NAME
from lavit.language.generation_inputs import NonFiniteScores
from lavit.language.text_generation import generate_text

EOS = 2
CAPTION = {"num_beams": 2, "min_new": 4, "max_new": 9}
ANSWER = {"num_beams": 5, "min_new": 1, "max_new": 6, "length_penalty": 0.0, "early_stopping": True}


@pytest.fixture(scope="module")
def model():
    return tiny_llama()


def texts(model, prompts, **settings) -> list[list[int]]:
    found = generate_text(model, VOCABULARY, prompts, eos_id=EOS, **settings)
    assert found.max_seqlen == int(found.lengths().max())
    return [x.tolist() for x in found.unbind()]


@torch.no_grad()
def beam_search(model, ids, num_beams, min_new, max_new, length_penalty=1.0, early_stopping=False) -> list[int]:
    """By the formula: the num_beams most probable beginnings, everything computed again for each token.

    Ended texts are kept with log p / length^penalty, their end counted; as many as beams end the search at once, or
    when no beginning could be better. Of these, and of texts that are cut off, the length is one more.
    """
    beams, ended = [(0.0, [])], []
    for length in range(1, max_new + 1):
        longer = []
        for score, new in beams:
            logits = model(torch.cat((ids, ids.new_tensor(new)))[None], use_cache=False).logits[0, -1]
            log_p = logits[: VOCABULARY.size].log_softmax(-1)
            for token in range(VOCABULARY.text_size):
                if token != EOS or length > min_new:
                    longer.append((score + float(log_p[token]), [*new, token]))
        longer.sort(reverse=True)
        for score, new in longer[:num_beams]:
            if new[-1] == EOS:
                ended.append((score / length**length_penalty, new))
        ended = sorted(ended, reverse=True)[:num_beams]
        likeliest = longer[0][0]
        beams = [(score, new) for score, new in longer[: 2 * num_beams] if new[-1] != EOS][:num_beams]
        if len(ended) == num_beams and (
            early_stopping or num_beams == 1 or ended[-1][0] >= likeliest / (length + 1) ** length_penalty
        ):
            break
    else:
        ended += [(score / (max_new + 1) ** length_penalty, new) for score, new in beams]
    return [token for token in max(ended)[1] if token != EOS]


@pytest.mark.parametrize("settings", [CAPTION, ANSWER, {"num_beams": 1, "min_new": 0, "max_new": 7}])
def test_texts_are_those_of_a_beam_search_of_each_prompt_alone(model, settings):
    ids = prompts(5, 1, 14)
    assert texts(model, ids, **settings) == [beam_search(model, x, **settings) for x in ids.unbind()]


@pytest.mark.parametrize("early_stopping", [False, True])
@pytest.mark.parametrize("length_penalty", [0.0, 0.5, 1.0, -1.0])
def test_texts_that_often_end_early_are_those_of_the_search_for_every_penalty(length_penalty, early_stopping):
    """Where ends are frequent, the lengths by which texts are weighed and a search ends decide which one it is."""
    model = tiny_llama()
    with torch.no_grad():
        model.lm_head.weight[EOS] *= 3
    ids = prompts(*range(1, 19))
    settings = {"num_beams": 3, "min_new": 2, "max_new": 8}
    settings |= {"length_penalty": length_penalty, "early_stopping": early_stopping}
    found = texts(model, ids, **settings)
    assert found == [beam_search(model, x, **settings) for x in ids.unbind()]
    assert len({len(x) for x in found}) > 1


@pytest.mark.parametrize("settings", [CAPTION, ANSWER, {"num_beams": 1, "min_new": 0, "max_new": 7}])
@pytest.mark.parametrize("implementation", ["eager", "sdpa", NAME])
def test_padded_prompts_have_the_texts_of_each_alone_with_every_attention(implementation, settings):
    """Eager's softmax is in float32: the mask's least float64 is -inf there, and a row of padding NaN."""
    model = tiny_llama()
    model.set_attn_implementation(implementation)
    ids = prompts(5, 1, 30, 11)
    assert texts(model, ids, **settings) == [beam_search(model, x, **settings) for x in ids.unbind()]


@pytest.mark.parametrize("settings", [CAPTION, ANSWER, {"num_beams": 1, "min_new": 0, "max_new": 7}])
def test_rows_of_the_head_that_stand_for_no_id_take_no_part(settings):
    model = tiny_llama()
    expected = texts(model, prompts(5, 1, 14), **settings)
    with torch.no_grad():
        model.lm_head.weight[VOCABULARY.size :] *= 20  # their share of a softmax over all rows would be the greatest
    assert texts(model, prompts(5, 1, 14), **settings) == expected
    assert not model.lm_head._forward_hooks
    with torch.no_grad():
        model.lm_head.weight[VOCABULARY.size :] = torch.nan
    assert texts(model, prompts(5, 1, 14), **settings) == expected


def test_nan_names_the_prompt_and_the_token():
    """A word whose embedding is NaN: what comes after it has no scores."""
    model = tiny_llama()
    settings = {"num_beams": 1, "min_new": 8, "max_new": 9}
    clean = texts(model, prompts(5, 1, 14, 3), **settings)
    for word in {word for row in clean for word in row[:7]}:
        token, prompt = min((row.index(word) + 1, i) for i, row in enumerate(clean) if word in row)
        with torch.no_grad():
            kept = model.model.embed_tokens.weight[word].clone()
            model.model.embed_tokens.weight[word] = torch.nan
        ids = prompts(5, 1, 14, 3)
        values = torch.where(ids.values[:, None] == word, kept, model.model.embed_tokens(ids.values)).detach()
        with pytest.raises(NonFiniteScores, match=f"^prompt {prompt}: expected finite scores for new token {token},"):
            texts(model, ids.with_values(values), **settings)
        with torch.no_grad():
            model.model.embed_tokens.weight[word] = kept
    assert not model.lm_head._forward_hooks


@pytest.mark.parametrize("settings", [CAPTION, ANSWER, {"num_beams": 1, "min_new": 0, "max_new": 7}])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_prompt_that_is_not_finite_is_named_for_any_number_of_beams(settings, value):
    model = tiny_llama()
    ids = prompts(5, 1, 14)
    values = model.model.embed_tokens(ids.values).detach().clone()
    values[6:] = value
    with pytest.raises(NonFiniteScores, match="prompt 2: expected finite scores for new token 0"):
        texts(model, ids.with_values(values), **settings)


@pytest.mark.parametrize("settings", [CAPTION, ANSWER, {"num_beams": 1, "min_new": 0, "max_new": 20}])
def test_what_follows_a_texts_end_is_no_fault(settings):
    model = tiny_llama()
    with torch.no_grad():
        model.lm_head.weight[EOS] *= 3
    ids = prompts(*range(1, 9))
    embedded = ids.with_values(model.model.embed_tokens(ids.values).detach())
    expected = texts(model, embedded, **settings)
    assert len({len(x) for x in expected}) > 1
    with torch.no_grad():
        model.model.embed_tokens.weight[EOS] = torch.nan
    assert texts(model, embedded, **settings) == expected


@pytest.mark.parametrize("settings", [CAPTION, ANSWER])
def test_a_text_is_the_same_alone_and_in_a_batch(model, settings):
    ids = prompts(3, 12, 1, 7)
    embeddings = ids.with_values(model.model.embed_tokens(ids.values).detach())
    together = texts(model, embeddings, **settings)
    assert together == [texts(model, Ragged.from_list([x]), **settings)[0] for x in embeddings.unbind()]
    assert together == texts(model, ids, **settings)


def test_a_text_is_neither_too_short_nor_too_long_and_has_no_ids_of_images_nor_the_end():
    model = tiny_llama()
    with torch.no_grad():
        model.lm_head.weight[VOCABULARY.text_size :] *= 5  # images are likely
        model.lm_head.weight[EOS] *= 3
    found = texts(model, prompts(*range(1, 13)), **CAPTION)
    assert {len(x) for x in found} <= set(range(4, 10)) and len({len(x) for x in found}) > 1
    assert all(0 <= token < VOCABULARY.text_size and token != EOS for x in found for token in x)


def test_the_models_own_generation_config_is_not_heeded_and_stays(model):
    expected = texts(model, prompts(5, 3), **CAPTION)
    own = GenerationConfig(do_sample=True, temperature=9.0, repetition_penalty=3.0, max_length=3)
    before, model.generation_config = model.generation_config, own
    assert texts(model, prompts(5, 3), **CAPTION) == expected
    assert model.generation_config is own
    model.generation_config = before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_beams": 0}, "num_beams: expected a number >= 1, got 0"),
        ({"min_new": 0, "max_new": 0}, "max_new: expected a number >= 1, got 0"),
        ({"min_new": 5, "max_new": 4}, "min_new: expected 0 to max_new = 4, got 5"),
        ({"max_new": 60}, "prompt 1: 6 tokens and up to 60 generated ones .*max_position_embeddings is 64"),
        ({"num_beams": 21}, "num_beams: expected at most half of 40 text ids, got 21"),
        ({"eos_id": 40}, "eos_id: expected a text id, 0 to 39, got 40"),
    ],
)
def test_what_cannot_be_is_named(model, settings, message):
    with pytest.raises(ValueError, match=message):
        generate_text(model, VOCABULARY, prompts(2, 6), **{"eos_id": EOS, **settings})
