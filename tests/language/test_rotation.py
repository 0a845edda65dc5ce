"""Rotations by which a sample could depend on its neighbours: each kind that transformers has is refused, or exact."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_lavit import llama, tokenizer
from tiny_llama import VOCABULARY, prompt, prompts
from torch import Tensor
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from lavit.kernels import Ragged
from lavit.language.attention import NAME, packed_arguments
from lavit.language.configuration import ROTATIONS, LaVITConfig, check_rotation
from lavit.language.guidance import SamplingSettings
from lavit.language.model import LaVIT
from lavit.language.sampling import sample_image_tokens
from lavit.language.text_generation import generate_text
from lavit.tokenizer import LaVITTokenizerConfig

ORIGINAL = 16  # positions before the scaling, in the kinds that know them
SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": ORIGINAL},
    "longrope": {
        "factor": 4.0,
        "original_max_position_embeddings": ORIGINAL,
        "short_factor": [1.0] * 4,
        "long_factor": [2.0, 3.0, 4.0, 5.0],
    },
    "llama3": {
        "factor": 4.0,
        "original_max_position_embeddings": ORIGINAL,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    },
    "proportional": {"partial_rotary_factor": 0.5},
}
KINDS = sorted({"default", *ROPE_INIT_FUNCTIONS})
REFUSED = sorted(set(KINDS) - set(ROTATIONS))


def rope(kind: str) -> dict[str, Any]:
    return {"rope_type": kind, "rope_theta": 100.0, **SETTINGS[kind]}


def model_of(kind: str) -> LlamaForCausalLM:
    torch.manual_seed(7)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(
        **sizes,
        vocab_size=VOCABULARY.size,
        max_position_embeddings=64,
        initializer_range=0.3,
        rope_parameters=rope(kind),
        attn_implementation=NAME,
    )
    return LlamaForCausalLM(config).double().eval()


@torch.no_grad()
def packed(model: LlamaForCausalLM, *documents: Tensor) -> list[Tensor]:
    lengths = [len(document) for document in documents]
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).int()
    arguments = packed_arguments(cu_seqlens, max(lengths))
    out = model.model(torch.cat(documents)[None], position_ids=positions, **arguments).last_hidden_state[0]
    return list(out.split(lengths))


@pytest.mark.parametrize("kind", KINDS)
def test_a_rotation_is_refused_or_leaves_documents_and_samples_to_themselves(kind: str) -> None:
    if kind not in ROTATIONS:
        with pytest.raises(ValueError, match=f"text_config.rope_parameters: .*, got '{kind}'"):
            check_rotation(SimpleNamespace(rope_parameters={"rope_type": kind}))  # type: ignore[arg-type]
        return
    model, short, full = model_of(kind), prompt(10), prompt(64, 1)
    alone, whole = packed(model, short)[0], packed(model, full)[0]
    for other in (prompt(30, 2), full, prompt(100, 3)):  # beyond the original positions, and beyond the model's
        torch.testing.assert_close(packed(model, short, other)[0], alone, rtol=0, atol=1e-12)
        assert torch.equal(packed(model, short)[0], alone) and torch.equal(packed(model, full)[0], whole)

    settings = SamplingSettings(guidance=3.0, top_k=9, min_tokens=20, max_tokens=24)
    lengths = (4, 40, 14)  # the first and the last grow beyond the original positions
    found = sample_image_tokens(model, VOCABULARY, prompts(*lengths), settings, seeds=[0, 1, 2], max_codes=24)
    written = {"num_beams": 2, "min_new": 16, "max_new": 20, "eos_id": 2}
    texts = generate_text(model, VOCABULARY, prompts(*lengths), **written).unbind()
    for i, codes in enumerate(found.unbind()):
        own = Ragged.from_list([prompt(lengths[i], i)])
        assert torch.equal(texts[i], generate_text(model, VOCABULARY, own, **written).values)
        again = sample_image_tokens(model, VOCABULARY, own, settings, seeds=[i], max_codes=24)
        assert torch.equal(codes, again.values)
        ids = torch.cat((own.values, codes + VOCABULARY.first_code_id))
        assert _likely(model, ids, len(codes))


@torch.no_grad()
def _likely(model: LlamaForCausalLM, ids: Tensor, count: int) -> bool:
    """Whether each code is among the guided top 9 of a pass without a cache."""
    conditional = model(ids[None], use_cache=False).logits[0, -count - 1 : -1]
    after = torch.cat((torch.tensor([VOCABULARY.begin_id]), ids[-count:]))
    unconditional = model(after[None], use_cache=False).logits[0, :-1]
    mixed = (unconditional + 3 * (conditional - unconditional))[:, VOCABULARY.end_id : VOCABULARY.size]
    chosen = mixed.gather(1, ids[-count:, None] - VOCABULARY.end_id)
    return bool(((mixed > chosen).sum(1) < 9).all())


def test_rotations_that_follow_the_batch_are_those_refused() -> None:
    """Why they are: the same document has other hidden states beside a longer one."""
    assert {"dynamic", "longrope"} <= set(REFUSED)
    for kind in ("dynamic", "longrope"):
        model = model_of(kind)
        assert (packed(model, prompt(10), prompt(100, 3))[0] - packed(model, prompt(10))[0]).abs().max() > 0.1


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_every_way_of_opening_a_model_refuses_what_depends_on_the_batch(kind: str, tmp_path: Path) -> None:
    message = f"text_config.rope_parameters: expected a rope_type among default, .*, got '{kind}'"
    visual = LaVITTokenizerConfig.preset("small")
    with pytest.raises(ValueError, match=message):
        LaVITConfig(LlamaConfig(vocab_size=384, rope_parameters=rope(kind)), visual, text_size=61)
    with pytest.raises(ValueError, match=message):
        LaVITConfig({"vocab_size": 384, "rope_parameters": rope(kind)}, visual, text_size=61)
    with pytest.raises(ValueError, match=message):
        LaVITConfig({"vocab_size": 384, "rope_scaling": rope(kind)}, visual, text_size=61)  # older files' name
    with pytest.raises(ValueError, match=message):
        LaVITConfig.preset("small", text_size=61, rope_parameters=rope(kind))

    language_model = llama(rope_parameters=rope(kind))
    rows = language_model.config.vocab_size
    with pytest.raises(ValueError, match=message):
        LaVIT.from_parts(language_model, tokenizer())
    assert language_model.get_input_embeddings().weight.shape[0] == rows, "refused before it is changed"

    config = LaVITConfig.preset("small", text_size=61)
    config.text_config.rope_parameters = rope(kind)
    with pytest.raises(ValueError, match=message):
        LaVIT(config)
    config.save_pretrained(tmp_path)
    for opened in (AutoConfig, LaVITConfig, LaVIT):
        with pytest.raises(ValueError, match=message):
            opened.from_pretrained(tmp_path)


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_generation_with_a_plain_language_model_refuses_it_too(kind: str) -> None:
    model = model_of(kind)
    with pytest.raises(ValueError, match=f"text_config.rope_parameters: .*, got '{kind}'"):
        sample_image_tokens(model, VOCABULARY, prompts(3), max_codes=4)
    with pytest.raises(ValueError, match=f"text_config.rope_parameters: .*, got '{kind}'"):
        generate_text(model, VOCABULARY, prompts(3), eos_id=2)


def test_a_kind_that_is_not_known_is_refused() -> None:
    with pytest.raises(ValueError, match="text_config.rope_parameters: .*, got 'of next year'"):
        check_rotation(SimpleNamespace(rope_parameters={"rope_type": "of next year"}))  # type: ignore[arg-type]
