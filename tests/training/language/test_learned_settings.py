"""The settings that training leaves in a model's folder are those with which the model shows what it has learned."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_tokenizer import TINY
from transformers import GenerationConfig

from lavit.cli import main as lavit
from lavit.evaluation import captioning
from lavit.language.model import LaVIT
from lavit.language.processing import LaVITProcessor
from lavit.tokenizer import LaVITTokenizer, LaVITTokenizerConfig
from lavit.training.language.recipe import LanguageTrainingConfig
from lavit.training.language.train import train_language

COLOURS = {"red": (255, 0, 0), "lime": (0, 255, 0), "blue": (0, 0, 255), "white": (255, 255, 255), "black": (0, 0, 0)}
LLAMA = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}


def plain_colours(root: Path) -> Path:
    """An image of each colour, with its name for a caption and for the only answer to the only question."""
    (root / "images").mkdir(parents=True)
    files, told, asked, answered = [], [], [], []
    for number, (name, colour) in enumerate(COLOURS.items()):
        Image.new("RGB", (32, 32), colour).save(root / "images" / f"{number}.png")
        files.append({"id": number, "file_name": f"{number}.png"})
        told.append({"image_id": number, "caption": name})
        asked.append({"question_id": number, "image_id": number, "question": "what colour?"})
        answered.append({"question_id": number, "answers": [{"answer": name}]})
    (root / "captions.json").write_text(json.dumps({"images": files, "annotations": told}))
    (root / "questions.json").write_text(json.dumps({"questions": asked}))
    (root / "answers.json").write_text(json.dumps({"annotations": answered}))
    return root


def settings(**changes) -> LanguageTrainingConfig:
    words = {"loop.steps": 120, "schedule.lr": 1e-2, "schedule.warmup": 5, "token_budget": 160, "window": 16}
    words |= {"mixture.edit": 0.0, "mixture.unprompted": 0.0, "mixture.image": 0.0, "text_vocabulary": 300}
    words |= {"device": "cpu", "tensorboard": False, "text_config": LLAMA}
    return LanguageTrainingConfig.recipe("small", words | changes)


@pytest.fixture(autouse=True)
def no_java(monkeypatch):
    """What it computes of captions is judged elsewhere."""
    monkeypatch.setattr(captioning.shutil, "which", lambda name: None)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, Path]:
    """The folder of images and the model that knows them."""
    place = tmp_path_factory.mktemp("own")
    data = plain_colours(place / "data")
    torch.manual_seed(1)
    tokenizer = LaVITTokenizer(LaVITTokenizerConfig.preset("small", **TINY)).eval()
    train_language(settings(data=str(data), output=str(place / "model")), tokenizer=tokenizer)
    return data, place / "model"


def evaluated(trained: tuple[Path, Path], out: Path, *words: str) -> dict[str, float]:
    data, model = trained
    given = ["--model", str(model), "--data", str(data), "--device", "cpu", "--output", str(out), "--restart"]
    assert lavit(["evaluate", *given, *words]) == 0
    tasks = json.loads(out.read_text())["tasks"]
    captions = [row["caption"] for row in tasks["caption"]["results"]]
    right = sum(text == name for text, name in zip(captions, COLOURS, strict=True))
    return {"vqa": tasks["vqa"]["score"]["overall"]["accuracy"], "caption": right / len(COLOURS)}


def test_a_model_of_one_word_answers_needs_no_options_to_give_them(trained, tmp_path):
    own = evaluated(trained, tmp_path / "own.json")
    assert own == evaluated(trained, tmp_path / "short.json", "--min-new", "1")
    assert own["vqa"] >= 0.8 and own["caption"] >= 0.8
    released = evaluated(trained, tmp_path / "long.json", "--min-new", "8", "--max-new", "36")
    assert released["vqa"] <= 0.2 and released["caption"] <= 0.2


def test_the_folder_holds_what_transformers_reads(trained):
    _, folder = trained
    captions = GenerationConfig.from_pretrained(folder)
    answers = GenerationConfig.from_pretrained(folder, "answer_generation_config.json")
    assert (captions.min_new_tokens, answers.min_new_tokens) == (1, 1)
    assert captions.num_beams == 2 and answers.num_beams == 5 and captions.max_new_tokens >= 6


def test_a_model_trained_further_keeps_what_it_says(trained, tmp_path):
    """Its own number of beams, which other words than these would not have."""
    data, folder = trained
    model = LaVIT.from_pretrained(folder)
    model.generation_config.num_beams = 3
    model.save_pretrained(tmp_path)
    LaVITProcessor.from_pretrained(folder).save_pretrained(tmp_path)
    further = {"model": str(tmp_path), "loop.steps": 1, "schedule.warmup": 0, "data": str(data), "text_config": {}}
    again = train_language(settings(**further)).model
    assert again.generation_config.to_dict() == model.generation_config.to_dict()
    assert again.answer_generation_config.to_dict() == model.answer_generation_config.to_dict()


def test_answers_of_which_none_can_be_used_are_told_with_their_reasons(trained, tmp_path, capsys):
    data, folder = trained
    broken = shutil.copytree(data, tmp_path / "data")
    told = json.loads((data / "answers.json").read_text())["annotations"]
    told = [{**entry, "answers": []} if number else {"question_id": 0} for number, entry in enumerate(told)]
    (broken / "answers.json").write_text(json.dumps({"annotations": told}))
    words = ["--model", str(folder), "--data", str(broken), "--output", str(tmp_path / "run"), "--device", "cpu"]
    assert lavit(["train", "language", *words, "--mixture.edit", "0"]) == 2
    said = capsys.readouterr().err
    assert "nothing in questions.json with answers.json" in said and "json: question 0: expected a list" in said
    assert 'of all 5: 4 × "answers" is empty, 1 × expected a list "answers", got none' in said
    assert not (tmp_path / "run").exists()
