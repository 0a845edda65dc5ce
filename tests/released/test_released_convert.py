"""A release converted into a folder of the library's own: the same to the bit, whole or not there."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from released_folder import CONFIG, TEXT_SIZE, TEXTS, write_release
from tiny_pixels import tiny_codes
from torch import nn

from lavit.language import LaVIT
from lavit.language.processing import LaVITProcessor
from lavit.pixels import LaVITPixelPipeline
from lavit.released import convert
from lavit.released.convert import convert_release
from lavit.released.language import load_released_lavit
from lavit.released.pixels import load_released_pixels
from lavit.released.tokenizer import load_released_tokenizer
from lavit.tokenizer import LaVITImageProcessor, LaVITTokenizer

SETTINGS: dict[str, Any] = {"seeds": [1, 2], "num_inference_steps": 2, "output_type": "pt"}
FOLDERS = {"highres": "pixels", "lowres": "pixels_lowres"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_release(tmp_path_factory.mktemp("whole") / "release")


@pytest.fixture
def release(whole: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(whole, tmp_path / "release"))


def run(folder: Path, out: Path, **settings: Any) -> convert.Conversion:
    return convert_release(folder, out, **{"config": CONFIG, "text_size": TEXT_SIZE, **settings})


def assert_same(model: nn.Module, other: nn.Module) -> None:
    ours, theirs = model.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype and torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize(
    ("dtype", "visual"),
    [
        (None, torch.float32),
        (torch.bfloat16, torch.bfloat16),
        (torch.float32, torch.float32),
        (torch.float16, torch.bfloat16),
    ],
)
def test_the_converted_folder_is_the_released_one_to_the_bit(
    whole: Path, tmp_path: Path, dtype: torch.dtype | None, visual: torch.dtype
) -> None:
    out = tmp_path / "own"
    if dtype != visual and visual != torch.float32:
        with pytest.raises(ValueError, match="visual_dtype: expected float32 or that of the language model"):
            run(whole, out, dtype=dtype, visual_dtype=visual)
        assert not list(tmp_path.iterdir())
        return
    run(whole, out, dtype=dtype, visual_dtype=visual)
    model = LaVIT.from_pretrained(out)
    settings = {"config": CONFIG, "text_size": TEXT_SIZE, "dtype": dtype, "visual_dtype": visual}
    released = load_released_lavit(whole, decoder="highres", **settings)
    assert_same(model, released)
    images = torch.randn(2, 3, CONFIG.image_size, CONFIG.image_size).to(visual)
    ours, wanted = (m.eval().visual_tokenizer.encode(images, deterministic=True).ids for m in (model, released))
    assert torch.equal(ours, wanted) and len(ours)
    for kind, name in FOLDERS.items():
        precisions = {"default": dtype or torch.float32, "tokenizer": visual}
        pipe = LaVITPixelPipeline.from_pretrained(out / name, torch_dtype=precisions)
        loaded = load_released_pixels(
            whole, kind=kind, config=CONFIG, dtype=dtype or torch.float32, visual_dtype=visual
        )
        assert pipe.kind == kind and pipe.components.keys() == loaded.components.keys()
        for part, module in loaded.components.items():
            if isinstance(module, nn.Module):
                assert_same(pipe.components[part], module)
            else:
                assert type(pipe.components[part]) is type(module)
        for each in (pipe, loaded):
            each.set_progress_bar_config(disable=True)
        drawn, expected = (each(tiny_codes(3, 9), **SETTINGS).images for each in (pipe, loaded))
        assert torch.equal(drawn, expected)
        assert_same(
            LaVITTokenizer.from_pretrained(out / name / "tokenizer").eval(),
            load_released_tokenizer(whole, config=CONFIG, decoder=kind, dtype=visual),
        )
    processor = LaVITProcessor.from_pretrained(out)
    assert processor.text_size == TEXT_SIZE and processor.image_processor.size == CONFIG.image_size
    assert processor.tokenizer.decode(processor.tokenizer(TEXTS[0], add_special_tokens=False).input_ids) == TEXTS[0]
    assert not list(out.rglob("*.bin"))


@pytest.mark.parametrize("kinds", [("lowres",), ("highres",), None])
def test_the_pixel_stages_that_are_wanted_and_there_are_written(
    release: Path, tmp_path: Path, kinds: tuple[str, ...] | None
) -> None:
    if kinds is None:
        shutil.rmtree(release / "highres_pixel_decoding")
        (release / "visual_tokenizer" / "highres_tokenizer_decoder.bin").unlink()
        with pytest.raises(FileNotFoundError, match="has no highres_pixel_decoding"):
            run(release, tmp_path / "own", kinds=["highres"])
    found = run(release, tmp_path / "own", kinds=kinds, safety_checker=False)
    (kind,) = kinds or ("lowres",)
    assert found.folders() == {kind: "pixels"} and found.decoder == kind
    pipe = LaVITPixelPipeline.from_pretrained(tmp_path / "own" / "pixels")
    assert pipe.kind == kind and pipe.safety_checker is None and pipe.config["requires_safety_checker"]
    assert LaVIT.from_pretrained(tmp_path / "own").visual_tokenizer.config.decoder_condition == kind


def test_a_tokenizer_alone_becomes_a_tokenizers_folder(release: Path, tmp_path: Path) -> None:
    for name in ("language_model", "pixel_decoding", "highres_pixel_decoding"):
        shutil.rmtree(release / name)
    found = run(release, tmp_path / "own")
    assert not found.has_language and not found.kinds
    assert_same(
        LaVITTokenizer.from_pretrained(tmp_path / "own").eval(),
        load_released_tokenizer(release, config=CONFIG, decoder="highres"),
    )
    assert LaVITImageProcessor.from_pretrained(tmp_path / "own").size == CONFIG.image_size


def test_nothing_is_written_over(whole: Path, tmp_path: Path) -> None:
    for taken in ("folder", "file", "link"):
        path = tmp_path / taken
        if taken == "folder":
            path.mkdir()
        elif taken == "file":
            path.write_text("mine")
        else:
            path.symlink_to(tmp_path / "nowhere")
        with pytest.raises(FileExistsError, match=f"out: expected a new folder, .*{taken} is there already"):
            run(whole, path)
    assert (tmp_path / "file").read_text() == "mine" and not list((tmp_path / "folder").iterdir())
    with pytest.raises(FileNotFoundError, match="out: the folder .*lost of own does not exist"):
        run(whole, tmp_path / "lost" / "own")


@pytest.mark.parametrize("broken", ["_write_pixels", "_write_language", "rename"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interrupted_run_leaves_nothing(
    whole: Path, tmp_path: Path, broken: str, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise error("full")

    place = convert.os if broken == "rename" else convert
    monkeypatch.setattr(place, broken, fail)
    with pytest.raises(error):
        run(whole, tmp_path / "own")
    assert not list(tmp_path.iterdir())


def test_a_damaged_release_is_refused_by_name_and_leaves_nothing(release: Path, tmp_path: Path) -> None:
    path = release / "language_model" / "visual_weight.bin"
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(ValueError, match="visual_weight.bin: damaged"):
        run(release, tmp_path / "own")
    with pytest.raises(FileNotFoundError, match="no released LaVIT"):
        run(tmp_path, tmp_path / "own")
    assert [item.name for item in tmp_path.iterdir()] == ["release"]


@pytest.mark.parametrize("lost", ["tokenizer.model", "visual_weight.bin", "safety_checker/config.json"])
def test_what_a_release_lacks_is_told_before_the_work(
    release: Path, tmp_path: Path, lost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    next(release.rglob(lost)).unlink()
    for name in ("_write_pixels", "_write_language"):
        monkeypatch.setattr(convert, name, lambda *_: pytest.fail("work began"))
    with pytest.raises(FileNotFoundError, match=lost):
        run(release, tmp_path / "own")
    assert [item.name for item in tmp_path.iterdir()] == ["release"]
