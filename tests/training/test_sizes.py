"""Pictures of other sizes and encoders of other libraries through all three stages, a step or two of each."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pictures import captioned_folder
from transformers import AutoModel, ViTConfig, ViTImageProcessor

from lavit import LaVIT
from lavit.cli import main as lavit
from lavit.pixels import LaVITPixelPipeline
from lavit.tokenizer import LaVITImageProcessor, LaVITTokenizer
from lavit.training.language.recipe import LanguageTrainingConfig
from lavit.training.language.train import train_language
from lavit.training.pixels.recipe import PixelsTrainingConfig
from lavit.training.pixels.train import train_pixels

NARROW = {"encoder_depth": 1, "merger_depth": 1, "decoder_depth": 1, "num_codes": 16, "projection_dim": 32}
SHORT = {"loop.steps": 1, "loop.log_every": 1, "device": "cpu", "tensorboard": False, "workers": 0}


def stages_on(tokenizer: Path, data: Path, output: Path) -> tuple[LaVIT, LaVITPixelPipeline]:
    """A step of stages 2 and 3 on a tokenizer; what they leave is loaded again."""
    text = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    given = SHORT | {"tokenizer": str(tokenizer), "data": str(data)}
    train_language(LanguageTrainingConfig.recipe("small", given | {"text_config": text, "output": str(output / "lm")}))
    small = {"unet": {"channels": [8, 16], "groups": 4}, "loop.batch_size": 2, "output": str(output / "pixels")}
    train_pixels(PixelsTrainingConfig.recipe("small", given | small))
    return LaVIT.from_pretrained(output / "lm"), LaVITPixelPipeline.from_pretrained(output / "pixels")


@pytest.mark.parametrize(("size", "patches"), [(64, 64), (96, 144), (128, 256)])
def test_pictures_of_a_preset_go_through_all_stages(tmp_path: Path, size: int, patches: int) -> None:
    data = captioned_folder(tmp_path / "data", 6, size=size)
    words = ["--preset", f"small-{size}", "--data", str(data), "--output", str(tmp_path / "tokenizer")]
    words += ["--steps", "2", "--batch-size", "4", "--encoder-steps", "2", "--device", "cpu", "--tensorboard", "false"]
    words += [word for name, value in NARROW.items() for word in (f"--tokenizer.{name}", str(value))]
    assert lavit(["train", "tokenizer", *words]) == 0
    model, pipeline = stages_on(tmp_path / "tokenizer", data, tmp_path)
    assert model.config.tokenizer_config.num_patches == patches
    # An image that is shown, one that is asked for with all its patches, and some words.
    assert model.config.text_config.max_position_embeddings >= 2 * patches + 256
    assert pipeline.unet.config.sample_size == size


def test_an_encoder_of_another_library_goes_through_all_stages(tmp_path: Path, capsys, caplog) -> None:
    data, folder = captioned_folder(tmp_path / "data", 6, size=48), tmp_path / "vit"
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    source = AutoModel.from_config(ViTConfig(**sizes, image_size=32, patch_size=8))
    source.save_pretrained(folder)
    ViTImageProcessor(image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.3, 0.4]).save_pretrained(folder)
    output = tmp_path / "tokenizer"
    words = ["--data", str(data), "--output", str(output), "--encoder", f"transformers:{folder}"]
    words += ["--batch-size", "4", "--device", "cpu", "--tensorboard", "false", "--checkpoint-every", "1"]
    words += ["--tokenizer.num_codes", "16", "--tokenizer.projection_dim", "32"]
    assert lavit(["train", "tokenizer", *words, "--steps", "2"]) == 0
    folder.rename(tmp_path / "gone")  # from here on nothing needs it
    trained = LaVITTokenizer.from_pretrained(output)
    for name, value in source.state_dict().items():
        assert torch.equal(trained.encoder.model.state_dict()[name], value), name
    processor = LaVITImageProcessor.from_pretrained(output)
    assert (processor.size, processor.mean, processor.std) == (32, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    assert lavit(["train", "tokenizer", "--output", str(output), "--resume", "--steps", "3"]) == 0
    model, _ = stages_on(output, data, tmp_path)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        rows = source.eval()(pixel_values=images).last_hidden_state[:, 1:]
        assert torch.equal(model.visual_tokenizer.encoder(images), rows)


def test_a_resumed_run_needs_no_file_of_its_encoder(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    data, file = captioned_folder(tmp_path / "data", 6, size=32), tmp_path / "vit.pth"
    torch.manual_seed(0)
    torch.save(timm.create_model("vit_tiny_patch16_224").state_dict(), file)
    words = ["--data", str(data), "--output", str(tmp_path / "run"), "--encoder", f"timm:vit_tiny_patch16_224@{file}"]
    words += ["--tokenizer.image_size", "32", "--tokenizer.num_codes", "4", "--steps", "1", "--batch-size", "4"]
    words += ["--device", "cpu", "--tensorboard", "false", "--checkpoint-every", "1"]
    assert lavit(["train", "tokenizer", *words]) == 0
    file.unlink()
    assert lavit(["train", "tokenizer", "--output", str(tmp_path / "run"), "--resume", "--steps", "2"]) == 0
    assert lavit(["train", "tokenizer", *words, "--overwrite"]) == 2  # which does need it


def test_an_encoder_of_other_sizes_names_the_preset(tmp_path: Path, capsys) -> None:
    data = captioned_folder(tmp_path / "data", 6, size=64)
    words = ["--device", "cpu", "--tensorboard", "false", "--data", str(data)]
    encoder = ["--preset", "small-64", "--steps", "1", "--batch-size", "2", "--output", str(tmp_path / "encoder")]
    assert lavit(["train", "encoder", *words, *encoder]) == 0
    capsys.readouterr()
    stage = ["--encoder", str(tmp_path / "encoder"), "--output", str(tmp_path / "tokenizer")]
    assert lavit(["train", "tokenizer", *words, *stage]) == 2
    told = capsys.readouterr().err
    assert "has image_size 64, patch_size 8, hidden_size 128" in told and "say --preset small-64" in told
    assert not (tmp_path / "tokenizer").exists()
