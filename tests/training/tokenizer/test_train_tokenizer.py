"""Stage 1: what learns and what does not, phases, going on after a stop, several processes, the command."""

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
from PIL import Image
from tiny_tokenizer import TINY

from lavit.cli import main as lavit
from lavit.tokenizer import LaVITImageProcessor, LaVITTokenizer, LaVITTokenizerConfig
from lavit.training.engine.config import ConfigError
from lavit.training.engine.loop import TrainingDiverged
from lavit.training.tokenizer import initialization, objective
from lavit.training.tokenizer.recipe import TokenizerTrainingConfig
from lavit.training.tokenizer.train import train_tokenizer


def tiny(**changes):
    torch.manual_seed(1)
    return LaVITTokenizer(LaVITTokenizerConfig.preset("small", **(TINY | changes)))


def settings(**changes):
    short = {"loop.steps": 8, "loop.batch_size": 4, "loop.log_every": 1, "scenes": 24, "first_phase": 0.5}
    return TokenizerTrainingConfig.recipe("small", short | {"cache.enabled": False, "tensorboard": False} | changes)


def some_features(n=64):
    """Images of 16 patches that are one of two backgrounds, with a few bright patches: something to learn."""
    generator = torch.Generator().manual_seed(3)
    base = torch.randn(2, 16, 16, generator=generator)[torch.arange(n) % 2]
    bright = torch.rand(n, 16, 1, generator=generator) < 0.2
    return base + bright * 4 * torch.randn(1, 1, 16, generator=generator)


def state_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def without_time(history):
    return [{k: v for k, v in row.items() if k != "images_per_second"} for row in history]


# -------------------------------------------------------------------------------------------------------------- recipes


def test_recipe_of_the_paper_holds_the_numbers_that_are_known():
    config = TokenizerTrainingConfig.recipe("lavit-g")
    tokenizer = LaVITTokenizerConfig.preset(config.preset, **config.tokenizer)
    assert config.loop.steps == 50_000 and 8 * config.loop.accumulate * config.loop.batch_size == 2048
    assert (tokenizer.keep_rate, tokenizer.ratio_weight) == (1 / 3, 2.0)
    assert (tokenizer.num_codes, tokenizer.code_dim) == (16384, 32)
    assert (tokenizer.merger_depth, tokenizer.decoder_depth) == (12, 12)
    assert config.warm_start.fraction == 0


def test_small_recipe_fits_its_preset():
    config = TokenizerTrainingConfig.recipe("small")
    assert LaVITTokenizerConfig.preset("small", **config.tokenizer).num_codes == 256
    known = "small, lavit-g, small-64, small-96, small-128"
    with pytest.raises(ConfigError, match=f"preset: expected one of {known}, got 'large'"):
        TokenizerTrainingConfig.recipe("large")


@pytest.mark.parametrize("preset", ["small-64", "small-96", "small-128"])
def test_recipes_of_pictures_fit_their_presets(preset):
    config = TokenizerTrainingConfig.recipe(preset)
    sizes = LaVITTokenizerConfig.preset(config.preset, **config.tokenizer)
    assert (config.preset, sizes.num_codes) == (preset, 1024)
    assert sizes.image_size == int(preset.removeprefix("small-"))


# ------------------------------------------------------------------------------------------------- what learns, and how


def test_reconstruction_improves_and_every_part_is_reported():
    # Full noise to the end: in so few steps the selector's scores hardly differ, and without noise all have one sign.
    changes = {"first_phase": 0.3, "schedule.warmup": 5, "noise.end": 1.0}
    config = settings(**{"loop.steps": 60, "loop.batch_size": 16}, **changes)
    history = train_tokenizer(config, model=tiny(), features=some_features()).history
    assert history[-1]["reconstruction_loss"] < 0.5 * history[0]["reconstruction_loss"]
    wanted = "step loss reconstruction_loss ratio_loss commitment_loss keep_rate codes_used perplexity lr grad_norm"
    assert set(f"{wanted} images_per_second phase skipped".split()) <= set(history[-1])
    assert "codes_used" not in history[0] and history[-1]["codes_used"] > 1
    assert [row["step"] for row in history] == list(range(1, 61))


@pytest.mark.parametrize("condition", [None, "lowres", "highres"])
def test_encoder_projection_and_unet_heads_have_neither_gradient_nor_optimizer_state(condition):
    model = tiny(decoder_condition=condition, condition_dim=8, condition_dim_2=12)
    before = state_of(model)
    result = train_tokenizer(settings(), model=model)
    after = state_of(result.model)
    for name in before:
        if name.startswith(("encoder.", "vit_proj.", "decoder.unet_")):
            assert torch.equal(before[name], after[name]), name
    groups = objective.parameter_groups(model, 0.1)
    trained = {id(p) for group in groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        assert (id(parameter) in trained) == (
            not name.startswith(("encoder.", "vit_proj.", "quantize.", "decoder.unet_"))
        ), name
        assert (id(parameter) in trained) == parameter.requires_grad
    assert groups[1]["weight_decay"] == 0 and all(p.dim() > 1 for p in groups[0]["params"])


def test_every_trained_parameter_gets_a_gradient_in_both_phases():
    model = tiny()
    objective.parameter_groups(model, 0.0)
    for quantize in (False, True):
        model.zero_grad()
        batch = {"features": some_features(8)}
        objective.Step(model)(batch, quantize=quantize, tau=1.0, noise_scale=1.0, warm_start=None)["loss"].backward()
        assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]


def watch(order):
    """Trains and returns (state before each step's row, history)."""
    states = []
    model = tiny()
    config = settings(order=order)
    result = train_tokenizer(
        config, model=model, features=some_features(), progress=lambda row: states.append(state_of(model))
    )
    return states, result.history


def same(a, b, prefix):
    return all(torch.equal(a[name], b[name]) for name in a if name.startswith(prefix))


def test_selector_then_codebook_freezes_the_selector_when_the_codebook_begins():
    states, history = watch("selector_then_codebook")
    assert [row["phase"] for row in history] == ["selector"] * 4 + ["codebook"] * 4
    assert same(states[0], states[3], "quantize.") and not same(states[0], states[3], "token_predictor.")
    assert same(states[3], states[7], "token_predictor.") and not same(states[3], states[4], "quantize.")
    # The selector's input stays too, or the selection would still move.
    assert same(states[3], states[7], "feature_position") and not same(states[0], states[3], "feature_position")
    assert not same(states[4], states[7], "causal_encoder.")


def test_continuous_then_joint_trains_everything_to_the_end():
    states, history = watch("continuous_then_joint")
    assert [row["phase"] for row in history] == ["continuous"] * 4 + ["joint"] * 4
    assert same(states[0], states[3], "quantize.") and not same(states[3], states[4], "quantize.")
    assert not same(states[4], states[7], "token_predictor.")


def test_codebook_starts_from_the_vectors_of_real_images():
    model = tiny(num_codes=3)
    stream = iter([{"features": some_features(32)}] * 50)
    initialization.start_codebook(model, stream, 200, noise_scale=0.0, seed=0)
    vectors = model.latents(features=some_features(32), deterministic=True).values
    codes = model.quantize.embedding.weight
    nearest = (vectors @ codes.T).argmax(1)
    for k in range(3):  # a fixed point of cosine k-means: each code is the direction of the mean of its own vectors
        mean = torch.nn.functional.normalize(vectors[nearest == k].mean(0), dim=0)
        torch.testing.assert_close(codes[k], mean, atol=0.05, rtol=0)


def test_bad_batches_leave_the_tokenizer_as_it_was():
    class Poisoned:
        def __next__(self):
            return {"features": some_features(4) * float("nan")}

        def state_dict(self):
            return {}

    model = tiny()
    before = state_of(model)
    with pytest.raises(TrainingDiverged, match="3 steps in a row"):
        changes = {"loop.max_bad_steps": 3, "codebook": "keep", "first_phase": 0}
        train_tokenizer(settings(**changes), model=model, stream=Poisoned())
    after = state_of(model)
    assert [name for name in before if not torch.equal(before[name], after[name])] == []


# ------------------------------------------------------------------------------------------------------- going on again


@pytest.mark.parametrize(("stop_at", "cached"), [(2, False), (4, True), (5, False)])
def test_stopped_and_resumed_is_bit_for_bit_the_straight_run(tmp_path, stop_at, cached):
    def config(name):
        changes = {"loop.accumulate": 2, "loop.log_every": 3, "cache.enabled": cached, "seed": 5}
        return settings(**changes, output=str(tmp_path / name), **{"warm_start.fraction": 0.5})

    def model():
        return tiny(standardize_features=True)

    straight = train_tokenizer(config("straight"), model=model())

    seen, step = [], objective.Step.forward

    def interrupting(self, batch, **kwargs):
        seen.append(1)
        if len(seen) == 2 * stop_at - 1:  # the first of two micro-batches
            signal.raise_signal(signal.SIGTERM)
        return step(self, batch, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objective.Step, "forward", interrupting)
        stopped = train_tokenizer(config("again"), model=model())
    assert stopped.stopped_by == signal.SIGTERM and stopped.path is None
    assert not (tmp_path / "again" / "config.json").exists()
    resumed = train_tokenizer(config("again"), resume=True)

    a, b = state_of(straight.model), state_of(resumed.model)
    assert a.keys() == b.keys() and [name for name in a if not torch.equal(a[name], b[name])] == []
    assert without_time(resumed.history) == without_time(straight.history)
    last = "checkpoints/step-00000008/optimizer.pt"
    one, two = (torch.load(tmp_path / name / last, weights_only=True)["state"] for name in ("straight", "again"))
    assert all(torch.equal(torch.as_tensor(one[i][k]), torch.as_tensor(two[i][k])) for i in one for k in one[i])


def test_caller_s_generators_are_left_alone():
    torch.manual_seed(4)
    np.random.seed(4)
    model, features = tiny(), some_features()
    torch.manual_seed(4)
    train_tokenizer(settings(**{"loop.steps": 1}), model=model, features=features)
    got = torch.rand(2)
    torch.manual_seed(4)
    assert torch.equal(got, torch.rand(2))


# ---------------------------------------------------------------------------------------------------- several processes

PROGRAM = """
import hashlib, sys, torch
sys.path.insert(0, {here!r})
from test_train_tokenizer import settings, some_features, tiny
from lavit.training import distributed
from lavit.training.tokenizer import train_tokenizer
torch.distributed.init_process_group("gloo")
config = settings(**{{"loop.accumulate": 2, "order": {order!r}, "output": {output!r}, "cache.enabled": True}})
result = train_tokenizer(config, model=tiny())
state = result.model.state_dict()
digest = hashlib.blake2b(b"".join(state[k].numpy().tobytes() for k in sorted(state))).hexdigest()
with open({output!r} + f"-digest-{{torch.distributed.get_rank()}}", "w") as file:  # printed lines may run together
    file.write(digest)
torch.distributed.destroy_process_group()
"""


def test_two_processes_end_with_the_same_codebook_and_weights(tmp_path):
    here = str(Path(__file__).parent)
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(here=here, order="selector_then_codebook", output=str(tmp_path / "run")))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(program)]
    paths = (Path(here).parents[2], Path(here).parents[1] / "helpers")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths)), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = ((tmp_path / f"run-digest-{rank}").read_text() for rank in range(2))
    assert first == second
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 9))  # one process writes


# ---------------------------------------------------------------------------------------------------------- the command


def words(output, *more):
    sizes = [word for key, value in TINY.items() for word in (f"--tokenizer.{key}", str(value))]
    fixed = ["--steps", "3", "--batch_size", "4", "--scenes", "12", "--encoder_steps", "2", "--tensorboard", "no"]
    return ["train", "tokenizer", "--output", str(output), *sizes, *fixed, "--vectors-per-code", "2", *more]


def test_command_leaves_a_model_that_loads(tmp_path, capsys):
    output = tmp_path / "run"
    assert lavit(words(output)) == 0
    assert "codes" in capsys.readouterr().out
    model, processor = LaVITTokenizer.from_pretrained(output), LaVITImageProcessor.from_pretrained(output)
    tokens = model.encode(processor(Image.new("RGB", (50, 40), "red")), deterministic=True)
    assert tokens.ids.numel() >= 1
    assert TokenizerTrainingConfig.recipe("small") != (saved := (output / "training.yaml").read_text())
    assert "num_codes: 12" in saved
    assert not [path.name for path in output.iterdir() if path.name.startswith(".")]

    assert lavit(words(output)) == 2
    assert "--resume goes on with it, --overwrite replaces it" in capsys.readouterr().err
    # All settings come from the folder but for the one that changes.
    assert lavit(["train", "tokenizer", "--output", str(output), "--resume", "--steps", "5"]) == 0
    assert "5/5" in capsys.readouterr().out
    # Another run goes on from the model, with another keep rate and the codebook that it has.
    more = ["--model", str(output), "--codebook", "keep", "--first_phase", "0", "--tokenizer.keep_rate", "0.2"]
    short = ["--steps", "1", "--scenes", "64", "--data", "shapes"]
    assert lavit(["train", "tokenizer", "--output", str(tmp_path / "second"), *more, *short]) == 0
    second = LaVITTokenizer.from_pretrained(tmp_path / "second")
    assert second.config.keep_rate == 0.2 and second.config.num_codes == 12
    assert same(state_of(model), state_of(second), "encoder.")


def test_folder_with_a_broken_image_trains_and_names_it(tmp_path, capsys):
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(6):
        pixels = np.random.default_rng(i).integers(0, 255, (20, 30, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    (folder / "4.png").write_bytes((folder / "4.png").read_bytes()[:200])
    assert lavit(words(tmp_path / "run", "--data", str(folder), "--cache.enabled", "no")) == 0
    out = capsys.readouterr().out
    assert "1 images could not be read" in out and str(folder / "4.png") in out


def test_images_fit_as_the_settings_say_and_the_model_remembers_it(tmp_path, capsys, caplog):
    caplog.set_level("INFO")
    folder, run = tmp_path / "images", tmp_path / "run"
    folder.mkdir()
    for i in range(4):
        pixels = np.random.default_rng(i).integers(0, 255, (48, 64, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    assert lavit(words(run, "--data", str(folder), "--fit", "crop")) == 0
    assert "images: 4 files, 64 x 48 to 32 x 32 (crop)" in caplog.text
    assert LaVITImageProcessor.from_pretrained(run).fit == "crop"
    resume = ["train", "tokenizer", "--output", str(run), "--resume"]
    assert lavit([*resume, "--steps", "4"]) == 0
    assert LaVITImageProcessor.from_pretrained(run).fit == "crop"
    capsys.readouterr()
    assert lavit([*resume, "--steps", "5", "--fit", "pad"]) == 2
    assert "learned beside other parts than this run has (processor: " in capsys.readouterr().err
    # Who goes on from the model has its way, unless told otherwise; features of one way are not taken for another's.
    more = ["train", "tokenizer", "--model", str(run), "--data", str(folder), "--steps", "1", "--batch_size", "4"]
    more += ["--codebook", "keep", "--tensorboard", "no", "--cache.folder", str(tmp_path / "features")]
    for name, fit, wanted in (("second", [], "crop"), ("third", ["--fit", "pad"], "pad")):
        assert lavit([*more, "--output", str(tmp_path / name), *fit]) == 0
        assert LaVITImageProcessor.from_pretrained(tmp_path / name).fit == wanted
    found = [path for place in (run, tmp_path) for path in (place / "features").glob("features-*")]
    assert len(found) == len({path.name for path in found}) == 2


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--stepz", "3"], "stepz: no such setting; did you mean loop.steps"),
        (["--steps", "many"], "loop.steps: expected a whole number, got 'many'"),
        (["--tokenizer.num_code", "9"], "num_codes"),
        (["--preset", "large"], "preset: expected one of small, lavit-g, small-64, small-96, small-128, got 'large'"),
        (["--data", "/no/such/folder"], "data: there is no folder /no/such/folder"),
        (["--model", "/no/such/folder"], "model: there is no folder /no/such/folder"),
        (["--encoder", "/no/such/file"], "encoder: there is no file or folder /no/such/file"),
        (["--resume", "--overwrite"], "at most one"),
        (["--device", "cuda:9x"], "device: expected auto, cpu, cuda or cuda:N"),
    ],
)
def test_wrong_use_is_one_clear_line(tmp_path, capsys, more, message):
    assert lavit(words(tmp_path / "run", *more)) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert not (tmp_path / "run").exists()


def test_large_preset_asks_for_an_encoder_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="lavit-g needs a pretrained encoder"):
        train_tokenizer(TokenizerTrainingConfig.recipe("lavit-g", {"output": str(tmp_path / "run")}))
    assert not (tmp_path / "run").exists()


def test_encoder_that_does_not_fit_names_its_tensors(tmp_path):
    state = {f"encoder.{name}": t for name, t in tiny().encoder.state_dict().items()}
    state["encoder.extra"] = state.pop("encoder.pos_embed")
    torch.save(state, tmp_path / "encoder.bin")
    with pytest.raises(ValueError, match="missing: pos_embed; unexpected: extra"):
        initialization.load_encoder(tiny(), tmp_path / "encoder.bin")


def test_encoder_of_a_saved_tokenizer_is_taken_with_its_statistics(tmp_path):
    source, target = tiny(), LaVITTokenizer(LaVITTokenizerConfig.preset("small", **TINY))
    source.set_feature_statistics(torch.randn(16, 16), torch.rand(16, 16) + 1)
    source.save_pretrained(tmp_path / "m")
    initialization.load_encoder(target, tmp_path / "m")
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(source.encode_features(images), target.encode_features(images))
