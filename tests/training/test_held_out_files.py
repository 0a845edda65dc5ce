"""Held-out files that cannot be read: a mistake at the start, and no reason to end a run later."""

from __future__ import annotations

import pytest
from captioned_scenes import captioned_scenes
from test_validation import STAGES, each_stage, held_out, visual

from lavit.data import ImageError
from lavit.tokenizer import LaVITTokenizer
from lavit.training.pixels.train import train_pixels
from lavit.training.tokenizer.train import train_tokenizer


@each_stage
def test_a_held_out_folder_of_which_nothing_can_be_read_is_refused_at_the_start(tmp_path, name):
    folder, other = captioned_scenes(tmp_path / "data", 8), captioned_scenes(tmp_path / "other", 3)
    for path in (other / "images").iterdir():
        path.write_bytes(path.read_bytes()[:60])  # the header is whole
    words = {"data": str(folder), "validation": str(other), "output": str(tmp_path / "run")}
    with pytest.raises(ImageError, match="read"):
        STAGES[name].run(**words, **{"cache.enabled": False} if name != "language" else {})
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize("name", ["tokenizer", "pixels"])
@pytest.mark.parametrize("lost", ["one", "all"])
def test_held_out_files_that_are_lost_while_a_run_trains_do_not_end_it(tmp_path, name, lost, caplog):
    folder, other = captioned_scenes(tmp_path / "data", 12), captioned_scenes(tmp_path / "other", 4)
    stage_ = STAGES[name]
    train = {"tokenizer": train_tokenizer, "pixels": train_pixels}[name]
    given = {"model": visual().train()} if name == "tokenizer" else {"tokenizer": visual()}

    def lose(row):
        if row["step"] == 3:
            for path in sorted((other / "images").iterdir())[: 1 if lost == "one" else None]:
                path.unlink()

    words = {"data": str(folder), "validation": str(other), "output": str(tmp_path / "run"), "cache.enabled": False}
    result = train(stage_.config(**words), progress=lose, **given)
    steps = [row["step"] for row in held_out(result.history)]
    assert steps == ([2, 4, 6] if lost == "one" else [2]) and result.path == tmp_path / "run"
    assert ("step 4: nothing is measured on held-out data" in caplog.text) == (lost == "all")


def test_a_file_that_is_lost_between_two_looks_at_it_costs_one_measurement(tmp_path, monkeypatch, caplog):
    folder, other = captioned_scenes(tmp_path / "data", 12), captioned_scenes(tmp_path / "other", 5)
    select, calls = LaVITTokenizer.select, []

    def losing(self, *args, deterministic=False, **kwargs):
        calls.extend([1] * (deterministic and not self.training))
        if len(calls) == 2:  # the second and last batch of the first look
            (other / "images" / "1.png").unlink(missing_ok=True)
        return select(self, *args, deterministic=deterministic, **kwargs)

    monkeypatch.setattr(LaVITTokenizer, "select", losing)
    words = {"data": str(folder), "validation": str(other), "cache.enabled": False}
    result = STAGES["tokenizer"].run(**words)
    assert [row["step"] for row in held_out(result.history)] == [4, 6]
    assert "step 2: nothing is measured on held-out data: an image could be read once and not again" in caplog.text
