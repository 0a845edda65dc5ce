"""Released checkpoints: small files in the release's layout, made of the golden weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from lavit.kernels import Ragged, Segment, segment_order
from lavit.language import LaVIT, Vocabulary
from lavit.language.assembly import PackedBatch
from lavit.released.language import load_released_lavit
from lavit.released.tokenizer import load_released_decoder, load_released_tokenizer
from lavit.tokenizer import LaVITTokenizerConfig, VisualTokens

GOLDEN = Path(__file__).parents[1] / "golden"
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


# The whole model.

TEXT_SIZE = 41
ROWS = TEXT_SIZE + 2 + 512


def llama(rows: int = ROWS, width: int = 64) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24, "max_position_embeddings": 64}
    return LlamaForCausalLM(LlamaConfig(hidden_size=width, vocab_size=rows, **sizes)).eval()


def visual_weights() -> dict[str, Tensor]:
    state = tensors("tokenizer", "tokenizer.")
    return {k: t for k, t in state.items() if k.startswith(("causal_encoder.", "vit_proj."))}


def write_language_model(folder: Path, form: str, model: LlamaForCausalLM) -> None:
    """As safetensors, or as two shards of `.bin` with what older checkpoints hold beside the weights."""
    model.config.save_pretrained(folder)
    state = {k: t.clone() for k, t in model.state_dict().items()}
    if form == "safetensors":
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        return
    state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    places = {name: f"pytorch_model-0000{i % 2 + 1}-of-00002.bin" for i, name in enumerate(sorted(state))}
    for file in sorted(set(places.values())):
        torch.save({name: state[name] for name, place in places.items() if place == file}, folder / file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


@pytest.fixture
def whole(release: Path) -> Path:
    """The release's folder whose stage-1 merger and projection differ from those of visual_weight.bin."""
    folder = release / "language_model"
    folder.mkdir()
    write_language_model(folder, "bin", llama())
    torch.save(visual_weights(), folder / "visual_weight.bin")
    return release


def load(folder: Path, **settings: Any) -> LaVIT:
    return load_released_lavit(folder, config=CONFIG, text_size=TEXT_SIZE, **settings)


def read_and_written(model: LaVIT, kind: Segment) -> PackedBatch:
    """The golden images as samples of one image each."""
    golden = tensors("tokenizer")
    segments = segment_order([[kind]] * len(golden["images"]))
    no_text = Ragged(torch.zeros(0, dtype=torch.int64), torch.zeros(1, dtype=torch.int32), 0)
    return model.assemble(no_text, segments, images=golden["images"], noise=golden["gumbel_noise"])


@pytest.mark.parametrize("prefix", ["", "visual_tokenizer."])
def test_images_are_read_by_visual_weight_and_written_by_stage_one(whole: Path, prefix: str) -> None:
    golden, file = tensors("tokenizer"), whole / "visual_tokenizer" / "tokenizer_encoder.bin"
    torch.save({prefix + k: t for k, t in visual_weights().items()}, whole / "language_model" / "visual_weight.bin")
    assert torch.equal(
        read_and_written(load(whole), Segment.CODES).sequences.input_ids,
        golden["token_ids_with_special"] - 32000 + TEXT_SIZE,
    )
    # With another merger in stage 1 the codes are others, and what is read stays the same.
    stage_1 = torch.load(file, weights_only=True)
    stage_1.update({k: t + 0.1 for k, t in stage_1.items() if k.startswith(("causal_encoder.", "vit_proj."))})
    torch.save(stage_1, file)
    model = load(whole)
    features = read_and_written(model, Segment.FEATURES).features
    assert features is not None
    scale = golden["llm_embeds"].abs().max().item()
    torch.testing.assert_close(features, golden["llm_embeds"], rtol=1e-5, atol=1e-5 * scale)
    ids = read_and_written(model, Segment.CODES).sequences.input_ids
    assert not torch.equal(ids, golden["token_ids_with_special"] - 32000 + TEXT_SIZE)
    assert model.understanding.form == model.visual_tokenizer.config.merge == "dense" and not model.training


@pytest.mark.parametrize("form", ["bin", "safetensors"])
def test_the_released_language_model_stays_as_it_is(release: Path, form: str) -> None:
    folder, rows = release / "language_model", ROWS + 5  # rows that stand for no id
    folder.mkdir()
    write_language_model(folder, form, llama(rows))
    torch.save(visual_weights(), folder / "visual_weight.bin")
    model = load(release, dtype=torch.bfloat16 if form == "bin" else None)
    wanted = torch.bfloat16 if form == "bin" else torch.float32
    expected = llama(rows).to(wanted).state_dict()
    found = model.language_model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(t, expected[name]) and t.dtype == wanted for name, t in found.items())
    assert model.vocabulary == Vocabulary(TEXT_SIZE, 512) and model.config.text_config.vocab_size == rows
    assert all(t.dtype == torch.float32 for t in model.understanding.state_dict().values())
    text, segments = Ragged.from_list([torch.arange(7)]), segment_order([[Segment.TEXT]])
    out = model(text, segments, tokens=VisualTokens(*no_images()))
    out.loss.backward()
    assert out.loss.isfinite() and not any(p.is_meta for p in model.parameters())
    with torch.no_grad():
        plain = model.language_model(torch.arange(7)[None], labels=torch.arange(7)[None]).logits[0, :, :ROWS].float()
    exact = torch.nn.functional.cross_entropy(plain[:-1], torch.arange(1, 7))
    torch.testing.assert_close(out.loss.detach(), exact, rtol=2 * torch.finfo(wanted).eps, atol=0)


def no_images() -> tuple[Tensor, Tensor, Tensor]:
    none = torch.zeros(0, dtype=torch.int64)
    return none, torch.zeros(1, dtype=torch.int32), torch.zeros(0, 36, dtype=torch.bool)


def test_a_saved_released_model_comes_back(whole: Path, tmp_path: Path) -> None:
    model = load(whole)
    model.save_pretrained(tmp_path / "saved", max_shard_size="1MB")
    again = LaVIT.from_pretrained(tmp_path / "saved").state_dict()
    assert all(torch.equal(t, again[name]) for name, t in model.state_dict().items())


def test_every_missing_part_of_the_release_is_named(whole: Path) -> None:
    language = whole / "language_model"
    lost = [
        whole / "visual_tokenizer" / "tokenizer_decoder.bin",
        language / "visual_weight.bin",
        language / "pytorch_model-00002-of-00002.bin",
    ]
    for path in lost:
        path.unlink()
    with pytest.raises(FileNotFoundError) as caught:
        load(whole)
    assert all(str(path) in str(caught.value) for path in lost) and str(caught.value).count(".bin") == len(lost)
    (language / "pytorch_model.bin.index.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"model.safetensors \(or .*pytorch_model.bin.index.json\)"):
        load(whole)
    with pytest.raises(FileNotFoundError, match="nowhere.*tokenizer_encoder.bin.*nowhere.*config.json"):
        load(whole / "nowhere")


def test_every_wrong_name_in_visual_weight_is_told(whole: Path) -> None:
    path = whole / "language_model" / "visual_weight.bin"
    state = visual_weights()
    state["visual_proj.bias"] = state.pop("vit_proj.bias")
    state["vit_proj.weight"] = torch.zeros(3, 4)
    torch.save(state, path)
    with pytest.raises(ValueError) as caught:
        load(whole)
    message = str(caught.value)
    assert message.startswith(str(path)) and "missing: vit_proj.bias; unexpected: visual_proj.bias; " in message
    assert "of another shape: vit_proj.weight (file (3, 4), model (64, 176))" in message
    state = visual_weights()
    torch.save({**state, "visual_tokenizer.vit_proj.bias": state["vit_proj.bias"]}, path)
    with pytest.raises(ValueError, match="expected every tensor once, got with and without .*: vit_proj.bias"):
        load(whole)


def test_a_language_model_that_lacks_or_adds_tensors_is_refused(whole: Path) -> None:
    folder = whole / "language_model"
    model = llama()
    weights = {k: t.clone() for k, t in model.state_dict().items()}
    del weights["model.norm.weight"]
    weights.update({"model.lost.weight": torch.zeros(1), "lm_head.weight": torch.zeros(ROWS - 1, 64)})
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError) as caught:
        load(whole)
    message = str(caught.value)
    assert "missing: model.norm.weight; unexpected: model.lost.weight; " in message
    assert f"of another shape: lm_head.weight (file ({ROWS - 1}, 64), model ({ROWS}, 64))" in message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"vocab_size": 32000},
            "vocab_size: expected at least 48386 .32000 text ids, .IMG., ./IMG. and 16384 codes.*got 32000",
        ),
        ({"model_type": "opt"}, "model_type: expected llama, got 'opt'"),
        ({"hidden_size": None}, "hidden_size: expected at least 1, got None"),
    ],
)
def test_a_language_model_of_another_kind_is_refused_before_it_is_read(whole: Path, change: dict, message: str) -> None:
    path = whole / "language_model" / "config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, "vocab_size": 48386, **change}))
    with pytest.raises(ValueError, match="config.json: " + message):
        load_released_lavit(whole)


def test_damaged_files_and_code_in_the_language_model_are_refused(
    whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = whole / "language_model"
    shard = folder / "pytorch_model-00001-of-00002.bin"
    content = shard.read_bytes()
    for broken in (content[: len(content) // 2], b"", b"not a tensor"):
        shard.write_bytes(broken)
        with pytest.raises(ValueError, match=f"{shard.name}: damaged, cut short, or not a file of tensors"):
            load(whole)
    torch.save({"a": Code()}, shard)
    with pytest.raises(ValueError, match=f"{shard.name}: damaged, cut short, or not a file of tensors"):
        load(whole)
    shard.write_bytes(content)
    torch.save({"a": Code()}, folder / "visual_weight.bin")
    with pytest.raises(ValueError, match="visual_weight.bin: damaged"):
        load(whole)
    torch.save(visual_weights(), folder / "visual_weight.bin")
    assert "code of the file ran" not in capsys.readouterr().out
    for name, text, found in (
        ("pytorch_model.bin.index.json", "{}", "expected the file of every tensor under weight_map, got None"),
        ("config.json", "{", "damaged or no JSON"),
        ("config.json", "[]", "expected a JSON object, got list"),
    ):
        before = (folder / name).read_text()
        (folder / name).write_text(text)
        with pytest.raises(ValueError, match=f"{name}: {found}"):
            load(whole)
        (folder / name).write_text(before)
    (folder / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match="model.safetensors: damaged, cut short, or not a file of tensors"):
        load(whole)
