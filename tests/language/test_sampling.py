from __future__ import annotations

import pickle
import warnings
from dataclasses import replace

import pytest
import torch
from host_reads import host_reads
from tiny_llama import VOCABULARY, prompt, prompts, tiny_llama
from torch import Tensor

from lavit.kernels import Ragged
from lavit.language import sampling
from lavit.language.attention import NAME
from lavit.language.cache import KeyValueCache
from lavit.language.generation_inputs import NonFiniteScores
from lavit.language.guidance import SamplingSettings, guided_log_probs, uniforms
from lavit.language.sampling import sample_image_tokens

SETTINGS = SamplingSettings(guidance=3.0, top_k=9, min_tokens=3, max_tokens=14, check_every=4)


@pytest.fixture(scope="module")
def model():
    return tiny_llama()


def sample(model, prompts, settings=SETTINGS, *, seeds=None, max_codes=64) -> list[list[int]]:
    return [x.tolist() for x in codes(model, prompts, settings, seeds=seeds, max_codes=max_codes).unbind()]


def codes(model, prompts, settings=SETTINGS, *, seeds=None, max_codes=64) -> Ragged:
    return sample_image_tokens(model, VOCABULARY, prompts, settings, seeds=seeds, max_codes=max_codes)


@torch.no_grad()
def definition(model, ids: Tensor, settings: SamplingSettings, seed: int, max_codes: int) -> list[int]:
    """One sample as the formula has it: everything computed again for every token, over the whole vocabulary."""
    new: list[int] = []
    count = min(settings.max_tokens, max_codes)
    numbers = uniforms(torch.tensor([seed]), count)[0]
    while len(new) < count:
        after = ids.new_tensor(new)
        c = model(torch.cat((ids, after))[None], use_cache=False).logits[0, -1]
        u = model(torch.cat((ids[-1:], after))[None], use_cache=False).logits[0, -1]
        mixed = guided_log_probs(c, u, settings.guidance)
        mixed[: VOCABULARY.end_id] = mixed[VOCABULARY.size :] = -torch.inf
        if len(new) < settings.min_tokens:
            mixed[VOCABULARY.end_id] = -torch.inf
        if settings.temperature == 0:
            choice = int(mixed.argmax())
        else:
            mixed = mixed / settings.temperature
            if settings.top_k is not None:
                mixed[mixed < mixed.topk(settings.top_k).values[-1]] = -torch.inf
            p = mixed.softmax(-1)
            more_likely = (p * (p > p[:, None])).sum(1)
            p = p * (more_likely < settings.top_p)
            choice = int((p.cumsum(0) / p.sum() <= numbers[len(new)]).sum())
        if choice == VOCABULARY.end_id:
            break
        new.append(choice)
    return [id - VOCABULARY.first_code_id for id in new]


@pytest.mark.parametrize(
    "settings",
    [
        SETTINGS,
        replace(SETTINGS, guidance=1.0),
        replace(SETTINGS, guidance=0.0, top_k=None, top_p=0.7, temperature=1.3),
        replace(SETTINGS, temperature=0.0),
        replace(SETTINGS, guidance=5.0, min_tokens=0, top_p=0.9),
    ],
    ids=["guided", "one stream", "nucleus", "greedy", "no minimum"],
)
def test_samples_equal_a_loop_that_computes_everything_again_over_the_whole_vocabulary(model, settings):
    found = sample(model, prompts(5, 1, 11), settings, seeds=[3, 4, 5], max_codes=12)
    assert found == [definition(model, prompt(n, i), settings, 3 + i, 12) for i, n in enumerate((5, 1, 11))]
    assert all(0 <= code < VOCABULARY.num_codes for row in found for code in row)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("implementation", ["eager", "sdpa", NAME])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_padded_prompts_give_the_samples_of_each_alone_with_every_attention(dtype, implementation, guidance):
    """Eager's softmax is in float32: the mask's least float64 is -inf there, and a row of padding NaN."""
    model = tiny_llama(dtype)
    model.set_attn_implementation(implementation)
    settings = replace(SETTINGS, guidance=guidance)
    lengths = (5, 1, 40, 11, 2)
    found = sample(model, prompts(*lengths), replace(settings, num_samples=3), seeds=range(15))
    wanted = [definition(model, prompt(n, i), settings, 3 * i + k, 64) for i, n in enumerate(lengths) for k in range(3)]
    assert found == wanted and min(map(len, found)) >= SETTINGS.min_tokens


@pytest.mark.parametrize("key_heads", [1, 4])
def test_grouped_and_plain_attention_give_the_definitions_samples(key_heads):
    model = tiny_llama(key_heads=key_heads)
    assert sample(model, prompts(6), seeds=[0]) == [definition(model, prompt(6), SETTINGS, 0, 64)]


LENGTHS = (4, 1, 19, 7, 4, 2, 9, 3)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_sample_is_the_same_alone_and_in_a_batch_that_shrinks(model, guidance, monkeypatch):
    shrunk = []
    select = KeyValueCache.select
    monkeypatch.setattr(KeyValueCache, "select", lambda cache, rows: shrunk.append(len(rows)) or select(cache, rows))
    settings = replace(SETTINGS, guidance=guidance, temperature=2.0, top_k=None, min_tokens=1, max_tokens=45)
    seeds = torch.arange(8) * 2**40 - 3
    together = sample(model, prompts(*LENGTHS), settings, seeds=seeds)
    for i, length in enumerate(LENGTHS):
        assert sample(model, Ragged.from_list([prompt(length, i)]), settings, seeds=seeds[i : i + 1]) == [together[i]]
    assert shrunk and min(map(len, together)) < 10 < 40 < max(map(len, together))


def test_a_sample_depends_on_its_seed(model):
    alike = Ragged.from_list([prompt(5)] * 4)
    a, b, c, d = sample(model, alike, seeds=[1, 2, 1, -1])
    assert a == c and len({tuple(a), tuple(b), tuple(d)}) == 3


def test_without_seeds_torchs_generator_governs(model):
    torch.manual_seed(5)
    first = sample(model, prompts(5, 6))
    assert first != sample(model, prompts(5, 6))
    torch.manual_seed(5)
    assert first == sample(model, prompts(5, 6))


def test_samples_of_a_prompt_equal_the_prompt_given_so_often_and_it_is_read_once(model, monkeypatch):
    read = []
    forward = model.model.forward
    monkeypatch.setattr(model.model, "forward", lambda **kw: read.append(kw["inputs_embeds"].shape) or forward(**kw))
    seeds = list(range(6))
    several = sample(model, prompts(5, 8), replace(SETTINGS, num_samples=3), seeds=seeds)
    often = Ragged.from_list([prompt(5, 0)] * 3 + [prompt(8, 1)] * 3)
    assert several == sample(model, often, seeds=seeds)
    assert read[0] == (3, 8, 32)  # two prompts and [IMG] alone


@pytest.mark.parametrize("check_every", [1, 3, 1000])
def test_results_do_not_depend_on_how_often_the_end_is_looked_for(model, check_every):
    settings = replace(SETTINGS, min_tokens=0, max_tokens=25)
    seeds = list(range(8))
    expected = sample(model, prompts(*LENGTHS), settings, seeds=seeds)
    assert sample(model, prompts(*LENGTHS), replace(settings, check_every=check_every), seeds=seeds) == expected


def test_embeddings_and_ids_give_the_same_samples_whatever_lies_beyond_them(model):
    ids = prompts(5, 9)
    embeddings = model.get_input_embeddings()(ids.values).detach()
    beyond = torch.cat((embeddings, torch.full((3, 32), torch.nan, dtype=embeddings.dtype)))
    expected = sample(model, ids, seeds=[0, 1])
    assert sample(model, ids.with_values(embeddings), seeds=[0, 1]) == expected
    assert sample(model, ids.with_values(beyond), seeds=[0, 1]) == expected


@pytest.mark.parametrize("length", [2, 40])
def test_there_are_never_more_codes_than_positions_of_the_decoder_whatever_the_prompts_length(model, length):
    settings = replace(SETTINGS, min_tokens=14)
    assert [len(x) for x in sample(model, prompts(length), settings, seeds=[0], max_codes=7)] == [7]
    assert [len(x) for x in sample(model, prompts(length), settings, seeds=[0], max_codes=1)] == [1]
    assert [len(x) for x in sample(model, prompts(length), settings, seeds=[0], max_codes=999)] == [14]


def eager_to_end(model) -> None:
    with torch.no_grad():  # [/IMG] is made by far the likeliest id after everything
        model.lm_head.weight[VOCABULARY.end_id] = 0
        model.model.norm.weight.zero_()
        model.lm_head = torch.nn.Linear(32, VOCABULARY.size, dtype=torch.float64).requires_grad_(False)
        model.lm_head.bias.zero_()
        model.lm_head.bias[VOCABULARY.end_id] = 100.0


@pytest.mark.parametrize("fewest", [0, 1, 6])
def test_the_end_is_not_allowed_before_the_fewest_tokens_and_is_no_code(fewest):
    model = tiny_llama()
    eager_to_end(model)
    found = codes(model, prompts(3, 4), replace(SETTINGS, min_tokens=fewest))
    assert found.lengths().tolist() == [fewest, fewest]
    assert found.max_seqlen == fewest and found.values.shape == (2 * fewest,) and found.values.dtype == torch.int64


def test_the_longest_prompt_that_fits_is_read(model):
    found = sample(model, prompts(64 - 13), replace(SETTINGS, min_tokens=14), seeds=[1])
    assert found == [definition(model, prompt(64 - 13), replace(SETTINGS, min_tokens=14), 1, 64)]


def test_codes_may_be_embedded_with_a_gradient(model):
    found = codes(model, prompts(3), seeds=[0])
    model.model.embed_tokens(found.values).sum().backward()
    model.zero_grad()


def first_use(rows: list[list[int]], code: int, count: int) -> tuple[int, int]:
    """(token, row) after the first use of a code, of the first row among those of this token."""
    return min((row.index(code) + 1, i) for i, row in enumerate(rows) if code in row and row.index(code) + 1 < count)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("check_every", [1, 4, 1000])
def test_nan_names_the_prompt_and_the_token_however_often_it_is_looked_for(guidance, check_every):
    """A code whose embedding is NaN: what comes after it has no scores."""
    model = tiny_llama()
    settings = replace(SETTINGS, guidance=guidance, num_samples=2, temperature=2.0, top_k=None)
    clean = sample(model, prompts(*LENGTHS), settings, seeds=range(16))
    tried = 0
    for code in range(0, VOCABULARY.num_codes, 5):
        token, row = first_use(clean, code, 14)
        with torch.no_grad():
            row_of_code = model.model.embed_tokens.weight[VOCABULARY.first_code_id + code]
            kept = row_of_code.clone()
            row_of_code.fill_(torch.nan)
        message = f"^prompt {row // 2}: expected finite scores for new token {token}, got NaN or Inf$"
        with pytest.raises(NonFiniteScores, match=message) as error:
            sample(model, prompts(*LENGTHS), replace(settings, check_every=check_every), seeds=range(16))
        assert (error.value.prompt, error.value.token) == (row // 2, token) and isinstance(error.value, ValueError)
        assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value)
        with torch.no_grad():
            row_of_code.copy_(kept)
        tried += token > 1
    assert tried


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_what_follows_a_samples_end_is_no_fault(guidance):
    """Ended samples are fed [/IMG] until they leave the batch."""
    model = tiny_llama()
    settings = replace(SETTINGS, guidance=guidance, temperature=2.0, top_k=None, min_tokens=0, max_tokens=25)
    expected = sample(model, prompts(*LENGTHS), settings, seeds=range(8))
    assert min(map(len, expected)) < 10
    with torch.no_grad():
        model.model.embed_tokens.weight[VOCABULARY.end_id] = torch.nan
    for check_every in (2, 1000):
        found = sample(model, prompts(*LENGTHS), replace(settings, check_every=check_every), seeds=range(8))
        assert found == expected


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bias", [torch.nan, torch.inf, -torch.inf])
def test_no_finite_best_is_an_error_and_never_an_id_that_is_not_allowed(bias, temperature):
    model = tiny_llama()
    eager_to_end(model)
    settings = replace(SETTINGS, guidance=1.0, temperature=temperature)
    with torch.no_grad():
        model.lm_head.bias[VOCABULARY.first_code_id :] = bias
    with pytest.raises(NonFiniteScores, match="prompt 0: expected finite scores for new token 0"):
        sample(model, prompts(3, 4), settings)
    if bias == -torch.inf:  # then the end is all that is allowed, and good
        assert sample(model, prompts(3, 4), replace(settings, min_tokens=0)) == [[], []]


def test_a_prompt_of_nan_is_named_and_no_other():
    model = tiny_llama()
    ids = prompts(3, 4, 2)
    values = model.model.embed_tokens(ids.values).detach().clone()
    values[5] = torch.nan
    with pytest.raises(NonFiniteScores, match="prompt 1: expected finite scores for new token 0"):
        sample(model, ids.with_values(values))


@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_gives_codes_and_the_same_ones_again(autocast):
    model = tiny_llama(torch.float32 if autocast else torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = sample(model, prompts(5, 3), seeds=[0, 1])
        assert all(0 <= code < VOCABULARY.num_codes for row in found for code in row)
        assert found == sample(model, prompts(5, 3), seeds=[0, 1])


@pytest.mark.parametrize(
    ("values", "lengths", "message"),
    [
        (torch.zeros(0), (), "prompts: expected at least one prompt"),
        (prompt(4), (4, 0), "prompt 1: expected at least one token, got an empty prompt"),
        (prompt(70), (1, 69), "prompt 1: expected at most 64 tokens, the model's context, got 69"),
        (prompt(52), (52,), "prompt 0: 52 tokens and up to 14 .* of 65 positions, but max_position_embeddings is 64"),
        (torch.tensor([1, 40, 2, 73, 40]), (2, 3), "prompt 1: expected ids 0 to 72, got 73 as token 1"),
        (torch.tensor([40, -1, 40]), (1, 2), "prompt 1: expected ids 0 to 72, got -1 as token 0"),
        (torch.tensor([1, 40, 40, 2]), (2, 2), r"prompt 1: expected \[IMG\] \(40\) as the last id, got 2"),
        (torch.zeros(4, 31), (4,), r"prompts: expected embeddings of shape \(T, 32\), got \(4, 31\)"),
        (torch.zeros(4, 1).long(), (4,), r"prompts: expected ids of shape \(T,\), got \(4, 1\)"),
    ],
)
def test_a_prompt_that_cannot_be_continued_is_named(model, values, lengths, message):
    offsets = torch.tensor([0, *lengths]).cumsum(0).int()
    with pytest.raises(ValueError, match=message):
        codes(model, Ragged(values, offsets, max(lengths, default=0)))


def test_a_prompt_may_be_drawn_for_several_times(model):
    found = sample_image_tokens(
        model, VOCABULARY, prompts(5, 6), replace(SETTINGS, num_samples=2), seeds=range(6), max_codes=64, of=[1, 0, 1]
    )
    asked = [(6, 1), (6, 1), (5, 0), (5, 0), (6, 1), (6, 1)]
    wanted = [definition(model, prompt(n, i), SETTINGS, seed, 64) for seed, (n, i) in enumerate(asked)]
    assert [x.tolist() for x in found.unbind()] == wanted
    for of in ([], [2], [-1]):
        with pytest.raises(ValueError, match="of: expected places 0 to 1 of prompts"):
            sample_image_tokens(model, VOCABULARY, prompts(5, 6), SETTINGS, max_codes=64, of=of)


def test_what_else_cannot_be_is_named(model):
    with pytest.raises(TypeError, match="prompts: expected embeddings or int64 ids, got torch.int32"):
        codes(model, prompts(3).with_values(prompt(3).int()))
    with pytest.raises(ValueError, match="max_codes: expected a number >= 1, got 0"):
        codes(model, prompts(3), max_codes=0)
    with pytest.raises(
        ValueError, match=r"seeds: expected shape \(2,\) to match prompts times num_samples, got \(1,\)"
    ):
        codes(model, prompts(3, 4), seeds=[0])
    with pytest.raises(TypeError, match="seeds: expected int64, got torch.float32"):
        codes(model, prompts(3), seeds=torch.zeros(1))
    with pytest.raises(TypeError, match=r"seeds: expected integers, got 1\.5 at place 0"):
        codes(model, prompts(3), seeds=[1.5])
    training = tiny_llama().train()
    training.model.gradient_checkpointing = True
    with pytest.raises(ValueError, match="language_model: expected evaluation mode"):
        codes(training, prompts(3))


def test_the_host_waits_for_no_token_between_two_looks(model):
    reads = []
    for tokens in (6, 20):
        settings = replace(SETTINGS, min_tokens=tokens, max_tokens=tokens, check_every=1000)
        with host_reads() as found:
            codes(model, prompts(4, 6), settings, seeds=torch.tensor([0, 1]))
        reads.append(sorted(found))
    assert reads[0] == reads[1]
    with host_reads() as found:  # 4 looks: before tokens 4, 8, 12 and 16
        codes(model, prompts(4, 6), replace(settings, check_every=4, max_tokens=20), seeds=torch.tensor([0, 1]))
    assert len(found) == len(reads[0]) + 4


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_one_recording_serves_every_token_and_another_the_smaller_batch(model, guidance, monkeypatch):
    """What a recording would replay, done again: the same work whatever the token, over the same tensors."""
    settings = replace(SETTINGS, guidance=guidance, temperature=2.0, top_k=None, min_tokens=1, max_tokens=45)
    expected = sample(model, prompts(*LENGTHS), settings, seeds=list(range(8)))
    recordings = []

    def stand_in(running, device):
        running.advance(None)
        work = [value for value in vars(running).values() if isinstance(value, Tensor)]
        recordings.append(len(running.sample))

        def replay(token):
            running.advance(None)
            assert all(any(value is tensor for value in vars(running).values()) for tensor in work)

        return replay

    monkeypatch.setattr(sampling, "_worth_recording", lambda settings, device, tokens: True)
    monkeypatch.setattr(sampling, "_recorded", stand_in)
    assert sample(model, prompts(*LENGTHS), settings, seeds=list(range(8))) == expected
    assert len(recordings) > 1 and recordings[0] == 8


@pytest.mark.gpu
@pytest.mark.parametrize("record", [False, True])
def test_on_a_gpu_samples_are_the_definitions_and_the_host_waits_at_the_looks_only(record):
    model = tiny_llama().cuda()
    ids = prompts(5, 9)
    on_device = Ragged(ids.values.cuda(), ids.cu_seqlens.cuda(), ids.max_seqlen)
    settings = replace(SETTINGS, record=record, max_tokens=30, check_every=1000)
    seeds = torch.tensor([0, 1], device="cuda")
    found = sample(model, on_device, settings, seeds=seeds)
    assert found == [definition(model, x, settings, i, 64) for i, x in enumerate(on_device.unbind())]

    def waits(tokens: int) -> int:
        fixed = replace(settings, min_tokens=tokens, max_tokens=tokens)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                codes(model, on_device, fixed, seeds=seeds)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        return sum("synchroniz" in str(w.message) for w in caught)

    waits(12)
    assert waits(12) == waits(40)
