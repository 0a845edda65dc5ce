"""Laws of the run from the font to the figures: each step once, in order, on the pictures that are to be learned."""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

from examples.emoji.run import MINUTES, RECIPES, run, run_command, steps
from lavit.training.engine.config import load

STAGES = ("encoder", "tokenizer", "language", "pixels")


def test_only_the_training_split_is_learned_from_and_all_is_judged():
    todo = steps(Path("/out"), 8, seed=5)
    assert [step.name for step in todo] == ["world", *STAGES, "judged"]
    for step in todo[1:5]:
        words = list(step.command)
        assert words[words.index("--data") + 1] == "/out/world/train"
        assert words[words.index("--output") + 1] == f"/out/{step.name}"
        assert not any("held-out" in word for word in words)
    assert all(step.command[step.command.index("--seed") + 1] == "5" for step in todo)


def test_each_length_has_a_recipe_of_each_stage_and_there_are_no_others():
    assert {path.name for path in RECIPES.iterdir()} == {f"minutes-{minutes}" for minutes in MINUTES}
    for minutes in MINUTES:
        for step in steps(Path("/out"), minutes)[1:5]:
            assert Path(step.command[step.command.index("--config") + 1]).is_file()
    with pytest.raises(ValueError, match="minutes: expected one of 8, 40, got 9"):
        steps(Path("/out"), 9)


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("minutes", MINUTES)
def test_recipes_are_settings_of_their_stages(minutes, name, tmp_path):
    settings = yaml.safe_load((RECIPES / f"minutes-{minutes}" / f"{name}.yaml").read_text())
    assert settings.pop("extends") in ("small", "small-64")
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(settings))
    module = pytest.importorskip(f"lavit.training.{name}.recipe")
    load(getattr(module, f"{name.capitalize()}TrainingConfig"), tmp_path / "own.yaml")


def test_a_run_goes_on_where_it_was_stopped(tmp_path):
    called = []

    def call(words, fails="language"):
        called.append(list(words))
        if fails in words:
            (tmp_path / "language" / "checkpoints").mkdir(parents=True)
            return 130
        return 0

    todo = steps(tmp_path, 8)
    assert run(todo, tmp_path, call=call, tell=lambda _: None) == 130
    assert len(called) == 4 and list(json.loads((tmp_path / "seconds.json").read_text())) == ["world", *STAGES[:2]]
    called.clear()
    assert run(todo, tmp_path, call=lambda words: call(words, "nothing"), tell=lambda _: None) == 0
    assert [step.name for step in todo[3:]] == ["language", "pixels", "judged"] and len(called) == 3
    assert called[0][-1] == "--resume" and "--resume" not in called[1] + called[2]
    called.clear()
    assert run(todo, tmp_path, call=call, tell=lambda _: None) == 0 and called == []


def test_the_shares_of_the_mixture_are_the_recipes_whatever_the_folder_holds():
    recipe = pytest.importorskip("lavit.training.language.recipe").LanguageTrainingConfig
    for minutes in MINUTES:
        mixture = recipe.read(RECIPES / f"minutes-{minutes}" / "language.yaml").mixture
        assert not mixture.follow and mixture.caption == 2.0


def test_who_ends_the_run_ends_its_command_and_waits_for_it(tmp_path):
    kept = tmp_path / "kept"
    script = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (open(sys.argv[1], "w"), sys.exit(7)))
open(sys.argv[1] + ".ready", "w")
time.sleep(60)
"""

    def end():
        while not (tmp_path / "kept.ready").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=end).start()
    before = signal.getsignal(signal.SIGTERM)
    assert run_command([sys.executable, "-c", script, str(kept)]) == 7
    assert kept.exists() and signal.getsignal(signal.SIGTERM) is before
    assert run_command([sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"]) == 137
