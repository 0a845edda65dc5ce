"""Stage 3: what learns, going on after a stop, folders in the layouts of SD 1.5 and SDXL."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, PNDMScheduler, UNet2DConditionModel
from processes import on_two_processes
from small_pixels import SMALL, pictures, settings, tokenizer

from lavit.cli import main as lavit
from lavit.data.images import load_image
from lavit.pixels import LaVITPixelPipeline, small_unet
from lavit.shapes.world import ShapesWorld
from lavit.tokenizer import LaVITImageProcessor, LaVITTokenizerConfig
from lavit.training.engine.config import ConfigError
from lavit.training.pixels import train as pixels
from lavit.training.pixels.buckets import cut
from lavit.training.pixels.data import reconstructed_images
from lavit.training.pixels.objective import Step
from lavit.training.pixels.recipe import PixelsTrainingConfig
from lavit.training.pixels.train import _own, train_pixels, unet_sizes


def without_time(history):
    return [{k: v for k, v in row.items() if k != "images_per_second"} for row in history]


# ------------------------------------------------------------------------------------------------------------- training


def test_recipes_fit_their_presets():
    assert PixelsTrainingConfig.recipe("small").base is None
    for preset in ("lowres", "highres"):
        known = PixelsTrainingConfig.recipe(preset)
        assert known.prediction == "epsilon" and known.loop.steps == 20_000  # known
    with pytest.raises(ConfigError, match="preset: expected one of small, lowres, highres, got 'large'"):
        PixelsTrainingConfig.recipe("large")


def test_the_unet_learns_and_the_tokenizer_stays():
    frozen = tokenizer()
    before = {name: value.clone() for name, value in frozen.state_dict().items()}
    config = settings(**{"loop.steps": 60, "loop.log_every": 20, "schedule.lr": 6e-3})
    result = train_pixels(config, tokenizer=frozen)
    assert result.history[-1]["loss"] < 0.7 * result.history[0]["loss"]
    assert set("step loss error lr grad_norm skipped images_per_second".split()) <= set(result.history[-1])
    assert all(torch.equal(before[name], value) for name, value in result.pipeline.tokenizer.state_dict().items())
    drawn = result.pipeline(images=ShapesWorld(3).scenes(2).images, seeds=[1, 2], num_inference_steps=2)
    assert [image.size for image in drawn.images] == [(32, 32)] * 2


@pytest.mark.parametrize(
    "changes, patch, width",
    [({}, 8, 16), ({"patch_size": 4}, None, 16), ({"patch_size": 16}, 16, 16), ({"decoder_out_dim": 12}, 8, 12)],
)
def test_the_unet_is_made_for_the_patches_and_the_features(changes, patch, width):
    own = tokenizer(**changes).config
    sizes = unet_sizes(settings(unet={}), own)
    assert sizes == {"image_size": 32, "condition_dim": width, "patch": patch}
    assert unet_sizes(settings(unet={"patch": None, "layers": 1}), own)["patch"] is None
    trained = train_pixels(settings(**{"loop.steps": 1}), tokenizer=tokenizer(patch_size=8)).pipeline.unet.config
    assert trained.patch_size == 8 and trained.cross_attention_dim == 16
    odd = LaVITTokenizerConfig.preset("small", image_size=42, patch_size=14)
    assert unet_sizes(settings(unet={}), odd)["patch"] is None


def test_a_unet_of_before_is_told_as_before():
    """Resumed runs compare what was saved: a word that came later is left out where it says nothing."""
    assert "patch_size" not in _own(small_unet().config) and _own(small_unet(patch=8).config)["patch_size"] == 8
    names = "block_out_channels cross_attention_dim in_channels layers_per_block norm_num_groups out_channels"
    names += " addition_embed_type attention_head_dim sample_size time_embedding_dim"
    assert set(_own(small_unet().config)) == set(names.split())


def test_features_that_are_known_are_not_computed_again_and_change_nothing():
    frozen, images = tokenizer(), ShapesWorld(0).scenes(24).images
    processor = LaVITImageProcessor(size=32)
    known = frozen.encode_features(processor(images))
    given = train_pixels(settings(), tokenizer=frozen, processor=processor, images=images, features=known)
    assert without_time(given.history) == without_time(train_pixels(settings(), tokenizer=frozen).history)


@pytest.mark.parametrize("cached", [False, True])
def test_a_resumed_run_ends_with_the_same_bits(tmp_path, cached):
    def config(steps, folder):
        changes = {"loop.checkpoint_every": 3, "output": str(tmp_path / folder), "schedule.shape": "constant"}
        return settings(**{"loop.steps": steps, "cache.enabled": cached}, **changes)

    whole = train_pixels(config(6, "whole"), tokenizer=tokenizer())
    train_pixels(config(3, "parts"), tokenizer=tokenizer())
    resumed = train_pixels(config(6, "parts"), tokenizer=tokenizer(), resume=True)
    assert without_time(resumed.history) == without_time(whole.history)
    for part in ("unet", "conditioner"):
        state = getattr(resumed.pipeline, part).state_dict()
        for name, value in getattr(whole.pipeline, part).state_dict().items():
            assert torch.equal(value, state[name]), name
    assert bool(list((tmp_path / "whole").glob("features/features-*/features.npy"))) == cached


def test_the_saved_folder_is_a_pipeline_with_the_averages(tmp_path):
    result = train_pixels(settings(ema=0.99, output=str(tmp_path / "run")), tokenizer=tokenizer())
    assert result.path == tmp_path / "run"
    loaded = LaVITPixelPipeline.from_pretrained(result.path)
    last = torch.load(next((tmp_path / "run" / "checkpoints").glob("step-*/model.pt")), weights_only=True)
    for name, value in loaded.unet.state_dict().items():
        assert torch.equal(value, last[f"average.unet.{name}"]), name
        assert value.is_floating_point() and not torch.equal(value, last[f"unet.{name}"]), name
    codes = loaded.tokenizer.encode(loaded.image_processor(ShapesWorld(3).scenes(2).images), deterministic=True)
    both = [pipe(codes, seeds=[1, 2], num_inference_steps=2, output_type="np") for pipe in (result.pipeline, loaded)]
    assert np.array_equal(both[0].images, both[1].images)
    again = train_pixels(settings(model=str(result.path), **{"loop.steps": 1}))
    assert again.history[0]["loss"] < result.history[0]["loss"]
    with pytest.raises(FileExistsError, match="holds a run; --resume goes on with it"):
        train_pixels(settings(output=str(tmp_path / "run")), tokenizer=tokenizer())


# ---------------------------------------------------------------------------------------------------- several processes


class NoiseOfImages(Step):
    """Every image has its own noise, whichever process or batch it is in."""

    def forward(self, images, features, time_ids=None):
        parts = []
        for image, feature in zip(images.split(1), features.split(1), strict=True):
            torch.manual_seed(zlib.crc32(image.numpy().tobytes()))
            parts.append(super().forward(image, feature))
        return {name: torch.stack([part[name] for part in parts]).mean() for name in parts[0]}


def shared_run(folder: str, accumulate: int):
    # An eps above all gradients makes steps linear in them: else rounding decides the sign where they are next to 0.
    linear = {"optimizer.eps": 1.0, "schedule.lr": 0.5, "loop.accumulate": accumulate, "loop.steps": 3}
    pixels.Step = NoiseOfImages
    try:
        return train_pixels(settings(output=folder, **linear), tokenizer=tokenizer())
    finally:
        pixels.Step = Step


def one_of_two(rank: int, folder: str) -> None:
    drawing = shared_run(f"{folder}/two", 1).pipeline
    torch.save([drawing.unet.state_dict(), drawing.conditioner.state_dict()], f"{folder}/{rank}.pt")


def test_two_processes_learn_what_one_does_with_twice_the_batches(tmp_path):
    on_two_processes(one_of_two, tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    alone = shared_run(str(tmp_path / "one"), 2)
    start = train_pixels(settings(**{"loop.steps": 1, "schedule.lr": 0.0}), tokenizer=tokenizer()).pipeline
    moved = 0.0
    for number, part in enumerate(("unet", "conditioner")):
        before = getattr(start, part).state_dict()
        for name, value in getattr(alone.pipeline, part).state_dict().items():
            assert torch.equal(first[number][name], second[number][name]), name
            torch.testing.assert_close(first[number][name], value, rtol=1e-4, atol=1e-5, msg=name)
            moved = max(moved, float((value - before[name]).abs().max()))
    assert moved > 1e-2  # the averages, far beyond the tolerance
    rows = [json.loads(line) for line in (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]  # one process writes
    for row, one in zip(rows, alone.history, strict=True):
        assert row["loss"] == pytest.approx(one["loss"], rel=1e-4)


# --------------------------------------------------------------------------------------------- pretrained bases' layout


def base(folder: Path, kind: str) -> Path:
    """A folder in the layout of SD 1.5 or SDXL with random nets: images of 16 pixels, latents of 8."""
    torch.manual_seed(4)
    blocks = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (4, 8),
        "layers_per_block": 1,
        "norm_num_groups": 2,
    }
    text = {"addition_embed_type": "text_time", "addition_time_embed_dim": 2} if kind == "highres" else {}
    if kind == "highres":
        text |= {"projection_class_embeddings_input_dim": 6 + 6 * 2}
    unet = UNet2DConditionModel(
        sample_size=8, cross_attention_dim=12 if kind == "lowres" else 14, attention_head_dim=2, **blocks, **text
    )
    unet.save_pretrained(folder / "unet")
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 4),
        norm_num_groups=2,
        sample_size=16,
        scaling_factor=0.5,
    )
    vae.save_pretrained(folder / "vae")
    scheduler = PNDMScheduler if kind == "lowres" else EulerDiscreteScheduler
    scheduler(num_train_timesteps=100, beta_schedule="scaled_linear").save_pretrained(folder / "scheduler")
    return folder


@pytest.mark.parametrize("kind", ["lowres", "highres"])
def test_a_base_learns_from_a_folder_of_images_and_bad_ones_are_named(tmp_path, kind):
    folder = pictures(tmp_path / "images", [(20, 20)] * 4 + [(20, 40)] * 4)
    (folder / "02.png").write_bytes((folder / "02.png").read_bytes()[:90])  # the header is whole
    (folder / "03.png").write_bytes(b"no image")
    frozen, start = tokenizer(), base(tmp_path / "base", kind)
    buckets = kind == "highres"
    size = {"size": 64, "buckets": True} if buckets else {"size": 16}
    words = {"data": str(folder), "base": str(start), "loop.batch_size": 2, "schedule.lr": 1e-3, **size}
    results = []
    for cached in (False, True):
        config = settings(kind, output=str(tmp_path / f"run-{cached}"), **{**words, "cache.enabled": cached})
        results.append(train_pixels(config, tokenizer=frozen))
    assert len(results[0].history) == 6 and all(np.isfinite(row["loss"]) for row in results[0].history)
    for result in results:
        assert {Path(name).name for name, _ in result.skipped_items} == {"02.png", "03.png"}
    features = np.load(next((tmp_path / "run-True" / "features").glob("*/*.npy")))
    first = cut(load_image(folder / "00.png"), (64, 64) if buckets else (16, 16))[0]
    # bfloat16 keeps 8 bits
    wanted = reconstructed_images(frozen, LaVITImageProcessor(size=32), [first])
    torch.testing.assert_close(torch.from_numpy(features[:1]).view(torch.bfloat16).float(), wanted, rtol=2**-8, atol=0)
    loaded = LaVITPixelPipeline.from_pretrained(tmp_path / "run-True")
    assert loaded.kind == kind and loaded.scheduler.config.num_train_timesteps == 100
    original = AutoencoderKL.from_pretrained(start / "vae").state_dict()
    assert all(torch.equal(value, loaded.vae.state_dict()[name]) for name, value in original.items())
    drawn = loaded(images=first, height=16, width=24, seeds=[0], num_inference_steps=2)
    assert drawn.images[0].size == (24, 16)
    again = settings(kind, model=str(tmp_path / "run-True"), data=str(folder), **{**size, "loop.steps": 1})
    assert np.isfinite(train_pixels(again).history[0]["loss"])


def test_heads_of_a_decoder_that_has_them_are_where_training_starts(tmp_path):
    frozen = tokenizer(decoder_condition="lowres", condition_dim=12)
    folder = pictures(tmp_path / "images", [(16, 16)] * 2)
    words = {"data": str(folder), "base": str(base(tmp_path / "base", "lowres")), "size": 16, "schedule.lr": 0.0}
    result = train_pixels(settings("lowres", **words, **{"loop.steps": 1}), tokenizer=frozen)
    assert torch.equal(result.pipeline.conditioner.unet_proj.weight, frozen.decoder.unet_proj.weight)


# ------------------------------------------------------------------------------------------------- errors and the words


def test_wrong_settings_are_named_before_anything_is_written(tmp_path):
    start, output = base(tmp_path / "base", "lowres"), {"output": str(tmp_path / "run")}
    folder = str(pictures(tmp_path / "images", [(16, 16)]))
    wrong = [
        (settings(**output), {}, "tokenizer: expected the folder that stage 1 left"),
        (settings(tokenizer="nowhere", **output), {}, "tokenizer: there is no folder nowhere"),
        (settings(data="elsewhere", **output), {"tokenizer": tokenizer()}, "data: expected shapes or a folder"),
        (settings("lowres", **output), {"tokenizer": tokenizer()}, "base: the preset lowres starts from a folder"),
        (
            settings("lowres", base=str(start), data=folder, size=18, **output),
            {"tokenizer": tokenizer()},
            "size: expected a positive multiple of 4",
        ),
        (
            settings("highres", base=str(start), data=folder, **output),
            {"tokenizer": tokenizer()},
            "base: highres expects an SDXL U-Net",
        ),
        (
            settings(**output),
            {"tokenizer": tokenizer(), "images": np.zeros((4, 30, 31, 3), np.uint8)},
            "images: expected sides that are multiples of 2 .*, got 30 x 31",
        ),
        (
            settings(**output),
            {"tokenizer": tokenizer(), "features": torch.zeros(3, 16, 16)},
            "features: expected a row for each of 24 images, got 3",
        ),
        (settings(**{"cache.enabled": True}), {"tokenizer": tokenizer()}, "cache.folder: expected a folder"),
    ]
    for config, arguments, message in wrong:
        with pytest.raises((ValueError, OSError), match=message):
            train_pixels(config, **arguments)
    for part in ("scheduler/scheduler_config.json", "vae/config.json", "unet/config.json"):
        (start / part).unlink()
        with pytest.raises(FileNotFoundError, match=f"base: .* lacks {part}"):
            train_pixels(settings("lowres", base=str(start), data=folder, **output), tokenizer=tokenizer())
    for changes, message in (
        ({"drop": 1.0}, "drop: expected a share in"),
        ({"min_snr_gamma": 0.0}, "min_snr_gamma: expected a number above 0"),
        ({"size": 64}, "size: expected none with --data shapes"),
        ({"base": "somewhere"}, "base: expected none for the preset small"),
    ):
        with pytest.raises(ValueError, match=message):
            settings(**changes)
    assert not (tmp_path / "run").exists()


def command(tmp_path: Path, *words: str) -> list[str]:
    fixed = "--scenes 24 --batch-size 4 --device cpu --tensorboard false --log-every 1".split()
    net = ["--unet", str(SMALL)]
    return ["--tokenizer", str(tmp_path / "tokenizer"), "--output", str(tmp_path / "run"), *fixed, *net, *words]


def test_the_command_trains_and_says_where_the_pipeline_is(tmp_path, capsys):
    tokenizer().save_pretrained(tmp_path / "tokenizer")
    assert lavit(["train", "pixels", *command(tmp_path, "--steps", "2")]) == 0
    said = capsys.readouterr().out
    assert "images/s" in said and f"the pixel pipeline is in {tmp_path / 'run'}" in said
    assert lavit(["train", "pixels", "--help"]) == 0
    assert "--min_snr_gamma" in capsys.readouterr().out
    assert lavit(["train", "pixels", "--output", str(tmp_path / "other")]) == 2
    assert "tokenizer: expected the folder" in capsys.readouterr().err


def test_sigterm_saves_a_checkpoint_and_stops(tmp_path):
    tokenizer().save_pretrained(tmp_path / "tokenizer")
    words = [sys.executable, "-m", "lavit", "train", "pixels", *command(tmp_path, "--steps", "100000")]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "env": {**os.environ, "OMP_NUM_THREADS": "1"}}
    with subprocess.Popen(words, text=True, **options) as process:
        seen = []
        for line in process.stdout:
            seen.append(line)
            if "images/s" in line:
                process.send_signal(signal.SIGTERM)
                break
        end = threading.Timer(120, process.kill)
        end.start()
        rest = process.stdout.read()
        end.cancel()
    assert process.returncode == 128 + signal.SIGTERM, "".join(seen) + rest
    assert "go on with --resume" in rest and list((tmp_path / "run" / "checkpoints").glob("step-*/model.pt"))
