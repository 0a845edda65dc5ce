"""Curves of a run's folder: those of held-out pictures stand on the axes of the same number in training."""

from __future__ import annotations

import json
import re

import pytest

from lavit.report.training_runs import curves_of, is_run, read_run, spans_of

ROWS = [
    {"step": 10, "phase": "continuous", "loss": 2.0, "reconstruction_loss": 0.5, "lr": 0.1, "skipped": 0},
    {"step": 10, "val_loss": 2.5, "val_cosine": 0.25},
    {"step": 20, "phase": "joint", "loss": 1.0, "reconstruction_loss": 0.25, "lr": 0.1, "skipped": 0},
    {"step": 30, "phase": "joint", "loss": 0.5, "reconstruction_loss": None, "lr": 0.05, "skipped": 0},
    {"step": 30, "val_loss": 0.75, "val_cosine": 0.5},
]


def write_run(folder, rows=ROWS, settings="preset: small\nencoder_steps: 3\n"):
    folder.mkdir(exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if settings is not None:
        (folder / "training.yaml").write_text(settings)
    return folder


def test_held_out_numbers_stand_with_their_curve_and_alone_where_there_is_none(tmp_path):
    run = read_run(write_run(tmp_path))
    curves = {curve.title: curve for curve in curves_of(run)}
    assert list(curves) == ["Loss", "Reconstruction", "Cosine"]
    loss = curves["Loss"]
    assert (loss.last, loss.held_out, loss.best) == (0.5, 0.75, (0.75, 30)) and curves["Cosine"].best is None
    assert 'class="held"' in loss.chart and "Held out: from 2.5 at step 10 to 0.75 at step 30." in loss.chart
    assert 'class="held"' not in curves["Reconstruction"].chart and curves["Reconstruction"].held_out is None
    cosine = curves["Cosine"]
    assert (cosine.last, cosine.held_out) == (None, 0.5) and "held-out" in cosine.note
    assert "cosine from 0.25 at step 10 to 0.5 at step 30" in cosine.chart


def test_phases_are_those_of_training_whatever_stands_between(tmp_path):
    assert spans_of(read_run(write_run(tmp_path))) == [("continuous", 10, 20), ("joint", 20, 30)]


@pytest.mark.parametrize(
    "settings, network",
    [
        ("seen: [0.25, 0.9]", "Encoder"),
        ("encoder_steps: 3", "Tokenizer"),
        ("text_vocabulary: 400", "Language model"),
        ("unet: {}", "U-Net"),
        ("else: 1", "Training"),
        (None, "Training"),
        ("- a list", "Training"),
    ],
)
def test_the_stage_is_told_by_its_settings(tmp_path, settings, network):
    assert read_run(write_run(tmp_path, settings=settings)).network == network


def test_the_stage_of_every_recipe_is_known():
    from lavit.report.training_runs import _OF_STAGE
    from lavit.training.language.recipe import LanguageTrainingConfig
    from lavit.training.pixels.recipe import PixelsTrainingConfig
    from lavit.training.tokenizer.recipe import TokenizerTrainingConfig

    recipes = {"Tokenizer": TokenizerTrainingConfig, "Language model": LanguageTrainingConfig}
    recipes["U-Net"] = PixelsTrainingConfig
    assert set(recipes) <= {network for _, network in _OF_STAGE}
    for key, network in _OF_STAGE:
        if network not in recipes:
            continue
        having = [name for name, recipe in recipes.items() if key in recipe.__dataclass_fields__]
        assert having == [network]


def test_a_number_that_nobody_knows_has_its_own_name(tmp_path):
    rows = [{"step": 1, "text_accuracy": 0.5}, {"step": 2, "text_accuracy": -0.25, "val_text_accuracy": 0.1}]
    (curve,) = curves_of(read_run(write_run(tmp_path, rows)))
    assert curve.title == "Text accuracy" and re.search("text accuracy from 0.5 at step 1 to -0.25", curve.chart)


def test_a_folder_without_a_run_and_a_damaged_one_are_told(tmp_path):
    assert not is_run(tmp_path)
    with pytest.raises(ValueError, match="holds no training run .it has no metrics.jsonl"):
        read_run(tmp_path)
    write_run(tmp_path, settings="a: [")
    with pytest.raises(ValueError, match="training.yaml is damaged or no YAML"):
        read_run(tmp_path)
    (tmp_path / "training.yaml").write_text("a: !!python/object/apply:os.getcwd []")
    with pytest.raises(ValueError, match="training.yaml is damaged or no YAML"):
        read_run(tmp_path)


def test_a_run_that_has_just_begun_has_no_curves(tmp_path):
    assert curves_of(read_run(write_run(tmp_path, []))) == []
