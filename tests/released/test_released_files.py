"""What a release's files may hold, and in which precision: nothing is taken, left out or lost without a word."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from released_folder import (
    CONFIG,
    TEXT_SIZE,
    WIDTH,
    released_llama,
    released_tokenizer,
    visual_weights,
    write_language_model,
    write_tokenizer,
)
from safetensors.torch import save_file
from tiny_pixels import PATCHES, SIDE
from torch import Tensor, nn
from torch.nn import functional as F

from lavit.language import LaVIT
from lavit.released.files import read_tensors
from lavit.released.language import load_released_lavit
from lavit.released.tokenizer import load_released_decoder, load_released_tokenizer
from lavit.tokenizer import LaVITTokenizer, LaVITTokenizerConfig

Change = Callable[[dict[str, Tensor]], Any]
MAIN = "visual_tokenizer/tokenizer_encoder.bin"
ENCODER = "visual_tokenizer/eva_vitg_psz14.bin"
VISUAL = "language_model/visual_weight.bin"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tokenizer and the language model."""
    folder = tmp_path_factory.mktemp("release")
    write_tokenizer(folder / "visual_tokenizer")
    write_language_model(folder / "language_model")
    return folder


@pytest.fixture
def release(whole: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(whole, tmp_path / "release"))


def edit(path: Path, change: Change) -> None:
    state = {name: tensor.clone() for name, tensor in torch.load(path, weights_only=True).items()}
    change(state)
    torch.save(state, path)


def tokenizer(folder: Path, **settings: Any) -> LaVITTokenizer:
    return load_released_tokenizer(folder, **{"config": CONFIG, **settings})


def lavit(folder: Path, **settings: Any) -> LaVIT:
    return load_released_lavit(folder, **{"config": CONFIG, "text_size": TEXT_SIZE, **settings})


def images(count: int = 3) -> Tensor:
    return torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(9))


def same(model: nn.Module, other: nn.Module) -> bool:
    ours, theirs = model.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(t, theirs[name]) for name, t in ours.items())


# What the release leaves out.


def test_a_decoder_inside_the_tokenizer_file_does_not_replace_the_decoders_own(
    release: Path, caplog: pytest.LogCaptureFixture
) -> None:
    held = {f"decoder.{k}": torch.zeros_like(t) for k, t in released_tokenizer().decoder.state_dict().items()}
    edit(release / MAIN, lambda state: state.update(held))
    with caplog.at_level(logging.INFO, "lavit.released"):
        model = tokenizer(release)
    assert same(model, released_tokenizer())
    (line,) = (text for text in caplog.messages if "tokenizer_encoder.bin: not used, nor by the release" in text)
    assert all(name in line for name in held)


def test_averages_of_the_codebook_are_named_and_left_out(release: Path, caplog: pytest.LogCaptureFixture) -> None:
    held = {
        "quantize.cluster_size": torch.rand(16),
        "quantize.embedding.cluster_size": torch.rand(16),
        "quantize.embedding.embed_avg": torch.rand(16, 4),
        "quantize.embedding.initted": torch.ones(1),
    }
    edit(release / MAIN, lambda state: state.update(held))
    with caplog.at_level(logging.INFO, "lavit.released"):
        model = tokenizer(release)
    assert same(model, released_tokenizer()) and model.quantize.cluster_size.eq(1).all()
    assert any(all(name in text for name in held) for text in caplog.messages)


def test_a_tokenizer_without_projection_has_none_and_understanding_has_its_own(
    release: Path, caplog: pytest.LogCaptureFixture
) -> None:
    edit(release / MAIN, lambda state: [state.pop(f"vit_proj.{name}") for name in ("weight", "bias")])
    with caplog.at_level(logging.INFO, "lavit.released"):
        model = tokenizer(release)
    assert any("tokenizer_encoder.bin: no vit_proj" in line for line in caplog.messages)
    assert model.config.projection_dim is None and not hasattr(model, "vit_proj")
    assert model.features(images(), deterministic=True).values.shape[1] == CONFIG.hidden_size
    understanding = lavit(release).understanding.state_dict()
    assert all(torch.equal(t, understanding[name]) for name, t in visual_weights().items())
    edit(release / VISUAL, lambda state: state.pop("vit_proj.bias"))
    with pytest.raises(ValueError, match="visual_weight.bin: .* missing: vit_proj.bias"):
        lavit(release)
    # Half of one is a fault in any case.
    edit(release / MAIN, lambda state: state.update({"vit_proj.bias": torch.zeros(WIDTH)}))
    with pytest.raises(ValueError, match="tokenizer_encoder.bin: .* missing: vit_proj.weight"):
        tokenizer(release)


@pytest.mark.parametrize("prefix", ["", "visual_tokenizer."])
def test_more_in_visual_weight_is_named_and_left_out(
    release: Path, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    state = released_tokenizer().state_dict()
    held = {k: t for k, t in state.items() if k.startswith(("token_predictor.", "encoder."))}
    held |= {"quantize.embedding.weight": torch.zeros(16, 4), "ln_vision.weight": torch.zeros(3)}
    held = {k: t.half() if prefix else t for k, t in held.items()}  # another precision is no other tensor
    torch.save({prefix + k: t for k, t in {**visual_weights(), **held}.items()}, release / VISUAL)
    with caplog.at_level(logging.INFO, "lavit.released"):
        model = lavit(release)
    assert all(torch.equal(t, model.understanding.state_dict()[k]) for k, t in visual_weights().items())
    (line,) = (text for text in caplog.messages if "visual_weight.bin: not used" in text)
    assert all(name in line for name in held)


@pytest.mark.parametrize("name", ["token_predictor.out_conv.4.bias", "encoder.pos_embed"])
def test_visual_weight_with_another_selector_or_encoder_is_refused(release: Path, name: str) -> None:
    other = released_tokenizer().state_dict()[name] + 0.01
    edit(release / VISUAL, lambda state: state.update({name: other}))
    with pytest.raises(ValueError, match=f"visual_weight.bin: expected the encoder and the selector of .*: {name}"):
        lavit(release)


# What is missing or of another model.


@pytest.mark.parametrize("load", [tokenizer, lavit])
def test_a_missing_encoder_file_is_named_not_its_tensors(release: Path, load: Callable[[Path], Any]) -> None:
    (release / ENCODER).unlink()
    with pytest.raises(FileNotFoundError, match="eva_vitg_psz14.bin: no such file, and tokenizer_encoder.bin") as error:
        load(release)
    assert "blocks" not in str(error.value)


def test_part_of_an_encoder_in_the_tokenizer_file_needs_the_other_part(release: Path) -> None:
    held = {"encoder.pos_embed": torch.full((1, PATCHES + 1, CONFIG.hidden_size), 0.5)}
    edit(release / MAIN, lambda state: state.update(held))
    # As in the release, what this file holds counts.
    assert torch.equal(tokenizer(release).encoder.pos_embed, held["encoder.pos_embed"])
    (release / ENCODER).unlink()
    with pytest.raises(ValueError, match="tokenizer_encoder.bin: .*missing: encoder.blocks.0"):
        tokenizer(release)


@pytest.mark.parametrize("file", [MAIN, ENCODER, "visual_tokenizer/tokenizer_decoder.bin", VISUAL])
def test_a_file_of_another_model_is_named(release: Path, file: str) -> None:
    torch.save({"text_model.embeddings.weight": torch.zeros(3, 2), "logit_scale": torch.zeros(())}, release / file)
    told = f"{Path(file).name}: holds none of the model's tensors .*logit_scale.*: a file of another model"
    with pytest.raises(ValueError, match=told):
        lavit(release)


def test_a_mixture_of_two_releases_is_told_by_the_file_of_another_size(release: Path) -> None:
    torch.manual_seed(3)
    sizes = {**CONFIG.to_dict(), "hidden_size": 24, "decoder_condition": "lowres"}
    wide = LaVITTokenizer(LaVITTokenizerConfig(**sizes))
    state = wide.state_dict()
    parts = {
        "tokenizer_decoder.bin": {k[8:]: t for k, t in state.items() if k.startswith("decoder.")},
        "eva_vitg_psz14.bin": {k[8:]: t for k, t in state.items() if k.startswith("encoder.")},
        "tokenizer_encoder.bin": {
            k: t for k, t in state.items() if not k.startswith(("encoder.", "decoder.", "quantize.c", "quantize.u"))
        },
    }
    for name, tensors in parts.items():
        path = release / "visual_tokenizer" / name
        kept = path.read_bytes()
        torch.save(tensors, path)
        with pytest.raises(ValueError, match=rf"{name}: .*\(a file of another size or release\?\).*of another shape"):
            tokenizer(release)
        path.write_bytes(kept)
    read = {k: t for k, t in state.items() if k.startswith(("causal_encoder.", "vit_proj."))}
    torch.save(read, release / VISUAL)
    with pytest.raises(ValueError, match=r"visual_weight.bin: .*\(a file of another size or release\?\)"):
        lavit(release)


def test_a_codebook_of_another_size_is_named_with_its_file(release: Path) -> None:
    edit(release / MAIN, lambda state: state.update({"quantize.embedding.weight": torch.zeros(20, 4)}))
    with pytest.raises(ValueError, match=r"tokenizer_encoder.bin: .*quantize.embedding.weight \(file \(20, 4\)"):
        tokenizer(release)


def test_weights_of_another_vocabulary_than_their_configuration_are_refused(release: Path) -> None:
    folder = release / "language_model"
    state = released_llama().state_dict()
    fewer = {k: t[:-1].clone() if "embed" in k or "lm_head" in k else t.clone() for k, t in state.items()}
    save_file(fewer, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="language_model: .*of another shape: lm_head.weight"):
        lavit(release)


def test_weights_in_two_formats_safetensors_count_and_the_other_is_named(
    release: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = release / "language_model"
    state = {k: t.clone() + 1 for k, t in released_llama().state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with caplog.at_level(logging.WARNING):
        model = lavit(release)
    assert all(torch.equal(t, state[name]) for name, t in model.language_model.state_dict().items())
    told = "pytorch_model.bin.index.json: not read, model.safetensors beside it"
    assert any(told in line for line in caplog.messages)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_file_cut_anywhere_is_told_to_be_damaged(tmp_path: Path, legacy: bool) -> None:
    path = tmp_path / "weights.bin"
    torch.save({f"x{i}": torch.rand(30, 7) for i in range(3)}, path, _use_new_zipfile_serialization=not legacy)
    content = path.read_bytes()
    for end in range(0, len(content) - 1, 53):
        path.write_bytes(content[:end])
        with pytest.raises(ValueError, match="weights.bin: damaged, cut short, or not a file of tensors"):
            read_tensors(path)


# Memory of one's own.


@pytest.mark.parametrize("form", ["bin", "safetensors"])
def test_a_file_written_over_in_place_leaves_a_loaded_model_as_it_was(release: Path, form: str) -> None:
    if form == "safetensors":
        state = {k: t.clone() for k, t in released_llama().state_dict().items()}
        save_file(state, release / "language_model" / "model.safetensors", metadata={"format": "pt"})
    model, decoder = lavit(release), load_released_decoder(release, "highres", config=CONFIG)
    before = {k: t.clone() for k, t in model.state_dict().items()}
    decoder_before = {k: t.clone() for k, t in decoder.state_dict().items()}
    for path in [*release.rglob("*.bin"), *release.rglob("*.safetensors")]:
        with path.open("r+b") as file:
            file.write(bytes([255]) * path.stat().st_size)
    assert all(torch.equal(t, before[k]) for k, t in model.state_dict().items())
    assert all(torch.equal(t, decoder_before[k]) for k, t in decoder.state_dict().items())


@pytest.mark.parametrize("legacy", [False, True])
def test_a_state_read_twice_shares_no_memory_with_a_model(release: Path, legacy: bool) -> None:
    path = release / MAIN
    torch.save(torch.load(path, weights_only=True), path, _use_new_zipfile_serialization=not legacy)
    assert same(tokenizer(release), released_tokenizer())
    assert read_tensors(path).keys() == torch.load(path, weights_only=True).keys()


@pytest.mark.parametrize("device_map", [None, "cpu", "auto", torch.device("cpu")])
def test_device_map_is_passed_on_and_changes_no_weight(release: Path, device_map: Any) -> None:
    if device_map is not None:
        pytest.importorskip("accelerate")
    model, plain = lavit(release, device_map=device_map), lavit(release)
    assert same(model, plain)
    place = model.get_input_embeddings().weight.device
    assert {p.device for p in (*model.visual_tokenizer.parameters(), *model.understanding.parameters())} == {place}


# Precision.


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_what_decides_the_ids_keeps_the_releases_precision(release: Path, dtype: torch.dtype) -> None:
    model, exact = tokenizer(release, dtype=dtype).state_dict(), released_tokenizer().state_dict()
    precise = torch.promote_types(dtype, torch.float32)
    for name, tensor in model.items():
        if name in ("quantize.updates", "quantize.cluster_size"):
            continue
        top, layer = name.split(".")[0], ".".join(name.split(".")[:-1])
        decides = top in ("quantize", "token_predictor", "encode_task_layer")
        assert tensor.dtype == (precise if decides else dtype), name
        kept = top == "quantize" or layer == "token_predictor.in_conv.0"  # the release rounds linear layers alone
        assert torch.equal(tensor, exact[name].to(precise if kept else dtype).to(tensor.dtype)), name


def test_ids_in_bfloat16_are_those_of_the_releases_arithmetic(release: Path) -> None:
    """Where a choice is further from a tie than what the release's own rounding moves it."""
    model = tokenizer(release, dtype=torch.bfloat16)
    state = released_tokenizer().state_dict()
    eps = torch.finfo(torch.bfloat16).eps
    rows = torch.randn(4000, CONFIG.hidden_size, generator=torch.Generator().manual_seed(1)).bfloat16()

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x.bfloat16(), state[f"{name}.weight"].bfloat16(), state[f"{name}.bias"].bfloat16())

    # The task layer in bfloat16, unit vectors and squares in float32, products in bfloat16 (autocast's einsum).
    codes = state["quantize.embedding.weight"]
    unit = F.normalize(linear(torch.tanh(linear(rows, "encode_task_layer.0")), "encode_task_layer.2").float(), dim=-1)
    product = (unit.bfloat16() @ codes.bfloat16().T).float()
    distance = unit.square().sum(1, keepdim=True) + codes.square().sum(1) - 2 * product
    first, second = distance.topk(2, dim=1, largest=False).values.T
    # What bfloat16 moves a vector by: half an eps of each result of the first layer, |h| / cosh(h)^2 < 0.45 of it after
    # the tanh, and of the tanh's, below 1, through the second layer; and half an eps of that one's results.
    through = torch.linalg.matrix_norm(state["encode_task_layer.2.weight"], 2) * CONFIG.hidden_size**0.5
    raw = linear(torch.tanh(linear(rows, "encode_task_layer.0")), "encode_task_layer.2").float().norm(dim=1)
    moved = (1.45 * through / raw + 1) * eps / 2
    # A distance holds a product twice; factors and product are rounded by half an eps each, and two distances differ.
    bound = 2 * 2 * codes.norm(dim=1).max() * (3 * eps / 2 + moved)
    clear = second - first > bound
    ids = model.ids_of(rows)
    assert clear.float().mean() > 0.1 and torch.equal(ids[clear], distance.argmin(1)[clear])
    # Where it is nearer, the codebook's own precision decides: that of float32 on the rounded layers.
    x = rows.float()
    for name, act in (("encode_task_layer.0", torch.tanh), ("encode_task_layer.2", torch.Tensor.float)):
        x = act(F.linear(x, *(state[f"{name}.{part}"].bfloat16().float() for part in ("weight", "bias"))))
    exact = torch.cdist(F.normalize(x, dim=-1).double(), codes.double())
    assert torch.equal(ids, exact.argmin(1))


def test_the_mask_in_bfloat16_is_that_of_float32_on_the_rounded_linear_layers(release: Path) -> None:
    model, rounded = tokenizer(release, dtype=torch.bfloat16), tokenizer(release)
    for layer in rounded.token_predictor.modules():
        if isinstance(layer, nn.Linear):
            for weight in layer.parameters():
                weight.data = weight.data.bfloat16().float()
    features = model.encode_features(images(8))
    assert features.dtype == torch.bfloat16
    for settings in ({"deterministic": True}, {"seeds": range(8)}):
        ours, wanted = (m.select(f, **settings).keep for m, f in ((model, features), (rounded, features.float())))
        assert torch.equal(ours, wanted) and 0 < ours.mean() < 1


def test_a_model_of_bfloat16_reads_and_writes(release: Path) -> None:
    model = lavit(release, dtype=torch.bfloat16, visual_dtype=torch.bfloat16)
    assert model.visual_tokenizer.quantize.embedding.weight.dtype == torch.float32
    tokens = model.visual_tokenizer.encode(images().bfloat16(), deterministic=True)
    assert len(tokens.ids) and model.visual_tokenizer.decode(tokens).isfinite().all()
