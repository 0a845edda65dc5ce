"""`lavit reconstruct`: what it draws depends on the image alone, what cannot be read is named, nothing read is lost."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import SIDE, pixel_pipeline, save_whole, tokenizer

from lavit.cli import main
from lavit.commands.image_inputs import image_seed
from lavit.pixels import LaVITPixelPipeline

FEW = ("--steps", 2)
COMPILE = torch.compile


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_whole(tmp_path_factory.mktemp("model"))


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, size in enumerate([(32, 32), (50, 20), (1, 1)]):
        noise = np.random.default_rng(i).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{i}.png")
    return folder


def run(capsys, *argv):
    code = main(["reconstruct", *map(str, argv)])
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    return code, said.out, said.err


def drawn(folder):
    return {path.name: np.asarray(Image.open(path)).tolist() for path in sorted(folder.iterdir())}


def test_it_draws_what_the_pipeline_draws(model, pictures, tmp_path, capsys):
    code, out, err = run(capsys, pictures, "--model", model, "--out", tmp_path / "again", *FEW, "--guidance", 2)
    assert code == 0 and err == "" and len(out.splitlines()) == 3
    assert f"{pictures / '0.png'}: " in out and " of 16 tokens, " in out
    pipeline = LaVITPixelPipeline.from_pretrained(model / "pixels")
    images = [Image.open(pictures / f"{i}.png") for i in range(3)]
    seeds = [image_seed(0, image) for image in images]
    wanted = pipeline(images=images, seeds=seeds, num_inference_steps=2, guidance_scale=2).images
    for i, image in enumerate(wanted):
        difference = np.asarray(image).astype(int) - np.array(drawn(tmp_path / "again")[f"{i}.png"])
        assert np.abs(difference).max() <= 1  # the layout of the weights rounds otherwise
    assert wanted[0].size == (SIDE, SIDE)


def test_an_image_does_not_depend_on_its_neighbours_and_a_seed_changes_the_noise(model, pictures, tmp_path, capsys):
    files = sorted(pictures.iterdir())
    assert run(capsys, *files, "--model", model, "--out", tmp_path / "all", *FEW)[0] == 0
    backwards = (*files[::-1], "--batch-size", 2)
    assert run(capsys, *backwards, "--model", model / "pixels", "--out", tmp_path / "back", *FEW)[0] == 0
    for name, image in drawn(tmp_path / "all").items():
        difference = np.abs(np.array(image) - np.array(drawn(tmp_path / "back")[name]))
        assert difference.max() <= 1  # sums of another batch are rounded otherwise
    assert run(capsys, files[0], "--pixels", model / "pixels", "--out", tmp_path / "0.webp", *FEW)[0] == 0
    assert Image.open(tmp_path / "0.webp").format == "WEBP"
    assert run(capsys, files[0], "--model", model, "--out", tmp_path / "other", "--seed", 1, *FEW)[0] == 0
    assert drawn(tmp_path / "other")["0.png"] != drawn(tmp_path / "all")["0.png"]


def test_images_that_cannot_be_read_are_named_and_the_rest_goes_on(model, pictures, tmp_path, capsys):
    (pictures / "1.png").write_bytes(b"no image")
    (tmp_path / "deep").mkdir()
    shutil.copy(pictures / "0.png", tmp_path / "deep" / "2.jpg")
    sources = (pictures, tmp_path / "deep", tmp_path / "none.png")
    code, out, err = run(capsys, *sources, "--model", model, "--out", tmp_path / "again", *FEW)
    assert code == 1
    assert "1.png: not an image" in err and "none.png: no such file" in err
    assert sorted(drawn(tmp_path / "again")) == ["0.png", "2-2.png", "2.png"]
    code, out, err = run(capsys, pictures / "1.png", "--model", model, "--out", tmp_path / "nothing", *FEW)
    assert code == 2 and "none of the images could be read" in err and not (tmp_path / "nothing").exists()


def test_a_compiled_unet_draws_the_same(model, pictures, tmp_path, capsys, monkeypatch):
    words = (pictures / "0.png", "--model", model, *FEW)
    assert run(capsys, *words, "--out", tmp_path / "plain")[0] == 0
    compiled = []

    def compile(call, **_):
        compiled.append(call)
        return COMPILE(call, backend="eager")

    monkeypatch.setattr(torch, "compile", compile)
    assert run(capsys, *words, "--out", tmp_path / "compiled", "--compile")[0] == 0
    assert [type(call.__self__).__name__ for call in compiled if hasattr(call, "__self__")] == ["SmallUNet"]
    assert len(compiled) == 2  # the encoder's block
    plain, fast = (np.array(drawn(tmp_path / name)["0.png"]) for name in ("plain", "compiled"))
    assert np.abs(plain - fast).max() <= 1


def test_a_machine_that_cannot_compile_says_so(model, pictures, tmp_path, capsys, monkeypatch):
    def none(graph, inputs):
        raise RuntimeError("no compiler")

    words = (pictures / "0.png", "--model", model, "--out", tmp_path / "x", *FEW, "--compile")
    for part in ("U-Net", "encoder"):

        def compile(call, part=part, **_):
            fails = hasattr(call, "__self__") == (part == "U-Net")
            return COMPILE(call, backend=none if fails else "eager")

        monkeypatch.setattr(torch, "compile", compile)
        code, _, err = run(capsys, *words)
        assert code == 2 and f"--compile: the {part} cannot be compiled here: " in err and "no compiler" in err
        assert err.count("\n") == 1


def test_other_sizes_are_drawn_if_they_can_be(model, pictures, tmp_path, capsys):
    words = (pictures / "0.png", "--model", model, "--out", tmp_path / "x.png", *FEW)
    assert run(capsys, *words, "--size", "48x32")[0] == 0
    assert Image.open(tmp_path / "x.png").size == (48, 32)
    code, _, err = run(capsys, *words, "--size", "48x33")
    assert code == 2 and "height: expected a positive multiple of 2" in err


def test_wrong_use_is_one_line_and_writes_nothing(model, pictures, tmp_path, capsys):
    (tmp_path / "hollow").mkdir()
    blind = pixel_pipeline(tokenizer())
    blind.register_modules(image_processor=None)
    blind.save_pretrained(tmp_path / "blind")
    shutil.copytree(model / "pixels", tmp_path / "torn")
    weights = next((tmp_path / "torn" / "unet").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    shutil.copytree(model / "pixels", tmp_path / "lacking")
    shutil.rmtree(tmp_path / "lacking" / "conditioner")
    before = drawn(pictures)
    out = ("--out", tmp_path / "out")
    cases = [
        (out, "--model DIR is needed"),
        (["--model", tmp_path / "nowhere"], "--model: there is no folder"),
        (["--model", tmp_path / "hollow"], "hollow holds nothing that draws pixels"),
        (["--pixels", tmp_path / "hollow"], "--pixels: "),
        (["--pixels", tmp_path / "blind"], "blind has no image_processor"),
        (["--pixels", tmp_path / "torn"], "torn cannot be loaded"),
        (["--pixels", tmp_path / "lacking"], "lacking lacks conditioner, which"),
        (["--model", model, "--out", pictures], "0.png is one of the images to be read"),
        (["--model", model, "--out", tmp_path / "x.png"], "--out: expected a folder for several images"),
        (["--model", model, "--steps", 0], "--steps: expected at least 1, got 0"),
        (["--model", model, "--guidance", "nan"], "--guidance: expected at least 0, got nan"),
        (["--model", model, "--size", "big"], "--size: expected width and height"),
        (["--model", model, "--seed", -1], "--seed: expected at least 0"),
        (["--model", model, "--device", "toaster"], "--device: toaster"),
    ]
    for argv, message in cases:
        code, said, err = run(capsys, pictures, *argv)
        assert code == 2 and said == "", argv
        assert err.startswith("lavit: error: ") and message in err and err.count("\n") == 1, (argv, err)
    assert drawn(pictures) == before and not (tmp_path / "out").exists()
