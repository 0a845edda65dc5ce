"""Going on with a run, of every stage: with what it was made with or not at all, and nothing is lost by asking."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
import small_pixels
import torch
from tiny_tokenizer import TINY

from lavit.cli import main as lavit
from lavit.tokenizer import LaVITTokenizer, LaVITTokenizerConfig
from lavit.training.engine import identity
from lavit.training.engine.checkpoint import CheckpointError
from lavit.training.engine.config import names
from lavit.training.engine.lock import LockedError, locked
from lavit.training.language.recipe import LanguageTrainingConfig
from lavit.training.language.train import train_language
from lavit.training.pixels.recipe import PixelsTrainingConfig
from lavit.training.pixels.train import train_pixels
from lavit.training.tokenizer.recipe import TokenizerTrainingConfig
from lavit.training.tokenizer.train import train_tokenizer

SHORT = {"loop.steps": 2, "loop.log_every": 1, "loop.checkpoint_every": 1, "device": "cpu", "tensorboard": False}
LLAMA = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}


def visual(seed=1):
    torch.manual_seed(seed)
    return LaVITTokenizer(LaVITTokenizerConfig.preset("small", **TINY)).eval()


def tokenizer_stage(output, weights=1, resume=False, overwrite=False, allow_changes=False, **changes):
    words = {**SHORT, "scenes": 24, "loop.batch_size": 4, "output": output}
    config = TokenizerTrainingConfig.recipe("small", words | changes)
    return train_tokenizer(
        config, model=visual(weights), resume=resume, overwrite=overwrite, allow_changes=allow_changes
    )


def language_stage(output, weights=1, resume=False, overwrite=False, allow_changes=False, **changes):
    words = {**SHORT, "scenes": 24, "token_budget": 160, "window": 16, "text_config": LLAMA, "mixture.edit": 0.0}
    config = LanguageTrainingConfig.recipe("small", words | {"output": output} | changes)
    return train_language(
        config, tokenizer=visual(weights), resume=resume, overwrite=overwrite, allow_changes=allow_changes
    )


def pixels_stage(output, weights=1, resume=False, overwrite=False, allow_changes=False, **changes):
    config = small_pixels.settings(**SHORT | {"output": output} | changes)
    return train_pixels(
        config,
        tokenizer=visual(weights),
        resume=resume,
        overwrite=overwrite,
        allow_changes=allow_changes,
    )


STAGES = {"tokenizer": tokenizer_stage, "language": language_stage, "pixels": pixels_stage}
CHANGED = {
    "tokenizer": {"optimizer.weight_decay": 0.5},
    "language": {"rates.visual": 0.25},
    "pixels": {"drop": 0.5},
}


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "features" not in path.parts
    }


@pytest.mark.parametrize("name", STAGES)
def test_what_is_refused_leaves_the_run_as_it_was(tmp_path, name):
    run, output = STAGES[name], str(tmp_path / "run")
    run(output)
    before = contents(tmp_path / "run")
    for changes in ({"seed": 5}, CHANGED[name]):
        (setting,) = changes
        with pytest.raises(CheckpointError, match=f"made with other settings .*{setting}: .*--allow-changes"):
            run(output, resume=True, **changes)
        assert contents(tmp_path / "run") == before
    longer = {"loop.steps": 3}
    assert run(output, resume=True, **longer).history[-1]["step"] == 3


@pytest.mark.parametrize("name", STAGES)
def test_settings_may_change_where_that_is_said(tmp_path, name, caplog):
    run, output = STAGES[name], str(tmp_path / "run")
    run(output)
    run(output, resume=True, allow_changes=True, **{"loop.steps": 3}, **CHANGED[name])
    saved = torch.load(tmp_path / "run/checkpoints/step-00000003/optimizer.pt", weights_only=True)["param_groups"]
    if name == "tokenizer":
        assert 0.5 in [group["weight_decay"] for group in saved]  # not the one that the optimizer's own state brings
    if name == "language":
        assert {0.25, 1.0} == {group["lr_scale"] for group in saved}
    assert "going on with other settings" in caplog.text and next(iter(CHANGED[name])) in caplog.text
    run(output, resume=True, **{"loop.steps": 4}, **CHANGED[name])  # which are the run's own from then on


@pytest.mark.parametrize(("name", "part"), [("language", "visual tokenizer"), ("pixels", "tokenizer")])
def test_another_tokenizer_is_refused_by_name(tmp_path, name, part):
    run, output = STAGES[name], str(tmp_path / "run")
    run(output)
    before = contents(tmp_path / "run")
    for allow in (False, True):
        with pytest.raises(CheckpointError, match=f"learned beside other parts than this run has \\({part}: "):
            run(output, weights=2, resume=True, allow_changes=allow)
    assert contents(tmp_path / "run") == before


def test_another_prediction_is_refused_by_name(tmp_path):
    output = str(tmp_path / "run")
    pixels_stage(output)
    with pytest.raises(CheckpointError, match="other parts than this run has .*scheduler: "):
        pixels_stage(output, resume=True, prediction="epsilon")


@pytest.mark.parametrize("name", STAGES)
def test_nothing_is_deleted_where_there_is_nothing_whole_to_resume(tmp_path, name):
    run, folder = STAGES[name], tmp_path / "run"
    run(str(folder))
    for file in folder.glob("checkpoints/step-*/model.pt"):
        file.write_bytes(file.read_bytes()[:-1])
    before = contents(folder)
    with pytest.raises(CheckpointError, match=r"no checkpoint is whole \(step-00000001: model.pt should have"):
        run(str(folder), resume=True)
    assert contents(folder) == before
    with pytest.raises(CheckpointError, match="there is no such folder to resume from"):
        run(str(tmp_path / "runn"), resume=True)
    assert not (tmp_path / "runn").exists()
    with pytest.raises(FileExistsError, match="holds a run"):
        run(str(folder))
    assert run(str(folder), overwrite=True).path == folder


@pytest.mark.parametrize("name", STAGES)
def test_a_folder_in_which_a_run_is_writing_is_refused(tmp_path, name):
    with locked(tmp_path / "run"):
        with pytest.raises(LockedError, match=f"process {os.getpid()} on .* is running here"):
            STAGES[name](str(tmp_path / "run"))
        assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
    STAGES[name](str(tmp_path / "run"))
    assert not (tmp_path / "run" / ".lock").exists()


@pytest.mark.parametrize("name", STAGES)
def test_a_mistyped_folder_is_no_run_of_the_recipe(tmp_path, name, capsys):
    assert lavit(["train", name, "--output", str(tmp_path / "typo"), "--resume"]) == 2
    assert "typo/training.yaml is not there" in capsys.readouterr().err
    assert lavit(["train", name, "--output", str(tmp_path / "typo"), "--allow-changes"]) == 2
    assert "--allow-changes: expected --resume beside it" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("recipe", [TokenizerTrainingConfig, LanguageTrainingConfig, PixelsTrainingConfig])
def test_settings_that_must_stay_are_all_but_the_named_ones(recipe):
    kept = identity.settings_of(recipe())
    known = names(recipe)
    assert {"seed", "loop.batch_size", "loop.accumulate", "optimizer.betas"} <= kept.keys()
    assert not {"output", "device", "loop.steps", "schedule.lr"} & kept.keys()
    leaves = {name for name in known if not any(other.startswith(f"{name}.") for other in known)} - set(identity.BEFORE)
    shares = vars(recipe().mixture) if "mixture" in known else {}
    leaves -= {f"mixture.{kind}" for kind, share in shares.items() if share == 0}
    free = {name for name in leaves if name in identity.FREE or name.partition(".")[0] in identity.FREE}
    mappings = {name for name in leaves if not any(key == name or key.startswith(f"{name}.") for key in kept)} - free
    assert all(getattr(recipe(), name) == {} for name in mappings)


def test_settings_that_came_later_do_not_stop_a_run_that_does_as_before():
    here = {"seed": 0, "mixture.caption": 1.0}
    older = {**here, "mixture.text": 0.0}
    newer = {**here, "mixture.another_kind": 0.0, "warm_start.relative": 0.0, "validation_share": 0.0}
    newer |= {"feature_noise": 0.0, "standardize": "place"}
    for shown in (None, "features", "bare_codes"):
        assert identity.differences(older, {**newer, "prompt_images": shown}) == []
    for later in ({"feature_noise": 1.0}, {"standardize": "image"}, {"prompt_images": "codes"}):
        assert len(identity.differences(older, {**newer, **later})) == 1
    assert identity.differences(older, {**newer, "mixture.another_kind": 1.0}) == [
        "mixture.another_kind: 'nothing', now 1.0"
    ]
    assert identity.differences({**older, "warm_start.relative": 0.5}, newer) == [
        "warm_start.relative: 0.5, now 'nothing'"
    ]
