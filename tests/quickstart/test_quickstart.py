"""A miniature of the quickstart goes through every stage; what it writes is whole, right and repeatable."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from lavit import LaVIT, LaVITPixelPipeline, LaVITProcessor
from lavit.evaluation.tasks import seed_of
from lavit.quickstart import QuickstartConfig, language, main, pixels, run_quickstart, summary
from lavit.quickstart import run as stages
from lavit.shapes.edits import edits
from lavit.shapes.questions import KINDS
from lavit.shapes.world import ShapesWorld
from lavit.tokenizer import LaVITImageProcessor, LaVITTokenizer


@pytest.fixture(scope="module")
def drawn():
    """What the run's language model was asked to draw, with the tokens that came, and the tokens that were painted."""
    return SimpleNamespace(prompts=[], written=[], painted=[])


@pytest.fixture(scope="module")
def run(tmp_path_factory, drawn):
    folder = tmp_path_factory.mktemp("run")
    lines: list[str] = []
    write, paint = LaVIT.generate_tokens, LaVITPixelPipeline.__call__

    def written(self, prompts, processor, **settings):
        found = write(self, prompts, processor, **settings)
        if "seeds" in settings:  # not for an estimate
            drawn.prompts += prompts
            drawn.written += [ids.tolist() for ids in found.codes.unbind()]
        return found

    def painted(self, *tokens, **settings):
        drawn.painted += [ids.tolist() for one in tokens for ids in one.unbind()]
        return paint(self, *tokens, **settings)

    torch.manual_seed(11)
    before = torch.get_rng_state()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LaVIT, "generate_tokens", written)
        patch.setattr(LaVITPixelPipeline, "__call__", painted)
        result = run_quickstart(QuickstartConfig.fast(output=folder, device="cpu", seed=3), say=lines.append)
    assert torch.equal(torch.get_rng_state(), before)
    return folder, result, lines


def test_it_writes_report_numbers_and_models(run):
    folder, result, _ = run
    assert {path.name for path in folder.iterdir()} == {
        "report.html",
        "figure.png",
        "results.json",
        "scene.png",
        "tokenizer",
        "model",
    }
    with Image.open(folder / "scene.png") as scene:
        assert np.array_equal(np.asarray(scene), ShapesWorld(3, "test").scenes(1).images[0])
    assert (folder / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "report.html").read_text(encoding="utf-8").rstrip().endswith("</html>")
    assert json.loads((folder / "results.json").read_text(encoding="utf-8")) == json.loads(json.dumps(summary(result)))


def test_the_saved_model_gives_the_reported_tokens(run):
    folder, result, _ = run
    model = LaVITTokenizer.from_pretrained(folder / "tokenizer").eval()
    processor = LaVITImageProcessor.from_pretrained(folder / "tokenizer")
    images = ShapesWorld(3, "test").scenes(len(result.scenes)).images
    keep = model.encode(processor(images), deterministic=True).keep.numpy()
    assert np.array_equal(keep, np.stack([scene.keep for scene in result.scenes]))


def test_counts_add_up(run):
    _, result, _ = run
    tokens = [n for group in result.content.values() for n in group]
    assert len(tokens) == len(result.cosines) == QuickstartConfig.fast().test_scenes
    assert sum(result.code_counts) == sum(tokens)
    assert [scene.tokens for scene in result.scenes] == [int(scene.keep.sum()) for scene in result.scenes]
    assert [photo.tokens for photo in result.photos] == [int(photo.keep.sum()) for photo in result.photos]
    assert all(0 <= value <= 1 for row in result.probe for value in (row.tokens, row.encoder, row.chance))
    assert sum(stage.seconds for stage in result.stages) <= result.seconds


def test_the_saved_whole_model_says_and_draws_what_is_reported(run):
    folder, result, _ = run
    model = LaVIT.from_pretrained(folder / "model").eval()
    processor = LaVITProcessor.from_pretrained(folder / "model")
    scenes = ShapesWorld(3, "test").scenes(len(result.language.spoken))
    said = model.caption(list(scenes.images), processor, **language.WORDS)
    assert said == [one.said for one in result.language.spoken]
    tokenizer = LaVITTokenizer.from_pretrained(folder / "tokenizer").state_dict()
    for name, tensor in model.visual_tokenizer.state_dict().items():  # stage 2 left it as it was
        assert torch.equal(tensor, tokenizer[name]), name
    features = model.visual_tokenizer.encode_features(processor.image_processor(scenes.images))
    own = model.visual_tokenizer.encode(features=features, deterministic=True).lengths().tolist()
    assert own == [scene.tokens for scene in result.scenes]


def test_numbers_of_the_language_stage_are_whole(run):
    folder, result, _ = run
    numbers = json.loads((folder / "results.json").read_text(encoding="utf-8"))["language"]
    count = QuickstartConfig.fast().language_scenes
    assert numbers["captions"]["scenes"] == numbers["images"]["scenes"] == count
    assert numbers["vqa"]["questions"] == 4 * count
    assert list(numbers["vqa"]["by_kind"]) == list(KINDS)
    assert numbers["vqa"]["mean"] == pytest.approx(np.mean(list(numbers["vqa"]["by_kind"].values())), abs=1e-12)
    for name in ("scene", "cell", "recall", "precision"):
        for asked in (numbers["images"], numbers["edits"]):
            assert all(0 <= share <= 1 for share in (asked[name], asked["chance"][name], asked["ceiling"][name]))
    # What is not changed is right already.
    changed = edits(ShapesWorld(3, "test"), count)
    guessed = (changed.wordless[1] == changed.after.cells).all(1).mean()
    assert numbers["edits"]["chance"]["cell"] == 0.75 and numbers["edits"]["chance"]["scene"] >= guessed
    assert numbers["steps"] == numbers["last"]["step"] == QuickstartConfig.fast().language_recipe["loop.steps"]
    assert all(parameters > 0 for parameters in numbers["parameters"].values())
    assert [len(one.answers) for one in result.language.spoken] == [4] * len(result.language.spoken)


def test_the_saved_pipeline_paints_what_is_reported(run):
    folder, result, _ = run
    pipeline = LaVITPixelPipeline.from_pretrained(folder / "model" / "pixels")
    scenes = ShapesWorld(3, "test").scenes(QuickstartConfig.fast().pixels_scenes)
    seeds = [seed_of(3, i) for i in range(len(scenes))]
    painted = pipeline(images=scenes.images, seeds=seeds, output_type="np").images
    assert len(result.pixels.paintings) == len(painted) == result.pixels.scenes
    for one, image in zip(result.pixels.paintings, painted, strict=True):
        assert np.abs(one.images["image"] / 255 - image).max() <= 0.5 / 255 + 1e-6
    numbers = json.loads((folder / "results.json").read_text(encoding="utf-8"))["pixels"]
    assert list(numbers["ways"]) == ["image", "text", "image and text"] and numbers["scenes"] == len(scenes)
    for shares in numbers["ways"].values():
        assert all(0 <= share <= 1 for share in (*shares.pop("chance").values(), *shares.values()))
    changed = edits(ShapesWorld(3, "test"), len(scenes))
    for one, words, wanted in zip(result.pixels.paintings, changed.texts, changed.after.captions, strict=True):
        assert one.words == {"image and text": words} and one.true("image and text") == wanted
        assert one.true("text") == one.caption
    assert numbers["steps"] == numbers["last"]["step"] == 3


def test_a_scene_is_asked_for_once_and_painted_as_it_was_judged(run, drawn):
    _, result, _ = run
    sizes = QuickstartConfig.fast()
    pairs = edits(ShapesWorld(3, "test"), sizes.language_scenes)
    captions, changes = drawn.prompts[: len(pairs)], drawn.prompts[len(pairs) :]
    assert captions == pairs.before.captions and [text for _, text in changes] == pairs.texts
    text, both = drawn.written[: len(pairs)], drawn.written[len(pairs) :]
    for codes, told in ((text, result.language.requests), (both, result.language.changes)):
        assert [len(ids) for ids in codes[: len(told)]] == [one.tokens for one in told] != []
    count = sizes.pixels_scenes
    assert count < len(pairs) and drawn.painted == [*text[:count], *both[:count]]


def test_no_more_scenes_are_painted_than_were_drawn():
    sizes = {"pixels_scenes": 151, "language_scenes": 150, "test_scenes": 160}
    assert QuickstartConfig(**sizes).painted_scenes == 150
    assert QuickstartConfig(**sizes, language=False).painted_scenes == 151
    assert QuickstartConfig(**sizes | {"test_scenes": 90}).painted_scenes == 90


def test_what_the_program_reads_is_put_into_words():
    assert pixels.in_words(np.array([1, 0, -1, 0])) == "a red circle top left and 1 unclear place"
    assert pixels.in_words(np.array([-1, 0, -1, 0])) == "2 unclear places"
    assert pixels.in_words(np.array([0, 0, 0, 0])) == "an empty picture"


def test_every_stage_is_announced_with_an_estimate_and_ends_with_its_time(run):
    _, result, lines = run
    names = [stage.name for stage in result.stages]
    assert names == [
        "scenes",
        "encoder",
        "features",
        "tokenizer",
        "evaluation",
        "photographs",
        "language",
        "reading and writing",
        "pixels",
        "painting",
    ]
    words = edits(ShapesWorld(3, "test"), 1).texts[0]
    assert any(f'scene.png "{words}" --model' in line for line in lines)
    plan = next(k for k, line in enumerate(lines) if "in all:" in line)
    for name in names:
        announced = next(k for k, line in enumerate(lines) if line.startswith(f"{name}: about "))
        assert plan < announced
    assert any("step 10/10" in line and "to go" in line for line in lines)


def test_the_same_seed_gives_the_same_numbers(run, tmp_path):
    _, first, _ = run
    again = run_quickstart(QuickstartConfig.fast(output=tmp_path, device="cpu", seed=3), say=lambda line: None)
    assert again.cosines == first.cosines
    assert again.code_counts == first.code_counts
    assert again.probe == first.probe
    assert again.language.captions == first.language.captions
    assert again.language.images == first.language.images
    assert again.language.requests == first.language.requests
    assert again.language.edits == first.language.edits
    assert [row["loss"] for row in again.language.history] == [row["loss"] for row in first.language.history]
    assert again.pixels.ways == first.pixels.ways
    assert [row["loss"] for row in again.pixels.history] == [row["loss"] for row in first.pixels.history]


def test_without_photographs_and_language_it_says_so_and_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "find_photographs", lambda limit: [])
    sizes = {"encoder_steps": 1, "train_scenes": 32, "test_scenes": 8, "probe_scenes": 8, "probe_steps": 1}
    recipe = {"loop.steps": 2, "loop.batch_size": 8, "vectors_per_code": 1}
    lines: list[str] = []
    config = QuickstartConfig(
        output=tmp_path,
        device="cpu",
        recipe=recipe,
        encoder_batch=8,
        language=False,
        pixels_recipe={"loop.steps": 1, "loop.batch_size": 2},
        pixels_scenes=2,
        length="fixed",
        **sizes,
    )
    result = run_quickstart(config, say=lines.append)
    assert result.photos == [] and result.language is None
    assert list(result.pixels.ways) == ["image"]  # by way of tokens, without a word
    assert LaVITPixelPipeline.from_pretrained(tmp_path / "pixels").tokenizer.config.length == "fixed"
    assert any("no photographs" in line for line in lines)
    assert not (tmp_path / "model").exists()
    assert json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["language"] is None
    model = LaVITTokenizer.from_pretrained(tmp_path / "tokenizer")
    assert model.config.length == result.length == "fixed"
    assert {n for group in result.content.values() for n in group} == {model.config.fixed_length}


def test_what_the_language_stage_did_not_learn_is_not_asked_of_it(tmp_path):
    fast = QuickstartConfig.fast()
    sizes = {"encoder_steps": 1, "train_scenes": 32, "test_scenes": 8, "probe_scenes": 8, "language_scenes": 2}
    config = QuickstartConfig.fast(
        output=tmp_path,
        device="cpu",
        recipe={**fast.recipe, "loop.steps": 2},
        language_recipe={**fast.language_recipe, "mixture.edit": 0, "loop.steps": 1},
        pixels_recipe={"loop.steps": 1, "loop.batch_size": 2},
        pixels_scenes=2,
        **sizes,
    )
    lines: list[str] = []
    result = run_quickstart(config, say=lines.append)
    assert result.language.edits == {} and result.language.changes == []
    assert list(result.pixels.ways) == ["image", "text"]
    assert not any("chang" in line for line in lines)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "What it changes" not in page and "(image and text)" not in page
    assert json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["language"]["edits"] is None


def test_a_recipe_that_draws_no_tokens_is_refused_before_anything_is_written(tmp_path):
    config = QuickstartConfig.fast(output=tmp_path / "out", device="cpu", language_recipe={"objective": "regress"})
    with pytest.raises(ValueError, match="objective"):
        run_quickstart(config, say=lambda line: None)
    assert not (tmp_path / "out").exists()


def test_the_command_passes_its_words_on(run, tmp_path, monkeypatch):
    _, result, _ = run
    calls = []
    monkeypatch.setattr(stages, "run_quickstart", lambda config, **kw: calls.append((config, kw)) or result)
    words = ["--fast", "--seed", "5", "--fixed-length", "--no-language", "--output", str(tmp_path / "out")]
    assert main(words) == 0
    config, kw = calls[0]
    assert config == QuickstartConfig.fast(output=tmp_path / "out", seed=5, length="fixed", language=False)
    assert kw["command"].startswith("lavit quickstart --fast --seed 5")


@pytest.mark.parametrize("words", [["--seed", "-1"], ["--seed", "many"], ["--steps", "3"], ["extra"]])
def test_wrong_words_end_with_usage_and_code_2(words, capsys):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    assert "usage: lavit quickstart" in capsys.readouterr().err


def test_an_output_that_is_a_file_is_refused(tmp_path, capsys):
    file = tmp_path / "taken"
    file.write_text("kept")
    with pytest.raises(SystemExit):
        main(["--output", str(file)])
    assert "--output" in capsys.readouterr().err
    assert file.read_text() == "kept"


def test_a_device_that_is_not_there_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="device"):
        main(["--fast", "--device", "abacus", "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.mark.gpu
def test_it_runs_on_a_gpu(tmp_path):
    result = run_quickstart(QuickstartConfig.fast(output=tmp_path, device="cuda"), say=lambda line: None)
    assert result.device == torch.cuda.get_device_name()
