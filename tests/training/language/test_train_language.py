"""Stage 2: what learns and what stays, packed rows, going on after a stop, the saved folder, the command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from captioned_scenes import captioned_scenes
from tiny_tokenizer import TINY
from transformers import AutoTokenizer

from lavit.cli import main as lavit
from lavit.language.model import LaVIT
from lavit.language.processing import LaVITProcessor
from lavit.shapes.world import ShapesWorld
from lavit.tokenizer import LaVITImageProcessor, LaVITTokenizer, LaVITTokenizerConfig
from lavit.training.engine.config import ConfigError
from lavit.training.language import train
from lavit.training.language.data import ImageStore, open_folder
from lavit.training.language.recipe import LanguageTrainingConfig
from lavit.training.language.train import train_language

LLAMA = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}


def tokenizer() -> LaVITTokenizer:
    torch.manual_seed(1)
    return LaVITTokenizer(LaVITTokenizerConfig.preset("small", **TINY)).eval()


def settings(**changes) -> LanguageTrainingConfig:
    short = {"loop.steps": 6, "loop.log_every": 1, "scenes": 24, "token_budget": 160, "window": 16, "device": "cpu"}
    words = {**short, "text_config": LLAMA, "tensorboard": False, "schedule.warmup": 2}
    words |= {"mixture.edit": 0.0, "mixture.unprompted": 0.0}
    return LanguageTrainingConfig.recipe("small", words | changes)


def without_time(history):
    return [{k: v for k, v in row.items() if k != "tokens_per_second"} for row in history]


def test_recipes_fit_their_presets():
    small = LanguageTrainingConfig.recipe("small")
    assert small.mixture.edit == 2.5 and small.sampling["guidance"] == 2.2
    paper = LanguageTrainingConfig.recipe("lavit-g")
    shares = paper.mixture
    assert shares.text == 2 * (shares.caption + shares.image + shares.question)  # known: 2 : 1
    assert paper.schedule.lr * paper.rates.language == pytest.approx(1e-5)  # known
    assert paper.schedule.lr * paper.rates.visual == pytest.approx(1e-4)  # known
    with pytest.raises(ConfigError, match="preset: expected g or small|preset: expected small or lavit-g"):
        LanguageTrainingConfig.recipe("large")


def test_text_and_images_are_learned_and_the_frozen_parts_stay():
    frozen = tokenizer()
    before = {name: value.clone() for name, value in frozen.state_dict().items()}
    config = settings(**{"loop.steps": 40, "schedule.lr": 5e-3, "mixture.text": 1.0, "rates.visual": 2.0})
    result = train_language(config, tokenizer=frozen)
    first, last = result.history[0], result.history[-1]
    assert last["loss"] < 0.75 * first["loss"]
    assert last["text_loss"] < 0.8 * first["text_loss"] and last["image_loss"] < 0.8 * first["image_loss"]
    assert set("step text_loss image_loss labels tokens lr grad_norm skipped tokens_per_second".split()) <= set(last)
    assert all(row["tokens"] <= 160 for row in result.history)
    after = result.model.visual_tokenizer.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    merger = result.model.understanding.causal_encoder.state_dict()
    assert any(not torch.equal(value, after[f"causal_encoder.{name}"]) for name, value in merger.items())


def test_an_image_has_the_tokens_that_the_tokenizer_gives_it_in_any_order():
    frozen = tokenizer()
    features = torch.randn(9, 16, 16)
    store = ImageStore(frozen, features)
    chosen = torch.tensor([4, 4, 0, 8, 1])
    taken, tokens = store.take(chosen)
    expected = frozen.encode(features=features[chosen], deterministic=True)
    assert torch.equal(taken, features[chosen])
    assert torch.equal(tokens.ids, expected.ids) and torch.equal(tokens.cu_seqlens, expected.cu_seqlens)
    assert torch.equal(tokens.keep, expected.keep)
    assert [store.length(int(i)) for i in chosen] == expected.lengths().tolist()


def test_a_part_with_rate_0_stays():
    result = train_language(settings(**{"rates.visual": 0.0, "rates.language": 0.0}), tokenizer=tokenizer())
    fresh = train_language(settings(**{"loop.steps": 1, "schedule.lr": 0.0}), tokenizer=tokenizer())
    size = result.model.config.text_size
    for name, value in result.model.state_dict().items():
        same = torch.equal(value, fresh.model.state_dict()[name])
        if "embed_tokens" in name or "lm_head" in name:
            assert torch.equal(value[:size], fresh.model.state_dict()[name][:size]) and not same
        else:
            assert same, name


def test_codes_of_shown_images_are_predicted_if_asked():
    only = {"mixture.caption": 1.0, "mixture.question": 0.0, "mixture.image": 0.0, "loop.steps": 1}
    shown = train_language(settings(**only), tokenizer=tokenizer()).history[0]
    predicted = train_language(settings(**only, predict_codes=True), tokenizer=tokenizer()).history[0]
    assert shown["image_loss"] == 0 and predicted["image_loss"] > 0 and predicted["labels"] > shown["labels"]


def test_every_scene_and_every_changed_one_is_drawn_once(monkeypatch):
    drawn, draw = [], ShapesWorld._draw

    def counted(world, start, count, instead):
        drawn.append((count, instead is not None))
        return draw(world, start, count, instead)

    monkeypatch.setattr(ShapesWorld, "_draw", counted)
    train_language(settings(**{"mixture.edit": 1.0, "edited": 10, "loop.steps": 1}), tokenizer=tokenizer())
    assert drawn == [(24, False), (10, True)]


def test_images_are_learned_that_are_asked_for_with_an_image():
    only = {"mixture.caption": 0.0, "mixture.question": 0.0, "mixture.image": 0.0, "mixture.edit": 1.0, "edited": 24}
    result = train_language(settings(**only, **{"loop.steps": 40, "schedule.lr": 5e-3}), tokenizer=tokenizer())
    first, last = result.history[0], result.history[-1]
    assert last["image_loss"] < 0.8 * first["image_loss"] and last["text_loss"] == 0
    few = ImageStore(tokenizer(), torch.randn(24, 16, 16))
    many = ImageStore(tokenizer(), torch.randn(60, 16, 16))
    for store in (few, many):  # of which scenes the others are is not known
        with pytest.raises(ValueError, match=f"images of 24 scenes and 24 changed ones, got {len(store)}"):
            train_language(settings(**only), tokenizer=tokenizer(), store=store)
    result = train_language(
        settings(**{**only, "mixture.edit": 0.0, "mixture.unprompted": 1.0, "loop.steps": 2}), tokenizer=tokenizer()
    )
    row = result.history[-1]
    assert row["image_loss"] > 0 and row["text_loss"] == 0
    with pytest.raises(ValueError, match="edited: expected at least 1 where mixture.edit is above 0, got 0"):
        settings(**{**only, "edited": 0})


def test_rows_of_text_alone_and_the_ablation_train():
    alone = {"mixture.caption": 0.0, "mixture.question": 0.0, "mixture.image": 0.0, "mixture.text": 1.0}
    assert train_language(settings(**alone, **{"loop.steps": 2}), tokenizer=tokenizer()).history[-1]["text_loss"] > 0
    row = train_language(settings(objective="regress", **{"loop.steps": 2}), tokenizer=tokenizer()).history[-1]
    assert row["image_loss"] > 0


def test_a_resumed_run_ends_with_the_same_bits(tmp_path):
    def config(steps, folder):
        # The schedule of the whole run from the start: the learning rate knows where it ends.
        changes = {"loop.checkpoint_every": 3, "output": str(tmp_path / folder), "schedule.shape": "constant"}
        return settings(**{"loop.steps": steps}, **changes)

    whole = train_language(config(7, "whole"), tokenizer=tokenizer())
    train_language(config(3, "parts"), tokenizer=tokenizer())
    resumed = train_language(config(7, "parts"), tokenizer=tokenizer(), resume=True)
    assert without_time(resumed.history) == without_time(whole.history)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_the_saved_folder_is_a_model_with_its_text_tokenizer_and_processor(tmp_path):
    result = train_language(settings(output=str(tmp_path / "run")), tokenizer=tokenizer())
    assert result.path == tmp_path / "run"
    loaded = LaVIT.from_pretrained(result.path)
    for name, value in result.model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name
    processor = LaVITProcessor.from_pretrained(result.path)
    text = processor.tokenizer
    assert text.decode(text("a red circle top left")["input_ids"]) == "a red circle top left"
    assert processor.image_processor.size == 32 and processor.text_size == loaded.config.text_size
    assert LaVITImageProcessor.from_pretrained(result.path).size == 32
    assert len(AutoTokenizer.from_pretrained(result.path)) == len(text)
    again = train_language(settings(model=str(result.path), **{"loop.steps": 1, "schedule.warmup": 0}))
    assert again.history[0]["loss"] < result.history[0]["loss"]
    with pytest.raises(FileExistsError, match="holds a run; --resume goes on with it"):
        train_language(settings(output=str(tmp_path / "run")), tokenizer=tokenizer())


def test_wrong_settings_are_named_before_anything_is_written(tmp_path):
    output = {"output": str(tmp_path / "run")}
    with pytest.raises(ValueError, match="tokenizer: expected the folder that stage 1 left"):
        train_language(settings(**output))
    with pytest.raises(FileNotFoundError, match="language_model: there is no folder nowhere"):
        train_language(settings(language_model="nowhere", **output), tokenizer=tokenizer())
    with pytest.raises(ValueError, match="loop.batch_size: expected 1, got 4: a micro-batch is one packed row"):
        settings(**{"loop.batch_size": 4})
    with pytest.raises(ValueError, match="data: expected shapes or a folder of captioned images, got 'elsewhere'"):
        train_language(settings(data="elsewhere", **output), tokenizer=tokenizer())
    with pytest.raises(ValueError, match="language_model: the preset lavit-g starts from a LLaMA"):
        train_language(settings(preset="lavit-g", **output), tokenizer=tokenizer())
    assert not (tmp_path / "run").exists()


def command(tmp_path: Path, *words: str) -> list[str]:
    fixed = "--scenes 24 --token-budget 160 --window 16 --device cpu --tensorboard false --log-every 1".split()
    text = f"--text_config {LLAMA}".split(maxsplit=1)
    return ["--tokenizer", str(tmp_path / "tokenizer"), "--output", str(tmp_path / "run"), *fixed, *text, *words]


def test_the_command_trains_and_says_where_the_model_is(tmp_path, capsys):
    tokenizer().save_pretrained(tmp_path / "tokenizer")
    assert lavit(["train", "language", *command(tmp_path, "--steps", "2")]) == 0
    said = capsys.readouterr().out
    assert "tokens/s" in said and f"the model is in {tmp_path / 'run'}" in said
    assert lavit(["train", "language", "--help"]) == 0
    assert "--mixture.caption" in capsys.readouterr().out
    assert lavit(["train", "language", "--output", str(tmp_path / "other")]) == 2
    assert "tokenizer: expected the folder" in capsys.readouterr().err


def test_sigterm_saves_a_checkpoint_and_stops(tmp_path):
    tokenizer().save_pretrained(tmp_path / "tokenizer")
    words = command(tmp_path, "--steps", "100000")
    process = subprocess.Popen(
        [sys.executable, "-m", "lavit", "train", "language", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if "tokens/s" in line:
            process.send_signal(signal.SIGTERM)
            break
    rest = process.stdout.read()
    assert process.wait(timeout=120) == 128 + signal.SIGTERM, "".join(seen) + rest
    assert "go on with --resume" in rest and list((tmp_path / "run" / "checkpoints").glob("step-*/model.pt"))


def captioned(root: Path, count: int = 12) -> Path:
    """The first scenes of the shapes world as a folder of images with captions, questions, edits and texts."""
    captioned_scenes(root, count)
    changes = [{"image": f"{i}.png", "text": "turn it", "result": f"{i + 1}.png"} for i in range(6)]
    (root / "edits.jsonl").write_text("\n".join(map(json.dumps, changes)))
    (root / "text.txt").write_text("a red circle\na blue square\n")
    return root


def test_a_folder_of_captioned_images_is_learned_and_what_cannot_be_read_is_named(tmp_path):
    folder = captioned(tmp_path / "data")
    (folder / "images" / "3.png").write_bytes(b"no image")
    (folder / "images" / "5.png").unlink()
    all_kinds = {"mixture.text": 1.0, "mixture.edit": 1.0, "text_vocabulary": 300, "data": str(folder)}

    def config(steps, name):
        changes = {"loop.steps": steps, "loop.checkpoint_every": 3, "schedule.shape": "constant", **all_kinds}
        return settings(output=str(tmp_path / name), **changes)

    whole = train_language(config(5, "whole"), tokenizer=tokenizer())
    assert whole.history[-1]["text_loss"] > 0 and whole.history[-1]["image_loss"] > 0
    named = {Path(name.split(": ")[-1]).name: reason for name, reason in whole.skipped_items}
    assert "no image file" in named["image 5"] and "not an image" in named["3.png"]
    assert all("no image file" in named[f"line {number}"] for number in (5, 6))  # of edits.jsonl
    assert "not among" in named["question 5"] or "no image file" in named["question 5"]
    features = next((tmp_path / "whole" / "features").glob("features-*/*.npy"))
    assert np.load(features, mmap_mode="r").shape == (10, 16, 16)

    train_language(config(3, "parts"), tokenizer=tokenizer())
    resumed = train_language(config(5, "parts"), tokenizer=tokenizer(), resume=True)
    assert without_time(resumed.history) == without_time(whole.history)
    short = {"loop.steps": 5, "schedule.shape": "constant"}
    in_memory = train_language(settings(**short, **all_kinds), tokenizer=tokenizer())
    assert without_time(in_memory.history) == without_time(whole.history)
    assert in_memory.skipped_items == whole.skipped_items


def test_what_a_folder_lacks_is_named_before_anything_is_written(tmp_path, capsys):
    folder = captioned(tmp_path / "data", 2)
    for name in ("answers.json", "edits.jsonl", "text.txt"):
        (folder / name).unlink()
    output = {"output": str(tmp_path / "run"), "data": str(folder)}
    with pytest.raises(ValueError, match=r"mixture.question: expected 0, got 1.25: .* has no questions.json with"):
        train_language(settings(**output), tokenizer=tokenizer())
    with pytest.raises(ValueError, match=r"mixture.edit: expected 0, got 1.0: .* has no edits.jsonl"):
        train_language(settings(**output, **{"mixture.question": 0, "mixture.edit": 1}), tokenizer=tokenizer())
    with pytest.raises(ValueError, match=r"mixture.text: expected 0, got 2.0: .* no text.jsonl, and there is no"):
        train_language(settings(**output, **{"mixture.question": 0, "mixture.text": 2}), tokenizer=tokenizer())
    with pytest.raises(ValueError, match="which has no splits"):
        train_language(settings(**output, split="train"), tokenizer=tokenizer())
    with pytest.raises(ValueError, match="text: expected none with --data shapes"):
        settings(text="a.txt")
    assert not (tmp_path / "run").exists()
    tokenizer().save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "more.txt").write_text("a green triangle\n")
    (folder / "images" / "1.png").write_bytes(b"")
    words = ["--data", str(folder), "--text", str(tmp_path / "more.txt"), "--mixture.text", "1"]
    words += "--mixture.question 0 --mixture.edit 0 --window 4 --text_vocabulary 270 --steps 1".split()
    assert lavit(["train", "language", *command(tmp_path, *words)]) == 0
    said = capsys.readouterr().out
    assert f"1 items of {folder} could not be used" in said and "1.png: the file is empty" in said


# -------------------------------------------------------------------------------------------- mixtures by what there is


def following(folder, **changes):
    short = {"loop.steps": 4, "token_budget": 160, "window": 16, "device": "cpu", "tensorboard": False}
    words = {"text_config": LLAMA, "loop.log_every": 1, "text_vocabulary": 300, "data": str(folder)}
    return LanguageTrainingConfig.recipe("small", short | words | changes)


def test_shares_follow_what_a_folder_holds_and_what_it_lacks_is_said(tmp_path, caplog):
    caplog.set_level("INFO")
    folder = captioned(tmp_path / "data")  # 12 images, all captioned and asked about, edits to 6 of them
    assert following(folder).mixture.follow
    opened = open_folder(following(folder))
    small = LanguageTrainingConfig.recipe("small").mixture.shares
    assert opened.shares == small | {"edit": small["edit"] / 2}  # of half of the images
    assert "its texts alone are not learned" in caplog.text
    (folder / "edits.jsonl").unlink()
    (folder / "questions.json").unlink()
    (folder / "answers.json").unlink()
    caplog.clear()
    opened = open_folder(following(folder))
    assert opened.shares == small | {"edit": 0, "question": 0}
    assert f"question 0: {folder} has no questions.json with answers.json" in caplog.text
    assert f"edit 0: {folder} has no edits.jsonl" in caplog.text


def test_a_share_given_by_hand_counts_as_it_stands(tmp_path):
    folder = captioned(tmp_path / "data")
    (folder / "edits.jsonl").unlink()
    with pytest.raises(ValueError, match=r"mixture.edit: expected 0, got 2.5: .* has no edits.jsonl"):
        open_folder(following(folder, caption=2.0))  # without its section, too
    by_hand = following(folder, **{"mixture.caption": 2.0, "mixture.edit": 0})
    assert not by_hand.mixture.follow and open_folder(by_hand).shares == by_hand.mixture.shares
    assert open_folder(following(folder, **{"mixture.caption": 2.0, "mixture.follow": True})).shares["caption"] == 2.0


def test_epochs_are_those_that_the_run_then_has(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    folder = captioned(tmp_path / "data")
    streams, make = [], train.PackedStream
    monkeypatch.setattr(train, "PackedStream", lambda *a, **k: streams.append(make(*a, **k)) or streams[0])
    result = train_language(following(folder, **{"loop.steps": 60}), tokenizer=tokenizer())
    plan = result.history[0]["sources"]
    assert result.history[0]["step"] == 0 and [row["step"] for row in result.history[1:]] == list(range(1, 61))
    mixture = streams[0].mixture
    assert list(plan) == list(mixture.names) and plan["caption"]["samples"] == 12
    for name, entry in plan.items():
        drawn = mixture.drawn[mixture.names.index(name)] / entry["samples"]
        # The stream draws whole windows, and one window's rows tell the others' within some of a row's samples.
        assert entry["epochs"] == pytest.approx(drawn, rel=0.25), name
        assert f"{entry['epochs']:.1f} epochs" in caplog.text
    assert "not every sample will be seen" not in caplog.text
    train_language(following(folder, **{"loop.steps": 1}), tokenizer=tokenizer())
    assert "not every sample will be seen (caption, question, image" in caplog.text
