"""Laws of the run from the font to the figures: each step once, in order, on the pictures that are to be learned."""

import json
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

from examples.emoji.__main__ import main
from examples.emoji.run import MINUTES, RECIPES, Call, run, run_commands, steps
from lavit.training.engine.config import load

STAGES = ("encoder", "tokenizer", "language", "pixels")


def value(step, option):
    return step.command[step.command.index(option) + 1]


def test_only_the_training_split_is_learned_from_and_all_is_judged():
    todo = steps(Path("/out"), 8, seed=5)
    assert [step.name for step in todo] == ["world", *STAGES, "judged"]
    for step in todo[1:5]:
        assert value(step, "--data") == "/out/world/train"
        assert value(step, "--validation") == "/out/world/held-out-combinations"
        assert value(step, "--output") == f"/out/{step.name}"
        assert sum("held-out" in word for word in step.command) == 1


def test_the_seed_is_that_of_the_stages_and_the_world_keeps_its_own():
    todo = steps(Path("/out"), 8, seed=5)
    assert [value(step, "--seed") for step in todo] == ["0", *["5"] * 5]
    assert value(steps(Path("/out"), 8, seed=5, world_seed=3)[0], "--seed") == "3"


def test_the_command_hands_its_options_on(tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr("examples.emoji.__main__.run", lambda todo, out: given.append((todo, out)) or 0)
    words = "--minutes 8 --seed 3 --world-seed 2 --length fixed".split()
    assert main(["run", str(tmp_path / "out"), *words, "--font", str(tmp_path / "a.ttf")]) == 0
    settings = dict(seed=3, world_seed=2, length="fixed", font=tmp_path / "a.ttf")
    assert given == [(steps(tmp_path / "out", 8, **settings), tmp_path / "out")]


def test_the_length_is_the_tokenizers_alone():
    plain, fixed = steps(Path("/out"), 8), steps(Path("/out"), 8, length="fixed")
    assert value(fixed[2], "--tokenizer.length") == "fixed"
    assert [one.name for one, other in zip(plain, fixed, strict=True) if one != other] == ["tokenizer"]
    with pytest.raises(ValueError, match="length: expected one of dynamic, fixed, got short"):
        steps(Path("/out"), 8, length="short")


def test_a_world_and_an_encoder_of_another_run_are_taken_and_not_made(tmp_path, capsys):
    out, world, encoder = tmp_path / "out", tmp_path / "world", tmp_path / "encoder"
    shared = ["--world", str(world), "--encoder", str(encoder)]
    assert main(["run", str(out), *shared]) == 2 and "there is no world.json" in capsys.readouterr().err
    world.mkdir()
    (world / "world.json").touch()
    assert main(["run", str(out), *shared]) == 2 and "encoder: there is no folder" in capsys.readouterr().err
    encoder.mkdir()
    assert main(["run", str(out), *shared, "--world-seed", "1"]) == 2 and "no --world-seed" in capsys.readouterr().err
    todo = steps(out, 8, world=world, encoder=encoder)
    assert [step.name for step in todo] == [*STAGES[1:], "judged"]
    assert value(todo[0], "--encoder") == str(encoder)
    assert all(value(step, "--data") == str(world / "train") for step in todo[:3])
    assert value(todo[3], "judge") == str(world)


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


class Calls:
    """Stands in for the commands. fails: the word of the one that is stopped; leaves: what that has written then."""

    def __init__(self, fails=None, leaves=None):
        self.fails, self.leaves, self.called = fails, leaves, []

    def __call__(self, calls, ended):
        for number, call in enumerate(calls):
            self.called.append(list(call.words))
            if self.fails in call.words:
                self.leaves.parent.mkdir(parents=True)
                self.leaves.touch()
            ended(number, 130 * (self.fails in call.words))


def silent(todo, out, calls, cpus=1):
    return run(todo, out, call=calls, tell=lambda _: None, cpus=cpus)


@pytest.mark.parametrize(
    "leaves, goes_on",
    [
        ("language/checkpoints/step-00000200/checkpoint.json", "--resume"),
        ("language/checkpoints/config.json", "--overwrite"),  # killed at step 0
        ("language/checkpoints/.step-00000200.tmp/model.pt", "--overwrite"),  # killed while it wrote the first
    ],
)
def test_a_run_goes_on_where_it_was_stopped(tmp_path, leaves, goes_on):
    todo = steps(tmp_path, 8)
    calls = Calls("language", tmp_path / leaves)
    assert silent(todo, tmp_path, calls) == 130
    assert calls.called == [list(step.command) for step in todo[:4]]
    kept = json.loads((tmp_path / "steps.json").read_text())
    assert [name for name in kept if kept[name]["seconds"] is not None] == ["world", *STAGES[:2]]
    assert silent(todo, tmp_path, calls := Calls()) == 0
    assert calls.called == [[*todo[3].command, goes_on], list(todo[4].command), list(todo[5].command)]
    assert silent(todo, tmp_path, calls := Calls()) == 0 and calls.called == []


def test_a_run_that_was_stopped_while_it_drew_draws_again(tmp_path):
    todo = steps(tmp_path, 8)
    assert silent(todo, tmp_path, Calls("draw", tmp_path / "world" / ".drawing")) == 130
    assert silent(todo, tmp_path, calls := Calls()) == 0
    assert calls.called == [list(step.command) for step in todo]  # what is half drawn is for `draw` to remove


def test_what_others_have_left_in_the_folder_of_a_stage_is_not_written_over(tmp_path):
    (tmp_path / "encoder" / "checkpoints" / "step-00000200").mkdir(parents=True)
    (tmp_path / "encoder" / "checkpoints" / "step-00000200" / "checkpoint.json").touch()
    assert silent(steps(tmp_path, 8), tmp_path, calls := Calls()) == 0
    assert calls.called[1] == list(steps(tmp_path, 8)[1].command)  # `lavit train` refuses


@pytest.mark.parametrize(
    "other, named",
    [
        (dict(minutes=40), r"encoder has --config: .*minutes-8.*, now .*minutes-40.*'steps': 250.*, now .*: 800"),
        (dict(seed=1), "encoder has --seed: 0, now 1$"),
        (dict(world_seed=1), "world has --seed: 0, now 1$"),
        (dict(font=Path("/a.ttf")), "world has --font: none, now /a.ttf$"),
        (dict(length="fixed"), "tokenizer has --tokenizer.length: none, now fixed$"),
    ],
)
def test_a_folder_of_other_words_is_refused_and_both_are_named(tmp_path, other, named):
    assert silent(steps(tmp_path, 8), tmp_path, Calls()) == 0
    kept = (tmp_path / "steps.json").read_text()
    with pytest.raises(ValueError, match=f"OUT: expected a new folder.*{named}"):
        silent(steps(tmp_path, **{"minutes": 8, **other}), tmp_path, calls := Calls())
    assert calls.called == [] and (tmp_path / "steps.json").read_text() == kept


def test_a_folder_of_another_recipe_is_refused_and_so_is_one_that_would_be_resumed_by_it(tmp_path, monkeypatch):
    recipes = tmp_path / "recipes"
    shutil.copytree(RECIPES, recipes)
    monkeypatch.setattr("examples.emoji.run.RECIPES", recipes)
    done, stopped, begun = tmp_path / "done", tmp_path / "stopped", tmp_path / "begun"
    assert silent(steps(done, 8), done, Calls()) == 0
    checkpoint = "pixels/checkpoints/step-00000100/checkpoint.json"
    assert silent(steps(stopped, 8), stopped, Calls("pixels", stopped / checkpoint)) == 130
    assert silent(steps(begun, 8), begun, Calls("pixels", begun / "pixels/training.yaml")) == 130
    recipe = recipes / "minutes-8" / "pixels.yaml"
    recipe.write_text(f"# A comment.\n{recipe.read_text()}")
    assert silent(steps(done, 8), done, Calls()) == 0
    recipe.write_text(recipe.read_text().replace("steps: 600", "steps: 601"))
    for out in (done, stopped):
        with pytest.raises(ValueError, match="pixels has recipe's loop: .*600.*, now .*601"):
            silent(steps(out, 8), out, Calls())
    assert silent(steps(begun, 8), begun, Calls()) == 0  # there was nothing to go on with


def test_a_run_that_was_moved_is_the_same(tmp_path):
    assert silent(steps(tmp_path / "a", 8), tmp_path / "a", Calls()) == 0
    (tmp_path / "a").rename(tmp_path / "b")
    assert silent(steps(tmp_path / "b", 8), tmp_path / "b", calls := Calls()) == 0 and calls.called == []


def test_the_shares_of_the_mixture_are_the_recipes_whatever_the_folder_holds():
    recipe = pytest.importorskip("lavit.training.language.recipe").LanguageTrainingConfig
    for minutes in MINUTES:
        mixture = recipe.read(RECIPES / f"minutes-{minutes}" / "language.yaml").mixture
        assert not mixture.follow and mixture.caption == 3.0


def test_language_and_pixels_share_the_cpus(tmp_path):
    todo, told, together = steps(tmp_path, 8), [], []

    def call(calls, ended):
        together.append([list(one.words) for one in calls])
        assert [one.log for one in calls] == [None, tmp_path / "pixels.log"][: len(calls)]
        for number in reversed(range(len(calls))):
            ended(number, 0)

    assert run(todo, tmp_path, call=call, tell=told.append, cpus=5) == 0
    halves = [[*step.command, "--threads", "2"] for step in todo[3:5]]
    assert together == [*([list(step.command)] for step in todo[:3]), halves, [list(todo[5].command)]]
    assert " ".join(halves[1]) + f" > {tmp_path / 'pixels.log'}" in told


def test_of_two_that_ran_together_only_what_was_stopped_goes_on(tmp_path):
    todo = steps(tmp_path, 8)
    checkpoint = tmp_path / "language/checkpoints/step-00000200/checkpoint.json"
    assert silent(todo, tmp_path, Calls("language", checkpoint), cpus=2) == 130
    assert silent(todo, tmp_path, calls := Calls(), cpus=2) == 0
    assert calls.called == [[*todo[3].command, "--resume"], list(todo[5].command)]


def test_commands_run_at_the_same_time_and_what_the_second_prints_is_kept(tmp_path, capfd):
    meet = """
import pathlib, sys, time
own, other = map(pathlib.Path, sys.argv[1:])
own.touch()
end = time.monotonic() + 60
while not other.exists() and time.monotonic() < end:
    time.sleep(0.02)
print("met" if other.exists() else "missed", other.name)
sys.exit(3 * (own.name == "b"))
"""
    places = [str(tmp_path / name) for name in "ab"]
    words = [[sys.executable, "-c", meet, *one] for one in (places, places[::-1])]
    found = {}
    run_commands([Call(words[0]), Call(words[1], tmp_path / "log")], found.__setitem__)
    assert found == {0: 0, 1: 3} and (tmp_path / "log").read_text() == "met a\n"
    assert capfd.readouterr().out == "met b\n"


def test_who_ends_the_run_ends_its_commands_and_waits_for_them(tmp_path):
    script = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (open(sys.argv[1], "w"), sys.exit(7)))
open(sys.argv[1] + ".ready", "w")
time.sleep(60)
"""
    kept = [tmp_path / name for name in "ab"]

    def end():
        while not all(Path(f"{each}.ready").exists() for each in kept):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=end).start()
    before = signal.getsignal(signal.SIGTERM)
    calls = [Call([sys.executable, "-c", script, str(each)]) for each in kept]
    found = {}
    run_commands(calls, found.__setitem__)
    assert found == {0: 7, 1: 7}
    assert all(each.exists() for each in kept) and signal.getsignal(signal.SIGTERM) is before
    own = Call([sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"])
    run_commands([own], found.__setitem__)
    assert found == {0: 137, 1: 7}


def test_commands_do_not_outlive_what_goes_wrong_beside_them(tmp_path):
    """A second command that cannot be begun, and a mistake while the end of one is told."""
    marks = [tmp_path / name for name in "ab"]
    script = "import sys, time; open(sys.argv[1], 'w'); time.sleep(60)"
    sleeping = [Call([sys.executable, "-c", script, str(mark)]) for mark in marks]
    with pytest.raises(FileNotFoundError):
        run_commands([sleeping[0], Call([str(tmp_path / "no such command")])], print)

    def wrong(number, code):
        raise RuntimeError("told")

    begun = time.monotonic()
    with pytest.raises(RuntimeError, match="told"):
        run_commands([sleeping[1], Call([sys.executable, "-c", ""])], wrong)
    assert time.monotonic() - begun < 50  # the one that sleeps was ended


def test_minutes_of_what_ran_side_by_side_are_not_added(tmp_path):
    todo, told = steps(tmp_path, 8), []
    assert silent(todo, tmp_path, Calls(), cpus=2) == 0
    kept = json.loads((tmp_path / "steps.json").read_text())
    assert [name for name in kept if kept[name]["beside"]] == ["language", "pixels"]
    for name, seconds in zip(kept, (60, 120, 180, 600, 300, 60), strict=True):
        kept[name]["seconds"] = seconds
    (tmp_path / "steps.json").write_text(json.dumps(kept))
    assert run(todo, tmp_path, call=Calls(), tell=told.append, cpus=1) == 0 and told[-1].startswith("22.0 minutes")
    assert run(todo, tmp_path, call=Calls(), tell=told.append, cpus=2) == 0 and told[-1].startswith("17.0 minutes")
