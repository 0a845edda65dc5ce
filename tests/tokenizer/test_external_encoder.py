"""Frozen encoders of timm and transformers: their features, sizes and tokens, and that a saved one needs no source."""

from __future__ import annotations

import builtins
import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    AutoModel,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    SiglipVisionConfig,
    ViTConfig,
    ViTImageProcessor,
)

from lavit.tokenizer import LaVITTokenizer, LaVITTokenizerConfig
from lavit.tokenizer.encoder_names import is_external
from lavit.tokenizer.external_encoder import ExternalEncoder, check_external, open_external

timm = pytest.importorskip("timm")

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
SIZES |= {"image_size": 32, "patch_size": 8}
CONFIGS = {
    "vit": ViTConfig(**SIZES),
    "dinov2": Dinov2Config(**SIZES),
    "registers": Dinov2WithRegistersConfig(**SIZES, num_register_tokens=3),
    "clip": CLIPVisionConfig(**SIZES),
    "siglip": SiglipVisionConfig(**SIZES),
}
PREFIX = {"vit": 1, "dinov2": 1, "registers": 4, "clip": 1, "siglip": 0}
REST = {"merger_depth": 1, "decoder_depth": 1, "num_codes": 12, "code_dim": 4, "projection_dim": 8}


def saved(name: str, folder: Path) -> Path:
    torch.manual_seed(0)
    AutoModel.from_config(CONFIGS[name]).save_pretrained(folder)
    return folder


def timm_file(name: str, folder: Path) -> Path:
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    state = timm.create_model(name).state_dict()  # with its classifier
    save_file({key: value.contiguous() for key, value in state.items()}, folder / "model.safetensors")
    return folder / "model.safetensors"


def tokenizer_of(source: str, image_size: int | None = None) -> LaVITTokenizer:
    external, weights = open_external(source, image_size)
    torch.manual_seed(1)
    sizes = {**external["size"], "encoder_heads": 1, **REST, "external_encoder": external}
    model = LaVITTokenizer(LaVITTokenizerConfig.preset("small", **sizes)).eval()
    model.encoder.model.load_state_dict(weights)
    return model


@pytest.mark.parametrize("name", CONFIGS)
def test_features_are_the_models_last_ones_of_its_patches(tmp_path: Path, name: str) -> None:
    folder = saved(name, tmp_path / "model")
    model = tokenizer_of(f"transformers:{folder}")
    own = AutoModel.from_pretrained(folder).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        rows = own(pixel_values=images).last_hidden_state
        assert torch.equal(model.encoder(images), rows[:, PREFIX[name] :])
        if PREFIX[name]:
            with_class = model.encoder(images, class_token=True)
            assert torch.equal(with_class[:, 0], rows[:, 0]) and with_class.shape == (2, 17, 32)
        else:
            with pytest.raises(ValueError, match="class_token: expected False, since .* has no class token"):
                model.encoder(images, class_token=True)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_saved_tokenizer_gives_the_same_without_its_source(tmp_path: Path, name: str) -> None:
    folder = saved(name, tmp_path / "model")
    model = tokenizer_of(f"transformers:{folder}")
    model.save_pretrained(tmp_path / "saved")
    shutil.rmtree(folder)
    again = LaVITTokenizer.from_pretrained(tmp_path / "saved").eval()
    images = torch.randn(3, 3, 32, 32)
    assert torch.equal(again.encode_features(images), model.encode_features(images))
    one, two = again.encode(images, deterministic=True), model.encode(images, deterministic=True)
    assert torch.equal(one.ids, two.ids) and torch.equal(one.cu_seqlens, two.cu_seqlens)
    assert not any(p.requires_grad for p in again.encoder.parameters())
    assert torch.equal(copy.deepcopy(again).encoder(images), model.encoder(images))


# Size, patch, width, prefix: a class token; one beside a token of distillation; tables that no file holds; a grid in
# either layout.
OF_TIMM = {
    "vit_tiny_patch16_224": (64, 16, 192, 1),
    "deit_tiny_distilled_patch16_224": (64, 16, 192, 2),
    "eva02_tiny_patch14_224": (56, 14, 192, 1),
    "resnet10t": (64, 32, 512, 0),
    "swin_tiny_patch4_window7_224": (None, 32, 768, 0),
}


@pytest.mark.parametrize("name", OF_TIMM)
def test_models_of_timm_are_read_saved_and_loaded(tmp_path: Path, name: str) -> None:
    size, patch, width, prefix = OF_TIMM[name]
    file = timm_file(name, tmp_path / "model")  # of its own size: positions are interpolated
    external, _ = open_external(f"timm:{name}@{file}", size)
    assert external["size"] == {"image_size": size or 224, "patch_size": patch, "hidden_size": width}
    assert (external["prefix"], external["class_token"]) == (prefix, prefix > 0)
    assert external["mean"] == [float(m) for m in timm.create_model(name).pretrained_cfg["mean"]]
    model = tokenizer_of(f"timm:{name}@{file.parent}", size)
    model.save_pretrained(tmp_path / "saved")
    file.unlink()
    again = LaVITTokenizer.from_pretrained(tmp_path / "saved").eval()
    images = torch.randn(1, 3, size or 224, size or 224)
    with torch.no_grad():
        rows = again.encoder.model.forward_features(images)
    assert torch.equal(again.encoder(images), model.encoder(images))
    if prefix:
        assert torch.equal(again.encoder(images), rows[:, prefix:])


def test_the_vision_part_of_a_model_of_text_and_images_is_taken(tmp_path: Path) -> None:
    torch.manual_seed(0)
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    whole = CLIPModel(CLIPConfig(vision_config=SIZES, text_config=text | {"vocab_size": 64})).eval()
    whole.save_pretrained(tmp_path / "model")
    ViTImageProcessor(image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6]).save_pretrained(tmp_path / "model")
    model = tokenizer_of(f"transformers:{tmp_path / 'model'}")
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model.encoder(images), whole.vision_model(pixel_values=images).last_hidden_state[:, 1:])
    external = model.config.external_encoder
    assert (external["mean"], external["std"]) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])


def test_without_an_image_processor_nothing_is_said_of_the_pixels(tmp_path: Path) -> None:
    external, _ = open_external(f"transformers:{saved('vit', tmp_path / 'model')}")
    assert external["mean"] is None and external["std"] is None


@pytest.mark.parametrize("name", ["vit", "dinov2", "siglip"])
def test_positions_are_interpolated_for_another_size(tmp_path: Path, name: str) -> None:
    model = tokenizer_of(f"transformers:{saved(name, tmp_path / 'model')}", 48)
    assert (model.config.image_size, model.num_patches) == (48, 36)
    assert model.encoder(torch.randn(1, 3, 48, 48)).shape == (1, 36, 32)
    with pytest.raises(ValueError, match=r"images: expected shape \(B, 3, 48, 48\), got \(1, 3, 32, 32\)"):
        model.encoder(torch.randn(1, 3, 32, 32))


def test_building_one_leaves_the_callers_generator_alone(tmp_path: Path) -> None:
    external, _ = open_external(f"transformers:{saved('clip', tmp_path / 'model')}")
    before = torch.get_rng_state()
    ExternalEncoder(external)
    assert torch.equal(torch.get_rng_state(), before)


def test_preparing_for_inference_is_refused_but_for_nothing(tmp_path: Path) -> None:
    model = tokenizer_of(f"transformers:{saved('vit', tmp_path / 'model')}")
    images = torch.randn(1, 3, 32, 32)
    before = model.encoder(images)
    assert torch.equal(model.for_inference().encoder(images), before) and model.mode is None
    for asked in ({"compile": True}, {"dtype": "bfloat16"}, {"quantization": "int8"}, {"merger_dtype": "bfloat16"}):
        with pytest.raises(ValueError, match="for_inference: the encoder is transformers:.*, which runs as it is"):
            model.for_inference(**asked)


def test_sizes_other_than_the_encoders_are_refused(tmp_path: Path) -> None:
    external, _ = open_external(f"transformers:{saved('vit', tmp_path / 'model')}")
    sizes = {**external["size"], "encoder_heads": 1, "external_encoder": external}
    with pytest.raises(ValueError, match="hidden_size: expected 32, that of the encoder transformers:.*, got 64"):
        LaVITTokenizerConfig.preset("small", **sizes | {"hidden_size": 64})
    with pytest.raises(ValueError, match="external_encoder: expected model, size, source in it"):
        LaVITTokenizerConfig.preset("small", external_encoder={"library": "timm"})


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        ("timm:", ValueError, "encoder: expected timm:NAME"),
        ("timm:vit_tiny_patch16_224@", ValueError, "encoder: expected timm:NAME"),
        ("timm:vit_tinyy", ValueError, r"timm has no model 'vit_tinyy' \(there are .*vit"),
        ("timm:hf-hub:timm/resnet10t.c3_in1k", ValueError, "expected a name of timm's own, got 'hf-hub:timm/resnet10t"),
        ("timm:vit_tiny_patch16_224@nowhere", FileNotFoundError, "expected a file of weights .* at nowhere"),
        ("transformers:setup.py", NotADirectoryError, "expected a folder of transformers, got the file setup.py"),
    ],
)
def test_words_that_name_nothing_are_refused(words: str, error: type[Exception], message: str) -> None:
    assert is_external(words)
    with pytest.raises(error, match=message):
        check_external(words)


OF_TIMM_TOLD = {"library": "timm", "source": "timm:resnet10t", "mean": None, "std": None, "prefix": 0}
OF_TIMM_TOLD |= {"class_token": False, "size": {"image_size": 64, "patch_size": 32, "hidden_size": 512}}


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("resnet10t", {"checkpoint_path": "weights.pth"}, "expected at most img_size, a whole number, for resnet10t"),
        ("resnet10t", {"img_size": 64, "pretrained_cfg": {"file": "weights.pth"}}, "expected at most img_size"),
        ("resnet10t", {"img_size": [64, 64]}, "expected at most img_size"),
        ("resnet10t", None, "expected at most img_size"),
        ("hf-hub:timm/resnet10t.c3_in1k", {}, "expected the name of a model of timm, got 'hf-hub:timm/resnet10t"),
        ("local-dir:models/resnet10t", {}, "expected the name of a model of timm"),
        ("resnet10t.hf-hub:timm/resnet10t", {}, "expected the name of a model of timm"),
        (3, {}, "expected the name of a model of timm, got 3"),
    ],
)
def test_a_configuration_has_timm_load_no_file(monkeypatch, name, arguments, message: str) -> None:
    monkeypatch.setattr(timm, "create_model", lambda *args, **kwargs: pytest.fail("timm was asked"))
    with pytest.raises(ValueError, match=message):
        ExternalEncoder(OF_TIMM_TOLD | {"model": {"name": name, "arguments": arguments}})


@pytest.mark.parametrize(
    "told",
    [
        {"auto_map": {"AutoModel": "code.Model"}},
        {"trust_remote_code": True},
        {"attn_implementation": "somebody/kernels"},
        {"_attn_implementation": {"": "somebody/kernels"}},
        {"rope_parameters": {"inner": [{"_attn_implementation": "somebody/kernels"}]}},
        {"backbone": "resnet50"},
        {"model_type": "timm_wrapper", "architecture": "resnet10t", "model_args": {"checkpoint_path": "weights.pth"}},
        {"backbone_config": {"model_type": "timm_backbone"}},
    ],
)
def test_a_configuration_has_transformers_run_no_code_and_load_no_other_model(tmp_path, monkeypatch, told) -> None:
    external, _ = open_external(f"transformers:{saved('vit', tmp_path / 'model')}")
    monkeypatch.setattr(AutoModel, "from_config", lambda *args, **kwargs: pytest.fail("transformers was asked"))
    with pytest.raises(ValueError, match="external_encoder: expected (a model of transformers' own|timm:NAME)"):
        ExternalEncoder(external | {"model": external["model"] | told})


def test_of_what_a_configuration_does_not_know_numbers_alone_are_told(tmp_path: Path) -> None:
    external, _ = open_external(f"transformers:{saved('vit', tmp_path / 'model')}")
    more = {"layer_offset": 3, "use_head": False, "kernel_config": "somebody/kernels", "_plan": 1}
    config = ExternalEncoder(external | {"model": external["model"] | more}).model.config
    assert (config.layer_offset, config.use_head) == (3, False)
    assert not hasattr(config, "kernel_config") and not hasattr(config, "_plan")


@pytest.mark.parametrize("known", [True, False])
def test_code_beside_the_weights_is_not_run_and_nobody_is_asked(tmp_path: Path, monkeypatch, known: bool) -> None:
    folder = saved("vit", tmp_path / "model")
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Model: ...\nclass Config: ...\n")
    told = json.loads((folder / "config.json").read_text())
    told["auto_map"] = {"AutoModel": "code.Model", "AutoConfig": "code.Config"}
    told["model_type"] = "vit" if known else "own"
    (folder / "config.json").write_text(json.dumps(told))
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"auto_map": {"AutoImageProcessor": "code.Model"}, "image_processor_type": "ViTImageProcessor"})
    )
    monkeypatch.setattr(builtins, "input", lambda *words: pytest.fail("somebody was asked"))
    if known:
        external, _ = open_external(f"transformers:{folder}")
        assert "auto_map" not in external["model"] and ExternalEncoder(external).num_patches == 16
    else:
        with pytest.raises(ValueError, match="custom code"):
            open_external(f"transformers:{folder}")
    assert not (tmp_path / "ran").exists()


def test_paths_are_no_external_encoders() -> None:
    assert not any(map(is_external, (None, "runs/encoder", "timm", "C:/models", "vit.safetensors")))


def test_damaged_and_foreign_weights_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"no weights")
    with pytest.raises(ValueError, match="is no file of weights"):
        open_external(f"timm:vit_tiny_patch16_224@{file}")
    save_file({"other": torch.zeros(1)}, file)
    with pytest.raises(ValueError, match="does not fit the model: missing: blocks.0.attn.proj.bias"):
        open_external(f"timm:vit_tiny_patch16_224@{file}")


def test_without_timm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = builtins.__import__

    def without(name: str, *args, **kwargs):
        if name == "timm":
            raise ImportError("No module named 'timm'")
        return whole(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'lavit\[timm\]'"):
        check_external("timm:vit_tiny_patch16_224")
