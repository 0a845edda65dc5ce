"""Replacing a run: the old one is never served beside the new one, and is there again where nothing new is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from test_resume import STAGES, contents, tokenizer_stage

from lavit.cli import main as lavit
from lavit.training.engine import replaced, stage
from lavit.training.engine.loop import TrainingDiverged


def serves_a_model(folder: Path) -> bool:
    return any((folder / index).exists() for index in stage.INDEX)


@pytest.mark.parametrize("name", STAGES)
def test_the_old_model_is_aside_while_the_new_run_goes_on_and_gone_at_its_end(tmp_path, name, monkeypatch):
    folder = tmp_path / "run"
    STAGES[name](str(folder))
    before, train, seen = contents(folder), stage.train, []
    (folder / "notes.txt").write_text("mine")

    def looking(*args, **kwargs):
        aside = folder / replaced.ASIDE
        seen.append((serves_a_model(folder), serves_a_model(aside), contents(aside)))
        return train(*args, **kwargs)

    monkeypatch.setattr(stage, "train", looking)
    STAGES[name](str(folder), overwrite=True, seed=3)
    assert seen == [(False, True, before)]
    assert serves_a_model(folder) and not (folder / replaced.ASIDE).exists()
    assert (folder / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("error", [KeyboardInterrupt, TrainingDiverged, OSError])
def test_the_old_run_comes_back_where_the_new_one_ends_before_its_first_checkpoint(tmp_path, name, error, monkeypatch):
    folder = tmp_path / "run"
    STAGES[name](str(folder))
    before = contents(folder)

    def ends(*_, **__):
        assert not serves_a_model(folder)
        raise error

    monkeypatch.setattr(stage, "train", ends)
    with pytest.raises(error):
        STAGES[name](str(folder), overwrite=True, seed=3)
    assert contents(folder) == before


def test_the_old_run_stays_aside_from_the_new_ones_first_checkpoint_on(tmp_path, monkeypatch):
    folder, train = tmp_path / "run", stage.train
    tokenizer_stage(str(folder))
    before = contents(folder)

    def stops_after_a_checkpoint(*args, **kwargs):
        train(*args, **kwargs)
        raise KeyboardInterrupt

    monkeypatch.setattr(stage, "train", stops_after_a_checkpoint)
    with pytest.raises(KeyboardInterrupt):
        tokenizer_stage(str(folder), overwrite=True, seed=3)
    monkeypatch.undo()
    assert not serves_a_model(folder) and contents(folder / replaced.ASIDE) == before
    with pytest.raises(FileExistsError, match="holds a run"):
        tokenizer_stage(str(folder), seed=3)
    assert contents(folder / replaced.ASIDE) == before
    tokenizer_stage(str(folder), resume=True, seed=3)
    assert serves_a_model(folder) and not (folder / replaced.ASIDE).exists()


def test_a_run_may_begin_from_the_folder_that_it_replaces(tmp_path):
    from lavit.training.tokenizer.recipe import TokenizerTrainingConfig
    from lavit.training.tokenizer.train import train_tokenizer

    folder = str(tmp_path / "run")
    tokenizer_stage(folder)
    words = {"loop.steps": 1, "loop.batch_size": 4, "scenes": 24, "device": "cpu", "tensorboard": False}
    config = TokenizerTrainingConfig.recipe("small", {**words, "model": folder, "output": folder})
    assert train_tokenizer(config, overwrite=True).path == Path(folder)
    assert not (tmp_path / "run" / replaced.ASIDE).exists()


# ------------------------------------------------------------------------------------------------------------- kill -9

PROGRAM = """
import os, signal, sys
from lavit.training.engine import stage
from lavit.training.engine.loop import Run

def killed(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

where = sys.argv.pop(1)
if where == "loop":
    stage.train = killed
elif where == "encoder":
    from lavit.training.tokenizer import initialization
    initialization.pretrain_encoder = killed
elif where == "checkpoint":
    save = Run.save
    def saved(*args):
        save(*args)
        killed()
    Run.save = saved
from lavit.cli import main
sys.exit(main(sys.argv[1:]))
"""
SIZES = "image_size: 32, patch_size: 16, hidden_size: 16, num_heads: 2, encoder_heads: 2, encoder_depth: 1"
WORDS = ["train", "tokenizer", "--steps", "2", "--checkpoint_every", "1", "--scenes", "16", "--batch_size", "4"]
WORDS += ["--encoder_steps", "1", "--vectors_per_code", "1", "--tokenizer", f"{{{SIZES}, num_codes: 8}}"]
WORDS += ["--tensorboard", "false", "--device", "cpu", "--output"]


def kill(where: str, *words: str) -> None:
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", PROGRAM, where, *words], capture_output=True, env=environ)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()


def test_a_run_killed_while_it_replaces_another_leaves_the_old_one_to_the_next_command(tmp_path, capsys, caplog):
    caplog.set_level("INFO")
    folder = tmp_path / "run"
    assert lavit([*WORDS, str(folder)]) == 0
    before = contents(folder)
    for where in ("encoder", "loop"):
        kill(where, *WORDS, str(folder), "--overwrite", "--seed", "1")
        assert not serves_a_model(folder) and contents(folder / replaced.ASIDE) == before
        caplog.clear()
        assert lavit([*WORDS, str(folder)]) == 2
        assert "holds a run; --resume goes on" in capsys.readouterr().err and "is in its place again" in caplog.text
        assert contents(folder) == before
    # Its settings are read when it is there again, not those that the killed run has left.
    kill("loop", *WORDS, str(folder), "--overwrite", "--seed", "1")
    assert "seed: 1" in (folder / "training.yaml").read_text()
    assert lavit(["train", "tokenizer", "--resume", "--output", str(folder), "--steps", "3"]) == 0
    assert "seed: 0" in (folder / "training.yaml").read_text() and serves_a_model(folder)


def test_a_run_killed_after_its_first_checkpoint_goes_on_and_the_old_one_is_deleted_at_its_end(tmp_path, capsys):
    folder = tmp_path / "run"
    assert lavit([*WORDS, str(folder)]) == 0
    before, aside = contents(folder), folder / replaced.ASIDE
    kill("checkpoint", *WORDS, str(folder), "--overwrite", "--seed", "1")
    assert not serves_a_model(folder) and contents(aside) == before
    assert lavit([*WORDS, str(folder)]) == 2
    assert f"is in {aside} until it has ended" in capsys.readouterr().err
    assert lavit(["train", "tokenizer", "--resume", "--output", str(folder)]) == 0
    assert serves_a_model(folder) and not aside.exists() and "seed: 1" in (folder / "training.yaml").read_text()


# --------------------------------------------------------------------------------------------------------------- moves


def run_of(folder: Path, word: str) -> None:
    for name in ("config.json", "model.safetensors", "training.yaml", "checkpoints/step-00000001/checkpoint.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(word)


def test_what_is_no_part_of_a_run_stays_where_it_is(tmp_path):
    run_of(tmp_path, "old")
    others = ("notes.txt", "features/a.npy", "data.json", "images/config.json", ".lock", "tokenizer/config.json")
    for name in others:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
    replaced.set_aside(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {Path(name).parts[0] for name in others} | {replaced.ASIDE}
    replaced.put_back(tmp_path)
    assert all((tmp_path / name).read_text() == "mine" for name in others)
    assert (tmp_path / "config.json").read_text() == "old" and not (tmp_path / replaced.ASIDE).exists()


def test_the_folders_of_a_pipeline_are_part_of_its_run(tmp_path):
    index = {"_class_name": "P", "unet": ["lavit", "SmallUNet"], "vae": [None, None], "tokenizer": ["lavit", "T"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    for name in ("unet", "tokenizer", "vae"):
        (tmp_path / name).mkdir()
    replaced.set_aside(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"vae", replaced.ASIDE}
    assert replaced.recover(tmp_path) and (tmp_path / "unet").is_dir()


def test_an_index_names_no_folder_outside_of_its_own(tmp_path):
    folder = tmp_path / "run"
    names = ("unet", "../other", str(tmp_path / "third"), "unet/..", "..", ".hidden")
    for name in names:
        (folder / name).mkdir(parents=True, exist_ok=True)
    (tmp_path / "other/mine.txt").write_text("mine")
    (folder / "model_index.json").write_text(json.dumps({name: ["lavit", "Part"] for name in names}))
    replaced.set_aside(folder)
    assert {path.name for path in folder.iterdir()} == {".hidden", replaced.ASIDE}
    assert {path.name for path in (folder / replaced.ASIDE).iterdir()} == {"unet", "model_index.json"}
    assert (tmp_path / "other/mine.txt").is_file() and (tmp_path / "third").is_dir()


# Settings of a run of stage 1 that is given no encoder, and of the encoder that it trains first.
RUN = {"preset": "small", "tokenizer": {}, "data": "pictures", "seed": 1, "model": None, "encoder": None}
RUN |= {"encoder_steps": None}
FIRST = {"preset": "small", "tokenizer": {}, "data": "pictures", "seed": 1, "model": None, "loop": {"steps": 9}}


def with_encoder(folder, run, encoder):
    for place, settings in ((folder, run), (folder / "encoder", encoder)):
        run_of(place, "old")
        (place / "training.yaml").write_text(json.dumps(settings))
    return folder / "encoder"


@pytest.mark.parametrize(
    ("run", "encoder", "own"),
    [
        ({}, {}, True),
        ({"encoder_steps": 9}, {}, True),
        ({"encoder_steps": 5}, {}, False),
        ({"encoder": "runs/me/encoder"}, {}, False),
        ({"model": "runs/other"}, {}, False),
        ({}, {"seed": 2}, False),
        ({}, {"data": "others"}, False),
        ({"data": "shapes"}, {"data": "shapes"}, False),  # has a first encoder without a folder
        ({"data": "shapes", "preset": "small-64"}, {"data": "shapes", "preset": "small-64"}, True),
    ],
)
def test_an_encoder_goes_with_the_run_that_has_trained_it_and_with_no_other(tmp_path, run, encoder, own):
    place = with_encoder(tmp_path, RUN | run, FIRST | encoder)
    before = contents(tmp_path)
    assert len(replaced.checkpoints_in(tmp_path)) == 1 + own
    replaced.set_aside(tmp_path)
    assert place.exists() != own and not replaced.has_begun(tmp_path)
    assert replaced.recover(tmp_path) and contents(tmp_path) == before


def test_the_encoder_beside_a_run_of_another_stage_is_none_of_it(tmp_path):
    place = with_encoder(tmp_path, {name: value for name, value in RUN.items() if name != "encoder_steps"}, FIRST)
    replaced.set_aside(tmp_path)
    assert (place / "config.json").is_file()


@pytest.mark.parametrize("words", ["{}", "{}/model.safetensors", "transformers:{}", "timm:name@{}/model.safetensors"])
def test_an_encoder_that_the_new_run_reads_stays_whosever_it_is(tmp_path, words):
    place = with_encoder(tmp_path, RUN, FIRST)
    settings = RUN | {"encoder": words.format(place)}
    assert not replaced.begins_from(settings, tmp_path)
    assert replaced.begins_from(RUN | {"model": str(tmp_path)}, tmp_path)
    replaced.set_aside(tmp_path, settings)
    assert (place / "config.json").is_file() and not (tmp_path / "config.json").exists()


def test_what_is_in_the_place_of_the_new_runs_own_encoder_goes_aside_and_comes_back(tmp_path):
    place = with_encoder(tmp_path, RUN | {"encoder": "runs/me/encoder"}, FIRST)
    before = contents(tmp_path)
    replaced.set_aside(tmp_path, RUN, encoder_first=True)
    assert not place.exists()
    (place / "checkpoints").mkdir(parents=True)  # killed before it has written its settings
    assert replaced.recover(tmp_path) and contents(tmp_path) == before


@pytest.mark.parametrize("way", [replaced.set_aside, replaced.put_back])
def test_a_move_that_is_cut_off_anywhere_is_taken_back(tmp_path, way, monkeypatch):
    rename = os.rename
    for cut in range(8):
        folder = tmp_path / str(cut)
        folder.mkdir()
        run_of(folder, "old")
        before = contents(folder)
        if way is replaced.put_back:
            replaced.set_aside(folder)
            (folder / "training.yaml").write_text("new")
        left = [cut]

        def renamed(*args, left=left):
            if not left[0]:
                raise MemoryError
            left[0] -= 1
            rename(*args)

        monkeypatch.setattr(os, "rename", renamed)
        try:
            way(folder)
        except MemoryError:
            # Half a run is never served: the index is first to go and last to come.
            assert not serves_a_model(folder) or contents(folder) == before or cut == 0
        monkeypatch.undo()
        replaced.recover(folder)
        assert contents(folder) == before
        assert not (folder / replaced.ASIDE).exists() and not (folder / replaced.MOVING).exists()


def test_a_run_that_lies_aside_goes_with_the_one_that_was_to_replace_it(tmp_path):
    run_of(tmp_path, "first")
    replaced.set_aside(tmp_path)
    run_of(tmp_path, "second")
    (tmp_path / "config.json").unlink()  # it has only a checkpoint
    before = contents(tmp_path)
    replaced.set_aside(tmp_path)
    (tmp_path / "training.yaml").write_text("third")
    assert replaced.recover(tmp_path) and contents(tmp_path) == before


def test_a_new_model_that_is_whole_has_no_old_one_beside_it(tmp_path):
    run_of(tmp_path, "old")
    replaced.set_aside(tmp_path)
    run_of(tmp_path, "new")  # killed while the old one was deleted
    assert not replaced.recover(tmp_path)
    assert (tmp_path / "config.json").read_text() == "new" and not (tmp_path / replaced.ASIDE).exists()


def test_commands_tell_where_the_model_is_that_is_not_yet_replaced(tmp_path, capsys):
    (tmp_path / replaced.ASIDE).mkdir()
    assert lavit(["tokenize", "a.png", "--model", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "holds no tokenizer" in said and f"a run that has not ended is to replace the model in {tmp_path}" in said
