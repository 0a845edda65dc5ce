"""Prompts of text and images in any order; each fault named by its prompt; one folder for everything."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_lavit import SIDE, llama, tokenizer
from transformers import AutoProcessor, PreTrainedTokenizerFast

from lavit.kernels import Ragged, Segment
from lavit.language import LaVIT, LaVITProcessor
from lavit.language.text_tokenizer import train_text_tokenizer
from lavit.tokenizer import LaVITImageProcessor
from lavit.tokenizer.processing import one_by_one


def text_tokenizer() -> PreTrainedTokenizerFast:
    return train_text_tokenizer(["a red circle and a blue square"], 300)


def processor(text_size: int | None = None) -> LaVITProcessor:
    return LaVITProcessor(LaVITImageProcessor(SIDE), text_tokenizer(), text_size)


def picture(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 30, 3), dtype=np.uint8))


def file_of(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def test_pieces_keep_their_order_and_are_what_the_parts_make_of_them(tmp_path: Path) -> None:
    made, ids = processor(), text_tokenizer()
    path = tmp_path / "picture.png"
    path.write_bytes(file_of(picture(1)))
    array = np.asarray(picture(2))
    out = made([["a red", picture(), "", "circle", path], "a square", file_of(picture(3)), [array]])
    text, image = Segment.TEXT, Segment.FEATURES
    assert [s.tolist() for s in out.segments.unbind()] == [[text, image, text, image], [text], [image], [image]]
    pieces = [ids(t, add_special_tokens=False)["input_ids"] for t in ("a red", "circle", "a square")]
    assert [t.tolist() for t in out.text.unbind()] == pieces
    wanted = made.image_processor([picture(i) for i in (0, 1, 3, 2)])
    assert out.images is not None
    torch.testing.assert_close(out.images, wanted, rtol=0, atol=1e-6)
    assert out.indices == [0, 1, 2, 3] and out.skipped == []
    assert made.decode_text(out.text) == ["a red", "circle", "a square"]


def test_arrays_in_prompts_may_have_their_channels_first_or_last() -> None:
    made, last = processor(), np.array(picture())
    first = np.ascontiguousarray(last.transpose(2, 0, 1))
    wanted = made.image_processor(picture())
    for form in (last, first, torch.from_numpy(last), torch.from_numpy(first)):
        ids, pixels = made.pieces("prompt 0", ["a red", form])
        assert ids.dim() == 1 and torch.equal(pixels, wanted)
        assert torch.equal(made.pieces("prompt 0", form)[0], wanted)
    for batch in (np.stack([last, last]), torch.from_numpy(np.stack([first, first]))):
        assert all(torch.equal(made.pieces("prompt 0", one)[0], wanted) for one in one_by_one(batch))


def test_the_model_reads_what_the_processor_makes() -> None:
    made = processor()
    model = LaVIT.from_parts(llama(made.text_size), tokenizer())
    out = made([[picture(), "Question: what? Answer:"], "a red circle"], begin_image=True)
    batch = model.assemble(**out.inputs(), deterministic=True)
    ends = batch.sequences.cu_seqlens[1:].long() - 1
    assert (batch.sequences.input_ids[ends] == model.vocabulary.begin_id).all()
    assert batch.features is not None and model.hidden_states(batch).isfinite().all()


def test_no_prompts_are_an_empty_batch() -> None:
    out = processor()([])
    assert out.text.batch_size == out.segments.batch_size == 0 and out.images is None


def test_every_fault_is_named_and_in_a_batch_job_skipped(tmp_path: Path) -> None:
    made = processor()
    cut, missing = tmp_path / "cut.png", tmp_path / "missing.png"
    cut.write_bytes(file_of(picture())[:300])
    faults = {
        1: ([], "prompt 1: expected text or an image, got an empty prompt"),
        2: ("", "prompt 2: expected text or an image, got an empty prompt"),
        3: (["a", cut], "prompt 3, piece 1: .*cut.png"),
        4: ([missing], "prompt 4, piece 0: .*missing.png"),
        5: ([b"no picture"], "prompt 5, piece 0: the image"),
        6: (7, "prompt 6: expected a string or one image, got int"),
        7: ([torch.zeros(2, 3, 8, 8)], r"prompt 7, piece 0: expected .* one image, got Tensor of shape \(2, 3, 8, 8\)"),
        8: ([np.zeros((4, 4, 2), np.uint8)], "prompt 8, piece 0: images: expected uint8 arrays"),
        9: ("half \ud800", "prompt 9: .* cannot be encoded"),
        10: (["a", torch.zeros(3, 0, 4)], r"prompt 10, piece 1: images: .* with pixels, got shape \(3, 0, 4\)"),
        11: (Image.new("RGB", (0, 4)), r"prompt 11: the image: has no pixels \(0 x 4\)"),
        12: ([torch.full((3, 8, 8), 255.0)], r"prompt 12, piece 0: images: expected floats in \[0, 1\]"),
    }
    for index, (prompt, message) in faults.items():
        with pytest.raises((ValueError, TypeError), match=message):
            made(["a"] * index + [prompt])
    out = made(["a red", *(prompt for prompt, _ in faults.values()), [picture()]], errors="skip")
    assert out.indices == [0, len(faults) + 1] and out.segments.batch_size == 2
    assert [index for index, _ in out.skipped] == list(faults)
    for (_, reason), (_, message) in zip(out.skipped, faults.values(), strict=True):
        assert re.match(message, reason)


def test_ids_outside_the_text_vocabulary_are_named() -> None:
    added = text_tokenizer()
    size = len(added)
    made = LaVITProcessor(LaVITImageProcessor(SIDE), added)
    added.add_tokens(["<new>"])
    with pytest.raises(ValueError, match=f"prompt 1: expected text ids 0 to {size - 1}, got {size}"):
        made(["a", "a <new>"])
    with pytest.raises(ValueError, match=f"tokenizer: expected at most {size} ids, .* got {size + 1}"):
        LaVITProcessor(LaVITImageProcessor(SIDE), added, text_size=size)


def test_wrong_parts_and_arguments_are_named() -> None:
    with pytest.raises(TypeError, match="image_processor: expected a LaVITImageProcessor, got "):
        LaVITProcessor(text_tokenizer(), LaVITImageProcessor(SIDE))
    with pytest.raises(TypeError, match="prompts: expected a list of prompts, got str"):
        processor()("a red circle")
    with pytest.raises(ValueError, match="errors: expected raise or skip, got 'ignore'"):
        processor()(["a"], errors="ignore")


def test_one_folder_holds_model_and_processor(tmp_path: Path) -> None:
    made = processor(text_size=400)
    LaVIT.from_parts(llama(400), tokenizer()).save_pretrained(tmp_path)
    made.save_pretrained(tmp_path)
    prompts = [["a red", picture(), "circle"], "blue"]
    wanted = made(prompts)
    for loader in (LaVITProcessor, AutoProcessor):
        back = loader.from_pretrained(tmp_path)
        assert isinstance(back, LaVITProcessor) and back.to_dict() == made.to_dict()
        got = back(prompts)
        assert torch.equal(got.text.values, wanted.text.values) and torch.equal(got.images, wanted.images)
    assert isinstance(LaVIT.from_pretrained(tmp_path), LaVIT)
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(OSError, match="preprocessor_config.json"):
        LaVITProcessor.from_pretrained(tmp_path)


def test_generated_ids_become_text_without_special_tokens() -> None:
    made = processor()
    ids = torch.tensor(made.tokenizer("a blue", add_special_tokens=False)["input_ids"] + [made.tokenizer.eos_token_id])
    assert made.decode_text(Ragged.from_list([ids, ids[:0]])) == ["a blue", ""]
