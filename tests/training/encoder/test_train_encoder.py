"""An encoder of one's own: what it learns from, what it keeps of pixels and captions, and that it goes on exactly."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from pictures import captioned_folder

from lavit.cli import main as lavit
from lavit.data import ImageFolder
from lavit.evaluation.patch_pixels import linear_r2, pixels_of
from lavit.language.text_tokenizer import train_text_tokenizer
from lavit.tokenizer import LaVITImageProcessor, LaVITTokenizer, LaVITTokenizerConfig
from lavit.training.encoder.data import Captions, encode_captions, open_data
from lavit.training.encoder.objective import EncoderObjective, PatchDecoder, moved, noisy, parameter_groups
from lavit.training.encoder.recipe import EncoderTrainingConfig, TextConfig
from lavit.training.encoder.train import train_encoder

SIZES = {"patch_size": 8, "hidden_size": 32, "encoder_depth": 1, "encoder_heads": 2, "merger_depth": 1}
SIZES |= {"decoder_depth": 1, "num_heads": 2, "num_codes": 12, "code_dim": 4, "projection_dim": 8}


def settings(data: Path | str, **changes) -> EncoderTrainingConfig:
    short = {"loop.steps": 4, "loop.batch_size": 8, "loop.log_every": 1, "device": "cpu", "tensorboard": False}
    short |= {"tokenizer": SIZES, "data": str(data), "workers": 0}
    return EncoderTrainingConfig.recipe("small", short | changes)


def learner(config: EncoderTrainingConfig, text_ids: int | None = None) -> EncoderObjective:
    torch.manual_seed(0)
    tokenizer = LaVITTokenizer(LaVITTokenizerConfig.preset("small", **SIZES))
    tokenizer.encoder.requires_grad_(True)
    return EncoderObjective(tokenizer.encoder, tokenizer.config, config, text_ids)


def captions_of(texts: list[tuple[str, ...]]) -> Captions:
    tokenizer = train_text_tokenizer([text for own in texts for text in own])
    return encode_captions(texts, tokenizer, TextConfig())


# ------------------------------------------------------------------------------------------------------ what it learns


def test_features_come_to_hold_the_pixels_of_their_patch(tmp_path: Path) -> None:
    folder = captioned_folder(tmp_path, 48)
    changes = {"loop.steps": 150, "schedule.lr": 5e-3, "schedule.warmup": 10, "loop.log_every": 30, "shift": 0}
    result = train_encoder(settings(folder, objective="masked", **changes))
    rows = result.history
    assert rows[-1]["masked_loss"] < 0.5 * rows[0]["masked_loss"] and rows[-1]["pixel_r2"] > 0.9
    processor = LaVITImageProcessor(size=32)
    images = torch.cat([processor(image) for image in ImageFolder(folder)])
    torch.manual_seed(0)
    untrained = LaVITTokenizer(LaVITTokenizerConfig.preset("small", **SIZES))
    wanted = pixels_of(images, 16)
    with torch.no_grad():
        trained, before = (linear_r2(model.encoder(images), wanted) for model in (result.model, untrained))
    # The patches of 192 numbers have more directions than a feature of 32.
    assert trained > max(0.85, before)


def test_images_find_their_captions(tmp_path: Path) -> None:
    folder = captioned_folder(tmp_path, 48)
    changes = {"loop.steps": 80, "schedule.lr": 5e-3, "schedule.warmup": 5}
    rows = train_encoder(settings(folder, **changes)).history
    assert {"pixel_loss", "masked_loss", "contrastive_loss", "matched"} <= rows[0].keys()
    last = [row["matched"] for row in rows[-10:]]
    assert sum(last) / 10 > 0.7 > 0.4 > rows[0]["matched"]  # chance is 1/8, more where captions are equal


@pytest.mark.parametrize("objective", ["masked", "contrastive", "both"])
def test_every_parameter_of_an_objective_gets_a_gradient(tmp_path: Path, objective: str) -> None:
    config = settings(captioned_folder(tmp_path, 8), objective=objective)
    data, _ = open_data(config)
    model = learner(config, data.captions and data.captions.size)
    trained = [p for group in parameter_groups(model, 0.1) for p in group["params"]]
    batch = data.with_captions({"images": torch.randn(8, 3, 32, 32), "index": torch.arange(8)})
    model(batch)["loss"].backward()
    assert len(trained) == len(list(model.parameters()))
    assert not [name for name, p in model.named_parameters() if p.grad is None]


def test_parts_of_an_objective_that_is_not_asked_for_are_not_there(tmp_path: Path) -> None:
    folder = captioned_folder(tmp_path, 8)
    batch = {"images": torch.randn(8, 3, 32, 32), "index": torch.arange(8)}
    for objective, wanted in (("masked", {"masked_loss"}), ("contrastive", {"contrastive_loss", "matched"})):
        config = settings(folder, objective=objective)
        data, _ = open_data(config)
        parts = learner(config, data.captions and data.captions.size)(data.with_captions(batch))
        assert parts.keys() == {"loss", "pixel_loss", "pixel_r2"} | wanted


def test_patches_that_are_not_seen_do_not_reach_the_features(tmp_path: Path) -> None:
    model = learner(settings("shapes")).eval()
    images = torch.randn(2, 3, 32, 32)
    seen = torch.tensor([[0, 5, 9], [1, 2, 15]])
    changed = images.clone()
    changed[0, :, 8:, 16:] += 1  # rows 1 to 3 of the grid, columns 2 and 3: patches 6, 7, 10, 11, 14, 15
    with torch.no_grad():
        before, after = model.features(images, seen), model.features(changed, seen)
        every = model.features(images, torch.arange(16).expand(2, -1))
        assert torch.equal(before[0], after[0])
        torch.testing.assert_close(every, model.encoder(images))


def test_what_is_seen_and_what_is_not_are_all_patches_once() -> None:
    model = learner(settings("shapes", seen="0.5, 0.5"))
    seen, unseen = model.choose(3, 16, torch.device("cpu"))
    assert seen.shape == unseen.shape == (3, 8)
    assert torch.equal(torch.cat((seen, unseen), 1).sort(1).values, torch.arange(16).expand(3, -1))
    always = learner(settings("shapes", seen="1, 1"))
    assert always.choose(1, 16, torch.device("cpu"))[1].shape == (1, 1)  # or nothing would be learned by the decoder


def test_the_patch_decoder_does_not_depend_on_the_order_of_what_is_seen() -> None:
    torch.manual_seed(0)
    decoder = PatchDecoder(LaVITTokenizerConfig.preset("small", **SIZES), 1)
    features, seen, unseen = torch.randn(1, 4, 32), torch.tensor([[3, 1, 7, 12]]), torch.tensor([[0, 15]])
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(
        decoder(features[:, order], seen[:, order], unseen), decoder(features, seen, unseen), rtol=1e-4, atol=1e-5
    )


def test_equal_captions_of_other_images_are_no_wrong_answers() -> None:
    captions = captions_of([("red",), ("red",), ("blue",), ()])
    model = learner(settings("shapes"), captions.size)
    ids, told = captions.draw(torch.arange(4))
    assert told.tolist() == [True, True, True, False]
    pooled = torch.randn(4, 32)
    both = model.compare(pooled, ids, told)["contrastive_loss"]
    alone = model.compare(pooled[[0, 2]], ids[[0, 2]], told[[0, 2]])["contrastive_loss"]
    other = model.compare(pooled[[1, 2]], ids[[1, 2]], told[[1, 2]])["contrastive_loss"]
    # Of three rows, the first two see only the third beside their own; the third sees both in either direction.
    assert min(alone, other) / 2 < both
    assert torch.isfinite(both)
    with torch.no_grad():
        lonely = model.compare(pooled, ids, torch.tensor([True, False, False, False]))
    assert float(lonely["contrastive_loss"]) == 0


def test_captions_are_drawn_from_those_of_the_image() -> None:
    texts = [("one", "two", "three"), ("four",)]
    captions = captions_of(texts)
    torch.manual_seed(0)
    drawn = {tuple(captions.draw(torch.tensor([0]))[0][0].tolist()) for _ in range(60)}
    assert drawn == {tuple(row.tolist()) for row in captions.ids[:3]}  # missed with a chance of 3 (2/3)^60
    assert torch.equal(captions.draw(torch.tensor([1]))[0][0], captions.ids[3])


def test_moved_images_are_shifted_and_their_edges_repeated() -> None:
    images = torch.arange(16.0).view(1, 1, 4, 4).expand(200, 3, -1, -1)
    torch.manual_seed(0)
    found = moved(images, 1)
    places = {tuple(image[0].flatten().tolist()) for image in found}
    down = [0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]
    assert tuple(map(float, down)) in places and len(places) == 9 and found.shape == images.shape
    assert moved(images, 0) is images


def test_noise_on_features_is_in_units_of_each_channel() -> None:
    torch.manual_seed(0)
    features = torch.randn(64, 16, 3) * torch.tensor([0.1, 1.0, 50.0]) + torch.tensor([7.0, 0.0, -3.0])
    found = noisy(features, 0.5)
    plain = (features - features.mean((0, 1))) / features.std((0, 1), correction=0)
    # The deviation of 1 024 draws is within 0.5 / sqrt(2 * 1024) = 0.011 of 0.5, three times that at most.
    assert torch.allclose((found - plain).std((0, 1)), torch.tensor(0.5), atol=0.034)
    assert torch.allclose(noisy(features, 0.0), plain, atol=1e-4)
    assert noisy(torch.ones(1, 1, 3), 0.0).isfinite().all()


def test_through_noise_features_turn_to_fewer_directions(tmp_path: Path) -> None:
    """What is read through noise has to be told loudly: the first directions get more of the variance."""
    folder = captioned_folder(tmp_path, 48)
    processor = LaVITImageProcessor(size=32)
    images = torch.cat([processor(image) for image in ImageFolder(folder)])
    shares = []
    for noise in (0.0, 1.0):
        changes = {"loop.steps": 100, "schedule.lr": 5e-3, "schedule.warmup": 10, "shift": 0, "feature_noise": noise}
        model = train_encoder(settings(folder, objective="masked", **changes)).model
        with torch.no_grad():
            features = model.encode_features(images).flatten(0, 1)
        spread = torch.linalg.eigvalsh(torch.cov(features.T)).flip(0)
        shares.append(float(spread[:4].sum() / spread.sum()))
    assert shares[1] > shares[0] + 0.05, shares


# --------------------------------------------------------------------------------------------------- what it is given


def test_auto_takes_captions_where_there_are_some(tmp_path: Path) -> None:
    folder = captioned_folder(tmp_path, 6)
    assert open_data(settings(folder))[0].captions is not None
    assert open_data(settings(folder, objective="masked"))[0].captions is None
    (folder / "captions.json").unlink()
    assert open_data(settings(folder))[0].captions is None
    with pytest.raises(FileNotFoundError, match="objective: both needs captions"):
        open_data(settings(folder, objective="both"))
    with pytest.raises(ValueError, match="objective: contrastive needs a folder with captions.json, got --data shapes"):
        open_data(settings("shapes", objective="contrastive"))


def test_images_without_a_caption_are_learned_from_too(tmp_path: Path) -> None:
    folder = captioned_folder(tmp_path, 6)
    file = folder / "captions.json"
    content = json.loads(file.read_text())
    content["annotations"] = content["annotations"][:2]
    file.write_text(json.dumps(content))
    data, _ = open_data(settings(folder))
    assert len(data.dataset) == 6 and data.captions is not None and data.captions.count.tolist() == [1, 1, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"seen": "0.9, 0.2"}, "seen: expected two shares"),
        ({"seen": "0, 0.2"}, "seen: expected two shares"),
        ({"noise": -1}, "noise: expected a number of at least 0, got -1"),
        ({"feature_noise": -1}, "feature_noise: expected a number of at least 0, got -1"),
        ({"decoder_depth": 0}, "decoder_depth: expected at least 1, got 0"),
        ({"text.width": 6}, "text.width: expected a multiple of 4"),
    ],
)
def test_settings_that_cannot_be_are_refused(words: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings("shapes", **words)


# ------------------------------------------------------------------------------------------------------- how it goes on


def test_held_out_images_are_measured_and_not_learned_from(tmp_path: Path) -> None:
    folder, output = captioned_folder(tmp_path / "data", 24), tmp_path / "run"
    changes = {"validation_share": 0.25, "loop.checkpoint_every": 2, "output": str(output)}
    data, held_out = open_data(settings(folder, **changes))
    assert held_out is not None and held_out.captions is not None
    assert not set(data.dataset.paths) & set(held_out.dataset.paths) and len(data.dataset) + len(held_out.dataset) == 24
    history = train_encoder(settings(folder, **changes)).history
    rows = [row for row in history if "val_loss" in row]
    assert [row["step"] for row in rows] == [2, 4]
    assert {"val_pixel_r2", "val_masked_loss", "val_contrastive_loss", "val_matched"} <= rows[0].keys()
    last, best = (LaVITTokenizer.from_pretrained(place) for place in (output, output / "best"))
    images = torch.cat([LaVITImageProcessor(size=32)(image) for image in data.dataset])
    for model in (last, best):  # each with the statistics of its own encoder
        torch.testing.assert_close(model.encode_features(images).mean(0), torch.zeros(16, 32), rtol=0, atol=1e-3)
    alone = train_encoder(settings(folder, validation_share=0.25))
    assert torch.equal(alone.model.feature_mean, last.feature_mean)
    train_only = {"validation_share": 0.25, "loop.checkpoint_every": 0}
    for name, value in train_encoder(settings(folder, **train_only)).model.encoder.state_dict().items():
        assert torch.equal(value, last.encoder.state_dict()[name]), name


def test_a_resumed_training_is_the_one_that_never_stopped(tmp_path: Path) -> None:
    folder = captioned_folder(tmp_path / "data", 12)
    whole = train_encoder(settings(folder, output=str(tmp_path / "whole"), **{"loop.checkpoint_every": 2}))
    cut = {"output": str(tmp_path / "cut"), "loop.checkpoint_every": 2}
    stopped: list[int] = []

    class Stop(Exception):
        pass

    def stop(row: dict) -> None:
        stopped.append(row["step"])
        if row["step"] == 3:
            raise Stop

    with pytest.raises(Stop):
        train_encoder(settings(folder, **cut), progress=stop)
    again = train_encoder(settings(folder, **cut), resume=True)
    assert stopped == [1, 2, 3] and [row["step"] for row in again.history] == [1, 2, 3, 4]
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name


def test_a_signal_in_the_last_step_leaves_a_whole_encoder(tmp_path: Path) -> None:
    folder = captioned_folder(tmp_path / "data", 12)

    def kill(row: dict) -> None:
        if row["step"] == row["steps"]:
            os.kill(os.getpid(), signal.SIGTERM)

    result = train_encoder(settings(folder, output=str(tmp_path / "run")), progress=kill)
    assert result.stopped_by == signal.SIGTERM and result.path == tmp_path / "run"
    whole = train_encoder(settings(folder))
    found = LaVITTokenizer.from_pretrained(tmp_path / "run").state_dict()
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, found[name]), name


def test_the_command_leaves_a_frozen_encoder_with_statistics_and_processor(tmp_path: Path, capsys) -> None:
    folder = captioned_folder(tmp_path / "data", 12)
    words = ["train", "encoder", "--data", str(folder), "--output", str(tmp_path / "run"), "--device", "cpu"]
    words += ["--steps", "2", "--batch-size", "4", "--tokenizer", json.dumps(SIZES), "--tensorboard", "false"]
    assert lavit(words) == 0
    assert f"try: lavit train tokenizer --preset small --data {folder} --encoder" in capsys.readouterr().out
    model = LaVITTokenizer.from_pretrained(tmp_path / "run")
    assert LaVITImageProcessor.from_pretrained(tmp_path / "run").size == 32
    assert not any(p.requires_grad for p in model.encoder.parameters())
    images = torch.cat([LaVITImageProcessor(size=32)(image) for image in ImageFolder(folder)])
    features = model.encode_features(images)
    torch.testing.assert_close(features.mean(0), torch.zeros(16, 32), rtol=0, atol=1e-4)
    deviation = features.std(0, correction=0)
    assert (((deviation - 1).abs() < 1e-3) | (model.feature_std < 1e-5)).all()
