"""--dtype, --quantization and --compile: every command that reads images hands them to the encoder that does."""

from __future__ import annotations

import argparse
import json

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import save_whole

from lavit import LaVITImageProcessor, LaVITTokenizer, LaVITTokenizerConfig
from lavit.cli import main
from lavit.commands.model_folders import prepare_encoder
from lavit.commands.options import DTYPES, QUANTIZATIONS
from lavit.tokenizer import inference, quantization

WITHOUT = argparse.Namespace(dtype=None, quantization=None, compile=False)


@pytest.fixture
def tokenizer():
    torch.manual_seed(0)
    return LaVITTokenizer(LaVITTokenizerConfig.preset("small")).eval()


@pytest.fixture
def folder(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "model")
    LaVITImageProcessor(32).save_pretrained(tmp_path / "model")
    (tmp_path / "pictures").mkdir()
    for i in range(5):
        noise = np.random.default_rng(i).integers(0, 256, (40, 30, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "pictures" / f"{i}.png")
    return tmp_path


def test_choices_are_those_of_the_tokenizer():
    assert DTYPES == tuple(inference.DTYPES) and QUANTIZATIONS == quantization.NAMES


def test_without_options_the_tokenizer_is_left_alone(tokenizer, monkeypatch):
    monkeypatch.setattr(LaVITTokenizer, "for_inference", lambda *_, **__: pytest.fail("was prepared"))
    prepare_encoder(tokenizer, WITHOUT, 4)


def test_compiled_code_is_made_before_the_first_image(tokenizer, monkeypatch):
    seen = []
    monkeypatch.setattr(LaVITTokenizer, "for_inference", lambda self, **chosen: seen.append(chosen))
    monkeypatch.setattr(LaVITTokenizer, "encode_features", lambda self, images: seen.append(tuple(images.shape)))
    for dtype in ("bfloat16", None):
        prepare_encoder(tokenizer, argparse.Namespace(dtype=dtype, quantization=None, compile=dtype is None), 4)
    assert seen == [
        {"dtype": "bfloat16", "compile": False, "quantization": None, "batch_sizes": (4,)},
        {"dtype": None, "compile": True, "quantization": None, "batch_sizes": (4,)},
        (4, 3, 32, 32),
    ]


def test_tokens_of_a_rounded_encoder_are_its_own_and_those_of_the_same_dtype_as_without(folder, capsys):
    def records(*options):
        words = ["tokenize", folder / "pictures", "--model", folder / "model", "--batch-size", 2, *options]
        assert main([*map(str, words), "--json", "-"]) == 0
        return json.loads(capsys.readouterr().out)["images"]

    plain = records()
    assert records("--dtype", "float32") == plain
    pixels = LaVITImageProcessor(32)([Image.open(folder / "pictures" / f"{i}.png") for i in range(5)])
    for chosen in ({}, {"compile": True}):  # of bfloat16 on a CPU nothing is compiled, its weights are laid out anew
        model = LaVITTokenizer.from_pretrained(folder / "model").eval().for_inference(dtype="bfloat16", **chosen)
        wanted = model.encode(pixels, deterministic=True)
        found = records("--dtype", "bfloat16", *(["--compile"] if chosen else []))
        assert [r["ids"] for r in found] == [ids.tolist() for ids in wanted.ragged().unbind()]


@pytest.mark.parametrize(
    "options, told",
    [
        (["--quantization", "float8"], "--quantization: float8 needs a CUDA device"),
        (["--quantization", "int3"], "argument --quantization: invalid choice"),
        (["--dtype", "float8"], "argument --dtype: invalid choice"),
    ],
)
def test_what_cannot_be_had_is_told_by_its_option(folder, capsys, options, told):
    words = ["tokenize", folder / "pictures", "--model", folder / "model", "--device", "cpu", *options]
    try:
        code = main(list(map(str, words)))
    except SystemExit as stop:
        code = stop.code
    assert code == 2 and told in capsys.readouterr().err


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A language model with a pixel pipeline."""
    return save_whole(tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize(
    "words, prepared",
    [
        (["tokenize", "PICTURE", "--json", "t.json"], 1),
        (["reconstruct", "PICTURE", "--steps", 2, "--out", "o.png"], 1),
        (["generate", "PICTURE", "at night", "--steps", 2, "--out", "o.png"], 1),
        (["generate", "a bus", "--steps", 2, "--out", "o.png"], 0),  # no image to encode
        (["evaluate", "--data", "shapes", "--task", "vqa", "--limit", 1], 1),
        (["evaluate", "--data", "PICTURES", "--task", "reconstruct", "--steps", 2, "--limit", 1], 1),
    ],
    ids=lambda value: " ".join(map(str, value[:2])) if isinstance(value, list) else str(value),
)
def test_every_command_prepares_the_encoder_that_reads_its_images(words, prepared, folder, whole, monkeypatch, capsys):
    chosen = []
    prepare, encode = LaVITTokenizer.for_inference, LaVITTokenizer.encode_features
    encoded = []

    def note(self, **given):
        chosen.append(given["dtype"])
        return prepare(self, **given)

    def note_images(self, images):
        encoded.append(self.encoder.pos_embed.dtype)
        return encode(self, images)

    monkeypatch.setattr(LaVITTokenizer, "for_inference", note)
    monkeypatch.setattr(LaVITTokenizer, "encode_features", note_images)
    monkeypatch.chdir(folder)
    places = {"PICTURE": folder / "pictures" / "0.png", "PICTURES": folder / "pictures"}
    words = [places.get(word, word) for word in words]
    code = main([*map(str, words), "--model", str(whole), "--device", "cpu", "--dtype", "bfloat16"])
    assert code == 0, capsys.readouterr().err
    assert chosen == ["bfloat16"] * prepared
    assert set(encoded) == ({torch.bfloat16} if prepared else set())
