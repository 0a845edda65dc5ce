"""transformers conventions: what is saved comes back, and what does not fit is refused with all names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from lavit.tokenizer import LaVITTokenizer, LaVITTokenizerConfig


def tiny() -> LaVITTokenizer:
    torch.manual_seed(0)
    sizes = {"image_size": 16, "hidden_size": 32, "encoder_depth": 1, "merger_depth": 1, "decoder_depth": 1}
    return LaVITTokenizer(LaVITTokenizerConfig.preset("small", **sizes, num_codes=16, code_dim=8)).eval()


def change(folder: Path, **tensors: torch.Tensor | None) -> None:
    path = folder / "model.safetensors"
    state = {**load_file(path), **tensors}
    save_file({k: t for k, t in state.items() if t is not None}, path, metadata={"format": "pt"})


@pytest.mark.parametrize("shard", ["5GB", "100KB"])
def test_what_is_saved_comes_back(tmp_path: Path, shard: str) -> None:
    model = tiny().train()
    model(torch.randn(4, 3, 16, 16)).loss.backward()
    model.eval()
    model.save_pretrained(tmp_path, max_shard_size=shard)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard == "100KB")
    x = torch.randn(3, 3, 16, 16)
    for loader in (LaVITTokenizer, AutoModel):
        back = loader.from_pretrained(tmp_path)
        assert isinstance(back, LaVITTokenizer) and not back.training
        expected = model.state_dict()
        assert back.state_dict().keys() == expected.keys()
        assert all(torch.equal(t, expected[name]) for name, t in back.state_dict().items())
        assert torch.equal(back.encode(x, seeds=range(3)).ids, model.encode(x, seeds=range(3)).ids)
        frozen = {n for n, p in back.named_parameters() if not p.requires_grad}
        assert frozen == {n for n, p in model.named_parameters() if not p.requires_grad}


def test_half_precision_loading_keeps_what_decides_the_ids_in_float32(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path)
    back = LaVITTokenizer.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert back.encoder.cls_token.dtype == torch.bfloat16
    assert back.quantize.embedding.weight.dtype == torch.float32
    assert back.token_predictor.in_conv[1].weight.dtype == torch.float32
    tokens = back.encode(torch.randn(2, 3, 16, 16).bfloat16(), seeds=range(2))
    assert back.decode(tokens).dtype == torch.bfloat16


def test_every_missing_and_unexpected_tensor_is_named(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path)
    change(
        tmp_path,
        **{
            "encoder.cls_token": None,
            "quantize.embedding.weight": None,
            "stranger.weight": torch.zeros(2),
            "another.bias": torch.zeros(2),
            "decoder.in_proj.bias": torch.zeros(31),
        },
    )
    with pytest.raises(ValueError) as caught:
        LaVITTokenizer.from_pretrained(tmp_path)
    message = str(caught.value)
    assert "missing: encoder.cls_token, quantize.embedding.weight;" in message
    assert "unexpected: another.bias, stranger.weight;" in message
    assert "of another shape: decoder.in_proj.bias (file (31,), model (32,))" in message


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="a weights file is damaged"):
        LaVITTokenizer.from_pretrained(tmp_path)


def test_an_unknown_configuration_name_stops_the_loading(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "code_dims": 8}))
    with pytest.raises(ValueError, match=r"unknown name 'code_dims' \(did you mean code_dim"):
        LaVITTokenizer.from_pretrained(tmp_path)
