"""Configuration: presets, round trips, and names or values that are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from lavit.tokenizer import LaVITTokenizer, LaVITTokenizerConfig


def test_preset_names_and_shapes_equal_the_release() -> None:
    """On the meta device: every tensor of the release, and beside them only what training a codebook needs."""
    keys = json.loads((Path(__file__).parents[1] / "golden" / "state_dict_keys.json").read_text())
    release, lowres, highres = keys.values()
    for kind, decoder in (("lowres", lowres), ("highres", highres)):
        with torch.device("meta"):
            model = LaVITTokenizer(LaVITTokenizerConfig.preset("lavit-g", decoder_condition=kind))
        expected = {**release, **{f"decoder.{name}": shape for name, shape in decoder.items()}}
        own = {name: list(t.shape) for name, t in model.state_dict().items()}
        assert own.pop("quantize.cluster_size") == [16384]
        assert own.pop("quantize.updates") == []
        assert own == expected


def test_small_preset_takes_overrides() -> None:
    config = LaVITTokenizerConfig.preset("small", num_codes=64)
    assert (config.num_patches, config.hidden_size, config.num_codes, config.min_keep) == (64, 96, 64, 1)


@pytest.mark.parametrize(("size", "patches"), [(64, 64), (96, 144), (128, 256)])
def test_presets_of_pictures_have_the_size_in_their_name(size: int, patches: int) -> None:
    config = LaVITTokenizerConfig.preset(f"small-{size}")
    assert (config.image_size, config.patch_size, config.num_patches) == (size, 8, patches)


def test_unknown_preset_is_refused() -> None:
    known = "lavit-g, small, small-64, small-96, small-128"
    with pytest.raises(ValueError, match=f"name: expected one of {known}, got 'tiny'"):
        LaVITTokenizerConfig.preset("tiny")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("num_code", "num_codes"),
        ("hiden_size", "hidden_size"),
        ("merger_dept", "merger_depth"),
        ("ema_decai", "ema_decay"),
    ],
)
def test_unknown_name_is_refused_with_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(ValueError, match=rf"unknown name '{name}' \(did you mean .*{hint}"):
        LaVITTokenizerConfig(**{name: 1})


def test_every_unknown_name_is_listed() -> None:
    with pytest.raises(ValueError, match="unknown name 'qqqq', 'zzzz'"):
        LaVITTokenizerConfig(zzzz=1, qqqq=2)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"merge": "sparse"}, "merge: expected one of packed, dense, got 'sparse'"),
        ({"selector_gradient": "none"}, "selector_gradient: expected one of packed, exact"),
        ({"ratio_scope": "epoch"}, "ratio_scope: expected one of batch, image"),
        ({"decoder_condition": "huge"}, "decoder_condition: expected one of None, lowres, highres"),
        ({"num_codes": 0}, "num_codes: expected an integer of at least 1, got 0"),
        ({"image_size": 225}, "image_size: expected a multiple of patch_size 14, got 225"),
        ({"num_heads": 7}, "num_heads: expected a divisor of hidden_size 1408, got 7"),
        ({"hidden_size": 18, "num_heads": 2, "encoder_heads": 2}, "hidden_size: expected a multiple of 4"),
        ({"min_keep": 257}, "min_keep: expected 0 to 256"),
        ({"keep_rate": 0.0}, "keep_rate: expected a number in"),
        ({"tau": 0}, "tau: expected a positive number"),
        ({"ema_decay": 1.0}, "ema_decay: expected a number in"),
    ],
)
def test_values_that_cannot_be_are_refused(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LaVITTokenizerConfig(**values)


def test_saved_configuration_is_read_back(tmp_path: Path) -> None:
    config = LaVITTokenizerConfig.preset("small", ratio_low=0.3, merge="dense")
    config.save_pretrained(tmp_path)
    for back in (LaVITTokenizerConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert isinstance(back, LaVITTokenizerConfig)
        assert {**back.to_dict(), "_name_or_path": ""} == config.to_dict()


def test_unknown_name_in_a_file_is_refused(tmp_path: Path) -> None:
    LaVITTokenizerConfig.preset("small").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "keep_ratio": 0.5}))
    with pytest.raises(ValueError, match="unknown name 'keep_ratio'.*keep_rate"):
        LaVITTokenizerConfig.from_pretrained(tmp_path)
