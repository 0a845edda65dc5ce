"""The released folder's text tokenizer: a file of sentencepiece, read as the release reads it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from released_folder import CONFIG, TEXT_SIZE, TEXTS, sentencepiece_model
from sentencepiece import SentencePieceProcessor
from transformers import AutoTokenizer

from lavit.language.processing import LaVITProcessor
from lavit.language.text_tokenizer import sentencepiece_tokenizer
from lavit.released.language import load_released_processor

HOSTILE = (
    "",
    " ",
    "  two  spaces ",
    " leading",
    "a\nb\tc",
    "\u65e5\u672c \U0001f600 \u00e9",
    "e\u0301\u00bd\ufb01",
    "\u2581x",
    "\u3000wide\u00a0hard",
)


@pytest.fixture
def release(tmp_path: Path) -> Path:
    (tmp_path / "language_model").mkdir()
    (tmp_path / "language_model" / "tokenizer.model").write_bytes(sentencepiece_model())
    return tmp_path


def load(folder: Path) -> LaVITProcessor:
    return load_released_processor(folder, config=CONFIG, text_size=TEXT_SIZE)


def ids_of(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("saved", [False, True])
def test_ids_and_texts_are_sentencepieces(release: Path, saved: bool, tmp_path: Path) -> None:
    processor, pieces = load(release), SentencePieceProcessor(model_proto=sentencepiece_model())
    if saved:
        processor.save_pretrained(tmp_path / "saved")
        processor = LaVITProcessor.from_pretrained(tmp_path / "saved")
    tokenizer = processor.tokenizer
    for text in (*TEXTS, *HOSTILE):
        assert ids_of(tokenizer, text) == pieces.encode(text), text
        # LlamaTokenizer takes away a space of its own before sentencepiece does.
        assert tokenizer.decode(ids_of(tokenizer, text)) == text.replace("\u2581", " ").removeprefix(" "), text
    assert len(tokenizer) == TEXT_SIZE and tokenizer.pad_token_id == tokenizer.eos_token_id == 2
    assert tokenizer.padding_side == "left" and tokenizer("a cat")["input_ids"] == [1, *pieces.encode("a cat")]


def test_a_special_token_typed_into_a_text_is_that_token(release: Path) -> None:
    tokenizer, pieces = load(release).tokenizer, SentencePieceProcessor(model_proto=sentencepiece_model())
    assert ids_of(tokenizer, "a cat</s> on") == [*pieces.encode("a cat"), 2, *pieces.encode(" on")]
    assert ids_of(tokenizer, "<s>x") == [1, *pieces.encode("x")]
    assert tokenizer.decode([1, *pieces.encode("a cat"), 2], skip_special_tokens=True) == "a cat"


def test_an_added_pad_takes_no_id_of_the_images(release: Path) -> None:
    place = release / "language_model"
    plain = load(release).tokenizer
    (place / "added_tokens.json").write_text(json.dumps({"<pad>": TEXT_SIZE}))
    (place / "special_tokens_map.json").write_text(json.dumps({"pad_token": "<pad>"}))
    (place / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "LlamaTokenizer", "pad_token": "<pad>", "legacy": False})
    )
    tokenizer = load(release).tokenizer
    assert len(tokenizer) == TEXT_SIZE and tokenizer.pad_token_id == 2
    assert all(ids_of(tokenizer, text) == ids_of(plain, text) for text in (*TEXTS, *HOSTILE, "a<pad>b"))
    # And in the form that newer programs save.
    plain.add_tokens("<pad>")
    plain.save_pretrained(place)
    (place / "tokenizer.model").unlink()
    assert AutoTokenizer.from_pretrained(place)("<pad>", add_special_tokens=False)["input_ids"] == [TEXT_SIZE]
    tokenizer = load(release).tokenizer
    assert len(tokenizer) == TEXT_SIZE and max(ids_of(tokenizer, "a<pad>b")) < TEXT_SIZE


@pytest.mark.parametrize("module", ["sentencepiece", "google.protobuf"])
def test_the_extra_is_named_where_a_package_is_missing(
    release: Path, module: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    load(release).tokenizer.save_pretrained(tmp_path / "fast")
    from lavit.language import text_tokenizer

    found = text_tokenizer.find_spec
    monkeypatch.setattr(text_tokenizer, "find_spec", lambda name: None if name == module else found(name))
    name = {"google.protobuf": "protobuf"}.get(module, module)
    told = rf"tokenizer.model: reading it needs {name}; pip install 'lavit\[released\]'"
    with pytest.raises(ImportError, match=told):
        load(release)
    # A newer file, which needs neither, will do.
    (release / "language_model" / "tokenizer.json").write_bytes((tmp_path / "fast" / "tokenizer.json").read_bytes())
    assert ids_of(load(release).tokenizer, TEXTS[0]) and "is read in its place" in caplog.text
    assert module in sys.modules


def test_files_that_are_no_text_tokenizer_are_named(release: Path) -> None:
    path = release / "language_model" / "tokenizer.model"
    content = path.read_bytes()
    for broken in (content[: len(content) // 2], b"no pieces", b""):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match="tokenizer.model: (damaged, or no model of sentencepiece|expected <unk>)"):
            load(release)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"at most {TEXT_SIZE - 1} ids"):
        load_released_processor(release, config=CONFIG, text_size=TEXT_SIZE - 1)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="neither .*tokenizer.model nor .*tokenizer.json is there"):
        load(release)
    (path.parent / "tokenizer.json").write_text('{"version": "1.0"}')
    with pytest.raises(ValueError, match="tokenizer.json: damaged, or no tokenizer"):
        load(release)
    with pytest.raises(FileNotFoundError, match="no such file"):
        sentencepiece_tokenizer(path)
