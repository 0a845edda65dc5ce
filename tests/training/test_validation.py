"""Held-out numbers in every stage: they change nothing, they compare, and the best model is kept."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import small_pixels
import torch
from captioned_scenes import captioned_scenes
from PIL import Image
from processes import on_two_processes
from tiny_tokenizer import TINY

from lavit.data.split import divided
from lavit.language.model import LaVIT
from lavit.pixels import LaVITPixelPipeline
from lavit.shapes.world import ShapesWorld
from lavit.tokenizer import LaVITImageProcessor, LaVITTokenizer, LaVITTokenizerConfig
from lavit.training.engine import stage, validation
from lavit.training.engine.checkpoint import Checkpoints
from lavit.training.engine.metrics import progress_line
from lavit.training.language.data import open_folder
from lavit.training.language.recipe import LanguageTrainingConfig
from lavit.training.language.train import train_language
from lavit.training.pixels.data import open_images
from lavit.training.pixels.recipe import PixelsTrainingConfig
from lavit.training.pixels.train import train_pixels
from lavit.training.tokenizer.data import open_dataset
from lavit.training.tokenizer.recipe import TokenizerTrainingConfig
from lavit.training.tokenizer.train import train_tokenizer
from lavit.training.tokenizer.validation import TokenizerValidation

SHORT = {"loop.steps": 6, "loop.log_every": 1, "loop.checkpoint_every": 2, "device": "cpu", "tensorboard": False}
LLAMA = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}


def visual(seed=1):
    torch.manual_seed(seed)
    return LaVITTokenizer(LaVITTokenizerConfig.preset("small", **TINY)).eval()


def tokenizer_config(**changes):
    words = {**SHORT, "scenes": 24, "loop.batch_size": 4, "first_phase": 0.5, "vectors_per_code": 2}
    return TokenizerTrainingConfig.recipe("small", words | {"cache.enabled": "output" in changes} | changes)


def language_config(**changes):
    words = {**SHORT, "scenes": 24, "token_budget": 160, "window": 16, "text_config": LLAMA, "text_vocabulary": 300}
    return LanguageTrainingConfig.recipe("small", words | {"edited": 4} | changes)


def pixels_config(**changes):
    return small_pixels.settings(**SHORT | changes)


class Stage:
    """run: a finished training. state: of what is trained. loaded: the same of a saved folder."""

    def __init__(self, config, train, state, loaded):
        self.config, self.train, self.state, self.loaded = config, train, state, loaded

    def run(self, resume=False, **changes):
        return self.train(self.config(**changes), resume)


def both(pipeline):
    parts = {"unet": pipeline.unet.state_dict(), "conditioner": pipeline.conditioner.state_dict()}
    return {f"{part}.{name}": value for part, state in parts.items() for name, value in state.items()}


STAGES = {
    "tokenizer": Stage(
        tokenizer_config,
        lambda config, resume: train_tokenizer(config, model=visual().train(), resume=resume),
        lambda result: result.model.state_dict(),
        lambda path: LaVITTokenizer.from_pretrained(path).state_dict(),
    ),
    "language": Stage(
        language_config,
        lambda config, resume: train_language(config, tokenizer=visual(), resume=resume),
        lambda result: result.model.state_dict(),
        lambda path: LaVIT.from_pretrained(path).state_dict(),
    ),
    "pixels": Stage(
        pixels_config,
        lambda config, resume: train_pixels(config, tokenizer=visual(), resume=resume),
        lambda result: both(result.pipeline),
        lambda path: both(LaVITPixelPipeline.from_pretrained(path)),
    ),
}
NUMBERS = {
    "tokenizer": {"val_loss", "val_reconstruction_loss", "val_ratio_loss", "val_commitment_loss", "val_cosine"}
    | {"val_keep_rate", "val_codes_used", "val_perplexity"},
    "language": {"val_loss", "val_text_loss", "val_image_loss", "val_exact"},
    "pixels": {"val_loss", "val_error"},
}
each_stage = pytest.mark.parametrize("name", STAGES)


def held_out(history):
    return [row for row in history if "val_loss" in row]


def trained_rows(history):
    times = ("images_per_second", "tokens_per_second")
    return [{k: v for k, v in row.items() if k not in times} for row in history if "val_loss" not in row]


def without_time(history):
    return [{k: v for k, v in row.items() if k not in ("images_per_second", "tokens_per_second")} for row in history]


def assert_same(one, other):
    assert one.keys() == other.keys() and [n for n in one if not torch.equal(one[n], other[n])] == []


# ------------------------------------------------------------------------------------------------ what it leaves alone


@each_stage
def test_a_run_with_validation_ends_with_the_bits_of_one_without(name):
    stage_ = STAGES[name]
    plain, watched = stage_.run(), stage_.run(validation_share=0.25)
    assert_same(stage_.state(plain), stage_.state(watched))
    assert trained_rows(watched.history) == trained_rows(plain.history)
    rows = held_out(watched.history)
    assert [row["step"] for row in rows] == [2, 4, 6] and not held_out(plain.history)
    assert NUMBERS[name] <= set(rows[-1]) and all(np.isfinite(rows[-1][number]) for number in NUMBERS[name])


def test_modes_and_generators_are_put_back_where_a_measurement_fails():
    class Failing:
        fingerprint = ""

        def __call__(self, run):
            assert not run.model.training and not run.model[0].training and not torch.is_grad_enabled()
            torch.rand(3), np.random.rand(3)
            raise KeyboardInterrupt

    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout())
    model[1].eval()
    run = type("R", (), {"model": model})()
    torch.manual_seed(3)
    with pytest.raises(KeyboardInterrupt):
        validation.measure(run, Failing())
    got = torch.rand(2)
    torch.manual_seed(3)
    assert torch.equal(got, torch.rand(2)) and model[0].training and not model[1].training


# ------------------------------------------------------------------------------------------------- numbers that compare


@each_stage
def test_a_resumed_run_has_the_rows_and_the_best_of_the_straight_one(tmp_path, name):
    stage_ = STAGES[name]
    words = {"validation_share": 0.25, "schedule.shape": "constant", "schedule.lr": 1e-3}
    words |= {"order": "selector_then_codebook", "first_phase": 0.0} if name == "tokenizer" else {}
    if name == "tokenizer":  # its annealing knows where the run ends
        words |= {"noise.start": 0.5, "noise.end": 0.5, "tau.end": 1.0, "warm_start.fraction": 0.0}
    whole = stage_.run(output=str(tmp_path / "whole"), **words)
    stage_.run(output=str(tmp_path / "parts"), **words, **{"loop.steps": 4})
    # As after kill -9 between the checkpoint and the file that names the best.
    (tmp_path / "parts" / "checkpoints" / "best.json").unlink()
    resumed = stage_.run(output=str(tmp_path / "parts"), resume=True, **words)
    assert without_time(resumed.history) == without_time(whole.history)
    one, other = ((tmp_path / run / "checkpoints" / "best.json").read_text() for run in ("whole", "parts"))
    assert one == other
    best = json.loads(one)
    lowest = min(held_out(whole.history), key=lambda row: row["val_loss"])
    assert best["step"] == lowest["step"] and best["val_loss"] == lowest["val_loss"]
    assert best["checkpoint"] == f"step-{best['step']:08d}"
    lines = (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()
    assert without_time(map(json.loads, lines)) == without_time(whole.history)


def test_numbers_of_stage_1_do_not_depend_on_the_batch_size():
    images = ShapesWorld(3, "test").scenes(11).images
    found = []
    for size in (3, 11):
        config = tokenizer_config(**{"loop.batch_size": size, "first_phase": 0.0})
        model = visual()
        run = type("R", (), {"model": model, "step": 6})()
        found.append(validation.measure(run, TokenizerValidation(config, model, images)))
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        assert value == pytest.approx(found[1][name], rel=1e-5, abs=1e-7), name
    features = model.encode_features(LaVITImageProcessor(size=32)(images))
    tokens = model.encode(features=features, deterministic=True)
    assert found[0]["val_keep_rate"] == pytest.approx(tokens.keep.float().mean().item())
    assert found[0]["val_codes_used"] == len(tokens.ids.unique())
    cosine = torch.cosine_similarity(model.decode(tokens), features, dim=-1).mean().item()
    assert found[0]["val_cosine"] == pytest.approx(cosine, rel=1e-5)


def test_a_model_of_another_phase_is_not_compared():
    first = validation.better({"val_loss": 1.0}, 2, "continuous", "data", None)
    joint = validation.better({"val_loss": 9.0}, 4, "joint", "data", first)
    assert joint["step"] == 4
    assert validation.better({"val_loss": 9.5}, 6, "joint", "data", joint) == joint
    assert validation.better({"val_loss": 8.5}, 6, "joint", "data", joint)["step"] == 6
    assert validation.better({"val_loss": float("nan")}, 6, "joint", "data", joint) == joint
    assert validation.better({"val_loss": 9.5}, 6, "joint", "other data", joint)["step"] == 6
    for none in (float("nan"), float("inf")):  # is never the best, nor is what is of another phase
        assert validation.better({"val_loss": none}, 2, "continuous", "data", None) is None
        assert validation.better({"val_loss": none}, 4, "joint", "data", first) is None


def test_the_held_out_row_is_one_line_for_a_reader():
    row = {"step": 200, "phase": "joint", "val_loss": 0.12345, "val_cosine": 0.9, "val_exact": 0.25}
    assert progress_line(row, 1100) == " 200/1100  joint  held out: loss 0.1235  cosine 0.9000  exact 0.250"


# ------------------------------------------------------------------------------------------------------- the best model


def losses(monkeypatch, values):
    """Makes runs measure these losses, one after the other."""
    measured = iter(values)
    monkeypatch.setattr("lavit.training.engine.loop.measure", lambda *_: {"val_loss": next(measured)})


@each_stage
def test_the_best_checkpoint_stays_and_its_model_is_in_best(tmp_path, name, monkeypatch):
    stage_ = STAGES[name]
    losses(monkeypatch, [3.0, 1.0, 2.0, 2.5])
    words = {"validation_share": 0.25, "loop.steps": 8, "loop.keep_checkpoints": 1, "output": str(tmp_path / "run")}
    if name == "tokenizer":
        words["first_phase"] = 0.0
    result = stage_.run(**words)
    folder = tmp_path / "run" / "checkpoints"
    assert [path.name for path in Checkpoints(folder).all()] == ["step-00000004", "step-00000008"]
    assert json.loads((folder / "best.json").read_text())["step"] == 4
    saved = torch.load(folder / "step-00000004" / "model.pt", weights_only=True)
    state = stage_.loaded(tmp_path / "run" / "best")
    prefix = "average." if name == "pixels" else ""
    compared = [key for key in state if prefix + key in saved]
    assert len(compared) > 5 and all(torch.equal(state[key], saved[prefix + key]) for key in compared)
    assert_same(stage_.loaded(tmp_path / "run"), stage_.state(result))  # the last model is what is returned and saved
    assert any(not torch.equal(state[key], value) for key, value in stage_.state(result).items())


def test_where_the_last_is_the_best_its_files_are_there_once(tmp_path, monkeypatch):
    stage_ = STAGES["tokenizer"]
    losses(monkeypatch, [3.0, 2.0, 1.0])
    stage_.run(validation_share=0.25, output=str(tmp_path / "run"))
    assert_same(stage_.loaded(tmp_path / "run" / "best"), stage_.loaded(tmp_path / "run"))
    for file in ("model.safetensors", "config.json", "preprocessor_config.json"):
        assert os.path.samefile(tmp_path / "run" / file, tmp_path / "run" / "best" / file)
    assert not [path for path in (tmp_path / "run" / "best").iterdir() if path.name.startswith(".")]


def test_an_old_best_model_is_gone_when_a_run_is_replaced(tmp_path, monkeypatch):
    stage_ = STAGES["tokenizer"]
    stage_.run(validation_share=0.25, output=str(tmp_path / "run"))

    def killed(*_, **__):
        raise KeyboardInterrupt

    best = [tmp_path / "run/best/config.json", tmp_path / "run/checkpoints/best.json"]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(stage, "train", killed)
        train_tokenizer(tokenizer_config(output=str(tmp_path / "run")), model=visual(), overwrite=True)
    assert all(file.is_file() for file in best)  # the old run is in its place again, whole
    train_tokenizer(tokenizer_config(output=str(tmp_path / "run")), model=visual(), overwrite=True)
    assert not any(file.exists() for file in best)


def test_a_damaged_best_checkpoint_is_named_and_the_run_ends_well(tmp_path, monkeypatch, caplog):
    stage_ = STAGES["tokenizer"]
    losses(monkeypatch, [1.0, 2.0, 3.0])
    save = stage.save_model

    def damage_then_save(folder, *parts):
        file = tmp_path / "run/checkpoints/step-00000002/model.pt"
        file.write_bytes(file.read_bytes()[:-1])
        save(folder, *parts)

    monkeypatch.setattr(stage, "save_model", damage_then_save)
    words = {"validation_share": 0.25, "output": str(tmp_path / "run"), "first_phase": 0.0}
    assert stage_.run(**words).path == tmp_path / "run"
    assert "the best model is not saved" in caplog.text and not (tmp_path / "run" / "best").exists()


# -------------------------------------------------------------------------------------------------------------- folders


def names(paths):
    return {Path(path).name for path in paths}


def test_all_stages_hold_out_the_same_pictures(tmp_path):
    folder = captioned_scenes(tmp_path / "data")
    words = {"data": str(folder), "validation_share": 0.3}
    wanted = divided(list((folder / "images").iterdir()), folder, 0.3)
    first = open_dataset(tokenizer_config(**words))
    below = open_dataset(tokenizer_config(**words | {"data": str(folder / "images")}))
    second = open_folder(language_config(**words))
    third = open_images(PixelsTrainingConfig.recipe("small", words), [(32, 32)])
    for place, paths in enumerate(wanted):
        assert names(first[place].paths) == names(below[place].paths) == names(paths)
        assert names((second.train, second.held_out)[place].paths) == names(paths)
        assert {third[place].folder.paths[number].name for number in third[place].numbers} == names(paths)
    few = words | {"validation_images": 4}
    chosen = names(open_dataset(tokenizer_config(**few))[1].paths)
    assert len(chosen) == 4 and chosen == names(open_folder(language_config(**few)).held_out.paths)


@each_stage
@pytest.mark.parametrize("how", ["share", "folder"])
def test_folders_have_held_out_numbers_and_what_cannot_be_read_is_named(tmp_path, name, how):
    folder = captioned_scenes(tmp_path / "data")
    held = names(divided(list((folder / "images").iterdir()), folder, 0.3)[1])
    words = {"data": str(folder), "validation_share": 0.3}
    if how == "folder":
        other = captioned_scenes(tmp_path / "other", 7)
        held, words = {f"{number}.png" for number in range(7)}, {"data": str(folder), "validation": str(other)}
    bad = (folder if how == "share" else other) / "images" / sorted(held)[0]
    bad.write_bytes(b"no image")
    result = STAGES[name].run(**words)
    rows = held_out(result.history)
    assert [row["step"] for row in rows] == [2, 4, 6] and NUMBERS[name] <= set(rows[-1])
    skipped = result.skipped_images if name == "tokenizer" else result.skipped_items
    assert [Path(path) for path, _ in skipped] == [bad]


@each_stage
def test_wrong_settings_are_named(tmp_path, name):
    config = STAGES[name].config
    folder = captioned_scenes(tmp_path / "data", 6)
    for words, message in (
        ({"validation_share": 1.0}, "validation_share: expected a share of the images in"),
        ({"validation_images": 0}, "validation_images: expected a number >= 1"),
        ({"validation": str(folder)}, "validation: expected none with --data shapes"),
        ({"data": str(folder), "validation": str(folder), "validation_share": 0.1}, "expected 0 beside validation"),
    ):
        with pytest.raises(ValueError, match=message):
            config(**words)
    for words, message in (
        ({"validation": str(tmp_path / "nowhere")}, "validation: there is no folder"),
        ({"validation": str(folder / "images")}, "validation: expected a folder apart from data"),
        ({"validation_share": 1e-9}, "validation_share: 1e-09 of 6 images leaves none"),
    ):
        with pytest.raises((ValueError, OSError), match=message):
            STAGES[name].run(data=str(folder), output=str(tmp_path / "run"), **words)
    assert not (tmp_path / "run").exists()


def test_other_held_out_data_begin_a_new_best(tmp_path):
    folder, output = captioned_scenes(tmp_path / "data"), str(tmp_path / "run")
    others = [captioned_scenes(tmp_path / name, count) for name, count in (("a", 5), ("b", 9))]
    words = {"data": str(folder), "output": output, "first_phase": 0.0}
    STAGES["tokenizer"].run(**words, validation=str(others[0]))
    shutil.move(others[0], tmp_path / "moved")
    before = json.loads((tmp_path / "run/checkpoints/best.json").read_text())
    STAGES["tokenizer"].run(**words, validation=str(tmp_path / "moved"), resume=True)  # the same data
    assert json.loads((tmp_path / "run/checkpoints/best.json").read_text()) == before
    STAGES["tokenizer"].run(**words, validation=str(others[1]), resume=True, **{"loop.steps": 8})
    assert json.loads((tmp_path / "run/checkpoints/best.json").read_text())["step"] == 8


# ----------------------------------------------------------------------------------------------------- shared features


def test_features_are_computed_once_for_all_stages(tmp_path, monkeypatch):
    folder = captioned_scenes(tmp_path / "data", side=48)
    tokenizer = tmp_path / "tokenizer"
    seen = []
    encode = LaVITTokenizer.encode_features
    monkeypatch.setattr(
        LaVITTokenizer, "encode_features", lambda self, images: seen.append(len(images)) or encode(self, images)
    )
    words = {"data": str(folder), "validation_share": 0.3}
    train_tokenizer(tokenizer_config(**words, output=str(tokenizer)), model=visual().train())
    assert sum(seen) == 40
    more = words | {"tokenizer": str(tokenizer)}
    seen.clear()
    with_captions = language_config(**more, output=str(tmp_path / "language"), **{"loop.checkpoint_every": 0})
    exact = len(divided(list((folder / "images").iterdir()), folder, 0.3)[1])
    train_language(with_captions)
    assert sum(seen) == exact  # captions are written of images as a user shows them
    assert not (tmp_path / "language" / "features").exists()
    seen.clear()
    train_language(language_config(**more | {"tokenizer": str(tokenizer / "best"), "mixture.follow": True}))
    assert sum(seen) == exact * 3  # at three checkpoints
    seen.clear()
    for cached in (False, True):
        output = str(tmp_path / f"pixels-{cached}")
        config = pixels_config(**more, output=output, **{"cache.enabled": cached})
        train_pixels(config)
        assert not seen and not (Path(output) / "features").exists()
    Image.new("RGB", (48, 48), "red").save(folder / "images" / "new.png")
    rest = captioned_scenes(tmp_path / "rest", 3)
    whole = more | {"validation_share": 0.0, "cache.enabled": True, "output": str(tmp_path / "pixels")}
    train_pixels(pixels_config(**whole))
    assert sum(seen) == 1
    assert train_pixels(pixels_config(data=str(rest), tokenizer=str(tokenizer))).history[-1]["loss"] > 0


def test_tokens_of_kept_features_are_those_of_the_images(tmp_path):
    folder = captioned_scenes(tmp_path / "data", side=48)
    config = tokenizer_config(data=str(folder), output=str(tmp_path / "tokenizer"))
    train_tokenizer(config, model=visual().train())
    words = {"data": str(folder), "tokenizer": str(tmp_path / "tokenizer")}
    kept = train_pixels(pixels_config(**words))
    shutil.rmtree(tmp_path / "tokenizer" / "features")
    anew = train_pixels(pixels_config(**words))
    for one, other in zip(kept.history, anew.history, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)


# ---------------------------------------------------------------------------------------------------- several processes


def one_of_two(rank: int, folder: str) -> None:
    for name in ("tokenizer", "pixels", "language"):
        words = {"data": f"{folder}/data", "validation_share": 0.3, "first_phase": 0.0}
        if name != "tokenizer":
            del words["first_phase"]
        result = STAGES[name].run(output=f"{folder}/{name}", **words)
        torch.save(dict(STAGES[name].state(result)), f"{folder}/{name}-{rank}.pt")


def test_two_processes_have_one_set_of_numbers_and_one_best(tmp_path):
    captioned_scenes(tmp_path / "data")
    on_two_processes(one_of_two, tmp_path)
    for name in STAGES:
        first, second = (torch.load(tmp_path / f"{name}-{rank}.pt", weights_only=True) for rank in range(2))
        assert_same(first, second)
        rows = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        assert [row["step"] for row in held_out(rows)] == [2, 4, 6]
        best = json.loads((tmp_path / name / "checkpoints" / "best.json").read_text())
        assert best["val_loss"] == min(row["val_loss"] for row in held_out(rows))
        assert STAGES[name].loaded(tmp_path / name / "best")
