"""The whole model's configuration: what passes through, what is refused, what comes back from a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoConfig, GPT2Config, LlamaConfig, LlamaForCausalLM

from lavit.language.configuration import LaVITConfig
from lavit.language.vocabulary import Vocabulary
from lavit.tokenizer import LaVITTokenizerConfig


def small() -> LaVITConfig:
    return LaVITConfig.preset("small", text_size=61)


def test_the_default_is_the_released_model() -> None:
    config = LaVITConfig()
    assert config.vocabulary == Vocabulary(32000, 16384) and config.text_config.vocab_size == 48386
    text = config.text_config
    assert (text.hidden_size, text.intermediate_size, text.num_hidden_layers) == (4096, 11008, 32)
    assert config.tokenizer_config.to_diff_dict() == LaVITTokenizerConfig.preset("lavit-g").to_diff_dict()


def test_the_small_preset_is_small_and_its_values_can_be_replaced() -> None:
    config = small()
    assert config.text_config.hidden_size == 128 and config.text_config.vocab_size == 61 + 2 + 256
    assert 0.8e6 < sum(p.numel() for p in LlamaForCausalLM(config.text_config).parameters()) < 0.95e6
    tokenizer = LaVITTokenizerConfig.preset("small", num_codes=16)
    changed = LaVITConfig.preset("small", 61, tokenizer, num_key_value_heads=2, tie_word_embeddings=True)
    assert changed.vocabulary.size == changed.text_config.vocab_size == 79
    assert changed.text_config.num_key_value_heads == 2 and changed.text_config.tie_word_embeddings
    with pytest.raises(ValueError, match="name: expected one of lavit-g, small, got 'large'"):
        LaVITConfig.preset("large")


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    config = small()
    config.image_objective = "regress"
    config.text_config.rope_parameters = {"rope_type": "default", "rope_theta": 5e4}
    config.save_pretrained(tmp_path)
    back = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(back, LaVITConfig) and isinstance(back.tokenizer_config, LaVITTokenizerConfig)
    for part in ("text_config", "tokenizer_config"):
        assert getattr(back, part).to_diff_dict() == getattr(config, part).to_diff_dict()
    assert (back.text_size, back.image_objective, back.vocabulary) == (61, "regress", config.vocabulary)


def test_a_vocabulary_with_padded_rows_fits_and_one_of_another_size_is_named() -> None:
    tokenizer = LaVITTokenizerConfig.preset("small")
    padded = LaVITConfig(LlamaConfig(vocab_size=384), tokenizer, text_size=61)
    assert padded.vocabulary.size == 319
    with pytest.raises(ValueError, match=r"expected at least 319 rows \(61 text ids.* 256 codes\), got 318"):
        LaVITConfig(LlamaConfig(vocab_size=318), tokenizer, text_size=61)


def test_what_is_no_setting_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"LaVITConfig: unknown name 'text_sise' \(did you mean text_size"):
        LaVITConfig(text_sise=61)
    with pytest.raises(ValueError, match="image_objective: expected classify or regress, got 'both'"):
        LaVITConfig(image_objective="both")
    with pytest.raises(ValueError, match="visual_dtype: expected float32 or None, got 'bfloat16'"):
        LaVITConfig(visual_dtype="bfloat16")
    with pytest.raises(ValueError, match="regression_weight: expected a positive number, got 0"):
        LaVITConfig(regression_weight=0)
    with pytest.raises(ValueError, match="image_sampling: expected names of guidance, top_k, .*, got guidence"):
        LaVITConfig(image_sampling={"guidence": 2.0})
    with pytest.raises(ValueError, match="temperature: expected a finite number >= 0, got -1"):
        LaVITConfig(image_sampling={"temperature": -1})
    with pytest.raises(ValueError, match="text_size: expected a number >= 1, got 0"):
        LaVITConfig(text_size=0)
    with pytest.raises(TypeError, match="text_config: expected a LlamaConfig or a dictionary, got GPT2Config"):
        LaVITConfig(GPT2Config())  # type: ignore[arg-type]
    small().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "texts": 61}))
    with pytest.raises(ValueError, match="LaVITConfig: unknown name 'texts'"):
        LaVITConfig.from_pretrained(tmp_path)
