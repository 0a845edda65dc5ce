"""Stage 1 without an encoder: on a folder it trains one on the images first, and goes on where that was stopped."""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from pictures import captioned_folder
from test_resume import contents
from tiny_tokenizer import TINY

from lavit.data import ImageFolder
from lavit.shapes.world import SHAPES_WORLD
from lavit.threads import on as on_threads
from lavit.tokenizer import LaVITImageProcessor, LaVITTokenizer
from lavit.training.encoder.recipe import EncoderTrainingConfig
from lavit.training.encoder.train import train_encoder
from lavit.training.engine import stage
from lavit.training.engine.checkpoint import CheckpointError
from lavit.training.tokenizer import initialization
from lavit.training.tokenizer.initialization import encoder_recipe
from lavit.training.tokenizer.recipe import TokenizerTrainingConfig
from lavit.training.tokenizer.train import TrainingResult, train_tokenizer


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """With several, sums of the same numbers may differ from run to run; the same bits are promised on one."""
    with on_threads(1):
        yield


def settings(data: Path | str, output: Path | None, **changes) -> TokenizerTrainingConfig:
    short = {"loop.steps": 2, "loop.batch_size": 4, "loop.log_every": 1, "tensorboard": False, "device": "cpu"}
    short |= {"tokenizer": TINY, "data": str(data), "encoder_steps": 3, "workers": 0, "scenes": 24}
    return TokenizerTrainingConfig.recipe("small", short | {"output": output and str(output)} | changes)


def encoder_of(folder: Path) -> dict[str, torch.Tensor]:
    return LaVITTokenizer.from_pretrained(folder).encoder.state_dict()


def assert_same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def kill(row: dict) -> None:
        if row["step"] == step:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(initialization, "_log_encoder", kill)


def test_an_encoder_is_trained_on_the_folder_and_kept_beside(tmp_path: Path, caplog) -> None:
    data, output = captioned_folder(tmp_path / "data", 10), tmp_path / "run"
    with caplog.at_level(logging.INFO):
        result = train_tokenizer(settings(data, output))
    assert f"no encoder is given: training one on {data}, 3 steps (lavit train encoder)" in caplog.text
    assert result.model.training is False and result.path == output
    assert_same(encoder_of(output), encoder_of(output / "encoder"))
    again = train_tokenizer(settings(data, None, **{"cache.enabled": False}))  # nothing is written, all is the same
    assert_same(again.model.encoder.state_dict(), encoder_of(output))


def test_features_are_standardised_over_all_places_where_that_is_asked_for(tmp_path: Path) -> None:
    data = captioned_folder(tmp_path / "data", 10)
    encoder, files = tmp_path / "run" / "encoder", ImageFolder(data)
    by_place = train_tokenizer(settings(data, tmp_path / "run")).model
    for words in ({"encoder": str(encoder)}, {"encoder_steps": 3}):
        model = train_tokenizer(settings(data, None, standardize="image", **{"cache.enabled": False} | words)).model
        assert_same(model.encoder.state_dict(), encoder_of(encoder))
        for statistics in (model.feature_mean, model.feature_std):
            assert torch.equal(statistics, statistics[:1].expand_as(statistics)) and len(statistics.unique()) > 1
        processor = LaVITImageProcessor(size=model.config.image_size)
        with torch.no_grad():
            images = torch.cat([processor(image) for image in files])
            features, other = model.encode_features(images), by_place.encode_features(images)
        assert torch.allclose(features.mean((0, 1)), torch.zeros(()), atol=1e-3)
        assert torch.allclose(features.std((0, 1), correction=0), torch.ones(()), atol=1e-2)
        assert torch.allclose(other.mean(0), torch.zeros(()), atol=1e-3) and features.mean(0).abs().max() > 0.1


def test_a_tokenizer_that_is_given_keeps_its_statistics(tmp_path: Path) -> None:
    data = captioned_folder(tmp_path / "data", 10)
    own = train_tokenizer(settings(data, tmp_path / "run")).model
    before = own.feature_mean.clone()
    changes = {"standardize": "image", "cache.enabled": False}
    assert torch.equal(train_tokenizer(settings(data, None, **changes), model=own.train()).model.feature_mean, before)
    on = train_tokenizer(settings(data, None, model=str(tmp_path / "run"), tokenizer={}, **changes)).model
    assert torch.equal(on.feature_mean, before) and not torch.equal(before, before[:1].expand_as(before))


def test_shapes_of_another_size_train_one_on_their_scenes(caplog) -> None:
    changes = {"tokenizer": TINY | {"image_size": 64, "patch_size": 16}, "cache.enabled": False}
    with caplog.at_level(logging.INFO):
        result = train_tokenizer(settings(SHAPES_WORLD, None, **changes))
    assert "training one on shapes, 3 steps" in caplog.text and result.model.config.image_size == 64


def test_a_stop_in_the_encoders_training_goes_on_exactly(tmp_path: Path, monkeypatch) -> None:
    data = captioned_folder(tmp_path / "data", 10)
    train_tokenizer(settings(data, tmp_path / "whole"))
    with monkeypatch.context() as patch:
        stop_at(2, patch)
        stopped: TrainingResult = train_tokenizer(settings(data, tmp_path / "cut"))
    assert (stopped.stopped_by, stopped.path, stopped.history) == (signal.SIGTERM, None, [])
    assert (tmp_path / "cut" / "training.yaml").is_file() and not (tmp_path / "cut" / "config.json").exists()
    config = TokenizerTrainingConfig.read(tmp_path / "cut" / "training.yaml")
    result = train_tokenizer(config, resume=True)
    assert result.path == tmp_path / "cut"
    for name, value in LaVITTokenizer.from_pretrained(tmp_path / "whole").state_dict().items():
        assert torch.equal(value, result.model.state_dict()[name]), name


def test_an_encoder_of_other_settings_is_replaced_only_where_that_is_asked_for(tmp_path: Path, monkeypatch) -> None:
    data, output = captioned_folder(tmp_path / "data", 10), tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_at(2, patch)
        train_tokenizer(settings(data, output))
    before = contents(output)
    told = f"holds a run of other settings; --encoder {output}/encoder takes its encoder, --overwrite replaces it"
    for changes in ({"encoder_steps": 4}, {"seed": 5}, {"fit": "crop"}):
        with pytest.raises(FileExistsError, match=re.escape(told)):
            train_tokenizer(settings(data, output, **changes))
    assert contents(output) == before
    train_tokenizer(settings(data, output, encoder_steps=4), overwrite=True)
    assert EncoderTrainingConfig.read(output / "encoder" / "training.yaml").loop.steps == 4
    # The one that is finished is taken by a run of the same settings, and not where all is replaced.
    before = (output / "encoder" / "model.safetensors").stat().st_mtime_ns
    for file in [output / "config.json", *(output / "checkpoints").rglob("*.json")]:
        file.unlink()
    train_tokenizer(settings(data, output, encoder_steps=4))
    assert (output / "encoder" / "model.safetensors").stat().st_mtime_ns == before
    train_tokenizer(settings(data, output, encoder_steps=4), overwrite=True)
    assert (output / "encoder" / "model.safetensors").stat().st_mtime_ns > before


def test_an_encoder_of_ones_own_outlives_the_runs_that_take_it(tmp_path: Path, monkeypatch) -> None:
    data, output = captioned_folder(tmp_path / "data", 10), tmp_path / "run"
    train_encoder(encoder_recipe(settings(data, output)))
    before = contents(output / "encoder")
    given = {"encoder": str(output / "encoder")}
    train_tokenizer(settings(data, output, **given))
    train_tokenizer(settings(data, output, seed=1, **given), overwrite=True)
    assert contents(output / "encoder") == before and not (output / ".replaced").exists()
    whole = contents(output)

    def ends(*_, **__):
        raise OSError

    monkeypatch.setattr(stage, "train", ends)
    with pytest.raises(OSError):
        train_tokenizer(settings(data, output, seed=2, **given), overwrite=True)
    assert contents(output) == whole  # an encoder of someone's own is nothing that the new run could go on from


def test_a_finished_model_without_checkpoints_is_not_taken_for_a_run_that_trains_its_encoder(tmp_path: Path) -> None:
    data, output = captioned_folder(tmp_path / "data", 10), tmp_path / "run"
    train_tokenizer(settings(data, output))
    shutil.rmtree(output / "checkpoints")
    with pytest.raises(CheckpointError, match="there is no checkpoint to resume from"):
        train_tokenizer(settings(data, output), resume=True)
    assert (output / "config.json").is_file()


def test_a_mistyped_folder_is_still_refused(tmp_path: Path) -> None:
    data = captioned_folder(tmp_path / "data", 10)
    with pytest.raises(CheckpointError, match="there is no such folder to resume from"):
        train_tokenizer(settings(data, tmp_path / "typo"), resume=True)


def test_replacing_a_run_and_stopping_in_the_new_encoder_keeps_the_old_one_aside(tmp_path: Path, monkeypatch) -> None:
    data, output = captioned_folder(tmp_path / "data", 10), tmp_path / "run"
    train_tokenizer(settings(data, output))
    old = encoder_of(output)
    with monkeypatch.context() as patch:
        stop_at(2, patch)
        stopped = train_tokenizer(settings(data, output, seed=5), overwrite=True)
    assert stopped.stopped_by == signal.SIGTERM and not (output / "config.json").exists()
    assert_same(encoder_of(output / ".replaced"), old)
    assert_same(encoder_of(output / ".replaced" / "encoder"), old)
    config = TokenizerTrainingConfig.read(output / "training.yaml")
    assert config.seed == 5 and train_tokenizer(config, resume=True).path == output
    assert not (output / ".replaced").exists()
    assert not all(torch.equal(old[name], value) for name, value in encoder_of(output).items())
