"""Laws of measuring a model on a split: every part of it, beside chance, the same twice; a model that has learned
nothing scores next to nothing, and true pictures all."""

import json
import math

import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image
from plain_glyphs import PlainGlyphs
from speaking import llama
from tiny_tokenizer import TINY

from examples.emoji.__main__ import main
from examples.emoji.draw import Settings, draw
from examples.emoji.measure import Examiner, read_part, sheet, told
from examples.emoji.splits import COMBINATIONS, SPLITS
from examples.emoji.texts import EDITS, QUESTIONS
from lavit.data.captioned_folder import read_folder
from lavit.evaluation.picture_content import edge_density, jpeg_size, rank_correlation
from lavit.language import LaVIT, LaVITProcessor
from lavit.language.text_tokenizer import train_text_tokenizer
from lavit.pixels import LaVITPixelPipeline, PixelConditioner, small_unet
from lavit.tokenizer import LaVITImageProcessor, LaVITTokenizer, LaVITTokenizerConfig

ITEMS = 6


def opened(path):
    return Image.open(path).convert("RGB")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world") / "world"
    draw(root, PlainGlyphs(), Settings(size=32, limit=150))
    return root


@pytest.fixture(scope="module")
def parts(world):
    torch.manual_seed(0)
    texts = train_text_tokenizer(list(read_folder(world / "train").sentences()), 340)
    processor = LaVITProcessor(LaVITImageProcessor(32), texts)
    tokenizer = LaVITTokenizer(LaVITTokenizerConfig.preset("small", **TINY)).eval()
    words = llama(processor.text_size, max_position_embeddings=128)
    model = LaVIT.from_parts(words, tokenizer, image_sampling={"min_tokens": 1}).eval()
    conditioner = PixelConditioner.for_tokenizer(tokenizer.config, condition_dim=16)
    pipeline = LaVITPixelPipeline(
        tokenizer=tokenizer,
        conditioner=conditioner,
        unet=small_unet(image_size=32, condition_dim=16, channels=(8, 16), groups=4).eval(),
        scheduler=DDIMScheduler(clip_sample=False),
        image_processor=LaVITImageProcessor(32),
        default_steps=2,
    )
    pipeline.set_progress_bar_config(disable=True)
    return model, processor, pipeline


@pytest.fixture(scope="module")
def found(world, parts):
    return Examiner(*parts, batch_size=4).measure(read_part(world, COMBINATIONS, ITEMS))


def test_every_part_is_measured(found):
    figures = found.figures
    assert figures["pictures"] == ITEMS < figures["gallery"]
    assert {"name", "background", "all"} <= set(figures["answers"]) <= {*QUESTIONS, "all"}
    assert {"all"} < set(figures["changed"]) <= {*EDITS, "all"}
    assert len(found.again) == len(found.drawn) == ITEMS and len(found.changed) == figures["changed"]["all"]["pictures"]
    assert 1 <= figures["tokens"]["least"] <= figures["tokens"]["mean"] <= figures["tokens"]["most"]
    lines = "\n".join(told(figures))
    assert "nan" not in lines and "  captions     exact 0.000" in lines
    json.loads(json.dumps(figures, allow_nan=False))


def test_content_is_measured_as_the_library_does(world, parts, found):
    pictures = [true for true, _ in found.again]
    model, processor, _ = parts
    features = model.visual_tokenizer.encode_features(torch.cat([processor.image_processor(each) for each in pictures]))
    tokens = model.visual_tokenizer.encode(features=features, deterministic=True).keep.sum(1).tolist()
    assert min(tokens) < max(tokens)
    told = found.figures["tokens"]
    assert told["with_edges"] == rank_correlation(tokens, list(map(edge_density, pictures)))
    assert told["with_jpeg_size"] == rank_correlation(tokens, list(map(jpeg_size, pictures)))
    assert told["length"] == "dynamic"


def test_a_correlation_that_is_none_is_none_in_the_figures(parts):
    examiner = Examiner(*parts)
    picture = Image.new("RGB", (32, 32))
    kept, _ = examiner._kept(examiner._features([picture] * 4), [picture] * 4)
    assert kept["with_edges"] is None and kept["with_jpeg_size"] is None


def test_figures_are_shares_and_those_of_all_questions_are_their_mean(found):
    answers = dict(found.figures["answers"])
    total = answers.pop("all")
    assert total["questions"] == sum(row["questions"] for row in answers.values())
    mean = sum(row["right"] * row["questions"] for row in answers.values()) / total["questions"]
    assert total["right"] == pytest.approx(mean) and all(0 <= row["chance"] <= 1 for row in answers.values())


def test_the_same_pictures_and_noise_give_the_same_figures(world, parts, found):
    again = Examiner(*parts, batch_size=4).measure(read_part(world, COMBINATIONS, ITEMS))
    assert again.figures == found.figures


def test_true_pictures_are_the_nearest_to_themselves(world, parts):
    part = read_part(world, COMBINATIONS, ITEMS)
    examiner = Examiner(*parts)
    pictures = list(map(opened, part.paths))
    gallery = examiner._features(pictures)
    pictures = pictures[:ITEMS]
    assert examiner._found(pictures, gallery, [[n] for n in range(ITEMS)]).tolist() == [1] * ITEMS


def test_a_sheet_has_all_pictures_of_each_group_in_a_column(found):
    drawn = sheet(found.changed)
    before, after, _ = found.changed[0]
    side = before.width
    assert drawn.crop((0, 0, side, side)).tobytes() == before.tobytes()
    assert drawn.crop((0, side, side, 2 * side)).tobytes() == after.tobytes()
    assert drawn.height == math.ceil(len(found.changed) / 12) * (3 * side + 8)


def test_the_command_writes_figures_and_sheets(world, parts, tmp_path, capsys):
    model, processor, pipeline = parts
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    pipeline.save_pretrained(tmp_path / "model" / "pixels")
    words = ["judge", str(world), "--model", str(tmp_path / "model"), "--output", str(tmp_path / "judged")]
    assert main([*words, "--items", "2"]) == 0
    figures = json.loads((tmp_path / "judged" / "figures.json").read_text())
    assert list(figures) == list(SPLITS) and all(row["pictures"] == 2 for row in figures.values())
    assert (tmp_path / "judged" / "train-changed.png").is_file()
    assert f"{COMBINATIONS}: 2 of" in capsys.readouterr().out
    assert main(["table", str(tmp_path / "judged"), str(tmp_path / "judged")]) == 0
    heading, _, *rows = capsys.readouterr().out.splitlines()
    assert heading.startswith("| median of 2 dynamic | train, dynamic | chance |") and "fixed" not in heading
    kept = [figures[split]["tokens"] for split in SPLITS]
    cosine = (f"{tokens['cosine']:.3f} | {tokens['chance_cosine']:.3f}" for tokens in kept)
    assert rows[0] == f"| cosine | {' | '.join(cosine)} |"
    assert main(["judge", str(tmp_path), *words[2:]]) == 2
    assert "there is no world.json" in capsys.readouterr().err
    with pytest.raises(ValueError, match="no pictures of 'test'"):
        read_part(world, "test", 3)
