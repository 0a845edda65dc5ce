"""Released checkpoints: small files in the release's layout, made of the golden weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from lavit.hub import load_released_decoder, load_released_tokenizer
from lavit.kernels import Ragged
from lavit.tokenizer import LaVITTokenizerConfig

GOLDEN = Path(__file__).parent / "golden"
CONFIG = LaVITTokenizerConfig(
    image_size=84,
    hidden_size=176,
    encoder_depth=2,
    encoder_heads=2,
    encoder_head_dim=48,
    merger_depth=2,
    decoder_depth=2,
    num_heads=2,
    num_codes=512,
    projection_dim=64,
    decoder_out_dim=192,
    condition_dim=24,
    condition_dim_2=40,
)


def tensors(name: str, prefix: str = "") -> dict[str, Tensor]:
    state = load_file(GOLDEN / f"{name}.safetensors")
    state = {k[len(prefix) :]: t for k, t in state.items() if k.startswith(prefix)}
    return {k: t.float() if t.is_floating_point() else t for k, t in state.items()}


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """A folder like the release's, with the encoder in a file of its own."""
    folder = tmp_path / "visual_tokenizer"
    folder.mkdir()
    whole = tensors("tokenizer", "tokenizer.")
    encoder = {k.removeprefix("encoder."): t for k, t in whole.items() if k.startswith("encoder.")}
    torch.save(encoder, folder / "eva_vitg_psz14.bin")
    torch.save({k: t for k, t in whole.items() if not k.startswith("encoder.")}, folder / "tokenizer_encoder.bin")
    torch.save(tensors("decoder_lowres", "decoder."), folder / "tokenizer_decoder.bin")
    torch.save(tensors("decoder_highres", "decoder."), folder / "highres_tokenizer_decoder.bin")
    return tmp_path


@pytest.mark.parametrize("inner", ["", "visual_tokenizer"])
def test_released_files_give_the_golden_tokens(release: Path, inner: str) -> None:
    model = load_released_tokenizer(release / inner, config=CONFIG)
    golden = tensors("tokenizer")
    tokens = model.encode(golden["images"], noise=golden["gumbel_noise"])
    assert model.config.merge == "dense" and not model.training
    assert torch.equal(tokens.ids + 32002, golden["token_ids"])
    assert model.quantize.cluster_size.eq(1).all() and not any(t.is_meta for t in model.state_dict().values())
    model.latents(golden["images"], noise=golden["gumbel_noise"]).values.sum().backward()


def test_encoder_inside_the_tokenizer_file_is_enough(release: Path) -> None:
    folder = release / "visual_tokenizer"
    (folder / "eva_vitg_psz14.bin").unlink()
    torch.save(tensors("tokenizer", "tokenizer."), folder / "tokenizer_encoder.bin")
    load_released_tokenizer(release, config=CONFIG)


@pytest.mark.parametrize(("kind", "out"), [("lowres", "out"), ("highres", "prompt_embeds")])
def test_released_decoders_give_the_golden_conditions(release: Path, kind: str, out: str) -> None:
    golden = tensors(f"decoder_{kind}")
    codes = Ragged.from_list(list(golden["codes"].split(golden["lengths"].tolist())))
    for decoder in (
        load_released_decoder(release, kind, config=CONFIG),
        load_released_tokenizer(release, config=CONFIG, decoder=kind).decoder,
    ):
        condition = decoder.condition(decoder(codes))
        condition = condition if kind == "lowres" else condition[0]
        torch.testing.assert_close(condition, golden[out], rtol=1e-5, atol=1e-5 * golden[out].abs().max().item())


def test_every_missing_and_unexpected_tensor_is_named(release: Path) -> None:
    path = release / "visual_tokenizer" / "tokenizer_encoder.bin"
    state = torch.load(path, weights_only=True)
    del state["vit_proj.bias"], state["causal_encoder.norm.weight"]
    state.update({"lost.weight": torch.zeros(1), "found.weight": torch.zeros(1), "vit_proj.weight": torch.zeros(3, 4)})
    torch.save(state, path)
    with pytest.raises(ValueError) as caught:
        load_released_tokenizer(release, config=CONFIG)
    message = str(caught.value)
    assert "missing: causal_encoder.norm.weight, vit_proj.bias;" in message
    assert "unexpected: found.weight, lost.weight;" in message
    assert "of another shape: vit_proj.weight (file (3, 4), model (64, 176))" in message


def test_missing_and_damaged_files_are_named(release: Path) -> None:
    path = release / "visual_tokenizer" / "tokenizer_encoder.bin"
    content = path.read_bytes()
    for broken in (content[:-3000], b"", b"not a tensor"):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match="tokenizer_encoder.bin: damaged, cut short, or not a file of tensors"):
            load_released_tokenizer(release, config=CONFIG)
    torch.save({"epoch": 3}, path)
    with pytest.raises(ValueError, match="tokenizer_encoder.bin: expected a dictionary of tensors"):
        load_released_tokenizer(release, config=CONFIG)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="tokenizer_encoder.bin: no such file"):
        load_released_tokenizer(release, config=CONFIG)


class Code:
    """What a pickle may smuggle in."""

    def __reduce__(self) -> tuple:
        return print, ("code of the file ran",)


def test_code_in_a_file_is_not_run(release: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"a": Code()}, release / "visual_tokenizer" / "tokenizer_decoder.bin")
    with pytest.raises(ValueError, match="tokenizer_decoder.bin"):
        load_released_tokenizer(release, config=CONFIG)
    assert "code of the file ran" not in capsys.readouterr().out


def test_unknown_decoder_is_refused(release: Path) -> None:
    with pytest.raises(ValueError, match="decoder: expected one of lowres, highres, got 'midres'"):
        load_released_tokenizer(release, config=CONFIG, decoder="midres")
